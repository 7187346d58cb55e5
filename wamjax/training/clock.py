"""Where the seconds of a run go, and which of them were for its progress.

The host's clock, by what the host does or waits for; the device works on behind it, so "data" is what loading really
cost and "compute" is dispatching and waiting for results. `<run>/clock.jsonl` gets a line at the start, at every record
and every checkpoint, and is never cut: steps that a later start does again are told by their lines, and so is the time
that the run was down. Goodput is the share of all time, from the first start on, that went into compute that lasted.

The library ml-goodput-measurement does the same with Google Cloud Logging as its memory, and nothing without it.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from wamjax.sharding import processes

PHASES = ("start", "restore", "compile", "data", "host_to_device", "compute", "checkpoint", "validation", "other")
"""start: what comes before the first step and is nothing else. compile: first steps. other: the loop's own cost."""

LOST, DOWN = "lost", "down"
"""Seconds spent on steps that were done again; seconds not running, with what a killed run did after its last line."""


class Clock:
    """Seconds by phase since the start of this process.

    Args:
        began: when that was (`time.time()`); default now.
    """

    def __init__(self, began: float | None = None) -> None:
        self.began = time.time() if began is None else began
        self.spent = dict.fromkeys(PHASES, 0.0)
        self._lapped, self._before = self.began, dict(self.spent)

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.time() - self.began

    @contextlib.contextmanager
    def spend(self, phase: str) -> Iterator[None]:
        """Counts what happens inside; phases do not nest."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.spent[phase] += time.perf_counter() - start

    def lap(self) -> tuple[float, dict[str, float]]:
        """Now, and the seconds of every phase since the last lap; together they are all the time that passed."""
        now = time.time()
        lap = {phase: seconds - self._before[phase] for phase, seconds in self.spent.items()}
        rest = max(0.0, now - self._lapped - sum(lap.values()))
        phase = "start" if self._lapped == self.began else "other"
        self.spent[phase] += rest
        lap[phase] += rest
        self._lapped, self._before = now, dict(self.spent)
        return now, lap


class Ledger:
    """A run's `clock.jsonl`, of all its starts.

    Args:
        run: the run folder; process 0 alone writes there.
    """

    def __init__(self, run: Path) -> None:
        self._path = run / "clock.jsonl"
        self._lines: list[dict[str, Any]] = []
        self._now, self._first = 0.0, 0.0
        self._lost = self._down = 0.0
        self._kept = dict.fromkeys(PHASES, 0.0)
        if processes.first() and self._path.exists():
            for line in self._path.read_text().splitlines():
                with contextlib.suppress(ValueError):  # cut off by a kill
                    self._count(json.loads(line))

    def write(self, step: int, clock: Clock) -> dict[str, float]:
        """Adds a lap of the clock that ended with `step` steps done, and returns it."""
        opening = self._lines == [] or self._lines[-1]["began"] != clock.began
        now, lap = clock.lap()
        if processes.first():
            spent = {phase: round(seconds, 4) for phase, seconds in lap.items() if seconds >= 5e-5}
            line = {"step": step, "time": now, "began": clock.began, "spent": spent}
            with self._path.open("a") as file:
                if opening and file.tell():
                    file.write("\n")  # after a line that a kill cut off
                file.write(json.dumps(line) + "\n")
            self._count(line)
        return lap

    def _count(self, line: dict[str, Any]) -> None:
        if not self._lines and not self._first:
            self._first = self._now = line["began"]
        while self._lines and self._lines[-1]["step"] > line["step"]:  # done again from here on
            gone = self._lines.pop()["spent"]
            self._lost += sum(gone.values())
            for phase, seconds in gone.items():
                self._kept[phase] -= seconds
        self._down += max(0.0, line["began"] - self._now)
        self._now = line["time"]
        self._lines.append(line)
        for phase, seconds in line["spent"].items():
            self._kept[phase] += seconds

    @property
    def causes(self) -> dict[str, float]:
        """Seconds from the first start until now, by what they went into."""
        return {**self._kept, LOST: self._lost, DOWN: self._down}

    @property
    def goodput(self) -> float:
        """Share of all time that went into compute that lasted."""
        return self._kept["compute"] / max(self._now - self._first, 1e-9)


def per_step(lap: Mapping[str, float], steps: int) -> dict[str, float]:
    """Seconds of a step by phase, as metrics, but for what happens only at the start."""
    once = ("start", "restore", "compile")
    return {f"time/{phase}": seconds / max(steps, 1) for phase, seconds in lap.items() if phase not in once}
