"""DROID as recorded: a folder per episode with `trajectory.h5`, `metadata_<id>.json`, `recordings/MP4/<serial>.mp4`.

The names become those of the RLDS release; the cameras are chosen as there: the wrist camera is of type 0, the other
two are the first of another type by serial number. The videos are taken over as they are, 1280x720; the release shows
them in 320x180 (`wamjax data convert --size 180x320`).

Source: `droid/droid.py` of kpertsch/droid_dataset_builder; `trajectory_utils/misc.py` of droid-dataset/droid.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from wamjax.data.episode import JSON, BadEpisode, Episode, Video
from wamjax.data.hdf5 import is_dataset, names, numbers, open_file
from wamjax.data.readers import Listed, Options, Source
from wamjax.data.storage import MALFORMED, Place, read_json
from wamjax.data.video_files import read_video
from wamjax.errors import UserError

TITLE = "DROID as recorded (trajectory.h5 and MP4)"
_FPS = 15.0
_ANNOTATIONS = "aggregated-annotations-030724.json"
_STATE = {
    "cartesian_position": "observation/cartesian_position",
    "joint_positions": "observation/joint_position",
    "gripper_position": "observation/gripper_position",
}
_ACTION = tuple(f"{part}_{kind}" for part in ("cartesian", "gripper", "joint") for kind in ("position", "velocity"))


def recognises(place: Place) -> bool:
    """Whether there is an episode in the folder, or not too deep below it."""
    # As deep as the release goes: <lab>/<success or failure>/<date>/<time>.
    return any(place.find("*/" * depth + "trajectory.h5") for depth in range(5))


def open_dataset(place: Place, options: Options) -> Source:
    """The episodes below a folder, with the language of `aggregated-annotations-030724.json` if that lies in it.

    A camera that stopped early ends the episode, as in the release.
    """
    options.only_train(place)
    file = place / _ANNOTATIONS
    annotations = read_json(file) if file.is_file() else {}
    if not isinstance(annotations, dict):
        raise UserError(f"{file} is no table of episodes: get it again")
    fps = options.rate(_FPS, place)
    return Listed(place.name, place.find("**/trajectory.h5"), lambda file: _episode(file, annotations, fps))


def _episode(file: Place, annotations: dict[str, Any], fps: float) -> Episode:
    folder = file.parent
    with open_file(file) as opened:
        steps = {}
        for name, ours in _STATE.items():
            steps[ours] = numbers(opened, f"observation/robot_state/{name}", file)
        for name in _ACTION:
            steps[f"action_dict/{name}"] = numbers(opened, f"action/{name}", file)
        if is_dataset(opened, moving := "observation/controller_info/movement_enabled"):
            steps["observation/movement_enabled"] = numbers(opened, moving, file)
        kinds = {
            serial: int(numbers(opened, f"observation/camera_type/{serial}", file)[0])
            for serial in names(opened, "observation/camera_type", file)
        }
    found = {
        name: read_video(folder / f"recordings/MP4/{serial}.mp4") for name, serial in _cameras(kinds, file).items()
    }
    recorded = {len(values) for values in steps.values()}
    if len(recorded) != 1:
        raise BadEpisode(f"{file} has parts of {sorted(recorded)} steps: get it again")
    length = min(*recorded, *(video.frames for video in found.values()))
    steps = {name: _vectors(values[:length], name) for name, values in steps.items()}
    videos = {name: Video(video.data, length, video.height, video.width) for name, video in found.items()}
    language, metadata = _described(folder, annotations)
    metadata |= {"fps": fps, "embodiment": "droid", "source": folder.path, "recorded_steps": recorded.pop()}
    if "/success/" in folder.path or "/failure/" in folder.path:
        metadata["success"] = "/success/" in folder.path
    return Episode(steps, videos, language, metadata)


def _vectors(values: np.ndarray, name: str) -> np.ndarray:
    """Grippers as vectors of one number."""
    return values[:, None] if "gripper" in name and values.ndim == 1 else values


def _cameras(kinds: dict[str, int], file: Place) -> dict[str, str]:
    """Camera -> serial number."""
    wrist = sorted(serial for serial, kind in kinds.items() if kind == 0)
    around = sorted(serial for serial, kind in kinds.items() if kind != 0)
    if not wrist or len(around) < 2:
        raise BadEpisode(f"{file} has {len(wrist)} wrist cameras and {len(around)} others: DROID has one and two")
    return {"wrist_image_left": wrist[0], "exterior_image_1_left": around[0], "exterior_image_2_left": around[1]}


def _described(folder: Place, annotations: dict[str, Any]) -> tuple[tuple[str, ...], dict[str, JSON]]:
    """Language and metadata of an episode."""
    files = folder.find("metadata_*.json")
    if not files:
        return (), {}
    identity = files[0].stem.rsplit("_", 1)[-1]
    found = read_json(files[0])
    try:
        texts = [str(annotations.get(identity, {}).get(f"language_instruction{i}") or "") for i in (1, 2, 3)]
        kept = ("uuid", "lab", "building", "scene_id", "current_task")
        return tuple(text for text in texts if text), {key: found[key] for key in kept if key in found}
    except MALFORMED as error:
        raise BadEpisode(f"{files[0]} or {_ANNOTATIONS} is no table: get it again") from error
