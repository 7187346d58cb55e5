"""LeRobot datasets: v2.0 and v2.1 (a Parquet and MP4 file per episode) and v3.0 (many episodes per file).

    v2   data/chunk-000/episode_000000.parquet, videos/chunk-000/<key>/episode_000000.mp4,
         meta/{info.json, episodes.jsonl, tasks.jsonl}
    v3   data/chunk-000/file-000.parquet, videos/<key>/chunk-000/file-000.mp4,
         meta/{info.json, tasks.parquet}, meta/episodes/chunk-000/file-000.parquet

Source: `lerobot/datasets/lerobot_dataset.py` and `video_utils.py` of huggingface/lerobot 0.3.3 and 0.4.4.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from wamjax.data.episode import ANNOTATION, ANNOTATIONS, BadEpisode, Episode, Video
from wamjax.data.readers import FASTEST, Options, Source
from wamjax.data.readers.pictures import picture_files
from wamjax.data.storage import MALFORMED, Place, brief, read_json, read_lines
from wamjax.data.tables import column_array, open_table, row_groups
from wamjax.data.video_files import cut, read_video
from wamjax.errors import UserError

TITLE = "LeRobot v2.0, v2.1 and v3.0 (GEAR as plain LeRobot)"
BOOKKEEPING = ("timestamp", "frame_index", "episode_index", "index", "task_index")
"""Columns that every dataset has and that an episode knows by other means."""
_IMAGES = "observation.images."


@dataclass(frozen=True)
class _Entry:
    """Where an episode with `tasks` tasks lies.

    `data` has its rows: those numbered from `first` on over all files, or all rows of the file where that is None.
    `videos` has its file per camera, and the seconds at which it begins there, or None for a file of its own.
    """

    number: int
    length: int
    tasks: int
    data: Place
    first: int | None = None
    videos: Mapping[str, tuple[Place, float | None]] | None = None


def recognises(place: Place) -> bool:
    """Whether there is a LeRobot dataset."""
    return (place / "meta/info.json").is_file()


def open_dataset(place: Place, options: Options) -> Source:
    """The episodes; `observation.images.<camera>` becomes the camera, every other feature a step field.

    Tasks become the language, or, in a dataset where they change in episodes, the annotation of every step. Other texts
    and depth are left out.

    Raises:
        UserError: metadata that is missing, damaged, or of another version.
    """
    options.only_train(place)
    info = read_json(place / "meta/info.json")
    try:
        version = int(str(info["codebase_version"]).lstrip("v").split(".")[0])
        fps = float(info["fps"])
        tables = {2: _version_2, 3: _version_3}.get(version)
        if tables is None:
            raise UserError(f"{place} is LeRobot v{version}: convert it to v2.1 or v3.0 with LeRobot")
        features = {
            name: (str(feature["dtype"]), tuple(int(size) for size in feature["shape"]))
            for name, feature in info["features"].items()
            if not _is_depth(feature)
        }
        videos = [name for name, (dtype, _) in features.items() if dtype == "video"]
        entries, tasks = tables(place, info, videos)
    except MALFORMED as error:
        raise UserError(f"metadata in {place}/meta is damaged ({brief(error)}): write it again") from error
    if not features or not entries or not 0 < fps <= FASTEST or min(entry.length for entry in entries) < 1:
        raise UserError(
            f"metadata in {place}/meta lists no episodes, an empty one, nothing in them, or fps={fps}: write it again"
        )
    if len(entries) < (total := info.get("total_episodes") or 0):
        raise UserError(
            f"metadata in {place}/meta lists {len(entries)} of {total} episodes: get it again, or count again"
        )
    return _LeRobot(place.name, fps, info.get("robot_type"), features, entries, tasks, options)


def episode_file(folder: Place, info: Mapping[str, Any], number: int, kind: str, **names: Any) -> Place:
    """The file of an episode of v2, by the pattern `kind` of info.json.

    Raises:
        UserError: there is no such pattern, or it asks for something else.
    """
    try:
        chunk = number // int(info.get("chunks_size", 1000))
        return folder / info[kind].format(episode_chunk=chunk, episode_index=number, **names)
    except MALFORMED as error:
        raise UserError(f"meta/info.json in {folder} has no usable {kind} ({brief(error)})") from error


class _LeRobot:
    """Reads the episodes of either version."""

    def __init__(
        self,
        name: str,
        fps: float,
        robot: object,
        features: Mapping[str, tuple[str, tuple[int, ...]]],
        entries: Sequence[_Entry],
        tasks: Mapping[int, str],
        options: Options,
    ):
        self.name, self._fps, self._robot, self._features = name, fps, robot, features
        self._entries, self._tasks, self._encode = entries, tasks, options.encode
        self._rows = _Rows()
        self._vectors = [name for name, (dtype, _) in features.items() if name not in BOOKKEEPING and _is_number(dtype)]
        self._annotated = any(entry.tasks > 1 for entry in entries)
        self._pictures = [name for name, (dtype, _) in features.items() if dtype == "image"]

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def lengths(self) -> np.ndarray:
        """See `opened.Indexed`."""
        return np.array([entry.length for entry in self._entries], np.int64)

    def metadata(self, index: int) -> dict[str, Any]:
        """See `opened.Indexed`."""
        robot, source = str(self._robot) if self._robot else None, f"{self.name}/{self._entries[index].number}"
        return {"fps": self._fps, "embodiment": robot, "source": source}

    def steps(self, index: int) -> Mapping[str, np.ndarray]:
        """See `opened.Indexed`."""
        steps, *_ = self._table(self._entries[index], {})
        return steps

    def __getitem__(self, index: int) -> Episode:
        entry, metadata = self._entries[index], self.metadata(index)
        steps, language, table = self._table(entry, metadata)
        return Episode(steps=steps, videos=self._videos(table, entry), language=language, metadata=metadata)

    def _table(self, entry: _Entry, metadata: dict[str, Any]) -> tuple[dict[str, np.ndarray], tuple[str, ...], Any]:
        """Step fields, tasks and rows of an episode; tasks that change go to `metadata`."""
        columns = (*self._vectors, *self._pictures, "timestamp", "task_index")
        if entry.first is None:
            table = open_table(entry.data, columns)
        else:
            table = self._rows.find(entry, entry.first, columns)
        if table.num_rows != entry.length:
            raise BadEpisode(f"{entry.data} has {table.num_rows} rows for {entry.length} steps: get it again")
        steps = {step_field(name): self._vector(table, name, entry) for name in self._vectors}
        self._check_times(column_array(table, "timestamp", entry.data), entry)
        language = self._language(column_array(table, "task_index", entry.data), entry, steps, metadata)
        return steps, language, table

    def _vector(self, table: Any, name: str, entry: _Entry) -> np.ndarray:
        """A feature, in the shape and kind of number that info.json says."""
        dtype, shape = self._features[name]
        values = column_array(table, name, entry.data)
        try:
            vector = values.astype(np.dtype(dtype), copy=False)
            return vector.reshape(entry.length, *(() if shape == (1,) and values.ndim == 1 else shape))
        except (TypeError, ValueError) as error:
            raise BadEpisode(f"column '{name}' of {entry.data} is not {dtype} {shape}: get it again") from error

    def _check_times(self, times: np.ndarray, entry: _Entry) -> None:
        """Rows must be steps at the rate of the dataset, or pictures would belong to other steps."""
        if times.dtype.kind != "f" or not np.all(np.abs(times - np.arange(entry.length) / self._fps) < 0.5 / self._fps):
            raise BadEpisode(f"timestamps of episode {entry.number} in {entry.data} are not 1/{self._fps:g} s apart")

    def _language(
        self, numbers: np.ndarray, entry: _Entry, steps: dict[str, np.ndarray], metadata: dict[str, Any]
    ) -> tuple[str, ...]:
        """The episode's task; in a dataset where tasks change in episodes they go to `steps` and `metadata`."""
        try:
            texts = [self._tasks[int(number)] for number in numbers.tolist()]
        except (KeyError, TypeError, ValueError) as error:
            raise BadEpisode(f"{entry.data} has the unknown task {error}: write the tasks again") from error
        known = list(dict.fromkeys(texts))
        if len(known) > 1 and not self._annotated:
            raise BadEpisode(
                f"episode {entry.number} in {entry.data} has tasks that meta/episodes lacks: write it again"
            )
        if self._annotated:
            places = {text: place for place, text in enumerate(known)}
            steps[ANNOTATION] = np.array([places[text] for text in texts], np.int32)
            metadata[ANNOTATIONS] = known
            return ()
        return tuple(text for text in known if text)

    def _videos(self, table: Any, entry: _Entry) -> dict[str, Video]:
        """All cameras: files, parts of files, or pictures of the table."""
        videos = {}
        for name, (file, start) in (entry.videos or {}).items():
            if start is None:
                videos[camera(name)] = read_video(file, entry.length, self._fps)
            else:
                videos[camera(name)] = cut(file, round(start * self._fps), entry.length, self._fps, self._encode)
        for name in self._pictures:
            where = f"{name} of episode {entry.number} in {entry.data}"
            try:
                files = [bytes(row["bytes"]) for row in table.column(name).to_pylist()]
            except MALFORMED as error:
                raise BadEpisode(f"{where} are no pictures in the table: write the dataset with them") from error
            videos[camera(name)] = self._encode(picture_files(files, where), self._fps)
        return videos


