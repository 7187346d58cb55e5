"""Datasets that are damaged in any way: loading never crashes or hangs, and no bad sample goes unnoticed.

Seeded. A mutation either changes the bytes of a file of a store, or it changes an episode before a store is written, as
a faulty recording or converter would. Then batches are read, and every row must be what the undamaged dataset holds for
its number; rows that another sample took the place of must be told. Opening may refuse the dataset in one line.
"""

import faulthandler
import itertools
import json
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from tests.data.test_fuzz import SECONDS, mutate
from wamjax.data import records as record_files
from wamjax.data import store as storing
from wamjax.data.episode import Episode, pack
from wamjax.data.files import sha256, write_sealed
from wamjax.data.pipeline import SAMPLE, Batch, Bucket, ClipConfig, ClipReader, replaced, stream
from wamjax.data.sampling import Order
from wamjax.data.store import EpisodeStore, finish, write_shard
from wamjax.data.video import encode
from wamjax.errors import UserError

CLIP = ClipConfig(cameras=("corner2", "gripperPOV"), frame_offsets=(0, 2), action_horizon=3)
ROWS = 26  # two batches are about every clip of the store once


def tokenize(text: str) -> np.ndarray:
    return np.array([len(text), sum(text.encode())])


def reader(store: EpisodeStore, room: int) -> ClipReader:
    return ClipReader(store, CLIP, tokenize, room)


def with_numbers(value: float) -> Callable[[Episode, np.random.Generator], Episode]:
    """Puts one number into the state or the action of a step."""

    def change(episode: Episode, rng: np.random.Generator) -> Episode:
        name = str(rng.choice(["action", "observation/cartesian_position"]))
        values = np.array(episode.steps[name])
        values[rng.integers(len(values)), rng.integers(values.shape[1])] = value
        return replace(episode, steps={**episode.steps, name: values})

    return change


def with_dimension(episode: Episode, rng: np.random.Generator) -> Episode:
    name = str(rng.choice(["action", "observation/gripper_position"]))
    return replace(episode, steps={**episode.steps, name: np.ones((len(episode), int(rng.integers(2, 9)) * 2 + 1))})


def without_camera(episode: Episode, rng: np.random.Generator) -> Episode:
    return replace(episode, videos={"corner2": episode.videos["corner2"]})


def with_cut_video(episode: Episode, rng: np.random.Generator) -> Episode:
    video = episode.videos["gripperPOV"]
    cut = replace(video, data=video.data[: int(rng.integers(len(video.data)))])
    return replace(episode, videos={**episode.videos, "gripperPOV": cut})


def with_small_video(episode: Episode, rng: np.random.Generator) -> Episode:
    small = encode(np.zeros((len(episode), 16, 16, 3), np.uint8), 20.0)
    claimed = replace(small, height=32, width=32) if rng.random() < 0.5 else small
    return replace(episode, videos={**episode.videos, "gripperPOV": claimed})


FAULTS = (
    *(with_numbers(np.nan), with_numbers(np.inf), with_numbers(-np.inf), with_dimension),
    *(without_camera, with_cut_video, with_small_video),
)


def rewrite(folder: Path, records: list[bytes]) -> None:
    """Replaces the records of the only shard, with all checksums right."""
    shard = folder / "train-0.array_record"
    writer = ArrayRecordWriter(str(shard), record_files._WRITE_OPTIONS)
    for record in records:
        writer.write(record)
    writer.close()
    changed = {"bytes": shard.stat().st_size, "sha256": sha256(shard)}
    dataset = storing._read_dataset(folder)
    dataset["splits"]["train"]["shards"][0] |= changed
    write_sealed(folder / "dataset.json", dataset)
    sidecar = shard.with_suffix(".json")
    write_sealed(sidecar, {k: v for k, v in json.loads(sidecar.read_text()).items() if k != "checksum"} | changed)


