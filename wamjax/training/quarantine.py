"""Samples that could not be read: what was drawn in their place is on record, and too many of them stop the run.

`<run>/quarantine/<process>.jsonl` has a line for each: step and number of the batch, and what `pipeline.replaced` says.
Replacements are a function of the step, so an interrupted run leaves the lines of an undisturbed one.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from wamjax.data.pipeline import replaced
from wamjax.errors import UserError
from wamjax.training.step_log import StepLog


@dataclasses.dataclass(frozen=True)
class QuarantineConfig:
    """How much bad input a run puts up with.

    Attributes:
        limit: more bad samples than this among the last `within` that a process read stop the run.
    """

    limit: int = 10
    within: int = 1000

    def __post_init__(self) -> None:
        if self.limit < 0 or self.within < 1:
            raise UserError(
                f"train.quarantine: limit={self.limit} must be at least 0 and within={self.within} at least 1"
            )


class Quarantine:
    """This process's log, and its count.

    Args:
        run: the run folder. first: the step that the run goes on with.
        config: how many are too many. rows: samples of this process in a batch.
    """

    def __init__(self, run: Path, first: int, config: QuarantineConfig, rows: int) -> None:
        self._log, self._config, self._rows = StepLog(run, "quarantine", first), config, rows
        self._count, self._seen = len(self._log), 0
        self._recent: deque[int] = deque()

    @property
    def counts(self) -> dict[str, float]:
        """Samples replaced so far, where there were any."""
        return {"replaced_samples": float(self._count)} if self._count else {}

    def take(self, step: int, number: int, batch: Mapping[str, np.ndarray]) -> None:
        """Takes in the batch of a step.

        Raises:
            UserError: too many of the last samples were bad.
        """
        found = replaced(dict(batch))
        self._seen += self._rows
        for entry in found:
            self._log.write({"step": step, "batch": number, **entry})
            self._recent.append(self._seen)
        while self._recent and self._recent[0] <= self._seen - self._config.within:
            self._recent.popleft()
        self._count += len(found)
        if found and len(self._recent) > self._config.limit:
            self._log.flush()
            last = found[-1]
            raise UserError(
                f"{len(self._recent)} of the last {min(self._seen, self._config.within)} samples are bad; the last, "
                f"sample {last['sample']} of {last['dataset']}: {last['reason']}. See quarantine/ in the run, repair "
                "the dataset, or allow more with train.quarantine.limit"
            )

    def flush(self) -> None:
        """Brings everything to the disk."""
        self._log.flush()

    def close(self) -> None:
        """Closes the file."""
        self._log.close()
