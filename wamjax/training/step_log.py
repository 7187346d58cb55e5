"""Logs of a run with lines per step, which hold only what is left of the run after interruptions."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from wamjax.data.files import keep_lines
from wamjax.sharding import processes


class StepLog:
    """This process's part of a log, `<run>/<name>/<process>.jsonl`; made when the first line is written.

    A resumed run drops the lines of the steps that it does again, so what is left is the surviving lineage. After
    `flush`, lines are on the disk: called before a checkpoint, none of an earlier step can be missing beside it.

    Args:
        run: the run folder. name: of the log.
        first: the step that the run goes on with.
    """

    def __init__(self, run: Path, name: str, first: int) -> None:
        self._path = run / name / f"{jax.process_index()}.jsonl"
        self._file: Any = None
        if processes.first():
            for path in (run / name).glob("*.jsonl"):  # of all processes, of which there may have been more
                keep_lines(path, lambda line: line["step"] < first)
        processes.meet(f"the log {name} is cut")

    def write(self, line: Mapping[str, Any]) -> None:
        """Adds a line, whose `step` is that of the run."""
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("a")
        self._file.write(json.dumps(line, separators=(",", ":")) + "\n")

    def flush(self) -> None:
        """Brings everything to the disk."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Flushes and closes the file."""
        if self._file is not None:
            self._file.close()
