"""Samplers: from noise to data in one compiled loop, for one stream or several together."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Streams = dict[str, Float[Array, "b n c"]]
Velocity = Callable[[Streams, dict[str, Float[Array, " b"]]], Streams]
"""(noisy streams, sigma of each) -> velocity of each."""


def sigma_nodes(steps: int) -> np.ndarray:
    """`steps + 1` evenly spaced noise times from 1 to 0."""
    return np.linspace(1.0, 0.0, steps + 1, dtype=np.float32)


def euler(
    velocity: Velocity,
    noise: Streams,
    nodes: Mapping[str, np.ndarray],
    known: Mapping[str, tuple[Array, Array]] | None = None,
) -> Streams:
    """Integrates all streams from noise to data with Euler steps.

    Args:
        velocity: the model.
        noise: starting point of each stream (b, n, c).
        nodes: noise times of each stream, from 1 downwards; all of one length, so that streams move together.
        known: per stream, data (b, n, c) and mask (b, n, 1) of entries already decided (committed actions, clean
            frames). They follow their own noise path exactly and come out unchanged.

    Returns:
        The streams at their last noise time.
    """
    known = known or {}

    def impose(x: Array, name: str, sigma: Array) -> Array:
        if name not in known:
            return x
        data, mask = known[name]
        return jnp.where(mask, (1 - sigma) * data + sigma * noise[name], x)

    def step(x: Streams, sigmas: dict[str, tuple[Array, Array]]) -> tuple[Streams, None]:
        batch = next(iter(x.values())).shape[0]
        now = {name: jnp.full((batch,), sigmas[name][0]) for name in x}
        v = velocity(x, now)
        moved = {name: x[name] + (sigmas[name][1] - sigmas[name][0]) * v[name] for name in x}
        return {name: impose(moved[name], name, sigmas[name][1]) for name in x}, None

    pairs = {name: (jnp.asarray(nodes[name][:-1]), jnp.asarray(nodes[name][1:])) for name in noise}
    return jax.lax.scan(step, dict(noise), pairs)[0]
