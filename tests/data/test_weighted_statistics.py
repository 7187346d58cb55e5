"""Statistics of mixtures are those of numpy with weights, whatever the weights, sizes and ties, in less memory."""

import math
import tracemalloc

import numpy as np
import pytest

from wamjax.data.statistics import Summary, mixed

DRAWS = {
    "normal": lambda rng, n: rng.normal(size=n),
    "ties": lambda rng, n: rng.integers(0, 4, n).astype(np.float64),
    "a gripper": lambda rng, n: (rng.random(n) > 0.985).astype(np.float64),
    "constant": lambda rng, n: np.full(n, 0.1),
    "heavy tails": lambda rng, n: rng.standard_cauchy(n) ** 3,
    "rising": lambda rng, n: np.arange(n, dtype=np.float64),
    "falling": lambda rng, n: -np.arange(n, dtype=np.float64),
}


def check(found: dict, parts: list[np.ndarray], shares: list[int]) -> None:
    """Order statistics to the bit, sums as far as rounding lets them.

    The weights are whole numbers here, whose sums are exact: with fractions it is numpy's rounding that decides where
    a value completes a quantile exactly.
    """
    values, whole = np.concatenate(parts).astype(np.float64), math.lcm(*map(len, parts))
    weights = np.concatenate([np.full(len(p), share * whole // len(p)) for p, share in zip(parts, shares, strict=True)])
    assert weights.sum() < 2**50
    for name, quantile in (("q01", 0.01), ("q99", 0.99)):
        at = np.quantile(values, quantile, axis=0, weights=weights, method="inverted_cdf")
        np.testing.assert_array_equal(found[name], at, err_msg=f"{name} {shares} {[len(part) for part in parts]}")
    mean = np.average(values, axis=0, weights=weights)
    std = np.sqrt(np.average((values - mean) ** 2, axis=0, weights=weights))
    scale = np.abs(values).max(0)
    np.testing.assert_array_less(np.abs(found["mean"] - mean), 1e-12 * scale + 1e-30)
    np.testing.assert_array_less(np.abs(found["std"] - std), 1e-12 * scale + 1e-30)
    np.testing.assert_array_equal(found["min"], values.min(0))
    np.testing.assert_array_equal(found["max"], values.max(0))


def cases():
    """Random ones; equal sizes and weights, where 1 % is complete at a value; one heavy and one light part."""
    rng = np.random.default_rng(0)
    for count in (2, 2, 2, 3, 3, 5):
        yield rng.integers(1, 700, count).tolist(), rng.integers(1, 50, count).tolist()
    yield from (([100, 100], [1, 1]), ([200, 100, 50], [4, 2, 1]), ([1, 1], [1, 99]), ([1, 1], [1, 100]))
    yield from (([3000, 40], [1, 999]), ([40, 3000], [999, 1]), ([3000, 41], [99, 1]), ([7, 2999], [1, 1]))


@pytest.mark.parametrize(("sizes", "shares"), cases())
def test_they_are_numpy_s(sizes: list[int], shares: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wamjax.data.statistics._ROOM", 64)
    rng = np.random.default_rng(sum(sizes))
    parts = [np.stack([draw(rng, n) for draw in DRAWS.values()], axis=1) for n in sizes]
    parts[0][:, 0] += 1
    one, two = (Summary.mixed(sizes, shares, len(DRAWS)) for _ in range(2))
    for number, part in enumerate(parts):
        for piece in np.array_split(part, rng.integers(1, 9)):
            one.add(piece, number)
    for number in reversed(range(len(parts))):  # in another order, and by two
        half = Summary.mixed(sizes, shares, len(DRAWS))
        half.add(parts[number], number)
        two.merge(half)
    check(one.result(), parts, shares)
    check(two.result(), parts, shares)


def test_fields_of_datasets() -> None:
    rng = np.random.default_rng(1)
    parts = [
        [{"x": rng.random((n, 2, 2)), "flag": rng.random(n) > 0.4} for n in lengths] for lengths in ((9, 80), (30,))
    ]
    found = mixed(parts, [89, 30], [3, 2])
    for name in ("x", "flag"):
        pooled = [np.concatenate([e[name].reshape(len(e[name]), -1) for e in part]) for part in parts]
        check(found[name], pooled, [3, 2])
        assert found[name]["count"] == 119


def test_nan_shows() -> None:
    found = mixed([[{"x": np.array([[1.0, np.nan], [2.0, 0.0]])}], [{"x": np.zeros((1, 2))}]], [2, 1], [1, 1])["x"]
    for name in ("mean", "std", "min", "max", "q01", "q99"):
        assert not np.isnan(found[name][0])
        assert np.isnan(found[name][1])


def test_memory_is_a_part_of_the_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wamjax.data.statistics._ROOM", 4096)
    sizes, rng = (350_000, 250_000, 150_000), np.random.default_rng(0)
    summary = Summary.mixed(sizes, (1, 2, 1), 8)
    tracemalloc.start()
    for part, size in enumerate(sizes):
        for _ in range(size // 1000):
            summary.add(rng.random((1000, 8)), part)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert abs(summary.result()["q01"][0] - 0.01) < 1e-3
    assert most < 0.15 * 8 * 8 * sum(sizes)
