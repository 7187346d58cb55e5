"""A run's ear: told to stop, asked for a trace, and a watchdog where nothing happens any more."""

from __future__ import annotations

import dataclasses
import faulthandler
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

from wamjax.errors import UserError
from wamjax.sharding import processes

TRACED = 5
"""Steps that a trace on demand covers, where the request does not say."""


@dataclasses.dataclass(frozen=True)
class WatchConfig:
    """How a run is watched; it changes nothing of what is trained, and may differ between starts.

    Attributes:
        log_samples: keep the numbers of every step's samples (`wamjax.training.samples`).
        profile_steps: (first, last) of the steps to trace; empty for none. A file `profile` in the run folder asks
            for a trace of the coming steps, as many as the number in it says, or 5.
        hang_seconds: without a step for so long, all stacks go to `<run>/hang-<process>.txt`; 0 for no watchdog. It
            must exceed what restoring, compiling, validating or waiting for a checkpoint takes.
        hang_exit: whether the process then ends, to be started again, or waits on.
    """

    log_samples: bool = False
    profile_steps: tuple[int, ...] = ()
    hang_seconds: float = 1800.0
    hang_exit: bool = True

    def __post_init__(self) -> None:
        if self.profile_steps and (
            len(self.profile_steps) != 2 or not 0 <= self.profile_steps[0] <= self.profile_steps[1]
        ):
            raise UserError(f"train.watch.profile_steps is {self.profile_steps}: give (first, last), or () for none")


class Notice:
    """Whether this run was told to stop: SIGTERM, which clouds, Kubernetes and SLURM send before they take a machine.

    Used as a context. One process hears of it by the signal; several by JAX, which catches it in whichever process it
    arrives and lets all agree on the step. A second signal ends a single process at once.
    """

    def __init__(self) -> None:
        self._told, self._asked = False, 0
        self._old: Any = None
        self._together = jax.distributed.is_initialized()
        self._listens = not self._together and threading.current_thread() is threading.main_thread()

    def __enter__(self) -> Notice:
        if self._listens:
            self._old = signal.signal(signal.SIGTERM, self._hear)
        return self

    def __exit__(self, *error: object) -> None:
        if self._listens:
            signal.signal(signal.SIGTERM, self._old)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self._told = True
        signal.signal(signal.SIGTERM, self._old)

    def heard(self) -> bool:
        """Whether to stop here: all processes ask before every step, and get the same answer."""
        self._asked += 1  # and not the step, which falls where a run goes back
        if self._together:
            self._told |= multihost_utils.reached_preemption_sync_point(self._asked)
        return self._told


class Profiler:
    """Traces steps for xprof and TensorBoard, in `<run>/tensorboard`; used as a context. Process 0's machine is traced.

    Args:
        run: the run folder.
        steps: (first, last) to trace by themselves; empty for none.
        every: steps between looks for the file `profile`.
    """

    def __init__(self, run: Path, steps: tuple[int, ...], every: int) -> None:
        self._request, self._folder, self._every = run / "profile", run / "tensorboard", every
        self._steps, self._ends = steps, -1

    def __enter__(self) -> Profiler:
        return self

    def __exit__(self, *error: object) -> None:
        if self._ends >= 0:
            self._stop()

    def before(self, step: int) -> None:
        """Starts and ends traces; call it before every step."""
        if not processes.first():
            return
        if self._ends >= 0:
            if step > self._ends + 1:  # the host has waited for the last one traced
                self._stop()
        elif self._steps and step == self._steps[0]:
            self._start(step, self._steps[1])
        elif step % self._every == 0 and self._request.exists():
            text = self._request.read_text().strip()
            self._request.unlink()
            self._start(step, step + max(1, int(text) if text.isdigit() else TRACED) - 1)

    def _start(self, first: int, last: int) -> None:
        jax.profiler.start_trace(str(self._folder))
        self._ends = last
        print(f"tracing steps {first} to {last}", flush=True)

    def _stop(self) -> None:
        jax.profiler.stop_trace()
        self._ends = -1
        print(f"the trace is in {self._folder}: tensorboard --logdir {self._folder} (with xprof installed)", flush=True)


class Watchdog:
    """Dumps the stacks of all threads where no step has ended for too long; used as a context.

    Args:
        run: the run folder.
        seconds: how long; 0 for never.
        ends: whether the process then ends, with the exit code of a lost machine, or waits on.
    """

    def __init__(self, run: Path, seconds: float, ends: bool) -> None:
        self._path, self._seconds, self._ends = run / f"hang-{jax.process_index()}.txt", seconds, ends
        self._beaten, self._over = time.monotonic(), threading.Event()

    def __enter__(self) -> Watchdog:
        if self._seconds:
            threading.Thread(target=self._watch, daemon=True, name="watchdog").start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()

    def beat(self) -> None:
        """Says that the run is alive."""
        self._beaten = time.monotonic()

    def _watch(self) -> None:
        while not self._over.wait(min(1.0, self._seconds / 4)):
            if time.monotonic() - self._beaten > self._seconds:
                self._bite()
                self.beat()

    def _bite(self) -> None:
        errors = sys.__stderr__ or sys.stderr  # where there is a real file behind it
        why = f"no step for {self._seconds:g} s (train.watch.hang_seconds)"
        print(f"wamjax: error: {why}: all stacks are in {self._path}", file=errors, flush=True)
        with self._path.open("a") as file:
            print(time.strftime("%Y-%m-%d %H:%M:%S"), file=file, flush=True)
            faulthandler.dump_traceback(file, all_threads=True)
        faulthandler.dump_traceback(errors, all_threads=True)
        if self._ends and not self._over.wait(2 * processes.GRACE):  # others, stuck alike, write theirs in the meantime
            os._exit(processes.LOST)
