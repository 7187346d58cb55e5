"""Training on a dataset, or on what `wamjax data encode` made of it: whether that fits, and what the loop is fed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from wamjax import config as configuration
from wamjax.data.latents import Encoded, EncodedReader
from wamjax.data.pipeline import Bucket, stream
from wamjax.data.records import BEGUN
from wamjax.errors import UserError
from wamjax.sharding import processes
from wamjax.training.precomputed import Making, Precomputed, Shapes, read_fingerprint

if TYPE_CHECKING:
    from wamjax.cli._experiment import Experiment
    from wamjax.data.mixture import Dataset
    from wamjax.data.store import EpisodeStore
    from wamjax.policies.contract import Params, Policy
    from wamjax.training.loop import Batches
    from wamjax.training.step import Learner

LEFT_OUT = "what the policy draws anew in every step (augmentation) is left out: it cannot be encoded"
AGAIN = "train on the dataset, or run `wamjax data encode` again"


def cache(addresses: Sequence[str]) -> Encoded | None:
    """What was encoded, if that is what was given; None for datasets.

    Raises:
        UserError: an unfinished encoding, or one beside others.
    """
    encoded = [address for address in addresses if (Path(address) / BEGUN).exists()]
    if not encoded:
        return None
    if len(addresses) > 1:
        raise UserError(f"--data {encoded[0]} is encoded, and cannot be mixed with others: give it alone")
    return Encoded(encoded[0])


def feed(
    cache: Encoded | None, experiment: Experiment, store: Dataset, policy: Policy, frozen: Params
) -> tuple[Learner, Callable[[Experiment, Any], Batches]]:
    """The policy as the loop trains it, and what makes its batches of an experiment and a dataset.

    Raises:
        UserError: the cache was made of something else than the experiment and the dataset say.
    """
    from wamjax.cli._experiment import system

    if cache is None:
        return policy, functools.partial(system(experiment).loader, policy=policy)
    if experiment.train.augment is not None:
        raise UserError("frames that are encoded cannot be augmented: set train.augment=None, or train on the dataset")
    made_of = cache.made_of
    _compare(cache, {"dataset": made_of["dataset"]}, {"dataset": store.fingerprint})
    _compare(cache, made_of["sample"], sample(experiment))
    making = Making.of(policy, frozen, shapes(made_of["batch"]))
    _compare(cache, {"frozen": made_of["frozen"]}, {"frozen": read_fingerprint(frozen, making.frozen)})
    then = {name: f"{leaf.dtype} {leaf.shape}" for name, leaf in cache.leaves.items()}
    _compare(cache, then, {name: f"{leaf.dtype} {leaf.shape}" for name, leaf in making.leaves.items()})
    if making.draws:
        processes.say(LEFT_OUT)
    return Precomputed(policy, cache.leaves), functools.partial(_loader, cache, policy)


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


def _loader(cache: Encoded, policy: Policy, experiment: Experiment, store: EpisodeStore) -> Batches:
    from wamjax.cli._experiment import system

    starts = system(experiment).reader(experiment, store, policy).starts
    bucket = Bucket((EncodedReader(cache, store.split, starts),))
    options: Any = {"batch_size": experiment.train.batch_size, "seed": experiment.train.seed, "numbered": True}
    options["workers"] = experiment.data.workers
    return lambda step, rows: stream([bucket], start_step=step, rows=rows, **options)


def _compare(cache: Encoded, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    for name in sorted({*then, *now}):
        if then.get(name) != now.get(name):
            was, here = (f"{each.get(name)!s:.80}" for each in (then, now))
            raise UserError(f"{cache.folder} was encoded with {name} {was}, which is {here} here: {AGAIN}")
