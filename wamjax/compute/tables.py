"""Tables of counts, as lines that read well in a terminal and are Markdown."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence

from wamjax.compute import costs, systems
from wamjax.compute.chips import CHIPS, Chip, find_chip
from wamjax.compute.flops import kernel_pairs
from wamjax.compute.published import Row, publication
from wamjax.compute.systems import Acting, System


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Aligned columns, numbers to the right."""
    every = [list(head), *(list(row) for row in rows)]
    columns = list(zip(*every, strict=True))
    widths = [max(3, *map(len, column)) for column in columns]
    right = [all(not cell or NUMBER.fullmatch(cell) for cell in column[1:]) for column in columns]
    lines = []
    for row in every:
        cells = (x.rjust(w) if r else x.ljust(w) for x, w, r in zip(row, widths, right, strict=True))
        lines.append(f"| {' | '.join(cells)} |")
    rule = "|".join("-" * (width + 1) + (":" if r else "-") for width, r in zip(widths, right, strict=True))
    return [lines[0], f"|{rule}|", *lines[1:]]


NUMBER = re.compile(r"[-\d.,e]+%?")
"""What a column of numbers is made of."""


def number(value: float | None, digits: int = 3) -> str:
    """So many digits that count; empty for None."""
    if value is None:
        return ""
    text = f"{value:.{digits}g}"
    return f"{float(text):,.0f}" if abs(value) >= 10 ** (digits - 1) else text


def share(value: float | None) -> str:
    """A percentage; empty for None."""
    return "" if value is None else f"{value:.1%}"


def part(a: float, b: float) -> str:
    """One as a share of the other; empty where there is no other."""
    return share(a / b) if b else ""


def ratio(a: float | None, b: float | None) -> str:
    """One over the other; empty where there is no such thing."""
    return "" if a is None or not b else f"{a / b:.2f}"


def published_table(rows: Sequence[Row], reasons: bool = True) -> list[str]:
    """Published, formula, derived and executed 1e21 operations, and how they compare."""
    head = ["training", "published Z", "formula Z", "derived Z", "executed Z", "derived/publ.", "executed/publ."]
    body = [
        [
            *(row.name, number(row.published), number(row.formula, 4), number(row.model, 4), number(row.executed, 4)),
            *(ratio(row.model, row.published), ratio(row.executed, row.published)),
            *([row.reason] if reasons else []),
        ]
        for row in rows
    ]
    return table([*head, *(["why"] if reasons else [])], body)


def recipe_table(rows: Sequence[Row]) -> list[str]:
    """Every recipe: derived and executed operations, utilisation where hours are known."""
    head = ["recipe", "derived Z", "executed Z", "H100-h at 30 %", "MFU", "HFU", "from"]
    h100 = find_chip("h100")

    def hours(row: Row) -> str:
        return number(costs.bill((row.model or 0) * costs.ZETTA, h100, 0.3).chip_hours)

    body = [
        [row.name, number(row.model), number(row.executed), hours(row), share(row.mfu), share(row.hfu), row.source]
        for row in rows
    ]
    return table(head, body)


def latency_table() -> list[str]:
    """Claims about action chunks beside their operations and least times."""
    head = ["chunk", "on", "published ms", "TF", "least ms", "least/publ.", "why"]
    rows = []
    for one in publication().latencies:
        flops, least = one.least
        cells = [number(one.printed), number(flops / 1e12), number(least), share(least / one.printed)]
        rows.append([one.name, one.chip, *cells, one.reason])
    return table(head, rows)


def throughput_table() -> list[str]:
    """Reported training speeds, and what they are by one count."""
    head = ["program", "chips", "reported TF/s", "counted TF/s a chip", "MFU", "why"]
    rows = []
    for one in publication().throughputs:
        counted = number(one.rate / 1e12, 4), share(one.mfu)
        rows.append([one.name, f"{one.chips} {one.chip}", number(one.reported, 4), *counted, one.reason])
    return table(head, rows)


def networks_table(system: System) -> list[str]:
    """A system's networks with their exact parameters."""
    names = dict.fromkeys(run.network for run in system.runs.values())
    shared = systems.shared_networks()
    rows = [
        [name, f"{system.network(name).parameters:,}", shared[name].source if name in shared else system.source]
        for name in names
    ]
    return table(["network", "parameters", "from"], rows)


def runs_table(system: System) -> list[str]:
    """A system's passes: tokens, visible pairs and those that the TPU's kernel runs, operations, bytes."""
    head = ["pass", "tokens", "pairs", "kernel", "products TF", "attention TF", "total TF", "attention", "read GB"]
    rows = []
    for name, run in system.runs.items():
        work, cost = run.work, system.cost(name)
        visible, flops = work.plan.pairs(work.queries), cost.flops
        padded = kernel_pairs(work.plan, work.queries) / visible if visible else 0.0
        rows.append(
            [
                *(name, f"{work.queries:,}" if work.queries else "x".join(map(str, work.clip))),
                *(f"{visible:,}" if visible else "", f"{padded:.3f}" if visible else ""),
                *(number(flops.matmul / 1e12, 4), number(flops.attention / 1e12, 4), number(flops.total / 1e12, 4)),
                *(part(flops.attention, flops.total), number(costs.BYTES * (cost.weights + cost.cache) / 1e9)),
            ]
        )
    return table(head, rows)


@dataclasses.dataclass(frozen=True)
class Prices:
    """What a run is priced with.

    Attributes:
        chip: on what. chips: of them. mfu: share of the peak. price: of a chip-hour. watts: of a chip.
    """

    chip: Chip
    chips: int = 1
    mfu: float = 0.4
    price: float | None = None
    watts: float | None = None


