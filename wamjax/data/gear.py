"""GEAR datasets (LeRobot v2 with the metadata of GR00T and DreamZero) as episodes, and their statistics as ours.

    data/chunk-000/episode_000000.parquet            state and action columns, one row per step
    videos/chunk-000/<column>/episode_000000.mp4     one video per camera
    meta/info.json, episodes.jsonl, tasks.jsonl      frame rate and paths; lengths; texts of the instructions
    meta/modality.json                               which part of which column is which field
    meta/step_filter.jsonl                           steps that are not to be sampled, where there are any
    meta/stats.json, relative_stats_dreamzero.json   of the columns; of relative actions

Source: `groot/vla/data/schema/lerobot.py`, `groot/vla/data/dataset/lerobot.py` of dreamzero0/dreamzero.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from wamjax.data.embodiments import Embodiment, Field
from wamjax.data.episode import ANNOTATION, ANNOTATIONS, BadEpisode, Episode
from wamjax.data.normalise import Statistics
from wamjax.data.readers.lerobot import episode_file
from wamjax.data.selection import DROPPED, pairs_of
from wamjax.data.storage import MALFORMED, PathLike, Place, brief, read_json, read_lines
from wamjax.data.tables import read_columns
from wamjax.data.video_files import read_video
from wamjax.errors import UserError

COLUMNS = {"state": "observation.state", "action": "action"}
"""Columns of state and action where modality.json names none."""
RELATIVE_STATISTICS = "relative_stats_dreamzero.json"
_NOT_PROVIDED = ("", "not provided")  # what DROID's conversion writes where an episode has fewer than three texts


@dataclass(frozen=True)
class GearDataset:
    """A dataset's folder and metadata, read once.

    Attributes:
        folder: where it is.
        fps: steps per second, Hz.
        lengths: episode number -> steps, without the episodes that info.json discards.
    """

    folder: Place
    fps: float
    lengths: Mapping[int, int]
    _info: Mapping[str, Any]
    _modality: Mapping[str, Any]
    _tasks: Mapping[int, str]
    _dropped: Mapping[int, list[list[int]]]

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
        absolute = read_json(self.folder / "meta/stats.json")
        parts: Statistics = {"state": {}, "action": {}}
        for part, fields in (("state", embodiment.state), ("action", embodiment.action)):
            for field in fields:
                column, start, end = self._column(part, field)
                try:
                    names = absolute[column].items()
                    parts[part][field.key] = {name: list(map(float, values[start:end])) for name, values in names}
                except MALFORMED as error:
                    raise UserError(
                        f"meta/stats.json in {self.folder} lacks '{column}' ({brief(error)}): write it again"
                    ) from error
        if any(field.relative for field in embodiment.action):
            relative = read_json(self.folder / "meta" / RELATIVE_STATISTICS)
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
        except MALFORMED as error:
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

    def _path(self, number: int, kind: str, **names: str) -> Place:
        """The file of an episode, by the pattern in info.json."""
        return episode_file(self.folder, self._info, number, kind, **names)

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
        table = read_columns(self._path(number, "data_path"), columns, length)
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
        if number in self._dropped:
            metadata[DROPPED] = self._dropped[number]
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


def open_dataset(folder: Place | PathLike) -> GearDataset:
    """Read the metadata of a dataset.

    Raises:
        UserError: it is missing or damaged.
    """
    folder = Place.of(folder)
    info, modality = read_json(folder / "meta/info.json"), read_json(folder / "meta/modality.json")
    tasks, episodes = read_lines(folder / "meta/tasks.jsonl"), read_lines(folder / "meta/episodes.jsonl")
    filtered = folder / "meta/step_filter.jsonl"
    dropped = read_lines(filtered) if filtered.exists() else []
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
            _dropped={int(line["episode_index"]): pairs_of(line["step_indices"]) for line in dropped},
        )
    except MALFORMED as error:
        raise UserError(f"metadata in {folder}/meta is damaged ({brief(error)}): write it again") from error
    if not dataset.lengths or min(dataset.lengths.values()) < 1 or not dataset.fps > 0:
        raise UserError(
            f"metadata in {folder}/meta lists no episodes, an empty one, or fps={dataset.fps}: write it again"
        )
    return dataset


class GearSource:
    """The episodes of a GEAR dataset by place, as `readers` have them."""

    def __init__(self, dataset: GearDataset, embodiment: Embodiment):
        self.name, self._dataset, self._embodiment = dataset.folder.name, dataset, embodiment
        self._numbers = list(dataset.lengths)

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> Episode:
        return next(self._dataset.episodes(self._embodiment, [self._numbers[index]]))


def checkpoint_statistics(path: PathLike, embodiment: Embodiment) -> Statistics:
    """The statistics that a released checkpoint was trained with, from its experiment_cfg/metadata.json.

    `path` is that file, or the checkpoint's folder. Relative actions have relative statistics there already.

    Raises:
        UserError: no such file, or not of this embodiment.
    """
    place = Place.of(path)
    file = place if place.is_file() else place / "experiment_cfg/metadata.json"
    metadata = read_json(file)
    try:
        found = metadata[embodiment.tag]["statistics"]
        return {part: {str(key): dict(values) for key, values in found[part].items()} for part in ("state", "action")}
    except MALFORMED as error:
        known = ", ".join(metadata) if isinstance(metadata, dict) else "nothing"
        raise UserError(
            f"{file} has no statistics of '{embodiment.tag}' but {known}: choose another embodiment"
        ) from error
