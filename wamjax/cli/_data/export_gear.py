"""Write a native store as a GEAR dataset.

wamjax data export-gear runs/droid droid_gear --embodiment droid
"""

from __future__ import annotations

import argparse

from wamjax.cli._data._source import add_gear_arguments

HELP = "write a GEAR dataset"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares its options."""
    add_gear_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Runs it."""
    from wamjax.data import embodiments, gear_export
    from wamjax.data.linked import open_store
    from wamjax.data.video import encode

    store = open_store(args.source, encode=encode)
    gear_export.export_dataset(store, args.out, embodiments.load(args.embodiment))
    print(f"dataset     {args.out}: {len(store)} episodes")
