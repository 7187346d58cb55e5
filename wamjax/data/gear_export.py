"""Episode stores as GEAR datasets, with the metadata that DreamZero's own training reads.

Source of the metadata: `scripts/data/convert_lerobot_to_gear.py` of dreamzero0/dreamzero.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wamjax.data.embodiments import Embodiment, Field
from wamjax.data.episode import ANNOTATION, ANNOTATIONS, Episode
from wamjax.data.files import replacing, write_json
from wamjax.data.gear import COLUMNS, RELATIVE_STATISTICS
from wamjax.data.normalise import dataset_statistics, relative_statistics
from wamjax.data.store import EpisodeStore
from wamjax.errors import UserError

CHUNK_EPISODES = 1000
_DATA = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
_VIDEO = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"


def export_dataset(store: EpisodeStore, folder: str | os.PathLike[str], embodiment: Embodiment) -> None:
    """Write the episodes of a store (its split) as a GEAR dataset; the metadata comes last.

    Raises:
        UserError: the store lacks a field or camera of the embodiment, or the disk is full.
    """
    folder = Path(folder)
    for field in (*embodiment.state, *embodiment.action):
        if field.name not in store.fields:
            raise UserError(f"no step field '{field.name}' in {store.folder}: choose another embodiment")
    for camera in embodiment.cameras:
        if camera not in store.cameras:
            raise UserError(f"no camera '{camera}' in {store.folder}: choose another embodiment")
    tasks: dict[str, int] = {}
    described = []
    for number in range(len(store)):
        described.append(_write_episode(folder, number, store[number], embodiment, tasks))
    write_metadata(store, folder, embodiment)
    _write_lines(folder / "meta/tasks.jsonl", [{"task_index": i, "task": text} for text, i in tasks.items()])
    _write_lines(folder / "meta/episodes.jsonl", described)
    write_json(folder / "meta/info.json", _info(store, embodiment, len(tasks)))


def write_metadata(store: EpisodeStore, folder: str | os.PathLike[str], embodiment: Embodiment) -> None:
    """Write meta/modality.json, embodiment.json, stats.json and the statistics of relative actions.

    They describe a dataset whose columns `observation.state` and `action` are the embodiment's fields side by side.
    """
    meta = Path(folder) / "meta"
    meta.mkdir(parents=True, exist_ok=True)
    annotations = {key: {"original_key": f"annotation.{key}"} for key in embodiment.annotations}
    modality = {
        "state": _places(COLUMNS["state"], embodiment.state, store),
        "action": _places(COLUMNS["action"], embodiment.action, store),
        "video": {camera: {"original_key": _video_key(camera)} for camera in embodiment.cameras},
        "annotation": annotations,
    }
    absolute = {
        COLUMNS[part]: _side_by_side([store.statistics[field.name] for field in fields])
        for part, fields in (("state", embodiment.state), ("action", embodiment.action))
    }
    write_json(meta / "modality.json", modality)
    write_json(meta / "embodiment.json", {"robot_type": embodiment.tag, "embodiment_tag": embodiment.tag})
    write_json(meta / "stats.json", absolute)
    if any(field.relative for field in embodiment.action):
        write_json(meta / RELATIVE_STATISTICS, relative_statistics(store, embodiment))


def checkpoint_metadata(store: EpisodeStore, embodiment: Embodiment) -> dict[str, Any]:
    """The content of experiment_cfg/metadata.json for a model trained on this store."""

    def described(field: Field) -> dict[str, Any]:
        continuous = np.dtype(store.fields[field.name]["dtype"]).kind == "f"
        return {"absolute": True, "rotation_type": None, "shape": [field.size], "continuous": continuous}

    sizes = {camera: store.cameras[camera] for camera in embodiment.cameras}
    return {
        embodiment.tag: {
            "statistics": dataset_statistics(store, embodiment),
            "modalities": {
                "video": {c: {"resolution": [w, h], "channels": 3, "fps": store.fps} for c, (h, w) in sizes.items()},
                "state": {field.key: described(field) for field in embodiment.state},
                "action": {field.key: described(field) for field in embodiment.action},
            },
            "embodiment_tag": embodiment.tag,
        }
    }


def _write_episode(
    folder: Path, number: int, episode: Episode, embodiment: Embodiment, tasks: dict[str, int]
) -> dict[str, Any]:
    """One episode's files, and its line of episodes.jsonl; new texts are added to `tasks`."""
    import pyarrow
    import pyarrow.parquet

    length, chunk = len(episode), number // CHUNK_EPISODES
    columns: dict[str, Any] = {
        COLUMNS["state"]: _vectors(episode, embodiment.state),
        COLUMNS["action"]: _vectors(episode, embodiment.action),
        "timestamp": pyarrow.array(np.arange(length) / float(episode.metadata["fps"])),  # type: ignore[arg-type]
        "frame_index": pyarrow.array(np.arange(length)),
        "episode_index": pyarrow.array(np.full(length, number)),
    }
    texts = _texts(episode, len(embodiment.annotations))
    for key, chosen in zip(embodiment.annotations, texts, strict=True):
        numbers = [tasks.setdefault(text, len(tasks)) for text in chosen]
        columns[f"annotation.{key}"] = pyarrow.array(np.array(numbers, np.int64))
    columns["task_index"] = columns[f"annotation.{embodiment.annotations[0]}"]
    path = folder / _DATA.format(episode_chunk=chunk, episode_index=number)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        pyarrow.parquet.write_table(pyarrow.table(columns), partial)
    for camera in embodiment.cameras:
        key = _video_key(camera)
        path = folder / _VIDEO.format(episode_chunk=chunk, episode_index=number, video_key=key)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            partial.write_bytes(episode.videos[camera].data)
    return {"episode_index": number, "tasks": sorted({text for chosen in texts for text in chosen}), "length": length}


