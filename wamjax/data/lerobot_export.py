"""Episodes of any source as a LeRobot v3.0 dataset.

Source of the layout: `lerobot/datasets/lerobot_dataset.py` and `utils.py` of huggingface/lerobot 0.4.4. Statistics are
exact for numbers (LeRobot averages the quantiles of the episodes); for pictures they are those of sampled pixels.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wamjax.data.convert import sound
from wamjax.data.episode import ANNOTATION, ANNOTATIONS, BadEpisode, Episode
from wamjax.data.files import PARTIAL, full_disk, write_json
from wamjax.data.readers import Source
from wamjax.data.readers.lerobot import BOOKKEEPING, camera_feature, feature_name
from wamjax.data.store import schema
from wamjax.data.video import decode
from wamjax.data.video_concat import VideoFiles, check_even
from wamjax.errors import UserError

DATA_BYTES, VIDEO_BYTES = 100 << 20, 200 << 20  # LeRobot's own limits of a file, before the next is begun
CHUNK_FILES = 1000
_DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
_VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
_EPISODES = "meta/episodes/chunk-000/file-000.parquet"
_QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
_log = logging.getLogger(__name__)
_SAMPLED_PICTURES, _SAMPLED_PIXELS = 8, 1024  # per episode and camera, for the statistics of pictures


def export_dataset(source: Source, folder: str | Path) -> int:
    """Write every sound episode of a source; returns their number.

    Videos are copied as they are, end to end. Of several instructions of an episode the first is written. The folder
    appears under its name when it is complete; a killed writer leaves one whose name ends in `.partial`.

    Raises:
        UserError: the folder exists, no episode is sound, or the disk is full.
    """
    folder = Path(folder)
    if folder.exists():
        raise UserError(f"{folder} exists already: delete it or write elsewhere")
    partial = folder.with_name(f".{folder.name}{PARTIAL}")
    shutil.rmtree(partial, ignore_errors=True)
    with full_disk(folder):
        (partial / "meta/episodes/chunk-000").mkdir(parents=True)
        count = _Writer(partial).write(source)
        for path in (*partial.rglob("*.mp4"), *partial.rglob("*.parquet")):
            with path.open("rb") as file:
                os.fsync(file.fileno())
        partial.replace(folder)
    return count


class _Writer:
    """A dataset that is being written."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._data = _DataFiles(folder)
        self._videos: dict[str, VideoFiles] = {}
        self._tasks: dict[str, int] = {}
        self._rows: list[dict[str, Any]] = []
        self._values: dict[str, list[np.ndarray]] = {}
        self._steps = 0

    def write(self, source: Source) -> int:
        """All sound episodes, then the metadata."""
        first: Episode | None = None
        with contextlib.ExitStack() as files:
            files.callback(self._data.close)
            for episode, pixels in _alike(source):
                if first is None:
                    first, fps = episode, float(episode.metadata["fps"])  # type: ignore[arg-type]
                    for camera in episode.videos:
                        writer = VideoFiles(self._folder, _VIDEO, camera_feature(camera), fps, VIDEO_BYTES, CHUNK_FILES)
                        self._videos[camera] = writer
                        files.callback(writer.close)
                self._write_episode(episode, pixels)
        if first is None:
            raise UserError(f"none of the {len(source)} episodes of {source.name} can be read")
        self._write_metadata(first)
        return len(self._rows)

    def _write_episode(self, episode: Episode, pixels: Mapping[str, np.ndarray]) -> None:
        """An episode's rows and videos, and its row of meta/episodes."""
        number, length = len(self._rows), len(episode)
        numbers = np.array([self._tasks.setdefault(text, len(self._tasks)) for text in _texts(episode)], np.int64)
        if taken := [name for name in episode.steps if feature_name(name) in BOOKKEEPING]:
            raise UserError(f"step field '{taken[0]}' has a name that LeRobot keeps for itself: rename it")
        columns = {feature_name(name): values for name, values in sorted(episode.steps.items()) if name != ANNOTATION}
        columns |= {
            "timestamp": (np.arange(length) / float(episode.metadata["fps"])).astype(np.float32),  # type: ignore[arg-type]
            "frame_index": np.arange(length),
            "episode_index": np.full(length, number),
            "index": np.arange(self._steps, self._steps + length),
            "task_index": numbers,
        }
        row: dict[str, Any] = {
            "episode_index": number,
            "tasks": list(dict.fromkeys(_texts(episode))),
            "length": length,
            **self._data.write(columns),
            "dataset_from_index": self._steps,
            "dataset_to_index": self._steps + length,
        }
        for camera, video in sorted(episode.videos.items()):
            row |= self._videos[camera].write(video)
        sampled = {name: values.reshape(length, -1) for name, values in columns.items()}
        sampled |= pixels
        for name, values in sorted(sampled.items()):
            self._values.setdefault(name, []).append(values)
            for key, value in _statistics(values, picture=name not in columns).items():
                row[f"stats/{name}/{key}"] = value
        self._rows.append(row | {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0})
        self._steps += length

    def _write_metadata(self, first: Episode) -> None:
        """What is known at the end: tasks, episodes, statistics, info.json."""
        import pyarrow
        import pyarrow.parquet

        tasks = pyarrow.table(
            {
                "task_index": pyarrow.array(list(self._tasks.values()), pyarrow.int64()),
                _INDEX: pyarrow.array(list(self._tasks), pyarrow.large_string()),
            }
        )
        tasks = tasks.replace_schema_metadata({"pandas": json.dumps(_PANDAS)})
        episodes = pyarrow.table({name: [row[name] for row in self._rows] for name in self._rows[0]})
        for table, name in ((tasks, "meta/tasks.parquet"), (episodes, _EPISODES)):
            pyarrow.parquet.write_table(table, self._folder / name, write_page_checksum=True)
        pictures = {camera_feature(camera) for camera in first.videos}
        write_json(
            self._folder / "meta/stats.json",
            {
                name: _statistics(np.concatenate(self._values.pop(name)), picture=name in pictures)
                for name in list(self._values)
            },
        )
        write_json(self._folder / "meta/info.json", self._info(first))

    def _info(self, first: Episode) -> dict[str, Any]:
        """The content of info.json."""
        fps = float(first.metadata["fps"])  # type: ignore[arg-type]
        features: dict[str, Any] = {
            feature_name(name): {"dtype": values.dtype.name, "shape": list(values.shape[1:]) or [1], "names": None}
            for name, values in sorted(first.steps.items())
            if name != ANNOTATION
        }
        for camera, files in sorted(self._videos.items()):
            features[camera_feature(camera)] = files.feature | {"info": files.feature["info"] | {"video.fps": fps}}
        for name in BOOKKEEPING:
            features[name] = {"dtype": "float32" if name == "timestamp" else "int64", "shape": [1], "names": None}
        return {
            "codebase_version": "v3.0",
            "robot_type": first.metadata.get("embodiment"),
            "total_episodes": len(self._rows),
            "total_frames": self._steps,
            "total_tasks": len(self._tasks),
            "chunks_size": CHUNK_FILES,
            "data_files_size_in_mb": DATA_BYTES >> 20,
            "video_files_size_in_mb": VIDEO_BYTES >> 20,
            "fps": int(fps) if fps.is_integer() else fps,
            "splits": {"train": f"0:{len(self._rows)}"},
            "data_path": _DATA,
            "video_path": _VIDEO if self._videos else None,
            "features": features,
        }


