"""The train state and the compiled step that advances it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh
from jaxtyping import Array, Int

from wamjax.policies.contract import Batch, Draws, Encoded, Params, Pass
from wamjax.sharding.mesh import OnMesh, Rules, batch_sharding, replicated, shardings
from wamjax.training.guard import NO_GUARD, GuardConfig, GuardState, fresh, judge, keep
from wamjax.training.optimizer import at_rest, at_work

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

    def passes(self, mode: str, frames: int | None = None) -> list[Pass]:
        """The network passes of one training step ("train", per sample)."""


@struct.dataclass
class TrainState:
    """Everything that a training step changes.

    Attributes:
        step: steps done.
        params: trainable parameters. ema: their moving average; None where none is kept. opt_state: the optimizer's.
        guard: by what bad steps are told; None where the step does not decide.
    """

    step: Int[Array, ""]
    params: Params
    ema: Params | None
    opt_state: Any
    guard: GuardState | None = None

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
    guard: GuardConfig = NO_GUARD,
) -> TrainState:
    """A fresh state, created where it belongs on the mesh, of `initial` (used up) or else the policy's parameters."""
    create = _creator(policy, optimizer, ema, seed, guard)
    places = _places(optimizer, jax.eval_shape(create, initial), rules, mesh)
    return jax.jit(create, out_shardings=places, donate_argnums=0)(initial)


def abstract_state(
    policy: Learner,
    optimizer: optax.GradientTransformation,
    ema: float,
    mesh: Mesh,
    rules: Rules,
    guard: GuardConfig = NO_GUARD,
) -> TrainState:
    """Shapes and shardings of the state, without creating it."""
    shapes = jax.eval_shape(_creator(policy, optimizer, ema, 0, guard), None)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        _places(optimizer, shapes, rules, mesh),
    )


def _places(optimizer: optax.GradientTransformation, shapes: TrainState, rules: Rules, mesh: Mesh) -> TrainState:
    """Where every leaf of the state lies between steps."""
    places: TrainState = shardings(shapes, rules, mesh)
    return dataclasses.replace(places, opt_state=at_rest(optimizer, shapes.opt_state, places.opt_state))


def _creator(
    policy: Learner, optimizer: optax.GradientTransformation, ema: float, seed: int, guard: GuardConfig
) -> Callable[[Params | None], TrainState]:
    def create(initial: Params | None) -> TrainState:
        params = policy.init(jax.random.key(seed)) if initial is None else initial
        average = jax.tree.map(jnp.copy, params) if ema else None
        return TrainState(jnp.zeros((), jnp.int32), params, average, optimizer.init(params), fresh(guard))

    return create


def encode_and_draw(
    policy: Learner, frozen: Params, key: Array | None, batch: Batch, draw_key: Array, portions: int = 1
) -> tuple[Encoded, Draws]:
    """What a loss is computed from; `key` drives augmentation, None leaves it out.

    Args:
        portions: in how many parts frozen networks read the batch; the draws are those of the whole batch.
    """
    if portions == 1:
        encoded = policy.encode(frozen, key, batch)
    else:
        keys = None if key is None else jax.random.split(key, portions)
        parts = jax.lax.map(lambda part: policy.encode(frozen, *part), (keys, _cut(batch, portions)))
        encoded = jax.tree.map(_joined, parts)
    return encoded, policy.draw(draw_key, encoded)


def mean_losses(
    policy: Learner, params: Params, frozen: Params, encoded: Encoded, draws: Draws, weights: Metrics | None = None
) -> tuple[Array, Metrics]:
    """The training loss and its terms; `weights` are what the terms' sums are divided by, None for their own."""
    terms = policy.loss(params, frozen, encoded, draws)
    if weights is None:
        weights = {name: weight for name, (_, weight) in terms.items()}
    means = {f"loss/{name}": total / jnp.maximum(weights[name], 1.0) for name, (total, _) in terms.items()}
    loss = sum(means.values(), start=jnp.zeros(()))
    return loss, means | {"loss": loss}


