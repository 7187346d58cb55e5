"""Look for faults in every episode: missing, black and frozen cameras, jumps, stuck joints, idleness, wrong times, ….

    wamjax data quality runs/droid --out runs/droid_quality.jsonl --ranges runs/droid_sound.json
    wamjax data quality runs/droid --set black=12 --check my_checks.py:blurred
    wamjax train … --set data.selection.ranges=runs/droid_sound.json

`--ranges` writes the episodes without a flag as ranges of steps, which training can be confined to. Own checks are
functions (Episode, Thresholds) -> flags; see wamjax/data/quality.py.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from wamjax.cli._data._source import add_source_arguments, open_shown

if TYPE_CHECKING:
    from wamjax.data.quality import Report

HELP = "look for faults in every episode"

LINES = 20  # episodes that are listed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares its options."""
    parser.add_argument("data", metavar="DATA", help="dataset folder or file, local or a URL such as gs://…")
    parser.add_argument("--out", metavar="FILE", help="write a line of JSON per episode")
    parser.add_argument("--ranges", metavar="FILE", help="write the episodes without a flag, for data.selection.ranges")
    parser.add_argument("--check", action="append", default=[], metavar="CHECK", help="one more: file.py:function")
    parser.add_argument("--skip", action="append", default=[], metavar="CHECK", help="one less, such as pictures")
    parser.add_argument(
        "--set", metavar="KEY=VALUE", dest="overrides", action="append", default=[], help="change a threshold"
    )
    add_source_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Runs it."""
    from rich.console import Console
    from rich.progress import track

    from wamjax import config as configuration
    from wamjax.data import quality
    from wamjax.data.files import write_json
    from wamjax.errors import UserError

    if unknown := set(args.skip) - set(quality.CHECKS):
        raise UserError(f"--skip {min(unknown)}: choose among {', '.join(quality.CHECKS)}")
    table = configuration.override(configuration.to_dict(quality.Thresholds()), args.overrides)
    thresholds = configuration.build(quality.Thresholds, table)
    checks = [quality.named(name) for name in (*quality.CHECKS, *args.check) if name not in args.skip]
    source = open_shown(args.data, args)
    found = quality.examine(source, checks, thresholds)
    reports = list(track(found, "looking", total=len(source), console=Console(stderr=True)))
    print("\n".join(_lines(reports)))
    if args.out:
        lines = [json.dumps(dataclasses.asdict(report)) + "\n" for report in reports]
        Path(args.out).write_text("".join(lines))
        print(f"wrote {args.out}")
    if args.ranges:
        sound = {report.name: [[0, report.steps]] for report in reports if not report.flags}
        if "" in sound:
            raise UserError("episodes have no names (metadata 'source') to call them by: write the dataset again")
        write_json(Path(args.ranges), sound)
        print(f"wrote {args.ranges}: {len(sound)} of {len(reports)} episodes")


def _lines(reports: list[Report]) -> list[str]:
    """How often there is which flag, and the episodes that have some."""
    flagged = [report for report in reports if report.flags]
    kinds = Counter(kind for report in flagged for kind in {flag.kind for flag in report.flags})
    lines = [f"{len(flagged)} of {len(reports)} episodes have flags"]
    lines += [f"{kind:<12}{count:6d} episodes" for kind, count in kinds.most_common()]
    for report in flagged[:LINES]:
        lines.append(f"episode {report.episode}: {'; '.join(map(str, report.flags))}")
    return lines + ([f"and {len(flagged) - LINES} more"] if len(flagged) > LINES else [])
