"""Training on a dataset, or on what `wamjax data encode` made of it: whether that fits, and what the loop is fed."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from wamjax import config as configuration
from wamjax.data.latents import Encoded, EncodedReader
from wamjax.data.mixture import mixed, parts, weighted
from wamjax.data.pipeline import Bucket, stream
from wamjax.data.records import BEGUN
from wamjax.errors import UserError
from wamjax.sharding import processes
from wamjax.training.precomputed import Making, Precomputed, Shapes, read_fingerprints

if TYPE_CHECKING:
    from wamjax.cli._experiment import Experiment
    from wamjax.data.mixture import Dataset
    from wamjax.policies.contract import Params, Policy
    from wamjax.training.loop import Batches
    from wamjax.training.step import Learner

LEFT_OUT = "what the policy draws anew in every step (augmentation) is left out: it cannot be encoded"
AGAIN = "train on the dataset, or run `wamjax data encode` again"


@dataclasses.dataclass(frozen=True)
class Caches:
    """What was encoded of one dataset, or of several that are mixed.

    Attributes:
        parts: with their weights.
    """

    parts: tuple[tuple[Encoded, float], ...]

    @classmethod
    def of(cls, addresses: Sequence[str]) -> Caches | None:
        """Those at FOLDER or FOLDER=WEIGHT; None where these are datasets.

        Raises:
            UserError: an unfinished encoding, one beside a dataset, or encodings by different means.
        """
        given = [weighted(address) for address in addresses]
        encoded = [(folder, weight) for folder, weight in given if (Path(folder) / BEGUN).exists()]
        if not encoded:
            return None
        for folder, _ in given:
            if not (Path(folder) / BEGUN).exists():
                raise UserError(
                    f"--data {encoded[0][0]} is encoded, and {folder} is not: encode all datasets of a mixture, or none"
                )
        first, *others = [(Encoded(folder), weight) for folder, weight in encoded]
        for other, _ in others:
            _alike(first[0], other)
        return cls((first, *others))

    def store(self) -> Dataset:
        """The datasets that were encoded, mixed by the same weights."""
        return mixed([(cache.dataset, weight) for cache, weight in self.parts])

    def of_split(self, split: str) -> list[tuple[Encoded, float]]:
        """Those that have a split, as `mixture.of_split` has their datasets."""
        return [(cache, weight) for cache, weight in self.parts if split in cache.splits]


def feed(
    caches: Caches | None, experiment: Experiment, store: Dataset, policy: Policy, frozen: Params
) -> tuple[Learner, Callable[[Experiment, Any], Batches]]:
    """The policy as the loop trains it, and what makes its batches of an experiment and a dataset.

    Raises:
        UserError: a cache was made of something else than the experiment and the dataset say.
    """
    from wamjax.cli._experiment import system

    if caches is None:
        return policy, functools.partial(system(experiment).loader, policy=policy)
    if experiment.train.augment is not None:
        raise UserError("frames that are encoded cannot be augmented: set train.augment=None, or train on the dataset")
    now = sample(experiment)
    making = Making.of(policy, frozen, shapes(caches.parts[0][0].made_of["batch"]))
    read = configuration.flat({"frozen": read_fingerprints(frozen, making.frozen)})
    leaves = {name: f"{leaf.dtype} {leaf.shape}" for name, leaf in making.leaves.items()}
    for (cache, _), (one, _) in zip(caches.parts, parts(store), strict=True):
        made_of = cache.made_of
        _compare(cache, {"dataset": made_of["dataset"]}, {"dataset": one.fingerprint})
        _compare(cache, made_of["sample"], now)
        _compare(cache, configuration.flat({"frozen": made_of["frozen"]}), read)
        _compare(cache, {name: f"{leaf.dtype} {leaf.shape}" for name, leaf in cache.leaves.items()}, leaves)
    if making.draws:
        processes.say(LEFT_OUT)
    return Precomputed(policy, caches.parts[0][0].leaves), functools.partial(_loader, caches, policy)


def sample(experiment: Experiment) -> dict[str, Any]:
    """Whatever of an experiment decides about samples and what frozen networks make of them, by its path.

    Raises:
        UserError: samples of several lengths.
    """
    from wamjax.cli._experiment import system

    frames = experiment.data.frames
    experiment, *others = system(experiment).lengths(experiment)
    if others:
        raise UserError(f"films of several lengths (data.frames={frames}) cannot be encoded: train on the dataset")
    unencoded = system(experiment).unencoded
    everything = configuration.to_dict(experiment)
    policy = {
        key: value
        for key, value in configuration.flat(everything["policy"]).items()
        if not any(key == name or key.startswith(f"{name}.") for name in unencoded)
    }
    selection = everything["data"]["selection"] | {"ranges": experiment.data.selection.digest}
    return configuration.flat({"policy": policy, "clip": everything["clip"], "data": {"selection": selection}})


def shapes(said: dict[str, Any]) -> Shapes:
    """Of a batch of one, as a cache notes them: {name: [dtype, shape]}."""
    return {name: jax.ShapeDtypeStruct((1, *shape), np.dtype(dtype)) for name, (dtype, shape) in said.items()}


def _loader(caches: Caches, policy: Policy, experiment: Experiment, store: Dataset) -> Batches:
    from wamjax.cli._experiment import longest, system

    read = functools.partial(system(experiment).reader, longest(experiment), policy=policy)
    given = list(zip(caches.of_split(store.split), parts(store), strict=True))
    readers = (EncodedReader(cache, store.split, read(one)) for (cache, _), (one, _) in given)
    bucket = Bucket(tuple(readers), tuple(weight for _, (_, weight) in given))
    options: Any = {"batch_size": experiment.train.batch_size, "seed": experiment.train.seed, "numbered": True}
    options["workers"] = experiment.data.workers
    return lambda step, rows: stream([bucket], start_step=step, rows=rows, **options)


def _alike(first: Encoded, other: Encoded) -> None:
    """Refuses caches whose samples are not of the same networks, sizes and kinds of numbers."""
    named = ("batch", "dtype", "frozen")
    then, now = (
        cache.made_of["sample"] | configuration.flat({name: cache.made_of[name] for name in named})
        for cache in (first, other)
    )
    for name in sorted(then | now, key=lambda name: not (name in then and name in now)):  # what both have comes first
        if then.get(name) != now.get(name):
            was, here = (f"{each.get(name)!s:.80}" for each in (then, now))
            how = (
                "both for their mixture (`wamjax data encode --mixture`)" if name.startswith("frozen") else "both alike"
            )
            raise UserError(f"{other.folder} was encoded with {name} {here}, {first.folder} with {was}: encode {how}")


def _compare(cache: Encoded, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    for name in sorted({*then, *now}):
        if then.get(name) != now.get(name):
            was, here = (f"{each.get(name)!s:.80}" for each in (then, now))
            raise UserError(f"{cache.folder} was encoded with {name} {was}, which is {here} here: {AGAIN}")
