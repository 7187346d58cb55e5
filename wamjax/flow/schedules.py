"""Noise times: those at which a sampler stops (n + 1 falling values, the last one 0), and those of training."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def shifted(sigma: Float[np.ndarray, "*n"], shift: float) -> Float[np.ndarray, "*n"]:
    """Moves noise times towards noise (shift > 1): s sigma / (1 + (s - 1) sigma), as in Stable Diffusion 3."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def uniform_nodes(steps: int, shift: float = 1.0) -> Float[np.ndarray, " n1"]:
    """Even steps from 1 to 0, then shifted: Wan's rule for DPM-Solver++, and everyone's for Euler."""
    return shifted(np.linspace(1.0, 0.0, steps + 1), shift)


def wan_nodes(steps: int, shift: float = 5.0) -> Float[np.ndarray, " n1"]:
    """Wan's rule for UniPC: even steps from 0.999, shifted (wan/utils/fm_solvers_unipc.py)."""
    return shifted(np.linspace(0.999, 0.0, steps + 1), shift)


def diffusers_nodes(steps: int, shift: float = 5.0) -> Float[np.ndarray, " n1"]:
    """The rule of diffusers' UniPCMultistepScheduler with flow sigmas: even steps from 1 to 0.001, then 0."""
    sigma = shifted(np.linspace(1.0, 0.001, steps + 1)[:-1], shift)
    return np.append(np.minimum(sigma, 1 - 1e-6), 0.0)


def integer_timestep(sigma: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """The timestep that Wan's networks are given when sampling: 1000 sigma, truncated."""
    return (1000.0 * sigma).astype(int).astype(sigma.dtype)


@dataclasses.dataclass(frozen=True, eq=False)
class TrainingTimes:
    """The noise times of training, one per number 0, 1, ...: falling from 1.

    Attributes:
        sigma: the noise times.
        weight: of the squared velocity error at each; 1 on average.
    """

    sigma: Float[np.ndarray, " n"]
    weight: Float[np.ndarray, " n"]

    @classmethod
    def wan(cls, shift: float = 5.0, count: int = 1000) -> TrainingTimes:
        """Even steps, shifted, under a bell-shaped weight that is 0 at pure noise, where the task is trivial.

        What fine-tuning code for Wan uses (FlowMatchScheduler of DiffSynth-Studio); Wan's own is not published.
        """
        sigma = shifted(1 - np.arange(count) / count, shift)
        bell = np.exp(-2 * (sigma - 0.5) ** 2)
        bell -= bell.min()
        return cls(sigma, bell * count / bell.sum())

    def draw(self, key: Array, shape: tuple[int, ...], alpha: float = 1.0) -> Float[Array, "*b"]:
        """Noise times of the table: evenly, or mostly noisy ones for `alpha` > 1, their rank being Beta(alpha, 1)."""
        share = (1 - jax.random.uniform(key, shape)) ** (1 / alpha)
        number = jnp.minimum((1 - share) * len(self.sigma), len(self.sigma) - 1).astype(int)
        return jnp.asarray(self.sigma, jnp.float32)[number]

    def weight_at(self, sigma: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """The weight of the nearest noise time of the table."""
        falling = jnp.asarray((self.sigma[:-1] + self.sigma[1:]) / 2, jnp.float32)
        return jnp.asarray(self.weight, jnp.float32)[jnp.searchsorted(-falling, -sigma)]
