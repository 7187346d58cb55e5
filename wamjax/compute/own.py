"""The same questions of a policy of one's own: its passes are counted, and its programs are read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
from jaxtyping import Array

from wamjax.compute.description import Cost
from wamjax.compute.executed import executed_flops
from wamjax.compute.flops import Flops, forward, kernel_pairs, of_passes, parameter_count, program, traced
from wamjax.policies.contract import Batch, Draws, Encoded, Params, Pass, Policy, Stage


class Learner(Protocol):
    """What is trained: a policy, or adapters of one; see `Policy` for the methods."""

    def init(self, key: Array) -> Params: ...

    def encode(self, frozen: Params, key: Array | None, batch: Batch) -> Encoded: ...

    def draw(self, key: Array, encoded: Encoded) -> Draws: ...

    def loss(
        self, params: Params, frozen: Params, encoded: Encoded, draws: Draws
    ) -> dict[str, tuple[Array, Array]]: ...

    def passes(self, mode: str) -> list[Pass]: ...


@dataclasses.dataclass(frozen=True)
class Counts:
    """What training on a sample computes.

    Attributes:
        parameters: trained. model: forward and backward passes.
        executed: these with blocks computed again and the pairs that run on a TPU, and frozen encoders.
        frozen: these encoders. program: what the gradient's program computes where there is no kernel.
    """

    parameters: int
    model: Flops
    executed: float
    frozen: float
    program: float


def counts(learner: Learner, frozen: Params, batch: Mapping[str, Any]) -> Counts:
    """Counts a training.

    Args:
        frozen: its frozen parameters, arrays or shapes. batch: of one sample, as the loader yields it.
    """
    key, passes = jax.random.key(0), learner.passes("train")
    params = jax.eval_shape(learner.init, key)
    encoded = jax.eval_shape(learner.encode, frozen, key, batch)
    draws = jax.eval_shape(learner.draw, key, encoded)

    def loss(params: Any, frozen: Any, encoded: Any, draws: Any) -> Any:
        return sum(value / weight for value, weight in learner.loss(params, frozen, encoded, draws).values())

    encoders = traced(learner.encode, frozen, key, batch)
    return Counts(
        parameter_count(params),
        of_passes(passes),
        executed_flops(passes, kernel_pairs).executed + encoders,
        encoders,
        traced(jax.grad(loss), params, frozen, encoded, draws),
    )


def passes_of(policy: Policy) -> list[tuple[str, float, Cost]]:
    """An action chunk by its network passes (name, how often, cost), for policies that do not tell their stages.

    A pass is taken to read all parameters, and keys and values of what it does not compute.
    """
    params = parameter_count(jax.eval_shape(policy.init, jax.random.key(0)))
    found = []
    for one in policy.passes("act"):
        stack = one.network.stack
        cache = 2 * stack.layers * stack.heads * stack.head_dim * (one.plan.length - one.queries)
        streams = dict.fromkeys(group.stream for group in one.plan.groups)
        cost = Cost(forward(one.network, one.plan, one.queries), params, cache)
        found.append((f"{one.queries} of {', '.join(streams)}", float(one.repeats), cost))
    return found


def stages_of(
    stages: list[Stage], params: Params, frozen: Params, session: Any, seen: Mapping[str, Any], draws: Any
) -> list[tuple[str, float, Cost]]:
    """An action chunk by its stages (name, how often, cost), read off the programs that run them.

    Args:
        params, frozen, session, seen, draws: what stages are prepared from, as shapes.
    """
    found = []
    for stage in stages:
        prepared = jax.eval_shape(stage.prepare, params, frozen, session, seen, draws)
        run: Callable[..., Any] = stage.run
        found.append((stage.name, stage.per_chunk, Cost(*program(run, params, frozen, prepared))))
    return found
