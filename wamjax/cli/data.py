"""Collect a dataset of scripted-expert episodes in simulation, look at one, or take one from or to other formats.

    wamjax data collect --config configs/metaworld_joint.py --out runs/demo/data
    wamjax data inspect runs/demo/data
    wamjax data convert gs://bucket/droid_101/1.0.1 runs/droid
    wamjax data convert runs/demo/data lerobot/demo --to lerobot
    wamjax data encode --config configs/dreamzero_small.py --data runs/demo/data --out runs/demo/encoded
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
import functools
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wamjax.cli import _data_encode, _data_latents

if TYPE_CHECKING:
    from rich.progress import Progress

    from wamjax.data.episode import Episode
    from wamjax.data.readers import Source
    from wamjax.data.store import EpisodeStore

CRF = 18  # `video.CRF`, which importing would load video libraries for --help

LINES = 20  # tasks or sources that are listed

HELP = "collect a dataset in simulation, describe or convert one"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the subcommands and their options."""
    from wamjax.cli.main import add_config_arguments

    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    collect = commands.add_parser("collect", help="record the scripted expert, in parallel; resumes by itself")
    add_config_arguments(collect)
    collect.add_argument("--out", required=True, metavar="DIR", help="dataset folder; what is in it already is kept")
    collect.add_argument("--processes", type=int, metavar="N", help="simulator processes (default: one per core)")
    inspect = commands.add_parser("inspect", help="print what a dataset of any format holds")
    inspect.add_argument("data", metavar="DATA", help="dataset folder or file, local or a URL such as gs://…")
    inspect.add_argument("--verify", action="store_true", help="also read every shard and compare its checksum")
    convert = commands.add_parser("convert", help="write a dataset of any format as a native store or as LeRobot v3.0")
    convert.add_argument("source", metavar="SOURCE", help="dataset folder or file, local or a URL such as gs://…")
    convert.add_argument("out", metavar="OUT", help="dataset folder to write")
    convert.add_argument("--to", choices=("native", "lerobot"), default="native", help="what to write (native)")
    convert.add_argument(
        "--crf", type=int, default=CRF, metavar="N", help="quality of pictures that become video (18); 0 is lossless"
    )
    convert.add_argument("--size", metavar="HxW", help="height and width that videos are brought to, such as 180x320")
    for command in (inspect, convert):
        command.add_argument("--format", metavar="FORMAT", help="of the source, where it is not recognised")
        command.add_argument("--fps", type=float, metavar="HZ", help="steps per second, where the source does not say")
        command.add_argument("--split", default="train", help="of the source (train)")
        command.add_argument("--embodiment", metavar="ROBOT", help="for GEAR: name, dotted module or .py file")
    encode = commands.add_parser("encode", help=_data_encode.HELP)
    _data_encode.add_arguments(encode)
    latents = commands.add_parser("export-latents", help=_data_latents.HELP)
    _data_latents.add_arguments(latents)
    moving = commands.add_parser("moving", help="write ranges of steps that are not idle, for data.selection.ranges")
    moving.add_argument("data", metavar="DATA", help="store to look at")
    moving.add_argument("out", metavar="OUT", help="JSON file to write")
    moving.add_argument(
        "--field", default="action_dict/joint_velocity", metavar="NAME", help="step field of the joints' velocities"
    )
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
    elif args.command == "convert":
        _convert(args)
    elif args.command == "encode":
        _data_encode.run(args)
    elif args.command == "export-latents":
        _data_latents.run(args)
    elif args.command == "moving":
        _moving(args)
    else:
        _inspect(args)


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
    from wamjax.data import convert, embodiments, gear

    source = gear.GearSource(gear.open_dataset(args.source), embodiments.load(args.embodiment))
    count = convert.to_store(source, args.out, name="gear")
    print(f"dataset     {args.out}: {count} episodes")


def _export_gear(args: argparse.Namespace) -> None:
    from wamjax.data import embodiments, gear_export
    from wamjax.data.store import EpisodeStore

    store = EpisodeStore(args.source)
    gear_export.export_dataset(store, args.out, embodiments.load(args.embodiment))
    print(f"dataset     {args.out}: {len(store)} episodes")


