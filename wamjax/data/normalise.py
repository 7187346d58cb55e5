"""States and actions as DreamZero's model sees them, and back.

Actions are relative to the state at the first step of their chunk where the embodiment says so. Then every number is
scaled so that its 1 % and 99 % quantiles become -1 and 1, and cut off there. Numbers whose quantiles are equal keep
their value before the cut. Vectors are padded with zeros to sizes that all robots share.

Source: DreamZero (arXiv 2602.15922), `groot/vla/data/transform/state_action.py`, `groot/vla/data/dataset/lerobot*.py`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int64

from wamjax.data import statistics
from wamjax.data.embodiments import Embodiment, Field
from wamjax.data.files import read_sealed, write_sealed
from wamjax.errors import UserError

if TYPE_CHECKING:
    from wamjax.data.mixture import Dataset
    from wamjax.data.store import EpisodeStore

STATE_SIZE = 64
ACTION_SIZE = 32
EPISODES = 10_000  # of larger datasets, so many are drawn for the statistics of relative actions
SEED = 42

Statistics = dict[str, dict[str, dict[str, list[float]]]]


@dataclass(frozen=True)
class Bounds:
    """1 % and 99 % quantiles of every number of a vector, in the units of the dataset; numbers, or arrays (a)."""

    low: tuple[float, ...] | Array
    high: tuple[float, ...] | Array


@dataclass(frozen=True)
class Normalisation:
    """One robot's way from recorded to normalised numbers.

    Attributes:
        state, action: the bounds of either vector (of relative actions where they are relative).
        reference: for every number of the action, the number of the state that it is relative to, or None.
        actions_per_chunk: actions that share one state.
        state_size, action_size: lengths that the model has.
    """

    state: Bounds
    action: Bounds
    reference: tuple[int | None, ...]
    actions_per_chunk: int = 24
    state_size: int = STATE_SIZE
    action_size: int = ACTION_SIZE

    def __post_init__(self) -> None:
        states, actions = len(self.state.low), len(self.action.low)
        if states > self.state_size or actions > self.action_size:
            raise UserError(
                f"{states} state and {actions} action numbers exceed the model's {self.state_size} and "
                f"{self.action_size}: leave fields out of the embodiment"
            )

    @property
    def state_mask(self) -> Bool[np.ndarray, " s"]:
        """Which numbers of a normalised state are not padding."""
        return np.arange(self.state_size) < len(self.state.low)

    @property
    def action_mask(self) -> Bool[np.ndarray, " a"]:
        """Which numbers of a normalised action are not padding."""
        return np.arange(self.action_size) < len(self.action.low)

    def normalise_state(self, state: Float[Array, "*b s"]) -> Float[Array, "*b x"]:
        """Recorded states as the model sees them, in [-1, 1]."""
        return _pad(normalise(state, self.state), self.state_size)

    def normalise_actions(
        self, actions: Float[Array, "*b t a"], state: Float[Array, "*b n s"]
    ) -> Float[Array, "*b t x"]:
        """Recorded actions of n chunks as the model sees them, given the recorded state at the start of each."""
        return _pad(normalise(actions - self._anchor(state), self.action), self.action_size)

    def denormalise_actions(
        self, actions: Float[Array, "*b t x"], state: Float[Array, "*b n s"]
    ) -> Float[Array, "*b t a"]:
        """The way back from `normalise_actions`, in the units of the dataset."""
        return denormalise(actions[..., : len(self.action.low)], self.action) + self._anchor(state)

    def _anchor(self, state: Float[Array, "*b n s"]) -> Float[Array, "*b t a"]:
        """What every action is relative to; zero where it is absolute."""
        relative = np.array([index is not None for index in self.reference])
        anchor = jnp.where(relative, state[..., np.array([index or 0 for index in self.reference])], 0)
        return jnp.repeat(anchor, self.actions_per_chunk, axis=-2)


def normalisation(embodiment: Embodiment, statistics: Mapping[str, Any]) -> Normalisation:
    """What `statistics` (as `dataset_statistics` gives them) mean for the embodiment's vectors.

    Raises:
        UserError: a field without statistics, or with those of another size.
    """
    return Normalisation(
        state=_bounds("state", embodiment.state, statistics),
        action=_bounds("action", embodiment.action, statistics),
        reference=embodiment.reference,
        actions_per_chunk=embodiment.actions_per_chunk,
    )


def normalise(x: Float[Array, "*b a"], bounds: Bounds) -> Float[Array, "*b a"]:
    """2 (x - low) / (high - low) - 1, or x where high = low; then cut off to [-1, 1]."""
    low, high = jnp.asarray(bounds.low, jnp.float32), jnp.asarray(bounds.high, jnp.float32)
    constant = low == high
    scaled = 2 * ((x - low) / jnp.where(constant, 1, high - low)) - 1
    return jnp.where(constant, x, scaled).clip(-1, 1)


def denormalise(x: Float[Array, "*b a"], bounds: Bounds) -> Float[Array, "*b a"]:
    """(x + 1) / 2 (high - low) + low; not cut off. Where high = low that is their value, whatever x is."""
    low, high = jnp.asarray(bounds.low, jnp.float32), jnp.asarray(bounds.high, jnp.float32)
    return (x + 1) / 2 * (high - low) + low


def dataset_statistics(store: Dataset, embodiment: Embodiment) -> Statistics:
    """Statistics of all fields of the embodiment: {"state" | "action": {key: {"q01", "q99", "mean", ...}}}.

    Relative actions have those of `relative_statistics`, all others those of the store.

    Raises:
        UserError: the store lacks a field.
    """
    known: Mapping[str, Any] = store.statistics
    parts: Statistics = {"state": {}, "action": {}}
    for part, fields in (("state", embodiment.state), ("action", embodiment.action)):
        _check_fields(store, fields)
        for field in fields:
            parts[part][field.key] = {name: known[field.name][name] for name in statistics.NAMES}
    parts["action"] |= relative_statistics(store, embodiment)
    return parts


def relative_statistics(store: Dataset, embodiment: Embodiment) -> dict[str, dict[str, list[float]]]:
    """Statistics of the relative actions: key -> {"max", "min", "mean", "std", "q01", "q99": one value per number}.

    action[i + k] - state[i], pooled over all k of a chunk and all steps i at which a whole chunk starts, of at most
    `EPISODES` episodes; those that `keep_relative_statistics` left with the dataset, where they are of this very data.
    Datasets that are mixed count by their weights, with at most `EPISODES` episodes of each.

    Raises:
        UserError: the dataset lacks a field, or no episode is as long as a chunk.
    """
    fields = [field for field in embodiment.action if field.relative]
    if not fields:
        return {}
    _check_fields(store, (*embodiment.state, *fields))
    if (known := _kept(store, embodiment)) is not None:
        return known
    from wamjax.data.mixture import parts
    from wamjax.data.sampling import shares

    stores, weights = zip(*parts(store), strict=True)
    chosen = [_chosen(len(part)) for part in stores]
    states = {field.key: field.name for field in embodiment.state}
    offsets = [_offsets(part, embodiment) for part in stores]
    counts = [_starts(*one) * embodiment.actions_per_chunk for one in zip(stores, chosen, offsets, strict=True)]
    found = {field.key: statistics.Summary.mixed(counts, shares(weights), field.size) for field in fields}
    for number, (part, wanted) in enumerate(zip(stores, chosen, strict=True)):
        for steps in itertools.compress(part.all_steps(), wanted):
            for field in fields:
                values = _differences(steps[field.name], steps[states[field.key]], offsets[number])
                found[field.key].add(values, number)
    return {key: summary.result() for key, summary in found.items()}


def keep_relative_statistics(store: EpisodeStore, embodiment: Embodiment) -> Path:
    """Write the statistics of the robot's relative actions into the dataset's folder; returns the file."""
    path = _relative_file(store, embodiment)
    write_sealed(path, {"of": _origin(store, embodiment), "statistics": relative_statistics(store, embodiment)})
    return path


def _kept(store: Dataset, embodiment: Embodiment) -> dict[str, dict[str, list[float]]] | None:
    """What `keep_relative_statistics` wrote for this very data and robot, or None."""
    try:
        content = read_sealed(_relative_file(store, embodiment))
        found: dict[str, dict[str, list[float]]] = content["statistics"]
        return found if content["of"] == _origin(store, embodiment) else None
    except (OSError, ValueError, KeyError):
        return None


def _relative_file(store: Dataset, embodiment: Embodiment) -> Path:
    return Path(store.folder) / f"relative-{embodiment.name}.json"


def _origin(store: Dataset, embodiment: Embodiment) -> dict[str, Any]:
    """All that statistics of relative actions depend on."""
    states = {field.key: field.name for field in embodiment.state}
    fields = [[field.name, states[field.key], field.size] for field in embodiment.action if field.relative]
    shared = {"horizon": embodiment.actions_per_chunk, "fps": embodiment.fps, "episodes": EPISODES, "seed": SEED}
    return {"fingerprint": store.fingerprint, "split": store.split, "fields": fields, **shared}


def _chosen(episodes: int) -> Bool[np.ndarray, " n"]:
    """Which episodes of a dataset are looked at."""
    every = np.arange(episodes)
    some = np.random.default_rng(SEED).choice(episodes, EPISODES, replace=False) if episodes > EPISODES else every
    return np.isin(every, some)


def _offsets(store: EpisodeStore, embodiment: Embodiment) -> Int64[np.ndarray, " k"]:
    """The steps of a chunk after its first, of the dataset's rate, nearest to those of the robot's."""
    return np.rint(np.arange(embodiment.actions_per_chunk) * (store.fps / embodiment.fps)).astype(np.int64)


def _starts(store: EpisodeStore, wanted: Bool[np.ndarray, " n"], offsets: Int64[np.ndarray, " k"]) -> int:
    """At how many steps of the wanted episodes a whole chunk starts."""
    count = int(np.maximum(store.lengths[wanted] - offsets[-1], 0).sum())
    if not count:
        steps = offsets[-1] + 1
        raise UserError(f"no episode in {store.folder} has {steps} steps, the length of a chunk: collect longer ones")
    return count


def _check_fields(store: Dataset, fields: Sequence[Field]) -> None:
    for field in fields:
        if field.name not in store.fields:
            raise UserError(f"no step field '{field.name}' in {store.folder}: choose another embodiment")


def _differences(action: np.ndarray, state: np.ndarray, offsets: Int64[np.ndarray, " k"]) -> Float[np.ndarray, "n a"]:
    """action[i + k] - state[i] for all starts i and the steps k of a chunk."""
    action, state = (values.reshape(len(values), -1).astype(np.float64) for values in (action, state))
    starts = len(action) - offsets[-1]
    if starts < 1:
        return np.empty((0, action.shape[1]))
    chunks = action[np.arange(starts)[:, None] + offsets]  # (starts, k, a)
    return (chunks - state[:starts, None]).reshape(-1, action.shape[1])


def _bounds(part: str, fields: Sequence[Field], statistics: Mapping[str, Any]) -> Bounds:
    low: list[float] = []
    high: list[float] = []
    for field in fields:
        try:
            found = statistics[part][field.key]
            pair = [[float(value) for value in found[name]] for name in ("q01", "q99")]
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"no q01 and q99 of {part} '{field.key}' in the statistics ({type(error).__name__}: {error}): "
                "compute them again, or choose the embodiment that they are of"
            ) from error
        if not len(pair[0]) == len(pair[1]) == field.size or not all(map(math.isfinite, pair[0] + pair[1])):
            raise UserError(
                f"statistics of {part} '{field.key}' are not {field.size} finite numbers: compute them again"
            )
        low += pair[0]
        high += pair[1]
    return Bounds(tuple(low), tuple(high))


def _pad(x: Float[Array, "*b a"], size: int) -> Float[Array, "*b x"]:
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, size - x.shape[-1])])