def _is_number(dtype: str) -> bool:
    """Whether a feature is numbers; others are texts, pictures and whatever later versions add."""
    try:
        return np.dtype(dtype).kind in "biuf"
    except TypeError:
        return False


def _is_depth(feature: Mapping[str, Any]) -> bool:
    """Whether a camera's pictures are distances."""
    said: dict[str, Any] = {**(feature.get("video_info") or {}), **(feature.get("info") or {})}
    return bool(said.get("video.is_depth_map") or said.get("is_depth_map"))


def step_field(feature: str) -> str:
    """The step field of a feature; LeRobot allows no `/` in names, and we have no dots."""
    return feature.replace(".", "/")


def feature_name(field: str) -> str:
    """The feature of a step field: what `step_field` undoes."""
    return field.replace("/", ".")


def camera(feature: str) -> str:
    """The camera of a feature with pictures."""
    return step_field(feature.removeprefix(_IMAGES))


def camera_feature(camera: str) -> str:
    """The feature of a camera."""
    return _IMAGES + feature_name(camera)


def _version_2(place: Place, info: Mapping[str, Any], videos: Sequence[str]) -> tuple[list[_Entry], dict[int, str]]:
    """Episodes and tasks of v2.0 and v2.1."""
    tasks = {int(task["task_index"]): str(task["task"]) for task in read_lines(place / "meta/tasks.jsonl")}
    entries = []
    for episode in read_lines(place / "meta/episodes.jsonl"):
        number = int(episode["episode_index"])
        files = {key: (episode_file(place, info, number, "video_path", video_key=key), None) for key in videos}
        data = episode_file(place, info, number, "data_path")
        entries.append(_Entry(number, int(episode["length"]), len(episode["tasks"]), data, None, files))
    return entries, tasks


