"""Exact quantiles of more numbers than memory holds: they are read several times instead of kept.

The number of a rank is found digit by digit, as a radix sort would: each reading counts, of the numbers that begin with
the digits known so far, how many have which digit next.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from jaxtyping import Float, Int, Num, UInt64

from wamjax.data.statistics import between

_DIGIT = 8  # bits
_CELLS = 1 << _DIGIT
_SIGN = np.uint64(1 << 63)


def of_read(
    read: Callable[[], Iterable[Num[np.ndarray, "n k"]]], count: int, shares: Sequence[float]
) -> Float[np.ndarray, "q k"]:
    """Quantiles of every number of `count` vectors, as `numpy.quantile` interpolates and rounds them; NaN propagates.

    Args:
        read: gives all vectors, some at a time; it is called eight times, and gives the same each time.
        shares: 0 .. 1, from the least number to the greatest.
    """
    return _interpolated(lambda ranks: _select(read, ranks), count, shares)


def of_counts(
    counts: Int[np.ndarray, "k b"], values: Float[np.ndarray, " b"], shares: Sequence[float]
) -> Float[np.ndarray, "q k"]:
    """The same of k numbers that took only some ascending values: how often each took which."""

    def select(ranks: Int[np.ndarray, " r"]) -> Float[np.ndarray, "r k"]:
        left = np.broadcast_to(ranks[:, None], (len(ranks), len(counts)))
        return values[_within(np.broadcast_to(counts, (len(ranks), *counts.shape)), left)[0]]

    return _interpolated(select, int(counts[0].sum()), shares)


def _interpolated(
    select: Callable[[Int[np.ndarray, " r"]], Float[np.ndarray, "r k"]], count: int, shares: Sequence[float]
) -> Float[np.ndarray, "q k"]:
    """Quantiles out of the numbers of some ranks."""
    places = np.array([(count - 1) * share for share in shares])
    below = np.floor(places).astype(int)
    ranks = np.unique([*below, *np.minimum(below + 1, count - 1), count - 1])
    found = select(ranks)
    low, high = (found[np.searchsorted(ranks, np.minimum(rank, count - 1))] for rank in (below, below + 1))
    return np.where(np.isnan(found[-1]), np.nan, between(low, high, (places - below)[:, None]))


def _select(
    read: Callable[[], Iterable[Num[np.ndarray, "n k"]]], ranks: Int[np.ndarray, " r"]
) -> Float[np.ndarray, "r k"]:
    """The numbers of ranks from below."""
    known, left = np.zeros((len(ranks), 1), np.uint64), ranks[:, None]
    for shift in range(64 - _DIGIT, -1, -_DIGIT):
        heads, which = np.unique(known, axis=0, return_inverse=True)  # neighbours begin alike
        found = (_counts(_ordered(values) >> np.uint64(shift), heads) for values in read())
        counts = functools.reduce(np.add, found)[which.ravel()]
        digits, left = _within(counts, np.broadcast_to(left, counts.shape[:2]))
        known = (known << np.uint64(_DIGIT)) | digits.astype(np.uint64)
    return np.where(known & _SIGN, known ^ _SIGN, ~known).view(np.float64)


def _ordered(values: Num[np.ndarray, "n k"]) -> UInt64[np.ndarray, "n k"]:
    """Integers that are ordered as the numbers are, NaN behind all others."""
    bits = np.where(np.isnan(values), np.nan, values).astype(np.float64).view(np.uint64)
    return np.where(bits & _SIGN, ~bits, bits ^ _SIGN)


def _counts(digits: UInt64[np.ndarray, "n k"], known: UInt64[np.ndarray, "r k"]) -> Int[np.ndarray, "r k b"]:
    """How many have which last digit, of those with the digits `known` before it."""
    size = digits.shape[1]
    cells = (digits & np.uint64(_CELLS - 1)).astype(np.int64) + _CELLS * np.arange(size)
    before = digits >> np.uint64(_DIGIT)
    counts = [np.bincount(cells[before == one], minlength=_CELLS * size) for one in known]
    return np.stack(counts).reshape(len(known), size, _CELLS)


def _within(counts: Int[np.ndarray, "r k b"], ranks: Int[np.ndarray, "r k"]) -> tuple[np.ndarray, np.ndarray]:
    """Which cell each rank falls into, and which rank it has there."""
    ends = counts.cumsum(-1)
    cells = (ends <= ranks[..., None]).sum(-1)
    return cells, ranks - np.take_along_axis(ends - counts, cells[..., None], -1)[..., 0]
