"""Statistics are those of numpy over all steps at once, or as near to them as they say."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from wamjax.data.episode import Episode
from wamjax.data.sketch import Sketch
from wamjax.data.statistics import Pool, Pools, compute
from wamjax.data.store import EpisodeStore, finish, write_shard


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
        assert list(entry) == ["mean", "std", "min", "max", "q01", "q99", "count"]
        assert entry["count"] == sum(lengths)
        for key, expected in {
            "min": values.min(0),
            "max": values.max(0),
            "mean": values.mean(0),
            "std": values.std(0),
            "q01": np.quantile(values, 0.01, axis=0),
            "q99": np.quantile(values, 0.99, axis=0),
        }.items():
            assert entry[key] == expected.tolist()  # to the bit: checkpoints keep these numbers


def test_order_and_cut_into_episodes_do_not_matter() -> None:
    values = np.random.default_rng(1).normal(size=(100, 2)).astype(np.float32)
    whole = compute([{"x": values}])["x"]
    parts = compute({"x": part} for part in reversed(np.split(values, [10, 11, 60])))["x"]
    for key in whole:
        np.testing.assert_allclose(parts[key], whole[key], rtol=1e-9, atol=1e-12)


def nasty(n: int) -> np.ndarray:
    """Columns that are constant, binary, sorted both ways, tied, heavy-tailed, nearly all one value."""
    rng = np.random.default_rng(0)
    columns = [
        np.full(n, 0.1),
        rng.random(n) < 0.013,
        np.arange(n),
        -np.arange(n),
        rng.normal(size=n).round(1),
        rng.standard_cauchy(n),
        np.where(rng.random(n) < 0.005, rng.normal(size=n) * 1e6, 0),
        np.tile([0, 1e9, -1e9, 1], n // 4),
    ]
    return np.stack(columns, axis=1).astype(np.float64)


def assert_within(values: np.ndarray, found: np.ndarray, part: float, error: float) -> None:
    """`found` has a rank of `part` among the values, but for `error` (of ties, one rank is enough)."""
    assert ((values < found).mean(0) <= part + error).all()
    assert ((values <= found).mean(0) >= part - error).all()


@pytest.mark.parametrize("shuffled", [False, True])
def test_ranks_are_off_by_no_more_than_the_sketch_says(shuffled: bool) -> None:
    values = nasty(100_000)
    if shuffled:
        values = values[np.random.default_rng(1).permutation(len(values))]
    sketch = Sketch(values.shape[1], rows=64)
    for part in np.array_split(values, 300):
        sketch.add(part)
    assert 0 < sketch.rank_error < (len(sketch.levels) + 1) / (4 * 64)
    for part in (0.0, 0.01, 0.5, 0.99, 1.0):
        assert_within(values, sketch.quantile(part), part, sketch.rank_error)
    assert sum(len(level) for level in sketch.levels) < 2 * 64 * len(sketch.levels)


def test_sketches_of_parts_are_one_of_the_whole() -> None:
    values, whole = nasty(60_000), Sketch(8, rows=64)
    for part in np.split(values, [100, 40_000, 40_001]):
        one = Sketch(8, rows=64)
        one.add(part)
        whole.merge(one)
    assert whole.count == len(values)
    assert whole.rank_error < 0.06
    for part in (0.01, 0.99):
        assert_within(values, whole.quantile(part), part, whole.rank_error)


def test_averages_of_quantiles_are_no_quantiles() -> None:
    """What merging is for: episodes differ, and their quantiles do not average to that of all."""
    episodes = [np.full((1000, 1), float(i)) + np.linspace(0, 0.1, 1000)[:, None] for i in range(50)]
    everything = np.concatenate(episodes)
    averaged = np.mean([np.quantile(episode, 0.99) for episode in episodes])
    assert (everything <= averaged).mean() < 0.6
    pool = Pool(1, exact=0)
    for episode in episodes:
        part = Pool(1, exact=0)
        part.add(episode)
        pool.merge(part)
    found = pool.describe()
    assert_within(everything, np.array(found["q99"]), 0.99, found["rank_error"])
    np.testing.assert_allclose(found["mean"], everything.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found["std"], everything.std(0), rtol=1e-12)
    assert (found["min"], found["max"], found["count"]) == ([0.0], [49.1], 50_000)


def test_memory_does_not_grow() -> None:
    pools, rng = Pools(exact=1000), np.random.default_rng(0)
    held = []
    for _ in range(40):
        pools.add({"x": rng.normal(loc=5, size=(20_000, 2))})
        held.append(sum(array.nbytes for array in pools._pools["x"].state()[1]))
    assert max(held) < 8 * 2 * (2 << 13) * 7
    entry = pools.describe()["x"]
    assert entry["count"] == 800_000
    assert 0 < entry["rank_error"] < 3e-4
    np.testing.assert_allclose(entry["q99"], 5 + 2.3263, atol=0.02)
    np.testing.assert_allclose(entry["std"], 1, atol=0.01)


def test_nan_propagates_at_any_size() -> None:
    values = np.ones((100, 2), np.float32)
    values[50, 1] = np.nan
    for exact in (10, 1000):
        pools = Pools(exact)
        pools.add({"x": values})
        entry = pools.describe()["x"]
        for key in ("mean", "std", "min", "max", "q01", "q99"):
            assert np.isnan(entry[key]).tolist() == [False, True], key


@pytest.mark.parametrize("exact", [10, 10**6])
def test_pools_come_back_from_files(tmp_path: Path, exact: int) -> None:
    rng, parts = np.random.default_rng(0), []
    for i in range(3):
        pools = Pools(exact)
        pools.add({"a/b": rng.normal(size=(30_000, 2)).astype(np.float32), "flag": rng.random(30_000) > 0.5})
        pools.save(tmp_path / f"{i}.npz", of="shard")
        parts.append(pools)
    read = [Pools.load(tmp_path / f"{i}.npz", of="shard") for i in range(3)]
    for first, *others in (parts, read):
        for other in others:
            first.merge(other)
    assert parts[0].describe() == read[0].describe()
    assert ("rank_error" in parts[0].describe()["flag"]) == (exact == 10)
    assert Pools.load(tmp_path / "0.npz", of="another shard") is None
    data = (tmp_path / "0.npz").read_bytes()
    (tmp_path / "0.npz").write_bytes(data[: len(data) // 2])
    assert Pools.load(tmp_path / "0.npz", of="shard") is None


def test_a_store_is_finished_without_reading_its_shards(
    tmp_path: Path, make_episode: Callable[..., Episode], monkeypatch: pytest.MonkeyPatch
) -> None:
    episodes = [replace(make_episode(i, 6), videos={}) for i in range(4)]
    for name in ("a", "b"):
        write_shard(tmp_path, "train", name, episodes[:2] if name == "a" else episodes[2:])
    expected = compute(episode.steps for episode in episodes)

    def refuse(*arguments: object) -> None:
        raise AssertionError("a shard is read")

    with monkeypatch.context() as patch:
        patch.setattr(EpisodeStore, "_reader", refuse)
        finish(tmp_path)
    assert EpisodeStore(tmp_path).statistics == expected
    next(tmp_path.glob("train-b.statistics.npz")).unlink()  # as stores of earlier versions lack them
    finish(tmp_path)
    assert EpisodeStore(tmp_path).statistics == expected
