"""Codecs and encoders: the contract of clips, whatever the codec; the image condition as Wan's generation makes it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.policies.dreamzero.tiny import built
from wamjax.errors import UserError
from wamjax.networks.wan.generation import beside
from wamjax.networks.wan.vae import WanVAE
from wamjax.policies.frozen import PatchFrames, UMT5Text, WanFrames, with_condition


def clip(policy, frames: int = 9):
    y, x, _ = policy.latent_size
    side = policy.config.frames.factor
    return jax.random.uniform(jax.random.key(0), (2, frames, y * side, x * side, 3), minval=-1, maxval=1)


@pytest.mark.parametrize("kind", ["small", "large"])
def test_a_clip_of_4n_1_frames_has_n_1_latents(kind):
    policy, _, frozen = built(kind)
    codec, params, video = policy.config.frames, frozen["frames"], clip(policy)
    latents = jax.eval_shape(codec.encode, params, video)
    assert latents.shape == (2, 3, *policy.latent_size)
    assert jax.eval_shape(codec.decode, params, latents).shape == video.shape


def test_latents_know_no_later_frame():
    """Of Wan's autoencoder this is tested where it lives."""
    policy, _, frozen = built("small")
    codec, params, video = policy.config.frames, frozen["frames"], clip(policy)
    latents = codec.encode(params, video)
    np.testing.assert_allclose(codec.encode(params, video[:, :5]), latents[:, :2], rtol=0, atol=1e-5)
    np.testing.assert_allclose(codec.encode(params, video[:, :1]), latents[:, :1], rtol=0, atol=1e-5)


def test_all_components_lose_nothing():
    frames = np.random.default_rng(0).integers(0, 256, (200, 8, 8, 3), np.uint8)
    codec = PatchFrames(patch=2, components=12)
    params = codec.fit(frames)
    video = jnp.asarray(frames[:18].reshape(2, 9, 8, 8, 3), jnp.float32) / 127.5 - 1
    latents = codec.encode(params, video)
    assert latents.shape == (2, 3, 4, 4, codec.channels)
    np.testing.assert_allclose(codec.decode(params, latents), video, rtol=0, atol=1e-4)


def test_the_image_condition_is_that_of_image_to_video():
    policy, _, frozen = built("large")
    video = clip(policy)
    ours = with_condition(policy.config.frames, frozen["frames"], video)
    theirs = beside(WanVAE(policy.config.frames.vae), frozen["frames"], video[:, 0], 9, *video.shape[2:4])
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(ours[:, :, 0, 0, :4], np.array([1.0, 0, 0])[None, :, None] * np.ones((2, 1, 4)))


def test_what_must_be_given_is_said():
    with pytest.raises(UserError, match="weights"):
        WanFrames().fit(np.zeros((1, 8, 8, 3), np.uint8))
    with pytest.raises(UserError, match=r"text\.tokenizer"):
        UMT5Text().tokenize("push")
