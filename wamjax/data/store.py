"""The native episode store: a folder of ArrayRecord shards that processes fill together and threads read.

    <split>-<name>.array_record   one record per episode (`episode.pack`), in groups of one for random access
    <split>-<name>.steps.npz      a copy of its step arrays, for whoever needs no pictures (`step_files`)
    <split>-<name>.json           written after its shard: what is in it, so that readers need not open it
    dataset.json                  written last, by `finish`: the splits, fields, cameras and the fingerprint
    statistics.json               exact statistics of the training split's fields

Records and JSON files carry checksums, which are compared whenever they are read.

Every file appears under its name only when it is complete (`files.replacing`), so a killed writer leaves
nothing that looks finished, and its work can be resumed shard by shard.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from wamjax.data import records, statistics, step_files
from wamjax.data.episode import JSON, BadEpisode, Episode, pack, unpack
from wamjax.data.files import PARTIAL, read_sealed, sha256, write_sealed
from wamjax.data.records import BEGUN, SHARD_SUFFIX, PathLike, describe, shard_path
from wamjax.errors import UserError

STORE_FORMAT = 1


def finished_shard(folder: PathLike, split: str, name: str) -> bool:
    """Whether the shard is complete, so that `write_shard` would keep it."""
    return describe(shard_path(folder, split, name)) is not None


def write_shard(folder: PathLike, split: str, name: str, episodes: Iterable[Episode]) -> dict[str, Any]:
    """Write one shard and return its description; a finished shard is kept, without looking at `episodes`.

    Different shards may be written by different processes at once. A new shard makes the dataset unfinished
    until `finish` is called again. `episodes` may be a generator; an exception in it leaves no shard behind.

    Raises:
        UserError: the disk is full, or a name has other characters than letters, digits, `_` (and `.`, `-`).
        BadEpisode: the episodes differ in fields, cameras or fps, or one lacks the metadata `fps`.
    """
    shard = shard_path(folder, split, name)
    steps: list[step_files.Steps] = []

    def copy_steps(checksum: str) -> None:
        if steps and steps[0]:
            step_files.write(shard.with_suffix(step_files.SUFFIX), checksum, steps)

    return records.write_shard(
        shard, lambda write: _write_episodes(write, episodes, steps), "dataset.json", beside=copy_steps
    )


def finish(folder: PathLike, *, name: str | None = None) -> dict[str, Any]:
    """Check that all shards fit together, then write statistics.json and dataset.json.

    The statistics are those of the split `train`. Call it once, when no process writes shards any more.
    Returns the content of dataset.json: format, name, fps, fields, cameras, splits, fingerprint.

    Raises:
        UserError: no episodes, no split `train`, or shards that differ in fields, cameras or fps.
    """
    folder = Path(folder)
    shards: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob(f"*{SHARD_SUFFIX}")):
        if (description := describe(path)) is not None and description["episodes"]:
            shards.setdefault(path.name.split("-", 1)[0], []).append(description)
    if "train" not in shards:
        raise UserError(f"no episodes of split 'train' in {folder}: collect or convert that first")
    everything = [shard for parts in shards.values() for shard in parts]
    first = everything[0]
    for shard in everything:
        if shard["schema"] != first["schema"]:
            raise UserError(
                f"{shard['file']} in {folder} has {shard['schema']} where {first['file']} has "
                f"{first['schema']}: delete the shards that do not belong to the dataset"
            )
    hashes = "".join(f"{shard['file']}:{shard['sha256']}\n" for shard in everything)
    dataset = {
        "format": STORE_FORMAT,
        "name": name or folder.resolve().name,
        **first["schema"],
        "splits": {split: _summary(parts) for split, parts in shards.items()},
        "fingerprint": hashlib.sha256(hashes.encode()).hexdigest(),
    }
    train = EpisodeStore(folder, "train", dataset=dataset)
    write_sealed(folder / "statistics.json", statistics.compute(train.all_steps(), int(train.lengths.sum())))
    write_sealed(folder / "dataset.json", dataset)
    for leftover in folder.glob(f".*{PARTIAL}"):
        leftover.unlink(missing_ok=True)
    return dataset


class EpisodeStore:
    """Random access to the episodes of one split of a finished dataset; picklable, and safe for threads.

    `dataset` is the content of dataset.json for the time before that file is written.

    Attributes:
        folder, split, name: where it is (a URL where that is no disk of this machine) and what it is called.
        lengths: steps of each episode, int64 (episodes,).
        fields: step field -> {"dtype", "shape" of one step}.
        cameras: camera -> (height, width) in pixels.
        fps: steps per second, Hz.
        fingerprint: SHA-256 over all shards of all splits; equal for equal data.
        splits: the names of the dataset's splits.

    Raises:
        UserError: no dataset, an unfinished one, an unknown split, or a shard that is missing or cut short.
    """

    def __init__(self, folder: PathLike, split: str = "train", *, dataset: dict[str, Any] | None = None):
        self.folder: Path | str = Path(folder)
        self.split = split
        try:
            self._open(dataset or _read_dataset(self.folder))
        except (KeyError, TypeError, ValueError, AttributeError) as error:  # without a checksum, as written before
            raise UserError(f"{self.folder / 'dataset.json'} is damaged ({error!r}): write it again") from error

    def _open(self, dataset: dict[str, Any]) -> None:
        """Take over what dataset.json and the descriptions of the shards say."""
        split = self.split
        self.splits = tuple(dataset["splits"])
        if split not in self.splits:
            raise UserError(f"no split '{split}' in {self.folder}: it has {', '.join(self.splits)}")
        self.name: str = dataset["name"]
        self.fields: dict[str, dict[str, Any]] = dataset["fields"]
        self.cameras: dict[str, tuple[int, int]] = {k: (h, w) for k, [h, w] in dataset["cameras"].items()}
        self.fps: float = dataset["fps"]
        self._schema = {key: dataset[key] for key in ("fps", "fields", "cameras")}
        self.fingerprint: str = dataset["fingerprint"]
        self._shards: list[dict[str, Any]] = dataset["splits"][split]["shards"]
        parts = [self._describe(shard) for shard in self._shards]
        self.lengths = np.array([length for part in parts for length in part["lengths"]], np.int64)
        self._metadata = [metadata for part in parts for metadata in part["metadata"]]
        files = [self.folder / shard["file"] for shard in self._shards]
        self._records = records.Records(files, [shard["episodes"] for shard in self._shards], "episode")

    def __len__(self) -> int:
        """Number of episodes."""
        return len(self.lengths)

    def __getitem__(self, index: int) -> Episode:
        """Read episode `index`, 0 .. len - 1.

        Raises:
            BadEpisode: the record is damaged.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"episode {index} of {len(self)}")
        episode = unpack(self._records[index])
        if len(episode) != self.lengths[index] or schema(episode) != self._schema:
            raise BadEpisode(
                f"episode {index} in {self._records.place(index)} differs from its description in length or fields"
            )
        return episode

    def all_steps(self) -> Iterator[step_files.Steps]:
        """The step arrays of every episode in order, without reading videos where the shards have files of steps.

        Raises:
            BadEpisode: a record that has to be read is damaged.
        """
        ends = np.cumsum([shard["episodes"] for shard in self._shards]).tolist()
        for shard, first, stop in zip(self._shards, [0, *ends], ends, strict=False):
            if not self.fields:
                yield from ({} for _ in range(first, stop))
                continue
            path = (self.folder / shard["file"]).with_suffix(step_files.SUFFIX)
            known = step_files.read(path, shard["sha256"], self.lengths[first:stop].tolist())
            yield from (self[index].steps for index in range(first, stop)) if known is None else known

    def metadata(self, index: int) -> dict[str, JSON]:
        """The metadata of episode `index`, without reading the episode."""
        return self._metadata[index]

    @property
    def statistics(self) -> statistics.Statistics:
        """Those of the training split, as `statistics.compute` describes them.

        Raises:
            UserError: the file is missing or damaged.
        """
        path = Path(self.folder) / "statistics.json"
        try:
            return read_sealed(path)
        except (OSError, ValueError) as error:
            raise UserError(f"{path} is missing or damaged ({error}): write the dataset again") from error

    def verify(self) -> None:
        """Read every shard of the split and compare its SHA-256 with the one it was written with.

        Raises:
            UserError: a shard has changed.
        """
        for shard in self._shards:
            if sha256(path := self.folder / shard["file"]) != shard["sha256"]:
                raise UserError(f"{path} has changed since it was written: delete it and collect it again")

    def _describe(self, shard: dict[str, Any]) -> dict[str, Any]:
        path = self.folder / shard["file"]
        description = describe(path)
        if description is None or description["sha256"] != shard["sha256"]:
            raise UserError(
                f"{path} is missing, cut short or not the one in dataset.json: "
                "delete it and run `wamjax data collect` again"
            )
        return description


