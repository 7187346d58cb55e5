"""Data files: JSON that becomes frozen dataclasses, and what is said of names that do not exist."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from wamjax import config as configuration
from wamjax.errors import UserError

DATA = Path(__file__).parent / "data"
"""Chips, networks, systems and publications that come with wamjax."""

T = TypeVar("T")


def read(cls: type[T], path: Path) -> T:
    """A JSON file as a dataclass; what is wrong with it is a UserError that names the file."""
    try:
        return configuration.build(cls, json.loads(path.read_text()))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}): repair it") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """A line on a name that does not exist, with the nearest ones."""
    known = tuple(known)
    near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.4)
    near += [one for one in known if name and name.lower() in one.lower() and one not in near][: 3 - len(near)]
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
    return f"unknown {what} '{name}': {hint}"
