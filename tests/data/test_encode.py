"""The job that encodes a dataset: what it writes, and that kills and several processes change nothing of it."""

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from tests.data import encode_job
from wamjax.data.encode import begin
from wamjax.data.episode import BadEpisode, Episode
from wamjax.data.latents import Encoded, EncodedReader
from wamjax.data.pipeline import Bucket, stream
from wamjax.data.records import describe
from wamjax.errors import UserError


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def data(make_store: Callable[[list[Episode]], Path], episodes: list[Episode], make_episode) -> Path:
    return make_store([*episodes[:-1], make_episode(7, 4, language=("one", "two", "three"))])


@pytest.fixture(scope="module")
def encoded(data: Path, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("encoded") / "out"
    encode_job.run(str(data), str(out))
    return out


def reader(folder: Path, data: Path) -> EncodedReader:
    return EncodedReader(Encoded(folder), "train", encode_job.job(str(data), "").readers["train"])


def test_samples_are_what_the_networks_made(encoded: Path, data: Path) -> None:
    found, original = reader(encoded, data), encode_job.job(str(data), "").readers["train"]
    assert found.clips == original.clips
    for number in range(found.clips):
        sample, frames = found.read(number, (3, number)), original.read(number, (3, number))
        mean = frames["frames"].mean((0, 2, 3)).astype(ml_dtypes.bfloat16)
        np.testing.assert_array_equal(sample["mean"], mean, strict=True)
        np.testing.assert_array_equal(sample["state"], frames["state"], strict=True)
        np.testing.assert_array_equal(sample["text"][:, 0], frames["language"], strict=True)


def test_every_nth_sample_alone(data: Path, encoded: Path, tmp_path: Path) -> None:
    encode_job.run(str(data), str(tmp_path / "out"), stride=3)
    some, whole = reader(tmp_path / "out", data), reader(encoded, data)
    chosen = [number for number in range(whole.clips) if whole.starts.locate(number)[1] % 3 == 0]
    assert some.clips == len(chosen)
    for number, original in enumerate(chosen):
        assert some.starts.locate(number) == whole.starts.locate(original)
        np.testing.assert_array_equal(some.read(number, (0,))["state"], whole.read(original, (0,))["state"])


def test_it_streams_beside_the_dataset(encoded: Path, data: Path) -> None:
    options = {"batch_size": 5, "seed": 1, "numbered": True, "threads": 1}
    original = encode_job.job(str(data), "").readers["train"]
    latents, frames = (stream([Bucket((each,))], **options) for each in (reader(encoded, data), original))
    for _ in range(20):
        one, other = next(latents), next(frames)
        np.testing.assert_array_equal(one["sample"], other["sample"])
        np.testing.assert_array_equal(one["state"], other["state"])
        np.testing.assert_array_equal(one["text"][:, :, 1], other["language"])


def test_processes_share_the_work(data: Path, encoded: Path, tmp_path: Path) -> None:
    for process in range(3):
        encode_job.run(str(data), str(tmp_path / "out"), process=process, processes=3)
    assert content(tmp_path / "out") == content(encoded)


def test_damaged_samples_are_replaced_as_the_dataset_s(data: Path, tmp_path: Path, monkeypatch) -> None:
    def damaged(self, number: int, key: tuple[int, ...], read=encode_job.ClipReader.read):
        if number in (4, 5, 6, 7, 8, 12):  # of a shard, all but two
            raise BadEpisode(f"sample {number} is bad")
        return read(self, number, key)

    monkeypatch.setattr(encode_job.ClipReader, "read", damaged)
    encode_job.run(str(data), str(tmp_path / "out"))
    found = reader(tmp_path / "out", data)
    with pytest.raises(BadEpisode, match="sample 5 is bad"):
        found.read(5, (0,))
    options = {"batch_size": found.clips, "seed": 1, "numbered": True, "threads": 1}
    original = encode_job.job(str(data), "").readers["train"]
    one, other = (next(stream([Bucket((each,))], **options)) for each in (found, original))
    np.testing.assert_array_equal(one["sample"], other["sample"])
    np.testing.assert_array_equal(one["state"], other["state"])
    shards = json.loads((tmp_path / "out" / "encoded.json").read_text())["splits"]["train"]
    assert shards["damaged"] == 6


def test_damage_and_what_is_unfinished_are_one_line(data: Path, encoded: Path, tmp_path: Path) -> None:
    encode_job.run(str(data), str(tmp_path / "out"))
    shard = tmp_path / "out" / "train-000000005.array_record"
    raw = bytearray(shard.read_bytes())
    raw[len(raw) // 2] ^= 1
    shard.write_bytes(raw)
    with pytest.raises(UserError, match="has changed since it was encoded"):
        Encoded(tmp_path / "out").verify()
    shard.unlink()
    with pytest.raises(UserError, match="missing or not the one encoded"):
        reader(tmp_path / "out", data)
    (tmp_path / "out" / "encoded.json").unlink()
    with pytest.raises(UserError, match="unfinished encoding"):
        reader(tmp_path / "out", data)
    with pytest.raises(UserError, match="was begun with stride 1, now 2"):
        begin(encode_job.job(str(data), str(tmp_path / "out"), stride=2))
    encode_job.run(str(data), str(tmp_path / "out"))
    assert content(tmp_path / "out") == content(encoded)


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_kills_change_nothing_and_finished_shards_are_kept(
    kills: int, data: Path, encoded: Path, tmp_path: Path
) -> None:
    """The moments are random: so many shards are begun, and then some milliseconds pass."""
    draw, out = random.Random(kills), tmp_path / "out"
    shards = sorted(path.name for path in encoded.glob("*.array_record"))
    again: list[str] = []
    for kill in range(kills + 1):
        finished = {path.name for path in out.glob("*.array_record") if describe(path)}
        command = [sys.executable, "-u", encode_job.__file__, str(data), str(out)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            lines = [] if kill == kills else [process.stdout.readline() for _ in range(draw.randint(0, 2))]
            if kill < kills:
                time.sleep(draw.uniform(0, 0.04))
                process.send_signal(signal.SIGKILL)
            lines += process.stdout.readlines()
        begun = [line.split()[1] for line in lines if line.startswith("encoding ")]
        assert not finished & set(begun)
        again += begun
    assert process.returncode == 0
    assert content(out) == content(encoded)
    assert set(shards) <= set(again)
    assert len(again) <= len(list(encoded.glob("*.array_record"))) + len(list(encoded.glob("texts-*.sa*"))) + kills
