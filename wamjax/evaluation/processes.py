"""Worker processes for simulators: spawned (OpenGL and JAX do not survive a fork) and never left behind."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from typing import Any

from wamjax.errors import UserError


@contextlib.contextmanager
def worker_pools(pools: int, processes: int = 1) -> Iterator[list[ProcessPoolExecutor]]:
    """`pools` executors of `processes` processes each. A pool of one process keeps state (environments)
    between calls.

    All workers end when the block is left, for whatever reason, and when this process dies: each of them
    watches a pipe whose other end only this process holds. A worker that dies becomes a UserError instead of
    a hang.
    """
    context = multiprocessing.get_context("spawn")
    reader, writer = context.Pipe(duplex=False)
    executors = [
        ProcessPoolExecutor(processes, mp_context=context, initializer=_start_worker, initargs=(reader,))
        for _ in range(pools)
    ]
    try:
        yield executors
    except BrokenProcessPool as error:
        raise UserError(
            "a simulator process died (out of memory, or a crash of the OpenGL driver?): "
            "try again with fewer processes; scripts must keep their calls under `if __name__ == '__main__':`"
        ) from error
    finally:
        writer.close()
        for executor in executors:
            executor.shutdown(cancel_futures=True)
        reader.close()


def _start_worker(lifeline: Connection) -> None:
    """Ends this worker as soon as the other end of `lifeline` is gone. Ctrl-C is the parent's to handle."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(lifeline,), daemon=True).start()


def _end_with(lifeline: Connection) -> None:
    with contextlib.suppress(EOFError, OSError):
        lifeline.recv()
    os._exit(0)  # at once, even inside a simulator step, and past the exit handlers of OpenGL, which complain


def default_processes() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def progress_bar(shown: bool) -> Any:
    """A rich progress bar on standard error: counts, time taken, time left."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True), disable=not shown)
