"""CALVIN: one `.npz` per step, `training/episode_0000000.npz`, and tables of what belongs together.

    ep_start_end_ids.npy                first and last step of each recording
    lang_annotations/auto_lang_ann.npy  windows of about 64 steps with an instruction (a pickle: see `data/pickles.py`)

Source: `dataset/README.md` of mees/calvin.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from wamjax.data.episode import BadEpisode, Episode
from wamjax.data.pickles import read_arrays
from wamjax.data.readers import Listed, Options, Source
from wamjax.data.readers.pictures import check_pictures
from wamjax.data.storage import MALFORMED, Place, brief
from wamjax.errors import UserError

TITLE = "CALVIN (a folder of .npz, one per step)"
_FPS = 30.0
_SPLITS = {"train": "training", "validation": "validation"}
_FIELDS = {
    "rel_actions": ("action", 7),
    "actions": ("action_dict/absolute", 7),
    "robot_obs": ("observation/robot_obs", 15),
    "scene_obs": ("observation/scene_obs", 24),
}
_CAMERAS = ("rgb_static", "rgb_gripper")

_Entry = tuple[int, int, str]


def recognises(place: Place) -> bool:
    """Whether there is CALVIN's table of recordings."""
    return any((place / f"{part}ep_start_end_ids.npy").is_file() for part in ("", "training/", "validation/"))


def open_dataset(place: Place, options: Options) -> Source:
    """The annotated windows, or the whole recordings where none are; `action` is the relative one.

    `place` is the dataset (then the split chooses its folder) or one of the folders. Depth and touch are left out.

    Raises:
        UserError: no such split, or a table that cannot be used.
    """
    folder = place
    if not (place / "ep_start_end_ids.npy").is_file():
        folder = place / _SPLITS.get(options.split, options.split)
        if not (folder / "ep_start_end_ids.npy").is_file():
            raise UserError(f"{place} has no split '{options.split}': choose among {', '.join(_SPLITS)}")
    fps = options.rate(_FPS, place)
    return Listed(place.name, _entries(folder), lambda entry: _episode(folder, entry, fps, options))


def _entries(folder: Place) -> list[_Entry]:
    """First and last step and the instruction of each episode."""
    annotations = folder / "lang_annotations/auto_lang_ann.npy"
    if not annotations.is_file() and annotations.parent.exists():
        raise UserError(f"{annotations} is missing: get it again, or remove its folder to read whole recordings")
    table = annotations if annotations.is_file() else folder / "ep_start_end_ids.npy"
    try:
        found: Any = read_arrays(table)[""]
        if table is annotations:
            windows, texts = found["info"]["indx"], found["language"]["ann"]
            return [(int(a), int(b), str(text)) for (a, b), text in zip(windows, texts, strict=True)]
        return [(int(a), int(b), "") for a, b in found.tolist()]
    except (BadEpisode, *MALFORMED) as error:
        raise UserError(f"{table} is no table of episodes ({brief(error)}): get it again") from error


def _episode(folder: Place, entry: _Entry, fps: float, options: Options) -> Episode:
    first, last, text = entry
    if not 0 <= first <= last < 10_000_000:
        raise BadEpisode(f"{folder} lists an episode of the steps {first} to {last}: get it again")
    rows = [read_arrays(folder / f"episode_{number:07d}.npz") for number in range(first, last + 1)]
    where = f"steps {first} to {last} of {folder}"
    steps = {ours: _stacked(rows, name, where, (size,)) for name, (ours, size) in _FIELDS.items()}
    videos = {}
    for camera in _CAMERAS:
        pictures = check_pictures(_stacked(rows, camera, where, None), f"{camera} of {where}")
        videos[camera] = options.encode(pictures, fps)
    metadata: dict[str, Any] = {"fps": fps, "embodiment": "panda", "source": f"{folder.name}/{first}-{last}"}
    return Episode(steps, videos, (text,) if text else (), metadata)


def _stacked(rows: list[dict[str, Any]], name: str, where: str, shape: tuple[int, ...] | None) -> np.ndarray:
    """An array of every step."""
    try:
        values = np.stack([row[name] for row in rows])
    except MALFORMED as error:
        raise BadEpisode(f"{where} have no '{name}' of one shape ({brief(error)}): get them again") from error
    if values.dtype.kind not in "biuf" or (shape is not None and values.shape[1:] != shape):
        raise BadEpisode(f"{where} have '{name}' of {values.dtype} {values.shape[1:]}, not {shape}: get them again")
    return values
