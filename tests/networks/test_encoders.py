"""UMT5 and CLIP against transformers on random weights, and their key maps."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.parity.recipe import FOLDER, draw, texts, weights
from wamjax.errors import UserError
from wamjax.interop import encoders
from wamjax.interop.keymap import flatten, to_ours, to_theirs
from wamjax.networks.clip import MEAN, STD, CLIPVision, CLIPVisionConfig, preprocess
from wamjax.networks.images import bicubic
from wamjax.networks.umt5 import UMT5Config, UMT5Encoder, relative_buckets

TINY_UMT5 = UMT5Config(vocabulary=100, width=32, heads=4, head_dim=8, mlp=48, layers=3)
TINY_CLIP = CLIPVisionConfig(image=28, width=32, heads=4, mlp=128, layers=3, used=2)
TABLES = {"umt5": encoders.umt5, "clip": encoders.clip_vision}
TINY = {"umt5": TINY_UMT5, "clip": TINY_CLIP}


def shapes_of(config) -> dict[str, tuple[int, ...]]:
    if isinstance(config, UMT5Config):
        module, inputs = UMT5Encoder(config), (jnp.zeros((1, 4), int), jnp.ones((1, 4), bool))
    else:
        module, inputs = CLIPVision(config), (jnp.zeros((1, config.image, config.image, 3)),)
    params = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    return {path: leaf.shape for path, leaf in flatten(params).items()}


@functools.cache
def fixture(name: str, seed: int):
    stored = dict(np.load(FOLDER / f"{name}_{seed}.npz"))
    tensors = weights(json.loads(str(stored.pop("shapes"))), seed)
    return stored, tensors, to_ours(TABLES[name](TINY[name], "diffusers"), tensors, shapes_of(TINY[name]))


@pytest.mark.parametrize("seed", [0, 1])
def test_umt5_equals_transformers(seed):
    stored, _, params = fixture("umt5", seed)
    tokens, present = texts(seed)
    output = np.asarray(jax.jit(UMT5Encoder(TINY_UMT5).apply)({"params": params}, tokens, present))
    np.testing.assert_allclose(output[present], stored["output"][present], rtol=0, atol=2e-5)
    changed = np.where(present, tokens, 0)
    again = np.asarray(jax.jit(UMT5Encoder(TINY_UMT5).apply)({"params": params}, changed, present))
    np.testing.assert_array_equal(again[present], output[present])


@pytest.mark.parametrize("seed", [0, 1])
def test_clip_equals_transformers(seed):
    stored, _, params = fixture("clip", seed)
    output = jax.jit(CLIPVision(TINY_CLIP).apply)({"params": params}, draw("images", (3, 28, 28, 3), seed))
    np.testing.assert_allclose(output, stored["output"], rtol=0, atol=2e-5)


@pytest.mark.parametrize("seed", [0, 1])
def test_images_are_resized_as_torch_does(seed):
    picture = draw("picture", (2, 37, 19, 3), seed)
    prepared = np.asarray(preprocess(picture, 28)) * np.array(STD) + np.array(MEAN)
    np.testing.assert_allclose(prepared * 2 - 1, fixture("clip", seed)[0]["resized"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(bicubic(9, 9), np.eye(9), atol=1e-6)
    np.testing.assert_allclose(bicubic(13, 7).sum(1), 1, atol=1e-6)


def test_relative_buckets_are_exact_near_and_logarithmic_far():
    buckets = relative_buckets(300, 32, 128)
    assert buckets[0, :9].tolist() == [0, 17, 18, 19, 20, 21, 22, 23, 24]
    assert buckets[:9, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    far = {11: 8, 12: 9, 16: 10, 23: 11, 32: 12, 64: 14, 90: 14, 91: 15, 127: 15, 128: 15, 299: 15}
    assert {distance: buckets[distance, 0] for distance in far} == far
    assert buckets.max() == 31


@pytest.mark.parametrize(("name", "seed"), [("umt5", 0), ("clip", 1)])
def test_export_gives_back_what_was_imported(name, seed):
    _, tensors, params = fixture(name, seed)
    again = to_theirs(TABLES[name](TINY[name], "diffusers"), params)
    assert set(again) == set(tensors)
    for key, tensor in tensors.items():
        np.testing.assert_array_equal(again[key], tensor)


@pytest.mark.parametrize("name", TABLES)
def test_both_layouts_hold_the_same_network(name):
    """Theirs to ours to the original layout and back again."""
    _, _, params = fixture(name, 0)
    table = TABLES[name](TINY[name], "original")
    again = flatten(to_ours(table, to_theirs(table, params), shapes_of(TINY[name])))
    for path, leaf in flatten(params).items():
        np.testing.assert_array_equal(again[path], leaf)
    with pytest.raises(UserError, match="use original or diffusers"):
        TABLES[name](TINY[name], "keras")


@pytest.mark.parametrize(
    ("name", "config", "parameters", "tensors"),
    [
        ("umt5", UMT5Config(), 5_680_910_336, 242),
        ("clip", CLIPVisionConfig(projection=1024), 632_076_800, 392),
    ],
)
def test_full_sizes_are_those_of_the_published_models(name, config, parameters, tensors):
    shapes = shapes_of(config)
    table = TABLES[name](config, "original")
    assert set(table) == set(shapes)
    assert sum(int(np.prod(shape, dtype=np.int64)) for shape in shapes.values()) == parameters
    assert len({key for source in table.values() for key in source.keys}) == tensors


def test_keys_of_the_original_files():
    """Examples of wan/modules/t5.py and clip.py."""
    umt5 = {k for s in encoders.umt5(UMT5Config(), "original").values() for k in s.keys}
    clip = {k for s in encoders.clip_vision(CLIPVisionConfig(), "original").values() for k in s.keys}
    assert {"token_embedding.weight", "blocks.23.attn.o.weight", "blocks.0.ffn.gate.0.weight", "norm.weight"} <= umt5
    assert {"visual.transformer.31.attn.to_qkv.bias", "visual.cls_embedding", "visual.post_norm.weight"} <= clip


@pytest.mark.parametrize("wrong", [np.zeros((48, 31), np.float32), np.zeros(48, np.float32)])
def test_misshapen_tensors_are_named(wrong):
    _, tensors, _ = fixture("umt5", 0)
    key = "encoder.block.1.layer.1.DenseReluDense.wi_0.weight"
    with pytest.raises(UserError, match=r"1 misshapen \(encoder.block.1.*not \(48, 32\)"):
        to_ours(encoders.umt5(TINY_UMT5, "diffusers"), tensors | {key: wrong}, shapes_of(TINY_UMT5))
