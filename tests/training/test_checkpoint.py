"""Checkpoints read in another precision, and by runs with and without a guard."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import SingleDeviceSharding

from wamjax.training.checkpoint import Checkpoints
from wamjax.training.guard import NO_GUARD, GuardConfig, fresh
from wamjax.training.step import TrainState

FROZEN = {"shift": jnp.ones(1)}


def state(moments: str = "float32", params: str = "float32", guard: GuardConfig = NO_GUARD) -> TrainState:
    """Values that bfloat16 has to round."""
    kernel = (1 + np.arange(6, dtype=np.float32).reshape(2, 3) / 7).astype(params)
    optimizer = optax.adamw(1e-3, mu_dtype=moments)
    opt_state = optimizer.init({"kernel": jnp.asarray(kernel)})
    opt_state = jax.tree.map(lambda x: x + jnp.asarray(1 / 3, x.dtype) if x.ndim else x, opt_state)
    return TrainState(jnp.int32(3), {"kernel": jnp.asarray(kernel)}, None, opt_state, fresh(guard))


def abstract(tree):
    here = SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), tree)


def test_numbers_are_read_in_the_precision_that_is_asked_for(tmp_path, capsys):
    """Into bfloat16 to the nearest, back without a loss; where nothing changes nothing is said."""
    full, half = state(), state("bfloat16", "bfloat16")
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(full, FROZEN, {}, 0)
    checkpoints.wait()
    read, _ = checkpoints.restore(0, abstract(half), None)
    assert "3 arrays saved in float32 are read in bfloat16, as the configuration says" in capsys.readouterr().out
    assert jax.tree.map(lambda x: x.dtype, read) == jax.tree.map(lambda x: x.dtype, half)
    rounded = jax.tree.map(lambda x, y: np.asarray(x).astype(y.dtype), full, half)
    jax.tree.map(np.testing.assert_array_equal, read, rounded)
    assert np.abs(np.float32(read.params["kernel"]) - full.params["kernel"]).max() > 0

    checkpoints.save(read, FROZEN, {}, 1)
    checkpoints.wait()
    again, frozen = checkpoints.restore(1, abstract(full), abstract(FROZEN))
    assert "3 arrays saved in bfloat16 are read in float32" in capsys.readouterr().out
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, np.float32(y)), again.params, read.params)
    assert jax.tree.map(lambda x: x.dtype, again) == jax.tree.map(lambda x: x.dtype, full)
    np.testing.assert_array_equal(frozen["shift"], FROZEN["shift"])
    checkpoints.restore(1, abstract(half), None)
    assert capsys.readouterr().out == ""
    checkpoints.close()


def test_a_state_without_a_guard_leaves_no_trace_of_one(tmp_path):
    """So that checkpoints of earlier versions stay readable."""
    checkpoints = Checkpoints(tmp_path)
    guarded = state(guard=GuardConfig("skip", window=3))
    for step, each in enumerate((state(), guarded)):
        checkpoints.save(each, FROZEN, {}, step)
    checkpoints.wait()
    assert not list(checkpoints.path(0).glob("state/**/*guard*"))
    assert checkpoints.restore(0, abstract(state()), None)[0].guard is None
    read, _ = checkpoints.restore(1, abstract(guarded), None)
    np.testing.assert_array_equal(read.guard.norms, np.full(3, np.inf, np.float32))
    with pytest.raises(Exception, match="another policy, base or configuration"):
        checkpoints.restore(0, abstract(guarded), None)
    checkpoints.close()
