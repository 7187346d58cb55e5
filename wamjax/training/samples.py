"""The log of samples: which one each row of every step's batch was, to prove that none was skipped or repeated.

`<run>/samples/<process>.jsonl` has a line per step: the step, the number of its batch, the numbers of the samples in
the rows that the process read, and which dataset of a mixture each is of. Numbers go over all datasets in their order.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wamjax.errors import UserError
from wamjax.training.step_log import StepLog


class SampleLog:
    """This process's part of the log.

    Args:
        run: the run folder.
        first: the step that the run goes on with.
        rows: the rows of a batch that this process reads.
        asked: whether to keep a log at all.
    """

    def __init__(self, run: Path, first: int, rows: Sequence[int], asked: bool) -> None:
        self._rows, self._asked, self._log = list(rows), asked, StepLog(run, "samples", first)

    def write(self, step: int, number: int, samples: np.ndarray | None, datasets: np.ndarray | None = None) -> None:
        """Records the batch of a step."""
        if self._asked and samples is not None:
            line = {"step": step, "batch": number, "rows": self._rows, "samples": samples.tolist()}
            self._log.write(line if datasets is None else line | {"datasets": datasets.tolist()})

    def flush(self) -> None:
        """Brings everything to the disk."""
        self._log.flush()

    def close(self) -> None:
        """Flushes and closes the file."""
        self._log.close()


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
