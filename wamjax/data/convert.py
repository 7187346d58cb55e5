"""From any source of episodes to the native store, shard by shard, so that an interrupted conversion goes on."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wamjax.data.episode import JSON, BadEpisode, Episode
from wamjax.data.files import write_json
from wamjax.data.readers import Source
from wamjax.data.storage import PathLike, Place, read_json
from wamjax.data.store import finish, finished_shard, schema, write_shard
from wamjax.errors import UserError

SHARD_EPISODES = 64
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """A shard of a conversion: its name, and the source's episodes from `start` to before `stop`."""

    name: str
    start: int
    stop: int


@dataclass(frozen=True)
class Writer:
    """Writes the shards of a conversion; picklable.

    Attributes:
        destination, split: of the store.
        expected: what sound episodes have in common.
    """

    destination: str
    split: str
    expected: Mapping[str, Any]

    def __call__(self, source: Source, part: Part) -> None:
        """Writes a shard, unless it is there."""
        numbers = range(part.start, part.stop)
        write_shard(self.destination, self.split, part.name, sound(source, numbers, dict(self.expected)))


Run = Callable[[Source, Writer, Sequence[Part]], None]
"""Has all parts of a conversion written, in whatever order and by whomever."""


def in_turn(source: Source, writer: Writer, parts: Sequence[Part]) -> None:
    """One part after the other, by this process."""
    for part in parts:
        writer(source, part)


def to_store(
    source: Source,
    destination: PathLike,
    *,
    split: str = "train",
    name: str = "part",
    settings: Mapping[str, JSON] | None = None,
    run: Run = in_turn,
) -> int:
    """Write a source as one split of a store; returns the split's number of episodes.

    Episodes that are damaged, or that have other fields, cameras or another frame rate than the first sound one, are
    left out, and logged. `settings` are whatever the result depends on: only with equal ones does an interrupted
    conversion go on. `run` says who writes the shards, whose bytes do not depend on that.

    Raises:
        UserError: no episode is sound, the split holds or was begun with something else, or the disk is full.
    """
    _begin(Path(destination), split, {"episodes": len(source), "name": source.name, **(settings or {})})
    starts = range(0, len(source), SHARD_EPISODES)
    every = [Part(f"{name}-{start:06d}", start, min(start + SHARD_EPISODES, len(source))) for start in starts]
    if missing := [part for part in every if not finished_shard(destination, split, part.name)]:
        run(source, Writer(os.fspath(destination), split, _first_schema(source)), missing)
    if missing := [part for part in every if not finished_shard(destination, split, part.name)]:
        raise UserError(f"{len(missing)} shards of {destination} are not written: run the same command again to go on")
    return int(finish(destination)["splits"][split]["episodes"])


def _begin(folder: Path, split: str, settings: dict[str, JSON]) -> None:
    """Note what is converted, or compare it with what was noted when that began."""
    file = folder / f"conversion-{split}.json"
    if file.exists():
        begun = read_json(Place.of(file))
        known = begun if isinstance(begun, dict) else {}
        both = [(key, known.get(key), settings.get(key)) for key in {**known, **settings}]
        if other := [f"{key} {then}, now {now}" for key, then, now in both if then != now]:
            raise UserError(f"{folder} was begun with {'; '.join(other)}: delete it or write elsewhere")
    elif any(folder.glob(f"{split}-*")):
        raise UserError(f"{folder} holds a split '{split}' already: write elsewhere")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(file, settings)


def sound(source: Source, numbers: range, expected: dict[str, Any] | None = None) -> Iterator[Episode]:
    """The episodes that can be read and look like `expected`; the others are logged."""
    for number in numbers:
        try:
            episode = source[number]
            found = schema(episode)
            if expected is not None and found != expected:
                other = [f"{key} {found[key]} for {expected[key]}" for key in found if found[key] != expected[key]]
                raise BadEpisode(f"it differs from the first: {'; '.join(other)}")
        except BadEpisode as error:
            _log.warning("episode %d is left out: %s", number, error)
        else:
            yield episode


def _first_schema(source: Source) -> dict[str, Any]:
    """Fields, cameras and frame rate of the first sound episode."""
    why: BadEpisode | None = None
    for number in range(len(source)):
        try:
            return schema(source[number])
        except BadEpisode as error:
            why = why or error
    raise UserError(f"none of the {len(source)} episodes of {source.name} can be used; the first: {why}")
