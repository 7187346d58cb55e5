"""Flow matching (Lipman et al., arXiv 2210.02747): interpolation, predictions and their losses.

Conventions of the whole project: `sigma` 1 is pure noise and 0 is data, x = (1 - sigma) data + sigma noise, and
velocity = dx/dsigma = noise - data.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from wamjax.errors import UserError


def interpolate(
    data: Float[Array, "b n c"], noise: Float[Array, "b n c"], sigma: Float[Array, " b"]
) -> Float[Array, "b n c"]:
    """The noisy sample at `sigma`."""
    s = sigma[:, None, None]
    return (1 - s) * data + s * noise


@dataclasses.dataclass(frozen=True)
class VelocityPrediction:
    """The network's output is the velocity; the loss is its plain squared error."""

    def velocity(self, output: Array, x: Array, sigma: Array) -> Array:
        """Velocity (b, n, c) implied by the network's output for the noisy sample `x` at `sigma` (b,)."""
        del x, sigma
        return output

    def squared_error(self, output: Array, data: Array, noise: Array, sigma: Array) -> Array:
        """Weighted squared error (b, n, c) of the output."""
        del sigma
        return (output - (noise - data)) ** 2


@dataclasses.dataclass(frozen=True)
class DataPrediction:
    """The network's output is the clean data; its error counts as a velocity's would, up to a bound.

    A velocity error is the data error over sigma. Narrow networks cannot pass wide noise through, which a velocity
    prediction needs, so wide streams predict data (as in arXiv 2511.13720).

    Attributes:
        floor: smallest sigma used in the weight 1 / sigma^2.
    """

    floor: float = 0.25

    def velocity(self, output: Array, x: Array, sigma: Array) -> Array:
        """Velocity (b, n, c) implied by the network's output for the noisy sample `x` at `sigma` (b,) > 0."""
        return (x - output) / sigma[:, None, None]

    def squared_error(self, output: Array, data: Array, noise: Array, sigma: Array) -> Array:
        """Weighted squared error (b, n, c) of the output."""
        del noise
        return ((output - data) / jnp.maximum(sigma, self.floor)[:, None, None]) ** 2


Prediction = VelocityPrediction | DataPrediction

PREDICTIONS: dict[str, Prediction] = {"velocity": VelocityPrediction(), "data": DataPrediction()}
"""What a network may be asked to predict, by its name in configurations."""


def prediction(name: str) -> Prediction:
    """The prediction called `name`; a UserError lists the names there are."""
    if name not in PREDICTIONS:
        raise UserError(f"unknown prediction '{name}': use one of {', '.join(PREDICTIONS)}")
    return PREDICTIONS[name]


def uniform_sigma(key: Array, batch: int) -> Float[Array, " b"]:
    """Noise times spread evenly over (0, 1]: never 0, where a data prediction has no velocity."""
    return 1.0 - jax.random.uniform(key, (batch,))
