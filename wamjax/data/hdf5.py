"""HDF5 files as arrays and pictures; whatever is wrong with a file is a `BadEpisode`.

HDF5 has no checksums unless a writer asked for them (`fletcher32`), which the writers read here do not: a flipped bit
in stored numbers cannot be noticed, one in the structure or in compressed data mostly is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from wamjax.data.episode import BadEpisode, Pictures
from wamjax.data.readers.pictures import picture_files
from wamjax.data.storage import MALFORMED, Place, brief

_LIMIT = 32 << 30  # bytes of one array, and times that it is larger than its whole file: more than that is damage
_DENSEST = 1100


@contextlib.contextmanager
def open_file(file: Place) -> Iterator[Any]:
    """The file, an `h5py.File`.

    Raises:
        BadEpisode: whatever h5py raises inside.
    """
    import h5py

    try:
        with file.open() as stream, h5py.File(stream, "r") as opened:
            yield opened
    except BadEpisode:
        raise
    except (OSError, RuntimeError, *MALFORMED) as error:
        raise BadEpisode(f"{file} cannot be read as HDF5 ({brief(error)}): get it again") from error


def names(group: Any, path: str, where: object) -> list[str]:
    """Names of the members of a group.

    Raises:
        BadEpisode: there is no such group.
    """
    import h5py

    found = group.get(path)
    if not isinstance(found, h5py.Group):
        raise BadEpisode(f"{where} has no group '{path}' but {', '.join(group) or 'nothing'}")
    return list(found)


def is_dataset(group: Any, path: str) -> bool:
    """Whether there is an array of this name."""
    import h5py

    return isinstance(group.get(path), h5py.Dataset)


def array(group: Any, path: str, where: object) -> np.ndarray:
    """Numbers, or texts as bytes objects.

    Raises:
        BadEpisode: there is no such array, or it says to be larger than memory.
    """
    import h5py

    found = group.get(path)
    if not isinstance(found, h5py.Dataset):
        raise BadEpisode(f"{where} has no array '{path}' but {', '.join(group) or 'nothing'}")
    size = found.size * found.dtype.itemsize if found.size is not None else _LIMIT
    if size >= _LIMIT or size > _DENSEST * max(found.file.id.get_filesize(), 1 << 20):
        raise BadEpisode(f"'{path}' of {where} says to have the shape {found.shape}: get it again")
    return np.asarray(found[()])


def numbers(group: Any, path: str, where: object, steps: int | None = None) -> np.ndarray:
    """An array of numbers (`steps`, ...).

    Raises:
        BadEpisode: it is missing, no numbers, or of another length.
    """
    found = array(group, path, where)
    if found.dtype.kind not in "biuf" or found.ndim == 0 or (steps is not None and len(found) != steps):
        expected = f"numbers of {steps} steps" if steps is not None else "numbers over time"
        raise BadEpisode(f"'{path}' of {where} is {found.dtype} {found.shape}, not {expected}: get it again")
    return found


def pictures(group: Any, path: str, where: object, *, swapped_unless: bytes | None = None) -> Pictures:
    """Pictures as RGB: stored as uint8 (t, h, w, 3), or as JPEG or PNG files (texts, or rows of padded bytes).

    `swapped_unless` is that of `decode_picture`.

    Raises:
        BadEpisode: they are missing or something else; also when they are read: damaged.
    """
    found, name = array(group, path, where), f"'{path}' of {where}"
    if found.dtype == np.uint8 and found.ndim == 4 and found.shape[-1] == 3 and found.size:
        return Pictures.of(found)
    if found.dtype == np.uint8 and found.ndim == 2:
        files = [row.tobytes() for row in found]
    elif found.dtype.kind in "SO" and found.ndim == 1:
        files = [bytes(row) for row in found.tolist()]
    else:
        raise BadEpisode(f"{name} is {found.dtype} {found.shape}, not pictures: get it again")
    return picture_files(files, name, swapped_unless=swapped_unless)


def text(value: object) -> str:
    """A text of an attribute or array, however it is stored."""
    if isinstance(value, np.ndarray):
        value = value.item() if value.size == 1 else b""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
