"""Wan's autoencoders against diffusers' on random weights, and their key maps."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.parity.recipe import FOLDER, draw, weights
from wamjax.errors import UserError
from wamjax.interop.keymap import flatten, to_ours, to_theirs
from wamjax.interop.wan_vae import keymap
from wamjax.networks.wan.vae import WAN21_VAE, WAN22_VAE, WanVAE, WanVAEConfig, fold, stream, unfold

TINY = {
    "wan21": WanVAEConfig(width=8, decoder_width=8, latent=4),
    "wan22": WanVAEConfig(width=8, decoder_width=12, latent=6, patch=2, shortcuts=True),
}
CASES = [(name, seed) for name in TINY for seed in (0, 1)]
CLIPS = {0: (0, 3), 1: (1, 2)}  # of 1 and 17, and of 5 and 9 frames


def shapes_of(config: WanVAEConfig) -> dict[str, tuple[int, ...]]:
    side = config.patch * 8
    params = jax.eval_shape(WanVAE(config).init, jax.random.key(0), jnp.zeros((1, 5, side, side, 3)))["params"]
    return {path: leaf.shape for path, leaf in flatten(params).items()}


@functools.cache
def fixture(name: str, seed: int):
    stored = dict(np.load(FOLDER / f"{name}_vae_{seed}.npz"))
    tensors = weights(json.loads(str(stored.pop("shapes"))), seed)
    return stored, tensors, to_ours(keymap(TINY[name], "diffusers"), tensors, shapes_of(TINY[name]))


def run(config: WanVAEConfig, method: str, params, x):
    return jax.jit(functools.partial(WanVAE(config).apply, method=method))({"params": params}, x)


@pytest.mark.parametrize(("name", "seed", "clip"), [(*case, clip) for case in CASES for clip in CLIPS[case[1]]])
def test_encoding_and_decoding_equal_diffusers(name, seed, clip):
    stored, _, params = fixture(name, seed)
    decoded = stored[f"decoded {clip}"]
    video = draw(f"clip {clip}", decoded.shape, seed)
    mean, logvar = run(TINY[name], "moments", params, video)
    np.testing.assert_allclose(mean, stored[f"mean {clip}"], rtol=0, atol=5e-5)
    np.testing.assert_allclose(logvar, stored[f"logvar {clip}"], rtol=0, atol=5e-5)
    latents = draw(f"latents {clip}", mean.shape, seed)
    np.testing.assert_allclose(run(TINY[name], "decode", params, latents), decoded, rtol=0, atol=5e-5)
    assert np.mean(np.abs(decoded) == 1) < 0.5, "a saturated clip compares nothing"


@pytest.mark.parametrize("name", TINY)
def test_weights_in_the_original_layout_give_the_original_results(name):
    stored = dict(np.load(FOLDER / f"{name}_vae_original.npz"))
    tensors = weights(json.loads(str(stored["shapes"])), 5)
    params = to_ours(keymap(TINY[name], "original"), tensors, shapes_of(TINY[name]))
    latents = run(TINY[name], "encode", params, draw("clip", stored["decoded"].shape, 5))
    np.testing.assert_allclose(latents, stored["latents"], rtol=0, atol=5e-5)
    decoded = run(TINY[name], "decode", params, latents)
    np.testing.assert_allclose(decoded, stored["decoded"], rtol=0, atol=5e-5)
    again = to_theirs(keymap(TINY[name], "original"), params)
    assert all(np.array_equal(again[key], tensor) for key, tensor in tensors.items())


@pytest.mark.parametrize(("name", "seed"), CASES[::2])
def test_export_gives_back_what_was_imported(name, seed):
    _, tensors, params = fixture(name, seed)
    again = to_theirs(keymap(TINY[name], "diffusers"), params)
    assert set(again) == set(tensors)
    for key, tensor in tensors.items():
        np.testing.assert_array_equal(again[key], tensor)


@pytest.mark.parametrize(
    ("config", "parameters", "tensors"), [(WAN21_VAE, 126_892_531, 194), (WAN22_VAE, 704_688_668, 196)]
)
def test_full_sizes_are_those_of_the_published_models(config, parameters, tensors):
    shapes = shapes_of(config)
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == parameters
    for layout in ("original", "diffusers"):
        table = keymap(config, layout)
        assert set(table) == set(shapes)
        assert len({key for source in table.values() for key in source.keys}) == len(table) == tensors
    assert len(config.mean) == len(config.std) == config.latent


def test_keys_of_the_original_files():
    """Examples of wan/modules/vae.py and vae2_2.py."""
    keys = [{k for s in keymap(c, "original").values() for k in s.keys} for c in (WAN21_VAE, WAN22_VAE)]
    assert {
        *("encoder.downsamples.3.shortcut.weight", "encoder.downsamples.8.time_conv.bias", "decoder.head.0.gamma"),
        *("decoder.upsamples.4.shortcut.weight", "decoder.upsamples.11.resample.1.weight", "conv1.weight"),
        *(
            "encoder.middle.1.to_qkv.weight",
            "decoder.upsamples.14.residual.6.bias",
            "encoder.downsamples.0.residual.0.gamma",
        ),
    } <= keys[0]
    assert {
        *(
            "encoder.downsamples.1.downsamples.0.shortcut.weight",
            "encoder.downsamples.2.downsamples.2.time_conv.weight",
        ),
        *("decoder.upsamples.2.upsamples.0.shortcut.weight", "decoder.upsamples.0.upsamples.3.resample.1.bias"),
    } <= keys[1]


@pytest.mark.parametrize("name", TINY)
def test_a_prefix_of_a_clip_has_the_same_latents_and_frames(name):
    """Encoder and decoder are causal: what comes later changes nothing."""
    _, _, params = fixture(name, 0)
    config, side = TINY[name], 8 * TINY[name].patch
    clip = draw("clip", (1, 9, side, side, 3), 7)
    whole, part = (run(config, "encode", params, x) for x in (clip, clip[:, :5]))
    np.testing.assert_allclose(part, whole[:, :2], rtol=0, atol=1e-5)
    frames, first = (run(config, "decode", params, x) for x in (whole, part))
    np.testing.assert_allclose(first, frames[:, :5], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", TINY)
def test_a_stream_of_chunks_equals_the_whole_clip(name):
    _, _, params = fixture(name, 1)
    vae, side = WanVAE(TINY[name]), 8 * TINY[name].patch
    clip = draw("clip", (1, 9, side, side, 3), 7)
    latents = run(TINY[name], "encode", params, clip)
    chunks = list(stream(vae, params, "encode", (clip[:, :1], clip[:, 1:5], clip[:, 5:])))
    assert [chunk.shape[1] for chunk in chunks] == [1, 1, 1]
    np.testing.assert_allclose(np.concatenate(chunks, axis=1), latents, rtol=0, atol=1e-5)
    frames = run(TINY[name], "decode", params, latents)
    chunks = list(stream(vae, params, "decode", (latents[:, i : i + 1] for i in range(3))))
    assert [chunk.shape[1] for chunk in chunks] == [1, 4, 4]
    np.testing.assert_allclose(np.concatenate(chunks, axis=1), frames, rtol=0, atol=1e-5)
    with pytest.raises(UserError, match="use 4 n \\+ 0 frames"):
        list(stream(vae, params, "encode", (clip[:, :1], clip[:, 1:4])))


def test_latents_are_normalised_by_the_published_constants():
    _, _, params = fixture("wan21", 0)
    scaled = dataclasses.replace(TINY["wan21"], mean=(0.5, -1.0, 0.0, 2.0), std=(2.0, 1.0, 0.5, 4.0))
    clip = draw("clip", (1, 1, 8, 8, 3), 7)
    raw, latents = (run(config, "encode", params, clip) for config in (TINY["wan21"], scaled))
    np.testing.assert_allclose(latents * np.array(scaled.std) + np.array(scaled.mean), raw, rtol=1e-5, atol=1e-5)
    plain, again = (run(c, "decode", params, z) for c, z in ((TINY["wan21"], raw), (scaled, latents)))
    np.testing.assert_allclose(plain, again, rtol=0, atol=1e-5)


def test_the_posterior_is_drawn_from():
    _, _, params = fixture("wan21", 0)
    scaled = dataclasses.replace(TINY["wan21"], mean=(0.5, -1.0, 0.0, 2.0), std=(2.0, 1.0, 0.5, 4.0))
    clip, noise = draw("clip", (1, 1, 8, 8, 3), 7), draw("noise", (1, 1, 1, 1, 4), 7)
    mean, log_variance = run(TINY["wan21"], "moments", params, clip)
    drawn = WanVAE(scaled).apply({"params": params}, clip, noise, method="sample")
    wanted = (mean + np.exp(log_variance / 2) * noise - np.array(scaled.mean)) / np.array(scaled.std)
    np.testing.assert_allclose(drawn, wanted, rtol=0, atol=1e-5)
    still = WanVAE(scaled).apply({"params": params}, clip, 0 * noise, method="sample")
    np.testing.assert_allclose(still, run(scaled, "encode", params, clip), rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 4, 8, 8, 3), (1, 2, 8, 8, 3), (1, 5, 12, 8, 3), (1, 5, 8, 7, 3)])
def test_clips_that_do_not_divide_are_refused(shape):
    with pytest.raises(UserError, match="4 n \\+ 1 frames"):
        WanVAE(TINY["wan21"]).init(jax.random.key(0), jnp.zeros(shape))


def test_folding_orders_channels_colour_column_row():
    video = draw("video", (1, 1, 4, 6, 3), 0)
    folded = np.asarray(fold(video, 2))
    for colour, column, row in np.ndindex(3, 2, 2):
        np.testing.assert_array_equal(
            folded[..., 4 * colour + 2 * column + row], video[:, :, row::2, column::2, colour]
        )
    np.testing.assert_array_equal(unfold(folded, 2), video)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("conv_x", None) or t.pop("encoder.conv_in.bias"), "1 missing \\(encoder.conv_in.bias\\)"),
        (lambda t: t.update(extra=np.zeros(1)), "1 unexpected \\(extra\\)"),
        (
            lambda t: t.update({"quant_conv.bias": np.zeros(3)}),
            "1 misshapen \\(quant_conv.bias \\(3,\\), not \\(8,\\)\\)",
        ),
    ],
)
def test_sources_that_do_not_fit_are_named(change, message):
    _, tensors, _ = fixture("wan21", 0)
    tensors = dict(tensors)
    change(tensors)
    with pytest.raises(UserError, match=message):
        to_ours(keymap(TINY["wan21"], "diffusers"), tensors, shapes_of(TINY["wan21"]))
    with pytest.raises(UserError, match="use original or diffusers"):
        keymap(TINY["wan21"], "keras")
