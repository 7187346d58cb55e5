"""LeRobot datasets written by LeRobot are read as LeRobot reads them; ours are valid v3.0; damage is one line.

The samples and what LeRobot returns for them (`.npz`) come from tests/oracles/lerobot.sh.
"""

import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from wamjax.cli.main import main
from wamjax.data import convert
from wamjax.data.episode import BadEpisode, Episode
from wamjax.data.lerobot_export import export_dataset
from wamjax.data.readers import Listed, Options, Source, open_source
from wamjax.data.storage import Place
from wamjax.data.store import EpisodeStore
from wamjax.data.video import decode, encode
from wamjax.data.video_files import cut, frame_rate, read_video
from wamjax.errors import UserError

SAMPLES = Path(__file__).parent / "samples"
LOSSLESS = Options(encode=functools.partial(encode, crf=0))


def texts(episode: Episode) -> list[str]:
    if "annotation" in episode.steps:
        return [episode.metadata["annotations"][i] for i in episode.steps["annotation"]]
    return [episode.language[0]] * len(episode)


def assert_equals_lerobot(source: Source, returned: Path) -> None:
    """Every value, text and picture is the one that LeRobot returned."""
    with np.load(returned) as expected:
        start = 0
        for index in range(len(source)):
            episode = source[index]
            rows = slice(start, start + len(episode))
            for name, values in episode.steps.items():
                if name != "annotation":
                    np.testing.assert_array_equal(values, expected[name.replace("/", ".")][rows], strict=True)
            for camera, video in episode.videos.items():
                np.testing.assert_array_equal(decode(video), expected[f"observation.images.{camera}"][rows])
            assert texts(episode) == expected["task"][rows].tolist()
            assert {"action", "observation/state", "next/success"} <= set(episode.steps)
            assert set(episode.videos) == {"front", "hand"}
            start += len(episode)
        assert start == len(expected["index"])


@pytest.mark.parametrize("version", ["lerobot21", "lerobot30", "lerobot_converted"])
def test_every_value_and_frame_is_lerobots(version: str) -> None:
    assert_equals_lerobot(open_source(SAMPLES / version, options=LOSSLESS), SAMPLES / f"{version}.npz")


@pytest.mark.parametrize("version", ["lerobot21", "lerobot30", "lerobot_converted"])
def test_there_and_back(version: str, tmp_path: Path) -> None:
    """Our v3.0 output, which LeRobot opened with equal values when tests/oracles was run, reads as its source."""
    assert export_dataset(open_source(SAMPLES / version, options=LOSSLESS), tmp_path / "out") == 3
    assert_equals_lerobot(open_source(tmp_path / "out"), SAMPLES / f"{version}.npz")
    ours, theirs = (json.loads((f / "meta/info.json").read_text()) for f in (tmp_path / "out", SAMPLES / "lerobot30"))
    assert set(ours) == set(theirs)
    assert ours["features"]["observation.images.front"] == theirs["features"]["observation.images.front"]
    assert ours["features"]["action"] == theirs["features"]["action"]
    episodes = [
        pyarrow.parquet.read_schema(f / "meta/episodes/chunk-000/file-000.parquet")
        for f in (tmp_path / "out", SAMPLES / "lerobot30")
    ]
    extra = {n for n in episodes[0].names if n.startswith(("stats/observation.images.hand", "videos/observation.im"))}
    assert {n for n in episodes[0].names if not n.startswith("stats")} - extra <= set(episodes[1].names)
    stats = json.loads((tmp_path / "out/meta/stats.json").read_text())
    with np.load(SAMPLES / f"{version}.npz") as expected:
        np.testing.assert_allclose(stats["action"]["q99"], np.quantile(expected["action"].astype(float), 0.99, axis=0))
        picture = expected["observation.images.front"][..., 0] / 255
    assert np.shape(stats["observation.images.front"]["mean"]) == (3, 1, 1)
    assert abs(stats["observation.images.front"]["mean"][0][0][0] - picture.mean()) < 0.03


