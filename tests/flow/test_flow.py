"""Flow matching and the sampler."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wamjax.errors import UserError
from wamjax.flow.matching import DataPrediction, VelocityPrediction, interpolate, prediction, uniform_sigma
from wamjax.flow.samplers import euler, sigma_nodes

RANDOM = np.random.default_rng(0)
DATA, NOISE = (jnp.asarray(RANDOM.standard_normal((3, 2, 4)), jnp.float32) for _ in range(2))
SIGMA = jnp.array([0.1, 0.5, 1.0])


def test_interpolation_ends_at_data_and_noise():
    np.testing.assert_array_equal(interpolate(DATA, NOISE, jnp.zeros(3)), DATA)
    np.testing.assert_array_equal(interpolate(DATA, NOISE, jnp.ones(3)), NOISE)


@pytest.mark.parametrize(
    ("kind", "perfect"), [(VelocityPrediction(), NOISE - DATA), (DataPrediction(), DATA)], ids=["velocity", "data"]
)
def test_a_perfect_output_has_no_error_and_the_true_velocity(kind, perfect):
    x = interpolate(DATA, NOISE, SIGMA)
    assert float(jnp.max(kind.squared_error(perfect, DATA, NOISE, SIGMA))) == 0.0
    np.testing.assert_allclose(kind.velocity(perfect, x, SIGMA), NOISE - DATA, rtol=1e-4, atol=1e-5)


def test_both_predictions_weigh_an_error_alike_above_the_floor():
    """A data error e is a velocity error e / sigma; the two losses agree where sigma is above the floor."""
    error = 0.3
    data = DataPrediction(floor=0.25).squared_error(DATA + error, DATA, NOISE, SIGMA)
    velocity = (error / SIGMA) ** 2
    np.testing.assert_allclose(data[1:, 0, 0], velocity[1:], rtol=1e-5)
    np.testing.assert_allclose(data[0, 0, 0], (error / 0.25) ** 2, rtol=1e-5)


def test_unknown_prediction_names_the_known_ones():
    with pytest.raises(UserError, match="velocity, data"):
        prediction("score")


def test_sigma_is_uniform_and_never_zero():
    sigma = uniform_sigma(jax.random.key(0), 10_000)
    assert float(sigma.min()) > 0
    assert float(sigma.max()) <= 1
    assert abs(float(sigma.mean()) - 0.5) < 0.02


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_euler_follows_a_straight_path_exactly(steps):
    """With the true velocity of a straight path, any number of steps arrives at the data."""
    nodes = {"a": sigma_nodes(steps)}
    result = euler(lambda x, sigma: {"a": NOISE - DATA}, {"a": NOISE}, nodes)
    np.testing.assert_allclose(result["a"], DATA, rtol=1e-4, atol=1e-5)


def test_euler_is_first_order():
    """dx/dsigma = x has x(0) = x(1) / e; halving the step halves the error."""
    errors = []
    for steps in (32, 64):
        x = euler(lambda x, sigma: x, {"a": NOISE}, {"a": sigma_nodes(steps)})["a"]
        errors.append(float(jnp.abs(x - NOISE / np.e).max()))
    assert 1.8 < errors[0] / errors[1] < 2.2


def test_streams_move_together_and_get_their_own_sigma():
    seen = []

    def velocity(x, sigma):
        seen.append({name: value.shape for name, value in sigma.items()})
        return {name: -x[name] * sigma[name][:, None, None] for name in x}

    nodes = {"a": sigma_nodes(4), "b": np.linspace(1, 0.5, 5, dtype=np.float32)}
    result = euler(velocity, {"a": NOISE, "b": NOISE}, nodes)
    assert seen[0] == {"a": (3,), "b": (3,)}
    assert float(jnp.abs(result["a"] - result["b"]).max()) > 1e-3


def test_known_entries_come_out_unchanged_and_follow_their_noise_path():
    mask = jnp.array([True, False])[None, :, None]
    inputs = []

    def velocity(x, sigma):
        jax.debug.callback(lambda x, s: inputs.append((np.array(x), float(s[0]))), x["a"], sigma["a"], ordered=True)
        return {"a": jnp.ones_like(x["a"])}

    result = euler(velocity, {"a": NOISE}, {"a": sigma_nodes(3)}, {"a": (DATA, mask)})
    jax.effects_barrier()
    np.testing.assert_allclose(result["a"][:, 0], DATA[:, 0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(result["a"][:, 1], NOISE[:, 1] - 1, rtol=1e-5, atol=1e-5)
    for x, sigma in inputs:
        np.testing.assert_allclose(x[:, 0], interpolate(DATA, NOISE, jnp.full(3, sigma))[:, 0], rtol=1e-5, atol=1e-5)
