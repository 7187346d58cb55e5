"""Statistics of the per-step fields, for normalisation: one pass, bounded memory, parts that can be put together.

Averages of per-episode quantiles are not quantiles. As long as a field has few values, all are kept and the quantiles
are exact. Of more, counts, means, deviations and extremes stay exact (up to rounding), and quantiles come from a sketch
whose error is known (`sketch.py`) and kept beside them as `rank_error`: the quantile named q01 is one between
0.01 - rank_error and 0.01 + rank_error.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from wamjax.data.files import replacing
from wamjax.data.sketch import Sketch

QUANTILES = {"q01": 0.01, "q99": 0.99}

EXACT = 1 << 22
"""Numbers of a field that are kept: up to 32 MB, and 600,000 steps of seven joints."""

Statistics = dict[str, dict[str, Any]]


def compute(episodes: Iterable[Mapping[str, np.ndarray]]) -> Statistics:
    """Statistics over all steps of all episodes.

    Args:
        episodes: the `steps` of each episode: field -> (T, ...) array.

    Returns:
        field -> {"mean", "std" (population), "min", "max", "q01", "q99": one number per element of the
        flattened step, "count": number of steps}, and "rank_error" where the quantiles are not exact. Booleans count
        as 0 and 1; NaN propagates.
    """
    pools = Pools()
    for steps in episodes:
        pools.add(steps)
    return pools.describe()


class Pool:
    """The values of one field, all of them or what describes them.

    Args:
        width: numbers per row.
        exact: how many numbers are kept before a sketch takes their place.
    """

    def __init__(self, width: int, exact: int = EXACT):
        self.width, self.exact = width, exact
        self.count = 0
        self._kept: list[np.ndarray] = []
        self._sketch: Sketch | None = None
        self._mean, self._squares = np.zeros(width), np.zeros(width)  # squares: summed, of what differs from the mean
        self._low, self._high = np.full(width, np.inf), np.full(width, -np.inf)

    def add(self, values: np.ndarray) -> None:
        """Take in rows (n, width) of any kind of number; they are copied."""
        self.count += len(values)
        if self._sketch is not None:
            self._summarise(self._sketch, values)
            return
        self._kept.append(values.copy())
        if self.count * self.width > self.exact:
            self._forget()

    def merge(self, other: Pool) -> None:
        """Take in all that another pool of the same width has taken in, after one's own."""
        if other._sketch is None:
            for values in other._kept:
                self.add(values)
            return
        sketch = self._sketch or self._forget()
        self._combine(other.count, other._mean, other._squares, other._low, other._high, self.count)
        self.count += other.count
        sketch.merge(other._sketch)

    def describe(self) -> dict[str, Any]:
        """Statistics as `compute` gives them; the pool is not empty."""
        if self._sketch is None:
            return _describe(np.concatenate(self._kept))
        unknown = np.isnan(self._low)
        quantiles = {name: self._sketch.quantile(part) for name, part in QUANTILES.items()}
        return {
            "mean": self._mean.tolist(),
            "std": np.sqrt(self._squares / self.count).tolist(),
            "min": self._low.tolist(),
            "max": self._high.tolist(),
            **{name: np.where(unknown, np.nan, values).tolist() for name, values in quantiles.items()},
            "count": self.count,
            "rank_error": self._sketch.rank_error,
        }

    def _forget(self) -> Sketch:
        """Let a sketch take the place of the values."""
        self._sketch = sketch = Sketch(self.width)
        kept, self._kept, self.count = self._kept, [], 0
        for values in kept:
            self.count += len(values)
            self._summarise(sketch, values)
        return sketch

    def _summarise(self, sketch: Sketch, values: np.ndarray) -> None:
        """Take in rows, which `count` has counted already."""
        values = values.astype(np.float64)
        if len(values):
            mean = values.mean(0)
            squares = ((values - mean) ** 2).sum(0)
            before = self.count - len(values)
            self._combine(len(values), mean, squares, values.min(0), values.max(0), before)
            sketch.add(values)

    def _combine(self, n: int, mean: Any, squares: Any, low: Any, high: Any, before: int) -> None:
        """Means and squares of two sets together (Chan, Golub and LeVeque, 1979)."""
        difference = mean - self._mean
        self._mean = self._mean + difference * (n / (n + before))
        self._squares = self._squares + squares + difference**2 * (n * (before / (n + before)))
        self._low, self._high = np.minimum(self._low, low), np.maximum(self._high, high)

    def state(self) -> tuple[dict[str, Any], list[np.ndarray]]:
        """All it holds, as JSON and arrays."""
        facts: dict[str, Any] = {"width": self.width, "exact": self.exact, "count": self.count}
        if self._sketch is None:
            return facts, [np.concatenate([np.empty((0, self.width), self._kept[0].dtype), *self._kept])]
        facts |= {"thinned": self._sketch.thinned, "rows": self._sketch.rows}
        return facts, [np.stack([self._mean, self._squares, self._low, self._high]), *self._sketch.levels]

    @classmethod
    def of_state(cls, facts: Mapping[str, Any], arrays: list[np.ndarray]) -> Pool:
        """The pool that gave this state."""
        pool = cls(facts["width"], facts["exact"])
        pool.count = facts["count"]
        if "thinned" not in facts:
            pool._kept = arrays
            return pool
        (pool._mean, pool._squares, pool._low, pool._high), *levels = arrays
        pool._sketch = sketch = Sketch(pool.width, facts["rows"])
        sketch.count, sketch.levels, sketch.thinned = pool.count, levels, [list(counts) for counts in facts["thinned"]]
        return pool


