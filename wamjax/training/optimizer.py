"""The optimizers, under a schedule of warm-up, constant part and decay; in what numbers and where their state lies."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax
from jax import memory
from jaxtyping import Array
from optax import contrib

from wamjax.errors import UserError
from wamjax.training.paths import leaves, matches, nest


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """An optimizer and its schedule.

    Attributes:
        name: "adamw"; "muon", which orthogonalises the updates of the stacked blocks' weight matrices and leaves
            everything else to AdamW; or "adafactor", which keeps a row and a column of second moments per matrix and
            no first ones.
        learning_rate: the constant part of the schedule.
        warmup_steps: steps of linear warm-up from 0.
        warmup_fraction: the same as a share of the run; the longer of the two counts.
        decay_fraction: last share of the run over which the rate falls; the warm-up gives way to it.
        decay: how it falls: "linear", or along half a "cosine".
        final_fraction: share of the rate left at the end.
        b1, b2, eps: of AdamW.
        weight_decay: decoupled, as a share per unit of the learning rate.
        decayed: regular expressions for the ends of the paths (from the start of a name) of the parameters whose
            weights decay: by default weight matrices, adapters included.
        clip_norm: bound on the global gradient norm.
        moments: numbers that first moments are kept in, "float32" or "bfloat16". Second moments stay in float32: what
            a step adds to them is less than bfloat16 resolves when b2 is above 0.996, and they would stand still.
        offload: whether the state lies in the memory of the host between steps, and comes to the device for an update.
        ema: decay of the moving average of parameters that evaluation uses; 0 keeps none and uses them as they are.
    """

    name: str = "adamw"
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    warmup_fraction: float = 0.0
    decay_fraction: float = 0.25
    decay: str = "linear"
    final_fraction: float = 0.05
    b1: float = 0.9
    b2: float = 0.98
    eps: float = 1e-8
    weight_decay: float = 0.05
    decayed: tuple[str, ...] = ("kernel(/[ab])?",)
    clip_norm: float = 1.0
    moments: str = "float32"
    offload: bool = False
    ema: float = 0.998

    def __post_init__(self) -> None:
        if self.name not in OPTIMIZERS:
            raise UserError(f"unknown train.optimizer.name '{self.name}': use one of {', '.join(OPTIMIZERS)}")
        if self.decay not in DECAYS:
            raise UserError(f"unknown train.optimizer.decay '{self.decay}': use one of {', '.join(DECAYS)}")
        if self.moments not in MOMENTS:
            raise UserError(f"unknown train.optimizer.moments '{self.moments}': use one of {', '.join(MOMENTS)}")


MOMENTS = ("float32", "bfloat16")


def _linear(config: OptimizerConfig, steps: int) -> optax.Schedule:
    return optax.linear_schedule(config.learning_rate, config.final_fraction * config.learning_rate, steps)


def _cosine(config: OptimizerConfig, steps: int) -> optax.Schedule:
    return optax.cosine_decay_schedule(config.learning_rate, steps, config.final_fraction)


DECAYS: Mapping[str, Callable[[OptimizerConfig, int], optax.Schedule]] = {"linear": _linear, "cosine": _cosine}


def schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate by step for a run of `steps` steps."""
    asked = max(config.warmup_steps, math.ceil(config.warmup_fraction * steps))
    decay = round(steps * config.decay_fraction)
    warmup = min(asked, steps - decay)
    return optax.join_schedules(
        [
            optax.linear_schedule(0.0, config.learning_rate, max(warmup, 1)),
            optax.constant_schedule(config.learning_rate),
            DECAYS[config.decay](config, max(decay, 1)),
        ],
        [warmup, steps - decay],
    )


class OnHost(optax.GradientTransformation):
    """An optimizer whose state lies in the memory of the host between steps; its updates are made leaf by leaf."""


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """The configured optimizer, with clipped gradients, for a run of `steps` steps."""
    optimizer = OPTIMIZERS[config.name](config, schedule(config, steps))
    clip = optax.clip_by_global_norm(config.clip_norm)
    return OnHost(*optax.chain(clip, _by_leaf(optimizer))) if config.offload else optax.chain(clip, optimizer)


