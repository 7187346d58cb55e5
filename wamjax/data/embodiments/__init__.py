"""Robots, one file each: what they see, measure and do, and how DreamZero shows that to its model.

A file in this folder (or anywhere, named by its path or as `package.module`) that defines `EMBODIMENT` adds a robot.
"""

from __future__ import annotations

import importlib
import pkgutil
import runpy
from dataclasses import dataclass
from pathlib import Path

from wamjax.data.canvas import Layout
from wamjax.errors import UserError


@dataclass(frozen=True)
class Field:
    """A part of the state or of the action.

    Attributes:
        name: step field of the episodes, such as `observation/joint_position`.
        size: numbers per step.
        relative: an action that is learned as its difference from the state of the same `key`.
    """

    name: str
    size: int
    relative: bool = False

    @property
    def key(self) -> str:
        """The name that GEAR metadata has for it: the last part of `name`."""
        return self.name.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class Embodiment:
    """A robot as a dataset describes it.

    Attributes:
        name: how configurations call it.
        tag: its `embodiment_tag` in GEAR metadata.
        number: its index in the released configurations (selects nothing inside the model).
        cameras: views in the order of the view axis.
        layout: where each view goes on the canvas.
        state, action: fields in the order of the vectors.
        fps: steps per second of its datasets, Hz.
        prompt: our own prompt template; `{t}` stands for the instruction.
        prompt_sha256: of the template that the released weights were trained with; None where there are none.
        video_stride: steps from one frame to the next.
        frames_per_chunk: frames per chunk of actions.
        annotations: keys of the language annotations in GEAR metadata, the first one deciding where a task ends.
    """

    name: str
    tag: str
    number: int
    cameras: tuple[str, ...]
    layout: Layout
    state: tuple[Field, ...]
    action: tuple[Field, ...]
    fps: float
    prompt: str
    prompt_sha256: str | None = None
    video_stride: int = 3
    frames_per_chunk: int = 8
    annotations: tuple[str, ...] = ("task",)

    def __post_init__(self) -> None:
        for part, fields in (("state", self.state), ("action", self.action)):
            keys = [field.key for field in fields]
            if len(set(keys)) != len(keys) or any(field.size < 1 for field in fields):
                raise self._error(f"{part} fields need sizes of at least 1 and different last names, not {fields}")
        for field in self.action:
            if field.relative and self._state_sizes().get(field.key) != field.size:
                raise self._error(f"action '{field.name}' is relative, but no state '{field.key}' has its size")
        if any(field.relative for field in self.state):
            raise self._error("only actions can be relative")
        if not self.cameras or any(not 0 <= place.view < len(self.cameras) for place in self.layout):
            raise self._error(f"the layout shows views that cameras {self.cameras} do not give")
        if min(self.fps, self.video_stride, self.frames_per_chunk) <= 0:
            raise self._error("fps, video_stride and frames_per_chunk must be positive")
        if "{t}" not in self.prompt:
            raise self._error("the prompt needs a placeholder {t} for the instruction")

    @property
    def actions_per_chunk(self) -> int:
        """Steps that one chunk spans; there is an action at each."""
        return self.video_stride * self.frames_per_chunk

    @property
    def state_size(self) -> int:
        """Length of the state vector."""
        return sum(field.size for field in self.state)

    @property
    def action_size(self) -> int:
        """Length of the action vector."""
        return sum(field.size for field in self.action)

    @property
    def reference(self) -> tuple[int | None, ...]:
        """For every number of the action, the number of the state that it is relative to, or None."""
        starts, position = {}, 0
        for field in self.state:
            starts[field.key] = position
            position += field.size
        return tuple(
            starts[field.key] + i if field.relative else None for field in self.action for i in range(field.size)
        )

    def _state_sizes(self) -> dict[str, int]:
        return {field.key: field.size for field in self.state}

    def _error(self, message: str) -> UserError:
        return UserError(f"embodiment '{self.name}': {message}")


def names() -> list[str]:
    """The robots that have a file in this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(reference: str) -> Embodiment:
    """The robot called `reference`: a name of this folder, a dotted module, or the path of a Python file.

    Raises:
        UserError: there is none, or the file defines no `EMBODIMENT`.
    """
    if reference.endswith(".py"):
        if not Path(reference).is_file():
            raise UserError(f"no file {reference}: give the path of a Python file that defines EMBODIMENT")
        found = runpy.run_path(reference).get("EMBODIMENT")
    elif reference in names() or "." in reference:
        module = reference if "." in reference else f"{__name__}.{reference}"
        try:
            found = getattr(importlib.import_module(module), "EMBODIMENT", None)
        except (ModuleNotFoundError, TypeError) as error:
            raise UserError(f"no embodiment '{reference}' ({error}): choose {_choices()}") from error
    else:
        raise UserError(f"no embodiment '{reference}': choose {_choices()}")
    if not isinstance(found, Embodiment):
        raise UserError(f"'{reference}' defines no EMBODIMENT of class Embodiment: see docs/embodiments.md")
    return found


def _choices() -> str:
    return f"{', '.join(names())}, a dotted module or a .py file"
