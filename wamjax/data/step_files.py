"""The step arrays of a shard without its videos, so that whoever wants numbers only need not read pictures.

They are a copy: a file that is missing, damaged or of another shard costs nothing but time.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from wamjax.data.files import replacing

Steps = Mapping[str, np.ndarray]

SUFFIX = ".steps.npz"


def write(path: Path, of: str, episodes: Sequence[Steps]) -> None:
    """Write the steps of a shard's episodes, which have the same fields; `of` is the shard's checksum."""
    names = sorted(episodes[0]) if episodes else []
    head = {"of": of, "names": names, "lengths": [len(one[names[0]]) for one in episodes] if names else []}
    columns = [np.concatenate([one[name] for one in episodes]) for name in names]
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez(file, np.frombuffer(json.dumps(head).encode(), np.uint8), *columns)


def read(path: Path, of: str, lengths: Sequence[int]) -> Iterator[Steps] | None:
    """The steps of each episode, or None where the file is not the one of such episodes and such a shard."""
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:  # zip: checksums are compared
            first, *columns = [file[f"arr_{i}"] for i in range(len(file.files))]
        head = json.loads(first.tobytes())
        if head["of"] != of or head["lengths"] != list(lengths) or len(columns) != len(head["names"]):
            return None
        named = dict(zip(head["names"], columns, strict=True))
    except (OSError, ValueError, KeyError, TypeError, EOFError, NotImplementedError, zipfile.BadZipFile):
        return None
    return _parts(named, lengths)


def _parts(columns: Steps, lengths: Sequence[int]) -> Iterator[Steps]:
    ends = np.cumsum(lengths).tolist()
    for start, stop in zip([0, *ends], ends, strict=False):
        yield {name: values[start:stop] for name, values in columns.items()}
