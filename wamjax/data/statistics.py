"""Exact statistics of the per-step fields, for normalisation, in one pass whose memory hardly grows with the dataset.

Averages of per-episode quantiles, or quantiles of histograms, are not quantiles. The number of steps is known before
they are read, and with it how much of the smallest and largest values decides about the 1 % and 99 % quantiles: these
2 % of the values are kept, of all others only sums. Of datasets that are mixed, it is 2 % of the weight.
"""

from __future__ import annotations

import bisect
import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from jaxtyping import Float, Num, UInt16

QUANTILES = {"q01": 0.01, "q99": 0.99}
NAMES = ("max", "min", "mean", "std", *QUANTILES)

Statistics = dict[str, dict[str, list[float] | int]]

_OUTER = Fraction("0.01")  # of the weight, beyond either quantile
_ROOM = 1 << 16  # values of a number that may wait before they are looked at


def compute(episodes: Iterable[Mapping[str, np.ndarray]], steps: int) -> Statistics:
    """Statistics over all steps of all episodes.

    Args:
        episodes: the `steps` of each episode: field -> (T, ...) array.
        steps: how many there are in all.

    Returns:
        field -> {"mean", "std" (population), "min", "max", "q01", "q99": one number per element of the
        flattened step, "count": number of steps}. Booleans count as 0 and 1; NaN propagates.
    """
    return mixed([episodes], [steps], [1])


def mixed(
    datasets: Sequence[Iterable[Mapping[str, np.ndarray]]], steps: Sequence[int], shares: Sequence[int]
) -> Statistics:
    """Statistics over datasets of so many steps, each of which counts by its share, whatever its number of steps.

    Args and result are as `compute` has them, for every dataset.
    """
    fields: dict[str, Summary] = {}
    for part, episodes in enumerate(datasets):
        for episode in episodes:
            for name, array in episode.items():
                values = array.reshape(len(array), -1)
                if name not in fields:
                    fields[name] = Summary.mixed(steps, shares, values.shape[1])
                fields[name].add(values, part)
    return {name: {**fields[name].result(), "count": sum(fields[name].counts)} for name in sorted(fields)}


@dataclasses.dataclass
class Summary:
    """What is known so far of vectors of k numbers, which are of one dataset, or of several that are weighted.

    Attributes:
        steps: how many vectors of each dataset there will be. counts: that were added.
        weights: of a vector of each dataset, exact.
        mean, squares: of the added ones, and the weighted sums of squared distances from it, (k,).
        weight: that these two have. broken: which numbers were ever NaN, (k,).
        low, high: the outermost values of every number, those of `high` with their signs changed.
        waiting, part: vectors that are not looked at yet, and the dataset that they are of.
    """

    steps: tuple[int, ...]
    counts: list[int]
    weights: tuple[Fraction, ...]
    mean: np.ndarray
    squares: np.ndarray
    weight: float
    broken: np.ndarray
    low: list[Tail]
    high: list[Tail]
    waiting: list[np.ndarray]
    part: int = 0

    @classmethod
    def of(cls, total: int, size: int) -> Summary:
        """Of nothing yet; there will be `total` vectors of `size` numbers."""
        return cls.mixed([total], [1], size)

    @classmethod
    def mixed(cls, steps: Sequence[int], shares: Sequence[int], size: int) -> Summary:
        """Of nothing yet; there will be so many vectors of each dataset, which counts by its share."""
        whole = Fraction(sum(steps), sum(shares))
        weights = tuple(whole * share / many for share, many in zip(shares, steps, strict=True))
        low, high = ([Tail.of(weights, sum(steps)) for _ in range(size)] for _ in range(2))
        zeros, none = np.zeros(size), [0] * len(steps)
        return cls(tuple(steps), none, weights, zeros, zeros, 0.0, zeros.astype(bool), low, high, [])

    def add(self, values: Num[np.ndarray, "n k"], part: int = 0) -> None:
        """Take in vectors of a dataset."""
        if part != self.part:
            self._look()
        self.part = part
        self.counts[part] += len(values)
        self.waiting.append(values.astype(np.float64))
        if sum(map(len, self.waiting)) > _ROOM:
            self._look()

    def merge(self, other: Summary) -> None:
        """Take in what another summary of the same datasets has taken in."""
        if (other.steps, other.weights, len(other.mean)) != (self.steps, self.weights, len(self.mean)):
            raise ValueError("summaries of different datasets")
        self._look()
        other._look()
        self.counts = [one + more for one, more in zip(self.counts, other.counts, strict=True)]
        self._combine(other.weight, other.mean, other.squares, other.broken)
        for tail, more in zip(self.low + self.high, other.low + other.high, strict=True):
            more.settle()
            tail.add(more.values, more.parts)

    def result(self) -> dict[str, Any]:
        """{"mean", "std", "min", "max", "q01", "q99": one number per element}.

        Quantiles of one dataset are interpolated as `numpy.quantile` does it. Of several, the number at a quantile is
        the smallest that so much of the weight does not exceed (its `inverted_cdf`).

        Raises:
            ValueError: fewer or more vectors were added than announced.
        """
        self._look()
        if self.counts != list(self.steps):
            raise ValueError(f"{sum(self.counts)} vectors of {sum(self.steps)} were added")
        for tail in self.low + self.high:
            tail.settle()
        found = {"max": self._top(0), "min": self._bottom(0), "mean": self.mean}
        found["std"] = np.sqrt(self.squares / self.weight)
        found |= self._interpolated() if len(self.steps) == 1 else self._weighted()
        return {name: np.where(self.broken, np.nan, values).tolist() for name, values in found.items()}

    def _look(self) -> None:
        """Take the vectors that wait into the sums and tails."""
        if not sum(map(len, self.waiting)):
            return
        values = np.concatenate(self.waiting)
        self.waiting.clear()
        with np.errstate(invalid="ignore"):  # of infinities
            mean, weight = values.mean(0), float(self.weights[self.part])
            squares = weight * np.square(values - mean).sum(0)
            self._combine(weight * len(values), mean, squares, np.isnan(values).any(0))
        parts = np.full(len(values), self.part, np.uint16)
        for column, low, high in zip(values.T, self.low, self.high, strict=True):
            low.add(column, parts)
            high.add(-column, parts)

    def _combine(self, weight: float, mean: np.ndarray, squares: np.ndarray, broken: np.ndarray) -> None:
        """Mean and squares of both together (Chan, Golub and LeVeque 1979)."""
        both, apart = self.weight + weight, mean - self.mean
        if both:
            self.mean = self.mean + apart * (weight / both)
            self.squares = self.squares + squares + np.square(apart) * (self.weight * weight / both)
        self.broken = self.broken | broken
        self.weight = both

    def _interpolated(self) -> dict[str, np.ndarray]:
        """The quantiles of one dataset, between the values of two ranks."""
        (count,), found = self.steps, {}
        for name, share in QUANTILES.items():
            place = (count - 1) * share
            rank = math.floor(place)
            below, above = (self._ranked(min(r, count - 1)) for r in (rank, rank + 1))
            found[name] = between(below, above, place - rank)
        return found

    def _weighted(self) -> dict[str, np.ndarray]:
        """The quantiles of several: the value that completes 1 % of the weight from below, or exceeds it from above."""
        outer = _OUTER * sum(self.steps)
        low = [tail.first(lambda weight: weight >= outer) for tail in self.low]
        high = [-tail.first(lambda weight: weight > outer) for tail in self.high]
        return {"q01": np.array(low), "q99": np.array(high)}

    def _ranked(self, rank: int) -> np.ndarray:
        """The values of a rank from below, of those near either end."""
        return self._bottom(rank) if rank <= self.steps[0] * _OUTER + 1 else self._top(self.steps[0] - 1 - rank)

    def _bottom(self, rank: int) -> np.ndarray:
        return np.array([tail.values[rank] for tail in self.low])

    def _top(self, rank: int) -> np.ndarray:
        return np.array([-tail.values[rank] for tail in self.high])


