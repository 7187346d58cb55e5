"""In what numbers and where the optimizer's state lies, and what it is kept of."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wamjax.errors import UserError
from wamjax.sharding.mesh import MeshConfig, make_mesh
from wamjax.training.checkpoint import Checkpoints
from wamjax.training.guard import GuardConfig
from wamjax.training.optimizer import OptimizerConfig, make_optimizer
from wamjax.training.step import abstract_state, gradients, init_state, make_step

WIDTH = 128
MESH = make_mesh(MeshConfig(), jax.devices()[:1])
CONFIG = OptimizerConfig(learning_rate=1e-2, warmup_steps=1, decay_fraction=0.0, weight_decay=0.0, ema=0.0)


class Copier:
    """Learns to give back what a frozen encoder makes of its input; computes in bfloat16."""

    def init(self, key):
        return {"kernel": jax.random.normal(key, (WIDTH, WIDTH)) / WIDTH, "bias": jnp.zeros(WIDTH)}

    def encode(self, frozen, key, batch):
        return {"x": batch["x"], "y": batch["x"] @ frozen["encoder"]}

    def draw(self, key, encoded):
        return {}

    def loss(self, params, frozen, encoded, draws):
        x, kernel, bias = (one.astype(jnp.bfloat16) for one in (encoded["x"], params["kernel"], params["bias"]))
        error = (x @ kernel + bias - encoded["y"]).astype(jnp.float32)
        return {"copy": (jnp.sum(error**2), jnp.float32(error.size))}


LEARNER = Copier()
FROZEN = {"encoder": np.random.default_rng(1).standard_normal((WIDTH, WIDTH)).astype(np.float32) / WIDTH**0.5}
BATCH = {"x": np.random.default_rng(2).standard_normal((64, WIDTH)).astype(np.float32)}


@functools.cache
def trained(steps: int = 40, **options):
    """The state after some steps, and the first and last loss."""
    config = dataclasses.replace(CONFIG, **options)
    optimizer = make_optimizer(config, 40)
    state = init_state(LEARNER, optimizer, 0.0, 0, MESH, ())
    step = make_step(LEARNER, optimizer, 0.0, 0, MESH, state)
    losses = []
    for _ in range(steps):
        state, metrics = step(state, FROZEN, BATCH)
        losses.append(float(metrics["loss"]))
    return optimizer, state, (losses[0], losses[-1])


def large(state) -> list:
    """Leaves of the optimizer's state that are no counters."""
    return [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]


def size(state) -> int:
    return sum(leaf.nbytes for leaf in large(state))


@pytest.mark.parametrize(
    ("options", "share"),
    [({}, 2.0), ({"moments": "bfloat16"}, 1.5), ({"name": "adafactor"}, 0.03), ({"offload": True}, 2.0)],
    ids=str,
)
def test_every_choice_learns_in_the_memory_it_promises(options, share):
    """In shares of the parameters' own; nothing is kept of the frozen encoder."""
    _, state, (first, last) = trained(**options)
    parameters = sum(leaf.nbytes for leaf in jax.tree.leaves(state.params))
    assert size(state) == pytest.approx(share * parameters, rel=0.01 if share >= 1 else 0.5)
    assert last < 0.35 * first


def test_first_moments_alone_are_short_and_the_run_stays_close():
    _, state, (first, last) = trained(moments="bfloat16")
    assert [leaf.dtype for leaf in large(state)] == [jnp.bfloat16] * 2 + [jnp.float32] * 2
    assert last == pytest.approx(trained()[2][1], abs=0.005 * first)


def test_a_state_on_the_host_changes_nothing_and_returns_there_from_a_checkpoint(tmp_path):
    optimizer, state, _ = trained(2, offload=True)
    for one, other in zip(jax.tree.leaves(state.params), jax.tree.leaves(trained(2)[1].params), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-7)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state, FROZEN, {}, 40)
    checkpoints.wait()
    again, _ = checkpoints.restore(40, abstract_state(LEARNER, optimizer, 0.0, MESH, ()), FROZEN)
    checkpoints.close()
    for one, other in zip(large(again), large(state), strict=True):
        assert one.sharding.memory_kind == other.sharding.memory_kind == "pinned_host"
        np.testing.assert_array_equal(one, other)
    step = make_step(LEARNER, optimizer, 0.0, 0, MESH, again)
    assert {leaf.sharding.memory_kind for leaf in large(step(again, FROZEN, BATCH)[0])} == {"pinned_host"}


def test_gradients_of_portions_are_added_in_float32():
    params = trained()[1].params
    sums = jax.make_jaxpr(lambda *given: gradients(LEARNER, *given, portions=4)[0])(
        params, FROZEN, LEARNER.encode(FROZEN, None, BATCH), {}
    )
    assert {x.dtype for x in sums.out_avals} == {np.dtype("float32")}
    scan = next(equation for equation in reversed(sums.eqns) if equation.primitive.name == "scan")
    carried = [x.aval for x in scan.invars if x.aval.shape == (WIDTH, WIDTH)]
    assert carried
    assert {x.dtype for x in carried} == {np.dtype("float32")}


def test_unknown_numbers_are_named():
    with pytest.raises(UserError, match="moments 'float16': use one of float32, bfloat16"):
        OptimizerConfig(moments="float16")


def test_a_bad_step_leaves_a_state_on_the_host_as_it_was():
    optimizer = make_optimizer(dataclasses.replace(CONFIG, offload=True), 40)
    guard = GuardConfig(on_bad_step="skip")
    state = init_state(LEARNER, optimizer, 0.0, 0, MESH, (), guard=guard)
    before = [np.asarray(leaf) for leaf in large(state)]
    step = make_step(LEARNER, optimizer, 0.0, 0, MESH, state)
    state, metrics = step(state, FROZEN, {"x": np.full_like(BATCH["x"], np.nan)})
    assert metrics["bad"] == 1
    for leaf, old in zip(large(state), before, strict=True):
        assert leaf.sharding.memory_kind == "pinned_host"
        np.testing.assert_array_equal(leaf, old)
