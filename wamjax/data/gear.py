"""GEAR datasets (LeRobot v2 with the metadata of GR00T and DreamZero) as episodes, and their statistics as ours.

    data/chunk-000/episode_000000.parquet            state and action columns, one row per step
    videos/chunk-000/<column>/episode_000000.mp4     one video per camera
    meta/info.json, episodes.jsonl, tasks.jsonl      frame rate and paths; lengths; texts of the instructions
    meta/modality.json                               which part of which column is which field
    meta/stats.json, relative_stats_dreamzero.json   of the columns; of relative actions

Source: `groot/vla/data/schema/lerobot.py`, `groot/vla/data/dataset/lerobot.py` of dreamzero0/dreamzero.
"""

from __future__ import annotations

import io
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wamjax.data.embodiments import Embodiment, Field
from wamjax.data.episode import ANNOTATION, ANNOTATIONS, BadEpisode, Episode, Video
from wamjax.data.normalise import Statistics
from wamjax.data.store import finish, finished_shard, write_shard
from wamjax.errors import UserError

COLUMNS = {"state": "observation.state", "action": "action"}
"""Columns of state and action where modality.json names none."""
RELATIVE_STATISTICS = "relative_stats_dreamzero.json"
SHARD_EPISODES = 64
_NOT_PROVIDED = ("", "not provided")  # what DROID's conversion writes where an episode has fewer than three texts
_log = logging.getLogger(__name__)

# What JSON of another form than expected raises where it is used.
_DAMAGE = (KeyError, TypeError, ValueError, IndexError, AttributeError)


