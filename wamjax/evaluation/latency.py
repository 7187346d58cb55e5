"""How long a policy takes: the stages of an action chunk, the whole calls, a training step.

A device works after its caller has gone on, so a clock is read only when results are there. What is compiled on a
first call is never in a time.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from wamjax.compute.flops import forward, of_passes
from wamjax.policies.contract import Params, Policy, Stage
from wamjax.sharding.mesh import Rules, to_devices
from wamjax.training.loop import TrainConfig
from wamjax.training.lora import adapt
from wamjax.training.optimizer import make_optimizer
from wamjax.training.step import init_state, make_step

Clock = Callable[[], float]
"""Seconds since some time."""


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of each repetition."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Of the repetitions."""
        return statistics.median(self.seconds)

    @property
    def least(self) -> float:
        """Of the repetitions."""
        return min(self.seconds)


def timed(run: Callable[[], Any], repeats: int = 5, warmup: int = 1, clock: Clock = time.perf_counter) -> Timing:
    """Times a call until its arrays are there, after `warmup` calls that do not count."""
    for _ in range(warmup):
        jax.block_until_ready(run())
    seconds = []
    for _ in range(repeats):
        begin = clock()
        jax.block_until_ready(run())
        seconds.append(clock() - begin)
    return Timing(tuple(seconds))


def random_like(shapes: Any, seed: int, dtype: Any) -> Any:
    """Random arrays of these shapes, large ones made where they stay: matrices keep a signal's size, vectors are 1."""
    leaves, tree = jax.tree.flatten(shapes)
    host = np.random.default_rng(seed)

    def large(key: Array, shape: tuple[int, ...]) -> Array:
        return jax.random.normal(key, shape, dtype) * jnp.asarray(math.prod(shape[:-1]) ** -0.5, dtype)

    make = jax.jit(large, static_argnums=1)

    def leaf(i: int, shape: tuple[int, ...]) -> Array:
        if len(shape) < 2:
            return jnp.asarray(np.ones(shape), dtype)
        if math.prod(shape) > 2**20:
            return make(jax.random.fold_in(jax.random.key(seed, impl="rbg"), i), shape)
        # Small ones come from the host: they are many, and every shape would be compiled.
        return jnp.asarray(host.standard_normal(shape) * math.prod(shape[:-1]) ** -0.5, dtype)

    return jax.tree.unflatten(tree, [leaf(i, x.shape) for i, x in enumerate(leaves)])


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        name: what ran. timing: how long.
        per_chunk: how often in a chunk, on average. part: whether it is part of another line.
        flops: counted operations of one run of all sessions; 0 where they are not counted.
    """

    name: str
    timing: Timing
    per_chunk: float
    part: bool
    flops: float = 0.0

    @property
    def seconds(self) -> float:
        """Of a chunk."""
        return self.timing.median * self.per_chunk


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is timed: a policy with its parameters, and what one step of all its sessions sees.

    Attributes:
        policy, params, frozen: the policy. seen: an observation. frames: those of a block (b, v, t, h, w, 3).
        full: blocks after which a session's window is full. restarts: whether it then begins anew.
    """

    policy: Policy
    params: Params
    frozen: Params
    seen: Mapping[str, Array]
    frames: Array
    full: int
    restarts: bool


def chunk_rows(
    subject: Subject, stages: Sequence[Stage], repeats: int, clock: Clock = time.perf_counter
) -> Iterator[Row]:
    """Times whole calls, then their stages, with a full window of known frames.

    Where sessions restart, `observe` with a full window, which all sessions need at once here, comes once in a round
    of the window, and the other `observe` the other times; else the window slides at every chunk.
    """
    timed_here = functools.partial(timed, repeats=repeats, clock=clock)
    policy, given, b = subject.policy, (subject.params, subject.frozen), len(subject.frames)
    draws = jax.jit(policy.draw_act, static_argnums=1)(jax.random.key(0), b)
    reset, act, observe = (jax.jit(method) for method in (policy.reset, policy.act, policy.observe))
    done = jnp.zeros((b, policy.shapes.horizon, policy.shapes.action))
    yield Row("reset", timed_here(lambda: reset(*given, subject.seen)), 0.0, False)
    session = reset(*given, subject.seen)
    for _ in range(subject.full - 1):
        session = observe(*given, session, subject.frames, done)
    often = subject.full / (subject.full + 1) if subject.restarts else 0.0
    timing = timed_here(lambda: observe(*given, session, subject.frames, done))
    yield Row("observe, window not full", timing, often, False)
    before, session = session, observe(*given, session, subject.frames, done)
    what = "restart" if subject.restarts else "slide"
    timing = timed_here(lambda: observe(*given, session, subject.frames, done))
    yield Row(f"observe, window full ({what})", timing, 1 - often, False)
    yield Row("act", timed_here(lambda: act(*given, session, subject.seen, draws)), 1.0, False)
    for stage in stages:
        # A seen block is committed beside the frames before it; with a full window there is no place for it.
        known = before if stage.name == "prefill" else session
        prepared = jax.jit(stage.prepare)(*given, known, subject.seen, draws)
        run = jax.jit(stage.run)
        cost = stage.cost and forward(stage.cost.network, stage.cost.plan, stage.cost.queries) * stage.cost.repeats
        timing = timed_here(functools.partial(run, *given, prepared))
        yield Row(stage.name, timing, stage.per_chunk, True, b * cost.total if cost else 0.0)


def train_row(
    policy: Policy,
    params: Params,
    frozen: Params,
    batch: Mapping[str, Any],
    config: TrainConfig,
    mesh: jax.sharding.Mesh,
    rules: Rules,
    repeats: int,
    clock: Clock = time.perf_counter,
) -> tuple[Row, int]:
    """Times the loop's own step, frozen encoders included, and counts the tokens of its batch; `params` are used up."""
    learner, initial, frozen = adapt(policy, params, frozen, config.lora, config.seed)
    optimizer = make_optimizer(config.optimizer, config.steps)
    state = init_state(learner, optimizer, config.optimizer.ema, config.seed, mesh, rules, initial)
    step = make_step(learner, optimizer, config.optimizer.ema, config.seed, mesh, state)
    rows = to_devices(batch, mesh)

    def run() -> Any:
        nonlocal state
        state, metrics = step(state, frozen, rows)
        return state, metrics

    passes, size = learner.passes("train"), len(next(iter(batch.values())))
    timing = timed(run, repeats, clock=clock)
    return Row("train step", timing, 0.0, False, size * of_passes(passes).total), size * sum(
        one.plan.length for one in passes
    )
