"""From noise to data in one compiled loop, for one stream or several together."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from wamjax.flow.solvers import Solver

Streams = dict[str, Float[Array, "b n c"]]
Velocity = Callable[[Streams, dict[str, Float[Array, " b"]]], Streams]
"""(noisy streams, sigma of each) -> velocity of each."""


def sample(
    velocity: Velocity,
    noise: Streams,
    solvers: Mapping[str, Solver],
    known: Mapping[str, tuple[Array, Array]] | None = None,
) -> Streams:
    """Integrates all streams from noise to data.

    Args:
        velocity: the model.
        noise: starting point of each stream (b, ...).
        solvers: the solver of each stream; all of one number of steps, so that streams move together.
        known: per stream, data (b, ...) and mask (broadcastable) of entries already decided (committed actions, clean
            frames). They follow their own noise path exactly and come out unchanged.

    Returns:
        The streams at their last noise time.
    """
    known = known or {}
    tables = {
        name: [jnp.asarray(x, jnp.float32) for x in (s.sigma[:-1], s.sigma[1:], s.correct, s.predict)]
        for name, s in ((name, solvers[name]) for name in noise)
    }

    def impose(x: Array, name: str, sigma: Array) -> Array:
        if name not in known:
            return x
        data, mask = known[name]
        return jnp.where(mask, (1 - sigma) * data + sigma * noise[name], x)

    def advance(name: str, past: list[Array], v: Array, row: list[Array]) -> list[Array]:
        (x, corrected, m1, m2), (now, after, correct, predict) = past, row
        m = x - now * v
        corrected = _combine(correct, [x, corrected, m, m1, m2])
        return [impose(_combine(predict, [corrected, m, m1]), name, after), corrected, m, m1]

    def step(state: dict[str, list[Array]], rows: dict[str, list[Array]]) -> tuple[dict[str, list[Array]], None]:
        x = {name: past[0] for name, past in state.items()}
        v = velocity(x, {name: jnp.full(x[name].shape[:1], rows[name][0]) for name in x})
        return {name: advance(name, state[name], v[name], rows[name]) for name in x}, None

    # What a table's first rows must not read is multiplied by zero there.
    start = {name: [x, x, jnp.zeros_like(x), jnp.zeros_like(x)] for name, x in noise.items()}
    final, _ = jax.lax.scan(step, start, tables)
    return {name: past[0] for name, past in final.items()}


def guided(conditional: Array, unconditional: Array, scale: float | Array) -> Array:
    """Classifier-free guidance (arXiv 2207.12598): the unconditional velocity, moved `scale` times the difference."""
    return unconditional + scale * (conditional - unconditional)


def _combine(weights: Float[Array, " k"], parts: list[Array]) -> Array:
    return sum((weights[i] * part for i, part in enumerate(parts)), start=jnp.zeros_like(parts[0]))
