"""The page on compute: prose with numbers put in, tables, pictures. Written by one command, checked by a test.

wamjax flops --write-page docs/compute.md
"""

from __future__ import annotations

import string
from collections.abc import Callable
from pathlib import Path

from wamjax.compute import costs, plots, published, systems, tables
from wamjax.compute.chips import find_chip
from wamjax.compute.files import DATA
from wamjax.compute.published import recipe
from wamjax.compute.tables import number

CHIPS = ("v5e", "v5p", "v6e", "v7", "a100", "h100", "h200", "b200", "gb200", "l40s", "rtx4090", "rtx5090", "thor")
"""Columns of the page's table of latencies."""


def write(path: str | Path) -> list[Path]:
    """Writes the page, and its pictures beside it; returns all paths."""
    page = Path(path)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(text())
    return [page, *plots.write_pictures(page.parent)]


def text() -> str:
    """The page."""
    template = string.Template((DATA / "page.md").read_text())
    return template.substitute({name: make() for name, make in PARTS.items()})


def _lines(make: Callable[[], list[str]]) -> Callable[[], str]:
    return lambda: "\n".join(make())


def factors() -> str:
    """Why DreamZero's training costs what it does, as factors of the published number."""
    system, one = recipe("dreamzero-14b: action tuning")
    claim = next(c for c in published.publication().claims if c.name == "DreamZero, action tuning")
    found = costs.training(system, one)
    formula = published.publication().formula(claim)
    weights = system.network("dreamzero-14b").parameters / claim.parameters
    tokens = system.runs["train"].work.queries * found.samples / claim.tokens
    rest = found.zetta[0] / formula / weights / tokens
    model, executed = (zetta / formula for zetta in found.zetta)
    return (
        f"{weights:.3f} (parameters) x {tokens:.3f} (tokens) x {rest:.3f} (6 N T leaves out attention, and has weights "
        f"that only the prompt meets) = {model:.2f}; blocks computed again and frozen networks make it {executed:.2f}"
    )


def break_even() -> str:
    """Tokens from which a Wan-14B costs a tenth more than 6 N D."""
    line = plots.length_data()["lines"]["Wan 14B"]
    return number(next(tokens for tokens, times in line if tokens > 2000 and times > 1.1), 2)


def chunks() -> list[str]:
    """Operations of an action chunk beside Pi-0.5's."""
    rows = []
    base = costs.total(_chunk("pi0.5", "3 slots"))[0]
    for name, way in (
        ("dreamzero-14b", "guidance in series"),
        ("lingbot-va", "RoboTwin"),
        ("mimic-video", "one video pass"),
        ("cosmos-policy", "LIBERO"),
        ("pi0.5", "3 slots"),
        ("fast-wam", "10 steps"),
        ("groot-n1.5", "1 view"),
    ):
        flops, seconds = costs.total(_chunk(name, way))
        title = f"{systems.find(name).title}: {way}"
        rows.append([title, number(flops / 1e12, 4), number(flops / base), number(1e3 * seconds, 4)])
    return tables.table(["chunk", "TF", "times Pi-0.5", "least ms on an H100"], rows)


def _chunk(name: str, way: str) -> list[costs.Timed]:
    system = systems.find(name)
    return costs.chunk(system, next(one for one in system.acting if one.name == way), find_chip("h100"))


def lengths() -> list[str]:
    """Lengths of training sequences beside Pi-0-FAST's."""
    base = systems.find("pi0-fast").runs["train"].work.queries
    rows = []
    for name, run in (
        ("wan-14b", "720p, 81 frames"),
        ("mimic-video", "video"),
        ("dreamzero-14b", "train"),
        ("lingbot-va", "train RoboTwin"),
        ("cosmos-policy", "LIBERO"),
        ("pi0-fast", "train"),
        ("fast-wam", "train RoboTwin"),
    ):
        system = systems.find(name)
        work, cost = system.runs[run].work, system.cost(run).flops
        visible = work.plan.pairs(work.queries) / work.queries**2
        rows.append(
            [
                *(f"{system.title}: {run}", f"{work.queries:,}", f"{work.queries / base:.1f}", f"{visible:.1%}"),
                *(number(3 * cost.total / 1e12, 4), f"{cost.attention / cost.total:.1%}"),
            ]
        )
    head = ["sample", "tokens", "times Pi-0-FAST's", "pairs that are visible", "training TF", "attention"]
    return tables.table(head, rows)


def parameters() -> list[str]:
    """All described networks."""
    rows = [
        [name, f"{one.family.parameters:,}", f"{one.stated:,}" if one.stated else "", one.source]
        for name, one in systems.shared_networks().items()
    ]
    return tables.table(["network", "parameters", "as counted elsewhere", "from"], rows)


def passes() -> list[str]:
    """Every pass of every system."""
    rows = []
    for name in systems.names():
        system = systems.find(name)
        for run in system.runs:
            cost = system.cost(run)
            flops = cost.flops
            row = [f"{system.title}: {run}", number(flops.total / 1e12, 4), tables.part(flops.attention, flops.total)]
            rows.append([*row, number(costs.BYTES * (cost.weights + cost.cache) / 1e9)])
    return tables.table(["pass", "TF", "attention", "read GB"], rows)


def _picture(name: str) -> Callable[[], str]:
    return lambda: f"![{name.replace('_', ', ')}]({name}.svg)"


def _law() -> str:
    return " ".join(tables.law_lines(systems.find("dreamzero-14b")))


PARTS: dict[str, Callable[[], str]] = {
    "training_picture": _picture("compute_training"),
    "length_picture": _picture("compute_length"),
    "latency_picture": _picture("compute_latency"),
    "law_picture": _picture("compute_law"),
    "post": _lines(lambda: tables.published_table(published.post_rows())),
    "recipes": _lines(lambda: tables.recipe_table(published.recipe_rows())),
    "latencies": _lines(tables.latency_table),
    "throughputs": _lines(tables.throughput_table),
    "factors": factors,
    "break_even": break_even,
    "chunks": _lines(chunks),
    "lengths": _lines(lengths),
    "ways": _lines(lambda: tables.ways_table(CHIPS)),
    "efficiencies": _lines(tables.efficiency_table),
    "law": _law,
    "parameters": _lines(parameters),
    "passes": _lines(passes),
    "chips": _lines(tables.chips_table),
    "hours": lambda: f"{published.hours_per_zetta():.1f}",
    "post_source": lambda: published.publication().source,
}
"""What stands in the template, `data/page.md`."""
