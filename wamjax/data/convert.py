"""From any source of episodes to the native store, shard by shard, so that an interrupted conversion goes on."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from wamjax.data.episode import BadEpisode, Episode
from wamjax.data.readers import Source
from wamjax.data.storage import PathLike
from wamjax.data.store import finish, finished_shard, schema, write_shard
from wamjax.errors import UserError

SHARD_EPISODES = 64
_log = logging.getLogger(__name__)


def to_store(source: Source, destination: PathLike, *, split: str = "train", name: str = "part") -> int:
    """Write a source as one split of a store; returns the split's number of episodes.

    Episodes that are damaged, or that have other fields, cameras or another frame rate than the first sound one, are
    left out, and logged.

    Raises:
        UserError: no episode is sound, or the disk is full.
    """
    expected: dict[str, Any] | None = None
    for start in range(0, len(source), SHARD_EPISODES):
        shard = f"{name}-{start:06d}"
        if not finished_shard(destination, split, shard):
            expected = expected or _first_schema(source)
            numbers = range(start, min(start + SHARD_EPISODES, len(source)))
            write_shard(destination, split, shard, sound(source, numbers, expected))
    return int(finish(destination)["splits"][split]["episodes"])


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
    raise UserError(f"none of the {len(source)} episodes of {source.name} can be read; the first: {why}")
