"""Where samples may begin: idle ranges, success, dropped steps, lengths; and what an index of many episodes costs."""

import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from wamjax.data.episode import Episode
from wamjax.data.files import write_sealed
from wamjax.data.pipeline import ClipConfig, batches
from wamjax.data.selection import Runs, Selection, idle, kept, moving, moving_ranges, pairs_of
from wamjax.data.store import EpisodeStore, finish, write_shard
from wamjax.errors import UserError

FIELD = "observation/cartesian_position"


def steps(runs: Runs) -> list[tuple[int, int]]:
    return [runs.locate(number) for number in range(len(runs))]


def test_runs_are_found_by_number_and_by_episode() -> None:
    runs = Runs.of(np.array([0, 0, 1, 3]), np.array([2, 6, 0, 4]), np.array([4, 6, 3, 5]))
    assert steps(runs) == [(0, 2), (0, 3), (1, 0), (1, 1), (1, 2), (3, 4)]
    assert [runs.within(episode) for episode in range(5)] == [
        range(2), range(2, 5), range(5, 5), range(5, 6), range(6, 6)
    ]  # fmt: skip
    assert steps(runs.before(np.array([3, 2, 0, 9]))) == [(0, 2), (1, 0), (1, 1), (3, 4)]


def by_hand(velocities: np.ndarray) -> list[int]:
    """The kept steps, by counting along the episode as openpi's description says."""
    still = [False] + [
        all(abs(a - b) < 1e-3 for a, b in zip(now, before, strict=True))
        for before, now in itertools.pairwise(velocities)
    ]
    keep, run = [True] * len(still), []
    for t, quiet in enumerate([*still, False]):
        if quiet:
            run.append(t)
        elif run:
            if len(run) >= 7:
                for each in run:
                    keep[each] = False
            run = []
    result: list[int] = []
    run = []
    for t, wanted in enumerate([*keep, False]):
        if wanted:
            run.append(t)
        else:
            result += run[:-10] if len(run) >= 16 else []
            run = []
    return result


def test_idle_ranges_follow_openpis_rule() -> None:
    rng = np.random.default_rng(0)
    kinds = set()
    for _ in range(200):
        pieces = [
            np.repeat(rng.normal(size=(1, 3)), n, axis=0) if rng.random() < 0.5 else rng.normal(size=(n, 3))
            for n in rng.integers(1, 30, size=rng.integers(1, 8))
        ]
        velocities = np.concatenate(pieces)
        found = [t for first, stop in moving(velocities) for t in range(first, stop)]
        assert found == by_hand(velocities)
        kinds.add(len(moving(velocities)))
    assert kinds >= {0, 1, 2}
    # A constant velocity is idle, whatever it is; six still steps are kept, seven are not.
    assert idle(np.ones((4, 2))).tolist() == [False, True, True, True]
    steady = np.concatenate([np.arange(20.0), np.full(7, 19.0), np.arange(20.0)])[:, None]
    assert moving(steady) == [(0, 10), (27, 37)]
    assert moving(np.delete(steady, 20, axis=0)) == [(0, 36)]


@pytest.fixture(scope="module")
def robots(tmp_path_factory: pytest.TempPathFactory, make_episode: Callable[..., Episode]) -> EpisodeStore:
    """Four episodes of 40 steps: success, failure, success with dropped steps, and a short one."""
    folder = tmp_path_factory.mktemp("robots") / "store"
    episodes = []
    for number, length in enumerate((40, 40, 40, 5)):
        metadata = {"fps": 20.0, "success": number != 1, "source": f"robots/{number}"}
        if number == 0:
            metadata |= {"recording_folderpath": "a/b", "file_path": "c/success/d"}
        if number == 2:
            metadata |= {"dropped_steps": pairs_of([38, 39, 0, 1, 2])}
        moved = np.arange(float(length))
        moved[20:30] = 19.0
        episode = make_episode(number, length)
        fields = {**episode.steps, "velocity": moved[:, None]}
        episodes.append(replace(episode, steps=fields, metadata=metadata))
    write_shard(folder, "train", "0", episodes)
    finish(folder)
    return EpisodeStore(folder)


def test_selections(robots: EpisodeStore, tmp_path: Path) -> None:
    everything = [(episode, t) for episode, length in enumerate(robots.lengths) for t in range(length)]
    undropped = [(e, t) for e, t in everything if e != 2 or 3 <= t < 38]
    assert steps(kept(robots, Selection(dropped=False))) == everything
    assert steps(kept(robots, Selection())) == undropped
    assert steps(kept(robots, Selection(success=True))) == [(e, t) for e, t in undropped if e != 1]
    assert steps(kept(robots, Selection(min_steps=6))) == [(e, t) for e, t in undropped if e != 3]
    table = dict(moving_ranges(robots, "velocity"))
    assert list(table) == ["a/b--c/success/d", "robots/1", "robots/2", "robots/3"]
    assert table["robots/1"] == [(0, 10)]
    file = tmp_path / "ranges.json"
    file.write_text(json.dumps(table | {"of another dataset": [[0, 3]], "robots/2": [[30, 60], [1, 5]]}))
    found = steps(kept(robots, Selection(ranges=str(file))))
    assert found == [(e, t) for e in (0, 1) for t in range(10)] + [(2, t) for t in (3, 4, *range(30, 38))]


