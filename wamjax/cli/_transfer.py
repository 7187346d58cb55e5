"""What `wamjax import` and `wamjax export` share: which components, where to, and a progress bar."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from wamjax.errors import UserError
from wamjax.interop.checkpoint import Component, Place, Progress, absent, components, open_component

SETTINGS = "experiment_cfg"
ADAPTED = ("transformer", "")
"""Components that low-rank adapters change."""
DESCRIBED, POLICY = "config.json", "action_head_cfg"
"""The file, and a key of it, that a policy's checkpoint is described by."""
UNMERGED = (
    (r'(\btrain_architecture"?\s*:\s*)"?lora\b"?', r'\1"full"'),
    (r'(\bsave_lora_only"?\s*:\s*)true\b', r"\1false"),
)
"""What upstream's settings say of checkpoints with adapters, and what of those where these have been added."""


def transfer(
    source: Path,
    destination: Path,
    only: str | None,
    doing: str,
    write: Callable[[Component, Path, Progress], None],
    base: Path | None = None,
) -> None:
    """Writes every component of `source`, or `only` one, to `destination`; several go into folders of their names.

    All are checked before the first is written; those already there from an earlier start are left as they are. `base`
    is the checkpoint whose transformer the source has adapters of; what else the source lacks comes from there too.
    """
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    bases = {} if base is None else components(base)
    found = _chosen(source, only, bases)
    several = len(found) > 1
    places = {name: destination / name if several else destination for name in found}
    waiting = [name for name in found if not (several and places[name].exists())]
    below = bases.get(ADAPTED[0], bases.get(""))
    changed = components(source).get(only or ADAPTED[0], found.get(""))
    opened = {name: open_component(found[name], below if found[name] == changed else None) for name in waiting}
    if only is None and (missing := absent(found)):
        raise UserError(f"{source} lacks {', '.join(missing)}: download all of it, or name one with --component")
    sizes = {name: component.bytes for name, component in opened.items()}
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    start = time.monotonic()
    with Progress(*columns, TimeRemainingColumn()) as bars:
        for name in waiting:
            bar = bars.add_task(f"{doing} {name or source.name}", total=sizes[name])
            places[name].parent.mkdir(parents=True, exist_ok=True)
            write(opened[name], places[name], lambda done, bar=bar: bars.advance(bar, done))  # type: ignore[misc]
    seconds = time.monotonic() - start
    gigabytes = sum(sizes.values()) / 1e9
    print(f"{gigabytes:.3f} GB in {seconds:.1f} s ({gigabytes / max(seconds, 1e-9):.2f} GB/s): {destination}")


def _chosen(source: Path, only: str | None, bases: Mapping[str, Place]) -> dict[str, Place]:
    """What is to be written, by name; "" for one component alone."""
    found = components(source)
    if only is not None and set(found) != {""}:
        if only not in found:
            raise UserError(f"{source} holds no component '{only}': it has {', '.join(sorted(found))}")
        return {"": found[only]}
    if set(found) == {""}:
        return found
    return {name: place for name, place in bases.items() if name} | found


def copy_settings(source: Path, destination: Path) -> None:
    """Copies what a policy's checkpoint has beside its weights (DreamZero: configuration and statistics).

    Where they say that the weights have adapters they say no longer so: what we write never has.
    """
    if (source / SETTINGS).is_dir():
        shutil.copytree(source / SETTINGS, destination / SETTINGS, dirs_exist_ok=True)
    if _describes_policy(source / DESCRIBED):
        shutil.copyfile(source / DESCRIBED, destination / DESCRIBED)
    for file in (destination / DESCRIBED, destination / SETTINGS / "conf.yaml"):
        if file.is_file():
            text = file.read_text()
            for lora, full in UNMERGED:
                text = re.sub(lora, full, text)
            file.write_text(text)


def _describes_policy(file: Path) -> bool:
    try:
        return POLICY in json.loads(file.read_text())
    except (OSError, ValueError, TypeError):
        return False
