"""Write a dataset of any format as a native store or as LeRobot v3.0.

    wamjax data convert gs://bucket/droid_101/1.0.1 runs/droid
    wamjax data convert runs/demo/data lerobot/demo --to lerobot
    wamjax data convert gs://bucket/droid_101/1.0.1 runs/droid --link

    wamjax data convert /mnt/droid /mnt/store --runner DataflowRunner --beam=--project=mine --beam=--region=us-east1

A conversion to the native store goes on where it stopped; damaged episodes are left out, and named. It may be the work
of several processes, or of a fleet under Apache Beam (pip install 'wamjax[beam]'), whose workers see OUT under the same
path; the result is the same, byte for byte. --beam=FLAG hands a flag of its own to Beam, as often as there are flags.

--map captions.py:caption, or package.module:caption, calls a function of yours with every episode. It returns the
episode to write, or None to leave it out; several run in the order given.

--link writes a store that is trained on like any other, but its pictures stay in SOURCE, and are read there.
"""

from __future__ import annotations

import argparse
import functools
from typing import TYPE_CHECKING

from wamjax.cli._data._source import CRF, add_source_arguments, open_source

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.progress import Progress

    from wamjax.data.convert import Run
    from wamjax.data.episode import Episode
    from wamjax.data.readers import Source

HELP = "write a dataset of any format as a native store or as LeRobot v3.0"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares its options."""
    parser.add_argument("source", metavar="SOURCE", help="dataset folder or file, local or a URL such as gs://…")
    parser.add_argument("out", metavar="OUT", help="dataset folder to write")
    parser.add_argument("--to", choices=("native", "lerobot"), default="native", help="what to write (native)")
    parser.add_argument(
        "--crf", type=int, default=CRF, metavar="N", help="quality of pictures that become video (18); 0 is lossless"
    )
    parser.add_argument("--size", metavar="HxW", help="height and width that videos are brought to, such as 180x320")
    parser.add_argument(
        "--fast", action="store_true", help="encode every video anew, so that clips of it decode in a third of the time"
    )
    parser.add_argument("--link", action="store_true", help="leave all pictures where they are, and read them there")
    add_source_arguments(parser)
    parser.add_argument(
        "--map", action="append", default=[], metavar="HOOK", help="pass every episode through a function (repeatable)"
    )
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="of this machine, for the native store")
    parser.add_argument("--runner", metavar="RUNNER", help="of Apache Beam: DirectRunner, DataflowRunner, …")
    parser.add_argument("--beam", action="append", default=[], metavar="=FLAG", help="a flag for Beam (repeatable)")


def run(args: argparse.Namespace) -> None:
    """Runs it."""
    from rich.console import Console
    from rich.progress import Progress

    from wamjax.data import convert, hooks, lerobot_export

    if args.link:
        _link(args)
        return
    source = open_source(args.source, args)
    settings = {key: getattr(args, key) for key in ("source", "split", "crf", "size", "fast", "fps", "embodiment")}
    settings["map"] = [hooks.version(name) for name in args.map] or None
    with Progress(console=Console(stderr=True)) as bars:
        watched = _Watched(source, bars)
        if args.to == "lerobot":
            count = lerobot_export.export_dataset(watched, args.out)
        else:
            by = _workers(args, watched, functools.partial(open_source, args.source, args))
            count = convert.to_store(watched, args.out, split=args.split, settings=settings, run=by)
        watched.finish()
    print(f"dataset     {args.out}: {count} of {len(source)} episodes")


def _link(args: argparse.Namespace) -> None:
    """The same with the pictures left where they are."""
    from rich.console import Console
    from rich.progress import Progress

    from wamjax.data import linked
    from wamjax.data.storage import Place
    from wamjax.errors import UserError

    if args.to != "native" or args.size or args.fast or args.crf != CRF or args.map:
        raise UserError("--link leaves episodes as they are: leave out --to, --size, --fast, --crf and --map")
    place = Place.of(args.source)
    origin = linked.Origin(str(place), args.format, args.split, args.fps, args.embodiment)
    opened = functools.partial(linked.open_numbered, origin)
    source = opened()
    with Progress(console=Console(stderr=True)) as bars:
        watched = _Watched(source, bars)
        count = linked.link(origin, args.out, source=watched, run=_workers(args, watched, opened))
        watched.finish()
    print(f"dataset     {args.out}: {count} of {len(source)} episodes, with their pictures in {origin.address}")


def _workers(args: argparse.Namespace, watched: _Watched, opened: Callable[[], Source]) -> Run:
    """Who writes the shards."""
    from wamjax.data import convert, fleet
    from wamjax.errors import UserError

    if args.processes < 1 or (args.processes > 1 and args.runner):
        raise UserError(f"--processes {args.processes}: give at least 1, and not beside --runner")
    if args.beam and not args.runner:
        raise UserError("--beam needs a --runner, for instance --runner DirectRunner")
    if args.runner:
        return fleet.on_beam(opened, [f"--runner={args.runner}", *args.beam])
    return convert.in_turn if args.processes == 1 else fleet.in_processes(opened, args.processes, watched.advance)


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

    def advance(self, episodes: int) -> None:
        self._bars.advance(self._bar, episodes)

    def finish(self) -> None:
        self._bars.update(self._bar, completed=len(self))
