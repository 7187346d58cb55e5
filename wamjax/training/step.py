"""The train state and the compiled step that advances it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh
from jaxtyping import Array, Int

from wamjax.policies.contract import Batch, Draws, Encoded, Params, Pass
from wamjax.sharding.mesh import Rules, batch_sharding, replicated, shardings

Metrics = dict[str, Array]


class Learner(Protocol):
    """What training asks of a `Policy`; its documentation is there."""

    def init(self, key: Array) -> Params:
        """Trainable parameters."""

    def encode(self, frozen: Params, key: Array | None, batch: Batch) -> Encoded:
        """Runs the frozen networks."""

    def draw(self, key: Array, encoded: Encoded) -> Draws:
        """What is random of one training step."""

    def loss(self, params: Params, frozen: Params, encoded: Encoded, draws: Draws) -> dict[str, tuple[Array, Array]]:
        """Loss terms as (weighted sum, weight)."""

    def passes(self, mode: str) -> list[Pass]:
        """The network passes of one training step ("train", per sample)."""


@struct.dataclass
class TrainState:
    """Everything that a training step changes.

    Attributes:
        step: steps done.
        params: trainable parameters. ema: their moving average; None where none is kept. opt_state: the optimizer's.
    """

    step: Int[Array, ""]
    params: Params
    ema: Params | None
    opt_state: Any

    @property
    def averaged(self) -> Params:
        """The parameters to evaluate and to act with."""
        return self.params if self.ema is None else self.ema


def init_state(
    policy: Learner,
    optimizer: optax.GradientTransformation,
    ema: float,
    seed: int,
    mesh: Mesh,
    rules: Rules,
    initial: Params | None = None,
) -> TrainState:
    """A fresh state, created where it belongs on the mesh, of `initial` (used up) or else the policy's parameters."""
    create = _creator(policy, optimizer, ema, seed)
    places = shardings(jax.eval_shape(create, initial), rules, mesh)
    return jax.jit(create, out_shardings=places, donate_argnums=0)(initial)


def abstract_state(
    policy: Learner, optimizer: optax.GradientTransformation, ema: float, mesh: Mesh, rules: Rules
) -> TrainState:
    """Shapes and shardings of the state, without creating it."""
    shapes = jax.eval_shape(_creator(policy, optimizer, ema, seed=0), None)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings(shapes, rules, mesh),
    )


def _creator(
    policy: Learner, optimizer: optax.GradientTransformation, ema: float, seed: int
) -> Callable[[Params | None], TrainState]:
    def create(initial: Params | None) -> TrainState:
        params = policy.init(jax.random.key(seed)) if initial is None else initial
        average = jax.tree.map(jnp.copy, params) if ema else None
        return TrainState(jnp.zeros((), jnp.int32), params, average, optimizer.init(params))

    return create


def total_loss(
    policy: Learner, params: Params, frozen: Params, key: Array | None, batch: Batch, draw_key: Array
) -> tuple[Array, Metrics]:
    """The training loss of a batch and its terms; `key` drives augmentation, None leaves it out."""
    encoded = policy.encode(frozen, key, batch)
    terms = policy.loss(params, frozen, encoded, policy.draw(draw_key, encoded))
    means = {f"loss/{name}": total / jnp.maximum(weight, 1.0) for name, (total, weight) in terms.items()}
    loss = sum(means.values(), start=jnp.zeros(()))
    return loss, means | {"loss": loss}


def make_step(
    policy: Learner,
    optimizer: optax.GradientTransformation,
    ema: float,
    seed: int,
    mesh: Mesh,
    state: TrainState,
) -> Callable[[TrainState, Params, Batch], tuple[TrainState, Metrics]]:
    """Compiles (state, frozen, batch) -> (state, metrics).

    Randomness depends on the seed and the step alone. The state is donated: its buffers are reused. `ema` is the decay
    of the moving average, where the state keeps one.
    """

    def step(state: TrainState, frozen: Params, batch: Batch) -> tuple[TrainState, Metrics]:
        key, draw_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), state.step))

        def objective(params: Params) -> tuple[Array, Metrics]:
            return total_loss(policy, params, frozen, key, batch, draw_key)

        (_, metrics), grads = jax.value_and_grad(objective, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        average = None if state.ema is None else _follow(state.ema, params, ema, state.step)
        metrics["grad_norm"] = optax.global_norm(grads)
        return TrainState(state.step + 1, params, average, opt_state), metrics

    places = jax.tree.map(lambda leaf: leaf.sharding, state)
    return jax.jit(
        step,
        in_shardings=(places, None, batch_sharding(mesh)),  # None: frozen parameters stay where they are
        out_shardings=(places, replicated(mesh)),
        donate_argnums=0,
    )


def _follow(average: Params, params: Params, ema: float, step: Array) -> Params:
    """The moving average; early on it follows closely, so that it never remembers the random start."""
    decay = jnp.minimum(ema, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, average, params)


def make_validation(policy: Learner, seed: int) -> Callable[[Params, Params, Batch], Metrics]:
    """Compiles (params, frozen, batch) -> loss terms without augmentation or gradients."""

    def validate(params: Params, frozen: Params, batch: Batch) -> Metrics:
        return total_loss(policy, params, frozen, None, batch, jax.random.key(seed))[1]

    return jax.jit(validate)