def _version_3(place: Place, info: Mapping[str, Any], videos: Sequence[str]) -> tuple[list[_Entry], dict[int, str]]:
    """Episodes and tasks of v3.0."""
    columns = ["tasks", "episode_index", "length", "dataset_from_index", "data/chunk_index", "data/file_index"]
    for key in videos:
        columns += [f"videos/{key}/{name}" for name in ("chunk_index", "file_index", "from_timestamp")]
    entries = []
    for file in place.find("meta/episodes/*/*.parquet"):
        table = open_table(file, tuple(columns))
        numbers = [name for name in columns if name != "tasks"]
        rows = zip(*(column_array(table, name, file).tolist() for name in numbers), strict=True)
        for row, tasks in zip(rows, table.column("tasks").to_pylist(), strict=True):
            entries.append(_entry(place, info, dict(zip(numbers, row, strict=True)) | {"tasks": tasks}, videos))
    return sorted(entries, key=lambda entry: entry.number), _tasks(place / "meta/tasks.parquet")


def _entry(place: Place, info: Mapping[str, Any], row: Mapping[str, Any], videos: Sequence[str]) -> _Entry:
    """An episode of v3.0 from its row of meta/episodes."""

    def file(kind: str, prefix: str, **names: Any) -> Place:
        chunk, number = int(row[f"{prefix}/chunk_index"]), int(row[f"{prefix}/file_index"])
        # Sets made by hand may keep the patterns of v2, which ask for other names.
        names |= {"chunk_index": chunk, "file_index": number}
        names |= {"episode_chunk": chunk, "episode_index": int(row["episode_index"])}
        return place / info[kind].format(**names)

    parts = {
        key: (file("video_path", f"videos/{key}", video_key=key), float(row[f"videos/{key}/from_timestamp"]))
        for key in videos
    }
    data = file("data_path", "data")
    number, first = int(row["episode_index"]), int(row["dataset_from_index"])
    return _Entry(number, int(row["length"]), len(row["tasks"]), data, first, parts)


