"""Training with products in 8 bits: what rounding costs one product, and a whole training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wamjax.errors import UserError
from wamjax.nn.layers import rms_norm
from wamjax.nn.weights import LowRank, dense, product
from wamjax.sharding.mesh import MeshConfig, make_mesh
from wamjax.training.optimizer import OptimizerConfig, make_optimizer
from wamjax.training.rounding import Rounded, in_eight_bits, rounded
from wamjax.training.step import init_state, make_step

ERRORS = {"int8": (0.013, 0.013, 0.013), "fp8": (0.04, 0.06, 0.06)}
"""Relative errors, at most, of a product of normal numbers and of its gradients by weights and by tokens."""


def three_products(kind, dtype):
    keys = jax.random.split(jax.random.key(0), 3)
    x, weights, slope = (jax.random.normal(key, shape) for key, shape in zip(keys, SHAPES, strict=True))

    def run(weights, x):
        out, back = jax.vjp(lambda w, x: product(Rounded(w, kind) if kind else w, x.astype(dtype)), weights, x)
        return out, *back(slope.astype(dtype))

    return run, (weights, x)


SHAPES = ((4, 32, 256), (256, 128), (4, 32, 128))


@pytest.mark.parametrize("kind", ERRORS)
def test_all_three_products_run_in_8_bits_with_small_errors(kind):
    exact, given = three_products("", jnp.float32)
    run, _ = three_products(kind, jnp.bfloat16)
    for one, other, bound in zip(jax.jit(run)(*given), exact(*given), ERRORS[kind], strict=True):
        assert np.linalg.norm(np.float32(one) - other) < bound * np.linalg.norm(other)
    text = jax.jit(run).lower(*given).as_text()
    products = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    assert len(products) == 3
    assert all(line.count("xi8>" if kind == "int8" else "xf8E") >= 2 for line in products)


STEPS, SIZES = 100, ((2, 32, 64), (2, 64, 32))


class Student:
    """Learns what random layers of the same shape make of tokens; scanned and rematerialised like all blocks."""

    def run(self, params, tokens):
        def layer(x, weights):
            hidden = jax.nn.gelu(product(weights["mlp_in"]["kernel"], rms_norm(x)))
            return x + product(weights["mlp_out"]["kernel"], hidden), None

        return jax.lax.scan(jax.checkpoint(layer), tokens, params["blocks"])[0]

    def init(self, key):
        keys = jax.random.split(key)
        wide, narrow = (jax.random.normal(k, shape) / 6 for k, shape in zip(keys, SIZES, strict=True))
        return {"blocks": {"mlp_in": {"kernel": wide}, "mlp_out": {"kernel": narrow}}}

    def encode(self, frozen, key, batch):
        return {"tokens": batch["tokens"], "taught": self.run(frozen, batch["tokens"])}

    def draw(self, key, encoded):
        return {}

    def loss(self, params, frozen, encoded, draws):
        error = self.run(params, encoded["tokens"]) - encoded["taught"]
        return {"taught": (jnp.sum(error**2), jnp.float32(error.size))}


def trained(kind: str) -> tuple[float, float]:
    """First and last loss."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    optimizer = make_optimizer(OptimizerConfig(learning_rate=5e-3, warmup_steps=5, weight_decay=0.0), STEPS)
    batch = {"tokens": np.random.default_rng(0).standard_normal((16, 6, 32)).astype(np.float32)}
    policy, frozen = in_eight_bits(Student(), kind), jax.jit(Student().init)(jax.random.key(7))
    state = init_state(policy, optimizer, 0.0, 0, mesh, ())
    step = make_step(policy, optimizer, 0.0, 0, mesh, state)
    losses = []
    for _ in range(STEPS):
        state, metrics = step(state, frozen, batch)
        losses.append(float(metrics["loss"]))
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {np.dtype("float32")}
    return losses[0], float(np.mean(losses[-5:]))


@pytest.mark.parametrize(("kind", "distance"), [("int8", 0.005), pytest.param("fp8", 0.02, marks=pytest.mark.slow)])
def test_a_training_in_8_bits_learns_nearly_as_much(kind, distance):
    """The loss left over is within `distance` of what there was, from that of a training in float32."""
    (first, exact), (_, coarse) = trained(""), trained(kind)
    print(first, exact, coarse)
    assert exact < 0.02 * first
    assert coarse - exact < distance * first


def test_kernels_of_blocks_alone_are_rounded_also_below_adapters():
    kernel = jnp.ones((2, 4, 4))
    adapted = LowRank(kernel, jnp.ones((2, 4, 1)), jnp.ones((2, 1, 4)), 0.5)
    found = rounded(
        {"blocks": {"q": {"kernel": kernel, "bias": kernel}, "o": {"kernel": adapted}}, "kernel": 1}, "int8"
    )
    assert isinstance(found["blocks"]["q"]["kernel"], Rounded)
    assert isinstance(found["blocks"]["o"]["kernel"].base, Rounded)
    assert found["kernel"] == 1
    assert isinstance(found["blocks"]["q"]["bias"], jax.Array)
    np.testing.assert_array_equal(dense(found["blocks"]["o"]["kernel"]), dense(adapted))


def test_unknown_products_are_named():
    with pytest.raises(UserError, match=r"unknown train\.products 'int4': use one of int8, fp8"):
        in_eight_bits(Student(), "int4")
