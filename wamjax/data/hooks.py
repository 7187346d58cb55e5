"""Functions of one's own, named on the command line: `package.module:function` or `file.py:function`.

Hooks are such functions of an episode. They run while a dataset is read, before its videos are resized or encoded anew.
"""

from __future__ import annotations

import hashlib
import importlib
import runpy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from wamjax.data.episode import BadEpisode, Episode
from wamjax.errors import UserError

Hook = Callable[[Episode], Episode | None]
"""What becomes of an episode; None leaves it out. Equal for equal episodes, for a shard may be written twice."""


def function(reference: str, kind: str = "function", known: Sequence[str] = ()) -> Callable[..., Any]:
    """The function of a module or file; `kind` is what a mistake calls it, `known` what else could be meant.

    Raises:
        UserError: there is none, or its file cannot be run.
    """
    module, _, name = reference.rpartition(":")
    try:
        found = runpy.run_path(module)[name] if module.endswith(".py") else _attribute(module, name)
    except Exception as error:
        choices = ", ".join(["give package.module:function or file.py:function", *known])
        raise UserError(f"no {kind} '{reference}' ({type(error).__name__}: {error}): {choices}") from error
    if not callable(found):
        raise UserError(f"{kind} '{reference}' is no function but {found!r}")
    return found


def version(reference: str) -> str:
    """A reference with the SHA-256 of the file it means, where there is one: two that differ may do other things."""
    module = reference.rpartition(":")[0]
    file = module if module.endswith(".py") else getattr(sys.modules.get(module), "__file__", None)
    return f"{reference} ({hashlib.sha256(Path(file).read_bytes()).hexdigest()[:12]})" if file else reference


def through(hooks: Sequence[tuple[str, Hook]], episode: Episode, index: int) -> Episode:
    """What hooks, each beside its name, make of an episode one after the other.

    Raises:
        BadEpisode: one leaves it out, or cannot read it. UserError: one fails.
    """
    for name, hook in hooks:
        episode = _applied(name, hook, episode, index)
    return episode


def _applied(name: str, hook: Hook, episode: Episode, index: int) -> Episode:
    """What a hook makes of an episode; what it cannot read is left out as what readers cannot read."""
    try:
        found = hook(episode)
    except BadEpisode as error:
        raise BadEpisode(f"hook '{name}': {error}") from error
    except Exception as error:
        raise UserError(f"hook '{name}' fails at episode {index} ({type(error).__name__}: {error})") from error
    if found is None:
        raise BadEpisode(f"hook '{name}' leaves it out")
    if not isinstance(found, Episode):
        kind = type(found).__name__
        raise UserError(f"hook '{name}' makes a {kind} of episode {index}: return an Episode, or None to leave it out")
    return found


def _attribute(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)
