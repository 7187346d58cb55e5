"""Batches: their content, and that they are a pure function of the step."""

import itertools
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from wamjax.data.episode import Episode, Video, pack
from wamjax.data.pipeline import Batch, ClipConfig, batches
from wamjax.data.store import EpisodeStore, finish, write_shard
from wamjax.data.video import decode
from wamjax.errors import UserError

CLIP = ClipConfig(cameras=("gripperPOV", "corner2"), frame_offsets=(0, 2, 5), action_horizon=4)


def tokenize(text: str) -> np.ndarray:
    return np.array([len(text), sum(text.encode())])


def take(store: EpisodeStore, count: int, clip: ClipConfig = CLIP, **options: object) -> list[Batch]:
    options = {"batch_size": 8, "seed": 3, "threads": 1, **options}
    return list(itertools.islice(batches(store, clip, tokenize=tokenize, **options), count))


def assert_same(a: list[Batch], b: list[Batch]) -> None:
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x.keys() == y.keys()
        for name in x:
            np.testing.assert_array_equal(x[name], y[name], strict=True)


def clips(found: list[Batch]) -> list[tuple[int, int]]:
    """(episode, step) of every row, which the synthetic states hold."""
    return [(int(row[0]), int(row[1])) for batch in found for row in batch["state"]]


def test_every_clip_is_what_the_episode_holds(store: EpisodeStore, episodes: list[Episode]) -> None:
    pictures = [[decode(e.videos[camera]) for camera in CLIP.cameras] for e in episodes]
    clip = replace(CLIP, frame_offsets=(-3, 0, 2, 5))
    for batch in take(store, 14, clip):
        shapes = {name: (array.dtype.name, array.shape) for name, array in batch.items()}
        assert shapes == {
            "frames": ("uint8", (8, 2, 4, 32, 32, 3)),
            "frame_mask": ("bool", (8, 4)),
            "state": ("float32", (8, 4)),
            "actions": ("float32", (8, 4, 4)),
            "action_mask": ("bool", (8, 4)),
            "language": ("float32", (8, 2)),
        }
        for row, (index, step) in enumerate(clips([batch])):
            episode, last = episodes[index], len(episodes[index]) - 1
            assert batch["state"][row, 3] == episode.steps["observation/gripper_position"][step, 0]
            assert batch["language"][row].tolist() == tokenize(episode.language[0]).tolist()
            for k in range(4):
                expected = episode.steps["action"][min(step + k, last)]
                np.testing.assert_array_equal(batch["actions"][row, k], expected)
                assert batch["action_mask"][row, k] == (step + k <= last)
            for t, offset in enumerate(clip.frame_offsets):
                nearest = min(max(step + offset, 0), last)
                assert batch["frame_mask"][row, t] == (nearest == step + offset)
                for view in range(2):
                    shown = batch["frames"][row, view, t]
                    np.testing.assert_array_equal(shown, pictures[index][view][nearest])


