"""Chunks: the original's sampling rule, the content of batches, and that they are a pure function of the step.

`ORIGINAL` holds what the original methods (`get_state`, `get_action`, `_uniform_sample_from_language_ranges` of
dreamzero @ab790c1) chose in some of 6000 random cases, all of which `anchors` repeats: length, step, max_chunks, steps
at which the task changes, first steps of the chunks.
"""

import itertools
import logging
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from wamjax.data.chunks import ChunkConfig, ChunkReader, anchors, around, chunk_batches, start_steps
from wamjax.data.embodiments import Embodiment, Field, load
from wamjax.data.episode import Episode
from wamjax.data.pipeline import Batch, ClipConfig, batches
from wamjax.data.store import EpisodeStore
from wamjax.data.video import decode, encode
from wamjax.errors import UserError

ORIGINAL = [
    (221, 140, 3, [], [116, 140, 164]),
    (203, 113, 3, [], [89, 113, 137]),
    (98, 70, 5, [], [22, 46, 70]),
    (105, 103, 4, [], [7, 31, 55, 79]),
    (114, 52, 4, [], [4, 28, 52, 76]),
    (153, 122, 5, [], [26, 50, 74, 98, 122]),
    (208, 41, 3, [], [17, 41, 65]),
    (177, 97, 3, [71], [73, 97, 121]),
    (34, 2, 2, [], [2]),
    (78, 61, 5, [8, 72], [13, 37]),
    (65, 56, 5, [11], [32]),
    (86, 44, 2, [32, 39], [44]),
    (59, 26, 5, [], [2, 26]),
    (251, 36, 1, [], [36]),
    (174, 51, 4, [38, 70, 101], [51]),
    (105, 88, 4, [31, 52], [64]),
    (23, 10, 5, [], []),
    (76, 54, 1, [8, 37], []),
    (140, 120, 2, [11, 82, 110], []),
    (115, 105, 5, [83], []),
    (54, 45, 5, [10, 16, 32], []),
    # The last step at which 24 actions fit: its chunk lacks the closing frame, and its place stays empty.
    (96, 72, 4, [], [0, 24, 48]),
    (120, 96, 4, [], [24, 48, 72]),
    (24, 0, 4, [], []),
    (25, 0, 4, [], [0]),
]


@pytest.mark.parametrize(("length", "step", "most", "changes", "expected"), ORIGINAL)
def test_the_original_rule(length: int, step: int, most: int, changes: list[int], expected: list[int]) -> None:
    annotation = np.zeros(length, int)
    annotation[changes] = 1
    assert anchors(length, step, ChunkConfig(most), np.cumsum(annotation)).tolist() == expected
    if not changes:
        assert anchors(length, step, ChunkConfig(most)).tolist() == expected


def test_every_drawn_step_gives_chunks_and_no_other_is_left_out() -> None:
    for config in (ChunkConfig(), ChunkConfig(1), ChunkConfig(2, frames=2, stride=2), ChunkConfig(3, 1, 1)):
        for length in range(1, 5 * config.actions):
            count = start_steps(length, config)
            drawable = range(max(0, length - config.actions + 1))
            assert [s for s in drawable if len(anchors(length, s, config))] == list(range(count))


def test_chunks_are_neighbours_of_one_task_with_a_closing_frame() -> None:
    rng = np.random.default_rng(0)
    config = ChunkConfig()
    for _ in range(500):
        length = int(rng.integers(1, 200))
        step = int(rng.integers(length))
        tasks = np.cumsum(rng.random(length) < 0.01)
        found = anchors(length, step, config, tasks)
        assert len(found) <= 4
        assert (np.diff(found) == 24).all()
        assert (tasks[found] == tasks[step]).all()
        assert not len(found) or (found[0] >= 0 and found[-1] + 24 < length)
        assert ((found - step) % 24 == 0).all()


SMALL = replace(
    load("droid"),
    name="small",
    cameras=("corner2", "gripperPOV"),
    layout=load("yam").layout[:2],
    state=(Field("observation/cartesian_position", 3), Field("observation/gripper_position", 1)),
    action=(Field("action", 4),),
    fps=20,
    video_stride=2,
    frames_per_chunk=2,
)
CONFIG = ChunkConfig.of(SMALL, max_chunks=3)


def tokenize(text: str) -> np.ndarray:
    return np.array([len(text), sum(text.encode())], np.int32)


def take(
    store: EpisodeStore, count: int, embodiment: Embodiment = SMALL, config: ChunkConfig = CONFIG, **options: object
) -> list[Batch]:
    options = {"batch_size": 6, "seed": 3, "threads": 1, **options}
    return list(itertools.islice(chunk_batches(store, embodiment, config, tokenize=tokenize, **options), count))


def assert_same(a: list[Batch], b: list[Batch]) -> None:
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x.keys() == y.keys()
        for name in x:
            np.testing.assert_array_equal(x[name], y[name], strict=True)


def test_configuration_of_the_robots() -> None:
    for name in ("droid", "agibot", "yam"):
        config = ChunkConfig.of(load(name))
        assert (config.max_chunks, config.frames, config.stride, config.actions) == (4, 8, 3, 24)


