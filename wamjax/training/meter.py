"""What a run's steps say, taken in one step late: metrics, rates, utilisation, and whether they were good."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np

from wamjax.compute.chips import peak
from wamjax.compute.executed import executed_flops
from wamjax.compute.flops import of_passes, parameter_count
from wamjax.training.clock import Clock, Ledger, per_step
from wamjax.training.optimizer import OptimizerConfig, schedule
from wamjax.training.step import Learner, TrainState

FINAL_STEPS = 50
"""The final loss is the mean over so many last steps."""


class Rates:
    """What a run is measured against; measuring it takes a second on a processor.

    Args:
        policy: what is trained. batch_size: samples of a step. optimizer, steps: of the run.
    """

    def __init__(self, policy: Learner, batch_size: int, optimizer: OptimizerConfig, steps: int) -> None:
        self._policy = policy
        self.operations = functools.cache(self._operations)
        self.peak = peak()
        self.batch_size, self.steps = batch_size, steps
        self.learning_rate = schedule(optimizer, steps)

    def _operations(self, frames: int | None = None) -> np.ndarray:
        """Of a step on samples of so many frames (None: what the policy is made for): (model, executed)."""
        passes = self._policy.passes("train", frames)
        return np.array([of_passes(passes).total, executed_flops(passes).executed]) * self.batch_size


class Meter:
    """Takes in the metrics of every step and says what to record.

    Args:
        rates: what to measure against.
        record: what `record` said when the checkpoint was saved that the run goes on from.
        first: the step that it goes on with. every: steps between records.
        clock, ledger: the run's time.
    """

    def __init__(
        self, rates: Rates, record: Mapping[str, Any], first: int, every: int, clock: Clock, ledger: Ledger
    ) -> None:
        self._rates, self._every, self._clock, self._ledger = rates, every, clock, ledger
        self._before = float(record.get("wall_seconds", 0.0))
        done = record.get("operations")  # not in checkpoints of earlier versions, whose steps were all alike
        self._done = rates.operations() * first if done is None else np.array(done)
        self._counted = self._done
        self._losses: deque[float] = deque(record.get("losses", ()), maxlen=FINAL_STEPS)
        self._lap: dict[str, float] = {}
        self.note(first)
        self._lap, self._recorded, self._began = {}, first, clock.elapsed

    @property
    def wall(self) -> float:
        """Seconds spent on training, earlier starts included as far as their work lasted."""
        return self._before + self._clock.elapsed - self._began

    def record(self) -> dict[str, Any]:
        """What a later start needs to go on counting."""
        return {"wall_seconds": self.wall, "losses": list(self._losses), "operations": self._done.tolist()}

    def note(self, step: int) -> None:
        """Writes into the ledger that `step` steps are done."""
        lap = self._ledger.write(step, self._clock)
        self._lap = {phase: self._lap.get(phase, 0.0) + seconds for phase, seconds in lap.items()}

    def take(self, step: int, values: Mapping[str, float], frames: int | None = None) -> dict[str, float] | None:
        """Takes in the metrics that `step` steps ended with; what to record of them, where it is time to.

        Args:
            frames: of the last step's samples.
        """
        rates = self._rates
        self._done = self._done + rates.operations(frames)
        self._losses.append(values["loss"])
        if step % self._every and step != rates.steps:
            return None
        self.note(step)
        steps, lap = step - self._recorded, self._lap
        self._recorded, self._lap = step, {}
        seconds = max(sum(lap.values()), 1e-9)
        model, executed = (self._done - self._counted) / seconds / rates.peak.flops
        self._counted = self._done
        return {
            **values,
            "learning_rate": float(rates.learning_rate(step - 1)),
            "steps_per_second": steps / seconds,
            "mfu": float(model),
            "hfu": float(executed),
            "goodput": self._ledger.goodput,
            "seconds": self.wall,
            **per_step(lap, steps),
        }

    def summary(self, state: TrainState) -> dict[str, Any]:
        """What the run spent and reached."""
        rates, steps = self._rates, self._rates.steps
        self.note(steps)
        model, executed = self._done.tolist()
        could = self.wall * rates.peak.flops
        return {
            "steps": steps,
            "flops": model,
            "mfu": model / could,
            "hfu": executed / could,
            "final_loss": float(np.mean(self._losses)) if self._losses else None,
            "parameters": parameter_count(state.params),
            "batch_size": rates.batch_size,
            "wall_seconds": self.wall,
            "goodput": self._ledger.goodput,
            "seconds": {cause: round(seconds, 3) for cause, seconds in self._ledger.causes.items()},
            "peak_flops": rates.peak.flops,
            "peak_source": rates.peak.source,
        }
