"""Checkpoints: one item holds everything a run needs to go on, or a policy to act.

<run>/checkpoints/<step>/state   train state (Orbax, asynchronous, any mesh)
                         frozen  frozen parameters: codecs and normalisation statistics
                         meta    JSON: configuration, sample shapes, data position, clock, what it was built from
                         sizes.json  of all files, added when all are there: what a later start compares
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from wamjax.data.files import write_json
from wamjax.errors import UserError
from wamjax.sharding import processes
from wamjax.sharding.processes import whole
from wamjax.training.paths import leaves
from wamjax.training.step import TrainState


class DamagedCheckpoint(Exception):
    """A checkpoint cannot be read though it is of the right policy."""


class Checkpoints:
    """The checkpoints of one run folder.

    Args:
        run: the run folder.
        keep: how many to keep.
        keep_every: checkpoints of such steps are kept for ever; 0 for none.
    """

    def __init__(self, run: Path, keep: int = 2, keep_every: int = 0) -> None:
        self.folder = (run / "checkpoints").resolve()
        with naming_full_disk(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, keep_period=keep_every or None, enable_async_checkpointing=True
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options, item_names=("state", "frozen", "meta"))

    @property
    def latest(self) -> int | None:
        """The step of the newest finished checkpoint that is whole."""
        whole = set(map(int, self._manager.all_steps())) - set(self.damaged())
        return max(whole, default=None)

    def set_aside(self, step: int, why: object) -> None:
        """Moves a broken checkpoint to `<step>.damaged`, so that the one before is the newest and its step is free."""
        path = self.path(step)
        aside = path.with_name(f"{step}.damaged")
        processes.say(f"WARNING: {path} is damaged ({why}): moved to {aside.name}, going on from the one before")
        if processes.first():
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
        processes.meet("a damaged checkpoint is moved aside")
        self._manager.reload()

    def damaged(self) -> dict[int, str]:
        """Steps of broken checkpoints, and what is wrong with their files."""
        found = {int(step): _damage(self.path(step)) for step in self._manager.all_steps()}
        return {step: wrong for step, wrong in found.items() if wrong is not None}

    def last_good(self) -> str:
        """A few words about the newest checkpoint, once everything is written."""
        self.wait()
        latest = self.latest
        return "there is no checkpoint yet" if latest is None else f"the last good checkpoint is {self.path(latest)}"

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step lies."""
        return self.folder / str(step)

    def save(self, state: TrainState, frozen: Any, meta: dict[str, Any], step: int) -> None:
        """Starts writing; the files appear under their name when complete."""
        with naming_full_disk(self.folder):
            self.wait()
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(_present(state)),
                    frozen=ocp.args.StandardSave(frozen),
                    meta=ocp.args.JsonSave(meta),
                ),
            )

    def restore(self, step: int, state: TrainState, frozen: Any) -> tuple[TrainState, Any]:
        """Reads a checkpoint into the shapes, shardings and number types of `state` and `frozen` (None: not read).

        Numbers that were saved in another precision are converted, to the nearest; a line says so.

        Raises:
            UserError: leaves missing, unexpected or of another shape.
            DamagedCheckpoint: files that cannot be read.
        """
        wanted = {"state": _present(state)} | ({} if frozen is None else {"frozen": frozen})
        items = {name: ocp.args.StandardRestore(tree) for name, tree in wanted.items()}
        try:
            restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:
            said = f"{error.__cause__ or error}".strip()
            garbled = isinstance(error.__cause__ or error, json.JSONDecodeError)  # Orbax's own descriptions
            if garbled or "Error reading" in said:  # TensorStore's words for files that are cut short or garbled
                raise DamagedCheckpoint(said.splitlines()[0][:200]) from error
            if not isinstance(error, ValueError | KeyError):
                raise
            why = _difference(_shapes(self.path(step) / "state")["params"], state.params)
            raise UserError(
                f"the checkpoint {self.path(step)} belongs to another policy, base or configuration: "
                f"{why or said.splitlines()[0][:200]}"
            ) from error
        if changed := _converted(_shapes(self.path(step) / "state"), wanted["state"]):
            processes.say(f"{self.path(step)}: {changed}, as the configuration says")
        return dataclasses.replace(state, **restored["state"]), None if frozen is None else restored["frozen"]

    def params(self, step: int) -> tuple[Any, Any]:
        """The averaged (where no average is kept, the last) and the frozen parameters alone, as NumPy arrays."""
        return _read(self.path(step) / "state", ("ema", "params")), _read(self.path(step) / "frozen")

    def meta(self, step: int) -> dict[str, Any]:
        """The JSON part of a checkpoint."""
        return self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]

    def wait(self) -> None:
        """Waits until everything is written."""
        with naming_full_disk(self.folder):
            self._manager.wait_until_finished()
            if processes.first():
                for step in self._manager.all_steps():
                    _seal(self.path(step))

    def close(self) -> None:
        """Waits and releases the folder."""
        try:
            self.wait()
        finally:
            with naming_full_disk(self.folder):
                self._manager.close()


