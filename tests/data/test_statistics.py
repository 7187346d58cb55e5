"""Statistics are those of numpy over all steps at once."""

import numpy as np

from wamjax.data.statistics import compute


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
    result = compute(iter(episodes))
    assert set(result) == {"vector", "scalar", "flag", "matrix"}
    for name, entry in result.items():
        values = np.concatenate([e[name].reshape(n, -1) for e, n in zip(episodes, lengths, strict=True)])
        values = values.astype(np.float64)
        assert entry["count"] == sum(lengths)
        assert entry["min"] == values.min(0).tolist()
        assert entry["max"] == values.max(0).tolist()
        for key, expected in {
            "mean": values.mean(0),
            "std": values.std(0),
            "q01": np.quantile(values, 0.01, axis=0),
            "q99": np.quantile(values, 0.99, axis=0),
        }.items():
            np.testing.assert_allclose(entry[key], expected, rtol=1e-12)


def test_order_and_cut_into_episodes_do_not_matter() -> None:
    values = np.random.default_rng(1).normal(size=(100, 2)).astype(np.float32)
    whole = compute([{"x": values}])["x"]
    parts = compute({"x": part} for part in reversed(np.split(values, [10, 11, 60])))["x"]
    for key in whole:
        np.testing.assert_allclose(parts[key], whole[key], rtol=1e-9, atol=1e-12)
