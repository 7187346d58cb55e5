"""Captions, filters and cleaning by functions of a user's own, whoever converts, and to whatever format."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from wamjax.cli.main import main
from wamjax.data import convert, hooks
from wamjax.data.quality import named
from wamjax.data.readers import Options, open_source
from wamjax.data.store import EpisodeStore
from wamjax.errors import UserError

SAMPLE = Path(__file__).parent / "samples" / "lerobot21"
HOOKS = """
from dataclasses import dataclass, replace
from wamjax.data.episode import BadEpisode

@dataclass
class Words:
    text: str

def caption(episode):
    return replace(episode, language=(Words("a caption").text, *episode.language))

def again(episode):
    return replace(episode, language=(episode.language[0] + " again",))

def annotate(episode):
    texts = [text.upper() for text in episode.metadata["annotations"]]
    return replace(episode, metadata={**episode.metadata, "annotations": texts})

def second(episode):
    return None if episode.metadata["source"].endswith("1") else episode

def first(episode):
    return None if episode.metadata["source"].endswith("0") else episode

def damaged(episode):
    raise BadEpisode("a video is cut")

def nothing(episode):
    return None

def fails(episode):
    raise KeyError("no\\nkey")

def text(episode):
    return "an episode"

number = 3
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file of hooks."""
    (path := tmp_path / "own.py").write_text(HOOKS)
    return path


def content(folder: Path) -> dict[str, object]:
    """All of a store but its name and what it was begun with."""
    found: dict[str, object] = {
        path.name: path.read_bytes() for path in folder.iterdir() if "conversion" not in path.name
    }
    said = json.loads((folder / "dataset.json").read_text())
    del said["name"], said["checksum"]
    return found | {"dataset.json": said}


def converted(out: Path, *names: object, more: tuple[str, ...] = ()) -> int:
    return main(["data", "convert", str(SAMPLE), str(out), *(f"--map={name}" for name in names), *more])


def test_hooks_rewrite_and_leave_out_in_order(file, tmp_path, capsys, caplog, monkeypatch):
    monkeypatch.setattr(convert, "SHARD_EPISODES", 1)
    names = [f"{file}:{name}" for name in ("first", "caption", "again")]
    with caplog.at_level(logging.WARNING):
        assert converted(tmp_path / "out", *names) == 0
    assert "2 of 3 episodes" in capsys.readouterr().out
    assert [r.getMessage() for r in caplog.records] == [f"episode 0 is left out: hook '{names[0]}' leaves it out"]
    plain, store = open_source(SAMPLE), EpisodeStore(tmp_path / "out")
    for number, episode in ((0, plain[1]), (1, plain[2])):
        assert store[number].language == ("a caption again",)
        assert all(np.array_equal(store[number].steps[key], values) for key, values in episode.steps.items())
    assert converted(tmp_path / "several", *names, more=("--processes", "2")) == 0
    assert content(tmp_path / "several") == content(tmp_path / "out")


def test_hooks_reach_lerobot(file, tmp_path):
    assert converted(tmp_path / "out", f"{file}:second", f"{file}:annotate", more=("--to", "lerobot")) == 0
    source = open_source(tmp_path / "out")
    assert [source[number].language for number in range(len(source))] == [("TASK 0",), ("TASK 2",)]


def test_an_interrupted_conversion_goes_on_with_the_same_hooks_only(file, tmp_path, capsys):
    out, name = tmp_path / "out", f"{file}:caption"
    assert converted(out, name) == 0
    (out / "dataset.json").unlink()
    for others in ([], [name, f"{file}:again"]):
        assert converted(out, *others) == 2
        assert f"was begun with map ['{name} (" in capsys.readouterr().err
    assert converted(out, name) == 0
    file.write_text(HOOKS + "\n")
    assert converted(out, name) == 2
    begun = json.loads((path := out / "conversion-train.json").read_text())
    assert begun.pop("map")
    path.write_text(json.dumps(begun))  # as it was noted before there were hooks
    assert converted(out) == 0


@pytest.mark.parametrize(
    ("hook", "line"),
    [
        ("fails", "hook '{}' fails at episode 0 (KeyError: 'no\\nkey')"),
        ("text", "hook '{}' makes a str of episode 0: return an Episode, or None to leave it out"),
        ("nothing", "none of the 3 episodes of lerobot21 can be used; the first: hook '{}' leaves it out"),
        ("damaged", "none of the 3 episodes of lerobot21 can be used; the first: hook '{}': a video is cut"),
        ("number", "hook '{}' is no function but 3"),
        ("other", "no hook '{}' (KeyError: 'other'): give package.module:function or file.py:function"),
    ],
)
def test_mistakes_are_one_line(file, tmp_path, capsys, caplog, hook, line):
    assert converted(tmp_path / "out", f"{file}:{hook}") == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.endswith(line.format(f"{file}:{hook}")), said


def test_functions_are_found_in_files_and_modules(file):
    assert named(f"{file}:caption").__name__ == "caption"
    assert hooks.function("wamjax.data.video:decode").__module__ == "wamjax.data.video"
    file.write_text("def (")
    for wrong in (f"{file}:caption", "no_colon", "no.module:f", "wamjax.data.video:none", "missing.py:f"):
        with pytest.raises(UserError, match=r"no hook .*: give package\.module:function or file\.py:function"):
            hooks.function(wrong, "hook")


def test_hooks_come_before_videos_are_resized(file):
    calls = []

    def look(episode):
        calls.append({(video.height, video.width) for video in episode.videos.values()})
        return episode

    plain = open_source(SAMPLE)[0]
    episode = open_source(SAMPLE, options=Options(size=(16, 16), hooks=(("look", look),)))[0]
    assert calls == [{(video.height, video.width) for video in plain.videos.values()}]
    assert {(video.height, video.width) for video in episode.videos.values()} == {(16, 16)}
