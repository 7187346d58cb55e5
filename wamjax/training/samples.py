"""The log of samples: which one each row of every step's batch was, to prove that none was skipped or repeated.

`<run>/samples/<process>.jsonl` has a line per step: the step, the number of its batch, and the numbers of the dataset's
samples in the rows that the process read. A resumed run drops the lines of the steps that it does again, so what is
left is the surviving lineage. Lines are on the disk before a checkpoint of later steps can be.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from wamjax.data.files import keep_lines
from wamjax.errors import UserError
from wamjax.sharding import processes


class SampleLog:
    """This process's part of the log.

    Args:
        run: the run folder.
        first: the step that the run goes on with.
        rows: the rows of a batch that this process reads.
        asked: whether to keep a log at all.
    """

    def __init__(self, run: Path, first: int, rows: Sequence[int], asked: bool) -> None:
        self._rows, self._file = list(rows), None
        folder = run / "samples"
        if processes.first():
            for path in folder.glob("*.jsonl"):  # of all processes, of which there may have been more
                keep_lines(path, lambda line: line["step"] < first)
        processes.meet("the log of samples is cut")
        if asked:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = (folder / f"{jax.process_index()}.jsonl").open("a")

    def write(self, step: int, number: int, samples: np.ndarray | None) -> None:
        """Records the batch of a step."""
        if self._file is not None and samples is not None:
            line = {"step": step, "batch": number, "rows": self._rows, "samples": samples.tolist()}
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


def lineage(run: Path) -> list[tuple[int, tuple[int, ...]]]:
    """Number of the batch and samples of its rows in order, for every step of a run from 0 on.

    Raises:
        UserError: no log, or one with a step or a row missing, or told twice differently.
    """
    batches: dict[int, int] = {}
    rows: dict[int, dict[int, int]] = {}
    for path in sorted((run / "samples").glob("*.jsonl")):
        for text in path.read_text().splitlines():
            line: dict[str, Any] = json.loads(text)
            step, found = line["step"], rows.setdefault(line["step"], {})
            new = dict(zip(line["rows"], line["samples"], strict=True))
            if batches.setdefault(step, line["batch"]) != line["batch"] or any(
                found.get(r, s) != s for r, s in new.items()
            ):
                raise UserError(f"{path} contradicts the other logs at step {step}: the run's lineage is broken")
            found |= new
    if not rows:
        raise UserError(f"{run} has no log of samples: train with train.watch.log_samples=True")
    for step in range(max(rows) + 1):
        if sorted(rows.get(step, {})) != list(range(len(rows[max(rows)]))):
            raise UserError(f"the log of samples of {run} lacks rows of step {step}")
    return [(batches[step], tuple(rows[step][row] for row in sorted(rows[step]))) for step in range(max(rows) + 1)]
