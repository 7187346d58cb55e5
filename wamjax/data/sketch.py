"""Quantiles of more numbers than fit in memory, with an error that is known and the same on every run.

Values wait in levels; a value of level h stands for 2^h of those that were added. A level that is full is sorted and
every second value of it goes up one level, from the first on or from the second on in turn. Thinning changes the
number of values up to any x by at most the weight 2^h: upwards for an even start, downwards for an odd one. What all
thinnings together may have changed is counted, so the bound holds for whatever was added, in whatever order.

Source: Manku, Rajagopalan and Lindsay, SIGMOD 1998, and Karnin, Lang and Liberty (arXiv 1603.05346), without the
latter's coin: datasets must come out the same on every run. (Apache DataSketches tosses it; DDSketch bounds the error
of values, not of ranks, relative to their size, which says little about numbers around zero.)
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

ROWS = 1 << 13
"""Half of what a level holds: a rank is off by about levels / (4 ROWS) at the most, 0.05 % of 10^9 values."""


class Sketch:
    """Of `width` numbers side by side.

    Attributes:
        count: rows added. levels: of each level, the rows that wait there. thinned: of each level, how often it was
            thinned from the first and from the second value on.
    """

    def __init__(self, width: int, rows: int = ROWS):
        self.width, self.rows = width, rows
        self.count = 0
        self.levels: list[np.ndarray] = []
        self.thinned: list[list[int]] = []

    def add(self, values: Float[np.ndarray, "n k"]) -> None:
        """Take in rows."""
        self.count += len(values)
        for start in range(0, len(values), 2 * self.rows):
            self._put(0, values[start : start + 2 * self.rows])

    def merge(self, other: Sketch) -> None:
        """Take in what another of the same width has taken in; errors add up."""
        self.count += other.count
        for level, (waiting, counts) in enumerate(zip(other.levels, other.thinned, strict=True)):
            self._put(level, waiting)
            self.thinned[level] = [a + b for a, b in zip(self.thinned[level], counts, strict=True)]

    @property
    def rank_error(self) -> float:
        """The most by which a rank can be off, as a part of all values."""
        off = sum(max(counts) << level for level, counts in enumerate(self.thinned))
        return off / self.count if self.count else 0.0

    def quantile(self, part: float) -> Float[np.ndarray, " k"]:
        """A value of each number with a rank within `rank_error` of `part` of all."""
        values = np.concatenate(self.levels)
        weights = np.concatenate([np.full(len(rows), 1 << level) for level, rows in enumerate(self.levels)])
        order = np.argsort(values, axis=0, kind="stable")
        ranks = np.cumsum(weights[order], axis=0)
        first = np.minimum((ranks < part * self.count).sum(0), len(values) - 1)
        return np.take_along_axis(values, np.take_along_axis(order, first[None], 0), 0)[0]

    def _put(self, level: int, values: np.ndarray) -> None:
        while len(self.levels) <= level:
            self.levels.append(np.empty((0, self.width)))
            self.thinned.append([0, 0])
        waiting = np.concatenate([self.levels[level], values])
        if len(waiting) < 2 * self.rows:
            self.levels[level] = waiting
            return
        even = len(waiting) // 2 * 2
        self.levels[level] = waiting[even:]
        start = int(self.thinned[level][0] > self.thinned[level][1])
        self.thinned[level][start] += 1
        self._put(level + 1, np.sort(waiting[:even], axis=0)[start::2])
