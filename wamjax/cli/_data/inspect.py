"""Tell what a dataset of any format holds.

    wamjax data inspect runs/demo/data
    wamjax data inspect gs://bucket/droid_101/1.0.1
    wamjax data inspect runs/demo/encoded --verify
    wamjax data inspect runs/demo/data --html data.html
    wamjax data inspect runs/demo/data --rerun data.rrd

`--html` writes one page that needs no network: pictures and curves of some episodes, distributions, flags.
`--rerun` writes a recording for the Rerun viewer, or opens the viewer where no file is given; it needs wamjax[rerun].
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wamjax.cli._data._source import add_source_arguments, open_shown

if TYPE_CHECKING:
    from wamjax.data.store import EpisodeStore

HELP = "print what a dataset of any format holds"

LINES = 20  # tasks or sources that are listed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares its options."""
    parser.add_argument("data", metavar="DATA", help="dataset folder or file, local or a URL such as gs://…")
    parser.add_argument("--verify", action="store_true", help="also read every shard and compare its checksum")
    parser.add_argument("--html", metavar="FILE", help="write a page on it")
    parser.add_argument(
        "--rerun", nargs="?", const="", metavar="FILE", help="for the Rerun viewer (opened without FILE)"
    )
    parser.add_argument(
        "--episodes", type=int, metavar="N", help="the most that are read for --html (200) or --rerun (10)"
    )
    parser.add_argument(
        "--set", metavar="KEY=VALUE", dest="overrides", action="append", default=[], help="change a threshold of flags"
    )
    add_source_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Runs it."""
    from wamjax.errors import UserError

    if args.episodes is not None and args.episodes < 1:
        raise UserError(f"--episodes {args.episodes}: give a number of at least 1")
    _print(args)
    if args.html:
        _write_page(args)
    if args.rerun is not None:
        _show_episodes(args)


def _write_page(args: argparse.Namespace) -> None:
    """Look at the dataset, and say where the page lies."""
    from rich.console import Console
    from rich.progress import Progress

    from wamjax import config as configuration
    from wamjax.data import page
    from wamjax.data.quality import Thresholds

    table = configuration.override(configuration.to_dict(Thresholds()), args.overrides)
    thresholds = configuration.build(Thresholds, table)
    with Progress(console=Console(stderr=True)) as bars:
        bar = bars.add_task("looking", total=None)
        look = page.write(
            open_shown(args.data, args),
            args.html,
            thresholds=thresholds,
            examined=args.episodes or page.gather.EXAMINED,
            tell=lambda done, total: bars.update(bar, completed=done, total=total),
        )
    print(f"page        {args.html}: {len(look.flagged)} of {len(look.reports)} episodes have flags")


def _show_episodes(args: argparse.Namespace) -> None:
    """Send some episodes to the viewer, or to its file."""
    from wamjax.data import viewer

    source = open_shown(args.data, args)
    count = viewer.show(source, args.rerun or None, episodes=args.episodes or viewer.EPISODES)
    print(f"recording   {args.rerun or 'sent to the Rerun viewer'}: {count} episodes")


def _print(args: argparse.Namespace) -> None:
    """What is there, in lines."""
    from wamjax.data.readers import native
    from wamjax.data.records import BEGUN
    from wamjax.data.storage import Place

    if (Path(args.data) / BEGUN).exists():
        _inspect_encoded(Path(args.data), args.verify)
        return
    if args.format in (None, "native") and (place := Place.of(args.data)).is_local and native.recognises(place):
        _inspect_store(Path(place.path), args.verify)
        return
    source = open_shown(args.data, args)
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


def _inspect_encoded(folder: Path, verify: bool) -> None:
    from wamjax.data.latents import Encoded

    encoded = Encoded(folder)
    if verify:
        encoded.verify()
    print(f"encoded     samples at every {encoded.made_of['stride']}. step, of dataset {encoded.made_of['dataset']}")
    print(f"fingerprint {encoded.fingerprint}")
    for name, leaf in encoded.leaves.items():
        print(f"{'prompt' if leaf.prompt else 'sample':<11} {name} {leaf.kept} {list(leaf.shape)}")
    print(f"prompts     {len(encoded.texts)}")
    for split in encoded.splits:
        print(f"split       {split}: {len(encoded.records(split))} samples")


def _inspect_store(folder: Path, verify: bool) -> None:
    from wamjax.data.linked import LinkedStore, open_store

    store = open_store(folder)
    megabytes = sum(shard.stat().st_size for shard in folder.glob("*.array_record")) / 1e6
    print(f"dataset     {store.name}, {store.fps:g} steps per second, {megabytes:.1f} MB")
    print(f"fingerprint {store.fingerprint}")
    if isinstance(store, LinkedStore):
        print(f"pictures    in {store.origin.address}")
    for camera, (height, width) in store.cameras.items():
        print(f"camera      {camera} {height}x{width}")
    statistics = store.statistics
    for name, field in store.fields.items():
        print(f"field       {name} {field['dtype']} {field['shape']}{_spread(statistics.get(name))}")
    for split in store.splits:
        part = open_store(folder, split)
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