def test_batches_hold_what_the_episodes_hold(store: EpisodeStore, episodes: list[Episode]) -> None:
    pictures = [[decode(e.videos[camera]) for camera in SMALL.cameras] for e in episodes]
    counts = set()
    for batch in take(store, 10):
        assert {name: (array.dtype.name, array.shape) for name, array in batch.items()} == {
            "frames": ("uint8", (6, 2, 7, 32, 32, 3)),
            "chunks": ("int32", (6,)),
            "state": ("float32", (6, 3, 4)),
            "actions": ("float32", (6, 12, 4)),
            "action_mask": ("bool", (6, 12)),
            "language": ("int32", (6, 2)),
        }
        for row in range(6):
            count = int(batch["chunks"][row])
            counts.add(count)
            states = batch["state"][row]
            index, first = int(states[0, 0]), int(states[0, 1])
            steps = episodes[index].steps
            np.testing.assert_array_equal(states[:count, 1], first + 4 * np.arange(count))
            np.testing.assert_array_equal(states[count:], np.repeat(states[count - 1 : count], 3 - count, axis=0))
            np.testing.assert_array_equal(batch["actions"][row, : 4 * count], steps["action"][first:][: 4 * count])
            np.testing.assert_array_equal(batch["action_mask"][row], np.arange(12) < 4 * count)
            np.testing.assert_array_equal(batch["language"][row], tokenize(episodes[index].language[0]))
            for t in range(7):
                for view in range(2):
                    expected = pictures[index][view][first + 2 * min(t, 2 * count)]
                    np.testing.assert_array_equal(batch["frames"][row, view, t], expected)
    assert counts == {1, 2}  # the longest episode has 12 steps


def test_each_epoch_draws_each_step_once(store: EpisodeStore) -> None:
    total = sum(start_steps(length, CONFIG) for length in store.lengths.tolist())
    found = take(store, 1, batch_size=total)[0]
    expected = sorted(
        (index, int(anchors(length, step, CONFIG)[0]))
        for index, length in enumerate(store.lengths.tolist())
        for step in range(start_steps(length, CONFIG))
    )
    assert sorted((int(s[0, 0]), int(s[0, 1])) for s in found["state"]) == expected


@pytest.mark.parametrize("start", [1, 5])
def test_resuming_is_no_interruption(store: EpisodeStore, start: int) -> None:
    assert_same(take(store, 3, start_step=start), take(store, start + 3)[start:])


def test_rows_threads_and_cache_do_not_matter(store: EpisodeStore) -> None:
    whole = take(store, 6)
    parts = [take(store, 6, rows=range(start, start + 2)) for start in (0, 2, 4)]
    joined = [{k: np.concatenate([p[k] for p in step]) for k in step[0]} for step in zip(*parts, strict=True)]
    assert_same(joined, whole)
    for options in ({"threads": 5}, {"cache_bytes": 0}, {"cache_bytes": 100_000}):
        assert_same(take(store, 6, **options), whole)


def test_zero_images(store: EpisodeStore) -> None:
    for blind, seeing in zip(take(store, 2, config=replace(CONFIG, images="zero")), take(store, 2), strict=True):
        assert not blind["frames"].any()
        np.testing.assert_array_equal(blind["actions"], seeing["actions"])


def video_only(index: int, length: int, make_scene: Callable[..., np.ndarray]) -> Episode:
    return Episode(
        steps={},
        videos={camera: encode(make_scene(length, index + view), 20) for view, camera in enumerate(SMALL.cameras)},
        language=("somebody folds a towel",),
        metadata={"fps": 20},
    )


def test_video_without_actions(make_store: Callable[..., Path], make_scene: Callable[..., np.ndarray]) -> None:
    store = EpisodeStore(make_store([video_only(i, 9, make_scene) for i in range(4)]))
    batch = take(store, 1)[0]
    assert batch["state"].shape == (6, 3, 4)
    assert batch["actions"].shape == (6, 12, 4)
    assert not batch["action_mask"].any()
    assert not batch["actions"].any()
    assert batch["frames"].any()
    assert batch["chunks"].min() >= 1


def annotated(episode: Episode, changes: list[int], texts: tuple[str, ...]) -> Episode:
    annotation = np.zeros(len(episode), np.int32)
    annotation[changes] = 1
    return replace(
        episode,
        steps={**episode.steps, "annotation": np.cumsum(annotation, dtype=np.int32)},
        metadata={**episode.metadata, "annotations": list(texts)},
        language=(),
    )


