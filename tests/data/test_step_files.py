"""Whoever wants numbers only gets them without a video being read, and gets the same ones otherwise."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import synthetic_episode
from wamjax.data import step_files
from wamjax.data.convert import to_store
from wamjax.data.episode import Episode
from wamjax.data.mixture import Mixture
from wamjax.data.opened import OpenedStore
from wamjax.data.readers import open_source
from wamjax.data.store import EpisodeStore, finish, finished_shard, write_shard
from wamjax.data.video import encode


def same(found: list[step_files.Steps], episodes: list[Episode]) -> bool:
    """Whether these are the episodes' arrays, types included."""
    for steps, episode in zip(found, episodes, strict=True):
        assert sorted(steps) == sorted(episode.steps)
        for name, values in episode.steps.items():
            np.testing.assert_array_equal(steps[name], values)
            assert steps[name].dtype == values.dtype
    return True


def test_a_store_is_finished_and_described_without_reading_records(
    make_store: Callable[..., Path], episodes: list[Episode], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_store(episodes)
    before = (folder / "statistics.json").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(EpisodeStore, "__getitem__", lambda *_: pytest.fail("a record is read"))
        finish(folder, name="synthetic")
        assert same(list(EpisodeStore(folder).all_steps()), episodes)
        assert same(list(EpisodeStore(folder, "validation").all_steps()), episodes[:2])
    for path in folder.glob(f"*{step_files.SUFFIX}"):  # as stores of earlier versions have none
        path.unlink()
    finish(folder, name="synthetic")
    assert (folder / "statistics.json").read_bytes() == before
    assert same(list(EpisodeStore(folder).all_steps()), episodes)


@pytest.mark.parametrize("seed", range(12))
def test_damaged_files_are_not_used(make_store: Callable[..., Path], episodes: list[Episode], seed: int) -> None:
    folder, rng = make_store(episodes), np.random.default_rng(seed)
    path = folder / f"train-a-0{step_files.SUFFIX}"
    data = bytearray(path.read_bytes())
    if seed % 3:
        for place in rng.integers(0, len(data), 3):
            data[place] ^= int(rng.integers(1, 256))
        path.write_bytes(data)
    else:
        path.write_bytes(data[: rng.integers(0, len(data))])
    assert same(list(EpisodeStore(folder).all_steps()), episodes)


def test_files_of_another_shard_are_not_used(make_store: Callable[..., Path], episodes: list[Episode]) -> None:
    folder = make_store(episodes)
    (folder / f"train-a-1{step_files.SUFFIX}").replace(folder / f"train-a-0{step_files.SUFFIX}")
    assert same(list(EpisodeStore(folder).all_steps()), episodes)


def test_episodes_without_steps(tmp_path: Path, make_scene: Callable[..., np.ndarray]) -> None:
    video = encode(make_scene(5, seed=0), 10)
    write_shard(tmp_path, "train", "a", [Episode({}, {"front": video}, metadata={"fps": 10})] * 2)
    finish(tmp_path)
    assert list(EpisodeStore(tmp_path).all_steps()) == [{}, {}]
    assert not list(tmp_path.glob(f"*{step_files.SUFFIX}"))


def test_steps_of_other_formats_and_of_mixtures(tmp_path: Path) -> None:
    sample = Path(__file__).parent / "samples" / "lerobot30"
    to_store(open_source(sample), tmp_path)
    native, opened = EpisodeStore(tmp_path), OpenedStore(sample)
    episodes = [native[i] for i in range(len(native))]
    assert same(list(opened.all_steps()), episodes)
    assert same(list(Mixture([opened, native], [1, 1]).all_steps()), episodes * 2)


def test_a_shard_is_not_finished_before_its_steps_are_there(tmp_path, monkeypatch):
    """A kill in between leaves work to do, and the next attempt the same files."""

    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("wamjax.data.step_files.write", killed)
        write_shard(tmp_path / "again", "train", "one", [synthetic_episode(0)])
    assert not finished_shard(tmp_path / "again", "train", "one")
    for name in ("again", "once"):
        write_shard(tmp_path / name, "train", "one", [synthetic_episode(0)])
    first, second = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("again", "once"))
    assert first == second
    assert any(name.endswith(".steps.npz") for name in first)
