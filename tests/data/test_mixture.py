"""Mixtures of stores: what their batches hold, their statistics, frame rates, and what cannot be mixed."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from wamjax.data.episode import Episode
from wamjax.data.films import FilmConfig, film_batches
from wamjax.data.mixture import Mixture, of_split, open_stores
from wamjax.data.pipeline import DATASET, SAMPLE, Batch, ClipConfig, batches
from wamjax.data.store import EpisodeStore, finish, write_shard
from wamjax.data.video import encode
from wamjax.errors import UserError

CLIP = ClipConfig(cameras=("corner2",), frame_offsets=(0, 2), action_horizon=3)


def tokenize(text: str) -> np.ndarray:
    return np.array([len(text)])


@pytest.fixture(scope="module")
def other(make_store: Callable[..., Path], make_episode: Callable[..., Episode]) -> Path:
    return make_store([make_episode(20 + i, 6) for i in range(4)])


def take(store: EpisodeStore | Mixture, count: int, **options: object) -> list[Batch]:
    found: Iterator[Batch] = batches(
        store, CLIP, batch_size=5, seed=0, tokenize=tokenize, threads=1, numbered=True, **options
    )
    return list(itertools.islice(found, count))


def test_rows_come_from_the_datasets_by_their_weights(folder: Path, other: Path) -> None:
    mixture = open_stores([f"{folder}=3", f"{other}=2"])
    first, second = EpisodeStore(folder), EpisodeStore(other)
    assert len(mixture) == len(first) + len(second) == 12
    assert [mixture[i].metadata["seed"] for i in (0, 7, 8, 11)] == [0, 7, 20, 23]
    clips = int(first.lengths.sum())
    for batch in take(mixture, 12):
        assert sorted(batch[DATASET].tolist()) == [0, 0, 0, 1, 1]
        for dataset, number, state in zip(batch[DATASET], batch[SAMPLE], batch["state"], strict=True):
            starts = np.cumsum([0, *((first, second)[dataset].lengths)]) + clips * dataset
            episode = int(np.searchsorted(starts, number, side="right")) - 1
            assert state[:2].tolist() == [episode + 20 * dataset, number - starts[episode]]


def test_the_fingerprint_is_of_datasets_and_weights(folder: Path, other: Path) -> None:
    a, b = str(folder), str(other)
    prints = {open_stores(given).fingerprint for given in ([a], [f"{a}=1", b], [f"{a}=2", b], [b, a])}
    assert len(prints) == 4
    assert open_stores([f"{folder}=0.5"]).fingerprint == EpisodeStore(folder).fingerprint
    assert (
        open_stores([f"{folder}=0.5", f"{other}=0.25"]).fingerprint
        == open_stores([f"{folder}=2", f"{other}=1"]).fingerprint
    )


def test_other_splits_are_of_the_datasets_that_have_them(folder: Path, other: Path, episodes: list[Episode]) -> None:
    mixture = open_stores([str(folder), str(other)])
    validation = of_split(mixture, "validation")
    assert validation is not None
    assert len(validation) == 4
    assert of_split(mixture, "test") is None
    assert isinstance(of_split(EpisodeStore(folder), "validation"), EpisodeStore)


def test_statistics_count_each_dataset_by_its_weight(folder: Path, other: Path) -> None:
    def values(path: Path) -> np.ndarray:
        store = EpisodeStore(path)
        return np.concatenate([store[i].steps["action"] for i in range(len(store))]).astype(np.float64)

    a, b = values(folder), values(other)
    found = open_stores([f"{folder}=1", f"{other}=3"]).statistics["action"]
    # The same as of samples repeated until the weights hold.
    pooled = np.concatenate([np.repeat(a, len(b), axis=0), np.repeat(b, 3 * len(a), axis=0)])
    np.testing.assert_allclose(found["mean"], pooled.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found["std"], pooled.std(0), rtol=1e-12)
    assert found["max"] == pooled.max(0).tolist()
    for name, quantile in (("q01", 0.01), ("q99", 0.99)):
        exact = np.quantile(pooled, quantile, axis=0, method="inverted_cdf")
        np.testing.assert_array_equal(found[name], exact)
    assert found["count"] == len(a) + len(b)
    assert found.keys() == EpisodeStore(folder).statistics["action"].keys()


def test_what_cannot_be_mixed_is_one_line(
    tmp_path: Path, folder: Path, make_episode: Callable[..., Episode], make_scene: Callable[..., np.ndarray]
) -> None:
    episode = make_episode(0, 6)

    def store(name: str, changed: Episode) -> str:
        write_shard(tmp_path / name, "train", "0", [changed])
        finish(tmp_path / name)
        return str(tmp_path / name)

    larger = {"corner2": encode(make_scene(6, 0, 48), 20.0)}
    wide = store("wide", replace(episode, steps={**episode.steps, "action": np.ones((6, 7))}))
    big = store("big", replace(episode, videos=larger))
    slow = store("slow", replace(episode, metadata={**episode.metadata, "fps": 10.0}))
    silent = store("silent", replace(episode, steps={"observation/cartesian_position": np.ones((6, 3))}))
    for path, message in (
        (wide, "step field 'action' has 7 in .*wide, but 4 in"),
        (big, "camera 'corner2' has 48x48 pixels in .*big, but 32x32 pixels in"),
        (slow, r"steps per second \(see clip.fps\) has 10 in .*slow, but 20 in"),
        (silent, "no step field 'observation/gripper_position' in .*silent"),
        (str(tmp_path / "nothing"), "no dataset in .*nothing"),
    ):
        with pytest.raises(UserError, match=message):
            take(open_stores([str(folder), path]), 1)
    with pytest.raises(UserError, match="give positive numbers"):
        open_stores([f"{folder}=0", slow])
    at_ten = replace(CLIP, fps=10.0)
    mixed = batches(
        open_stores([str(folder), slow]), at_ten, batch_size=8, seed=1, tokenize=tokenize, threads=1, numbered=True
    )
    assert set(next(mixed)[DATASET].tolist()) == {0, 1}


def test_clips_of_another_rate_are_the_nearest_recorded_steps(folder: Path, episodes: list[Episode]) -> None:
    options = {"batch_size": 16, "seed": 0, "tokenize": tokenize, "threads": 1}
    for fps, frames, actions in ((10.0, [0, 4], [0, 2, 4]), (15.0, [0, 3], [0, 1, 3]), (20.0, [0, 2], [0, 1, 2])):
        batch = next(batches(EpisodeStore(folder), replace(CLIP, fps=fps), **options))
        plain = next(batches(EpisodeStore(folder), replace(CLIP, frame_offsets=tuple(frames)), **options))
        np.testing.assert_array_equal(batch["frames"], plain["frames"])
        np.testing.assert_array_equal(batch["state"], plain["state"])
        for state, taken, mask in zip(batch["state"], batch["actions"], batch["action_mask"], strict=True):
            recorded, step = episodes[int(state[0])].steps["action"], int(state[1])
            at = [step + offset for offset in actions]
            np.testing.assert_array_equal(taken, recorded[np.minimum(at, len(recorded) - 1)])
            assert mask.tolist() == [each < len(recorded) for each in at]


def test_films_in_buckets_have_one_length_per_step(folder: Path) -> None:
    configs = [FilmConfig("corner2", 2, 20.0), FilmConfig("corner2", 5, 20.0)]
    options = {"batch_size": 4, "seed": 0, "tokenize": tokenize, "threads": 1, "shares": (1, 2)}
    found = list(itertools.islice(film_batches(EpisodeStore(folder), configs, **options), 9))
    lengths = [batch["frames"].shape[2] for batch in found]
    assert sorted(lengths) == [2] * 3 + [5] * 6
    later = next(film_batches(EpisodeStore(folder), configs, start_step=4, **options))
    np.testing.assert_array_equal(later["frames"], found[4]["frames"])