def _moving(args: argparse.Namespace) -> None:
    from wamjax.data.files import write_json
    from wamjax.data.selection import moving_ranges
    from wamjax.data.store import EpisodeStore

    store = EpisodeStore(args.data)
    table = dict(moving_ranges(store, args.field))
    write_json(Path(args.out), table)
    kept = sum(stop - first for pairs in table.values() for first, stop in pairs)
    print(f"wrote {args.out}: {kept} of {store.lengths.sum()} steps of {len(table)} episodes")


def _convert(args: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.progress import Progress

    from wamjax.data import convert, lerobot_export

    source = _open(args)
    settings = {key: getattr(args, key) for key in ("source", "split", "crf", "size", "fps", "embodiment")}
    with Progress(console=Console(stderr=True)) as bars:
        watched = _Watched(source, bars)
        if args.to == "lerobot":
            count = lerobot_export.export_dataset(watched, args.out)
        else:
            count = convert.to_store(watched, args.out, split=args.split, settings=settings)
        watched.finish()
    print(f"dataset     {args.out}: {count} of {len(source)} episodes")


class _Watched:
    """A source that shows how far its reading is."""

    def __init__(self, source: Source, bars: Progress):
        self._source, self._bars = source, bars
        self._bar = bars.add_task(f"converting {source.name}", total=len(source))

    @property
    def name(self) -> str:
        return self._source.name

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Episode:
        self._bars.update(self._bar, completed=index)
        return self._source[index]

    def finish(self) -> None:
        self._bars.update(self._bar, completed=len(self))


def _open(args: argparse.Namespace) -> Source:
    from wamjax.data import embodiments, readers
    from wamjax.data.video import encode

    options = readers.Options(
        split=args.split,
        embodiment=embodiments.load(args.embodiment) if args.embodiment else None,
        encode=functools.partial(encode, crf=getattr(args, "crf", CRF)),
        fps=args.fps,
        size=_size(args.size) if getattr(args, "size", None) else None,
    )
    return readers.open_source(args.source, args.format, options)


def _size(text: str) -> tuple[int, int]:
    from wamjax.errors import UserError

    height, _, width = text.partition("x")
    if not (height.isdigit() and width.isdigit() and int(height) and int(width)):
        raise UserError(f"--size {text}: give height and width, such as 180x320")
    return int(height), int(width)


def _inspect(args: argparse.Namespace) -> None:
    from wamjax.data.readers import native
    from wamjax.data.storage import Place

    if args.format in (None, "native") and (place := Place.of(args.data)).is_local and native.recognises(place):
        _inspect_store(Path(place.path), args.verify)
        return
    args.source = args.data
    source = _open(args)
    print(f"dataset     {source.name}, {len(source)} episodes; the first:")
    episode = source[0]
    print(f"            {len(episode)} steps, {episode.metadata['fps']:g} per second")
    for camera, video in episode.videos.items():
        print(f"camera      {camera} {video.height}x{video.width}")
    for name, values in episode.steps.items():
        print(f"field       {name} {values.dtype} {list(values.shape[1:])}")
    annotations: Any = episode.metadata.get("annotations", ())
    for text in episode.language or annotations:
        print(f"language    {text}")
    for name, value in episode.metadata.items():
        print(f"metadata    {name} {value}"[:120])


def _inspect_store(folder: Path, verify: bool) -> None:
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
    counts = sorted(Counter(names).items())
    lines = [f"{name}: {n} episodes of {steps[name] / n:.1f} steps" for name, n in counts[:LINES]]
    return lines + ([f"and {len(counts) - LINES} more"] if len(counts) > LINES else [])


def _spread(statistics: Any) -> str:
    """The range of a field's values, 1st to 99th percentile."""
    if not statistics:
        return ""
    low, high = statistics["q01"], statistics["q99"]
    return f", 1 % {_numbers(low)}, 99 % {_numbers(high)}"


def _numbers(values: Any) -> str:
    return "[" + ", ".join(f"{x:.3g}" for x in values) + "]" if isinstance(values, list) else f"{values:.3g}"
