"""What two sets of statistics disagree about: those that a checkpoint was trained with, and those of a dataset."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from wamjax.errors import UserError

if TYPE_CHECKING:
    from wamjax.data.store import EpisodeStore

Bounds = tuple[float, float]
"""1 % and 99 % quantile of a number."""

FACTORS = {
    "degrees in the dataset, radians in the checkpoint": 180 / math.pi,
    "radians in the dataset, degrees in the checkpoint": math.pi / 180,
    "millimetres in the dataset, metres in the checkpoint": 1000.0,
    "metres in the dataset, millimetres in the checkpoint": 0.001,
    "of the other sign": -1.0,
}
"""What it means that the dataset's values are so many times the checkpoint's."""


@dataclasses.dataclass(frozen=True)
class Difference:
    """A number that two statistics disagree about, or a field that only one has.

    Attributes:
        field: path of the field. index: of the number in it; None for the whole field.
        low, high: how far the dataset's 1 % and 99 % quantiles lie above the checkpoint's, in units of the
            checkpoint's range between these; where that is zero, infinite.
        hint: what it looks like; empty for nothing in particular.
    """

    field: str
    index: int | None
    low: float
    high: float
    hint: str = ""


def differences(checkpoint: Mapping[str, Any], dataset: Mapping[str, Any], tolerance: float) -> list[Difference]:
    """Numbers whose quantiles lie more than `tolerance` ranges apart, and fields that only one of both has.

    Args:
        checkpoint, dataset: nested tables whose innermost have "q01" and "q99".
        tolerance: in units of the checkpoint's range between its 1 % and 99 % quantiles.

    Raises:
        UserError: nothing that both have.
    """
    known, found = dict(fields(checkpoint)), dict(fields(dataset))
    if not known.keys() & found.keys():
        raise UserError(
            f"no field is in both: the first has {', '.join(known) or 'none'}, the second {', '.join(found) or 'none'}"
        )
    apart: list[Difference] = []
    for name in sorted(known.keys() | found.keys()):
        if name not in known or name not in found:
            where = "the first" if name in known else "the second"
            apart.append(Difference(name, None, math.nan, math.nan, f"only in {where}"))
        elif len(known[name]) != len(found[name]):
            words = f"{len(known[name])} numbers in the first, {len(found[name])} in the second"
            apart.append(Difference(name, None, math.nan, math.nan, words))
        else:
            apart += _within(name, known[name], found[name], tolerance)
    return apart


def fields(statistics: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, list[Bounds]]]:
    """Path and bounds of every field."""
    if "q01" in statistics and "q99" in statistics:
        yield where, list(zip(np.ravel(statistics["q01"]), np.ravel(statistics["q99"]), strict=True))
        return
    for name, inner in statistics.items():
        if isinstance(inner, Mapping):
            yield from fields(inner, f"{where}/{name}" if where else name)


def beyond(store: EpisodeStore, known: Mapping[str, list[Bounds]]) -> dict[str, np.ndarray]:
    """Share of a dataset's values outside bounds, which normalising by them cuts off: field of the store -> (k,)."""
    outside = {name: np.zeros(len(bounds)) for name, bounds in known.items() if name in store.fields}
    for steps in store.all_steps() if outside else ():
        for name, count in outside.items():
            values, (low, high) = steps[name].reshape(len(steps[name]), -1), np.transpose(known[name])
            count += ((values < low) | (values > high)).sum(0)
    return {name: count / max(int(store.lengths.sum()), 1) for name, count in outside.items()}


def _within(name: str, known: list[Bounds], found: list[Bounds], tolerance: float) -> Iterator[Difference]:
    """Numbers of a field that both have."""
    for index, (here, there) in enumerate(zip(known, found, strict=True)):
        low, high = _apart(here, there)
        if max(abs(low), abs(high)) > tolerance:
            yield Difference(name, index, low, high, _hint(index, known, found, tolerance))


def _apart(known: Bounds, found: Bounds) -> Bounds:
    size = known[1] - known[0]
    moved = found[0] - known[0], found[1] - known[1]
    if size:
        return moved[0] / size, moved[1] / size
    return tuple(math.copysign(math.inf, x) if x else 0.0 for x in moved)  # type: ignore[return-value]


def _hint(index: int, known: list[Bounds], found: list[Bounds], tolerance: float) -> str:
    """What the difference looks like."""

    def fits(here: Bounds, there: Bounds) -> bool:
        return max(map(abs, _apart(here, there))) <= tolerance

    here, there = known[index], found[index]
    if there[0] == there[1]:
        return f"always {there[0]:g} in the dataset"
    if here[0] == here[1]:
        return f"always {here[0]:g} in the checkpoint's data"
    for other in range(len(known)):
        if other != index and fits(here, found[other]) and fits(known[other], there):
            return f"exchanged with number {other}"
    for words, factor in FACTORS.items():
        low, high = sorted((here[0] * factor, here[1] * factor))
        if fits((low, high), there):
            return words
    return ""
