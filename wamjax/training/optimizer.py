"""The optimizers, under a warm-up, constant, linear-decay schedule."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import jax
import optax
from optax import contrib

from wamjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """An optimizer and its schedule.

    Attributes:
        name: "adamw"; or "muon", which orthogonalises the updates of the stacked blocks' weight matrices and leaves
            everything else to AdamW.
        learning_rate: the constant part of the schedule.
        warmup_steps: steps of linear warm-up from 0.
        decay_fraction: last share of the run over which the rate falls linearly.
        final_fraction: share of the rate left at the end.
        b1, b2: of AdamW.
        weight_decay: decoupled; only weight matrices decay.
        clip_norm: bound on the global gradient norm.
        ema: decay of the moving average of parameters that evaluation uses.
    """

    name: str = "adamw"
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    decay_fraction: float = 0.25
    final_fraction: float = 0.05
    b1: float = 0.9
    b2: float = 0.98
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    ema: float = 0.998

    def __post_init__(self) -> None:
        if self.name not in OPTIMIZERS:
            raise UserError(f"unknown train.optimizer.name '{self.name}': use one of {', '.join(OPTIMIZERS)}")


def schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate by step for a run of `steps` steps."""
    decay = round(steps * config.decay_fraction)
    warmup = min(config.warmup_steps, steps - decay)
    return optax.join_schedules(
        [
            optax.linear_schedule(0.0, config.learning_rate, max(warmup, 1)),
            optax.constant_schedule(config.learning_rate),
            optax.linear_schedule(config.learning_rate, config.final_fraction * config.learning_rate, max(decay, 1)),
        ],
        [warmup, steps - decay],
    )


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """The configured optimizer, with clipped gradients, for a run of `steps` steps."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        OPTIMIZERS[config.name](config, schedule(config, steps)),
    )


def _adamw(config: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    return optax.adamw(rate, config.b1, config.b2, weight_decay=config.weight_decay, mask=_kernels)


def _muon(config: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    """Muon (Jordan et al. 2024), its updates scaled to the size of AdamW's (arXiv 2502.16982)."""
    directions = contrib.muon(
        learning_rate=1.0,  # rate and decay follow below, so that the decay spares what is not a matrix
        adam_b1=config.b1,
        adam_b2=config.b2,
        muon_weight_dimension_numbers=_stacked_kernels,
        consistent_rms=0.2,
    )
    decay = optax.add_decayed_weights(-config.weight_decay, _kernels)
    return optax.chain(directions, decay, optax.scale_by_schedule(rate))


OPTIMIZERS: Mapping[str, Callable[[OptimizerConfig, optax.Schedule], optax.GradientTransformation]] = {
    "adamw": _adamw,
    "muon": _muon,
}


def _kernels(params: optax.Params) -> optax.Params:
    """Which leaves are weight matrices."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def _stacked_kernels(params: optax.Params) -> optax.Params:
    """Input and output axis of the weight matrices that are stacked by layer; None for all other leaves."""
    axes = contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=2)
    return jax.tree.map(
        lambda is_kernel, leaf: axes if is_kernel and leaf.ndim == 3 else None, _kernels(params), params
    )
