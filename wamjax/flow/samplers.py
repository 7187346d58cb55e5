"""From noise to data in one compiled loop, for one stream or several together."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Protocol

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from wamjax.errors import UserError
from wamjax.flow.solvers import Solver

Streams = dict[str, Float[Array, "b n c"]]
Velocity = Callable[[Streams, dict[str, Float[Array, " b"]]], Streams]
"""(noisy streams, sigma of each) -> velocity of each."""


@struct.dataclass
class Computed:
    """The velocities computed so far in a loop.

    Attributes:
        last, before: those of the last computed step, and of the one before it.
        count: how many steps were computed. wait: steps that still reuse the last one.
    """

    last: Streams
    before: Streams
    count: Int[Array, ""]
    wait: Int[Array, ""]


class Reuse(Protocol):
    """Which steps reuse the last computed velocities instead of running the network."""

    def __call__(self, step: Int[Array, ""], computed: Computed) -> tuple[Bool[Array, ""], Int[Array, ""]]:
        """Whether to run the network at a step, and how many further steps wait."""


@dataclasses.dataclass(frozen=True)
class ChosenSteps:
    """The network runs at these steps; the first must be one of them."""

    steps: tuple[int, ...]

    def __post_init__(self) -> None:
        if 0 not in self.steps:
            raise UserError(f"steps {self.steps} leave out the first, which has nothing to reuse: begin with 0")

    def __call__(self, step: Int[Array, ""], computed: Computed) -> tuple[Bool[Array, ""], Int[Array, ""]]:
        """See `Reuse`."""
        return (step == jnp.array(self.steps)).any(), computed.wait


@dataclasses.dataclass(frozen=True)
class SimilarSteps:
    """While the velocity hardly turns, some steps reuse it (DreamZero's dynamic schedule).

    Attributes:
        stream: whose velocity is looked at.
        waits: falling similarities (cosines of the last two), and the steps that reuse the last velocity above each.
    """

    stream: str = "video"
    waits: tuple[tuple[float, int], ...] = ((0.95, 4), (0.93, 2))

    def __call__(self, step: Int[Array, ""], computed: Computed) -> tuple[Bool[Array, ""], Int[Array, ""]]:
        """See `Reuse`; the similarity is the batch's mean, because all samples take the same steps."""
        last, before = (x[self.stream].reshape(len(x[self.stream]), -1) for x in (computed.last, computed.before))
        norms = jnp.linalg.norm(last, axis=1) * jnp.linalg.norm(before, axis=1)
        similar = jnp.mean(jnp.sum(last * before, axis=1) / jnp.maximum(norms, 1e-8))
        wait = jnp.zeros((), int)
        for bound, steps in reversed(self.waits):
            wait = jnp.where(similar > bound, steps, wait)
        begins = (computed.count >= 2) & (computed.wait == 0) & (wait > 0)
        return ~begins & (computed.wait <= 1), jnp.where(begins, wait, jnp.maximum(computed.wait - 1, 0))


def sample(
    velocity: Velocity,
    noise: Streams,
    solvers: Mapping[str, Solver],
    known: Mapping[str, tuple[Array, Array]] | None = None,
    reuse: Reuse | None = None,
) -> Streams:
    """Integrates all streams from noise to data.

    Args:
        velocity: the model.
        noise: starting point of each stream (b, ...).
        solvers: the solver of each stream; all of one number of steps, so that streams move together.
        known: per stream, data (b, ...) and mask (broadcastable) of entries already decided (committed actions, clean
            frames). They follow their own noise path exactly and come out unchanged.
        reuse: which steps take the last computed velocities again; None runs the model at every step.

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

    def computed_at(number: Array, x: Streams, sigma: dict[str, Array], past: Computed) -> Computed:
        if reuse is None:
            return dataclasses.replace(past, last=velocity(x, sigma))
        run, wait = reuse(number, past)

        def anew() -> Computed:
            return Computed(velocity(x, sigma), past.last, past.count + 1, wait)

        return jax.lax.cond(run, anew, lambda: dataclasses.replace(past, wait=wait))

    def step(
        carry: tuple[dict[str, list[Array]], Computed], rows: tuple[Array, dict[str, list[Array]]]
    ) -> tuple[tuple[dict[str, list[Array]], Computed], None]:
        (state, past), (number, row) = carry, rows
        x = {name: parts[0] for name, parts in state.items()}
        now = computed_at(number, x, {name: jnp.full(x[name].shape[:1], row[name][0]) for name in x}, past)
        return ({name: advance(name, state[name], now.last[name], row[name]) for name in x}, now), None

    # What a table's first rows must not read is multiplied by zero there.
    start = {name: [x, x, jnp.zeros_like(x), jnp.zeros_like(x)] for name, x in noise.items()}
    nothing = jax.tree.map(jnp.zeros_like, noise)
    none_yet = Computed(nothing, nothing, jnp.zeros((), int), jnp.zeros((), int))
    steps = len(next(iter(tables.values()))[0])
    (final, _), _ = jax.lax.scan(step, (start, none_yet), (jnp.arange(steps), tables))
    return {name: parts[0] for name, parts in final.items()}


def guided(conditional: Array, unconditional: Array, scale: float | Array) -> Array:
    """Classifier-free guidance (arXiv 2207.12598): the unconditional velocity, moved `scale` times the difference."""
    return unconditional + scale * (conditional - unconditional)


def _combine(weights: Float[Array, " k"], parts: list[Array]) -> Array:
    return sum((weights[i] * part for i, part in enumerate(parts)), start=jnp.zeros_like(parts[0]))
