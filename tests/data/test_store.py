"""The native store: what is written is read, and nothing unfinished or damaged passes for a dataset."""

import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from wamjax.data.episode import BadEpisode, Episode, pack
from wamjax.data.files import read_sealed, write_sealed
from wamjax.data.store import EpisodeStore, finish, finished_shard, write_shard
from wamjax.errors import UserError

KILLED_WRITER = """
import os, signal, sys
import numpy as np
from wamjax.data.episode import Episode
from wamjax.data.store import write_shard

def episodes():
    for i in range(5):
        if i == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        yield Episode(steps={"action": np.full((200_000, 4), i, np.float32)}, metadata={"fps": 10})

write_shard(sys.argv[1], "train", "a", episodes())
"""


def untouched() -> Iterator[Episode]:
    raise AssertionError("a finished shard must not ask for episodes")
    yield


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def test_round_trip(store: EpisodeStore, folder: Path, episodes: list[Episode]) -> None:
    assert len(store) == len(episodes)
    assert store.lengths.tolist() == [len(episode) for episode in episodes]
    for i in reversed(range(len(store))):
        assert pack(store[i]) == pack(episodes[i])
        assert store.metadata(i) == episodes[i].metadata
    assert store.name == "synthetic"
    assert store.fps == 20.0
    assert store.cameras == {"corner2": (32, 32), "gripperPOV": (32, 32)}
    assert store.fields["action"] == {"dtype": "float32", "shape": [4]}
    assert store.splits == ("train", "validation")
    assert len(EpisodeStore(folder, "validation")) == 2
    store.verify()
    for index in (-1, len(store)):
        with pytest.raises(IndexError):
            store[index]


def test_statistics_are_those_of_the_training_split(store: EpisodeStore, episodes: list[Episode]) -> None:
    actions = np.concatenate([episode.steps["action"] for episode in episodes]).astype(np.float64)
    entry = store.statistics["action"]
    np.testing.assert_allclose(entry["q99"], np.quantile(actions, 0.99, axis=0), rtol=1e-12)
    np.testing.assert_allclose(entry["std"], actions.std(0), rtol=1e-12)
    assert entry["count"] == len(actions)


def test_pickle_and_threads(store: EpisodeStore, episodes: list[Episode]) -> None:
    assert store[1].language == episodes[1].language  # opens a reader, which itself cannot be pickled
    copy = pickle.loads(pickle.dumps(store))
    order = np.random.default_rng(0).integers(len(store), size=400).tolist()
    with ThreadPoolExecutor(8) as pool:
        for i, episode in zip(order, pool.map(copy.__getitem__, order), strict=True):
            assert pack(episode) == pack(episodes[i])


def test_fingerprint_depends_on_data_only(
    make_store: Callable[..., Path], make_episode: Callable[..., Episode], store: EpisodeStore
) -> None:
    episodes = [make_episode(i, len(store[i])) for i in range(len(store))]
    assert EpisodeStore(make_store(episodes)).fingerprint == store.fingerprint
    episodes[4] = replace(episodes[4], language=("another",))
    assert EpisodeStore(make_store(episodes)).fingerprint != store.fingerprint


def test_finished_shard_is_kept(tmp_path: Path, episodes: list[Episode]) -> None:
    assert not finished_shard(tmp_path, "train", "0")
    first = write_shard(tmp_path, "train", "0", episodes)
    assert finished_shard(tmp_path, "train", "0")
    assert write_shard(tmp_path, "train", "0", untouched()) == first


def test_new_shard_makes_the_dataset_unfinished(tmp_path: Path, episodes: list[Episode]) -> None:
    write_shard(tmp_path, "train", "0", episodes[:2])
    with pytest.raises(UserError, match=r"unfinished dataset.*wamjax data collect"):
        EpisodeStore(tmp_path)
    finish(tmp_path)
    assert len(EpisodeStore(tmp_path)) == 2
    write_shard(tmp_path, "train", "1", episodes[2:])
    with pytest.raises(UserError, match="unfinished"):
        EpisodeStore(tmp_path)
    write_shard(tmp_path, "train", "2", [])  # a job none of whose episodes succeeded
    finish(tmp_path)
    assert len(EpisodeStore(tmp_path)) == len(episodes)


def test_failing_source_leaves_nothing(tmp_path: Path, episodes: list[Episode]) -> None:
    def source() -> Iterator[Episode]:
        yield from episodes[:3]
        raise RuntimeError("simulator lost")

    with pytest.raises(RuntimeError, match="simulator lost"):
        write_shard(tmp_path, "train", "0", source())
    assert list(tmp_path.iterdir()) == []


def test_killed_writer_leaves_nothing_that_looks_finished(tmp_path: Path, episodes: list[Episode]) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED_WRITER, tmp_path], cwd=Path(__file__).parents[2])
    assert killed.returncode == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == [".train-a.array_record.partial"]
    assert not finished_shard(tmp_path, "train", "a")
    with pytest.raises(UserError, match="unfinished"):
        EpisodeStore(tmp_path)
    write_shard(tmp_path, "train", "a", episodes)
    finish(tmp_path)
    assert len(EpisodeStore(tmp_path)) == len(episodes)
    assert not list(tmp_path.glob("*.partial"))