def test_videos_of_another_rate_are_shown_at_the_datasets(tmp_path: Path) -> None:
    """RoboArena's files say 10 Hz for steps of 15 Hz, and have a picture too many; LeRobot looks them up by time."""
    from tests.data.formats import roboarena

    (tmp_path / "in").mkdir()
    expected = roboarena(tmp_path / "in")
    one = open_source(tmp_path / "in")
    export_dataset(Listed("two", [0, 0], one.__getitem__), tmp_path / "out")
    back = open_source(tmp_path / "out", options=LOSSLESS)
    for episode in (back[0], back[1]):
        for camera, frames in expected.frames.items():
            np.testing.assert_array_equal(decode(episode.videos[camera]), frames)
    file = Place.of(next(tmp_path.glob("out/videos/*/*/*.mp4")))
    assert frame_rate(read_video(file)) == 15


def test_files_begin_anew_at_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wamjax.data.lerobot_export.DATA_BYTES", 300)
    monkeypatch.setattr("wamjax.data.lerobot_export.VIDEO_BYTES", 3000)
    export_dataset(open_source(SAMPLES / "lerobot21", options=LOSSLESS), tmp_path / "out")
    assert len(list(tmp_path.glob("out/data/*/*.parquet"))) > 1
    assert len(list(tmp_path.glob("out/videos/observation.images.front/*/*.mp4"))) == 2
    assert_equals_lerobot(open_source(tmp_path / "out"), SAMPLES / "lerobot21.npz")


def test_statistics_are_exact_in_any_portions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files, rows of meta/episodes and what is read again are begun and ended anywhere."""
    for name, value in {"DATA_BYTES": 300, "_ROWS": 2, "_READ": 25}.items():
        monkeypatch.setattr(f"wamjax.data.lerobot_export.{name}", value)
    export_dataset(open_source(SAMPLES / "lerobot21"), tmp_path / "out")
    episodes = pyarrow.parquet.read_table(tmp_path / "out/meta/episodes/chunk-000/file-000.parquet")
    assert episodes["episode_index"].to_pylist() == [0, 1, 2]
    stats = json.loads((tmp_path / "out/meta/stats.json").read_text())
    source = open_source(tmp_path / "out")
    names = {"action": "action", "observation.state": "observation/state", "next.success": "next/success"}
    for theirs, ours in names.items():
        each = [source[i].steps[ours] for i in range(3)]
        for found, values in ((stats[theirs], np.concatenate(each)), (_row(episodes, theirs, 1), each[1])):
            numbers = values.reshape(len(values), -1).astype(float)
            assert found["count"] == [len(numbers)]
            for name in ("min", "max", "mean", "std"):
                np.testing.assert_allclose(found[name], getattr(numbers, name)(0), rtol=1e-12, atol=1e-15)
            wanted = np.quantile(numbers, (0.01, 0.1, 0.5, 0.9, 0.99), axis=0)
            np.testing.assert_array_equal([found[name] for name in ("q01", "q10", "q50", "q90", "q99")], wanted)
    picture = stats["observation.images.hand"]
    rows = [_row(episodes, "observation.images.hand", number) for number in range(3)]
    assert picture["count"] == [sum(row["count"][0] for row in rows)]
    means = [np.array(row["mean"]) * row["count"] / picture["count"] for row in rows]
    np.testing.assert_allclose(picture["mean"], np.sum(means, axis=0), rtol=1e-12)
    assert min(row["q10"][0][0][0] for row in rows) <= picture["q10"][0][0][0] <= picture["q50"][0][0][0]


LARGE = """
import resource, sys
import numpy as np
from wamjax.data import lerobot_export
from wamjax.data.episode import Episode

class Large:
    name = "large"

    def __len__(self):
        return int(sys.argv[1])

    def __getitem__(self, number):
        values = np.random.default_rng(number).standard_normal((1000, 40)).astype(np.float32)
        steps = {"observation/state": values[:, :26], "action": values[:, 26:]}
        return Episode(steps=steps, videos={}, language=("do it",), metadata={"fps": 50.0})

lerobot_export.DATA_BYTES = 8 << 20
lerobot_export.export_dataset(Large(), sys.argv[2])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_dataset(tmp_path: Path) -> None:
    """Files of 8 MB; with all values in memory it was 305 and 1,349 MiB."""
    peaks = {}
    for episodes in (100, 1500):
        command = [sys.executable, "-c", LARGE, str(episodes), tmp_path / str(episodes)]
        peaks[episodes] = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    print(f"peak in MiB by episodes of 1,000 steps: {peaks}")
    assert peaks[1500] < peaks[100] + 60


