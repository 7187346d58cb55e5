"""Collect a dataset of scripted-expert episodes in simulation, look at one, or take one from or to GEAR (LeRobot v2).

    wamjax data collect --config configs/metaworld_joint.py --out runs/demo/data
    wamjax data inspect runs/demo/data
    wamjax data import-gear droid_gear runs/droid --embodiment droid
    wamjax data export-gear runs/droid droid_gear --embodiment droid

A collection that was interrupted goes on when the same command is given again; the result is the same, byte
for byte, for any number of processes and interruptions. An import goes on, too. An embodiment is droid, agibot, yam,
or a Python file of your own (docs/embodiments.md).
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wamjax.data.store import EpisodeStore

HELP = "collect a dataset in simulation, describe, import or export one"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the subcommands and their options."""
    from wamjax.cli.main import add_config_arguments

    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    collect = commands.add_parser("collect", help="record the scripted expert, in parallel; resumes by itself")
    add_config_arguments(collect)
    collect.add_argument("--out", required=True, metavar="DIR", help="dataset folder; what is in it already is kept")
    collect.add_argument("--processes", type=int, metavar="N", help="simulator processes (default: one per core)")
    inspect = commands.add_parser("inspect", help="print what a dataset holds")
    inspect.add_argument("data", metavar="DIR", help="dataset folder")
    inspect.add_argument("--verify", action="store_true", help="also read every shard and compare its checksum")
    for name, verb in (("import-gear", "take over a GEAR dataset"), ("export-gear", "write a GEAR dataset")):
        gear = commands.add_parser(name, help=verb)
        gear.add_argument("source", metavar="SOURCE", help="dataset folder to read")
        gear.add_argument("out", metavar="OUT", help="dataset folder to write")
        gear.add_argument("--embodiment", required=True, metavar="ROBOT", help="name, dotted module or .py file")


def run(args: argparse.Namespace) -> None:
    """Runs the subcommand."""
    if args.command == "collect":
        _collect(args)
    elif args.command == "import-gear":
        _import_gear(args)
    elif args.command == "export-gear":
        _export_gear(args)
    else:
        _inspect(Path(args.data), args.verify)


def _collect(args: argparse.Namespace) -> None:
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


def _import_gear(args: argparse.Namespace) -> None:
    from wamjax.data import embodiments, gear

    count = gear.import_dataset(args.source, args.out, embodiments.load(args.embodiment))
    print(f"dataset     {args.out}: {count} episodes")


def _export_gear(args: argparse.Namespace) -> None:
    from wamjax.data import embodiments, gear_export
    from wamjax.data.store import EpisodeStore

    store = EpisodeStore(args.source)
    gear_export.export_dataset(store, args.out, embodiments.load(args.embodiment))
    print(f"dataset     {args.out}: {len(store)} episodes")


def _inspect(folder: Path, verify: bool) -> None:
    from wamjax.data.store import EpisodeStore

    store = EpisodeStore(folder)
    megabytes = sum(shard.stat().st_size for shard in folder.glob("*.array_record")) / 1e6
    print(f"dataset     {store.name}, {store.fps:g} steps per second, {megabytes:.1f} MB")
    print(f"fingerprint {store.fingerprint}")
    for camera, (height, width) in store.cameras.items():
        print(f"camera      {camera} {height}x{width}")
    statistics = store.statistics
    for name, field in store.fields.items():
        print(f"field       {name} {field['dtype']} {field['shape']}{_spread(statistics.get(name))}")
    for split in store.splits:
        part = EpisodeStore(folder, split)
        if verify:
            part.verify()
        print(f"split       {split}: {len(part)} episodes, {int(part.lengths.sum())} steps")
        for line in _tasks(part):
            print(f"            {line}")


def _tasks(store: EpisodeStore) -> list[str]:
    """One line per task (or source, where there are no tasks): episodes, and their mean length."""
    names = [str(store.metadata(i).get("task") or store.metadata(i).get("source")) for i in range(len(store))]
    steps: Counter[str] = Counter()
    for name, length in zip(names, store.lengths.tolist(), strict=True):
        steps[name] += length
    return [f"{name}: {n} episodes of {steps[name] / n:.1f} steps" for name, n in sorted(Counter(names).items())]


def _spread(statistics: Any) -> str:
    """The range of a field's values, 1st to 99th percentile."""
    if not statistics:
        return ""
    low, high = statistics["q01"], statistics["q99"]
    return f", 1 % {_numbers(low)}, 99 % {_numbers(high)}"


def _numbers(values: Any) -> str:
    return "[" + ", ".join(f"{x:.3g}" for x in values) + "]" if isinstance(values, list) else f"{values:.3g}"