def training_table(system: System, prices: Prices) -> list[str]:
    """A system's recipes, and what they cost on a chip."""
    head = "recipe,samples,model TF,executed TF,derived Z,executed Z,published Z,chip-hours,days,fewest chips"
    head += ",least s/step,bound by"
    head += ",money" * bool(prices.price) + ",kWh" * bool(prices.watts)
    rows = []
    for one in system.recipes:
        found = costs.training(system, one)
        model, executed = found.zetta
        bill = costs.bill(model * costs.ZETTA, prices.chip, prices.mfu, prices.price, prices.watts)
        bounds = costs.step_bounds(found, one.batch, prices.chip, prices.chips)
        least, bound = max((seconds, name) for name, seconds in bounds.items())
        fewest = str(costs.fewest_chips(found.parameters, prices.chip)) if found.parameters else ""
        rows.append(
            [
                *(one.name, number(found.samples), number(found.model / 1e12, 4), number(found.executed / 1e12, 4)),
                *(number(model), number(executed), number(one.published), number(bill.chip_hours)),
                *(number(bill.chip_hours / prices.chips / 24), fewest),
                *((number(least), bound) if one.batch else ("", "")),
                *([number(bill.money)] if prices.price else []),
                *([number(bill.energy)] if prices.watts else []),
            ]
        )
    return table(head.split(","), rows)


def chunk_table(stages: Sequence[costs.Timed]) -> list[str]:
    """Stages of an action chunk on one device: milliseconds at the least, by resource."""
    head = ["stage", "times", "TF", "GB", "compute ms", "memory ms", "links ms", "least ms"]
    rows = [
        [
            *(one.name, number(one.times), number(one.flops / 1e12, 4), number(one.bytes / 1e9)),
            *(number(1e3 * one.times * one.bounds[name], 4) for name in ("compute", "hbm", "ici")),
            number(1e3 * one.seconds, 4),
        ]
        for one in stages
    ]
    flops, seconds = costs.total(stages)
    rows.append(["in all", "", number(flops / 1e12, 4), "", "", "", "", number(1e3 * seconds, 4)])
    return table(head, rows)


def measured_table(system: System, acting: Acting, chip: str) -> list[str]:
    """Published times of an action chunk on a chip beside the least possible ones; nothing where there are none."""
    head = ["measured on", "how", "steps", "ms", "least ms", "efficiency", "from"]
    rows: list[list[str]] = []
    for one in (one for one in acting.measured if one.chip == chip):
        least = 1e3 * costs.total(costs.chunk(system, acting, find_chip(one.chip), one.steps))[1]
        steps = str(one.steps or acting.steps)
        cells = [number(one.ms, 4), number(least), share(least / one.ms), one.source]
        rows.append([f"{one.devices} {one.chip}", one.how, steps, *cells])
    return table(head, rows) if rows else []


def ways_table(chips: Sequence[str]) -> list[str]:
    """All ways of acting of all systems: least milliseconds on every chip."""
    rows = []
    for name in systems.names():
        system = systems.find(name)
        for acting in system.acting:
            each = [costs.total(costs.chunk(system, acting, find_chip(chip))) for chip in chips]
            least = [number(1e3 * seconds) for _, seconds in each]
            rows.append([f"{system.title}: {acting.name}", number(each[0][0] / 1e12, 4), *least])
    return table(["chunk", "TF", *chips], rows)


def efficiency_table() -> list[str]:
    """All published times of action chunks."""
    head = ["chunk", "on", "how", "ms", "least ms", "efficiency", "from"]
    rows = []
    for name in systems.names():
        system = systems.find(name)
        for acting in system.acting:
            for one in acting.measured:
                least = 1e3 * costs.total(costs.chunk(system, acting, find_chip(one.chip), one.steps))[1]
                title = f"{system.title}: {acting.name}" + (f" ({one.steps})" if one.steps else "")
                cells = [number(one.ms, 4), number(least), share(least / one.ms), one.source]
                rows.append([title, f"{one.devices} {one.chip}", one.how, *cells])
    return table(head, rows)


def systems_table() -> list[str]:
    """All systems in a line each."""
    rows = []
    for name in systems.names():
        system = systems.find(name)
        kinds = f"{len(system.runs)} passes, {len(system.recipes)} recipes, {len(system.acting)} ways to act"
        parameters = sum(system.network(one).parameters for one in system.trained)
        rows.append([name, system.title, system.paradigm, f"{parameters:,}", kinds])
    return table(["name", "system", "kind", "parameters", "described"], rows)


def chips_table() -> list[str]:
    """All chips."""
    rows = []
    for name, c in CHIPS.items():
        rates = number(c.flops / 1e12, 5), number(c.memory / 1e9), number(c.bandwidth / 1e9, 4)
        rows.append([name, *rates, number(c.flops / c.bandwidth), number(c.links / 1e9 or None), c.source])
    return table(["chip", "bf16 TF/s", "GB", "GB/s", "FLOP/byte", "links GB/s", "from"], rows)


def law_lines(system: System) -> list[str]:
    """The law of passes through two published times, and what it says of one pass."""
    law = system.law
    if law is None:
        return []
    through, chip = law.through, find_chip(law.chip)
    flops = system.cost(law.run).flops.total
    rate = flops / (through.call * 1e-3)
    points = " and ".join(f"{ms:g} ms at {steps} step{'s' * (steps > 1)}" for steps, ms in law.points)
    return [
        f"{points} ({law.source}): (steps + {through.beside}) x {through.call:.1f} ms + {through.rest:.1f} ms.",
        f"A pass is {flops / 1e12:.1f} TF: {rate / 1e12:.0f} TF/s, {rate / chip.flops:.0%} of a {law.chip}'s peak.",
        f"By the law 16 steps would take {through.at(16):,.0f} ms.",
    ]
