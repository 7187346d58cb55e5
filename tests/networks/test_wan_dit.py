"""Wan's transformer against diffusers and the original code on random weights, its sizes, its cache, its key maps."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.parity.recipe import FOLDER, WAN_DITS, weights
from wamjax.errors import UserError
from wamjax.interop.keymap import flatten, to_ours, to_theirs
from wamjax.interop.wan_dit import keymap
from wamjax.networks.wan import dit
from wamjax.networks.wan.dit import Precision, WanDiT, WanDiTConfig, clip_ids, grid_positions
from wamjax.nn.rope import rotation
from wamjax.nn.stack import extended
from wamjax.nn.tokens import Group, TokenIds, TokenPlan


def tiny(name: str) -> WanDiTConfig:
    case = WAN_DITS[name]
    return WanDiTConfig(
        width=48,
        mlp=64,
        heads=4,
        layers=2,
        text=32,
        inputs=case.inputs,
        outputs=case.outputs,
        image=case.image,
        image_positions=case.image_positions,
    )


@functools.cache
def shapes_of(config: WanDiTConfig) -> dict[str, tuple[int, ...]]:
    image = jnp.zeros((1, config.image_positions or 257, config.image)) if config.image else None
    inputs = (jnp.zeros((1, 1, 2, 2, config.inputs)), jnp.zeros((1, 1)), jnp.zeros((1, 1, config.text)), image)
    params = jax.eval_shape(WanDiT(config).init, jax.random.key(0), *inputs)["params"]
    return {path: leaf.shape for path, leaf in flatten(params).items()}


@functools.cache
def fixture(name: str, which: int | str):
    """What was frozen, the weights under their published names, and our parameters."""
    stored = dict(np.load(FOLDER / f"wan_dit_{name}_{which}.npz"))
    seed, layout = (5, "original") if which == "original" else (which, "diffusers")
    tensors = weights(json.loads(str(stored.pop("shapes"))), seed)
    return stored, tensors, to_ours(keymap(tiny(name), layout), tensors, shapes_of(tiny(name)))


@functools.partial(jax.jit, static_argnums=0)
def velocity(module: WanDiT, params, *inputs):
    return module.apply({"params": params}, *inputs)


@pytest.mark.parametrize(
    ("name", "which"),
    [(name, seed) for name in WAN_DITS for seed in (0, 1)] + [(n, "original") for n in ("t2v", "i2v", "ti2v")],
)
def test_velocities_equal_the_published_code(name, which):
    stored, _, params = fixture(name, which)
    for i, clip in enumerate(WAN_DITS[name].clips(5 if which == "original" else which)):
        output = velocity(WanDiT(tiny(name)), params, *clip)
        assert 0.3 < np.abs(stored[f"velocity {i}"]).max() < 10
        np.testing.assert_allclose(output, stored[f"velocity {i}"], rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("name", "parameters", "tensors"),
    [
        ("wan2.1-t2v-1.3b", 1_418_996_800, 825),
        ("wan2.1-t2v-14b", 14_288_491_584, 1095),
        ("wan2.1-i2v-14b", 16_394_878_784, 1303),
        ("wan2.1-flf2v-14b", 16_395_536_704, 1304),
        ("wan2.2-ti2v-5b", 4_999_787_712, 825),
        ("wan2.2-t2v-a14b", 14_288_491_584, 1095),
        ("wan2.2-i2v-a14b", 14_288_901_184, 1095),
    ],
)
def test_full_sizes_are_those_of_the_published_models(name, parameters, tensors):
    shapes = shapes_of(dit.WAN_DITS[name])
    assert sum(int(np.prod(shape, dtype=np.int64)) for shape in shapes.values()) == parameters
    for layout in ("original", "diffusers"):
        table = keymap(dit.WAN_DITS[name], layout)
        assert set(table) == set(shapes)
        assert len({key for source in table.values() for key in source.keys}) == tensors


@pytest.mark.parametrize("name", WAN_DITS)
def test_export_gives_back_what_was_imported_in_both_layouts(name):
    _, tensors, params = fixture(name, 0)
    again = to_theirs(keymap(tiny(name), "diffusers"), params)
    assert set(again) == set(tensors)
    for key, tensor in tensors.items():
        np.testing.assert_array_equal(again[key], tensor)
    original = keymap(tiny(name), "original")
    back = flatten(to_ours(original, to_theirs(original, params), shapes_of(tiny(name))))
    for path, leaf in flatten(params).items():
        np.testing.assert_array_equal(back[path], leaf)


def test_one_timestep_is_the_same_however_it_is_given():
    _, _, params = fixture("t2v", 0)
    latents, _, text, _ = next(iter(WAN_DITS["t2v"].clips(0)))
    outputs = [velocity(WanDiT(tiny("t2v")), params, latents, jnp.full((2, m), 321.5), text) for m in (1, 2, 6)]
    for output in outputs[1:]:
        np.testing.assert_allclose(output, outputs[0], rtol=0, atol=1e-6)


def test_a_frame_from_a_cache_equals_the_frame_of_a_causal_clip():
    """What chunked policies do: the first frame once, then the second with the first's keys and values."""
    config, (_, _, params) = tiny("ti2v"), fixture("ti2v", 0)
    module, variables = WanDiT(config), {"params": params}
    latents = jax.random.normal(jax.random.key(0), (2, 2, 4, 6, config.inputs))
    timestep, text = jnp.array([[0.0, 700.0], [10.0, 300.0]]), jax.random.normal(jax.random.key(1), (2, 3, 32))
    groups = [Group("video", 6, block=i) for i in range(2)]
    whole = TokenPlan.from_rule(groups, lambda q, k: k.block <= q.block)
    first = TokenPlan.from_rule(groups[:1], lambda q, k: True)
    ids = clip_ids((2, 2, 3), 2, timestep)

    def part(start: int, stop: int) -> TokenIds:
        return jax.tree.map(lambda x: x[:, start:stop], ids)

    def run(frames, ids, new, plan, cache=None):
        turned = rotation(grid_positions((2, 2, 3))[:, new], config.pairs)
        condition = module.apply(variables, timestep, turned, text, method="condition")
        tokens = module.apply(variables, frames, method="embed")
        kept = module.apply(variables, timestep, turned, method="condition")
        memory = module.apply(variables, text, method="remember")
        result = module.apply(variables, tokens, condition, ids, plan, cache, method="run")
        remembered = module.apply(variables, tokens, kept, ids, plan, cache, memory, method="run")
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-6), remembered, result)
        return result

    together, full_cache = run(latents, ids, slice(0, 12), whole)
    alone, cache = run(latents[:, :1], part(0, 6), slice(0, 6), first)
    then, new = run(latents[:, 1:], ids, slice(6, 12), whole, cache)
    np.testing.assert_allclose(jnp.concatenate([alone, then], axis=1), together, rtol=0, atol=1e-5)
    np.testing.assert_allclose(extended(cache, new)["k"], full_cache["k"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("precision", [Precision(jnp.bfloat16), Precision(jnp.bfloat16, jnp.bfloat16)])
def test_half_precision_is_near_and_islands_help(precision):
    _, _, params = fixture("t2v", 0)
    clip = list(WAN_DITS["t2v"].clips(0))[2]
    exact = velocity(WanDiT(tiny("t2v")), params, *clip)
    half = velocity(WanDiT(tiny("t2v"), precision), params, *clip)
    assert half.dtype == jnp.float32
    error = np.abs(half - exact).max()
    assert 1e-4 < error < (0.03 if precision.islands == jnp.float32 else 0.1)


def test_rematerialisation_changes_no_gradient():
    _, _, params = fixture("i2v", 0)
    clip = list(WAN_DITS["i2v"].clips(0))[1]

    def gradient(config):
        return jax.jit(jax.grad(lambda p: jnp.sum(WanDiT(config).apply({"params": p}, *clip) ** 2)))(params)

    remade = gradient(dataclasses.replace(tiny("i2v"), remat=("block_in",)))
    for (path, a), b in zip(flatten(gradient(tiny("i2v"))).items(), flatten(remade).values(), strict=True):
        assert np.abs(a).max() > 0, path
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latents": (1, 1, 4, 6, 15)}, "reads 16 latent channels, not 15"),
        ({"latents": (1, 1, 3, 6, 16)}, "1x3x6 cannot be cut into patches of 1x2x2"),
        ({"timestep": (1, 4)}, r"timesteps of shape \(1, 4\) do not fit 6 tokens"),
        ({"text": (1, 513, 32)}, "up to 512 of width 32"),
        ({"text": (1, 3, 31)}, "up to 512 of width 32"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    shapes = {"latents": (1, 1, 4, 6, 16), "timestep": (1, 1), "text": (1, 3, 32)} | change
    with pytest.raises(UserError, match=message):
        jax.eval_shape(WanDiT(tiny("t2v")).init, jax.random.key(0), *(jnp.zeros(s) for s in shapes.values()))


def test_a_missing_image_is_named():
    inputs = (jnp.zeros((1, 1, 2, 2, 36)), jnp.zeros((1, 1)), jnp.zeros((1, 1, 32)))
    with pytest.raises(UserError, match="reads image features of width 1280"):
        jax.eval_shape(WanDiT(tiny("i2v")).init, jax.random.key(0), *inputs)
    with pytest.raises(UserError, match="reads 514 image tokens, not 257"):
        jax.eval_shape(WanDiT(tiny("flf2v")).init, jax.random.key(0), *inputs, jnp.zeros((1, 257, 40)))