SIZES = "sizes.json"


def _files(path: Path) -> dict[str, int]:
    """Sizes of a checkpoint's files. Sizes and not sums: reading hundreds of gigabytes at every start costs minutes."""
    return {
        str(file.relative_to(path)): file.stat().st_size
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.name != SIZES
    }


def _seal(path: Path) -> None:
    """Writes down what a finished checkpoint consists of."""
    if not (path / SIZES).exists():
        write_json(path / SIZES, _files(path))


def _damage(path: Path) -> str | None:
    """What is wrong with a checkpoint's files; None where they are as they were written.

    One that nobody had time to seal was complete when it got its name, and passes.
    """
    try:
        written = json.loads((path / SIZES).read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        return f"{SIZES} cannot be read"
    there = _files(path)
    wrong = [name for name in written.keys() | there.keys() if written.get(name) != there.get(name)]
    if not wrong:
        return None
    name = min(wrong)
    return f"{name} has {there.get(name, 'no')} bytes, not {written.get(name, 'any')}"


def _read(path: Path, keys: tuple[str, ...] = ()) -> Any:
    """A saved tree, or the first of the named branches that is there, as NumPy arrays; nothing else is read."""
    shapes = _shapes(path)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        key = next((key for key in keys if jax.tree.leaves(shapes.get(key))), None)
        wanted = shapes if key is None else {key: shapes[key]}
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
        restored = reader.restore(
            path, args=ocp.args.PyTreeRestore(wanted, restore_args=as_numpy, partial_restore=True)
        )
    return restored if key is None else restored[key]


def _shapes(path: Path) -> dict[str, Any]:
    """A saved tree with a description of every leaf, which has its shape."""
    return dict(ocp.PyTreeCheckpointHandler().metadata(path).tree)  # a Checkpointer would warn of a file items lack


def _present(state: TrainState) -> dict[str, Any]:
    """The parts of a state that are there; a guard that is not leaves no trace."""
    parts = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return {name: part for name, part in parts.items() if name != "guard" or part is not None}


def _converted(saved: Any, wanted: Any) -> str:
    """How many arrays change their type of number, by types; empty where none does."""
    there, here = _types(saved), _types(wanted)
    counts = Counter((old, here[path]) for path, old in there.items() if old != here.get(path, old))
    return ", ".join(f"{count} arrays saved in {old} are read in {new}" for (old, new), count in sorted(counts.items()))


def _types(tree: Any) -> dict[str, str]:
    """Types of the numbers of all leaves, by path."""
    found = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda leaf: hasattr(leaf, "dtype"))
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.dtype(leaf.dtype).name for path, leaf in found}


def _difference(saved: Any, expected: Any) -> str | None:
    """The first parameter of which only one side knows, or which has two shapes."""
    there, here = ({path: tuple(leaf.shape) for path, leaf in leaves(tree).items()} for tree in (saved, expected))
    differing = sorted(path for path in there | here if there.get(path) != here.get(path))
    if not differing:
        return None
    path = differing[0]
    return f"{path} is {there.get(path, 'not there')}, expected {here.get(path, 'not to be')}"


LARGE = 2**28
"""Bytes of an array that goes part by part."""


def fingerprint(tree: Any) -> str:
    """A short hash of all leaves (paths, shapes, values), to tell what a run was initialised from."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        leaf = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)}{leaf.dtype}{leaf.shape}".encode())
        stacked = leaf.ndim > 2 and leaf.nbytes > LARGE  # layer by layer: all of it may be more than a host holds
        for part in (leaf[i] for i in range(len(leaf))) if stacked else (leaf,):
            digest.update(whole(part).tobytes())
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def naming_full_disk(folder: Path) -> Iterator[None]:
    """Turns "no space left" from whatever library into one clear line."""
    try:
        yield
    except Exception as error:
        full = getattr(error, "errno", None) == errno.ENOSPC or "No space left on device" in str(error)
        if not full:
            raise
        raise UserError(
            f"the disk is full while writing {folder}: free some space and run the same command again"
        ) from error
