"""Take over a GEAR dataset as a native store."""

import argparse

from wamjax.cli import _data_export_gear

HELP = "take over a GEAR dataset"

add_arguments = _data_export_gear.add_arguments


def run(args: argparse.Namespace) -> None:
    """Converts."""
    from wamjax.data import convert, embodiments, gear

    source = gear.GearSource(gear.open_dataset(args.source), embodiments.load(args.embodiment))
    count = convert.to_store(source, args.out, name="gear")
    print(f"dataset     {args.out}: {count} episodes")
