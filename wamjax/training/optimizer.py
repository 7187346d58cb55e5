"""The optimizer: AdamW under a warm-up, constant, linear-decay schedule."""

from __future__ import annotations

import dataclasses

import jax
import optax


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and its schedule.

    Attributes:
        learning_rate: the constant part of the schedule.
        warmup_steps: steps of linear warm-up from 0.
        decay_fraction: last share of the run over which the rate falls linearly.
        final_fraction: share of the rate left at the end.
        b1, b2, weight_decay: of AdamW; only weight matrices decay.
        clip_norm: bound on the global gradient norm.
        ema: decay of the moving average of parameters that evaluation uses.
    """

    learning_rate: float = 1e-3
    warmup_steps: int = 100
    decay_fraction: float = 0.25
    final_fraction: float = 0.05
    b1: float = 0.9
    b2: float = 0.98
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    ema: float = 0.998


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
    """Clipped AdamW for a run of `steps` steps."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            schedule(config, steps),
            config.b1,
            config.b2,
            weight_decay=config.weight_decay,
            mask=_kernels,
        ),
    )


def _kernels(params: optax.Params) -> optax.Params:
    """Which leaves are weight matrices."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)
