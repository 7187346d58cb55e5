"""The report of a run, from what its folder holds: ``report.json`` for programs, ``report.html`` for people.

`gather.read` collects the facts, `gather.facts` arranges them for machines and `page.render` draws them;
`write` does all three.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from wamjax.evaluation.report import gather, page


def write(folder: str | Path) -> tuple[Path, Path]:
    """Writes ``report.json`` and ``report.html`` into a run folder and returns their paths.

    The run may be unfinished: the page names what is missing and shows the rest. Both files are replaced
    atomically, so a page that is open in a browser is never half-written.

    Raises:
      UserError: the folder does not exist, holds nothing of a run, or one of its files cannot be read.
    """
    folder = Path(folder)
    run = gather.read(folder)
    facts, html = folder / "report.json", folder / "report.html"
    _replace(facts, json.dumps(gather.facts(run), indent=2, allow_nan=False) + "\n")
    _replace(html, page.render(run))
    return facts, html


def _replace(path: Path, text: str) -> None:
    """Writes `text` beside `path` and moves it into place."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
