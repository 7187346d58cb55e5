"""A dataset as one self-contained HTML page: facts, pictures, curves, distributions, and what is suspicious.

`gather.look` reads the dataset, `write` draws what was found.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jinja2

from wamjax.data.files import replacing
from wamjax.data.page import charts, gather
from wamjax.data.page.gather import Look
from wamjax.data.quality import Thresholds
from wamjax.data.readers import Source


def write(
    source: Source,
    path: str | Path,
    *,
    thresholds: Thresholds,
    examined: int = gather.EXAMINED,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> Look:
    """Writes the page of a dataset, and returns what it shows.

    Args:
        source: the dataset.
        path: the page; it appears when it is complete.
        thresholds: where a recording becomes suspicious.
        examined: the most episodes that are read; of larger datasets they are spread evenly.
        tell: is called with how many episodes were read, and of how many.

    Raises:
        UserError: no episode can be read.
    """
    look = gather.look(source, thresholds, examined, tell)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_text(render(look), encoding="utf-8")
    return look


def render(look: Look) -> str:
    """The page. All text of the dataset is escaped, and the page loads nothing."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": charts.number, "histogram": charts.histogram, "curves": charts.curves}
    return environment.get_template("template.html").render(look=look)
