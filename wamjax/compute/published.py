"""The field's published numbers, evaluated again, beside what first principles give.

The post that most numbers come from takes 6 N T: parameters times tokens. Its rows are recomputed here as they stand;
what it leaves out is in the derived numbers.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal

from wamjax.compute import systems
from wamjax.compute.chips import find_chip
from wamjax.compute.costs import ZETTA, chunk, total, training, utilisation
from wamjax.compute.files import DATA, read, unknown
from wamjax.errors import UserError

POST_SHARE = 0.3
"""Of an H100's dense peak, which the post turns GPU-hours into operations with."""


@dataclasses.dataclass(frozen=True)
class Claim:
    """A row of the post.

    Attributes:
        name: of it. kind: its formula. printed: 1e21 operations as it says.
        parameters, tokens, pixels, samples, hours, of: what the formula reads.
        recipes: "system: recipe" of what it speaks of, together. reason: why the derived number differs.
        source: what goes into the formula, in words.
    """

    name: str
    kind: Literal["6nt", "hours", "pixels", "sum"]
    printed: float
    source: str
    parameters: float = 0.0
    tokens: float = 0.0
    pixels: float = 0.0
    samples: float = 0.0
    hours: float = 0.0
    of: tuple[str, ...] = ()
    recipes: tuple[str, ...] = ()
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class Throughput:
    """A training speed that somebody reported.

    Attributes:
        name: of it. system, run: what was trained. chip, chips: on what.
        samples, seconds: of a step. reported: TF/s as they say. reason: why ours differ. source: who says so.
    """

    name: str
    system: str
    run: str
    chip: str
    chips: int
    samples: float
    seconds: float
    reported: float
    source: str
    reason: str = ""

    @property
    def rate(self) -> float:
        """Operations per second and chip of forward and backward, counted here."""
        forward = systems.find(self.system).cost(self.run).flops.total
        return 3 * forward * self.samples / self.seconds / self.chips

    @property
    def mfu(self) -> float:
        """Their share of the peak."""
        return self.rate / find_chip(self.chip).flops


@dataclasses.dataclass(frozen=True)
class Latency:
    """A claim about how long an action chunk takes.

    Attributes:
        name: of it. way: "system: way of acting". chip: on what. printed: milliseconds as it says.
        reason: of the difference to the bound. source: who says so.
    """

    name: str
    way: str
    chip: str
    printed: float
    source: str
    reason: str = ""

    @property
    def least(self) -> tuple[float, float]:
        """Operations of the chunk, and milliseconds at the least."""
        of, _, called = self.way.partition(": ")
        system = systems.find(of)
        by_name = {one.name: one for one in system.acting}
        flops, seconds = total(chunk(system, by_name[called], find_chip(self.chip)))
        return flops, 1e3 * seconds


@dataclasses.dataclass(frozen=True)
class Publication:
    """The file of claims.

    Attributes:
        claims, latencies: of the post. throughputs: of training programs. source: the post.
    """

    claims: tuple[Claim, ...]
    latencies: tuple[Latency, ...]
    throughputs: tuple[Throughput, ...]
    source: str
    version: int = 1

    def formula(self, claim: Claim) -> float:
        """1e21 operations by the claim's own formula, not rounded."""
        by_name = {one.name: one for one in self.claims}
        return {
            "6nt": lambda: 6 * claim.parameters * claim.tokens / ZETTA,
            "hours": lambda: claim.hours / hours_per_zetta(),
            "pixels": lambda: 3 * 2 * claim.parameters * claim.pixels * claim.samples / ZETTA,
            "sum": lambda: sum(self.formula(by_name[name]) for name in claim.of),
        }[claim.kind]()


def hours_per_zetta() -> float:
    """H100-hours of 1e21 operations by the post's rule."""
    return ZETTA / (POST_SHARE * find_chip("h100").flops * 3600)


@functools.cache
def publication() -> Publication:
    """The claims that come with wamjax."""
    return read(Publication, DATA / "published.json")


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the table of reconstruction; 1e21 operations, None where there is no such number.

    Attributes:
        name: what. published: as printed. formula: the printed number's formula, evaluated.
        model, executed: derived here: of the mathematics, and all that runs.
        mfu, hfu: shares of the peak, where chip-hours are known. reason: of the difference. source: of the recipe.
    """

    name: str
    published: float | None
    formula: float | None
    model: float | None
    executed: float | None
    mfu: float | None = None
    hfu: float | None = None
    reason: str = ""
    source: str = ""


def recipe(name: str) -> tuple[systems.System, systems.Recipe]:
    """A recipe by "system: recipe"; a UserError with the nearest names for an unknown one."""
    of, _, called = name.partition(": ")
    system = systems.find(of)
    by_name = {one.name: one for one in system.recipes}
    if called not in by_name:
        raise UserError(unknown("recipe", called, by_name))
    return system, by_name[called]


def post_rows() -> list[Row]:
    """The post's rows, each beside what is derived of the same training."""
    rows = []
    for claim in publication().claims:
        parts = [training(*recipe(name)).zetta for name in claim.recipes]
        model, run = (sum(part) for part in zip(*parts, strict=True)) if parts else (None, None)
        known = [recipe(name)[1].reason for name in claim.recipes]
        reason = claim.reason or "; ".join(filter(None, known)) or ("" if parts else "dimensions not published")
        formula = publication().formula(claim)
        rows.append(Row(claim.name, claim.printed, formula, model, run, None, None, reason, claim.source))
    return rows


def recipe_rows() -> list[Row]:
    """Every recipe of every system."""
    rows = []
    for name in systems.names():
        system = systems.find(name)
        for one in system.recipes:
            mfu, hfu = utilisation(system, one, find_chip(one.chip)) if one.hours else (None, None)
            model, run = training(system, one).zetta
            title = f"{system.title}: {one.name}"
            rows.append(Row(title, one.published, None, model, run, mfu, hfu, one.reason, one.source))
    return rows
