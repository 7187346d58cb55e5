"""Every fault is flagged by its name, and nothing else is; a sound recording has no flag."""

import json

import numpy as np
import pytest

from wamjax.cli.main import main
from wamjax.data.episode import Episode, Video
from wamjax.data.quality import CHECKS, Flag, Thresholds, examine, named
from wamjax.data.readers import Listed
from wamjax.data.selection import Selection, kept
from wamjax.data.store import EpisodeStore, finish, write_shard
from wamjax.data.video import encode
from wamjax.errors import UserError

T, FPS, DEFAULT = 60, 15.0, Thresholds()
JOINT, ACTION = "observation/joint_position", "action_dict/joint_position"


def film(frozen: slice = slice(0), dark: int = 0) -> Video:
    """Noise, of which some pictures repeat the first of them, or are black."""
    frames = np.random.default_rng(1).integers(90, 160, (T, 16, 16, 3), dtype=np.uint8)
    frames[frozen] = frames[frozen.start or 0]
    frames[:dark] = 0
    return encode(frames, FPS, crf=0)


def recording(seed: int = 0, **changes) -> Episode:
    """Two joints and a gripper go their ways in four seconds, before two cameras; parts may be exchanged."""
    time = np.arange(T) / FPS
    joints, targets = (np.stack([np.sin(t + seed), np.cos(2 * t)], axis=1) for t in (time, time + 2 / FPS))
    gripper = (time[:, None] > 2).astype(np.float32)
    steps = {JOINT: joints, ACTION: targets, "observation/gripper_position": gripper, "timestamp": time[:, None]}
    parts = {
        "steps": steps | changes.pop("steps", {}),
        "videos": {"wrist": film(), "front": film()} | changes.pop("videos", {}),
        "language": ("open the drawer",),
        "metadata": {"fps": FPS, "source": f"recording {seed}"},
    }
    return Episode(**parts | changes)


def with_values(name: str, index, value) -> dict:
    """A change of some values of a field."""
    values = np.array(recording().steps[name], np.float64)
    values[index] = value
    return {"steps": {name: values}}


def flags(*episodes: Episode, thresholds: Thresholds = DEFAULT) -> list[list[Flag]]:
    source = Listed("some", list(episodes), lambda episode: episode)
    return [list(report.flags) for report in examine(source, list(CHECKS.values()), thresholds)]


FAULTS = {
    "black": {"videos": {"wrist": film(dark=10)}},
    "frozen": {"videos": {"front": film(frozen=slice(10, 40))}},
    "video": {"videos": {"wrist": Video(b"no video", T, 16, 16)}},
    "not finite": with_values("timestamp", (5, 0), np.nan) | {"videos": {}},
    "jump": with_values(ACTION, (slice(20, 60), 0), 400.0),
    "stuck": with_values(JOINT, (slice(None), 1), 0.3),
    "gripper": {"steps": {"observation/gripper_position": np.linspace(0, 100, T)[:, None]}},
    "idle": {"steps": {"action_dict/joint_velocity": np.full((T, 2), 0.4)}},
    "language": {"language": ("", " ")},
    "time": with_values("timestamp", (30, 0), 0.1),
    "lag": {"steps": {ACTION: np.roll(recording().steps[ACTION], -12, axis=0)}},
}
BESIDE = {"jump": {"lag"}, "stuck": {"lag"}, "time": {"jump"}}
"""Flags that a fault may well have, too."""


@pytest.mark.parametrize("kind", FAULTS)
def test_every_fault_has_its_flag(kind):
    (found,) = flags(recording(**FAULTS[kind]))
    kinds = {flag.kind for flag in found}
    assert kind in kinds, found
    assert kinds <= {kind} | BESIDE.get(kind, set()), found


def test_a_sound_recording_has_no_flag_and_a_repeated_one_has():
    again = Flag("duplicate", "", "the same steps as episode 0")
    assert flags(recording(0), recording(1), recording(0)) == [[], [], [again]]


def test_a_sudden_motion_is_no_jump():
    """A gripper that trembles, and closes in two steps; it has a jump where it does so in one, or once goes astray."""
    trembling = 0.1 + 1e-4 * np.random.default_rng(0).random(T)[:, None]
    closing, shut, astray = trembling.copy(), trembling.copy(), trembling.copy()
    closing[30], closing[31:], shut[30:], astray[30] = 0.5, 0.9, 0.9, 0.9
    found = flags(*(recording(steps={"observation/gripper_position": each}) for each in (closing, shut, astray)))
    assert [[flag.kind for flag in each] for each in found] == [[], ["jump"], ["jump"]]


@pytest.mark.parametrize("crf", [18, 30])
def test_the_codec_does_not_thaw_a_frozen_camera(crf, make_scene):
    """Compressed, few of the pictures are the same bit by bit, and every key frame looks a little different."""
    frames = np.repeat(make_scene(T, seed=0, size=64), 2, axis=1)
    frozen = frames.copy()
    frozen[10:50] = frames[10]
    for pictures, kinds in ((frames, set()), (frozen, {"frozen"})):
        (found,) = flags(recording(videos={"front": encode(pictures, FPS, crf=crf)}))
        assert {flag.kind for flag in found} == kinds


def test_thresholds_decide():
    (found,) = flags(recording(), thresholds=Thresholds(cameras=("wrist", "left"), longest=3.0, black=130.0))
    assert [str(flag) for flag in found] == [
        "camera (left): missing",
        "black (wrist): 100% of the pictures are black",
        "black (front): 100% of the pictures are black",
        "length: 4.0 seconds",
    ]
    (found,) = flags(recording(steps={"timestamp": np.arange(T)[:, None] / 10.0}))
    assert [str(flag) for flag in found] == ["time (timestamp): 10 steps per second, not 15"]


def bright(episode: Episode, thresholds: Thresholds):
    """A check of a user's."""
    yield Flag("bright", "", "always")


def test_checks_are_named():
    assert named("gripper") is CHECKS["gripper"]
    assert named("tests.data.test_quality:bright").__name__ == "bright"
    for wrong in ("brightness", "tests.data.test_quality:none", "no.module:f"):
        with pytest.raises(UserError, match=f"no check '{wrong}'"):
            named(wrong)


def test_the_verb_tells_writes_and_confines_training(tmp_path, capsys):
    data, out, ranges = tmp_path / "data", tmp_path / "quality.jsonl", tmp_path / "sound.json"
    write_shard(data, "train", "some", [recording(0), recording(1), recording(2, language=())])
    finish(data)
    options = ["--out", str(out), "--ranges", str(ranges)]
    assert main(["data", "quality", str(data), *options, "--check", "tests.data.test_quality:bright"]) == 0
    assert "3 of 3 episodes have flags" in capsys.readouterr().out
    assert json.loads(ranges.read_text()) == {}
    assert main(["data", "quality", str(data), *options, "--set", "longest=60"]) == 0
    said = capsys.readouterr().out
    assert "1 of 3 episodes have flags" in said
    assert "episode 2: language: no instruction" in said
    assert [len(json.loads(line)["flags"]) for line in out.read_text().splitlines()] == [0, 0, 1]
    assert set(kept(EpisodeStore(data), Selection(ranges=str(ranges))).episode.tolist()) == {0, 1}
    for wrong in (["--skip", "colour"], ["--set", "blck=3"], ["--check", "gripper2"]):
        assert main(["data", "quality", str(data), *wrong]) == 2
        assert capsys.readouterr().err.count("\n") == 1
