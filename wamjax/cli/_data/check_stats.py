"""Compare the statistics that a run's newest checkpoint carries with those of a dataset, or those of two datasets.

    wamjax data check-stats runs/demo/joint runs/other/data

What a policy sees is scaled so that the 1 % and 99 % quantiles of its training data become -1 and 1. A dataset whose
quantiles lie elsewhere is seen shifted, stretched or cut off. Exit code 1 where something disagrees.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wamjax.data.compare import Difference
    from wamjax.data.store import EpisodeStore

HELP = "compare a checkpoint's statistics with a dataset's"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares its options."""
    parser.add_argument("known", metavar="RUN", help="run folder of `wamjax train`, or a dataset")
    parser.add_argument("data", metavar="DATA", help="dataset to compare with it")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=0.1,
        metavar="X",
        help="how far quantiles may lie apart, in ranges from the 1 %% to the 99 %% quantile (0.1)",
    )
    parser.add_argument("--json", metavar="FILE", help="also write the differences there")


def run(args: argparse.Namespace) -> int:
    """Runs it."""
    from wamjax.data.compare import beyond, differences, fields
    from wamjax.data.files import write_json
    from wamjax.data.opened import open_dataset
    from wamjax.errors import UserError

    if not args.tolerance > 0:
        raise UserError(f"--tolerance {args.tolerance}: give a positive number")
    store = open_dataset(args.data)
    known, found = _both(args.known, store)
    apart = differences(known, found, args.tolerance)
    bounds = dict(fields(known))
    cut_off = beyond(store, {_stored(path): pairs for path, pairs in bounds.items()})
    for one in apart:
        shares = cut_off.get(_stored(one.field))
        print(_line(one, None if shares is None or one.index is None else float(shares[one.index])))
    numbers = sum(map(len, bounds.values()))
    print(f"{len(apart)} differences beyond {args.tolerance:g} ranges, of {numbers} numbers in {len(bounds)} fields")
    if args.json:
        write_json(Path(args.json), [dataclasses.asdict(one) for one in apart])
    return 1 if apart else 0


def _both(known: str, store: EpisodeStore) -> tuple[Any, Any]:
    """The statistics of a run and those that it would have of the dataset; or those of two datasets."""
    from wamjax.cli import _experiment
    from wamjax.data.opened import open_dataset

    if not (Path(known) / "checkpoints").is_dir():
        return open_dataset(known).statistics, store.statistics
    return _experiment.statistics(known, store)


def _stored(path: str) -> str:
    """The dataset's name of a field, where the statistics are of its own values: without the part that it is of."""
    for part in ("state/", "action/"):
        path = path.removeprefix(part)
    return path


def _line(one: Difference, share: float | None) -> str:
    if one.index is None:
        return f"{one.field}: {one.hint}"
    cut = f", {share:.1%} of the dataset's values are cut off" if share is not None else ""
    hint = f"; {one.hint}" if one.hint else ""
    moved = f"1 % quantile {one.low:+.2f}, 99 % quantile {one.high:+.2f} ranges"
    return f"{one.field}[{one.index}]: {moved}{cut}{hint}"
