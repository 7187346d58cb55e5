"""Frame codec, text encoder and stream transformer."""

import jax.numpy as jnp
import numpy as np
import pytest

from wamjax.networks.bag_of_words import bag_of_words
from wamjax.networks.patch_codec import PatchCodec


def frames(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 12, 3), dtype=np.uint8)


def test_all_components_reconstruct_exactly():
    codec = PatchCodec(patch=4, channels=48)
    params = codec.fit(frames(60))
    again = codec.decode(params, codec.encode(params, jnp.asarray(frames(5, seed=1))))
    assert int(np.abs(np.asarray(again, int) - frames(5, seed=1)).max()) <= 1


def test_patches_lie_where_they_are_in_the_frame():
    codec = PatchCodec(patch=4, channels=48)
    params = codec.fit(frames(60))
    frame = frames(1)
    changed = frame.copy()
    changed[0, 4:, 8:] ^= 255
    difference = np.abs(codec.encode(params, jnp.asarray(frame)) - codec.encode(params, jnp.asarray(changed))).max(-1)
    assert difference.shape == (1, 2, 3)
    assert difference[0, 1, 2] > 0.1
    assert np.delete(difference.ravel(), 5).max() < 1e-4


def test_fewer_components_keep_the_strongest_and_latents_have_unit_variance():
    random = np.random.default_rng(0)
    basis = random.standard_normal((3, 48))
    patches = random.standard_normal((400, 3)) @ basis * 12 + 128
    images = np.clip(patches, 0, 255).astype(np.uint8).reshape(400, 4, 4, 3)
    codec = PatchCodec(patch=4, channels=4)
    params = codec.fit(images)
    latents = codec.encode(params, jnp.asarray(images))
    assert abs(float(jnp.var(latents, axis=(0, 1, 2)).mean()) - 1) < 0.05
    error = np.asarray(codec.decode(params, latents), float) - images
    assert error.std() < 3


def test_bag_of_words_tells_instructions_apart_and_ignores_case():
    texts = ["open the drawer", "open the door", "open the window", "press the button"]
    vectors = np.stack([bag_of_words(text) for text in texts])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)
    assert (vectors @ vectors.T - np.eye(4)).max() < 0.9
    np.testing.assert_array_equal(bag_of_words("Open, the DRAWER!"), vectors[0])
    assert not bag_of_words("").any()
    assert bag_of_words("a", width=7).shape == (7,)


@pytest.mark.parametrize("text", ["", "  ", "öffne die Schublade", "x" * 10_000])
def test_any_text_is_accepted(text):
    assert np.isfinite(bag_of_words(text)).all()
