"""A trained policy as the runner's actor: observations in, action chunks out."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from wamjax.errors import UserError
from wamjax.evaluation.environment import Observation
from wamjax.policies.contract import Params, Policy, RolloutState


class PolicyActor:
    """Runs a policy for a fixed number of slots; one compiled program per chunk.

    Args:
        policy, params, frozen: what acts.
        execute: decisions of a chunk that are carried out before the next is asked for.
        seed: of the sampling noise.
    """

    def __init__(self, policy: Policy, params: Params, frozen: Params, execute: int, seed: int = 0) -> None:
        if not 0 < execute <= policy.shapes.horizon:
            raise UserError(
                f"evaluation.execute is {execute}: a chunk of this policy has 1 to {policy.shapes.horizon} actions"
            )
        self.execute = execute
        self._policy, self._params, self._frozen = policy, params, frozen
        self._key = jax.random.key(seed)
        self._state: RolloutState | None = None
        self._reset, self._act = jax.jit(self._reset_rows), jax.jit(self._act_rows)

    def reset(self, observations: list[Observation], rows: Bool[np.ndarray, " b"]) -> None:
        """Starts new sessions in the marked rows."""
        self._state = self._reset(self._batch(observations), self._state, rows)

    def act(self, observations: list[Observation]) -> Float[np.ndarray, "b horizon a"]:
        """The next action chunk of every row, in the robot's units."""
        self._key, key = jax.random.split(self._key)
        actions, self._state = self._act(self._batch(observations), self._state, key)
        return np.asarray(actions)

    def _reset_rows(self, batch: dict[str, Any], old: RolloutState | None, rows: Any) -> RolloutState:
        new = self._policy.reset(self._params, self._frozen, batch)
        if old is None:
            return new
        return jax.tree.map(lambda a, b: jnp.where(jnp.expand_dims(rows, range(1, a.ndim)), a, b), new, old)

    def _act_rows(self, batch: dict[str, Any], state: RolloutState, key: Any) -> tuple[Any, RolloutState]:
        draws = self._policy.draw_act(key, batch["state"].shape[0])
        actions, state = self._policy.act(self._params, self._frozen, state, batch, draws)
        executed = actions[:, : self.execute]
        return actions, self._policy.observe(self._params, self._frozen, state, None, executed)

    def _batch(self, observations: list[Observation]) -> dict[str, np.ndarray]:
        return {
            "frames": np.stack([o.frames for o in observations]),
            "state": np.stack([o.state for o in observations]).astype(np.float32),
            "language": np.stack([self._policy.tokenize(o.instruction) for o in observations]),
        }
