"""Datasets of other projects as they lie on disk or in a bucket: one table of formats, one file each.

    source = open_source("gs://bucket/droid_101/1.0.1")  # the format is recognised, or named
    for number in range(len(source)):
        episode = source[number]                          # read now, not before

A reader gives the source's own names (dots become `/`) except where a quantity is, in meaning and units, one of
DROID's.
"""

from __future__ import annotations

import difflib
import functools
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any, Protocol

from wamjax.data.embodiments import Embodiment
from wamjax.data.episode import BadEpisode, Episode, Video
from wamjax.data.hooks import Hook, through
from wamjax.data.reshape import reshape
from wamjax.data.storage import PathLike, Place
from wamjax.data.video import encode
from wamjax.errors import UserError

FORMATS = (
    "native",
    "gear",
    "lerobot",
    "rlds",
    "robomimic",
    "robotwin",
    "aloha",
    "roboarena",
    "calvin",
    "droid_raw",
    "captions",
)
"""Names of the formats and of their modules here, in the order in which they are tried.

A module has `TITLE`, `recognises(place) -> bool` and `open_dataset(place, options) -> Source`.
"""


FASTEST = 1000.0
"""Steps per second beyond which a rate is taken for damage, Hz."""


class Source(Protocol):
    """The episodes of one split of a dataset, in a fixed order."""

    @property
    def name(self) -> str:
        """What it is called."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Episode:
        """Read an episode; `BadEpisode` if it is damaged, `UserError` if the dataset as a whole is not as assumed."""


@dataclass(frozen=True)
class Listed:
    """A source that reads each episode from an entry of a list."""

    name: str
    entries: Sequence[Any]
    read: Callable[[Any], Episode]

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Episode:
        return self.read(self.entries[index])


@dataclass(frozen=True)
class Mapped:
    """A source each of whose episodes is changed, given its number, when it is read; errors as of both."""

    source: Source
    change: Callable[[Episode, int], Episode]

    @property
    def name(self) -> str:
        """That of the source."""
        return self.source.name

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Episode:
        return self.change(self.source[index], index)


@dataclass(frozen=True)
class Options:
    """What a reader may be told.

    Attributes:
        split: the split to read; formats without splits have `train` only.
        embodiment: the robot, for formats that leave the names of fields to it (GEAR).
        encode: makes videos of sources that hold pictures.
        fps: steps per second, Hz, where the source does not say or is wrong; videos without steps are brought to it.
        size: height and width that videos are brought to; None leaves them as they are.
        again: whether all videos are encoded anew.
        hooks: functions that episodes pass through before that, by their names.
    """

    split: str = "train"
    embodiment: Embodiment | None = None
    encode: Callable[..., Video] = field(default=encode)
    fps: float | None = None
    size: tuple[int, int] | None = None
    again: bool = False
    hooks: tuple[tuple[str, Hook], ...] = ()

    def only_train(self, place: Place) -> None:
        """Refuse other splits."""
        if self.split != "train":
            raise UserError(f"{place} has no split '{self.split}' but train")

    def rate(self, known: float | None, place: Place) -> float:
        """Steps per second: those asked for, or `known`."""
        if self.fps is None and known is None:
            raise UserError(f"{place} does not say how many steps a second has: give --fps")
        rate = float(known if self.fps is None else self.fps)  # type: ignore[arg-type]
        if not 0 < rate <= FASTEST:
            raise BadEpisode(f"{place} has {rate:g} steps per second: give another --fps")
        return rate


def open_source(address: Place | PathLike, format: str | None = None, options: Options = Options()) -> Source:
    """Open a dataset; its episodes are read when they are asked for.

    Args:
        address: folder or file, local or a URL such as gs://bucket/folder.
        format: one of `FORMATS`; None finds it out from what lies there.

    Raises:
        UserError: nothing there, an unknown format, or metadata that is missing or damaged.
    """
    place = Place.of(address)
    if not place.exists():
        raise UserError(f"no dataset at {place}: give the folder or file of a dataset")
    format = format or recognise(place)
    source = _module(format).open_dataset(place, options)
    if not len(source):
        raise UserError(f"{place} has no episodes of the format {format}: give the folder of a whole dataset")
    if options.hooks:
        source = Mapped(source, functools.partial(through, options.hooks))
    if options.size is not None or options.again:
        source = Mapped(source, functools.partial(_reshaped, options))
    return source


def recognise(place: Place) -> str:
    """The format of what lies there.

    Raises:
        UserError: none of `FORMATS`.
    """
    for name in FORMATS:
        if _module(name).recognises(place):
            return name
    raise UserError(f"{place} is of no known format: give its folder, or --format with one of {', '.join(FORMATS)}")


def titles() -> dict[str, str]:
    """Format -> what it is, in a few words."""
    return {name: _module(name).TITLE for name in FORMATS}


def _reshaped(options: Options, episode: Episode, _: int) -> Episode:
    """An episode whose videos are brought to one size, or encoded anew."""
    size, encode, again = options.size, options.encode, options.again
    videos = {name: reshape(video, size, None, encode, again) for name, video in episode.videos.items()}
    return replace(episode, videos=videos)


def _module(name: str) -> ModuleType:
    if name not in FORMATS:
        near = difflib.get_close_matches(name, FORMATS, 1)
        meant = f"did you mean '{near[0]}'? " if near else ""
        raise UserError(f"no format '{name}': {meant}choose {', '.join(FORMATS)}")
    return importlib.import_module(f"{__name__}.{name}")
