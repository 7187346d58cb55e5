"""Count what trainings and passes compute: of the field's systems, as published and derived, or of your experiment.

Without a name it lists the systems. With one: its networks, passes (visible pairs of tokens, pairs that a kernel runs,
operations, bytes) and training recipes; money and energy with --price and --watts. `--published` sets published numbers
beside what their formulas give, what first principles give, and what really runs, with the reason. Z is 1e21.

  wamjax flops
  wamjax flops --published
  wamjax flops dreamzero-14b --chip v5p --chips 256 --mfu 0.4 --price 4.2 --watts 600
  wamjax flops cosmos-policy --batch 512 --steps 20000
  wamjax flops configs/dreamzero_14b_droid.py --chip h100
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wamjax.cli._experiment import Experiment
    from wamjax.compute.costs import Bill
    from wamjax.compute.systems import System
    from wamjax.compute.tables import Prices

HELP = "count operations, bytes and costs: published, derived, your own"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    from wamjax.cli._counted import add_subject_arguments

    add_subject_arguments(parser)
    parser.add_argument("--published", action="store_true", help="published numbers beside derived ones")
    parser.add_argument("--chip", default="h100", metavar="NAME", help="what a run is priced on (default: h100)")
    parser.add_argument("--chips", type=int, default=1, metavar="N", help="how many share it (default: 1)")
    parser.add_argument("--mfu", type=float, default=0.4, metavar="X", help="share of the peak reached (default: 0.4)")
    parser.add_argument("--price", type=float, metavar="X", help="of a chip-hour, in your money")
    parser.add_argument("--watts", type=float, metavar="X", help="of a chip, with its share of host and cooling")
    parser.add_argument("--batch", type=int, metavar="N", help="samples of a step, instead of a recipe's")
    parser.add_argument("--steps", type=int, metavar="N", help="steps, instead of a recipe's")
    parser.add_argument("--write-page", metavar="FILE", help="write the page of docs/compute.md and its pictures")


def run(args: argparse.Namespace) -> None:
    """Runs the verb."""
    if args.write_page:
        from wamjax.compute.page import write

        return print("\n".join(f"wrote {path}" for path in write(args.write_page)))
    from wamjax.cli import _counted
    from wamjax.compute.systems import System

    prices = _prices(args)
    if args.published:
        return _published(args)
    if not args.subject:
        return _every(args)
    subject = _counted.subject(args)
    if isinstance(subject, System):
        return _system(args, _changed(args, subject), prices)
    return _experiment(args, subject, prices)


def _prices(args: argparse.Namespace) -> Prices:
    """What runs are priced with."""
    from wamjax.compute.chips import find_chip
    from wamjax.compute.tables import Prices
    from wamjax.errors import UserError

    if not 0 < args.mfu <= 1:
        raise UserError(f"--mfu {args.mfu}: give the share of the peak that is reached, between 0 and 1")
    if min(args.chips, *(given for given in (args.batch, args.steps) if given is not None), 1) < 1:
        raise UserError("--chips, --batch and --steps must be at least 1")
    return Prices(find_chip(args.chip, args.chips_file), args.chips, args.mfu, args.price, args.watts)


def _show(args: argparse.Namespace, data: Any, lines: list[str]) -> None:
    print(json.dumps(data, indent=1) if args.json else "\n".join(lines))


def _every(args: argparse.Namespace) -> None:
    """Lists the systems."""
    from wamjax.compute import systems, tables

    _show(args, list(systems.names()), [*tables.systems_table(), "", "`wamjax flops NAME` says more."])


def _published(args: argparse.Namespace) -> None:
    """The table of reconstruction."""
    from wamjax.compute import published, tables

    post, recipes = published.post_rows(), published.recipe_rows()
    data = {"post": [dataclasses.asdict(row) for row in post], "recipes": [dataclasses.asdict(row) for row in recipes]}
    known = published.publication()
    data["throughputs"] = [dataclasses.asdict(one) | {"rate": one.rate, "mfu": one.mfu} for one in known.throughputs]
    data["latencies"] = [dataclasses.asdict(one) | {"least": one.least[1]} for one in known.latencies]
    lines = [
        f"{published.publication().source}. Z: 1e21 operations.",
        "formula: 6 N T as the post takes it; derived: forward and backward of all products and visible pairs;",
        "executed: with blocks computed again and frozen networks.",
        "",
        *tables.published_table(post),
        "",
        *tables.recipe_table(recipes),
        "",
        "Training speeds of Wan-14B, as reported and by one count:",
        *tables.throughput_table(),
        "",
        "Latencies of the post:",
        *tables.latency_table(),
    ]
    _show(args, data, lines)


def _changed(args: argparse.Namespace, system: System) -> System:
    """The system with recipes of another batch and other steps, where they are given."""
    given = {name: value for name, value in (("batch", args.batch), ("steps", args.steps)) if value is not None}
    recipes = (dataclasses.replace(one, published=None, **given) if given else one for one in system.recipes)
    return dataclasses.replace(system, recipes=tuple(recipes))


def _system(args: argparse.Namespace, system: System, prices: Prices) -> None:
    """One system."""
    from wamjax.compute import costs, tables

    runs = {name: dataclasses.asdict(system.cost(name)) for name in system.runs}
    networks = {run.network: system.network(run.network).parameters for run in system.runs.values()}
    trainings = {}
    for one in system.recipes:
        found = costs.training(system, one)
        bill = costs.bill(found.zetta[0] * costs.ZETTA, prices.chip, prices.mfu, prices.price, prices.watts)
        trainings[one.name] = dataclasses.asdict(found) | dataclasses.asdict(bill)
    lines = [f"{system.title} ({system.paradigm}): {system.source}", "", *tables.networks_table(system)]
    lines += ["", *tables.runs_table(system)]
    if system.recipes:
        on = f"Training, priced on {prices.chips} {args.chip} at {prices.mfu:.0%} of the peak:"
        lines += ["", on, *tables.training_table(system, prices)]
        lines += [f"{one.name}: {one.reason}" for one in system.recipes if one.reason]
    _show(args, {"networks": networks, "runs": runs, "trainings": trainings}, lines)


def _experiment(args: argparse.Namespace, experiment: Experiment, prices: Prices) -> None:
    """One experiment: counted from its token plans, and read off its programs."""
    from wamjax.cli import _counted
    from wamjax.compute import costs, tables

    found, tokens = _counted.training(args, experiment)
    batch, steps = args.batch or experiment.train.batch_size, args.steps or experiment.train.steps
    bill = costs.bill(found.model.total * batch * steps, prices.chip, prices.mfu, prices.price, prices.watts)
    unit, size = ("TF", 1e12) if found.model.total > 1e12 else ("GF", 1e9)
    rows = {
        "model: forward and backward": found.model.total,
        "of it products with weights": found.model.matmul,
        "of it attention, visible pairs": found.model.attention,
        "frozen encoders": found.frozen,
        "executed on a TPU": found.executed,
        "executed without a kernel": found.program + found.frozen,
    }
    lines = [
        f"{experiment.name}: {found.parameters:,} parameters trained, {tokens:,.0f} tokens a sample",
        *tables.table(["of a sample", unit], [[name, tables.number(x / size, 4)] for name, x in rows.items()]),
        "",
        *_run_lines(args, bill, found.model.total * batch * steps, f"{steps:,} steps of {batch}"),
    ]
    _show(args, dataclasses.asdict(found) | {"batch": batch, "steps": steps} | dataclasses.asdict(bill), lines)


def _run_lines(args: argparse.Namespace, bill: Bill, operations: float, run: str) -> list[str]:
    """What a whole run costs, in words."""
    from wamjax.compute import costs, tables

    much = f"{operations / costs.ZETTA:.4g} Z" if operations > 1e18 else f"{operations:.3g} operations"
    days = f"{tables.number(bill.chip_hours / args.chips / 24)} days on {args.chips}"
    costly = f", {tables.number(bill.money)} in money" if bill.money is not None else ""
    costly += f", {tables.number(bill.energy)} kWh" if bill.energy is not None else ""
    hours = f"{tables.number(bill.chip_hours)} {args.chip}-hours at {args.mfu:.0%} of the peak"
    return [f"{run}: {much}, {hours}, {days}{costly}"]