def test_samples_begin_at_selected_steps_only(robots: EpisodeStore) -> None:
    clip = ClipConfig(cameras=("corner2",), state=(FIELD,), images="zero")
    options = {"batch_size": 40 + 35 + 5, "seed": 0, "tokenize": len, "threads": 1}
    for batch, _ in zip(batches(robots, clip, selection=Selection(success=True), **options), range(2), strict=False):
        begun = sorted((int(e), int(t)) for e, t, _ in batch["state"])
        assert begun == steps(kept(robots, Selection(success=True)))
    with pytest.raises(UserError, match=r"no step in .* is selected"):
        batches(robots, clip, selection=Selection(min_steps=100), **options)


DAMAGED = ["", "[]", '{"a": [[3]]}', '{"a": 1}', '{"a": [[0, 5], [4, 6]]}', '{"a": [[-1, 5]]}', '{"a": [["x", 5]]}']


@pytest.mark.parametrize("content", DAMAGED)
def test_damaged_ranges_are_refused(robots: EpisodeStore, tmp_path: Path, content: str) -> None:
    file = tmp_path / "ranges.json"
    file.write_text(content)
    with pytest.raises(UserError, match="no table of ranges"):
        kept(robots, Selection(ranges=str(file)))
    with pytest.raises(UserError, match="cannot be read"):
        kept(robots, Selection(ranges=str(tmp_path / "none.json")))
    with pytest.raises(UserError, match="no step field 'speed'"):
        next(moving_ranges(robots, "speed"))


SCRIPT = """
import resource, sys, time
from wamjax.data.pipeline import Bucket, ClipConfig, ClipReader
from wamjax.data.sampling import Order
from wamjax.data.selection import Selection
from wamjax.data.store import EpisodeStore
began = time.perf_counter()
store = EpisodeStore(sys.argv[1])
clip = ClipConfig(cameras=("camera",), state=())
bucket = Bucket.of(store, lambda s, room: ClipReader(s, clip, len, room, Selection(ranges=sys.argv[2], success=True)))
order = Order([[bucket.readers[0].clips]], [[1.0]], [1.0], 256, 0)
drawn = [bucket.readers[0].starts.locate(order.sample(0, row)[2]) for row in range(256)]
assert len(set(drawn)) == 256
print(time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
print(len(bucket.readers[0].starts))
"""


@pytest.mark.slow
def test_an_index_of_a_hundred_thousand_episodes_starts_in_seconds(tmp_path: Path) -> None:
    """Descriptions of shards without records, as large as those of 100,000 episodes with 30 million steps."""
    rng = np.random.default_rng(0)
    schema = {"fps": 15.0, "fields": {"action": {"dtype": "float32", "shape": [7]}}, "cameras": {"camera": [180, 320]}}
    (folder := tmp_path / "store").mkdir()
    table, shards = {}, []
    for number, first in enumerate(range(0, 100_000, 64)):
        lengths = rng.integers(100, 500, size=min(64, 100_000 - first)).tolist()
        metadata = []
        for episode, length in enumerate(lengths, first):
            where = f"gs://robotics/droid_raw/1.0.1/lab/success/2023-07-07/{episode}"
            cut = np.sort(rng.choice(length, 4, replace=False)).tolist()
            table[f"{where}/recordings--{where}/trajectory.h5"] = [cut[:2], cut[2:]]
            names = {"recording_folderpath": f"{where}/recordings", "file_path": f"{where}/trajectory.h5"}
            metadata.append({"fps": 15.0, "success": episode % 5 > 0, "source": f"droid/{episode}", **names})
        shard = {"file": f"train-part-{number:06d}.array_record", "episodes": len(lengths), "steps": sum(lengths)}
        shard |= {"bytes": 0, "sha256": str(number)}
        (folder / shard["file"]).touch()
        description = {"format": 1, **shard, "lengths": lengths, "schema": schema, "metadata": metadata}
        write_sealed((folder / shard["file"]).with_suffix(".json"), description)
        shards.append(shard)
    dataset = {"format": 1, "name": "many", **schema, "splits": {"train": {"shards": shards}}, "fingerprint": "0"}
    write_sealed(folder / "dataset.json", dataset)
    (ranges := tmp_path / "ranges.json").write_text(json.dumps(table))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), str(ranges)], capture_output=True, text=True, check=True
    )
    seconds, gigabytes, starts = map(float, done.stdout.split())
    print(f"{seconds:.1f} s, {gigabytes:.2f} GiB, {starts:.0f} sample starts")
    assert seconds < 10
    assert gigabytes < 2
    assert 5_000_000 < starts < 15_000_000
