"""Episodes of any source as a LeRobot v3.0 dataset, in memory that does not grow with their number.

Source of the layout: `lerobot/datasets/lerobot_dataset.py` and `utils.py` of huggingface/lerobot 0.4.4. Statistics are
exact for numbers (LeRobot averages the quantiles of the episodes): the files are read again for them at the end. Those
of pictures are of sampled pixels.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from wamjax.data import quantiles
from wamjax.data.convert import sound
from wamjax.data.episode import ANNOTATION, ANNOTATIONS, BadEpisode, Episode
from wamjax.data.files import PARTIAL, full_disk, write_json
from wamjax.data.readers import Source
from wamjax.data.readers.lerobot import BOOKKEEPING, camera_feature, feature_name
from wamjax.data.storage import Place
from wamjax.data.store import schema
from wamjax.data.tables import column_array
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
_LEVELS = (np.arange(256) / np.float32(255)).astype(np.float32).astype(np.float64)  # of a pixel, in [0, 1]
_ROWS = 1000  # of meta/episodes, which wait to be written
_READ = 1 << 20  # numbers that are read again at a time


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
        self._episodes = _EpisodeFile(folder / _EPISODES)
        self._tasks: dict[str, int] = {}
        self._sums: dict[str, _Sums] = {}
        self._pixels: dict[str, np.ndarray] = {}  # how many have which value, (3, 256)
        self._count = self._steps = 0

    def write(self, source: Source) -> int:
        """All sound episodes, then the metadata."""
        first: Episode | None = None
        with contextlib.ExitStack() as files:
            files.callback(self._episodes.close)
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
        return self._count

    def _write_episode(self, episode: Episode, pixels: Mapping[str, np.ndarray]) -> None:
        """An episode's rows and videos, and its row of meta/episodes."""
        number, length = self._count, len(episode)
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
        for name, values in pixels.items():
            levels = np.stack([np.bincount(channel, minlength=256) for channel in values.T])
            self._pixels[name] = self._pixels.get(name, 0) + levels
        steps = {name: values.reshape(length, -1).astype(np.float64) for name, values in columns.items()}
        sampled = {name: _LEVELS[values] for name, values in pixels.items()}
        for name, numbers in sorted((steps | sampled).items()):
            sums = _Sums.of(numbers)
            self._sums[name] = self._sums[name] + sums if name in self._sums else sums
            found = sums.result(np.quantile(numbers, list(_QUANTILES.values()), axis=0), picture=name in pixels)
            row |= {f"stats/{name}/{key}": value for key, value in found.items()}
        self._episodes.write(row | {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0})
        self._count, self._steps = number + 1, self._steps + length

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
        pyarrow.parquet.write_table(tasks, self._folder / "meta/tasks.parquet", write_page_checksum=True)
        write_json(self._folder / "meta/stats.json", self._statistics())
        write_json(self._folder / "meta/info.json", self._info(first))

    def _statistics(self) -> dict[str, dict[str, Any]]:
        """The content of stats.json."""
        shares = list(_QUANTILES.values())
        found: dict[str, np.ndarray] = {
            name: quantiles.of_counts(levels, _LEVELS, shares) for name, levels in self._pixels.items()
        }
        names = [name for name in self._sums if name not in self._pixels]
        ends = np.cumsum([len(self._sums[name].mean) for name in names])
        numbers = quantiles.of_read(lambda: self._data.read(names, int(ends[-1])), self._steps, shares)
        found |= zip(names, np.split(numbers, ends[:-1], axis=1), strict=True)
        return {name: sums.result(found[name], picture=name in self._pixels) for name, sums in self._sums.items()}

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
            "total_episodes": self._count,
            "total_frames": self._steps,
            "total_tasks": len(self._tasks),
            "chunks_size": CHUNK_FILES,
            "data_files_size_in_mb": DATA_BYTES >> 20,
            "video_files_size_in_mb": VIDEO_BYTES >> 20,
            "fps": int(fps) if fps.is_integer() else fps,
            "splits": {"train": f"0:{self._count}"},
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

    def read(self, names: Sequence[str], size: int) -> Iterator[np.ndarray]:
        """What was written, in portions (n, size) of some columns, whose numbers are `size` together."""
        import pyarrow
        import pyarrow.parquet

        for path in sorted(self._folder.glob("data/*/*.parquet")):
            file = pyarrow.parquet.ParquetFile(path)
            for batch in file.iter_batches(max(1, _READ // size), columns=list(names)):
                table = pyarrow.Table.from_batches([batch])
                columns = [column_array(table, name, Place.of(path)) for name in names]
                yield np.concatenate([values.reshape(len(values), -1).astype(np.float64) for values in columns], axis=1)

    def close(self) -> None:
        """Finish the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class _EpisodeFile:
    """meta/episodes, a row per episode."""

    def __init__(self, path: Path):
        self._path = path
        self._rows: list[dict[str, Any]] = []
        self._writer: Any = None

    def write(self, row: dict[str, Any]) -> None:
        """Append a row, which has the names of all others."""
        self._rows.append(row)
        if len(self._rows) == _ROWS:
            self._flush()

    def close(self) -> None:
        """Finish the file."""
        if self._rows:
            self._flush()
        if self._writer is not None:
            self._writer.close()

    def _flush(self) -> None:
        import pyarrow
        import pyarrow.parquet

        schema = self._writer.schema if self._writer else None
        table = pyarrow.table({name: [row[name] for row in self._rows] for name in self._rows[0]}, schema=schema)
        if self._writer is None:
            self._writer = pyarrow.parquet.ParquetWriter(self._path, table.schema, write_page_checksum=True)
        self._writer.write_table(table)
        self._rows.clear()


@dataclasses.dataclass(frozen=True)
class _Sums:
    """What adds up of vectors of k numbers: how many, the outermost, the mean, squared distances from it, (k,)."""

    count: int
    min: np.ndarray
    max: np.ndarray
    mean: np.ndarray
    squares: np.ndarray

    @classmethod
    def of(cls, numbers: Float[np.ndarray, "n k"]) -> _Sums:
        """Of vectors."""
        mean = numbers.mean(0)
        return cls(len(numbers), numbers.min(0), numbers.max(0), mean, np.square(numbers - mean).sum(0))

    def __add__(self, other: _Sums) -> _Sums:
        """Of both together (Chan, Golub and LeVeque 1979)."""
        count, apart = self.count + other.count, other.mean - self.mean
        mean = self.mean + apart * (other.count / count)
        squares = self.squares + other.squares + np.square(apart) * (self.count * other.count / count)
        low, high = np.minimum(self.min, other.min), np.maximum(self.max, other.max)
        return _Sums(count, low, high, mean, squares)

    def result(self, found: Float[np.ndarray, "q k"], *, picture: bool) -> dict[str, Any]:
        """LeRobot's ten numbers, with their quantiles; those of pictures have the shape (3, 1, 1)."""
        told = {"min": self.min, "max": self.max, "mean": self.mean, "std": np.sqrt(self.squares / self.count)}
        told |= dict(zip(_QUANTILES, found, strict=True))
        shaped = {name: (values.reshape(-1, 1, 1) if picture else values).tolist() for name, values in told.items()}
        return shaped | {"count": [self.count]}


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
    """Pixels of pictures all over a video, uint8 (n, 3)."""
    shown = np.unique(np.linspace(0, video.frames - 1, _SAMPLED_PICTURES).round().astype(int))
    pixels = decode(video, shown).reshape(-1, 3)
    return pixels[:: -(-len(pixels) // _SAMPLED_PIXELS)]
