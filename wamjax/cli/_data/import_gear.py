"""Take over a GEAR dataset in the names of a robot.

wamjax data import-gear droid_gear runs/droid --embodiment droid
"""

from __future__ import annotations

import argparse

HELP = "take over a GEAR dataset"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares its options."""
    parser.add_argument("source", metavar="SOURCE", help="dataset folder to read")
    parser.add_argument("out", metavar="OUT", help="dataset folder to write")
    parser.add_argument("--embodiment", required=True, metavar="ROBOT", help="name, dotted module or .py file")


def run(args: argparse.Namespace) -> None:
    """Runs it."""
    from wamjax.data import convert, embodiments, gear

    source = gear.GearSource(gear.open_dataset(args.source), embodiments.load(args.embodiment))
    count = convert.to_store(source, args.out, name="gear")
    print(f"dataset     {args.out}: {count} episodes")
