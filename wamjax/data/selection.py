"""Which steps of a dataset samples may begin at: sound episodes, ranges worth keeping, no dropped steps.

What is kept is a few numbers per run of consecutive steps (`Runs`), so an index of a hundred thousand episodes is a few
megabytes, and a sample is found in it by bisection.

Sources: ranges and the rule of idle steps are openpi's (`examples/droid/compute_droid_nonidle_ranges.py`,
`droid_rlds_dataset.py`); dropped steps are GR00T's and DreamZero's (`meta/step_filter.jsonl`).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from wamjax.data.episode import JSON, BadEpisode
from wamjax.data.storage import MALFORMED, brief
from wamjax.data.store import EpisodeStore
from wamjax.errors import UserError

DROPPED = "dropped_steps"
"""Episode metadata: [[first, last + 1], ...] of steps that are not to be sampled."""

CHANGE = 1e-3  # a joint whose velocity changes by less from one step to the next is idle
IDLE, MOVING, TAIL = 7, 16, 10  # steps: an idle run goes, a moving run stays from so many on; so many go at its end

Pairs = Sequence[tuple[int, int]]
Table = Mapping[str, Pairs]


@dataclass(frozen=True)
class Selection:
    """Which steps samples begin at; frames and actions may reach beyond them.

    Attributes:
        ranges: JSON file of openpi's form {"recording_folderpath--file_path": [[first, last + 1], ...]}; episodes that
            it does not name (nor their metadata `source`) are left out. Empty: everything.
        success: only episodes whose metadata `success` is true.
        dropped: leave out steps that the metadata `dropped_steps` lists.
        min_steps: episodes shorter than this are left out.
    """

    ranges: str = ""
    success: bool = False
    dropped: bool = True
    min_steps: int = 1

    @property
    def digest(self) -> str:
        """SHA-256 of the file of ranges; "" where there is none."""
        return hashlib.sha256(_bytes(self.ranges)).hexdigest() if self.ranges else ""


@dataclass(frozen=True)
class Runs:
    """Runs of consecutive steps of a dataset's episodes, in ascending order; step n is the n-th of all of them.

    Attributes:
        episode: which one each run lies in. first: its first step there.
        ends: how many steps there are up to its end, of this run and all before it.
    """

    episode: Int[np.ndarray, " r"]
    first: Int[np.ndarray, " r"]
    ends: Int[np.ndarray, " r"]

    @classmethod
    def of(cls, episode: np.ndarray, first: np.ndarray, stop: np.ndarray) -> Runs:
        """From first steps and the ones after the last; empty runs are left out."""
        some = stop > first
        episode, first, stop = (np.asarray(each, np.int64)[some] for each in (episode, first, stop))
        return cls(episode.astype(np.int32), first.astype(np.int32), np.cumsum(stop - first))

    def __len__(self) -> int:
        """Number of steps."""
        return int(self.ends[-1]) if len(self.ends) else 0

    def locate(self, number: int) -> tuple[int, int]:
        """Episode and step of the `number`-th step."""
        run = int(np.searchsorted(self.ends, number, side="right"))
        return int(self.episode[run]), int(self._stops[run] - (self.ends[run] - number))

    def within(self, episode: int) -> range:
        """The numbers of the steps of an episode."""
        first, last = (int(np.searchsorted(self.episode, episode, side=side)) for side in ("left", "right"))
        begin, end = (int(self.ends[run - 1]) if run else 0 for run in (first, last))
        return range(begin, end)

    def before(self, limits: Int[np.ndarray, " e"]) -> Runs:
        """Those steps that come before a limit, given for every episode."""
        return Runs.of(self.episode, self.first, np.minimum(self._stops, limits[self.episode]))

    @functools.cached_property
    def _stops(self) -> Int[np.ndarray, " r"]:
        return self.first + np.diff(self.ends, prepend=0)


def kept(store: EpisodeStore, selection: Selection) -> Runs:
    """The steps of a store that are selected.

    Raises:
        UserError: a file of ranges, or metadata of dropped steps, that is missing or damaged.
    """
    lengths = np.asarray(store.lengths, np.int64)
    table = _table(selection.ranges) if selection.ranges else None
    counts = np.zeros(len(lengths), np.int64)
    flat: list[tuple[int, int]] = []
    for number, length in enumerate(lengths.tolist()):
        try:
            pairs = _pairs(store.metadata(number), length, selection, table)
        except MALFORMED as error:
            raise UserError(
                f"'{DROPPED}' of episode {number} in {store.folder} is no list of [first, last + 1] ({brief(error)}): "
                "write the dataset again, or set data.selection.dropped=False"
            ) from error
        counts[number] = len(pairs)
        flat += pairs
    ends = np.array(flat, np.int64).reshape(-1, 2)
    episode = np.repeat(np.arange(len(lengths)), counts)
    return Runs.of(episode, ends[:, 0], np.minimum(ends[:, 1], lengths[episode]))


def idle(velocities: Float[np.ndarray, "t a"]) -> Bool[np.ndarray, " t"]:
    """Steps at which no joint's velocity changes: openpi's test, by which a steady motion is idle too."""
    still = (np.abs(np.diff(velocities, axis=0)) < CHANGE).all(-1)
    return np.concatenate([[False], still])


def moving(velocities: Float[np.ndarray, "t a"]) -> list[tuple[int, int]]:
    """The ranges of an episode that openpi keeps: long runs between long idle ones, without their last steps."""
    keep = np.ones(len(velocities), bool)
    for first, stop in stretches(idle(velocities)):
        keep[first:stop] &= stop - first < IDLE
    return [(first, stop - TAIL) for first, stop in stretches(keep) if stop - first >= MOVING]


def moving_ranges(store: EpisodeStore, field: str) -> Iterator[tuple[str, list[tuple[int, int]]]]:
    """Name and ranges of every sound episode, by the step field of its joint velocities; the file's entries.

    Raises:
        UserError: the store lacks the field.
    """
    if field not in store.fields:
        raise UserError(f"no step field '{field}' in {store.folder}: choose among {', '.join(store.fields) or 'none'}")
    for number in range(len(store)):
        called = names(store.metadata(number))
        if not called:
            raise UserError(f"episode {number} in {store.folder} has no name (metadata 'source'): write it again")
        with contextlib.suppress(BadEpisode):
            velocities = store[number].steps[field]
            yield called[0], moving(velocities.reshape(len(velocities), -1))


def names(metadata: Mapping[str, JSON]) -> tuple[str, ...]:
    """What an episode may be called in a file of ranges: as openpi does where it is of DROID, and by its source."""
    droid = [metadata.get(key) for key in ("recording_folderpath", "file_path")]
    found = ("--".join(map(str, droid)) if all(droid) else None, metadata.get("source"))
    return tuple(str(name) for name in found if name)


def pairs_of(steps: Sequence[int]) -> list[list[int]]:
    """Steps, in any order, as [first, last + 1] of their runs."""
    mask = np.zeros(max(steps, default=-1) + 1, bool)
    mask[list(steps)] = True
    return [list(pair) for pair in stretches(mask)]


def _pairs(metadata: Mapping[str, JSON], length: int, selection: Selection, table: Table | None) -> Pairs:
    """The ranges of an episode that are selected, ascending and apart."""
    if length < selection.min_steps or (selection.success and metadata.get("success") is not True):
        return ()
    dropped: Any = metadata.get(DROPPED) if selection.dropped else None
    named = next((table[name] for name in names(metadata) if name in table), ()) if table is not None else None
    whole = ((0, length),) if named is None else named
    if not dropped:
        return whole
    mask = np.zeros(length, bool)
    for first, stop in whole:
        mask[first:stop] = True
    for first, stop in dropped:
        mask[first:stop] = False
    return stretches(mask)


def stretches(mask: Bool[np.ndarray, " t"]) -> list[tuple[int, int]]:
    """First and last + 1 of every run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]])))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _table(path: str) -> Table:
    """The ranges of a file, by the episode's name: ascending and apart."""
    try:
        content = json.loads(_bytes(path))
        table = {}
        for name, pairs in content.items():
            found = sorted((int(first), int(stop)) for first, stop in pairs)
            later = [first for first, _ in found[1:]]
            if any(first < 0 for first, _ in found) or any(
                stop > first for (_, stop), first in zip(found, later, strict=False)
            ):
                raise ValueError(f"the ranges of {name!r} overlap, or begin before 0")
            table[str(name)] = tuple(found)
        return table
    except MALFORMED as error:
        raise UserError(f"{path} is no table of ranges to keep ({brief(error)}): write it again") from error


def _bytes(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"data.selection.ranges={path} cannot be read ({brief(error)}): give another file") from error
