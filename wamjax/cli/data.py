"""Collect a dataset of scripted-expert episodes in simulation, look at one, or take one from or to other formats.

    wamjax data collect --config configs/metaworld_joint.py --out runs/demo/data
    wamjax data inspect runs/demo/data --html data.html
    wamjax data convert gs://bucket/droid_101/1.0.1 runs/droid
    wamjax data convert runs/demo/data lerobot/demo --to lerobot
    wamjax data encode --config configs/dreamzero_small.py --data runs/demo/data --out runs/demo/encoded
    wamjax data check-stats runs/demo/joint runs/droid
    wamjax data moving runs/droid runs/droid_moving.json
    wamjax data import-gear droid_gear runs/droid --embodiment droid
    wamjax data export-gear runs/droid droid_gear --embodiment droid

A collection that was interrupted goes on when the same command is given again; the result is the same, byte
for byte, for any number of processes and interruptions. A conversion to the native store goes on, too; damaged episodes
are left out, and named. The format of a source is recognised, or given with --format: native, gear, lerobot,
rlds, droid_raw, robomimic (also LIBERO), robotwin, aloha, roboarena, calvin, captions.
docs/data.md says what each reader makes of its source. An embodiment is droid, agibot, yam, or a Python file of your
own (docs/embodiments.md).
"""

from __future__ import annotations

import argparse
import importlib
from types import ModuleType

HELP = "collect a dataset in simulation, describe or convert one"

COMMANDS = (
    *("collect", "inspect", "convert", "check-stats", "quality", "moving", "import-gear", "export-gear"),
    *("encode", "export-latents"),
)
"""The subcommands: modules of `wamjax.cli._data`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the subcommands and their options."""
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        module = _module(name)
        command = commands.add_parser(name, help=module.HELP, description=module.__doc__)
        module.add_arguments(command)


def run(args: argparse.Namespace) -> int | None:
    """Runs the subcommand."""
    code: int | None = _module(args.command).run(args)
    return code


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"wamjax.cli._data.{name.replace('-', '_')}")
