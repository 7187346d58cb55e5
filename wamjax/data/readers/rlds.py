"""RLDS datasets as TensorFlow Datasets writes them, DROID's releases above all, without TensorFlow.

    dataset_info.json                                 name, file format, number of episodes per file
    features.json                                     what an episode holds
    <name>-train.tfrecord-00000-of-02048              or array_record, one `tf.train.Example` per episode

An episode's feature is named by its path, `steps/observation/joint_position`; all steps lie end to end in one list.

Source: `tensorflow_datasets/core/example_serializer.py`, `droid/droid.py` of kpertsch/droid_dataset_builder.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wamjax.data.episode import JSON, BadEpisode, Episode, Pictures, Video
from wamjax.data.readers import Options, Source
from wamjax.data.readers.pictures import picture_files
from wamjax.data.storage import MALFORMED, Place, brief, read_json
from wamjax.data.tfrecord import Values, parse_example, read_record, record_offsets
from wamjax.errors import UserError

TITLE = "RLDS of TensorFlow Datasets (TFRecord, ArrayRecord), such as DROID 1.0.0 and 1.0.1"
_DROID = {"r2d2_faceblur", "droid_101", "droid_100", "droid"}
_DROID_FPS = 15.0
_STEPS = "steps/"


@dataclass(frozen=True)
class _Feature:
    """A leaf of features.json: `kind` is tensor, image or text; the shape is that of one step."""

    kind: str
    dtype: str
    shape: tuple[int, ...]


def recognises(place: Place) -> bool:
    """Whether there is a dataset of TensorFlow Datasets."""
    return (place / "features.json").is_file() and (place / "dataset_info.json").is_file()


def open_dataset(place: Place, options: Options) -> Source:
    """The episodes: numbers of the steps are step fields, pictures cameras, and the texts of `*instruction*` language.

    What does not change in an episode is metadata; `success` is what DROID's paths say. Features of varying size and
    sequences inside the steps are left out.

    Raises:
        UserError: metadata that is missing or damaged, or a dataset other than DROID without `options.fps`.
    """
    info = read_json(place / "dataset_info.json")
    features: dict[str, _Feature] = {}
    try:
        splits = {split["name"]: split for split in info["splits"]}
        name, kind = str(info["name"]), str(info.get("fileFormat", "tfrecord"))
        _collect(read_json(place / "features.json"), "", features)
        if options.split not in splits:
            raise UserError(f"{place} has no split '{options.split}' but {', '.join(splits)}")
        split = splits[options.split]
        lengths = [int(length) for length in split["shardLengths"]]
        template = split.get("filepathTemplate", "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}")
        files = [place / _file(template, name, options.split, kind, i, len(lengths)) for i in range(len(lengths))]
    except MALFORMED as error:
        raise UserError(f"metadata in {place} is damaged ({brief(error)}): get it again") from error
    if kind not in ("tfrecord", "array_record"):
        raise UserError(f"{place} holds {kind} files: only tfrecord and array_record are read")
    if f"{_STEPS}is_first" not in features:
        raise UserError(f"{place} is no RLDS dataset: its features have no steps with is_first")
    fps = options.rate(_DROID_FPS if name in _DROID else None, place)
    return _Rlds("droid" if name in _DROID else name, fps, features, files, lengths, options)


class _Rlds:
    """Reads the episodes of a split."""

    def __init__(
        self,
        name: str,
        fps: float,
        features: Mapping[str, _Feature],
        files: Sequence[Place],
        lengths: Sequence[int],
        options: Options,
    ):
        self.name, self._fps, self._features, self._files = name, fps, features, files
        self._starts = np.cumsum([0, *lengths])
        self._encode, self._record = options.encode, _Files().read

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Episode:
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        file, number = self._files[shard], int(index - self._starts[shard])
        where = f"episode {number} of {file}"
        example = parse_example(self._record(file, number))
        steps = len(example.get(f"{_STEPS}is_first", ()))
        fields: dict[str, np.ndarray] = {}
        videos: dict[str, Video] = {}
        texts: list[str] = []
        metadata: dict[str, JSON] = {"fps": self._fps, "embodiment": self.name, "source": f"{file.name}/{number}"}
        for path, feature in self._features.items():
            if path not in example:
                raise BadEpisode(f"{where} lacks {path}: get it again")
            values = example[path]
            if not path.startswith(_STEPS):
                metadata[path.removeprefix("episode_metadata/")] = _constant(values, feature, f"{path} of {where}")
            elif feature.kind == "tensor":
                fields[path.removeprefix(_STEPS)] = _array(values, feature, (steps,), f"{path} of {where}")
            elif feature.kind == "image":
                pictures = _pictures(values, feature, steps, f"{path} of {where}")
                videos[path.removeprefix(_STEPS).removeprefix("observation/")] = self._encode(pictures, self._fps)
            elif "instruction" in path:
                texts.append(_instruction(values, steps, f"{path} of {where}"))
        if isinstance(origin := metadata.get("file_path"), str) and ("/success/" in origin or "/failure/" in origin):
            metadata["success"] = "/success/" in origin
        return Episode(fields, videos, tuple(text for text in texts if text), metadata)


def _collect(node: Mapping[str, Any], path: str, found: dict[str, _Feature]) -> None:
    """The leaves of a tree of features.json; `steps` is the only sequence that is entered."""
    if "featuresDict" in node:
        for name, child in sorted(node["featuresDict"]["features"].items()):
            _collect(child, f"{path}/{name}" if path else name, found)
    elif "sequence" in node:
        if path == "steps":
            _collect(node["sequence"]["feature"], path, found)
    elif "text" in node:
        found[path] = _Feature("text", "string", ())
    elif "image" in node or "tensor" in node:
        kind = "image" if "image" in node else "tensor"
        leaf = node[kind]
        shape = tuple(int(size) for size in leaf.get("shape", {}).get("dimensions", ()))
        dtype = leaf.get("dtype", "uint8")
        if kind == "tensor" and leaf.get("encoding", "none") != "none":
            raise UserError(f"feature {path} is encoded as {leaf['encoding']}: write the dataset without")
        if dtype == "string":
            found[path] = _Feature("text", dtype, ())
        elif kind == "image" or min(shape, default=1) > 0:
            found[path] = _Feature(kind, str(np.dtype(dtype)), shape)


def _file(template: str, name: str, split: str, kind: str, index: int, count: int) -> str:
    """A file's name; the folder's name says nothing, as the releases of DROID show."""
    digits = {
        "SHARD_INDEX": f"{index:05d}",
        "NUM_SHARDS": f"{count:05d}",
        "SHARD_X_OF_Y": f"{index:05d}-of-{count:05d}",
    }
    return template.format(DATASET=name, SPLIT=split, FILEFORMAT=kind, **digits).rsplit("/", 1)[-1]


class _Files:
    """Reads records of files; keeps where they lie, and a local copy of the last remote ArrayRecord file."""

    def __init__(self) -> None:
        self._offsets = functools.cache(record_offsets)
        self._local = functools.lru_cache(maxsize=1)(_local)

    def read(self, file: Place, number: int) -> bytes:
        """The bytes of a record, whose checksum was right."""
        if ".array_record" in file.name:
            return self._read_array_record(file, number)
        offsets = self._offsets(file)
        if number >= len(offsets):
            raise BadEpisode(f"{file} is cut short or damaged after {len(offsets)} episodes: get it again")
        return read_record(file, *offsets[number])

    def _read_array_record(self, file: Place, number: int) -> bytes:
        from array_record.python.array_record_module import ArrayRecordReader

        try:
            path, _ = self._local(file)
            reader = ArrayRecordReader(str(path), "readahead_buffer_size:0,max_parallelism:0")
            try:
                if number >= reader.num_records():
                    raise BadEpisode(f"{file} has {reader.num_records()} episodes only: get it again")
                return reader.read([number])[0]
            finally:
                reader.close()
        except (OSError, RuntimeError, ValueError, IndexError) as error:  # damaged (it has checksums) or missing
            raise BadEpisode(f"episode {number} of {file} cannot be read ({brief(error)}): get it again") from error


def _local(file: Place) -> tuple[Path, Any]:
    """A path to the file, and what deletes a copy once it is forgotten."""
    copy = file.local()
    return copy.__enter__(), copy


def _array(values: Values, feature: _Feature, leading: tuple[int, ...], where: str) -> np.ndarray:
    """Numbers in the shape and kind that features.json says; doubles were stored as singles."""
    shape = (*leading, *feature.shape)
    if not isinstance(values, np.ndarray) or values.size != np.prod(shape, dtype=int):
        raise BadEpisode(f"{where} has {len(values)} numbers, not {shape}: get it again")
    return values.reshape(shape).astype(feature.dtype)


def _pictures(values: Values, feature: _Feature, steps: int, where: str) -> Pictures:
    if not isinstance(values, list) or len(values) != steps:
        raise BadEpisode(f"{where} has {len(values)} pictures for {steps} steps: get it again")
    pictures = picture_files(values, where)
    found, (height, width) = (pictures.height, pictures.width), feature.shape[:2]
    if height > 0 and width > 0 and found != (height, width):
        raise BadEpisode(f"{where} has pictures of {found}, not {height}x{width}: get it again")
    return pictures


def _instruction(values: Values, steps: int, where: str) -> str:
    """The text that all steps repeat."""
    if not isinstance(values, list) or len(values) != steps:
        raise BadEpisode(f"{where} has {len(values)} texts for {steps} steps: get it again")
    if len(set(values)) != 1:
        raise BadEpisode(f"{where} changes with the steps, which this reader does not take")
    return values[0].decode("utf-8", "replace").strip()


def _constant(values: Values, feature: _Feature, where: str) -> JSON:
    """A feature of the whole episode."""
    if feature.kind == "text" and isinstance(values, list) and len(values) == 1:
        return values[0].decode("utf-8", "replace")
    if feature.kind == "image":
        return None
    return _array(values, feature, (), where).tolist()
