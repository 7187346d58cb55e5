"""HDF5 of RoboTwin 2.0, both layouts, one episode per file.

    data/<task>/<config>/data/episode0.hdf5           joint_action/*, endpose/*, observation/<camera>/rgb,
    data/<task>/<config>/instructions/episode0.json   {"seen": [...], "unseen": [...]}
    episode_0000000.hdf5                              (since August 2026) state/*, action/*, vision/<camera>/colors

Its pictures were handed as RGB to an encoder that expects BGR: decoded as any JPEG, red and blue are exchanged, and so
they are exchanged back here, unless the comment in the JPEG says that it was written rightly. The older layout has
states only; the action at t is the state at t + 1, as in RoboTwin's own conversions, so an episode is one step shorter.

Source: `envs/utils/pkl2hdf5.py`, `policy/ACT/process_data.py` of RoboTwin-Platform/RoboTwin.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np

from wamjax.data.episode import BadEpisode, Episode, Pictures, Video
from wamjax.data.hdf5 import array, is_dataset, names, numbers, open_file, pictures, text
from wamjax.data.readers import Listed, Options, Source
from wamjax.data.storage import MALFORMED, Place, read_json
from wamjax.errors import UserError

TITLE = "HDF5 of RoboTwin 2.0 (legacy and v1.0)"
_FPS = 15.0
_RIGHT = b"XPL-RGB1"  # the comment of newer writers of the same layout
_ARMS = ("left_arm", "left_gripper", "right_arm", "right_gripper")


def recognises(place: Place) -> bool:
    """Whether the first file is one."""
    files = _files(place)
    try:
        with open_file(files[0]) as opened:
            return "joint_action" in opened or "vision" in opened
    except (BadEpisode, IndexError):
        return False


def open_dataset(place: Place, options: Options) -> Source:
    """The episodes: `observation/<name>`, and `action` (legacy) or `action_dict/<name>` (v1.0)."""
    options.only_train(place)
    return Listed(place.stem, _files(place), lambda file: _episode(file, options))


def _files(place: Place) -> list[Place]:
    if place.is_file():
        return [place]
    return sorted(place.find("**/episode*.hdf5"), key=lambda file: (file.parent.path, len(file.name), file.name))


def _episode(file: Place, options: Options) -> Episode:
    with open_file(file) as opened:
        steps, shown, language, fps = (_legacy if "joint_action" in opened else _version_1)(opened, file)
    length = len(next(iter(steps.values())))
    rate = options.rate(fps, file)
    videos: dict[str, Video] = {}
    for camera, frames in shown.items():
        if (count := frames.frames) < length:
            raise BadEpisode(f"camera {camera} of {file} has {count} pictures for {length} steps: get it again")
        videos[camera] = options.encode(replace(frames, frames=length), rate)
    return Episode(steps, videos, language, {"fps": rate, "embodiment": "robotwin", "source": file.name})


_Parts = tuple[dict[str, np.ndarray], dict[str, Pictures], tuple[str, ...], float]


def _legacy(opened: Any, file: Place) -> _Parts:
    """Steps, pictures, language and rate of the older layout."""
    states = {name: numbers(opened["joint_action"], name, file) for name in names(opened, "joint_action", file)}
    if "vector" not in states:
        parts = [states[name].reshape(len(states[name]), -1) for name in _ARMS if name in states]
        states["vector"] = np.concatenate(parts, axis=1)
    action = states["vector"][1:]
    seen = {f"observation/{name}": values for name, values in states.items()}
    if "endpose" in opened:
        poses = {name: numbers(opened["endpose"], name, file) for name in names(opened, "endpose", file)}
        seen |= {f"observation/endpose/{name}": values for name, values in poses.items()}
    steps = {"action": action} | {name: values[:-1] for name, values in seen.items()}
    shown = {}
    for camera in names(opened, "observation", file):
        if is_dataset(opened["observation"], f"{camera}/rgb"):
            shown[camera] = pictures(opened["observation"], f"{camera}/rgb", file, swapped_unless=_RIGHT)
    texts = file.parent.parent / f"instructions/{file.stem}.json"
    language: tuple[str, ...] = ()
    if texts.is_file():
        try:
            language = tuple(str(said) for said in read_json(texts)["seen"])
        except MALFORMED as error:
            raise UserError(f"{texts} has no list 'seen': write it again") from error
    return steps, shown, language, _FPS


def _version_1(opened: Any, file: Place) -> _Parts:
    """The same of the layout v1.0, which has actions (one fewer than states)."""
    version = text(array(opened, "data_format_version", file))
    if version != "v1.0":
        raise BadEpisode(f"{file} has the format {version}: v1.0 and the older one without a version are read")
    actions = {name: numbers(opened["action"], name, file) for name in names(opened, "action", file)}
    if not actions:
        raise BadEpisode(f"{file} has no actions: get it again")
    length = len(next(iter(actions.values())))
    steps = {f"action_dict/{name}": values for name, values in actions.items()}
    for name in names(opened, "state", file):
        steps[f"observation/{name}"] = numbers(opened["state"], name, file)[:length]
    shown = {
        camera: pictures(opened["vision"], f"{camera}/colors", file, swapped_unless=_RIGHT)
        for camera in names(opened, "vision", file)
        if is_dataset(opened["vision"], f"{camera}/colors")
    }
    language = tuple(str(said) for said in json.loads(text(array(opened, "instructions", file))))
    fps = _FPS
    if is_dataset(opened, "additional_info/frequency"):
        fps = float(array(opened, "additional_info/frequency", file))
    return steps, shown, language, fps
