"""Take over a GEAR dataset as a native store."""

import argparse

from wamjax.cli import _data_export_gear

HELP = "take over a GEAR dataset"

add_arguments = _data_export_gear.add_arguments


def run(args: argparse.Namespace) -> None:
    """Converts."""
    from wamjax.data import convert, embodiments, gear
    from wamjax.data.normalise import keep_relative_statistics
    from wamjax.data.store import EpisodeStore
    from wamjax.errors import UserError

    robot = embodiments.load(args.embodiment)
    source = gear.GearSource(gear.open_dataset(args.source), robot)
    count = convert.to_store(source, args.out, name="gear")
    try:
        keep_relative_statistics(EpisodeStore(args.out), robot)
    except UserError as error:  # the dataset is good for all that
        print(f"no statistics of relative actions: {error}")
    print(f"dataset     {args.out}: {count} episodes")
