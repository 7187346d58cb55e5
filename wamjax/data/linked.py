"""Stores that leave pictures where they are: the steps of a dataset of any format, and where its episodes lie.

A linked store has the checksums, statistics and selection of any store, but its records have videos without bytes.
`link-<split>.json` says how the source is opened, and an episode's metadata `source_episode` which of the source's it
is; pictures are read there, and only those that a sample shows are decoded.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from wamjax.data import embodiments
from wamjax.data.convert import Run, in_turn, to_store
from wamjax.data.episode import JSON, BadEpisode, Episode, Video, pack
from wamjax.data.files import read_sealed, write_sealed
from wamjax.data.readers import Mapped, Options, Source, open_source
from wamjax.data.records import PathLike
from wamjax.data.store import EpisodeStore
from wamjax.data.video import unencoded
from wamjax.errors import UserError

NUMBER = "source_episode"
"""Metadata: the number of the episode in the source."""


@dataclass(frozen=True)
class Origin:
    """Where pictures lie: what `readers.open_source` is told, and the robot by its name, for formats that need one."""

    address: str
    format: str | None = None
    split: str = "train"
    fps: float | None = None
    embodiment: str | None = None

    def open(self, encode: Callable[..., Video] = unencoded) -> Source:
        """The source; errors as of `open_source`."""
        robot = embodiments.load(self.embodiment) if self.embodiment else None
        options = Options(split=self.split, embodiment=robot, encode=encode, fps=self.fps)
        return open_source(self.address, self.format, options)


def open_numbered(origin: Origin) -> Source:
    """What `link` writes of a source: episodes with their numbers and without what their pictures are."""
    return Mapped(origin.open(), _without_pictures)


def link(origin: Origin, destination: PathLike, *, source: Source | None = None, run: Run = in_turn) -> int:
    """Writes a store that links to a dataset; arguments, result and errors are those of `convert.to_store`.

    Every episode is read, and of each camera the first picture. `source` is `open_numbered(origin)`, if that is open.
    """
    said: dict[str, JSON] = asdict(origin)
    settings: Mapping[str, JSON] = {"link": said}
    numbered = open_numbered(origin) if source is None else source
    count = to_store(numbered, destination, split=origin.split, settings=settings, run=run)
    write_sealed(_file(destination, origin.split), said)
    return count


class LinkedStore(EpisodeStore):
    """An `EpisodeStore` whose pictures are read from elsewhere; `encode` makes them videos, by default they are not.

    Attributes:
        origin: where they lie.
    """

    def __init__(self, folder: PathLike, split: str = "train", encode: Callable[..., Video] = unencoded):
        super().__init__(folder, split)
        self._encode = encode
        try:
            self.origin = Origin(**read_sealed(_file(folder, split)))
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{_file(folder, split)} is damaged ({error}): link the dataset again") from error

    def __getitem__(self, index: int) -> Episode:
        """Read episode `index`, 0 .. len - 1.

        Raises:
            BadEpisode: the record is damaged, or the source's episode is, or is no longer what it was.
            UserError: the source cannot be opened.
        """
        known = super().__getitem__(index)
        number: Any = known.metadata[NUMBER]
        if not number < len(self._source):
            raise BadEpisode(f"{self.origin.address} has {len(self._source)} episodes, not {number + 1}: link it again")
        found = self._source[number]
        if pack(_without_pictures(found, number)) != pack(known):
            raise BadEpisode(
                f"episode {number} of {self.origin.address} has changed since it was linked: link it again"
            )
        return replace(known, videos=found.videos)

    @functools.cached_property
    def _source(self) -> Source:
        return self.origin.open(self._encode)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "_source"}  # every process opens its own


def open_store(folder: PathLike, split: str = "train", encode: Callable[..., Video] = unencoded) -> EpisodeStore:
    """The store in a folder, with its pictures wherever they lie; errors as of `EpisodeStore`."""
    linked = _file(folder, split).exists()
    return LinkedStore(folder, split, encode) if linked else EpisodeStore(folder, split)


def _without_pictures(episode: Episode, number: int) -> Episode:
    videos = {name: Video(b"", video.frames, video.height, video.width) for name, video in episode.videos.items()}
    return replace(episode, videos=videos, metadata={**episode.metadata, NUMBER: number})


def _file(folder: PathLike, split: str) -> Path:
    return Path(folder) / f"link-{split}.json"
