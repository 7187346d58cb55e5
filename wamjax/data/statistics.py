"""Exact statistics of the per-step fields, for normalisation.

Averages of per-episode quantiles, or quantiles of histograms, are not quantiles; so every value is kept (of
the step arrays only, not the videos: a few hundred bytes per step) and the quantiles are those of all.
"""

from collections.abc import Iterable, Mapping

import numpy as np

QUANTILES = {"q01": 0.01, "q99": 0.99}

Statistics = dict[str, dict[str, list[float] | int]]


def compute(episodes: Iterable[Mapping[str, np.ndarray]]) -> Statistics:
    """Statistics over all steps of all episodes.

    Args:
        episodes: the `steps` of each episode: field -> (T, ...) array.

    Returns:
        field -> {"mean", "std" (population), "min", "max", "q01", "q99": one number per element of the
        flattened step, "count": number of steps}. Booleans count as 0 and 1; NaN propagates.
    """
    columns: dict[str, list[np.ndarray]] = {}
    for steps in episodes:
        for name, array in steps.items():
            columns.setdefault(name, []).append(array.reshape(len(array), -1).copy())
    return {name: _describe(np.concatenate(columns.pop(name))) for name in sorted(columns)}


def _describe(values: np.ndarray) -> dict[str, list[float] | int]:
    """Statistics of (n, k) values along n, in double precision."""
    values = values.astype(np.float64)
    result: dict[str, list[float] | int] = {
        "mean": values.mean(0).tolist(),
        "std": values.std(0).tolist(),
        "min": values.min(0).tolist(),
        "max": values.max(0).tolist(),
    }
    for name, quantile in QUANTILES.items():
        result[name] = np.quantile(values, quantile, axis=0).tolist()
    result["count"] = len(values)
    return result
