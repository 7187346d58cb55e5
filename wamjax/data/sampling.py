"""The order of samples: which sample every row of every step is, as arithmetic on sizes, weights and a seed.

A step takes its rows from one bucket, a row from one dataset of the bucket, and both by weights that hold exactly:
after n choices, each was made n * weight times, give or take less than one. A dataset's samples come in epochs, each
with a shuffle of its own (Grain's index shuffle: no table of samples). So nothing has to be remembered between steps,
and any number of processes, threads and restarts finds the same samples.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from wamjax.errors import UserError

PERIOD = 100_000
"""Weights are ratios of whole numbers with a sum of at most this, which is when the choices begin anew."""


def shares(weights: Sequence[float]) -> tuple[int, ...]:
    """Weights as the smallest whole numbers of the same ratios; 0.7 is 7/10, not the binary number next to it.

    Raises:
        UserError: none, one that is not positive, or ratios finer than `PERIOD`.
    """
    if not weights or not all(math.isfinite(weight) and weight > 0 for weight in weights):
        raise UserError(f"weights {', '.join(map(str, weights)) or '(none)'}: give positive numbers")
    exact = [Fraction(str(weight)) for weight in weights]
    whole = math.lcm(*(one.denominator for one in exact))
    counts = [int(one * whole) for one in exact]
    divisor = math.gcd(*counts)
    counts = [count // divisor for count in counts]
    if sum(counts) > PERIOD:
        raise UserError(f"weights {', '.join(map(str, weights))} are finer than 1/{PERIOD}: round them")
    return tuple(counts)


class Interleave:
    """An endless sequence of choices among weighted things; entry n is (choice, how often it was made before).

    The k-th time that a thing of weight w comes, k = 0, 1, ..., is never before entry floor(k / w) and never after
    entry ceil((k + 1) / w) - 1. Taking whatever is due first keeps to that (the schedule of Baruah et al.,
    "Proportionate progress", 1996), and so no count is ever a whole entry off.
    """

    def __init__(self, weights: Sequence[float]):
        self.shares = shares(weights)
        period = sum(self.shares)
        self._choice = np.empty(period, np.int32)
        self._before = np.empty(period, np.int32)
        waiting = [(0, choice, 0) for choice in range(len(self.shares))]  # (first entry allowed, choice, times)
        ready: list[tuple[int, int, int]] = []  # (first entry too late, choice, times)
        for entry in range(period):
            while waiting and waiting[0][0] <= entry:
                _, choice, times = heapq.heappop(waiting)
                heapq.heappush(ready, (-(-(times + 1) * period // self.shares[choice]), choice, times))
            _, choice, times = heapq.heappop(ready)
            self._choice[entry], self._before[entry] = choice, times
            heapq.heappush(waiting, ((times + 1) * period // self.shares[choice], choice, times + 1))

    def __getitem__(self, entry: int) -> tuple[int, int]:
        rounds, place = divmod(entry, len(self._choice))
        choice = int(self._choice[place])
        return choice, rounds * self.shares[choice] + int(self._before[place])


class Order:
    """Which sample every row of every step is.

    Args:
        sizes: number of samples of every dataset of every bucket. weights: of the datasets, by bucket.
        buckets: weights of the buckets.
        batch_size: rows of a step.
        seed: of the shuffles, 0 .. 2**32 - 1.
    """

    def __init__(
        self,
        sizes: Sequence[Sequence[int]],
        weights: Sequence[Sequence[float]],
        buckets: Sequence[float],
        batch_size: int,
        seed: int,
    ):
        self._batch_size = batch_size
        self._steps = Interleave(buckets)
        self._rows = [Interleave(each) for each in weights]
        places = np.cumsum([0] + [len(each) for each in sizes])
        self._sizes = [list(each) for each in sizes]
        self._seeds = [
            [_own_seed(seed, int(first) + i) for i in range(len(each))]
            for first, each in zip(places, sizes, strict=False)
        ]

    def bucket(self, step: int) -> tuple[int, int]:
        """The bucket of a step, and how many steps had it before."""
        return self._steps[step]

    def sample(self, step: int, row: int) -> tuple[int, int, int]:
        """Bucket, dataset and sample of a row of a step."""
        bucket, turn = self._steps[step]
        dataset, entry = self._rows[bucket][turn * self._batch_size + row]
        epoch, place = divmod(entry, self._sizes[bucket][dataset])
        seed = (self._seeds[bucket][dataset] + epoch) % 2**32
        return bucket, dataset, _shuffled(place, self._sizes[bucket][dataset], seed)


def _own_seed(seed: int, place: int) -> int:
    """Of a dataset: those of equal size differ in their order."""
    return seed if place == 0 else int(np.random.SeedSequence((seed, place)).generate_state(1)[0])


def _shuffled(place: int, size: int, seed: int) -> int:
    """What stands at a place of 0 .. size - 1 in another order; what `grain.MapDataset.shuffle` does in an epoch."""
    import grain  # here, because configs import this room and grain takes seconds

    return int(grain.experimental.index_shuffle(place, max_index=size - 1, seed=seed, rounds=4))
