"""Bad steps: what counts as one, and what a run does about it.

A step is bad where its loss or gradient is not finite, or where the gradient spikes: its norm exceeds `spike` times the
median norm of the good steps before it, which no single outlier moves. The compiled step decides, from a window of
norms that is part of the train state, so resuming and the number of processes change nothing. A bad step leaves
everything as it was but the count of steps. The host hears of it one step late, and stops, goes on, or goes back to
the newest checkpoint and leaves the batch out.
"""

from __future__ import annotations

import bisect
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float

from wamjax.errors import NonFiniteLoss, UserError
from wamjax.sharding import processes

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class GuardConfig:
    """What is done about bad steps.

    Attributes:
        on_bad_step: "stop" the run; "skip" the update; or "rewind" to the newest checkpoint and leave batches out.
        spike: gradient norms above so many times the median are bad; 0 for only those that are not finite.
        window: good steps that the median is of; until there are half as many, nothing counts as a spike.
        leave_out: how many batches a rewind leaves out, the bad step's being the last.
        limit: more bad steps than this among the last `within` steps stop the run.
    """

    on_bad_step: Literal["stop", "skip", "rewind"] = "stop"
    spike: float = 0.0
    window: int = 127
    leave_out: int = 1
    limit: int = 10
    within: int = 1000

    def __post_init__(self) -> None:
        if self.spike and self.spike <= 1:
            raise UserError(f"train.guard.spike is {self.spike}: it must be above 1, or 0 for no limit")
        for name in ("window", "leave_out", "limit", "within"):
            if getattr(self, name) < 1:
                raise UserError(f"train.guard.{name} is {getattr(self, name)}: it must be at least 1")

    @property
    def in_step(self) -> bool:
        """Whether the compiled step has to decide; "stop" without spikes needs no more than the metrics."""
        return self.on_bad_step != "stop" or self.spike > 0


NO_GUARD = GuardConfig()
"""Metrics alone tell bad steps."""


@struct.dataclass
class GuardState:
    """Gradient norms of the newest good steps, the oldest first; infinite where there were none yet."""

    norms: Float[Array, " window"]


def fresh(config: GuardConfig) -> GuardState | None:
    """The state to begin with; None where the step need not decide."""
    return GuardState(jnp.full((config.window,), jnp.inf, jnp.float32)) if config.in_step else None


def judge(guard: GuardState, spike: float, loss: Array, norm: Array) -> tuple[Bool[Array, ""], GuardState]:
    """Whether a step is bad, and the window after it."""
    median = jnp.sort(guard.norms)[guard.norms.size // 2]
    bad = ~(jnp.isfinite(loss) & jnp.isfinite(norm))
    if spike:
        bad |= norm > spike * median
    return bad, GuardState(jnp.where(bad, guard.norms, jnp.append(guard.norms[1:], norm)))


def keep(bad: Array, old: T, new: T) -> T:
    """The old tree after a bad step, the new one after a good one."""
    return jax.tree.map(lambda before, after: jnp.where(bad, before, after), old, new)


class Rewind(Exception):
    """The run has to go back to its newest checkpoint: a batch was bad, beside those left out before."""

    def __init__(self, batch: int, left_out: Sequence[int]) -> None:
        super().__init__(f"batch {batch} is bad")
        self.batch, self.left_out = batch, tuple(left_out)


class Guard:
    """The host's side: hears of every step one step late, and decides.

    Args:
        config: what to do.
        record: what an earlier `record` said, as far as the checkpoint knows.
        first: the step that the run goes on with.
        bad: why it went back there, where it did.
    """

    def __init__(self, config: GuardConfig, record: Mapping[str, Any], first: int, bad: Rewind | None = None) -> None:
        self._config = config
        self._skipped = list(record.get("skipped", ()))
        self.left_out = list(record.get("left_out", ()))
        if bad is not None:
            begin = max(batch_of(first, bad.left_out), bad.batch - config.leave_out + 1)
            self.left_out = sorted({*bad.left_out, *range(begin, bad.batch + 1)})

    def record(self) -> dict[str, Any]:
        """What a later start needs to decide alike."""
        return {"skipped": self._skipped, "left_out": self.left_out}

    @property
    def counts(self) -> dict[str, float]:
        """Steps skipped and batches left out so far, where there were any."""
        both = {"skipped_steps": len(self._skipped), "batches_left_out": len(self.left_out)}
        return {name: float(count) for name, count in both.items() if count}

    def look(self, step: int, values: Mapping[str, float], bad: bool, good: Callable[[], str]) -> None:
        """Takes in a step.

        Args:
            step: which, from 0. values: its metrics. bad: what the compiled step decided.
            good: describes the last good checkpoint, for the message.

        Raises:
            NonFiniteLoss: the run stops.
            Rewind: it has to go back.
        """
        finite = math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])
        if finite and not bad:
            return
        policy, within = self._config.on_bad_step, self._config.within
        each = self._config.leave_out if policy == "rewind" else 1
        recent = sum(one > step - within for one in (*self._skipped, *self.left_out)) // each
        wrong = "are a spike, far above the steps before" if finite else "are not both finite"
        what = f"step {step + 1}: loss {values['loss']} and gradient norm {values['grad_norm']} {wrong}"
        if policy == "stop" or recent >= self._config.limit:
            others = f", after {recent} bad steps within {within}" if recent else ""
            advice = "Lower train.optimizer.learning_rate or look at the data, then start again"
            raise NonFiniteLoss(f"{what}{others}; {good()}. {advice}")
        if policy == "rewind":
            batch = batch_of(step, self.left_out)
            processes.say(f"WARNING: {what}: going back to leave out batch {batch}")
            raise Rewind(batch, self.left_out)
        processes.say(f"WARNING: {what}: its update is skipped")
        self._skipped.append(step)


def batch_of(step: int, left_out: Sequence[int]) -> int:
    """Number of the batch that a step reads: the `step`-th of those not left out (sorted)."""
    batch = step
    for gone in left_out:
        batch += gone <= batch
    return batch


def without(
    numbered: Iterator[dict[str, np.ndarray]], first: int, left_out: Sequence[int]
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Number and content of the batches that follow `first`, but for those left out (sorted)."""
    for number, batch in enumerate(numbered, first):
        at = bisect.bisect_left(left_out, number)
        if at == len(left_out) or left_out[at] != number:
            yield number, batch