@dataclasses.dataclass
class Tail:
    """The smallest values of a number, as many as can decide about a quantile, and some that wait to be looked at.

    Attributes:
        weights: of a value of each dataset. limit: what may lie before a value that is kept.
        values, parts: those kept, from the smallest on, and the datasets that they are of.
        waiting: (values, datasets) that were added since.
        bound: no value from here on is kept; NaN while all are.
    """

    weights: tuple[Fraction, ...]
    limit: float
    values: Float[np.ndarray, " n"]
    parts: UInt16[np.ndarray, " n"]
    waiting: list[tuple[np.ndarray, np.ndarray]]
    bound: float = math.nan

    @classmethod
    def of(cls, weights: tuple[Fraction, ...], total: int) -> Tail:
        """Of nothing yet; all values together will weigh `total`."""
        # One value beyond what decides: interpolation needs it, and sums are rounded by far less.
        limit = float(_OUTER * total + max(weights))
        return cls(weights, limit, np.empty(0), np.empty(0, np.uint16), [])

    def add(self, values: Float[np.ndarray, " n"], parts: UInt16[np.ndarray, " n"]) -> None:
        """Take in values and the datasets that they are of."""
        matter = ~(values >= self.bound)
        self.waiting.append((values[matter], parts[matter]))
        if sum(len(some) for some, _ in self.waiting) > max(len(self.values), _ROOM // 4):
            self.settle()

    def settle(self) -> None:
        """Sort those that wait among those kept, and drop what lies behind the limit."""
        if not self.waiting:
            return
        values, parts = (np.concatenate(some) for some in zip((self.values, self.parts), *self.waiting, strict=True))
        self.waiting.clear()
        order = np.argsort(values)
        parts = parts[order]
        weights = np.array(self.weights, np.float64)[parts]
        keep = int(np.searchsorted(np.cumsum(weights) - weights, self.limit, side="right"))
        if keep < len(values):
            self.bound = float(values[order[keep - 1]])
        self.values, self.parts = values[order[:keep]], parts[:keep].copy()

    def first(self, enough: Callable[[Fraction], bool]) -> float:
        """The first value with which those up to it weigh enough, by exact arithmetic."""

        def reached(place: int) -> bool:
            counts = np.bincount(self.parts[: place + 1], minlength=len(self.weights)).tolist()
            return enough(sum(map(Fraction.__mul__, self.weights, counts), Fraction()))

        return float(self.values[bisect.bisect_left(range(len(self.values) - 1), True, key=reached)])


def between(below: np.ndarray, above: np.ndarray, share: float | np.ndarray) -> np.ndarray:
    """Linear interpolation, with the rounding of `numpy.quantile`."""
    apart = above - below
    return np.where(share >= 0.5, above - apart * (1 - share), below + apart * share)
