"""Metrics: a JSON line and TensorBoard scalars per record, and a line a person can read."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wamjax.data.files import keep_lines
from wamjax.sharding import processes


def make_writer(run: Path, steps: int, start_step: int) -> MetricWriter | SilentWriter:
    """The writer of this process: process 0 writes for all."""
    return MetricWriter(run, steps, start_step) if processes.first() else SilentWriter()


class MetricWriter:
    """Writes `metrics.jsonl` and TensorBoard events of a run, and prints progress.

    Args:
        run: the run folder.
        steps: steps of the whole run, for the progress line.
        start_step: records of this step or later, left by an interrupted run, are dropped.
        print_every: seconds between printed lines.
    """

    def __init__(self, run: Path, steps: int, start_step: int, print_every: float = 10.0) -> None:
        self._path, self._steps, self._print_every = run / "metrics.jsonl", steps, print_every
        self._printed = 0.0
        keep_lines(self._path, lambda record: record["step"] <= start_step)
        self._file = self._path.open("a")
        self._board = _Board(run / "tensorboard", start_step)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Records the metrics of a step."""
        self._file.write(json.dumps({"step": step, **{name: round(value, 7) for name, value in values.items()}}) + "\n")
        self._file.flush()
        self._board.write(step, values)
        if "loss" in values and (time.monotonic() - self._printed > self._print_every or step == self._steps):
            self._printed = time.monotonic()
            print(_line(step, self._steps, values), flush=True)

    def close(self) -> None:
        """Flushes and closes the files."""
        self._file.close()
        self._board.close()


class _Board:
    """Scalars for TensorBoard, which hides those of `start_step` or later that an interrupted run left.

    They are written here and now: tensorboardX's `SummaryWriter` has a thread for it, which ends when the disk is full,
    and then waits forever for that thread.
    """

    def __init__(self, folder: Path, start_step: int) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import SessionLog

        folder.mkdir(parents=True, exist_ok=True)
        self._events = EventsWriter(str(folder / "events"))
        if start_step:
            self._write(step=start_step, session_log=SessionLog(status=SessionLog.START))
        self._events.flush()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        from tensorboardX.summary import scalar

        for name, value in values.items():
            self._write(step=step, summary=scalar(name, value))
        self._events.flush()

    def close(self) -> None:
        self._events.close()

    def _write(self, **content: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._events.write_event(Event(wall_time=time.time(), **content))


class SilentWriter:
    """Where a `MetricWriter` is asked for, in all processes but the first."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


def _line(step: int, steps: int, values: Mapping[str, float]) -> str:
    rate = values["steps_per_second"]
    left = (steps - step) / rate if rate else float("nan")
    terms = " ".join(
        f"{name.removeprefix('loss/')} {value:.3f}" for name, value in values.items() if name.startswith("loss/")
    )
    return (
        f"step {step:>6}/{steps} {100 * step / steps:3.0f}%  loss {values['loss']:.3f} ({terms})  "
        f"{rate:.2f} steps/s  MFU {100 * values['mfu']:.0f}%  {left / 60:.1f} min left"
    )
