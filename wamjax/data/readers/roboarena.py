"""Dumps of RoboArena: evaluations of policies on DROID robots, with two or three cameras.

    global_metadata.yaml                                         what is known of each policy
    evaluation_sessions/<uuid>/metadata.yaml                     instruction, preference, success of each policy
    evaluation_sessions/<uuid>/A_<policy>/*.npz, *left.mp4, *right.mp4, *wrist.mp4

The arrays are pickled by strangers: see `data/pickles.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import yaml

from wamjax.data.episode import JSON, BadEpisode, Episode, Video
from wamjax.data.pickles import read_arrays
from wamjax.data.readers import Listed, Options, Source
from wamjax.data.storage import MALFORMED, Place, brief
from wamjax.data.video_files import read_video
from wamjax.errors import UserError

TITLE = "RoboArena's data dumps"
_FPS = 15.0  # of the robot; the videos are to be played with 10
_FIELDS = {
    "cartesian_position": ("observation/cartesian_position", 6),
    "joint_position": ("observation/joint_position", 7),
    "gripper_position": ("observation/gripper_position", 1),
}
_CAMERAS = {"left": "exterior_image_1_left", "right": "exterior_image_2_left", "wrist": "wrist_image_left"}


def recognises(place: Place) -> bool:
    """Whether there are evaluation sessions."""
    return (place / "evaluation_sessions").exists()


def open_dataset(place: Place, options: Options) -> Source:
    """Every rollout of every session: states, `action` (in the policy's own action space, metadata `action_space`).

    Videos have a picture more than there are steps; it is left out. The wrist camera is mounted upside down, and shown
    as recorded. Sessions without a left camera have one camera fewer.
    """
    options.only_train(place)
    policies = _read_yaml(file) if (file := place / "global_metadata.yaml").is_file() else {}
    rollouts = place.find("evaluation_sessions/*/*/*.npz")
    fps = options.rate(_FPS, place)
    return Listed(place.name, rollouts, lambda file: _episode(file, policies, fps))


def _episode(file: Place, policies: dict[str, Any], fps: float) -> Episode:
    rows = read_arrays(file).get("data")
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise BadEpisode(f"{file} has no list of steps 'data': get it again")
    steps = {ours: _column(rows, name, size, file) for name, (ours, size) in _FIELDS.items()}
    steps["action"] = _column(rows, "action", None, file)
    videos: dict[str, Video] = {}
    for video in file.parent.find("*.mp4"):
        side = next((side for side in _CAMERAS if video.stem.endswith((side, f"{side}_shoulder"))), None)
        if side is not None:
            videos[_CAMERAS[side]] = read_video(video, len(rows))
    if not videos:
        raise BadEpisode(f"{file.parent} has no videos: get it again")
    session = file.parent.parent
    language, metadata = _described(session, file.parent.name, policies)
    metadata |= {"fps": fps, "embodiment": "droid", "source": f"{session.name}/{file.parent.name}"}
    return Episode(steps, videos, language, metadata)


def _column(rows: list[dict[str, Any]], name: str, size: int | None, file: Place) -> np.ndarray:
    """A field of all steps, (T, size)."""
    try:
        values = np.stack([np.asarray(row[name], np.float64).reshape(-1) for row in rows])
    except MALFORMED as error:
        raise BadEpisode(f"{file} has steps without numbers '{name}' ({brief(error)}): get it again") from error
    if values.shape[1] != size and (size is not None or values.shape[1] == 0):
        raise BadEpisode(f"{file} has {values.shape[1]} numbers of '{name}' per step, not {size}: get it again")
    return values


def _described(session: Place, rollout: str, policies: dict[str, Any]) -> tuple[tuple[str, ...], dict[str, JSON]]:
    """Language and metadata of a rollout, `<LETTER>_<policy>`."""
    file = session / "metadata.yaml"
    try:
        said = _read_yaml(file)
        letter, _, policy = rollout.partition("_")
        result = said["policies"].get(letter) or {}
        text = str(said.get("language_instruction") or "").strip()
        metadata: dict[str, JSON] = {"session": session.name, "preference": str(said.get("preference"))}
        metadata["policy"] = str(result.get("policy_name") or policy)
        if result.get("binary_success") is not None:
            metadata["success"] = bool(result["binary_success"])
        if result.get("partial_success") is not None:
            metadata["partial_success"] = float(result["partial_success"])
        known = policies.get(str(metadata["policy"]))
        if isinstance(known, dict) and "action_space" in known:
            metadata["action_space"] = str(known["action_space"])
    except (UserError, *MALFORMED) as error:
        raise BadEpisode(f"{file} does not describe {rollout} ({brief(error)}): get it again") from error
    return ((text,) if text else ()), metadata


def _read_yaml(file: Place) -> dict[str, Any]:
    """The table in a YAML file."""
    try:
        found = yaml.safe_load(file.read_bytes())
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{file} cannot be read ({brief(error)}): get it again") from error
    if not isinstance(found, dict):
        raise UserError(f"{file} is no table: get it again")
    return found