class _DataFiles:
    """Parquet files, one row group per episode."""

    def __init__(self, folder: Path):
        self._folder, self._path, self._number = folder, folder, -1
        self._writer: Any = None

    def write(self, columns: Mapping[str, np.ndarray]) -> dict[str, int]:
        """Append an episode's rows; returns in which file they are."""
        import pyarrow
        import pyarrow.parquet

        table = pyarrow.table({name: _column(values) for name, values in columns.items()})
        if self._writer is None or self._path.stat().st_size + table.nbytes > DATA_BYTES:
            self.close()
            self._number += 1
            chunk, file = divmod(self._number, CHUNK_FILES)
            self._path = self._folder / _DATA.format(chunk_index=chunk, file_index=file)
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = pyarrow.parquet.ParquetWriter(self._path, table.schema, write_page_checksum=True)
        self._writer.write_table(table)
        return {"data/chunk_index": self._number // CHUNK_FILES, "data/file_index": self._number % CHUNK_FILES}

    def close(self) -> None:
        """Finish the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


_INDEX = "__index_level_0__"
# LeRobot looks tasks up by the index of a pandas table; this is how a Parquet file says which column that is.
_PANDAS: dict[str, Any] = {
    "index_columns": [_INDEX],
    "column_indexes": [
        {"name": None, "field_name": None, "pandas_type": "unicode", "numpy_type": "object", "metadata": None}
    ],
    "columns": [
        {
            "name": "task_index",
            "field_name": "task_index",
            "pandas_type": "int64",
            "numpy_type": "int64",
            "metadata": None,
        },
        {"name": None, "field_name": _INDEX, "pandas_type": "unicode", "numpy_type": "object", "metadata": None},
    ],
    "pandas_version": "2.2.0",
}


def _alike(source: Source) -> Iterator[tuple[Episode, dict[str, np.ndarray]]]:
    """The sound episodes that look like the first of them, and pixels of their pictures by feature."""
    expected: dict[str, Any] | None = None
    for number in range(len(source)):
        for episode in sound(source, range(number, number + 1), expected):
            try:
                for video in episode.videos.values():
                    check_even(video)
                pixels = {camera_feature(camera): _pixels(video) for camera, video in episode.videos.items()}
            except BadEpisode as error:
                _log.warning("episode %d is left out: %s", number, error)
                continue
            expected = expected or schema(episode)
            yield episode, pixels


def _texts(episode: Episode) -> list[str]:
    """The instruction of every step."""
    if ANNOTATION in episode.steps:
        texts: Any = episode.metadata[ANNOTATIONS]
        return [str(texts[i]) for i in episode.steps[ANNOTATION].tolist()]
    return [episode.language[0] if episode.language else ""] * len(episode)


def _column(values: np.ndarray) -> Any:
    """(T,) and (T, 1) as plain columns, (T, n, ...) as lists."""
    import pyarrow

    column = pyarrow.array(np.ascontiguousarray(values).ravel())
    sizes: Sequence[int] = values.shape[1:] if values.shape[1:] != (1,) else ()
    for size in reversed(sizes):
        column = pyarrow.FixedSizeListArray.from_arrays(column, size)
    return column


def _pixels(video: Any) -> np.ndarray:
    """Pixels of pictures all over a video, (n, 3) in [0, 1]."""
    shown = np.unique(np.linspace(0, video.frames - 1, _SAMPLED_PICTURES).round().astype(int))
    pixels = decode(video, shown).reshape(-1, 3)
    return (pixels[:: -(-len(pixels) // _SAMPLED_PIXELS)] / np.float32(255)).astype(np.float32)


def _statistics(values: np.ndarray, *, picture: bool) -> dict[str, Any]:
    """LeRobot's ten numbers of (n, k) values along n; those of pictures have the shape (3, 1, 1)."""
    numbers = values.astype(np.float64)
    found = {"min": numbers.min(0), "max": numbers.max(0), "mean": numbers.mean(0), "std": numbers.std(0)}
    found |= {name: np.quantile(numbers, quantile, axis=0) for name, quantile in _QUANTILES.items()}
    shaped = {name: (value.reshape(-1, 1, 1) if picture else value).tolist() for name, value in found.items()}
    return shaped | {"count": [len(values)]}
