"""Several datasets as one, each drawn with a weight of its own.

wamjax train --data A=0.7 --data B=0.3
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from wamjax.data import statistics
from wamjax.data.episode import JSON, Episode
from wamjax.data.opened import open_dataset
from wamjax.data.sampling import shares
from wamjax.data.step_files import Steps
from wamjax.data.storage import PathLike
from wamjax.data.store import EpisodeStore
from wamjax.errors import UserError


class Mixture:
    """The episodes of several stores one after the other; most of what an `EpisodeStore` has.

    Attributes:
        stores, weights: the parts; of every so many samples, so many are of each.
        folder, name, split: where they are, what they are called, which split it is of.
        lengths: steps of each episode, int64 (episodes,).
        fields, cameras: those that all parts have, as the first has them.
        fps: of the first, steps per second; clips and films say which rate they have.
        fingerprint: of the parts and their weights. splits: those that some part has.
    """

    def __init__(self, stores: Sequence[EpisodeStore], weights: Sequence[float]):
        if len(stores) != len(weights):
            raise UserError(f"{len(stores)} datasets and {len(weights)} weights: give each dataset one")
        first = stores[0]
        self.stores, self.weights = tuple(stores), tuple(weights)
        self.folder = ", ".join(str(store.folder) for store in stores)
        self.name = "+".join(store.name for store in stores)
        self.split, self.fps = first.split, first.fps
        self.lengths = np.concatenate([store.lengths for store in stores])
        self.fields = {k: v for k, v in first.fields.items() if all(k in store.fields for store in stores)}
        self.cameras = {k: v for k, v in first.cameras.items() if all(k in store.cameras for store in stores)}
        self.splits = tuple(dict.fromkeys(split for store in stores for split in store.splits))
        self.fingerprint = fingerprint([store.fingerprint for store in stores], weights)
        self._starts = np.cumsum([0] + [len(store) for store in stores])

    def __len__(self) -> int:
        """Number of episodes."""
        return len(self.lengths)

    def __getitem__(self, index: int) -> Episode:
        """Read an episode; see `EpisodeStore`."""
        store, number = self._place(index)
        return store[number]

    def all_steps(self) -> Iterator[Steps]:
        """The step arrays of every episode in order; see `EpisodeStore`."""
        for store in self.stores:
            yield from store.all_steps()

    def metadata(self, index: int) -> dict[str, JSON]:
        """The metadata of an episode, without reading it."""
        store, number = self._place(index)
        return store.metadata(number)

    @functools.cached_property
    def statistics(self) -> statistics.Statistics:
        """Of the fields that all parts have, each part counting by its weight, whatever its number of steps.

        Quantiles of a mixture do not follow from those of its parts: every training episode is read, once. Fields of
        other sizes in some part have none.
        """
        shapes = [{name: field["shape"] for name, field in store.fields.items()} for store in self.stores]
        alike = [name for name in self.fields if all(each[name] == shapes[0][name] for each in shapes)]
        steps = [int(store.lengths.sum()) for store in self.stores]
        read = [({name: found[name] for name in alike} for found in store.all_steps()) for store in self.stores]
        return statistics.mixed(read, steps, shares(self.weights))

    def _place(self, index: int) -> tuple[EpisodeStore, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"episode {index} of {len(self)}")
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self.stores[part], int(index - self._starts[part])


Dataset = EpisodeStore | Mixture


def parts(store: Dataset) -> list[tuple[EpisodeStore, float]]:
    """The stores of a mixture and their weights, or the one store there is."""
    return list(zip(store.stores, store.weights, strict=True)) if isinstance(store, Mixture) else [(store, 1.0)]


def open_stores(addresses: Sequence[str]) -> Dataset:
    """The training split of a dataset, or of several: FOLDER, or FOLDER=WEIGHT (1 where there is none).

    Raises:
        UserError: a dataset that cannot be opened, or weights that are no ratios.
    """
    return mixed([weighted(address) for address in addresses])


def mixed(folders: Sequence[tuple[PathLike, float]]) -> Dataset:
    """The training split of the dataset, or of several with their weights; errors as of `open_stores`."""
    stores = [open_dataset(folder) for folder, _ in folders]
    return stores[0] if len(stores) == 1 else Mixture(stores, [weight for _, weight in folders])


def fingerprint(parts: Sequence[str], weights: Sequence[float]) -> str:
    """Of what is mixed, from the fingerprints of its parts and their weights; that of the one part there is."""
    lines = "".join(f"{ratio}:{part}\n" for ratio, part in zip(shares(weights), parts, strict=True))
    return hashlib.sha256(lines.encode()).hexdigest() if len(parts) > 1 else parts[0]


def of_split(store: Dataset, split: str) -> Dataset | None:
    """Another split of the same datasets, of those that have it; None where none has."""
    there = [(open_dataset(one.folder, split), weight) for one, weight in parts(store) if split in one.splits]
    if len(there) < 2:
        return there[0][0] if there else None
    return Mixture(*zip(*there, strict=True))


def weighted(address: str) -> tuple[str, float]:
    """Folder and weight of FOLDER=WEIGHT, or of FOLDER (1)."""
    folder, equals, weight = address.rpartition("=")
    try:
        return (folder, float(weight)) if equals and not Path(address).exists() else (address, 1.0)
    except ValueError:
        return address, 1.0
