"""The train state and the compiled step that advances it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh
from jaxtyping import Array, Int

from wamjax.policies.contract import Batch, Params, Policy
from wamjax.sharding.mesh import Rules, batch_sharding, replicated, shardings

Metrics = dict[str, Array]


@struct.dataclass
class TrainState:
    """Everything that a training step changes.

    Attributes:
        step: steps done.
        params: trainable parameters. ema: their moving average. opt_state: the optimizer's.
    """

    step: Int[Array, ""]
    params: Params
    ema: Params
    opt_state: Any


def init_state(
    policy: Policy, optimizer: optax.GradientTransformation, seed: int, mesh: Mesh, rules: Rules
) -> TrainState:
    """A fresh state, created where it belongs on the mesh."""
    create = _creator(policy, optimizer, seed)
    return jax.jit(create, out_shardings=shardings(jax.eval_shape(create), rules, mesh))()


def abstract_state(policy: Policy, optimizer: optax.GradientTransformation, mesh: Mesh, rules: Rules) -> TrainState:
    """Shapes and shardings of the state, without creating it."""
    shapes = jax.eval_shape(_creator(policy, optimizer, seed=0))
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings(shapes, rules, mesh),
    )


def _creator(policy: Policy, optimizer: optax.GradientTransformation, seed: int) -> Callable[[], TrainState]:
    def create() -> TrainState:
        params = policy.init(jax.random.key(seed))
        return TrainState(jnp.zeros((), jnp.int32), params, jax.tree.map(jnp.copy, params), optimizer.init(params))

    return create


def total_loss(
    policy: Policy, params: Params, frozen: Params, key: Array | None, batch: Batch, draw_key: Array
) -> tuple[Array, Metrics]:
    """The training loss of a batch and its terms; `key` drives augmentation, None leaves it out."""
    encoded = policy.encode(frozen, key, batch)
    terms = policy.loss(params, frozen, encoded, policy.draw(draw_key, encoded))
    means = {f"loss/{name}": total / jnp.maximum(weight, 1.0) for name, (total, weight) in terms.items()}
    loss = sum(means.values(), start=jnp.zeros(()))
    return loss, means | {"loss": loss}


def make_step(
    policy: Policy,
    optimizer: optax.GradientTransformation,
    ema: float,
    seed: int,
    mesh: Mesh,
    state: TrainState,
) -> Callable[[TrainState, Params, Batch], tuple[TrainState, Metrics]]:
    """Compiles (state, frozen, batch) -> (state, metrics).

    Randomness depends on the seed and the step alone. The state is donated: its buffers are reused.
    """

    def step(state: TrainState, frozen: Params, batch: Batch) -> tuple[TrainState, Metrics]:
        key, draw_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), state.step))

        def objective(params: Params) -> tuple[Array, Metrics]:
            return total_loss(policy, params, frozen, key, batch, draw_key)

        (_, metrics), grads = jax.value_and_grad(objective, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        # Early on the average follows closely, so that it never remembers the random start.
        decay = jnp.minimum(ema, (1.0 + state.step) / (10.0 + state.step))
        average = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, state.ema, params)
        metrics["grad_norm"] = optax.global_norm(grads)
        return TrainState(state.step + 1, params, average, opt_state), metrics

    places = jax.tree.map(lambda leaf: leaf.sharding, state)
    return jax.jit(
        step,
        in_shardings=(places, replicated(mesh), batch_sharding(mesh)),
        out_shardings=(places, replicated(mesh)),
        donate_argnums=0,
    )


def make_validation(policy: Policy, seed: int) -> Callable[[Params, Params, Batch], Metrics]:
    """Compiles (params, frozen, batch) -> loss terms without augmentation or gradients."""

    def validate(params: Params, frozen: Params, batch: Batch) -> Metrics:
        return total_loss(policy, params, frozen, None, batch, jax.random.key(seed))[1]

    return jax.jit(validate)