def _by_leaf(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """An optimizer of one parameter after the other, whose state comes to the device and leaves before the next one's.

    The state is one of the optimizer's for every parameter.
    """

    def init(params: optax.Params) -> dict[str, Any]:
        return {path: optimizer.init(nest({path: leaf})) for path, leaf in leaves(params).items()}

    def update(grads: Any, state: dict[str, Any], params: Any = None) -> tuple[Any, dict[str, Any]]:
        changes: dict[str, Any] = {}
        new: dict[str, Any] = {}
        values, before = leaves(params), None
        for path, gradient in leaves(grads).items():
            rested = state[path]
            if before is not None:
                rested, _ = jax.lax.optimization_barrier((rested, new[before]))
            alone = nest({path: gradient}), at_work(rested), nest({path: values[path]})
            change, worked = optimizer.update(*alone)
            changes |= leaves(change)
            new[path], before = _on(worked, memory.Space.Host), path
        return nest(changes), new

    return optax.GradientTransformation(init, update)


def at_rest(optimizer: optax.GradientTransformation, shapes: Any, places: Any) -> Any:
    """Where an optimizer's state lies between steps, from where an update needs it; counters stay on the device."""
    if not isinstance(optimizer, OnHost):
        return places
    return jax.tree.map(lambda leaf, at: at.with_memory_kind("pinned_host") if leaf.ndim else at, shapes, places)


def at_work(state: Any) -> Any:
    """An optimizer's state on the device, inside a compiled step."""
    return _on(state, memory.Space.Device)


def _on(state: Any, space: Any) -> Any:
    """Arrays in a memory; counters stay on the device."""

    def move(leaf: Array) -> Array:
        return jax.device_put(leaf, space) if leaf.ndim and jax.typeof(leaf).memory_space != space else leaf

    return jax.tree.map(move, state)


def _adamw(config: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    mask = functools.partial(_decayed, config)
    options: dict[str, Any] = {"weight_decay": config.weight_decay, "mask": mask, "mu_dtype": config.moments}
    return optax.adamw(rate, config.b1, config.b2, config.eps, **options)


def _muon(config: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    """Muon (Jordan et al. 2024), its updates scaled to the size of AdamW's (arXiv 2502.16982)."""
    directions = contrib.muon(
        learning_rate=1.0,  # rate and decay follow below, so that the decay spares what is not a matrix
        adam_b1=config.b1,
        adam_b2=config.b2,
        eps=config.eps,
        muon_weight_dimension_numbers=_stacked_kernels,
        consistent_rms=0.2,
        mu_dtype=config.moments,
    )
    return optax.chain(directions, _decay(config), optax.scale_by_schedule(rate))


def _adafactor(config: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    """Adafactor (arXiv 1804.04235) without its own rate: its updates, of unit size at most, follow the schedule."""
    directions = (optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0), optax.scale(-1.0))
    return optax.chain(*directions, _decay(config), optax.scale_by_schedule(rate))


def _decay(config: OptimizerConfig) -> optax.GradientTransformation:
    """Decoupled decay, for directions that are still to be scaled by the rate."""
    return optax.add_decayed_weights(-config.weight_decay, functools.partial(_decayed, config))


OPTIMIZERS: Mapping[str, Callable[[OptimizerConfig, optax.Schedule], optax.GradientTransformation]] = {
    "adamw": _adamw,
    "muon": _muon,
    "adafactor": _adafactor,
}


def _decayed(config: OptimizerConfig, params: optax.Params) -> optax.Params:
    """Which leaves decay."""

    return nest({path: matches(path, config.decayed) for path in leaves(params)})


def _kernels(params: optax.Params) -> optax.Params:
    """Which leaves are weight matrices."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def _stacked_kernels(params: optax.Params) -> optax.Params:
    """Input and output axis of the weight matrices that are stacked by layer; None for all other leaves."""
    axes = contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=2)
    return jax.tree.map(
        lambda is_kernel, leaf: axes if is_kernel and leaf.ndim == 3 else None, _kernels(params), params
    )
