"""Training straight from datasets of other formats, where their metadata say what a store's do.

Every sample reads its episode anew from the dataset's own files; the native store is faster, and has checksums.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from wamjax.data import statistics
from wamjax.data.episode import JSON, BadEpisode, Episode
from wamjax.data.linked import open_store
from wamjax.data.readers import Options, Source, native, open_source
from wamjax.data.storage import PathLike, Place
from wamjax.data.store import EpisodeStore, schema
from wamjax.data.video import unencoded
from wamjax.errors import UserError


@runtime_checkable
class Indexed(Source, Protocol):
    """A source that knows its episodes without reading them."""

    @property
    def lengths(self) -> np.ndarray:
        """Steps of each episode, int64 (episodes,)."""

    def metadata(self, index: int) -> dict[str, JSON]:
        """The metadata of an episode, but for what changes with its steps."""

    def steps(self, index: int) -> Mapping[str, np.ndarray]:
        """The step fields of an episode, without its videos; errors as of `source[index]`."""


class OpenedStore(EpisodeStore):
    """A dataset of another format with all that an `EpisodeStore` has; its fingerprint is of its metadata.

    Raises:
        UserError: a format whose metadata do not say enough, or a damaged first episode.
    """

    def __init__(self, address: PathLike):
        place = Place.of(address)
        source = open_source(place, options=Options(encode=unencoded))
        if not isinstance(source, Indexed):
            how = f"run `wamjax data convert {place} FOLDER`, with --link to leave its pictures where they are"
            raise UserError(f"{place} must become a store first: {how}")
        self._source: Indexed = source
        self.folder = Path(place.path) if place.is_local else str(place)
        self.name, self.split, self.splits = source.name, "train", ("train",)
        self._schema = schema(source[0])
        self.fps, self.fields = self._schema["fps"], self._schema["fields"]
        self.cameras = {name: (height, width) for name, (height, width) in self._schema["cameras"].items()}
        self.lengths = source.lengths
        told = hashlib.sha256(json.dumps(self._schema, sort_keys=True).encode())
        for file in place.find("meta/**"):
            if file.is_file():
                told.update(file.name.encode() + file.read_bytes())
        self.fingerprint = told.hexdigest()

    def __getitem__(self, index: int) -> Episode:
        """Read episode `index`, 0 .. len - 1; errors as in `EpisodeStore`."""
        if not 0 <= index < len(self):
            raise IndexError(f"episode {index} of {len(self)}")
        episode = self._source[index]
        if len(episode) != self.lengths[index] or schema(episode) != self._schema:
            raise BadEpisode(f"episode {index} in {self.folder} differs from the first in fields, cameras or rate")
        return episode

    def metadata(self, index: int) -> dict[str, JSON]:
        """See `EpisodeStore`."""
        return self._source.metadata(index)

    def all_steps(self) -> Iterator[Mapping[str, np.ndarray]]:
        """See `EpisodeStore`."""
        return (self._source.steps(index) for index in range(len(self)))

    @functools.cached_property
    def statistics(self) -> statistics.Statistics:
        """See `EpisodeStore`; computed over all steps, whatever the dataset's own statistics say."""
        return statistics.compute(self.all_steps(), int(self.lengths.sum()))

    def verify(self) -> None:
        """Never: there are no checksums."""
        raise UserError(f"{self.folder} has no checksums: run `wamjax data convert` to have some")


def open_dataset(address: PathLike, split: str = "train") -> EpisodeStore:
    """A split of a native store, linked or not, or of a dataset that is read as it is.

    Raises:
        UserError: there is none, or it must be converted first.
    """
    place = Place.of(address)
    if place.is_local and (not place.exists() or native.recognises(place)):
        return open_store(address, split)
    if split != "train":
        raise UserError(f"{place} has no split '{split}' but train: convert it to have others")
    return OpenedStore(address)