def _row(episodes: Any, feature: str, number: int) -> dict[str, Any]:
    """The statistics of an episode."""
    keys = [name for name in episodes.column_names if name.startswith(f"stats/{feature}/")]
    return {name.rsplit("/", 1)[1]: episodes[name][number].as_py() for name in keys}


def test_rows_are_found_in_the_file_after(tmp_path: Path) -> None:
    """LeRobot's converter notes the file before the one that holds an episode; other writers have one row group."""
    shutil.copytree(SAMPLES / "lerobot30", folder := tmp_path / "set")
    table = pyarrow.parquet.read_table(folder / "data/chunk-000/file-000.parquet")
    pyarrow.parquet.write_table(table.slice(0, 7), folder / "data/chunk-000/file-000.parquet")
    pyarrow.parquet.write_table(table.slice(7), folder / "data/chunk-000/file-001.parquet")
    assert_equals_lerobot(open_source(folder, options=LOSSLESS), SAMPLES / "lerobot30.npz")


def test_parts_that_cannot_be_copied_are_encoded_again(tmp_path: Path, make_scene: Callable) -> None:
    frames = make_scene(40, seed=3)
    video = encode(frames, 20, gop=10)
    (tmp_path / "a.mp4").write_bytes(video.data)
    whole, file = decode(video), Place.of(tmp_path / "a.mp4")
    for start, count in ((0, 40), (10, 10), (10, 30), (0, 10), (3, 9), (10, 5), (39, 1)):
        part = cut(file, start, count, 20.0, functools.partial(encode, crf=0))
        np.testing.assert_array_equal(decode(part), whole[start : start + count])
    with pytest.raises(BadEpisode, match="pictures 35 to 44"):
        cut(file, 35, 10, 20.0)


def test_convert_and_inspect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sample, store, back = str(SAMPLES / "lerobot30"), tmp_path / "store", tmp_path / "back"
    assert main(["data", "convert", sample, str(store), "--crf", "0"]) == 0
    assert main(["data", "convert", sample, str(store), "--crf", "0"]) == 0  # goes on, finds nothing to do
    assert main(["data", "convert", str(store), str(back), "--to", "lerobot"]) == 0
    assert "3 of 3 episodes" in capsys.readouterr().out
    assert_equals_lerobot(EpisodeStore(store), SAMPLES / "lerobot30.npz")
    assert_equals_lerobot(open_source(back), SAMPLES / "lerobot30.npz")
    assert main(["data", "inspect", sample]) == 0
    text = capsys.readouterr().out
    assert "3 episodes" in text
    assert "front 32x48" in text
    assert "action float32 [2]" in text
    assert main(["data", "convert", sample, str(back), "--to", "lerobot"]) == 2
    assert "exists already" in capsys.readouterr().err
    for options, message in ((["--format", "lerobt"], "did you mean 'lerobot'?"), (["--split", "x"], "no split 'x'")):
        assert main(["data", "convert", sample, str(tmp_path / "x"), *options]) == 2
        assert message in capsys.readouterr().err


