"""Take over a GEAR dataset in the names of a robot.

wamjax data import-gear droid_gear runs/droid --embodiment droid
"""

from __future__ import annotations

import argparse

from wamjax.cli._data._source import add_gear_arguments

HELP = "take over a GEAR dataset"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares its options."""
    add_gear_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Runs it."""
    from wamjax.data import convert, embodiments, gear
    from wamjax.data.normalise import keep_relative_statistics
    from wamjax.data.store import EpisodeStore
    from wamjax.errors import UserError

    robot = embodiments.load(args.embodiment)
    source = gear.GearSource(gear.open_dataset(args.source), robot)
    count = convert.to_store(source, args.out, name="gear")
    try:
        keep_relative_statistics(EpisodeStore(args.out), robot)
    except UserError as error:  # too short for a chunk, or without actions: a dataset all the same
        print(f"no statistics of relative actions: {error}")
    print(f"dataset     {args.out}: {count} episodes")