def _write_episodes(
    write: Callable[[bytes], None], episodes: Iterable[Episode], steps: list[step_files.Steps]
) -> dict[str, Any]:
    """Write the episodes' records, add their step arrays to `steps`, and describe them."""
    lengths, metadata, common = [], [], None
    for episode in episodes:
        if common not in (None, found := schema(episode)):
            raise BadEpisode(f"episodes of one shard must look alike: {found} after {common}")
        common = found
        write(pack(episode))
        steps.append(episode.steps)
        lengths.append(len(episode))
        metadata.append(dict(episode.metadata))
    return {
        "format": STORE_FORMAT,
        "episodes": len(lengths),
        "steps": sum(lengths),
        "lengths": lengths,
        "schema": common,
        "metadata": metadata,
    }


def _summary(shards: list[dict[str, Any]]) -> dict[str, Any]:
    """A split's entry in dataset.json."""
    keep = ("file", "episodes", "steps", "bytes", "sha256")
    return {
        "episodes": sum(shard["episodes"] for shard in shards),
        "steps": sum(shard["steps"] for shard in shards),
        "shards": [{key: shard[key] for key in keep} for shard in shards],
    }


def schema(episode: Episode) -> dict[str, Any]:
    """What all episodes of a dataset share: fps, fields, cameras.

    Raises:
        BadEpisode: the episode has no frame rate.
    """
    if not isinstance(fps := episode.metadata.get("fps"), int | float) or not fps > 0:
        raise BadEpisode(f"an episode's metadata needs a positive 'fps', got {fps!r}")
    return {
        "fps": float(fps),
        "fields": {
            name: {"dtype": array.dtype.name, "shape": list(array.shape[1:])}
            for name, array in sorted(episode.steps.items())
        },
        "cameras": {name: [video.height, video.width] for name, video in sorted(episode.videos.items())},
    }


def _read_dataset(folder: Path) -> dict[str, Any]:
    path = folder / "dataset.json"
    if (folder / BEGUN).exists():
        raise UserError(f"{folder} holds encoded samples, which `wamjax train` alone reads: give the dataset")
    if not path.exists():
        started = next(folder.glob(f"*{SHARD_SUFFIX}*"), None) if folder.is_dir() else None
        state = "unfinished dataset" if started else "no dataset"
        raise UserError(
            f"{state} in {folder}: run `wamjax data collect --out {folder}`"
            + (" again, it continues where it stopped" if started else "")
        )
    try:
        dataset = read_sealed(path)
        version = dataset["format"]
    except (ValueError, KeyError) as error:
        raise UserError(f"{path} is damaged ({error}): run `wamjax data collect --out {folder}`") from error
    if version != STORE_FORMAT:
        raise UserError(f"{path} has format {version}, this wamjax reads {STORE_FORMAT}: collect it again")
    return dataset
