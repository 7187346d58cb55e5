"""Confidence intervals of success rates."""

from __future__ import annotations


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion; with no trials it is (0, 1).

    Unlike the normal approximation it stays inside [0, 1] and is not empty at 0 or n successes (Wilson 1927,
    JASA 22, 209).
    """
    from scipy.stats import binomtest

    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}")
    if n == 0:
        return 0.0, 1.0
    interval = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)
