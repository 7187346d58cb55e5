"""Files that appear under their name only when they are complete."""

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from wamjax.errors import UserError

PARTIAL = ".partial"


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a hidden path beside `path` to write to; afterwards it is flushed to disk and renamed to `path`.

    Whatever goes wrong inside, `path` stays as it was and nothing is left beside it (a killed process leaves
    a file whose name ends in `PARTIAL`, which the next attempt overwrites).

    Raises:
        UserError: the disk is full.
    """
    partial = path.with_name(f".{path.name}{PARTIAL}")
    try:
        with full_disk(path):
            yield partial
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def full_disk(path: Path) -> Iterator[None]:
    """Tell a full disk from other errors while `path` is written.

    Raises:
        UserError: the disk is full.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:  # ArrayRecord raises RuntimeError with the system's words
        if os.strerror(errno.ENOSPC) in str(error):
            raise UserError(f"the disk of {path.parent} is full: free space or write elsewhere") from error
        raise


def write_json(path: Path, content: Any) -> None:
    """Write `content` as JSON, completely or not at all."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(content, indent=1))


def keep_lines(path: Path, wanted: Callable[[Any], bool]) -> None:
    """Keep the lines of a JSON-lines file whose content is `wanted`; a half-written one, and all after it, go too."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            content = json.loads(line)
        except ValueError:
            break
        if wanted(content):
            kept.append(line + "\n")
    with replacing(path) as partial:
        partial.write_text("".join(kept))


def write_sealed(path: Path, content: dict[str, Any]) -> None:
    """Write `content` as JSON with a checksum of itself, completely or not at all."""
    write_json(path, {"checksum": _digest(content), **content})


def read_sealed(path: Path) -> dict[str, Any]:
    """The content of such a file, or of one without a checksum, as they were written before.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged.
    """
    content = json.loads(path.read_bytes())
    if not isinstance(content, dict):
        raise ValueError("it is no table")
    if content.pop("checksum", None) not in (None, _digest(content)):
        raise ValueError("its checksum is wrong")
    return content


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
