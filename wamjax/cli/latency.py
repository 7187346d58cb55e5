"""How long an action chunk takes at the least on a chip, stage by stage, and what was measured.

A stage takes as long as the busier of arithmetic and memory; weights are read once a pass, and stages follow one
another. Published times stand beside it, as a share of the bound. With --parts, matrices are spread over chips that sum
tokens over their links. For an experiment the stages are read off its own programs.

  wamjax latency dreamzero-14b --chip gb200
  wamjax latency dreamzero-14b --chip v5p --steps 4 --parts 8
  wamjax latency fast-wam                                            (all chips)
  wamjax latency configs/dreamzero_14b_droid.py --chip h200
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wamjax.compute.chips import Chip
    from wamjax.compute.systems import Acting, System

HELP = "the least time of an action chunk, by stage, beside measured ones"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    from wamjax.cli._counted import add_subject_arguments

    add_subject_arguments(parser)
    parser.add_argument("--chip", metavar="NAME", help="e.g. v5p, h100 (default: a table of all)")
    parser.add_argument("--steps", type=int, default=0, metavar="N", help="of denoising (default: as published)")
    parser.add_argument("--parts", type=int, default=1, metavar="N", help="chips that one device's work is spread over")


def run(args: argparse.Namespace) -> None:
    """Runs the verb."""
    from wamjax.cli import _counted
    from wamjax.compute import systems
    from wamjax.compute.chips import find_chip
    from wamjax.compute.systems import System
    from wamjax.errors import UserError

    if args.steps < 0 or args.parts < 1:
        raise UserError(f"--steps {args.steps} --parts {args.parts}: steps from 1 on, and at least one part")
    if not args.subject:
        raise UserError(f"name a system ({', '.join(systems.names())}) or a configuration file")
    subject = _counted.subject(args)
    chip = find_chip(args.chip, args.chips_file) if args.chip else None
    if not isinstance(subject, System):
        return _experiment(args, subject, chip or find_chip("h100"))
    if not subject.acting:
        raise UserError(f"{subject.title} has no published way of acting to time")
    if chip is None:
        return _every_chip(args, subject)
    return _system(args, subject, chip)


def _every_chip(args: argparse.Namespace, system: System) -> None:
    """All ways of a system on all chips."""
    from wamjax.compute import costs, tables
    from wamjax.compute.chips import CHIPS, read_chips

    chips = CHIPS | (read_chips(Path(args.chips_file)) if args.chips_file else {})
    least = {
        acting.name: {
            name: 1e3 * costs.total(costs.chunk(system, acting, chip, args.steps))[1] for name, chip in chips.items()
        }
        for acting in system.acting
    }
    lines = [f"{system.title}: milliseconds of an action chunk at the least"]
    lines += tables.table(
        ["chip", *least], [[name, *(tables.number(row[name]) for row in least.values())] for name in chips]
    )
    print(json.dumps(least, indent=1) if args.json else "\n".join(lines))


def _system(args: argparse.Namespace, system: System, chip: Chip) -> None:
    """All ways of a system on a chip."""
    from wamjax.compute import costs, tables

    data: dict[str, Any] = {}
    lines = [f"{system.title} on {args.chip}; times are lower bounds"]
    for acting in system.acting:
        stages = costs.chunk(system, acting, chip, args.steps, args.parts)
        data[acting.name] = [dataclasses.asdict(one) | {"seconds": one.seconds} for one in stages]
        lines += ["", _title(acting, args), *tables.chunk_table(stages)]
        measured = tables.measured_table(system, acting, args.chip)
        if measured and not args.steps and args.parts == 1:
            lines += ["", *measured]
    law = tables.law_lines(system) if system.law and args.chip == system.law.chip else []
    if law and system.law and args.steps:
        law.append(f"With {args.steps} steps: {system.law.through.at(args.steps):,.0f} ms by the law.")
    print(json.dumps(data, indent=1) if args.json else "\n".join([*lines, "", *law]).rstrip())


def _title(acting: Acting, args: argparse.Namespace) -> str:
    steps = args.steps or acting.steps
    parts = f" of {args.parts} chips" * (args.parts > 1)
    devices = f"one of {acting.devices} devices" if acting.devices > 1 else "one device"
    return f"{acting.name}: {steps} step{'s' * (steps > 1)}, {acting.actions} actions, {devices}{parts}"


def _experiment(args: argparse.Namespace, experiment: Any, chip: Chip) -> None:
    """An experiment's stages on a chip."""
    from wamjax.cli import _counted
    from wamjax.compute import costs, tables
    from wamjax.errors import UserError

    if args.steps or args.parts > 1:
        raise UserError(
            "an experiment has its own steps: change them with --set policy.sampling...; --parts is for systems"
        )
    subject = _counted.build(args, experiment)
    stages = [costs.timed(name, times, cost, chip) for name, times, cost in _counted.chunk_costs(subject)]
    name = args.chip or "h100"
    lines = [
        f"{experiment.name} on {name}, one session; lower bounds of what runs in a chunk, on average",
        *tables.chunk_table(stages),
    ]
    data = [dataclasses.asdict(one) | {"seconds": one.seconds} for one in stages]
    print(json.dumps(data, indent=1) if args.json else "\n".join(lines))
