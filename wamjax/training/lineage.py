"""A run from one of its checkpoints on: the batches it reads, and all that it writes beside checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from wamjax.data.pipeline import DATASET, FRAMES, ON_HOST, SAMPLE
from wamjax.training.clock import Clock, Ledger
from wamjax.training.guard import Guard, GuardConfig, Rewind, batch_of, without
from wamjax.training.meter import Meter, Rates
from wamjax.training.metrics import make_writer
from wamjax.training.quarantine import Quarantine, QuarantineConfig
from wamjax.training.samples import SampleLog
from wamjax.training.step import TrainState


class Lineage:
    """What begins anew wherever a run goes on: at its start, after an interruption, and after a rewind.

    Args:
        run: the run folder; what lies there of later steps is dropped.
        clock, ledger: the run's time.
        batches: (number of the first batch, rows) -> endless batches. rows: of this process.
        log_every: steps between records. log_samples: whether to log samples.
        quarantine: how much bad input is too much.
        guard: what is done about bad steps. rates: what to measure against.
        good: describes the newest good checkpoint.
        first: the step that the run goes on with. meta: of its checkpoint; None for a new run.
        bad: why the run went back there, where it did.
    """

    def __init__(
        self,
        run: Path,
        clock: Clock,
        ledger: Ledger,
        batches: Callable[[int, Sequence[int]], Any],
        rows: Sequence[int],
        log_every: int,
        log_samples: bool,
        quarantine: QuarantineConfig,
        guard: GuardConfig,
        rates: Rates,
        good: Callable[[], str],
        first: int,
        meta: Mapping[str, Any] | None,
        bad: Rewind | None,
    ) -> None:
        known = meta or {}
        self.first, self.saved = first, -1 if meta is None else first
        self._clock, self._good = clock, good
        self._every, self._steps = log_every, rates.steps
        self._frames: dict[int, int | None] = {}  # of the samples of steps, by what they count up to
        self._guard = Guard(guard, known.get("guard", {}), first, bad)
        self._samples = SampleLog(run, first, rows, log_samples)
        self._quarantine = Quarantine(run, first, quarantine, rates.batch_size)
        self._writer = make_writer(run, rates.steps, first)
        begin, left_out = batch_of(first, self._guard.left_out), self._guard.left_out
        self._batches = without(batches(begin, rows), begin, left_out)
        self._meter = Meter(rates, known.get("meter", {}), first, log_every, clock, ledger)

    def next(self, step: int) -> dict[str, np.ndarray]:
        """The rows of this process in the batch of a step; a UserError where too many samples are bad."""
        if step % self._every == 0:
            self._quarantine.ask(step)
        number, batch = next(self._batches)
        self._frames[step + 1] = batch[FRAMES].shape[2] if FRAMES in batch else None
        self._samples.write(step, number, batch.get(SAMPLE), batch.get(DATASET))
        self._quarantine.take(step, number, batch)
        return on_device(batch)

    def take(self, step: int, metrics: dict[str, jax.Array] | None) -> None:
        """Takes in the metrics that `step` steps ended with (None: they were taken), which it waits for.

        Raises:
            NonFiniteLoss, Rewind: see `Guard.look`.
        """
        if metrics is None:
            return
        with self._clock.spend("compute"):
            values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        self._guard.look(step - 1, values, bool(values.pop("bad", 0.0)), self._good)
        record = self._meter.take(step, values, self._frames.pop(step))
        if record is not None:
            self._writer.write(step, record | self._guard.counts | self._quarantine.counts(step))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Records other values of a step, where there are any."""
        if values:
            self._writer.write(step, values)

    def record(self, step: int) -> dict[str, Any]:
        """What belongs into a checkpoint of `step` steps; everything logged until then is on the disk."""
        self._samples.flush()
        self._quarantine.flush()
        return {
            "data": {"next_step": step, "next_batch": batch_of(step, self._guard.left_out)},
            "meter": self._meter.record(),
            "guard": self._guard.record(),
        }

    def note(self, step: int) -> None:
        """Writes down the time until now, at which `step` steps are done."""
        self._meter.note(step)

    def summary(self, state: TrainState) -> dict[str, Any]:
        """What the run spent and reached."""
        counts = self._guard.counts | self._quarantine.counts(self._steps)
        return self._meter.summary(state) | counts

    def close(self) -> None:
        """Closes the files."""
        self._samples.close()
        self._quarantine.close()
        self._writer.close()


def on_device(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A batch without what stays on the host."""
    return {name: rows for name, rows in batch.items() if name not in ON_HOST}
