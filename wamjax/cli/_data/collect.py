"""Record the scripted expert in simulation.

    wamjax data collect --config configs/metaworld_joint.py --out runs/demo/data

A collection that was interrupted goes on when the same command is given again; the result is the same, byte for byte,
for any number of processes and interruptions.
"""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "record the scripted expert, in parallel; resumes by itself"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares its options."""
    from wamjax.cli.main import add_config_arguments

    add_config_arguments(parser)
    parser.add_argument("--out", required=True, metavar="DIR", help="dataset folder; what is in it already is kept")
    parser.add_argument("--processes", type=int, metavar="N", help="simulator processes (default: one per core)")


def run(args: argparse.Namespace) -> None:
    """Runs it."""
    from wamjax.cli import _experiment
    from wamjax.errors import UserError
    from wamjax.evaluation.collect import collect
    from wamjax.evaluation.processes import default_processes

    if args.processes is not None and args.processes < 1:
        raise UserError(f"--processes {args.processes}: give a number of at least 1")
    config = _experiment.load(args.config, args.overrides).collect
    counts = collect(config, Path(args.out), args.processes or default_processes())
    for split, tasks in counts.items():
        for task, (kept, attempts) in sorted(tasks.items()):
            print(f"{split:<11} {task:<26} {kept:4d} of {attempts} episodes kept")
    print(f"dataset     {args.out}")
