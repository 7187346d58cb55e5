"""What a training or an action chunk of a system costs: operations, bytes, seconds at the least, money and energy."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping

from wamjax.compute.chips import Chip
from wamjax.compute.description import Cost
from wamjax.compute.systems import Acting, Recipe, System
from wamjax.errors import UserError

ZETTA = 1e21
"""Operations are published in these."""

BYTES = 2
"""Of a number in bfloat16."""

STATE_BYTES = 16
"""Of a trained parameter: bfloat16 weight and gradient, float32 weight and two moments."""


@dataclasses.dataclass(frozen=True)
class Training:
    """What a training computes.

    Attributes:
        samples: in all.
        model: operations of a sample: forward and backward of what is trained. executed: with blocks computed again,
            and with frozen networks.
        parameters: trained.
    """

    samples: float
    model: float
    executed: float
    parameters: int

    @property
    def zetta(self) -> tuple[float, float]:
        """Operations of all samples in 1e21: the mathematics', and those that run."""
        return self.samples * self.model / ZETTA, self.samples * self.executed / ZETTA


def training(system: System, recipe: Recipe) -> Training:
    """Counts a recipe.

    A trained pass costs three forward ones. Where weights stay but gradients pass, two: there is no product for the
    weights, and adapters are small. Recomputation is one more of each.
    """

    def total(runs: Mapping[str, float]) -> float:
        return sum((system.cost(run).flops * times).total for run, times in runs.items())

    trained, through, frozen = total(recipe.trained), total(recipe.through), total(recipe.frozen)
    model = 3 * trained + 2 * through
    executed = model + recipe.remat * (trained + through) + frozen
    samples = recipe.batch * recipe.steps or recipe.tokens / sum(system.runs[r].work.queries for r in recipe.trained)
    networks = {system.runs[run].network for run in recipe.trained}
    return Training(samples, model, executed, sum(system.network(name).parameters for name in networks))


def utilisation(system: System, recipe: Recipe, chip: Chip) -> tuple[float, float]:
    """Shares of the chips' peak that a recipe's chip-hours amount to: of the mathematics, and of all that runs."""
    model, executed = training(system, recipe).zetta
    able = chip.flops * recipe.hours * 3600 / ZETTA
    return model / able, executed / able


@dataclasses.dataclass(frozen=True)
class Bill:
    """What operations cost at a share of the peak.

    Attributes:
        chip_hours: on one chip. money: at a price; energy: in kWh, at a power; None where that is not known.
    """

    chip_hours: float
    money: float | None
    energy: float | None


def bill(operations: float, chip: Chip, mfu: float, price: float | None = None, watts: float | None = None) -> Bill:
    """Chip-hours, money and energy.

    Args:
        operations: those that `mfu`, the share of the peak, is a share of.
        price: of a chip-hour. watts: of a chip, with its share of the host and of cooling.
    """
    hours = operations / (chip.flops * mfu * 3600)
    return Bill(hours, None if price is None else hours * price, None if watts is None else hours * watts / 1000)


def bounds(
    chip: Chip, flops: float = 0.0, memory: float = 0.0, links: float = 0.0, network: float = 0.0
) -> dict[str, float]:
    """Seconds that each resource of a chip needs alone: a roofline; without those whose rate is not known.

    Args:
        flops: operations. memory: bytes of its memory. links: bytes to neighbours. network: bytes to other slices.
    """
    needs = {
        "compute": (flops, chip.flops),
        "hbm": (memory, chip.bandwidth),
        "ici": (links, chip.links),
        "dcn": (network, chip.network),
    }
    return {name: amount / rate if amount else 0.0 for name, (amount, rate) in needs.items() if rate or not amount}


def step_bounds(found: Training, batch: int, chip: Chip, chips: int) -> dict[str, float]:
    """Seconds that each resource needs for a training step whose parameters are spread over all chips.

    Memory: the state read and written, and the weights read for every product of a chip's samples. Links: weights
    gathered forwards and backwards, gradients reduced. Activations are left out of both.
    """
    weights = BYTES * found.parameters
    state = 2 * STATE_BYTES * found.parameters / chips
    passes = found.executed / max(found.model / 3, 1.0)
    spread = (chips - 1) / chips
    return bounds(chip, found.executed * batch / chips, state + passes * weights, 3 * weights * spread)


def fewest_chips(parameters: int, chip: Chip, share: float = 0.8) -> int:
    """Chips whose memory, a share of it, holds the state of so many trained parameters; activations come on top."""
    return math.ceil(STATE_BYTES * parameters / (share * chip.memory))


@dataclasses.dataclass(frozen=True)
class Timed:
    """A stage of an action chunk on a chip.

    Attributes:
        name: of it. times: how often it runs. cost: once. bounds: seconds of it once, by resource.
    """

    name: str
    times: float
    cost: Cost
    bounds: Mapping[str, float]

    @property
    def flops(self) -> float:
        """All times."""
        return self.cost.flops.total * self.times

    @property
    def bytes(self) -> float:
        """All times."""
        return BYTES * (self.cost.weights + self.cost.cache) * self.times

    @property
    def seconds(self) -> float:
        """At the least, all times: what takes longest hides the rest."""
        return max(self.bounds.values()) * self.times


def timed(name: str, times: float, cost: Cost, chip: Chip, parts: int = 1) -> Timed:
    """A stage on a chip, or on one of so many that its matrices are spread over: sums of tokens then go around a ring.

    Raises:
        UserError: several chips whose links are not known.
    """
    if parts > 1 and not chip.links:
        raise UserError("this chip's links are not known: give them in a file of chips, or --parts 1")
    memory, ring = BYTES * (cost.weights + cost.cache), 2 * (parts - 1) / parts * BYTES * cost.summed
    each = bounds(chip, cost.flops.total / parts, memory / parts, ring)
    return Timed(name, times, cost, each)


def chunk(system: System, acting: Acting, chip: Chip, steps: int = 0, parts: int = 1) -> list[Timed]:
    """The stages of an action chunk on one of the devices that share it.

    Args:
        steps: of denoising; 0 for as many as published. parts: chips that stand for each of these devices.
    """
    times = {stage.name: stage.times * ((steps or acting.steps) if stage.step else 1) for stage in acting.stages}
    return [timed(stage.name, times[stage.name], system.cost(stage.run), chip, parts) for stage in acting.stages]


def total(stages: Iterable[Timed]) -> tuple[float, float]:
    """Operations and seconds of stages, one after the other."""
    stages = list(stages)
    return sum(one.flops for one in stages), sum(one.seconds for one in stages)