def test_shard_without_description_is_written_again(tmp_path: Path, episodes: list[Episode]) -> None:
    write_shard(tmp_path, "train", "0", episodes[:2])
    (tmp_path / "train-0.json").unlink()  # killed between the two
    assert not finished_shard(tmp_path, "train", "0")
    write_shard(tmp_path, "train", "0", episodes)
    assert finish(tmp_path)["splits"]["train"]["episodes"] == len(episodes)


def test_truncated_or_missing_shard(make_store: Callable[..., Path], episodes: list[Episode]) -> None:
    folder = make_store(episodes)
    shard = folder / "train-a-1.array_record"
    whole = shard.read_bytes()
    for size in (0, 1000, len(whole) // 2, len(whole) - 1):
        shard.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"train-a-1\.array_record is missing, cut short"):
            EpisodeStore(folder)
    shard.unlink()
    with pytest.raises(UserError, match="missing"):
        EpisodeStore(folder)
    assert len(EpisodeStore(folder, "validation")) == 2


def test_flipped_bits_are_noticed(make_store: Callable[..., Path], episodes: list[Episode]) -> None:
    folder = make_store(episodes)
    shard = folder / "train-a-1.array_record"
    whole = shard.read_bytes()
    at = whole.index(pack(episodes[5]))
    for position in np.random.default_rng(0).integers(at, at + len(pack(episodes[5])), 40).tolist():
        shard.write_bytes(whole)
        flip(shard, position)
        store = EpisodeStore(folder)
        with pytest.raises(BadEpisode, match="episode 5"):
            store[5]
        assert pack(store[6]) == pack(episodes[6])
        with pytest.raises(UserError, match="changed"):
            store.verify()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no device that is always full")
@pytest.mark.parametrize("file", ["train-0.array_record", "train-0.json", "statistics.json", "dataset.json"])
def test_full_disk(tmp_path: Path, episodes: list[Episode], file: str) -> None:
    (tmp_path / f".{file}.partial").symlink_to("/dev/full")

    def collect() -> None:
        write_shard(tmp_path, "train", "0", episodes)
        finish(tmp_path)

    with pytest.raises(UserError, match=f"disk of {tmp_path} is full"):
        collect()
    assert not (tmp_path / file).exists()
    collect()
    assert len(EpisodeStore(tmp_path)) == len(episodes)


def test_user_errors(tmp_path: Path, folder: Path, episodes: list[Episode]) -> None:
    with pytest.raises(UserError, match=f"no dataset in {tmp_path}/none: run `wamjax data collect --out"):
        EpisodeStore(tmp_path / "none")
    with pytest.raises(UserError, match=r"no split 'test' in .*: it has train, validation"):
        EpisodeStore(folder, "test")
    with pytest.raises(UserError, match="no episodes of split 'train'"):
        finish(tmp_path)
    for split, name in [("a-b", "0"), ("train", "../0"), ("", "0"), ("train", "a b")]:
        with pytest.raises(UserError, match="use letters"):
            write_shard(tmp_path, split, name, episodes)


def test_damaged_or_newer_dataset_file(make_store: Callable[..., Path], episodes: list[Episode]) -> None:
    folder = make_store(episodes)
    path = folder / "dataset.json"
    content = read_sealed(path)
    write_sealed(path, {**content, "format": 99})
    with pytest.raises(UserError, match="format 99"):
        EpisodeStore(folder)
    path.write_text(json.dumps(content))  # without a checksum, as it was written before
    assert EpisodeStore(folder).fingerprint == content["fingerprint"]
    path.write_text(json.dumps({key: value for key, value in content.items() if key != "fields"}))
    with pytest.raises(UserError, match="damaged"):
        EpisodeStore(folder)
    for damage in (path.read_text()[:50], "", "{}"):
        path.write_text(damage)
        with pytest.raises(UserError, match="damaged"):
            EpisodeStore(folder)


@pytest.mark.parametrize("name", ["dataset.json", "statistics.json", "train-a-0.json"])
def test_a_changed_digit_is_noticed(name: str, make_store: Callable[..., Path], episodes: list[Episode]) -> None:
    path = make_store(episodes) / name
    text = path.read_text()
    place = next(i for i in range(len(text) // 2, len(text)) if text[i].isdigit())
    path.write_text(text[:place] + str((int(text[place]) + 1) % 10) + text[place + 1 :])
    with pytest.raises(UserError, match=r"damaged|missing"):
        EpisodeStore(path.parent).statistics


def test_episodes_that_do_not_fit_together(tmp_path: Path, episodes: list[Episode]) -> None:
    slower = replace(episodes[0], metadata={"fps": 10})
    blind = replace(episodes[0], videos={})
    double = replace(episodes[0], steps={k: v.astype(np.float64) for k, v in episodes[0].steps.items()})
    for other in (slower, blind, double):
        with pytest.raises(BadEpisode, match="look alike"):
            write_shard(tmp_path, "train", "0", [episodes[1], other])
    for fps in (None, 0, -1, "fast"):
        with pytest.raises(BadEpisode, match="fps"):
            write_shard(tmp_path, "train", "0", [replace(episodes[0], metadata={"fps": fps})])
    write_shard(tmp_path, "train", "0", [episodes[0]])
    write_shard(tmp_path, "train", "1", [slower])
    with pytest.raises(UserError, match=r"train-1\.array_record .*delete the shards"):
        finish(tmp_path)
    assert os.listdir(tmp_path).count("dataset.json") == 0