@dataclass(frozen=True)
class GearDataset:
    """A dataset's folder and metadata, read once.

    Attributes:
        folder: where it is.
        fps: steps per second, Hz.
        lengths: episode number -> steps, without the episodes that info.json discards.
    """

    folder: Path
    fps: float
    lengths: Mapping[int, int]
    _info: Mapping[str, Any]
    _modality: Mapping[str, Any]
    _tasks: Mapping[int, str]

    def episodes(self, embodiment: Embodiment, numbers: Sequence[int] | None = None) -> Iterator[Episode]:
        """Episodes in the embodiment's names; videos are taken over as they are.

        State and action fields that modality.json does not have are an error, unless it has none of them at all (a
        dataset of videos). One annotation becomes the steps' instruction; several are alternatives.

        Raises:
            UserError: a field, camera or annotation of another name, size or form.
            BadEpisode: a damaged or missing file, or parts of different lengths.
        """
        fields = {
            field.name: self._column(part, field)
            for part, all_fields in (("state", embodiment.state), ("action", embodiment.action))
            for field in all_fields
            if self._modality.get(part)
        }
        texts = [self._annotation(key) for key in embodiment.annotations if key in self._modality.get("annotation", {})]
        columns = {column for column, _, _ in fields.values()} | set(texts or ["task_index"])
        cameras = {camera: self._camera(camera) for camera in embodiment.cameras}
        for number in self.lengths if numbers is None else numbers:
            yield self._episode(number, embodiment, fields, texts or ["task_index"], sorted(columns), cameras)

    def statistics(self, embodiment: Embodiment) -> Statistics:
        """Its normalisation statistics, relative ones for relative actions, as `normalise.normalisation` takes them.

        Raises:
            UserError: a file or a field is missing or of another form.
        """
        absolute = _read_json(self.folder / "meta/stats.json")
        parts: Statistics = {"state": {}, "action": {}}
        for part, fields in (("state", embodiment.state), ("action", embodiment.action)):
            for field in fields:
                column, start, end = self._column(part, field)
                try:
                    names = absolute[column].items()
                    parts[part][field.key] = {name: list(map(float, values[start:end])) for name, values in names}
                except _DAMAGE as error:
                    raise UserError(
                        f"meta/stats.json in {self.folder} lacks '{column}' ({_kind(error)}): write it again"
                    ) from error
        if any(field.relative for field in embodiment.action):
            relative = _read_json(self.folder / "meta" / RELATIVE_STATISTICS)
            keys = [field.key for field in embodiment.action if field.relative]
            if not isinstance(relative, dict) or not all(isinstance(relative.get(key), dict) for key in keys):
                raise UserError(
                    f"{RELATIVE_STATISTICS} in {self.folder} lacks some of {', '.join(keys)}: write it again"
                )
            parts["action"] |= {key: relative[key] for key in keys}
        return parts

    def _column(self, part: str, field: Field) -> tuple[str, int, int]:
        """Column, first and last + 1 place of a field."""
        try:
            entry = self._modality[part][field.key]
            column, start, end = entry.get("original_key") or COLUMNS[part], entry["start"], entry["end"]
        except _DAMAGE as error:
            known = self._modality.get(part)
            names = ", ".join(known) if isinstance(known, dict) else "nothing"
            raise UserError(
                f"meta/modality.json in {self.folder} has no {part} '{field.key}' but {names}: "
                "choose or write the embodiment that it is of"
            ) from error
        if not isinstance(column, str) or type(start) is not int or type(end) is not int or end - start != field.size:
            raise UserError(
                f"meta/modality.json in {self.folder} has {start!r}..{end!r} for {part} '{field.key}', "
                f"not {field.size} numbers: choose or write the embodiment that it is of"
            )
        return column, start, end

    def _camera(self, camera: str) -> str:
        """The video column of a camera."""
        videos = self._modality.get("video")
        if not isinstance(videos, dict) or not isinstance(videos.get(camera), dict):
            known = ", ".join(videos) if isinstance(videos, dict) else "nothing"
            raise UserError(f"meta/modality.json in {self.folder} has no video '{camera}' but {known}")
        return str(videos[camera].get("original_key") or f"observation.images.{camera}")

    def _annotation(self, key: str) -> str:
        """The column of an annotation."""
        entry = self._modality["annotation"][key]
        return str((entry.get("original_key") if isinstance(entry, dict) else None) or f"annotation.{key}")

    def _path(self, number: int, kind: str, **names: str) -> Path:
        """The file of an episode, by the pattern in info.json."""
        try:
            chunk = number // int(self._info.get("chunks_size", 1000))
            pattern = self._info[kind]
            return self.folder / pattern.format(episode_chunk=chunk, episode_index=number, **names)
        except (*_DAMAGE, ZeroDivisionError) as error:
            raise UserError(f"meta/info.json in {self.folder} has no usable {kind} ({_kind(error)})") from error

    def _episode(
        self,
        number: int,
        embodiment: Embodiment,
        fields: Mapping[str, tuple[str, int, int]],
        texts: Sequence[str],
        columns: Sequence[str],
        cameras: Mapping[str, str],
    ) -> Episode:
        length = self.lengths[number]
        table = _read_columns(self._path(number, "data_path"), columns, length)
        steps = {}
        for name, (column, start, end) in fields.items():
            values = table[column].reshape(length, -1)
            if values.dtype.kind not in "biuf" or values.shape[1] < end:
                raise BadEpisode(
                    f"column '{column}' of episode {number} in {self.folder} is not {end} numbers per step"
                )
            steps[name] = values[:, start:end]
        metadata: dict[str, Any] = {
            "fps": self.fps,
            "embodiment": embodiment.name,
            "source": f"{self.folder.name}/{number}",
        }
        language: tuple[str, ...] = ()
        if len(texts) == 1:
            steps[ANNOTATION], metadata[ANNOTATIONS] = self._instructions(table[texts[0]])
        else:
            found = [str(self._texts(table[column][:1])[0]) for column in texts]
            language = tuple(text for text in found if text not in _NOT_PROVIDED)
        videos = {
            name: read_video(self._path(number, "video_path", video_key=k), length) for name, k in cameras.items()
        }
        return Episode(steps=steps, videos=videos, language=language, metadata=metadata)

    def _instructions(self, values: np.ndarray) -> tuple[np.ndarray, list[str]]:
        """The index of each step's text, and the texts in the order in which they occur."""
        texts = self._texts(values)
        known = list(dict.fromkeys(texts))
        places = {text: place for place, text in enumerate(known)}
        return np.array([places[text] for text in texts], np.int32), known

    def _texts(self, values: np.ndarray) -> list[str]:
        """The texts of an annotation column, which holds them or their numbers in tasks.jsonl."""
        if values.dtype.kind not in "iu":
            return [str(value) for value in values.tolist()]
        try:
            return [self._tasks[value] for value in values.ravel().tolist()]
        except KeyError as error:
            raise BadEpisode(f"meta/tasks.jsonl in {self.folder} has no task {error}: write it again") from error


def open_dataset(folder: str | os.PathLike[str]) -> GearDataset:
    """Read the metadata of a dataset.

    Raises:
        UserError: it is missing or damaged.
    """
    folder = Path(folder)
    info, modality = _read_json(folder / "meta/info.json"), _read_json(folder / "meta/modality.json")
    tasks, episodes = _read_lines(folder / "meta/tasks.jsonl"), _read_lines(folder / "meta/episodes.jsonl")
    try:
        discarded = set(info.get("discarded_episode_indices") or ())
        lengths = {int(e["episode_index"]): int(e["length"]) for e in episodes}
        dataset = GearDataset(
            folder=folder,
            fps=float(info["fps"]),
            lengths={number: length for number, length in lengths.items() if number not in discarded},
            _info=info,
            _modality=dict(modality),
            _tasks={int(task["task_index"]): str(task["task"]) for task in tasks},
        )
    except _DAMAGE as error:
        raise UserError(f"metadata in {folder}/meta is damaged ({_kind(error)}): write it again") from error
    if not dataset.lengths or min(dataset.lengths.values()) < 1 or not dataset.fps > 0:
        raise UserError(
            f"metadata in {folder}/meta lists no episodes, an empty one, or fps={dataset.fps}: write it again"
        )
    if (folder / "meta/step_filter.jsonl").exists():
        _log.warning("%s has a step filter, which is not used: its steps are sampled as all others", folder)
    return dataset


