"""Quantised kernels: size, error, and that they work wherever a kernel does."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wamjax.errors import UserError
from wamjax.interop.keymap import flatten
from wamjax.interop.quantise import KINDS, quantise, report
from wamjax.networks.wan.dit import WAN_DITS, Precision, WanDiT, WanDiTConfig
from wamjax.nn.weights import dense, product
from wamjax.training.lora import LoRAConfig, join, split

CONFIG = WanDiTConfig(width=48, mlp=64, heads=4, layers=3, inputs=4, outputs=4, text=32, text_length=8)
WEIGHTS = {"int8": 0.01, "fp8": 0.035}
OUTPUTS = {"int8": 0.015, "fp8": 0.05}
"""Bounds of relative errors; those of the outputs depend on the random network, whose blocks add up errors."""


def inputs(config: WanDiTConfig):
    random = np.random.default_rng(0)
    shapes = ((2, 2, 4, 4, config.inputs), (2, 2), (2, 5, config.text))
    return [jnp.asarray(random.uniform(-1, 1, shape), jnp.float32) for shape in shapes]


@functools.partial(jax.jit, static_argnames="compute")
def velocity(params, compute=jnp.float32):
    return WanDiT(CONFIG, Precision(compute)).apply({"params": params}, *inputs(CONFIG))


@pytest.fixture(scope="module")
def params(randomise):
    shapes = jax.eval_shape(WanDiT(CONFIG).init, jax.random.key(0), *inputs(CONFIG))["params"]
    return jax.tree.map(jnp.asarray, randomise(shapes, scale=0.1))


def size(tree):
    """Bytes of all kernels."""
    paths = jax.tree_util.tree_leaves_with_path(tree)
    return sum(leaf.size * leaf.dtype.itemsize for path, leaf in paths if "kernel" in jax.tree_util.keystr(path))


@pytest.mark.parametrize("kind", KINDS)
def test_errors_are_reported_and_small(params, kind, capsys):
    small = quantise(params, kind)
    errors = report(params, small)
    assert set(errors) == {path for path in flatten(params) if path.startswith("blocks/") and path.endswith("/kernel")}
    assert all(0 < error < WEIGHTS[kind] for error in errors.values())
    exact, output = velocity(params), velocity(small)
    error = np.linalg.norm(output - exact) / np.linalg.norm(exact)
    with capsys.disabled():
        print(f"\n{kind}: weights {max(errors.values()):.4f}, velocity {error:.4f}")
    assert 0 < error < OUTPUTS[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_products_equal_those_with_the_array_that_they_stand_for(params, kind):
    kernel = jax.tree.map(lambda x: x[1], quantise(params, kind)["blocks"]["expert_0"]["ffn_in"]["kernel"])
    x = jax.random.normal(jax.random.key(0), (2, 5, 48))
    expected = x @ dense(kernel)
    np.testing.assert_allclose(product(kernel, x), expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    half = product(kernel, x.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half, expected, rtol=0, atol=1e-2 * np.abs(expected).max())


def test_the_quantised_kernels_are_half_as_large_as_in_bfloat16(params):
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)["blocks"]
    assert size(quantise({"blocks": half}, "int8")) < 0.55 * size(half)

    def large(key):
        config = WAN_DITS["wan2.1-i2v-14b"]
        image = jnp.zeros((2, 257, config.image))
        blocks = WanDiT(config).init(key, *inputs(config), image)["params"]["blocks"]
        return {"blocks": jax.tree.map(lambda x: x.astype(jnp.bfloat16), blocks)}

    half = jax.eval_shape(large, jax.random.key(0))
    quantised = jax.eval_shape(lambda params: quantise(params, "fp8"), half)
    assert 0.5 < size(quantised) / size(half) < 0.501


def test_only_one_layer_at_a_time_is_converted(params):
    """No operation makes a float of a whole stack."""
    small = quantise(params, "int8")
    program = str(jax.make_jaxpr(velocity)(small))
    stack = flatten(params)["blocks/expert_0/ffn_in/kernel"].shape
    name = ",".join(map(str, stack))
    assert f"i8[{name}]" in program
    assert f"f32[{name}]" not in program
    assert f"f32[{name}]" in str(jax.make_jaxpr(velocity)(params))


def test_patterns_choose_and_mistakes_are_named(params):
    some = quantise(params, "int8", (r"ffn_in/kernel", r"self_attn/[qk]/kernel"))
    chosen = {"ffn_in", "self_attn/q", "self_attn/k"}
    assert set(report(params, some)) == {f"blocks/expert_0/{name}/kernel" for name in chosen}
    assert some["head"]["kernel"] is params["head"]["kernel"]
    with pytest.raises(UserError, match="'int3': use one of int8, fp8"):
        quantise(params, "int3")
    with pytest.raises(UserError, match="no parameter matches 'nothing/kernel'"):
        quantise(params, "int8", ("nothing/kernel",))


def test_adapters_train_above_a_quantised_base(params):
    config = LoRAConfig(rank=2)
    small = quantise(params, "int8")
    trainable, base = split(small, config, jax.random.key(0))
    np.testing.assert_allclose(velocity(join(trainable, base, config)), velocity(small), rtol=0, atol=2e-6)
    grads = jax.grad(lambda t: jnp.sum(velocity(join(t, base, config)) ** 2))(trainable)
    moved = {path for path, grad in flatten(grads).items() if np.abs(grad).max() > 0}
    assert moved == {path for path in flatten(grads) if path.endswith("/b")}  # b is zero: a learns after it