def test_each_epoch_visits_each_clip_once_in_another_order(store: EpisodeStore) -> None:
    total = int(store.lengths.sum())
    everything = sorted((i, t) for i, length in enumerate(store.lengths) for t in range(length))
    found = clips(take(store, 3, batch_size=total))
    epochs = [found[i * total : (i + 1) * total] for i in range(3)]
    assert all(sorted(epoch) == everything for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert clips(take(store, 1, batch_size=total, seed=4)) != epochs[0]
    # Batches that do not divide the epoch, or exceed it, continue the same order.
    assert clips(take(store, 30, batch_size=5))[: 2 * total] == found[: 2 * total]
    assert clips(take(store, 1, batch_size=2 * total + 7)) == found[: 2 * total + 7]


@pytest.mark.parametrize("start", [1, 5, 6, 7, 19])
def test_resuming_is_no_interruption(store: EpisodeStore, start: int) -> None:
    assert_same(take(store, 3, start_step=start), take(store, start + 3)[start:])


@pytest.mark.parametrize("processes", [2, 4])
def test_rows_of_all_processes_are_the_global_batch(store: EpisodeStore, processes: int) -> None:
    parts = [take(store, 9, rows=range(p, 8, processes)) for p in range(processes)]
    joined = [
        {k: np.concatenate(np.stack([p[k] for p in parts_of_step], axis=1)) for k in parts_of_step[0]}
        for parts_of_step in zip(*parts, strict=True)
    ]
    assert_same(joined, take(store, 9))


OPTIONS = [{"threads": 4}, {"threads": 13}, {"cache_bytes": 0}, {"cache_bytes": 200_000}]


@pytest.mark.parametrize("options", OPTIONS)
def test_threads_and_cache_do_not_matter(store: EpisodeStore, options: dict) -> None:
    assert_same(take(store, 12, **options), take(store, 12))


def test_zero_images(store: EpisodeStore) -> None:
    blind, seeing = take(store, 2, replace(CLIP, images="zero")), take(store, 2)
    assert all(not batch["frames"].any() for batch in blind)
    assert_same(blind, [{**batch, "frames": np.zeros_like(batch["frames"])} for batch in seeing])


def test_one_of_several_instructions_is_drawn(
    make_store: Callable[..., Path], make_episode: Callable[..., Episode]
) -> None:
    languages = [("short", "a longer one"), (), ("only",)]
    store = EpisodeStore(make_store([make_episode(i, 6, language=languages[i % 3]) for i in range(6)]))
    found = take(store, 20)
    assert_same(found, take(store, 20, threads=3))
    seen: dict[int, set[float]] = {}
    for (index, _), row in zip(clips(found), np.concatenate([b["language"] for b in found]), strict=True):
        seen.setdefault(index % 3, set()).add(float(row[0]))
    assert seen == {0: {5.0, 12.0}, 1: {0.0}, 2: {4.0}}


def test_state_is_optional(store: EpisodeStore) -> None:
    assert take(store, 1, replace(CLIP, state=()))[0]["state"].shape == (8, 0)


def damaged_store(
    make_store: Callable[..., Path], episodes: list[Episode], bad: dict[int, Callable[[bytes], bytes]]
) -> EpisodeStore:
    """A dataset whose checksums hold although some episodes' videos were damaged before they were written."""
    broken = list(episodes)
    for index, damage in bad.items():
        video = broken[index].videos["corner2"]
        videos = {**broken[index].videos, "corner2": replace(video, data=damage(video.data))}
        broken[index] = replace(broken[index], videos=videos)
    return EpisodeStore(make_store(broken))


def late_damage(data: bytes) -> bytes:
    """Destroys the end of the pictures' bytes, so that the first frames can still be decoded."""
    start = data.index(b"mdat") + 4
    end = start - 8 + int.from_bytes(data[start - 8 : start - 4], "big")
    cut = end - (end - start) // 8
    return data[:cut] + b"\xff" * (end - cut) + data[end:]


BAD = {1: lambda data: data[: len(data) // 2], 3: late_damage, 6: lambda data: b"no video"}


def test_bad_videos_are_redrawn_deterministically(
    make_store: Callable[..., Path],
    episodes: list[Episode],
    store: EpisodeStore,
    caplog: pytest.LogCaptureFixture,
) -> None:
    damaged = damaged_store(make_store, episodes, BAD)
    with caplog.at_level(logging.WARNING):
        found = take(damaged, 8)
    assert "is replaced by clip" in caplog.text
    for options in ({"threads": 5}, {"cache_bytes": 0}, {"cache_bytes": 100_000}):
        assert_same(take(damaged, 8, **options), found)
    assert_same(take(damaged, 3, start_step=5), found[5:])
    expected, drawn = clips(take(store, 8)), clips(found)
    assert not {1, 6} & {index for index, _ in drawn}
    assert 3 in {index for index, _ in drawn}  # the undamaged part of the video is still used
    changed = [(a, b) for a, b in zip(expected, drawn, strict=True) if a != b]
    assert changed
    assert {index for (index, _), _ in changed} <= set(BAD)


def test_dataset_of_bad_videos_only(make_store: Callable[..., Path], episodes: list[Episode]) -> None:
    everything = range(len(episodes))
    damaged = damaged_store(make_store, episodes, dict.fromkeys(everything, lambda data: b"no video"))
    with pytest.raises(UserError, match="damaged clips in a row"):
        take(damaged, 1)
    assert len(take(damaged, 1, replace(CLIP, images="zero"))) == 1


def test_fuzzed_records_are_redrawn(tmp_path: Path, episodes: list[Episode]) -> None:
    """Records of arbitrary bytes behind valid checksums, as a faulty converter would write them."""
    write_shard(tmp_path, "train", "0", episodes)
    finish(tmp_path)
    rng = np.random.default_rng(0)
    records = [pack(episode) for episode in episodes]
    records[0] = records[0][:100]
    records[2] = rng.bytes(500)
    records[3] = b""
    records[4] = pack(episodes[5])  # a valid record in the wrong place
    records[6] = pack(replace(episodes[6], videos={"corner2": Video(b"", len(episodes[6]), 32, 32)}))
    shard = tmp_path / "train-0.array_record"
    writer = ArrayRecordWriter(str(shard), "group_size:1,uncompressed")
    for record in records:
        writer.write(record)
    writer.close()
    sidecar = shard.with_suffix(".json")
    sidecar.write_text(json.dumps({**json.loads(sidecar.read_text()), "bytes": shard.stat().st_size}))
    found = take(EpisodeStore(tmp_path), 14)
    assert {index for index, _ in clips(found)} == {1, 5, 7}
    assert_same(found, take(EpisodeStore(tmp_path), 14, threads=4, cache_bytes=0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cameras": ("wrist",)}, "no camera 'wrist' in .*: choose among corner2, gripperPOV"),
        ({"action": "torque"}, "no step field 'torque' in .*: choose among action, "),
        ({"state": ("action", "pose")}, "no step field 'pose'"),
    ],
)
def test_what_the_dataset_lacks(store: EpisodeStore, change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        take(store, 1, replace(CLIP, **change))


IMPOSSIBLE = [{"images": "swap"}, {"cameras": ()}, {"frame_offsets": ()}, {"action_horizon": 0}]


@pytest.mark.parametrize("change", IMPOSSIBLE)
def test_impossible_clips(change: dict) -> None:
    with pytest.raises(UserError):
        replace(CLIP, **change)


OUT_OF_RANGE = [{"batch_size": 0}, {"start_step": -1}, {"seed": -1}, {"rows": range(0)}, {"rows": range(8, 16)}]


@pytest.mark.parametrize("options", OUT_OF_RANGE)
def test_impossible_batches(store: EpisodeStore, options: dict) -> None:
    with pytest.raises(UserError, match="ask for rows of the batch"):
        take(store, 1, **options)


def test_cameras_of_different_size(tmp_path: Path, episodes: list[Episode]) -> None:
    wide = replace(episodes[0].videos["corner2"], width=48)
    videos = {**episodes[0].videos, "corner2": wide}
    write_shard(tmp_path, "train", "0", [replace(episodes[0], videos=videos)])
    finish(tmp_path)
    with pytest.raises(UserError, match="differ in size"):
        take(EpisodeStore(tmp_path), 1)


class CountingStore(EpisodeStore):
    """Remembers which episodes were read."""

    def __getitem__(self, index: int) -> Episode:
        vars(self).setdefault("read", []).append(index)
        return super().__getitem__(index)


def test_each_episode_is_read_once_while_the_cache_has_room(folder: Path) -> None:
    store = CountingStore(folder)
    take(store, 30)
    assert sorted(store.read) == list(range(len(store)))
    assert len(take(store, 30, cache_bytes=0)) == 30
    assert len(store.read) >= len(store) + 30 * 8


def test_cache_stays_within_its_bounds(store: EpisodeStore) -> None:
    from wamjax.data.pipeline import ClipReader

    bound = 20 * 2 * 32 * 32 * 3
    reader = ClipReader(store, CLIP, tokenize, bound)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: reader.read(number % reader.clips, (0,)), range(4 * reader.clips)))
    held = sum(s.frames.nbytes + s.state.nbytes + s.actions.nbytes for s in reader._cache.values())
    assert bound / 2 < held <= bound
    assert reader._room == bound - held


def test_abandoned_iterators_end_their_threads(store: EpisodeStore) -> None:
    def use() -> Iterator[Batch]:
        source = batches(store, CLIP, batch_size=4, seed=0, tokenize=tokenize, threads=3)
        next(source)
        return source

    before = threading.active_count()
    for _ in range(5):
        use()
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert threading.active_count() <= before
