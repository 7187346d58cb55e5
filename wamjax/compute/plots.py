"""Pictures of the page on compute: drawn from numbers alone, the same bytes every time with the same matplotlib."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from wamjax.compute import costs, systems
from wamjax.compute.chips import find_chip
from wamjax.compute.description import Work
from wamjax.compute.published import Row, post_rows, recipe_rows
from wamjax.compute.systems import Groups

INK, GRID = "#222222", "#dddddd"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#000000", "#882255", "#999933")
"""Told apart by everybody (after Okabe and Ito)."""

Data = Any
"""What a picture shows: JSON."""


def training_data() -> Data:
    """Published, derived and executed 1e21 operations of trainings: recipes, and claims without a derivation."""
    rows = [row for row in recipe_rows() if (row.model or 0) > 0.015 or row.published]
    rows += [row for row in post_rows() if row.model is None and row.published and "footnote" not in row.name]
    rows.sort(key=_size)
    return [[row.name, row.published, row.model, row.executed] for row in rows]


def _size(row: Row) -> float:
    return row.model or row.published or 0.0


def latency_data() -> Data:
    """Measured action chunks: [name, chip, least ms, measured ms]."""
    found = []
    for name in systems.names():
        system = systems.find(name)
        for acting in system.acting:
            for one in acting.measured if acting.actions else ():
                least = 1e3 * costs.total(costs.chunk(system, acting, find_chip(one.chip), one.steps))[1]
                steps = f", {one.steps} steps" if one.steps > 1 else ", 1 step" if one.steps else ""
                where = f"{one.devices} {one.chip}" if one.devices > 1 else one.chip
                found.append([f"{system.title}: {acting.name}{steps} · {where} · {one.how}", one.chip, least, one.ms])
    return sorted(found, key=lambda row: row[2] / row[3])


LINES = {"Wan 14B": "wan2.1-t2v-14b", "Wan 5B": "wan2.2-ti2v-5b", "Cosmos 2B": "cosmos-predict2-2b"}
"""Networks whose cost by length is drawn."""

POINTS = {
    "Cosmos Policy": ("cosmos-policy", "LIBERO"),
    "Pi-0-FAST": ("pi0-fast", "train"),
    "Fast-WAM": ("fast-wam", "train RoboTwin"),
    "DreamZero 14B": ("dreamzero-14b", "train"),
    "LingBot-VA": ("lingbot-va", "train RoboTwin"),
    "Wan 14B, 192p": ("wan-14b", "192p, 81 frames"),
    "Wan 14B, 480p": ("wan-14b", "480p, 81 frames"),
    "Wan 14B, 720p": ("wan-14b", "720p, 81 frames"),
    "mimic-video": ("mimic-video", "video"),
}
"""Passes that are drawn as points."""


def length_data() -> Data:
    """Training operations over 6 N D, by tokens of a sample: lines of networks with full attention, and points."""
    lines, shared = {}, systems.shared_networks()
    for title, name in LINES.items():
        family, line = shared[name].family, []
        for tokens in (int(10 ** (2.9 + 0.05 * i)) for i in range(47)):
            groups = Groups({"video": tokens})
            cost = family.cost(Work(groups.plan, tokens, {"text": 512, "times": 1}))
            line.append([tokens, cost.flops.total / (2 * family.parameters * tokens)])
        lines[title] = line
    points = {}
    for title, (name, run) in POINTS.items():
        system = systems.find(name)
        tokens = system.runs[run].work.queries
        parameters = system.network(system.runs[run].network).parameters
        points[title] = [tokens, system.cost(run).flops.total / (2 * parameters * tokens)]
    return {"lines": lines, "points": points}


def law_data() -> Data:
    """DreamZero on two GB200: the published points, the law through them, and the bound, by steps."""
    system, chip = systems.find("dreamzero-14b"), find_chip("gb200")
    acting = next(one for one in system.acting if one.name.startswith("Flash"))
    law = system.law
    if law is None:
        raise ValueError("DreamZero's file has lost its measurements")
    bound = [[n, 1e3 * costs.total(costs.chunk(system, acting, chip, n))[1]] for n in range(1, 17)]
    return {"points": law.points, "law": [[n, law.through.at(n)] for n in range(1, 17)], "bound": bound}


def draw_training(axes: Any, data: Data) -> None:
    """A row per training, a mark per count."""
    marks = {"published": ("o", "white", COLOURS[1]), "derived": ("o", COLOURS[0], COLOURS[0])}
    marks |= {"executed": (">", COLOURS[2], COLOURS[2])}
    for y, (_, *values) in enumerate(data):
        there = [value for value in values if value]
        axes.plot([min(there), max(there)], [y, y], color=GRID, lw=3, zorder=1, solid_capstyle="round")
    for column, (kind, (marker, face, edge)) in enumerate(marks.items(), start=1):
        dots = [(row[column], y) for y, row in enumerate(data) if row[column]]
        style = {"marker": marker, "s": 44, "facecolor": face, "edgecolor": edge, "linewidth": 1.6}
        axes.scatter(*zip(*dots, strict=True), label=kind, zorder=3 if column > 1 else 4, **style)
    axes.set_yticks(range(len(data)), [row[0] for row in data])
    axes.set(xscale="log", xlabel="operations of the whole training, in 1e21", ylim=(-0.7, len(data) - 0.3))
    _ticks(axes, (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100))
    axes.minorticks_off()
    axes.legend(loc="lower right", frameon=True)
    axes.grid(axis="x", color=GRID, lw=0.6)


def _ticks(axes: Any, values: tuple[float, ...]) -> None:
    """Marks of a logarithmic axis, as people write numbers."""
    axes.set_xticks(values, [f"{value:,}" for value in values])


def draw_latency(axes: Any, data: Data) -> None:
    """A row per measurement: from the bound to what was measured."""
    chips = sorted({row[1] for row in data})
    for y, (_, chip, least, ms) in enumerate(data):
        colour = COLOURS[chips.index(chip)]
        axes.plot([least, ms], [y, y], color=colour, lw=1.4, alpha=0.5, zorder=1)
        axes.scatter([least], [y], marker="|", s=90, color=colour, linewidth=2, zorder=2)
        axes.scatter([ms], [y], marker="o", s=30, color=colour, zorder=3)
        axes.text(ms * 1.15, y, f"{least / ms:.0%}", va="center", fontsize=8, color=INK)
    for chip in chips:
        axes.scatter([], [], color=COLOURS[chips.index(chip)], s=30, label=chip)
    axes.scatter([], [], marker="|", s=90, color=INK, linewidth=2, label="least possible")
    axes.set_yticks(range(len(data)), [row[0] for row in data])
    axes.set(xscale="log", xlabel="milliseconds of an action chunk; beside them the bound's share")
    axes.set(ylim=(-0.7, len(data) - 0.3), xlim=(2, 5e4))
    _ticks(axes, (3, 10, 30, 100, 300, 1000, 3000, 10_000, 30_000))
    axes.minorticks_off()
    axes.legend(loc="upper right", frameon=True, ncols=2, fontsize=9)
    axes.grid(axis="x", color=GRID, lw=0.6)


PLACES = {
    **dict.fromkeys(("DreamZero 14B", "LingBot-VA", "Fast-WAM"), (8, -4, "left")),
    **dict.fromkeys(("Wan 14B, 480p", "Wan 14B, 720p"), (9, -9, "left")),
    "Cosmos Policy": (0, 8, "center"),
    "Pi-0-FAST": (0, -15, "center"),
    "Wan 14B, 192p": (0, -25, "center"),
    "mimic-video": (-9, 3, "right"),
}
"""Where labels stand beside their points, in points, and how they are aligned."""


def draw_length(axes: Any, data: Data) -> None:
    """Lines that leave 6 N D."""
    for (title, line), colour in zip(data["lines"].items(), COLOURS, strict=False):
        tokens, times = zip(*line, strict=True)
        axes.plot(tokens, times, color=colour, lw=2, label=f"{title}, full attention")
        at = next(x for x, y in line if y > 1.1 and x > 2000)
        axes.scatter([at], [1.1], marker="D", s=36, color=colour, zorder=4)
    axes.axhline(1, color=INK, lw=1.2, ls="--", label="6 N D")
    axes.scatter([], [], marker="D", s=36, color=INK, label="10 % above it")
    for title, (tokens, times) in data["points"].items():
        axes.scatter([tokens], [times], s=38, color=INK, zorder=5)
        *where, side = PLACES[title]
        axes.annotate(title, (tokens, times), where, textcoords="offset points", ha=side, fontsize=9)
    axes.set(xscale="log", yscale="log", xlabel="tokens of a sample", ylabel="training operations over 6 N D")
    axes.set(xlim=(300, 1.9e5), ylim=(0.6, 8))
    axes.set_yticks([0.7, 1, 1.5, 2, 3, 5, 8], ["0.7", "1", "1.5", "2", "3", "5", "8"])
    _ticks(axes, (300, 1000, 3000, 10_000, 30_000, 100_000))
    axes.minorticks_off()
    axes.legend(loc="upper left", frameon=True)
    axes.grid(color=GRID, lw=0.6)


def draw_law(axes: Any, data: Data) -> None:
    """Milliseconds by steps."""
    for kind, label, colour in (
        ("law", "(steps + 1) passes and a rest", COLOURS[0]),
        ("bound", "roofline", COLOURS[1]),
    ):
        axes.plot(*zip(*data[kind], strict=True), color=colour, lw=2, label=label)
    axes.scatter(*zip(*data["points"], strict=True), s=50, color=INK, zorder=3, label="published: 150 and 350 ms")
    axes.set(xlabel="denoising steps", ylabel="milliseconds of a chunk", xlim=(0, 16.5), ylim=(0, 1250))
    axes.legend(loc="upper left", frameon=True)
    axes.grid(color=GRID, lw=0.6)


PICTURES: dict[str, tuple[Callable[[], Data], Callable[[Any, Data], None], tuple[float, float]]] = {
    "compute_training": (training_data, draw_training, (10, 9)),
    "compute_length": (length_data, draw_length, (10, 5.4)),
    "compute_latency": (latency_data, draw_latency, (12, 10.5)),
    "compute_law": (law_data, draw_law, (7.5, 3.6)),
}
"""By file name: what is shown, how, and the size in inches."""


def digest(name: str) -> str:
    """Of what a picture shows, and of how large it is; it stands in the file."""
    data, _, size = PICTURES[name]
    shown = json.dumps([_rounded(data()), size], sort_keys=True)
    return hashlib.sha256(shown.encode()).hexdigest()[:16]


def _rounded(data: Data) -> Data:
    """To six digits, so that the last bits of a machine's arithmetic do not matter."""
    if isinstance(data, dict):
        return {key: _rounded(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_rounded(value) for value in data]
    return float(f"{data:.6g}") if isinstance(data, float) else data


def write_pictures(folder: Path) -> list[Path]:
    """Draws all pictures into a folder."""
    import matplotlib
    from matplotlib.figure import Figure

    paths = []
    settings: Any = {"svg.hashsalt": "wamjax", "svg.fonttype": "path", "font.size": 10, "axes.edgecolor": INK}
    with matplotlib.rc_context(settings | {"axes.spines.top": False, "axes.spines.right": False}):
        for name, (data, draw, size) in PICTURES.items():
            figure = Figure(figsize=size, layout="constrained")
            draw(figure.subplots(), data())
            paths.append(folder / f"{name}.svg")
            note = {"Date": None, "Description": f"drawn from {digest(name)}"}
            figure.savefig(paths[-1], metadata=note)
    return paths