def damage(clean: Path, episodes: list[Episode], number: int, folder: Path) -> str:
    """One seeded mutation of a copy; returns its kind."""
    rng = np.random.default_rng(number)
    shutil.copytree(clean, folder)
    if number % 2:
        files = sorted(folder.iterdir())
        return mutate(files[int(rng.integers(len(files)))], rng)
    fault, index = FAULTS[number // 2 % len(FAULTS)], int(rng.integers(len(episodes)))
    records = [pack(episode) for episode in episodes]
    records[index] = pack(fault(episodes[index], rng))
    rewrite(folder, records)
    return fault.__name__


def load(folder: Path) -> list[Batch]:
    bucket = Bucket.of(EpisodeStore(folder), reader, 1 << 20)
    return list(itertools.islice(stream([bucket], batch_size=ROWS, seed=1, threads=1, numbered=True), 2))


def check(found: list[Batch], right: list[Batch]) -> str:
    """Every row is what the clean dataset holds, and every row that is another sample is told."""
    order, told = Order([[len(right)]], [[1.0]], [1.0], ROWS, 1), False
    for step, batch in enumerate(found):
        instead: dict[int, int] = {}
        for entry in replaced(batch):
            assert entry["sample"] == instead.get(entry["row"], order.sample(step, entry["row"])[2])
            assert entry["reason"]
            instead[entry["row"]] = entry["instead"]
        told |= bool(instead)
        for row in range(ROWS):
            number = int(batch[SAMPLE][row])
            assert number == instead.get(row, order.sample(step, row)[2]), (step, row)
            for name, values in right[number].items():
                np.testing.assert_array_equal(batch[name][row], values, strict=True)
    return "replaced" if told else "harmless"


def fuzz(count: int, clean: Path, episodes: list[Episode], folder: Path) -> Counter[str]:
    bucket = Bucket.of(EpisodeStore(clean), reader, 1 << 20)
    right = [bucket.readers[0].read(number, (0,)) for number in range(bucket.readers[0].clips)]
    assert check(load(clean), right) == "harmless"
    outcomes: Counter[str] = Counter()
    for number in range(count):
        kind = damage(clean, episodes, number, changed := folder / "changed")
        start = time.monotonic()
        faulthandler.dump_traceback_later(2 * SECONDS, exit=True)
        signal.alarm(SECONDS)
        try:
            outcome = check(load(changed), right)
        except UserError as error:
            outcome = "refused" if "\n" not in str(error) else str(error)
        finally:
            signal.alarm(0)
            faulthandler.cancel_dump_traceback_later()
        assert time.monotonic() - start < SECONDS
        possible = {"replaced"} | ({"refused", "harmless"} if number % 2 else set())
        possible |= {"harmless"} if kind == "with_cut_video" else set()  # the last bytes of an MP4 may mean nothing
        assert outcome in possible, (number, kind, outcome)
        outcomes[outcome] += 1
        shutil.rmtree(changed)
    return outcomes


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory, episodes: list[Episode]) -> Path:
    folder = tmp_path_factory.mktemp("clean") / "store"
    write_shard(folder, "train", "0", episodes)
    finish(folder)
    return folder


def test_some_damage_is_noticed(clean: Path, episodes: list[Episode], tmp_path: Path) -> None:
    outcomes = fuzz(28, clean, episodes, tmp_path)
    assert outcomes["replaced"] >= 14
    assert outcomes["refused"] > 2


@pytest.mark.slow
def test_a_thousand_damaged_datasets_never_give_a_bad_sample(
    clean: Path, episodes: list[Episode], tmp_path: Path
) -> None:
    outcomes = fuzz(1000, clean, episodes, tmp_path)
    print(dict(outcomes))
    assert outcomes["replaced"] > 480
    assert outcomes["refused"] > 100