def gradients(
    policy: Learner, params: Params, frozen: Params, encoded: Encoded, draws: Draws, portions: int = 1
) -> tuple[Params, Metrics]:
    """Gradients and losses of a batch, in `portions` one after the other: as of the whole batch, with less memory."""
    slope = jax.value_and_grad(mean_losses, argnums=1, has_aux=True)
    if portions == 1:
        (_, metrics), grads = slope(policy, params, frozen, encoded, draws)
        return grads, metrics

    def weigh(part: tuple[Encoded, Draws]) -> Metrics:
        return {name: weight for name, (_, weight) in policy.loss(params, frozen, *part).items()}

    parts = _cut((encoded, draws), portions)
    weights = jax.tree.map(jnp.sum, jax.lax.map(weigh, parts))  # nothing of the networks is needed for them, or runs

    def add(total: tuple[Params, Metrics], part: tuple[Encoded, Draws]) -> tuple[tuple[Params, Metrics], None]:
        (_, metrics), grads = slope(policy, params, frozen, *part, weights)
        return jax.tree.map(jnp.add, total, (grads, metrics)), None

    nothing = jax.tree.map(jnp.zeros_like, (params, {f"loss/{name}": x for name, x in weights.items()}))
    total, _ = jax.lax.scan(add, (nothing[0], nothing[1] | {"loss": jnp.zeros(())}), parts)
    return total


def _cut(tree: Any, portions: int) -> Any:
    """Every leaf (b, ...) as (portions, b / portions, ...); devices keep the samples that they have."""

    def cut(x: Array) -> Array:
        return jnp.moveaxis(x.reshape(x.shape[0] // portions, portions, *x.shape[1:]), 1, 0)

    return jax.tree.map(cut, tree)


def _joined(x: Array) -> Array:
    """The inverse of `_cut`, for a leaf."""
    return jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:])


def make_step(
    policy: Learner,
    optimizer: optax.GradientTransformation,
    ema: float,
    seed: int,
    mesh: Mesh,
    state: TrainState,
    portions: int = 1,
    spike: float = 0.0,
) -> OnMesh:
    """Compiles (state, frozen, batch) -> (state, metrics).

    Randomness depends on the seed and the step alone. The state is donated: its buffers are reused. `ema` is the decay
    of the moving average, where the state keeps one; `portions` is of `gradients`; `spike` is of `judge`, where the
    state has a guard: a bad step then leaves all but the count of steps as it was.
    """

    def step(state: TrainState, frozen: Params, batch: Batch) -> tuple[TrainState, Metrics]:
        key, draw_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), state.step))
        encoded, draws = encode_and_draw(policy, frozen, key, batch, draw_key, portions)
        grads, metrics = gradients(policy, state.params, frozen, encoded, draws, portions)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        average = None if state.ema is None else _follow(state.ema, params, ema, state.step)
        metrics["grad_norm"] = optax.global_norm(grads)
        new = TrainState(state.step + 1, params, average, opt_state)
        if state.guard is not None:
            bad, guard = judge(state.guard, spike, metrics["loss"], metrics["grad_norm"])
            before, after = (
                dataclasses.replace(one, opt_state=at_work(one.opt_state), guard=None) for one in (state, new)
            )
            new = dataclasses.replace(keep(bad, before, after), step=new.step, guard=guard)
            metrics["bad"] = bad.astype(jnp.float32)
        return new, metrics

    places = jax.tree.map(lambda leaf: leaf.sharding, state)
    compiled = jax.jit(
        step,
        in_shardings=(places, None, batch_sharding(mesh)),  # None: frozen parameters stay where they are
        out_shardings=(places, replicated(mesh)),
        donate_argnums=0,
    )
    return OnMesh(mesh, compiled)


def _follow(average: Params, params: Params, ema: float, step: Array) -> Params:
    """The moving average; early on it follows closely, so that it never remembers the random start."""
    decay = jnp.minimum(ema, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, average, params)


def make_validation(policy: Learner, seed: int, mesh: Mesh) -> OnMesh:
    """Compiles (params, frozen, batch) -> loss terms without augmentation or gradients."""

    def validate(params: Params, frozen: Params, batch: Batch) -> Metrics:
        encoded, draws = encode_and_draw(policy, frozen, None, batch, jax.random.key(seed))
        return mean_losses(policy, params, frozen, encoded, draws)[1]

    return OnMesh(mesh, jax.jit(validate))
