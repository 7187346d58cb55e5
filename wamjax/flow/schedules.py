"""Noise times at which a sampler stops. All rules return n + 1 falling values, the last one 0."""

from __future__ import annotations

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
