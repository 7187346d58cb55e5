"""Samples that could not be read: what was drawn in their place is on record, and too many of them stop the run.

`<run>/quarantine/<process>.jsonl` has a line for each: step and number of the batch, and what `pipeline.replaced` says.
Replacements are a function of the step, so an interrupted run leaves the lines of an undisturbed one.

The count and the limit are those of the whole run. Each process stops at once for what it has read alone; what the
others read is told at records. Processes that hold the same rows find the same: that counts once.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from wamjax.data.pipeline import replaced
from wamjax.errors import UserError
from wamjax.sharding import processes
from wamjax.training.step_log import StepLog


@dataclasses.dataclass(frozen=True)
class QuarantineConfig:
    """How much bad input a run puts up with.

    Attributes:
        limit: more bad samples than this among `within` in a row stop the run.
    """

    limit: int = 10
    within: int = 1000

    def __post_init__(self) -> None:
        if self.limit < 0 or self.within < 1:
            raise UserError(
                f"train.quarantine: limit={self.limit} must be at least 0 and within={self.within} at least 1"
            )


_Found = tuple[int, int, int]
"""A bad sample: number of the batch since the run goes on, its row, and how many were drawn for that row before."""


class Quarantine:
    """This process's log, and the count of all.

    Args:
        run: the run folder. first: the step that the run goes on with.
        config: how many are too many. batch_size: samples of all processes in a batch.
    """

    def __init__(self, run: Path, first: int, config: QuarantineConfig, batch_size: int) -> None:
        self._log, self._config, self._batch_size = StepLog(run, "quarantine", first), config, batch_size
        self._count, self._batches = _logged(run / "quarantine") if processes.first() else 0, 0
        self._new: list[_Found] = []  # here, since the others were asked
        self._known: list[int] = []  # those of all processes, as places in the run, as far as they still matter
        self._asked: tuple[int, list[_Found], jax.Array | int] = (-1, [], 0)
        self._last: dict[str, Any] | None = None

    def take(self, step: int, number: int, batch: Mapping[str, np.ndarray]) -> None:
        """Takes in the batch of a step.

        Raises:
            UserError: too many samples were bad.
        """
        drawn: Counter[int] = Counter()
        for entry in replaced(dict(batch)):
            self._log.write({"step": step, "batch": number, **entry})
            self._new.append((self._batches, row := entry["row"], drawn[row]))
            drawn[row] += 1
            self._last = entry
            self._check([*self._known, *self._places(self._asked[1]), *self._places(self._new)])
        self._batches += 1

    def ask(self, step: int) -> None:
        """Asks all processes what they found in `step` steps; nobody waits, where the next is not dispatched yet."""
        if self._asked[0] != step:
            found = [*self._asked[1], *self._new]
            self._asked, self._new = (step, found, processes.total(len(found))), []

    def counts(self, step: int) -> dict[str, float]:
        """Samples replaced in `step` steps by all processes, where there were any.

        Raises:
            UserError: too many samples were bad.
        """
        self.ask(step)
        _, found, anywhere = self._asked
        if int(anywhere):
            self._asked = (step, [], 0)
            new = self._places(processes.joined(np.array(found, np.int32).reshape(-1, 3)))
            self._count, known = self._count + len(new), [*self._known, *new]
            self._check(known)
            self._known = [place for place in known if place > max(known) - self._config.within]
        return {"replaced_samples": float(self._count)} if self._count else {}

    def _places(self, found: Iterable[Iterable[int]]) -> list[int]:
        return [batch * self._batch_size + row for batch, row, _ in {tuple(map(int, one)) for one in found}]

    def _check(self, places: Collection[int]) -> None:
        limit, within = self._config.limit, self._config.within
        ordered = sorted(places)
        if all(last - first >= within for first, last in zip(ordered, ordered[limit:], strict=False)):
            return
        self._log.flush()
        last = self._last
        told = f"the last, sample {last['sample']} of {last['dataset']}: {last['reason']}. " if last else ""
        raise UserError(
            f"more than {limit} of {within} samples in a row are bad; {told}See quarantine/ in the run, repair the "
            "dataset, or allow more with train.quarantine.limit"
        )

    def flush(self) -> None:
        """Brings everything to the disk."""
        self._log.flush()

    def close(self) -> None:
        """Closes the file."""
        self._log.close()


def _logged(folder: Path) -> int:
    """Bad samples that the logs of all processes name."""
    together: Counter[tuple[int, int]] = Counter()
    for path in folder.glob("*.jsonl"):
        lines = map(json.loads, path.read_text().splitlines())
        together |= Counter((line["step"], line["row"]) for line in lines)
    return together.total()
