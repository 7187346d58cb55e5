"""Write the ranges of steps at which the robot is not idle, by openpi's rule.

wamjax data moving runs/droid runs/droid_moving.json
wamjax train … --set data.selection.ranges=runs/droid_moving.json
"""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "write ranges of steps that are not idle, for data.selection.ranges"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares its options."""
    parser.add_argument("data", metavar="DATA", help="store to look at")
    parser.add_argument("out", metavar="OUT", help="JSON file to write")
    parser.add_argument(
        "--field", default="action_dict/joint_velocity", metavar="NAME", help="step field of the joints' velocities"
    )


def run(args: argparse.Namespace) -> None:
    """Runs it."""
    from wamjax.data.files import write_json
    from wamjax.data.opened import open_dataset
    from wamjax.data.selection import moving_ranges

    store = open_dataset(args.data)
    table = dict(moving_ranges(store, args.field))
    write_json(Path(args.out), table)
    kept = sum(stop - first for pairs in table.values() for first, stop in pairs)
    print(f"wrote {args.out}: {kept} of {store.lengths.sum()} steps of {len(table)} episodes")
