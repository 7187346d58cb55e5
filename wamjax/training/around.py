"""A policy around another, which changes one thing about how that one is trained."""

from __future__ import annotations

import dataclasses

from jaxtyping import Array

from wamjax.policies.contract import Batch, Draws, Encoded, Params, Pass
from wamjax.training.step import Learner


@dataclasses.dataclass(frozen=True)
class Around:
    """A policy that is another in everything that a subclass does not change; see `Policy` for the methods.

    Attributes:
        policy: the other.
    """

    policy: Learner

    def init(self, key: Array) -> Params:
        """The policy's."""
        return self.policy.init(key)

    def encode(self, frozen: Params, key: Array | None, batch: Batch) -> Encoded:
        """The policy's."""
        return self.policy.encode(frozen, key, batch)

    def draw(self, key: Array, encoded: Encoded) -> Draws:
        """The policy's."""
        return self.policy.draw(key, encoded)

    def loss(self, params: Params, frozen: Params, encoded: Encoded, draws: Draws) -> dict[str, tuple[Array, Array]]:
        """The policy's."""
        return self.policy.loss(params, frozen, encoded, draws)

    def passes(self, mode: str, frames: int | None = None) -> list[Pass]:
        """The policy's."""
        return self.policy.passes(mode, frames)
