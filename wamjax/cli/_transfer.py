"""What `wamjax import` and `wamjax export` share: which components, where to, and a progress bar."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from wamjax.errors import UserError
from wamjax.interop.checkpoint import Progress, components, open_component


def transfer(
    source: Path,
    destination: Path,
    only: str | None,
    doing: str,
    write: Callable[[Path, Path, Progress], None],
) -> None:
    """Writes every component of `source`, or `only` one, to `destination`; several go into folders of their names.

    All are checked before the first is written; those already there from an earlier start are left as they are.
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
    sizes = {name: open_component(found[name]).bytes for name in waiting}
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    start = time.monotonic()
    with Progress(*columns, TimeRemainingColumn()) as bars:
        for name in waiting:
            bar = bars.add_task(f"{doing} {name or source.name}", total=sizes[name])
            places[name].parent.mkdir(parents=True, exist_ok=True)
            write(found[name], places[name], lambda done, bar=bar: bars.advance(bar, done))  # type: ignore[misc]
    seconds = time.monotonic() - start
    gigabytes = sum(sizes.values()) / 1e9
    print(f"{gigabytes:.3f} GB in {seconds:.1f} s ({gigabytes / max(seconds, 1e-9):.2f} GB/s): {destination}")
