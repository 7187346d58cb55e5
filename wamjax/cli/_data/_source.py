"""Options that say how to read a dataset of any format, and the source that they mean."""

from __future__ import annotations

import argparse
import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from wamjax.data.episode import Video
    from wamjax.data.readers import Source

CRF = 18  # `video.CRF`, which importing would load video libraries for --help


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("--format", metavar="FORMAT", help="of the source, where it is not recognised")
    parser.add_argument("--fps", type=float, metavar="HZ", help="steps per second, where the source does not say")
    parser.add_argument("--split", default="train", help="of the source (train)")
    parser.add_argument("--embodiment", metavar="ROBOT", help="for GEAR: name, dotted module or .py file")


def add_gear_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares what both directions between GEAR and the native store are told."""
    parser.add_argument("source", metavar="SOURCE", help="dataset folder to read")
    parser.add_argument("out", metavar="OUT", help="dataset folder to write")
    parser.add_argument("--embodiment", required=True, metavar="ROBOT", help="name, dotted module or .py file")


def open_shown(address: str, args: argparse.Namespace) -> Source:
    """The dataset at an address, for looking at it: pictures that are no video stay what they are."""
    from wamjax.data.video import unencoded

    return _open(address, args, unencoded)


def open_source(address: str, args: argparse.Namespace) -> Source:
    """The dataset at an address, all videos, encoded as the options say."""
    from wamjax.data.video import encode

    encoding = functools.partial(encode, crf=getattr(args, "crf", CRF), fast=getattr(args, "fast", False))
    return _open(address, args, encoding)


def _open(address: str, args: argparse.Namespace, encode: Callable[..., Video]) -> Source:
    from wamjax.data import embodiments, hooks, readers

    options = readers.Options(
        split=args.split,
        embodiment=embodiments.load(args.embodiment) if args.embodiment else None,
        encode=encode,
        fps=args.fps,
        size=_size(args.size) if getattr(args, "size", None) else None,
        again=getattr(args, "fast", False),
        hooks=tuple((name, hooks.function(name, "hook")) for name in getattr(args, "map", ())),
    )
    return readers.open_source(address, args.format, options)


def _size(text: str) -> tuple[int, int]:
    from wamjax.errors import UserError

    height, _, width = text.partition("x")
    if not (height.isdigit() and width.isdigit() and int(height) and int(width)):
        raise UserError(f"--size {text}: give height and width, such as 180x320")
    return int(height), int(width)
