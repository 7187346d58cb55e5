"""Statistics are those of numpy over all steps at once, whatever the order and the parts that they come in."""

import tracemalloc

import numpy as np
import pytest

from wamjax.data.statistics import NAMES, Summary, compute


def expected(values: np.ndarray) -> dict[str, np.ndarray]:
    """What numpy says of vectors (n, k)."""
    values = values.astype(np.float64)
    quantiles = {"q01": np.quantile(values, 0.01, axis=0), "q99": np.quantile(values, 0.99, axis=0)}
    return {
        "mean": values.mean(0),
        "std": values.std(0),
        "min": values.min(0),
        "max": values.max(0),
        **quantiles,
    }


def check(found: dict, values: np.ndarray) -> None:
    """Order statistics to the bit, sums as far as rounding lets them."""
    for name, numbers in expected(values).items():
        if name in ("mean", "std"):
            scale = np.abs(values).max(initial=1e-30)
            np.testing.assert_allclose(found[name], numbers, rtol=1e-12, atol=1e-14 * scale)
        else:
            np.testing.assert_array_equal(found[name], numbers)


def test_statistics_are_exact() -> None:
    rng = np.random.default_rng(0)
    lengths = [3, 1, 500, 47]
    episodes = [
        {
            "vector": (rng.standard_cauchy((n, 3)) * [1, 1e-3, 1e3] + [0, 5, 1e4]).astype(np.float32),
            "scalar": rng.integers(-1000, 1000, n),
            "flag": rng.random(n) > 0.3,
            "matrix": rng.normal(size=(n, 2, 2)),
        }
        for n in lengths
    ]
    result = compute(iter(episodes), sum(lengths))
    assert set(result) == {"vector", "scalar", "flag", "matrix"}
    for name, entry in result.items():
        assert entry["count"] == sum(lengths)
        check(entry, np.concatenate([e[name].reshape(n, -1) for e, n in zip(episodes, lengths, strict=True)]))


NASTY = {
    "constant": lambda rng, n: np.full(n, 0.1),
    "a gripper": lambda rng, n: (rng.random(n) > 0.985).astype(np.float64),
    "ties": lambda rng, n: rng.integers(0, 3, n).astype(np.float64),
    "heavy tails": lambda rng, n: rng.standard_cauchy(n) ** 3,
    "far from zero": lambda rng, n: 1e9 + rng.normal(size=n),
    "rising": lambda rng, n: np.arange(n, dtype=np.float64),
    "falling": lambda rng, n: -np.arange(n, dtype=np.float64),
}


@pytest.mark.parametrize("n", [1, 2, 99, 100, 101, 102, 30_000])
def test_any_distribution_in_any_parts(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rising values drop every earlier one from the upper tail, falling ones from the lower."""
    monkeypatch.setattr("wamjax.data.statistics._ROOM", 64)
    rng = np.random.default_rng(n)
    values = np.stack([draw(rng, n) for draw in NASTY.values()], axis=1)
    cuts = np.sort(rng.integers(0, n + 1, 7))
    parts = np.split(values, cuts)
    one, two, three = (Summary.of(n, values.shape[1]) for _ in range(3))
    for part in parts:
        one.add(part)
    for i, part in enumerate(parts):
        (two if i % 2 else three).add(part)
    two.merge(three)
    check(one.result(), values)
    check(two.result(), values)


def test_averaged_quantiles_of_episodes_would_be_wrong() -> None:
    still, moving = np.zeros((90, 1)), np.linspace(0, 100, 10)[:, None]
    found = compute([{"x": still}, {"x": moving}], 100)["x"]["q99"]
    average = np.mean([np.quantile(part, 0.99) for part in (still, moving)])
    assert found == [np.quantile(np.concatenate([still, moving]), 0.99)]
    assert abs(found[0] - average) > 30


def test_nan_shows_and_a_wrong_count_is_refused() -> None:
    found = compute([{"x": np.array([[1.0, np.nan], [2.0, 0.0]])}, {"x": np.zeros((1, 2))}], 3)["x"]
    for name in NAMES:
        assert not np.isnan(found[name][0])
        assert np.isnan(found[name][1])
    with pytest.raises(ValueError, match="2 vectors of 3"):
        compute([{"x": np.zeros((2, 1))}], 3)
    with pytest.raises(ValueError, match="different"):
        Summary.of(3, 1).merge(Summary.of(4, 1))


def test_memory_is_a_few_hundredths_of_the_values() -> None:
    n, rng = 2_000_000, np.random.default_rng(0)
    summary = Summary.of(n, 1)
    tracemalloc.start()
    for _ in range(n // 1000):
        summary.add(rng.random((1000, 1)))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert abs(summary.result()["q01"][0] - 0.01) < 1e-3
    assert most < 0.25 * 8 * n
