"""Files and folders wherever they lie: a local path, or `gs://`, `s3://` and every other address that fsspec knows."""

from __future__ import annotations

import contextlib
import fnmatch
import glob
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import fsspec

from wamjax.data.retry import of_client, persistently
from wamjax.errors import UserError, brief

T = TypeVar("T")
PathLike = str | os.PathLike[str]

# What content of another form than expected raises where it is used.
MALFORMED = (KeyError, TypeError, ValueError, IndexError, AttributeError, ZeroDivisionError, OverflowError)
_ELSEWHERE = (FileNotFoundError, IsADirectoryError, NotADirectoryError)


@dataclass(frozen=True)
class Place:
    """A file or folder, which need not exist; `place / "name"` is one inside it. Picklable.

    Remote storage that does not answer is asked again for a while (`retry.persistently`); where it never does, or
    refuses, every method raises a UserError.
    """

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
        return bool(self._system.exists(self.path)) if self.is_local else self._kind() is not None

    def is_file(self) -> bool:
        """Whether there is a file."""
        return bool(self._system.isfile(self.path)) if self.is_local else self._kind() == "file"

    def _kind(self) -> str | None:
        """What is there, "file" or "directory"; `exists` of a client takes every trouble for nothing there."""
        try:
            return str(self._asked(lambda: self._system.info(self.path))["type"])
        except _ELSEWHERE:
            return None

    def find(self, pattern: str) -> list[Place]:
        """What matches a pattern of `*`, `?` and `**` inside this folder, in the order of the paths."""
        if not self.is_local and "**" not in pattern:
            return sorted(self._below(pattern.split("/")), key=lambda place: place.path)
        wanted = f"{glob.escape(self.path.rstrip('/'))}/{pattern}"
        found = self._asked(lambda: self._system.glob(wanted))
        return [Place(path, self._system) for path in sorted(found)]

    def _below(self, parts: Sequence[str]) -> Iterator[Place]:
        """What matches, folder by folder; s3fs's `glob` takes a folder that it cannot list for an empty one."""
        try:
            entries = self._asked(lambda: self._system.ls(self.path, detail=True))
        except _ELSEWHERE:
            return
        for entry in entries:
            path = entry["name"].rstrip("/")
            inside = self / path.rsplit("/", 1)[-1]
            if path == self.path.rstrip("/") or not fnmatch.fnmatchcase(inside.name, parts[0]):
                continue
            if len(parts) == 1:
                yield inside
            elif entry["type"] == "directory":
                yield from inside._below(parts[1:])

    def open(self, ahead: bool = True) -> BinaryIO:
        """The file, for reading at any position; of a remote one more than asked for is fetched, unless not `ahead`."""
        if self.is_local:
            return self._system.open(self.path, "rb")
        kept = {} if ahead else {"cache_type": "none"}
        file = _Remote(self._asked(lambda: self._system.open(self.path, "rb", **kept)), self._asked)
        return cast(BinaryIO, io.BufferedReader(file) if ahead else file)

    def read_bytes(self) -> bytes:
        """The file's content."""
        return bytes(self._asked(lambda: self._system.cat_file(self.path)))

    @contextlib.contextmanager
    def local(self) -> Iterator[Path]:
        """A path to the file for libraries that open nothing else: itself, or a copy that is deleted afterwards."""
        if self.is_local:
            yield Path(self.path)
            return
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / self.name
            self._asked(lambda: self._system.get_file(self.path, str(copy)))
            yield copy

    @property
    def is_local(self) -> bool:
        """Whether it is on a disk of this machine."""
        return isinstance(self._system, fsspec.implementations.local.LocalFileSystem)

    def _asked(self, ask: Callable[[], T]) -> T:
        """What the storage answers; a remote one is asked again while that may help."""
        if self.is_local:
            return ask()
        try:
            return persistently(ask, self)
        except _ELSEWHERE:
            raise
        except Exception as error:
            if not (isinstance(error, OSError | ValueError) or of_client(error)):
                raise
            raise UserError(f"{self} cannot be read ({brief(error)}): log in, or ask for access") from error


class _Remote(io.RawIOBase):
    """A file whose every reading is `asked`; one that failed has not moved on, so it may be asked again."""

    def __init__(self, file: Any, asked: Callable[[Callable[[], bytes]], bytes]):
        self._file, self._asked = file, asked

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._asked(lambda: self._file.read(len(buffer)))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def close(self) -> None:
        self._file.close()
        super().close()


def read_json(file: Place, hint: str = "give the folder of a dataset") -> Any:
    """The content of a JSON file.

    Raises:
        UserError: it is missing (then `hint` says what to do) or damaged.
    """
    return _parsed(file, json.loads, hint)


def read_lines(file: Place, hint: str = "give the folder of a dataset") -> list[Any]:
    """The values of a file with one of JSON per line; errors as in `read_json`."""
    return _parsed(file, lambda text: [json.loads(line) for line in text.splitlines() if line.strip()], hint)


def _parsed(file: Place, parse: Any, hint: str) -> Any:
    try:
        return parse(file.read_bytes().decode("utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{file} is missing: {hint}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read ({brief(error)}): write it again") from error
