"""Exact statistics of the per-step fields, for normalisation, in one pass whose memory hardly grows with the dataset.

Averages of per-episode quantiles, or quantiles of histograms, are not quantiles. The number of steps is known before
they are read, and with it how many of the smallest and largest values decide about the 1 % and 99 % quantiles: these
2 % of the values are kept, of all others only sums.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Num

QUANTILES = {"q01": 0.01, "q99": 0.99}
NAMES = ("max", "min", "mean", "std", *QUANTILES)

Statistics = dict[str, dict[str, list[float] | int]]

_ROOM = 1 << 16  # values of a number that may wait before all but the outermost are dropped


def compute(episodes: Iterable[Mapping[str, np.ndarray]], steps: int) -> Statistics:
    """Statistics over all steps of all episodes.

    Args:
        episodes: the `steps` of each episode: field -> (T, ...) array.
        steps: how many there are in all.

    Returns:
        field -> {"mean", "std" (population), "min", "max", "q01", "q99": one number per element of the
        flattened step, "count": number of steps}. Booleans count as 0 and 1; NaN propagates.
    """
    fields: dict[str, Summary] = {}
    for episode in episodes:
        for name, array in episode.items():
            values = array.reshape(len(array), -1)
            fields.setdefault(name, Summary.of(steps, values.shape[1])).add(values)
    return {name: {**fields[name].result(), "count": fields[name].count} for name in sorted(fields)}


@dataclasses.dataclass
class Summary:
    """What is known so far of vectors of k numbers.

    Attributes:
        total: how many vectors there will be. count: that were added.
        mean, squares: of the added ones, and the sums of squared distances from it, (k,).
        low, high: the outermost values. broken: which numbers were ever NaN, (k,).
    """

    total: int
    count: int
    mean: np.ndarray
    squares: np.ndarray
    low: Tail
    high: Tail
    broken: np.ndarray

    @classmethod
    def of(cls, total: int, size: int) -> Summary:
        """Of nothing yet."""
        deepest = {name: (total - 1) * share for name, share in QUANTILES.items()}
        low, high = math.floor(deepest["q01"]) + 2, total - math.floor(deepest["q99"])
        zeros = np.zeros(size)
        return cls(total, 0, zeros, zeros, Tail.of(low, size, 1), Tail.of(high, size, -1), zeros.astype(bool))

    def add(self, values: Num[np.ndarray, "n k"]) -> None:
        """Take in vectors."""
        values = values.astype(np.float64)
        if not len(values):
            return
        with np.errstate(invalid="ignore"):  # of infinities
            mean = values.mean(0)
            self._combine(len(values), mean, np.square(values - mean).sum(0), np.isnan(values).any(0))
        self.low.add(values)
        self.high.add(values)

    def merge(self, other: Summary) -> None:
        """Take in what another summary of the same `total` has taken in."""
        if (other.total, len(other.mean)) != (self.total, len(self.mean)):
            raise ValueError("summaries of different datasets")
        if other.count:
            self._combine(other.count, other.mean, other.squares, other.broken)
            self.low.add(other.low.values)
            self.high.add(other.high.values)

    def result(self) -> dict[str, Any]:
        """{"mean", "std", "min", "max", "q01", "q99": one number per element}.

        Raises:
            ValueError: fewer or more vectors were added than announced.
        """
        if self.count != self.total:
            raise ValueError(f"{self.count} vectors of {self.total} were added")
        found = {"max": self.high.ranked(0), "min": self.low.ranked(0)}
        found |= {"mean": self.mean, "std": np.sqrt(self.squares / self.count)}
        for name, share in QUANTILES.items():
            place = (self.count - 1) * share
            rank = math.floor(place)
            below, above = (self._ranked(min(r, self.count - 1)) for r in (rank, rank + 1))
            found[name] = _between(below, above, place - rank)
        return {name: np.where(self.broken, np.nan, values).tolist() for name, values in found.items()}

    def _combine(self, count: int, mean: np.ndarray, squares: np.ndarray, broken: np.ndarray) -> None:
        """Mean and squares of both together (Chan, Golub and LeVeque 1979)."""
        both, apart = self.count + count, mean - self.mean
        self.mean = self.mean + apart * (count / both)
        self.squares = self.squares + squares + np.square(apart) * (self.count * count / both)
        self.broken = self.broken | broken
        self.count = both

    def _ranked(self, rank: int) -> np.ndarray:
        """The values of a rank from below."""
        return self.low.ranked(rank) if rank < self.low.keep else self.high.ranked(self.count - 1 - rank)


@dataclasses.dataclass
class Tail:
    """The smallest (sign 1) or largest (sign -1) values of every number, and some that wait to be looked at.

    Attributes:
        keep: how many. sign: of the direction. parts: (n, k) arrays of signed values.
    """

    keep: int
    sign: int
    parts: list[np.ndarray]

    @classmethod
    def of(cls, keep: int, size: int, sign: int) -> Tail:
        """Of nothing yet."""
        return cls(keep, sign, [np.empty((0, size))])

    @property
    def values(self) -> np.ndarray:
        """Those that are kept (n, k), with the signs they came with."""
        self._drop()
        return self.sign * self.parts[0]

    def add(self, values: np.ndarray) -> None:
        """Take in values (n, k)."""
        self.parts.append(self.sign * values)
        if sum(len(part) for part in self.parts) > self.keep + max(self.keep, _ROOM):
            self._drop()

    def ranked(self, rank: int) -> np.ndarray:
        """The values of a rank, counted from outside."""
        self._drop()
        return self.sign * np.sort(self.parts[0], axis=0)[rank]

    def _drop(self) -> None:
        if len(self.parts) > 1:
            every = np.concatenate(self.parts)
            if len(every) > self.keep:
                every = np.partition(every, self.keep - 1, axis=0)[: self.keep]
            self.parts = [every]


def _between(below: np.ndarray, above: np.ndarray, share: float) -> np.ndarray:
    """Linear interpolation, with the rounding of `numpy.quantile`."""
    apart = above - below
    return np.where(share >= 0.5, above - apart * (1 - share), below + apart * share)
