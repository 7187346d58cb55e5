"""Shards of records: an ArrayRecord file and, written after it, a sealed description beside it.

A shard appears only when it is complete (`files.replacing`), so a killed writer leaves nothing that looks finished, and
its work is resumed shard by shard. Records are read at random, each with ArrayRecord's own checksum.
"""

import os
import re
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from wamjax.data.episode import BadEpisode
from wamjax.data.files import read_sealed, replacing, sha256, write_sealed
from wamjax.errors import UserError

PathLike = str | os.PathLike[str]

SHARD_SUFFIX = ".array_record"
BEGUN = "encoding.json"
"""In folders of encoded samples (`latents.py`) from the beginning: what they are made of. Datasets have none."""
_WRITE_OPTIONS = "group_size:1,uncompressed"  # videos and latents, most of the bytes, would not become smaller
_READ_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"  # what ArrayRecord recommends for random access


def shard_path(folder: PathLike, split: str, name: str) -> Path:
    """Where a shard lies.

    Raises:
        UserError: a name has other characters than letters, digits, `_` (and `.`, `-`).
    """
    if not re.fullmatch(r"\w+", split) or not re.fullmatch(r"[\w.-]+", name):
        raise UserError(f"split '{split}', shard '{name}': use letters, digits, '_' (shards: and '.', '-')")
    return Path(folder) / f"{split}-{name}{SHARD_SUFFIX}"


def describe(shard: Path) -> dict[str, Any] | None:
    """The description of a shard, or None where the shard is not finished (or not the size it was)."""
    try:
        description = read_sealed(shard.with_suffix(".json"))
        return description if shard.stat().st_size == description["bytes"] else None
    except (FileNotFoundError, ValueError, KeyError):
        return None


def write_shard(
    shard: Path,
    fill: Callable[[Callable[[bytes], None]], dict[str, Any]],
    unfinished: str,
    beside: Callable[[str], None] = lambda checksum: None,
) -> dict[str, Any]:
    """Write one shard and return its description; a finished one is kept, without calling `fill`.

    Args:
        shard: its path.
        fill: writes the records with what it is given, and returns what the description is to say.
        unfinished: name of the file in the folder that says that everything is there, which then no longer holds.
        beside: writes what goes with the shard, given its checksum, before the description says that all is there.

    Raises:
        UserError: the disk is full.
    """
    if (description := describe(shard)) is not None:
        return description
    shard.parent.mkdir(parents=True, exist_ok=True)
    for outdated in (shard.with_name(unfinished), shard.with_suffix(".json")):
        outdated.unlink(missing_ok=True)
    with replacing(shard) as partial:
        writer = ArrayRecordWriter(str(partial), _WRITE_OPTIONS)
        try:
            description = fill(writer.write)
        finally:
            writer.close()
        description |= {"file": shard.name, "bytes": partial.stat().st_size, "sha256": sha256(partial)}
    beside(description["sha256"])
    write_sealed(shard.with_suffix(".json"), description)
    return description


class Records:
    """The records of several shards, one after the other; picklable, and safe for threads.

    Args:
        shards, counts: files, and how many records each has. what: a record is, in messages.
    """

    def __init__(self, shards: Sequence[Path], counts: Sequence[int], what: str = "record"):
        self._shards, self._what = tuple(shards), what
        self._starts = np.cumsum([0, *counts])
        self._readers: dict[int, ArrayRecordReader] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Number of records."""
        return int(self._starts[-1])

    def place(self, index: int) -> Path:
        """The shard of a record."""
        return self._shards[self._shard(index)]

    def __getitem__(self, index: int) -> bytes:
        """Record `index`, 0 .. len - 1.

        Raises:
            BadEpisode: it is damaged.
        """
        shard = self._shard(index)
        try:
            return self._reader(shard).read([int(index - self._starts[shard])])[0]
        except RuntimeError as error:  # ArrayRecord's own checksums
            raise BadEpisode(f"{self._what} {index} cannot be read from {self._shards[shard]}: {error}") from error

    def _shard(self, index: int) -> int:
        return int(np.searchsorted(self._starts, index, side="right")) - 1

    def _reader(self, shard: int) -> ArrayRecordReader:
        with self._lock:
            if shard not in self._readers:
                self._readers[shard] = ArrayRecordReader(str(self._shards[shard]), _READ_OPTIONS)
            return self._readers[shard]

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key not in ("_readers", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _readers={}, _lock=threading.Lock())
