"""Files and folders wherever they lie: a local path, or `gs://`, `s3://` and every other address that fsspec knows."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import fsspec

from wamjax.errors import UserError

PathLike = str | os.PathLike[str]

# What content of another form than expected raises where it is used.
MALFORMED = (KeyError, TypeError, ValueError, IndexError, AttributeError, ZeroDivisionError, OverflowError)


@dataclass(frozen=True)
class Place:
    """A file or folder, which need not exist; `place / "name"` is one inside it. Picklable."""

    path: str
    _system: Any

    @classmethod
    def of(cls, address: Place | PathLike) -> Place:
        """The place at a path or URL.

        Raises:
            UserError: a kind of address that nothing installed can open.
        """
        if isinstance(address, Place):
            return address
        try:
            system, path = fsspec.core.url_to_fs(os.fspath(address))
        except (ImportError, ValueError) as error:
            raise UserError(f"{address} cannot be opened ({brief(error)}): pip install 'wamjax[cloud]'") from error
        return cls(path, system)

    def __truediv__(self, name: str) -> Place:
        return Place(f"{self.path.rstrip('/')}/{name}", self._system)

    def __str__(self) -> str:
        return self.path if self.is_local else str(self._system.unstrip_protocol(self.path))

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rstrip("/").rsplit("/", 1)[-1]

    @property
    def stem(self) -> str:
        """The name without its last suffix."""
        return self.name.rsplit(".", 1)[0]

    @property
    def parent(self) -> Place:
        """The folder that it is in."""
        return Place(self.path.rstrip("/").rsplit("/", 1)[0], self._system)

    def exists(self) -> bool:
        """Whether there is a file or folder."""
        return bool(self._system.exists(self.path))

    def is_file(self) -> bool:
        """Whether there is a file."""
        return bool(self._system.isfile(self.path))

    def find(self, pattern: str) -> list[Place]:
        """What matches a pattern of `*`, `?` and `**` inside this folder, in the order of the paths."""
        found = self._system.glob(f"{glob.escape(self.path.rstrip('/'))}/{pattern}")
        return [Place(path, self._system) for path in sorted(found)]

    def open(self, ahead: bool = True) -> BinaryIO:
        """The file, for reading at any position; of a remote one more than asked for is fetched, unless not `ahead`."""
        return self._system.open(self.path, "rb", **({} if ahead else {"cache_type": "none"}))

    def read_bytes(self) -> bytes:
        """The file's content."""
        return bytes(self._system.cat_file(self.path))

    @contextlib.contextmanager
    def local(self) -> Iterator[Path]:
        """A path to the file for libraries that open nothing else: itself, or a copy that is deleted afterwards."""
        if self.is_local:
            yield Path(self.path)
            return
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / self.name
            self._system.get_file(self.path, str(copy))
            yield copy

    @property
    def is_local(self) -> bool:
        """Whether it is on a disk of this machine."""
        return isinstance(self._system, fsspec.implementations.local.LocalFileSystem)


def read_json(file: Place, hint: str = "give the folder of a dataset") -> Any:
    """The content of a JSON file.

    Raises:
        UserError: it is missing (then `hint` says what to do) or damaged.
    """
    return _parsed(file, json.loads, hint)


def read_lines(file: Place, hint: str = "give the folder of a dataset") -> list[Any]:
    """The values of a file with one of JSON per line; errors as in `read_json`."""
    return _parsed(file, lambda text: [json.loads(line) for line in text.splitlines() if line.strip()], hint)


def brief(error: BaseException) -> str:
    """An error in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _parsed(file: Place, parse: Any, hint: str) -> Any:
    try:
        return parse(file.read_bytes().decode("utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{file} is missing: {hint}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read ({brief(error)}): write it again") from error
