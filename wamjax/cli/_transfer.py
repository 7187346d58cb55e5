"""What `wamjax import` and `wamjax export` share: which components, where to, and a progress bar."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

from wamjax.errors import UserError
from wamjax.interop.checkpoint import Component, Progress, components, open_component

SETTINGS = "experiment_cfg"
ADAPTED = ("transformer", "")
"""Components that low-rank adapters change."""


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
    is the checkpoint whose transformer the source has adapters of.
    """
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    found = components(source)
    if only is not None and set(found) != {""}:
        if only not in found:
            raise UserError(f"{source} holds no component '{only}': it has {', '.join(sorted(found))}")
        found = {"": found[only]}
    several = len(found) > 1
    places = {name: destination / name if several else destination for name in found}
    waiting = [name for name in found if not (several and places[name].exists())]
    bases = {} if base is None else components(base)
    opened = {name: open_component(found[name], bases.get(name) if name in ADAPTED else None) for name in waiting}
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


def copy_settings(source: Path, destination: Path) -> None:
    """Copies what a policy's checkpoint has beside its weights (DreamZero: configuration and statistics)."""
    if (source / SETTINGS).is_dir():
        shutil.copytree(source / SETTINGS, destination / SETTINGS, dirs_exist_ok=True)