@pytest.mark.slow
def test_workers_tell_of_damage_as_threads_do(clean: Path, episodes: list[Episode], tmp_path: Path) -> None:
    records = [pack(with_cut_video(e, np.random.default_rng(i)) if i % 2 else e) for i, e in enumerate(episodes)]
    shutil.copytree(clean, tmp_path / "damaged")
    rewrite(tmp_path / "damaged", records)
    found = {}
    for workers in (0, 2):
        bucket = Bucket.of(EpisodeStore(tmp_path / "damaged"), reader, 1 << 20)
        batches = stream([bucket], batch_size=ROWS, seed=1, numbered=True, keyed=True, workers=workers)
        found[workers] = list(itertools.islice(batches, 5))
    for alone, spread in zip(found[0], found[2], strict=True):
        assert replaced(alone)
        assert alone.keys() == spread.keys()
        for name, values in alone.items():
            np.testing.assert_array_equal(spread[name], values, strict=True)
    rewrite(tmp_path / "damaged", [b""] * len(records))
    bucket = Bucket.of(EpisodeStore(tmp_path / "damaged"), reader, 1 << 20)
    with pytest.raises(UserError) as error:
        next(stream([bucket], batch_size=ROWS, seed=1, workers=1))
    assert str(error.value) == f"20 damaged clips in a row in {tmp_path / 'damaged'}: collect the dataset again"


LEFT = """
import os, sys
import numpy as np
from wamjax.data.pipeline import ClipConfig, batches
from wamjax.data.store import EpisodeStore

def tokenize(text):
    return np.array([len(text)])

def read(found):
    held = [next(found)["frames"] for _ in range(4)]
    return held[0].shape, [os.path.exists(f"/dev/shm/{frames.shm.name}") for frames in held]

if __name__ == "__main__":
    clip = ClipConfig(cameras=("corner2", "gripperPOV"), frame_offsets=(0, 2), action_horizon=3)
    found = batches(EpisodeStore(sys.argv[1]), clip, batch_size=64, seed=0, tokenize=tokenize, workers=1)
    print(read(found))
"""


@pytest.mark.slow
def test_batches_that_nobody_closed_end_with_the_program(folder: Path, tmp_path: Path) -> None:
    (script := tmp_path / "read.py").write_text(LEFT)
    done = subprocess.run([sys.executable, str(script), str(folder)], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("((64, 2, 2, 32, 32, 3), [False, False, False, False])\n", "")


MEMORY = """
import multiprocessing, sys
import numpy as np
from wamjax.data.pipeline import ClipConfig, batches
from wamjax.data.store import EpisodeStore
from wamjax.training.host_memory import keep_freed_memory

def tokenize(text):
    return np.array([len(text)])

def resident():
    every = [multiprocessing.current_process(), *multiprocessing.active_children()]
    return sum(int(open(f"/proc/{one.pid}/statm").read().split()[1]) for one in every) * 4 / 1024

if __name__ == "__main__":
    keep_freed_memory()  # as in training
    clip = ClipConfig(cameras=("corner2", "gripperPOV"), frame_offsets=(0, 2), action_horizon=3)
    options = {"cache_bytes": 100_000, "numbered": True, "keyed": True, "workers": int(sys.argv[2]), "threads": 2}
    found = batches(EpisodeStore(sys.argv[1]), clip, batch_size=8, seed=0, tokenize=tokenize, **options)
    largest = 0
    for number, _ in zip(range(1, 10_001), found):
        largest = max(largest, resident() if number % 20 == 0 else 0)
        if number % 1000 == 0:
            print(number, largest, flush=True)
            largest = 0
"""


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_memory_is_flat_over_ten_thousand_batches(folder: Path, workers: int, tmp_path: Path) -> None:
    """The most of every thousand batches, of all processes together, which have decoded 2 GiB by then."""
    (script := tmp_path / "read.py").write_text(MEMORY)
    command = [sys.executable, str(script), str(folder), str(workers)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    sizes = [float(line.split()[1]) for line in done.stdout.splitlines()]
    print(f"{workers} workers: most MiB in every 1,000 batches:", [round(size, 1) for size in sizes])
    assert len(sizes) == 10
    assert max(sizes[1:]) - sizes[0] < 0.03 * sizes[0]