def test_samples_stay_inside_a_task(
    make_store: Callable[..., Path], make_episode: Callable[..., Episode], caplog: pytest.LogCaptureFixture
) -> None:
    texts = ("grasp", "put it down")
    store = EpisodeStore(make_store([annotated(make_episode(i, 14), [10], texts) for i in range(4)]))
    with caplog.at_level(logging.WARNING):
        found = take(store, 12)
    # Step 10 is the last one with four actions, but lacks a closing frame, and the chunk before it is another task's.
    assert "gives no whole chunk of its task" in caplog.text
    assert_same(found, take(store, 12, threads=4))
    for batch in found:
        for states, count, words in zip(batch["state"], batch["chunks"], batch["language"], strict=True):
            assert (states[:count, 1] < 10).all()
            np.testing.assert_array_equal(words, tokenize("grasp"))
    clip = ClipConfig(cameras=("corner2",), frame_offsets=(0,), action_horizon=1)
    plain = next(batches(store, clip, batch_size=56, seed=0, tokenize=tokenize, threads=1))
    words = {(int(s[1]) >= 10, int(w[0])) for s, w in zip(plain["state"], plain["language"], strict=True)}
    assert words == {(False, 5), (True, 11)}


@pytest.mark.parametrize("damage", ["index", "texts", "shape", "kind"])
def test_damaged_annotations(
    damage: str, make_store: Callable[..., Path], make_episode: Callable[..., Episode]
) -> None:
    episode = annotated(make_episode(0, 12), [6], ("one", "two"))
    wrong = {
        "index": {"steps": {**episode.steps, "annotation": np.full(12, 2)}},
        "texts": {"metadata": {**episode.metadata, "annotations": "one"}},
        "shape": {"steps": {**episode.steps, "annotation": np.zeros((12, 1), int)}},
        "kind": {"steps": {**episode.steps, "annotation": np.zeros(12)}},
    }
    store = EpisodeStore(make_store([replace(episode, **wrong[damage])] * 4))
    with pytest.raises(UserError, match="damaged clips in a row"):
        take(store, 1)


def test_a_dataset_that_does_not_fit(store: EpisodeStore, caplog: pytest.LogCaptureFixture) -> None:
    wrong = [
        (replace(SMALL, action=(Field("action", 5),)), CONFIG, "has 4 numbers, not 5"),
        (replace(SMALL, action=(Field("action", 4), Field("torque", 1))), CONFIG, "no step field 'torque'"),
        (replace(SMALL, cameras=("corner2", "wrist")), CONFIG, "no camera 'wrist'"),
        (SMALL, replace(CONFIG, frames=50), "has 101 steps"),
    ]
    for embodiment, config, message in wrong:
        with pytest.raises(UserError, match=message) as error:
            take(store, 1, embodiment, config)
        assert "\n" not in str(error.value)
    with caplog.at_level(logging.WARNING):
        take(store, 1, replace(SMALL, fps=15))
    assert "20 steps per second, and is read at the 15 of small: its actions must be targets" in caplog.text


@pytest.mark.parametrize("fps", [10, 15, 40])
def test_a_dataset_of_another_rate_is_read_at_the_robot_s(
    store: EpisodeStore, episodes: list[Episode], fps: int
) -> None:
    """Chunks, frames and actions are of the recorded steps that are nearest in time."""
    reader, counts = ChunkReader(store, replace(SMALL, fps=fps), CONFIG, tokenize, 0), set()
    assert reader.clips
    for number in range(reader.clips):
        index, step = reader.starts.locate(number)
        sample = reader.read(number, (0,))
        counts.add(count := int(sample["chunks"]))
        first = 4 * round(float(sample["state"][0, 1] - step) * fps / 20 / 4)  # in steps of the robot from that drawn
        nearest = lambda steps: step + np.rint(steps * 20 / fps).astype(int)  # noqa: B023, E731
        np.testing.assert_array_equal(sample["state"][:count, 1], nearest(first + 4 * np.arange(count)))
        shown = nearest(first + 2 * np.arange(2 * count + 1))
        for view, camera in enumerate(SMALL.cameras):
            pictures = decode(episodes[index].videos[camera])
            np.testing.assert_array_equal(sample["frames"][view, : 2 * count + 1], pictures[shown])
        actions = episodes[index].steps["action"][nearest(first + np.arange(4 * count))]
        np.testing.assert_array_equal(sample["actions"][: 4 * count], actions)
    assert counts == {1} if fps == 10 else counts >= {1, 2}


@pytest.mark.parametrize("rate", [Fraction(2), Fraction(4, 3), Fraction(1, 2), Fraction(29.97) / 15])
def test_steps_of_another_rate_are_drawn_where_chunks_are(rate: Fraction) -> None:
    for config in (ChunkConfig(), ChunkConfig(1), ChunkConfig(3, 1, 1)):
        for length in range(1, int(4 * config.actions * rate), 5):
            count = start_steps(length, config, rate)
            places = [around(length, step, rate) for step in range(length)]
            whole = [len(anchors(len(steps), at, config)) > 0 for steps, at in places]
            assert all(whole[:count])
            assert count == sum(at + config.actions < len(steps) for steps, at in places) or whole[count - 1]
            for step, (steps, at) in enumerate(places):
                assert steps[at] == step
                assert 0 <= steps[0] < max(1, rate)
                assert 0 <= length - 1 - steps[-1] < max(1, rate)


@pytest.mark.parametrize("wrong", [{"images": "noise"}, {"max_chunks": 0}, {"frames": 0}, {"stride": -3}])
def test_wrong_configurations(wrong: dict) -> None:
    with pytest.raises(UserError, match="chunks"):
        ChunkConfig(**wrong)
