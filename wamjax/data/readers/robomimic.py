"""HDF5 of robomimic and LIBERO: many demonstrations per file, `data/demo_0/{actions, obs/<name>, …}`.

LIBERO's own files record what is seen after an action beside that action, and all of LIBERO's pictures are upside down.
Here they are put right: `action[t]` follows the observation t (so a recorded demonstration is one step shorter), and up
is up. openpi and OpenVLA mirror pictures as well: they turn them by 180 degrees.

Source: `scripts/create_dataset.py` of Lifelong-Robot-Learning/LIBERO, `regenerate_libero_dataset.py` of
openvla/openvla, `scripts/dataset_states_to_obs.py` of ARISE-Initiative/robomimic.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import numpy as np

from wamjax.data.episode import BadEpisode, Episode, Pictures, Video
from wamjax.data.hdf5 import is_dataset, names, numbers, open_file, pictures, text
from wamjax.data.readers import Listed, Options, Source
from wamjax.data.storage import Place
from wamjax.errors import UserError

TITLE = "HDF5 of robomimic and LIBERO (as recorded, and regenerated without idle steps)"
_FPS = 20.0
_RENAMED = {"joint_states": "joint_position", "robot0_joint_pos": "joint_position"}  # what DROID has as well
_RESULTS = {"rewards": "reward", "dones": "is_terminal"}


def recognises(place: Place) -> bool:
    """Whether there are such files."""
    files = _files(place)
    return bool(files) and _first(files[0]) is not None


def open_dataset(place: Place, options: Options) -> Source:
    """The demonstrations: `actions` becomes `action`, what is in `obs` a camera or `observation/<name>`.

    Raises:
        UserError: no such file, or one that cannot be read.
    """
    options.only_train(place)
    entries: list[tuple[Place, str]] = []
    for file in _files(place):
        with open_file(file) as opened:
            demos = [name for name in names(opened, "data", file) if re.fullmatch(r"demo_\d+", name)]
        entries += [(file, demo) for demo in sorted(demos, key=lambda name: int(name[5:]))]
    if not entries:
        raise UserError(f"{place} has no HDF5 files with demonstrations: give the file, or the folder that has them")
    fps = options.rate(_FPS, place)
    return Listed(place.stem, entries, lambda entry: _episode(entry[0], entry[1], fps, options))


def _files(place: Place) -> list[Place]:
    if place.is_file():
        return [place] if place.name.endswith((".hdf5", ".h5")) else []
    return place.find("**/*.hdf5")


def _first(file: Place) -> str | None:
    try:
        with open_file(file) as opened:
            return next((name for name in names(opened, "data", file) if name.startswith("demo_")), None)
    except BadEpisode:
        return None


def _episode(file: Place, demo: str, fps: float, options: Options) -> Episode:
    """One demonstration."""
    where = f"{demo} of {file}"
    with open_file(file) as opened:
        data, group = opened["data"], opened["data"][demo]
        is_libero = "problem_info" in data.attrs or is_dataset(group, "robot_states")
        actions = numbers(group, "actions", where)
        length = len(actions)
        steps = {"action": actions}
        for source, name in _RESULTS.items():
            if is_dataset(group, source):
                steps[name] = numbers(group, source, where, length)
        seen: dict[str, np.ndarray] = {}
        shown: dict[str, Pictures] = {}
        if is_dataset(group, "robot_states"):
            seen["observation/robot_states"] = numbers(group, "robot_states", where, length)
        for name in names(group, "obs", where):
            if _is_camera(group["obs"], name):
                shown[_camera(name)] = pictures(group["obs"], name, where)
            elif is_dataset(group["obs"], name) and not name.endswith("_depth"):
                values = numbers(group["obs"], name, where, length)
                seen[f"observation/{_RENAMED.get(name, name)}"] = values
        language, metadata = _task(data, file, is_libero)
    if any(pictures.frames != length for pictures in shown.values()):
        raise BadEpisode(f"{where} has cameras of other lengths than its {length} actions: get it again")
    if is_libero:
        shown = {camera: _mirrored(pictures) for camera, pictures in shown.items()}
    if is_libero and "problem_info" in metadata:
        # Recorded after the action beside it: what was seen before action t stands at t - 1.
        steps = {name: values[1:] for name, values in steps.items()}
        seen = {name: values[:-1] for name, values in seen.items()}
        shown = {camera: replace(pictures, frames=length - 1) for camera, pictures in shown.items()}
    if not len(steps["action"]):
        raise BadEpisode(f"{where} has too few steps")
    ended = any(values[-1] > 0 for name, values in steps.items() if name in _RESULTS.values())
    metadata = {key: value for key, value in metadata.items() if key != "problem_info"}
    metadata |= {"fps": fps, "embodiment": "panda", "success": bool(ended), "source": f"{file.name}/{demo}"}
    videos: dict[str, Video] = {camera: options.encode(pictures, fps) for camera, pictures in shown.items()}
    return Episode(steps | seen, videos, language, metadata)


def _mirrored(shown: Pictures) -> Pictures:
    """Upside down."""
    return replace(shown, read=lambda wanted: shown.read(wanted)[:, ::-1])


def _is_camera(group: Any, name: str) -> bool:
    found = group.get(name)
    return name.endswith("_jpeg") or (is_dataset(group, name) and found.ndim == 4 and found.shape[-1] == 3)


def _camera(name: str) -> str:
    return re.sub(r"(_rgb|_image)?(_jpeg)?$", "", name)


def _task(data: Any, file: Place, is_libero: bool) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Language, and what the file says about the task."""
    metadata: dict[str, Any] = {}
    if "problem_info" in data.attrs:
        metadata["problem_info"] = True
        said = json.loads(text(data.attrs["problem_info"])).get("language_instruction", "")
        said = " ".join(said) if isinstance(said, list) else str(said)
        return ((said.strip(' "'),) if said.strip(' "') else ()), metadata
    if is_libero:
        words = re.sub(r"_demo$", "", file.stem).split("_")
        scene = max((i + 1 for i, word in enumerate(words) if "SCENE" in word), default=0)
        return (" ".join(words[scene:]),), metadata
    if "env_args" in data.attrs:
        metadata["task"] = str(json.loads(text(data.attrs["env_args"])).get("env_name"))
    return (), metadata
