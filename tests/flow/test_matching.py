"""Flow matching: interpolation, predictions, noise times."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wamjax.errors import UserError
from wamjax.flow.matching import DataPrediction, VelocityPrediction, interpolate, prediction, uniform_sigma

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