def import_dataset(source: str | os.PathLike[str], destination: str | os.PathLike[str], embodiment: Embodiment) -> int:
    """Write a GEAR dataset as an episode store, goes on where it was interrupted; returns the number of episodes.

    Damaged episodes are left out, and logged.

    Raises:
        UserError: the metadata is missing, damaged or of another robot, or the disk is full.
    """
    dataset = open_dataset(source)
    numbers = list(dataset.lengths)
    for start in range(0, len(numbers), SHARD_EPISODES):
        name = f"gear-{start:06d}"
        if not finished_shard(destination, "train", name):
            write_shard(
                destination, "train", name, _sound(dataset, embodiment, numbers[start : start + SHARD_EPISODES])
            )
    return int(finish(destination)["splits"]["train"]["episodes"])


def checkpoint_statistics(path: str | os.PathLike[str], embodiment: Embodiment) -> Statistics:
    """The statistics that a released checkpoint was trained with, from its experiment_cfg/metadata.json.

    `path` is that file, or the checkpoint's folder. Relative actions have relative statistics there already.

    Raises:
        UserError: no such file, or not of this embodiment.
    """
    path = Path(path)
    file = path / "experiment_cfg/metadata.json" if path.is_dir() else path
    metadata = _read_json(file)
    try:
        found = metadata[embodiment.tag]["statistics"]
        return {part: {str(key): dict(values) for key, values in found[part].items()} for part in ("state", "action")}
    except _DAMAGE as error:
        known = ", ".join(metadata) if isinstance(metadata, dict) else "nothing"
        raise UserError(
            f"{file} has no statistics of '{embodiment.tag}' but {known}: choose another embodiment"
        ) from error


def read_video(path: Path, frames: int) -> Video:
    """A video file whose first `frames` pictures are an episode's.

    Raises:
        BadEpisode: it is missing, no video, or has fewer pictures.
    """
    import av

    try:
        data = path.read_bytes()
        with av.open(io.BytesIO(data), "r", format="mp4") as container:
            stream = container.streams.video[0]
            count, height, width = stream.frames, stream.height, stream.width
    except (OSError, IndexError, av.FFmpegError) as error:
        raise BadEpisode(f"{path} is no video ({type(error).__name__}): get it again") from error
    if count < frames:
        raise BadEpisode(f"{path} has {count} pictures for {frames} steps: get it again")
    return Video(data, frames, height, width)


def _sound(dataset: GearDataset, embodiment: Embodiment, numbers: Sequence[int]) -> Iterator[Episode]:
    """The episodes that can be read."""
    for number in numbers:
        try:
            yield from dataset.episodes(embodiment, [number])
        except BadEpisode as error:
            _log.warning("episode %d is left out: %s", number, error)


def _read_columns(path: Path, columns: Sequence[str], length: int) -> dict[str, np.ndarray]:
    """Columns of a Parquet file as arrays (length,) or (length, n)."""
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(path).read(columns=list(columns))
    except (OSError, pyarrow.ArrowException) as error:
        raise BadEpisode(f"{path} cannot be read ({type(error).__name__}): get it again") from error
    if table.num_rows != length:
        raise BadEpisode(f"{path} has {table.num_rows} rows for {length} steps: get it again")
    found = {}
    for name in columns:
        if name not in table.column_names:
            raise BadEpisode(f"{path} has no column '{name}'")
        column = table.column(name).combine_chunks()
        nested = pyarrow.types.is_list(column.type) or pyarrow.types.is_fixed_size_list(column.type)
        values = column.flatten() if nested else column
        even = not nested or len(set(column.value_lengths().to_pylist())) == 1
        if column.null_count or values.null_count or not even:
            raise BadEpisode(f"column '{name}' of {path} has gaps")
        array = values.to_numpy(zero_copy_only=False)
        found[name] = array.reshape(length, -1) if nested else array
    return found


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: give the folder of a GEAR dataset or checkpoint") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({_kind(error)}): write it again") from error


def _read_lines(path: Path) -> list[Any]:
    """The values of a file with one of JSON per line."""
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: give the folder of a GEAR dataset") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({_kind(error)}): write it again") from error


def _kind(error: Exception) -> str:
    """An error in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