def _texts(episode: Episode, columns: int) -> list[list[str]]:
    """The text of every step in each of the annotation columns; alternatives beyond their number are left out."""
    if ANNOTATION in episode.steps:
        texts: Any = episode.metadata[ANNOTATIONS]
        return [[str(texts[i]) for i in episode.steps[ANNOTATION].tolist()]] * columns
    alternatives = (*episode.language, *[""] * columns)[:columns]
    return [[text] * len(episode) for text in alternatives]


def _vectors(episode: Episode, fields: Sequence[Field]) -> Any:
    """Fields side by side as a Parquet column of lists."""
    import pyarrow

    values = np.concatenate([episode.steps[field.name].reshape(len(episode), -1) for field in fields], axis=1)
    return pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(np.ascontiguousarray(values).ravel()), values.shape[1])


def _places(column: str, fields: Sequence[Field], store: EpisodeStore) -> dict[str, Any]:
    """modality.json's entries of the fields of one column."""
    entries, start = {}, 0
    for field in fields:
        entries[field.key] = {
            "original_key": column,
            "start": start,
            "end": start + field.size,
            "rotation_type": None,
            "absolute": True,
            "dtype": store.fields[field.name]["dtype"],
            "range": None,
        }
        start += field.size
    return entries


def _side_by_side(parts: Sequence[Any]) -> dict[str, list[float]]:
    """Statistics of a column from those of its fields."""
    return {name: [v for part in parts for v in part[name]] for name in ("mean", "std", "min", "max", "q01", "q99")}


def _info(store: EpisodeStore, embodiment: Embodiment, tasks: int) -> dict[str, Any]:
    """The content of info.json."""
    episodes, chunks = len(store), -(-len(store) // CHUNK_EPISODES)
    features: dict[str, Any] = {
        COLUMNS["state"]: _feature(store, embodiment.state),
        COLUMNS["action"]: _feature(store, embodiment.action),
        "timestamp": {"dtype": "float64", "shape": [1], "names": None},
    }
    whole = ("frame_index", "episode_index", "task_index", *(f"annotation.{key}" for key in embodiment.annotations))
    features |= {name: {"dtype": "int64", "shape": [1], "names": None} for name in whole}
    for camera in embodiment.cameras:
        height, width = store.cameras[camera]
        features[_video_key(camera)] = {
            "dtype": "video",
            "shape": [height, width, 3],
            "names": ["height", "width", "channel"],
            "video_info": {"video.fps": store.fps, "video.is_depth_map": False, "has_audio": False},
        }
    return {
        "codebase_version": "v2.0",
        "robot_type": embodiment.tag,
        "total_episodes": episodes,
        "total_frames": int(store.lengths.sum()),
        "total_tasks": tasks,
        "total_videos": episodes * len(embodiment.cameras),
        "total_chunks": chunks,
        "chunks_size": CHUNK_EPISODES,
        "fps": store.fps,
        "splits": {"train": f"0:{episodes}"},
        "data_path": _DATA,
        "video_path": _VIDEO,
        "features": features,
    }


def _feature(store: EpisodeStore, fields: Sequence[Field]) -> dict[str, Any]:
    """info.json's entry of a column."""
    dtype = np.result_type(*(store.fields[field.name]["dtype"] for field in fields))
    return {"dtype": dtype.name, "shape": [sum(field.size for field in fields)], "names": None}


def _video_key(camera: str) -> str:
    return f"observation.images.{camera}"


def _write_lines(path: Path, values: Sequence[Any]) -> None:
    with replacing(path) as partial:
        partial.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