def test_a_failing_export_leaves_nothing(tmp_path: Path) -> None:
    class Failing:
        name = "failing"

        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> Episode:
            if index:
                raise RuntimeError("lost")
            return open_source(SAMPLES / "lerobot21")[0]

    with pytest.raises(RuntimeError, match="lost"):
        export_dataset(Failing(), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert export_dataset(open_source(SAMPLES / "lerobot21"), tmp_path / "out") == 3
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


WRONG: list[tuple[str, Callable[[Path], object], str]] = [
    ("lerobot21/meta/info.json", lambda p: edit(p, codebase_version="v1.6"), "is LeRobot v1"),
    ("lerobot21/meta/info.json", lambda p: edit(p, features=3), "damaged"),
    ("lerobot21/meta/info.json", lambda p: edit(p, fps=0), "fps=0"),
    ("lerobot21/meta/info.json", lambda p: edit(p, data_path="{x}"), "no usable data_path"),
    ("lerobot21/meta/tasks.jsonl", lambda p: p.unlink(), "is missing"),
    ("lerobot21/meta/episodes.jsonl", lambda p: p.write_text("{}"), "damaged"),
    ("lerobot30/meta/tasks.parquet", lambda p: p.write_bytes(b"PAR1"), "cannot be read"),
    ("lerobot30/meta/info.json", lambda p: edit(p, data_path="{x}"), "damaged"),
    ("lerobot30/meta/episodes/chunk-000/file-000.parquet", lambda p: p.unlink(), "lists no episodes"),
]


@pytest.mark.parametrize(("file", "damage", "message"), WRONG)
def test_wrong_metadata(file: str, damage: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    shutil.copytree(SAMPLES / file.split("/")[0], tmp_path / file.split("/")[0])
    damage(tmp_path / file)
    with pytest.raises(UserError, match=message) as error:
        open_source(tmp_path / file.split("/")[0])
    assert "\n" not in str(error.value)


def test_depth_and_what_is_no_number_is_left_out(tmp_path: Path) -> None:
    shutil.copytree(SAMPLES / "lerobot30", folder := tmp_path / "set")
    features = json.loads((folder / "meta/info.json").read_text())["features"]
    features["observation.images.front"]["info"]["video.is_depth_map"] = True
    features["action"]["dtype"] = "what is not known yet"
    edit(folder / "meta/info.json", features=features)
    episode = open_source(folder)[0]
    assert set(episode.videos) == {"hand"}
    assert set(episode.steps) == {"observation/state", "next/success", "annotation"}


def test_damaged_episodes_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.copytree(SAMPLES / "lerobot21", folder := tmp_path / "set")
    table = pyarrow.parquet.read_table(path := folder / "data/chunk-000/episode_000000.parquet")
    times = pyarrow.array(np.arange(7, dtype=np.float32) / 9)
    changed = table.set_column(table.column_names.index("timestamp"), "timestamp", times)
    pyarrow.parquet.write_table(changed, path)
    (folder / "videos/chunk-000/observation.images.front/episode_000002.mp4").unlink()
    assert convert.to_store(open_source(folder), tmp_path / "store") == 1
    assert "episode 0 is left out: timestamps of episode 0" in caplog.text
    assert "episode 2 is left out" in caplog.text
    slow = folder / "videos/chunk-000/observation.images.front/episode_000001.mp4"
    slow.write_bytes(encode(np.zeros((5, 32, 48, 3), np.uint8), 20).data)
    with pytest.raises(UserError, match="none of the 3 episodes"):
        convert.to_store(open_source(folder), tmp_path / "other")


@pytest.mark.slow
@pytest.mark.skipif("WAMJAX_ORACLES" not in os.environ, reason="WAMJAX_ORACLES: the folder given to tests/oracles")
@pytest.mark.parametrize("source", ["lerobot21", "lerobot30", "several files", "native"])
def test_lerobot_opens_our_output(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_episode: Callable[..., Episode]
) -> None:
    """LeRobot 0.4.4 itself returns the values, texts and frames that we wrote."""
    if source == "native":
        episodes: Source = Listed("ours", [5, 12, 7], lambda length: renamed(make_episode(length, length)))
    else:
        episodes = open_source(SAMPLES / ("lerobot21" if source == "several files" else source))
    if source == "several files":
        monkeypatch.setattr("wamjax.data.lerobot_export.DATA_BYTES", 300)
        monkeypatch.setattr("wamjax.data.lerobot_export.VIDEO_BYTES", 3000)
    export_dataset(episodes, tmp_path / "out")
    script = Path(__file__).parents[1] / "oracles/lerobot.sh"
    read = ["bash", script, os.environ["WAMJAX_ORACLES"], "read", tmp_path / "out", tmp_path / "out.npz"]
    subprocess.run(read, check=True)
    assert_equals_lerobot(episodes, tmp_path / "out.npz")


def renamed(episode: Episode) -> Episode:
    """One of the synthetic episodes with the names of the samples."""
    steps = {"action": episode.steps["action"], "next/success": episode.steps["success"]}
    videos = dict(zip(("front", "hand"), episode.videos.values(), strict=True))
    state = episode.steps["observation/cartesian_position"]
    return replace(episode, steps={**steps, "observation/state": state}, videos=videos)