class Pools:
    """The pools of all fields of some episodes."""

    def __init__(self, exact: int = EXACT) -> None:
        self._exact = exact
        self._pools: dict[str, Pool] = {}

    def add(self, steps: Mapping[str, np.ndarray]) -> None:
        """Take in an episode's fields, each (T, ...)."""
        for name, array in steps.items():
            rows = array.reshape(len(array), -1)
            self._pools.setdefault(name, Pool(rows.shape[1], self._exact)).add(rows)

    def merge(self, other: Pools) -> None:
        """Take in what others have taken in, after one's own."""
        for name, pool in other._pools.items():
            self._pools.setdefault(name, Pool(pool.width, self._exact)).merge(pool)

    def describe(self) -> Statistics:
        """Statistics of every field, as `compute` gives them."""
        return {name: self._pools[name].describe() for name in sorted(self._pools)}

    def save(self, path: Path, of: str) -> None:
        """Write them to a file; `of` is the checksum of the shard that they describe."""
        states = {name: pool.state() for name, pool in sorted(self._pools.items())}
        facts = {"of": of, "fields": [[name, one, len(arrays)] for name, (one, arrays) in states.items()]}
        arrays = [array for _, many in states.values() for array in many]
        with replacing(path) as partial, partial.open("wb") as file:
            np.savez(file, np.frombuffer(json.dumps(facts).encode(), np.uint8), *arrays)

    @classmethod
    def load(cls, path: Path, of: str) -> Pools | None:
        """Those of a shard with this checksum, or None where the file is missing, damaged or of another shard."""
        try:
            with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
                first, *arrays = [file[f"arr_{i}"] for i in range(len(file.files))]
            facts = json.loads(first.tobytes())
            if facts["of"] != of:
                return None
            pools = cls()
            for name, one, count in facts["fields"]:
                pools._pools[name] = Pool.of_state(one, arrays[:count])
                arrays = arrays[count:]
            return pools
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
            return None


def _describe(values: np.ndarray) -> dict[str, Any]:
    """Statistics of (n, k) values along n, in double precision."""
    values = values.astype(np.float64)
    result: dict[str, Any] = {
        "mean": values.mean(0).tolist(),
        "std": values.std(0).tolist(),
        "min": values.min(0).tolist(),
        "max": values.max(0).tolist(),
    }
    for name, quantile in QUANTILES.items():
        result[name] = np.quantile(values, quantile, axis=0).tolist()
    result["count"] = len(values)
    return result