def _tasks(file: Place) -> dict[int, str]:
    """Tasks by number; the texts are the index of a pandas table, or a column `task`."""
    table = open_table(file)
    texts = next((name for name in ("task", "__index_level_0__") if name in table.column_names), None)
    if texts is None:
        raise UserError(f"{file} has no column of tasks but {', '.join(table.column_names)}: write it again")
    numbers = column_array(table, "task_index", file).tolist()
    return {int(number): str(text) for number, text in zip(numbers, table.column(texts).to_pylist(), strict=True)}


class _Rows:
    """Finds rows in the data files of v3.0; keeps what the next episode will want."""

    def __init__(self) -> None:
        self._numbers = functools.lru_cache(maxsize=16)(_row_numbers)
        self._bounds = functools.lru_cache(maxsize=16)(row_groups)
        # Some writers have one row group for all episodes of a file.
        self._groups = functools.lru_cache(maxsize=1)(open_table)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Rows, ()  # another process keeps its own

    def find(self, entry: _Entry, first: int, columns: tuple[str, ...]) -> Any:
        """An episode's rows, the first of which has the number `first` over the whole dataset.

        LeRobot's converter from v2.1 names the file before the one that holds them where a file is full, and
        `episode_index` is not unique in some published sets.
        """
        last = first + entry.length - 1
        for file in (entry.data, _next(entry.data)):
            if file is not entry.data and not file.exists():
                break
            numbers = self._numbers(file)
            start = int(np.searchsorted(numbers, first))
            end = start + entry.length
            if np.array_equal(numbers[start:end], np.arange(first, last + 1)):
                bounds = self._bounds(file)
                groups = [i for i in range(len(bounds) - 1) if bounds[i] < end and bounds[i + 1] > start]
                return self._groups(file, columns, tuple(groups)).slice(start - bounds[groups[0]], entry.length)
        raise BadEpisode(f"{entry.data} lacks rows {first} to {last} of episode {entry.number}: get it again")


def _row_numbers(file: Place) -> np.ndarray:
    numbers = column_array(open_table(file, ("index",)), "index", file)
    if numbers.dtype.kind not in "iu":
        raise BadEpisode(f"column 'index' of {file} is {numbers.dtype}, not whole numbers: get it again")
    return numbers


def _next(file: Place) -> Place:
    """The data file after one, where its name ends in a number."""
    head, _, digits = file.stem.rpartition("-")
    return file.parent / f"{head}-{int(digits) + 1:0{len(digits)}d}.parquet" if digits.isdigit() else file
