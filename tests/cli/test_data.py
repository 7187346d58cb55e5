"""The verb `data`, from the command line on."""

from pathlib import Path

import numpy as np
import pytest

from wamjax.cli.main import main
from wamjax.data.episode import Episode
from wamjax.data.store import finish, write_shard
from wamjax.data.video import encode


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A finished dataset of two tasks."""
    frames = np.zeros((4, 16, 16, 3), np.uint8)
    for task, count in (("door", 2), ("drawer", 1)):
        episode = Episode(
            steps={"action": np.full((4, 2), 0.5, np.float32)},
            videos={"corner2": encode(frames, 20.0)},
            metadata={"fps": 20.0, "task": task},
        )
        write_shard(tmp_path, "train", task, [episode] * count)
    finish(tmp_path, name="doors")
    return tmp_path


def test_inspect_tells_what_is_there(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "inspect", str(folder), "--verify"]) == 0
    text = capsys.readouterr().out
    assert "doors, 20 steps per second" in text
    assert "corner2 16x16" in text
    assert "action float32 [2], 1 % [0.5, 0.5], 99 % [0.5, 0.5]" in text
    assert "train: 3 episodes, 12 steps" in text
    assert "door: 2 episodes of 4.0 steps" in text


def test_only_some_tasks_are_listed(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setattr("wamjax.cli._data.inspect.LINES", 1)
    assert main(["data", "inspect", str(folder)]) == 0
    text = capsys.readouterr().out
    assert "door: 2 episodes" in text
    assert "and 1 more" in text
    assert "drawer" not in text


def test_a_changed_shard_is_found(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard = next(folder.glob("*.array_record"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    assert main(["data", "inspect", str(folder), "--verify"]) == 2
    assert "has changed since it was written" in capsys.readouterr().err


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "inspect", str(tmp_path / "none")]) == 2
    assert "no dataset" in capsys.readouterr().err
    assert main(["data"]) == 2
    assert "required: COMMAND" in capsys.readouterr().err
    collect = ["data", "collect", "--config", "configs/metaworld_joint.py", "--out", str(tmp_path / "out")]
    assert main([*collect, "--processes", "0"]) == 2
    assert "--processes 0: give a number of at least 1" in capsys.readouterr().err
