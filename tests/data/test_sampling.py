"""The order of samples: exact weights, and the same ids and keys however a run is split, read or interrupted."""

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import grain
import numpy as np
import pytest

from wamjax.data.pipeline import AUGMENTATION, DATASET, SAMPLE, Batch, Bucket, stream
from wamjax.data.sampling import Interleave, Order, shares
from wamjax.errors import UserError

SIZES = (4001, 2003, 997)  # samples of three datasets; the shuffle is slow for small ones
WEIGHTS = (0.5, 0.3, 0.2)
BATCH = 16
STEPS = 625  # 10,000 rows
FIRST = [0, *itertools.accumulate(SIZES)]


class Numbers:
    """Samples that are their numbers; the length of `ids` tells the bucket."""

    def __init__(self, name: int, clips: int, length: int = 1):
        self.store = SimpleNamespace(folder=f"dataset {name}")
        self.name, self.size, self.length = name, clips, length
        self.sizes: dict[str, Any] = {}

    @property
    def clips(self) -> int:
        return self.size

    def read(self, number: int, key: tuple[int, ...]) -> Batch:
        return {"ids": np.full(self.length, 10_000 * self.name + number)}

    def share(self, parts: int) -> None: ...


BUCKET = Bucket(tuple(Numbers(i, size) for i, size in enumerate(SIZES)), WEIGHTS)


def ids(
    processes: int = 1, start: int = 0, stop: int = STEPS, workers: int = 0, buckets: Sequence[Bucket] = (BUCKET,)
) -> np.ndarray:
    """Dataset, sample and key of every row in order, read by so many processes: (rows, 4)."""
    found = np.empty((stop - start, BATCH, 4), np.int64)
    for process in range(processes):
        rows = range(process, BATCH, processes)
        options = {"start_step": start, "rows": rows, "workers": workers, "numbered": True, "keyed": True}
        batches: Iterator[Batch] = stream(buckets, batch_size=BATCH, seed=7, threads=1, **options)
        for step in range(stop - start):
            batch = next(batches)
            found[step, list(rows)] = np.column_stack([batch[DATASET], batch[SAMPLE], batch[AUGMENTATION]])
        batches.close()
    return found.reshape(-1, 4)


@pytest.fixture(scope="module")
def alone() -> np.ndarray:
    return ids()


@pytest.mark.parametrize("processes", [2, 4, 8])
def test_ten_thousand_ids_and_keys_are_the_same_for_any_number_of_processes(alone: np.ndarray, processes: int) -> None:
    assert len(alone) == 10_000
    np.testing.assert_array_equal(ids(processes), alone)


@pytest.mark.parametrize("workers", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_ten_thousand_ids_and_keys_are_the_same_for_any_number_of_workers(alone: np.ndarray, workers: int) -> None:
    np.testing.assert_array_equal(ids(workers=workers), alone)


def test_going_on_elsewhere_with_other_processes_changes_nothing(alone: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    for before, after in ((2, 4), (8, 1)):
        step = int(rng.integers(1, STEPS))
        np.testing.assert_array_equal(np.concatenate([ids(before, 0, step), ids(after, step, STEPS)]), alone)


def test_weights_hold_at_every_moment_and_epochs_visit_every_sample_once(alone: np.ndarray) -> None:
    chosen = alone[:, 0]
    for dataset, weight in enumerate(WEIGHTS):
        counts = np.cumsum(chosen == dataset)
        assert np.abs(counts - weight * np.arange(1, len(chosen) + 1)).max() < 1
        own = alone[chosen == dataset, 1] - FIRST[dataset]
        size = SIZES[dataset]
        epochs = [own[i : i + size].tolist() for i in range(0, len(own) - size + 1, size)]
        assert epochs
        assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) == len(epochs)
    assert len(np.unique(alone[:, 2:], axis=0)) == len(alone)


@pytest.mark.parametrize(
    "weights", [(1,), (1, 1, 1), (0.7, 0.3), (5, 1, 1, 1, 3), (0.123, 0.456, 0.421), tuple(range(1, 30))]
)
def test_no_count_is_a_whole_choice_off(weights: tuple[float, ...]) -> None:
    interleave = Interleave(weights)
    total = sum(interleave.shares)
    counts = [0] * len(weights)
    for entry in range(3 * total + 5):
        choice, before = interleave[entry]
        assert before == counts[choice]
        counts[choice] += 1
        for count, share in zip(counts, interleave.shares, strict=True):
            assert abs(count - Fraction((entry + 1) * share, total)) < 1


def test_weights_are_ratios_of_whole_numbers() -> None:
    assert shares((0.7, 0.3)) == (7, 3)
    assert shares((2, 4.0)) == (1, 2)
    for wrong in ((), (1, 0), (1, -1), (float("nan"),), (1, 1e-9), (1 / 3, 1)):
        with pytest.raises(UserError, match="weights"):
            shares(wrong)


def test_a_step_has_one_bucket_and_its_shape_depends_on_the_step_alone() -> None:
    buckets = [Bucket((Numbers(0, 31, 1), Numbers(1, 17, 1)), (3, 1), share=2), Bucket((Numbers(2, 40, 5),), share=1)]
    found = list(itertools.islice(stream(buckets, batch_size=4, seed=1, numbered=True), 90))
    lengths = [batch["ids"].shape[1] for batch in found]
    assert lengths[:6] in ([1, 5, 1, 1, 5, 1], [1, 1, 5, 1, 1, 5], [1, 5, 1] * 2)
    assert Counter(lengths) == {1: 60, 5: 30}
    long = np.concatenate([batch[SAMPLE] for batch in found if batch["ids"].shape[1] == 5]) - 48
    assert [sorted(long[i : i + 40].tolist()) for i in (0, 40, 80)] == [list(range(40))] * 3
    assert Counter(np.concatenate([batch[DATASET] for batch in found]).tolist()) == {0: 180, 1: 60, 2: 120}
    later = next(stream(buckets, batch_size=4, seed=1, numbered=True, start_step=57, rows=(3,)))
    np.testing.assert_array_equal(later["ids"], found[57]["ids"][3:])


def test_one_dataset_has_the_order_that_it_had_before_there_were_mixtures() -> None:
    order, before = Order([[11]], [[1.0]], [1.0], 4, 3), grain.MapDataset.range(11).shuffle(seed=3)
    found = [order.sample(step, row)[2] for step in range(10) for row in range(4)]
    assert found == [before[position] for position in range(40)]
