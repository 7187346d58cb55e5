"""Training on what frozen networks made beforehand: latents, text and image features."""

from __future__ import annotations

import dataclasses

from jaxtyping import Array

from wamjax.policies.contract import Batch, Draws, Encoded, Params, Pass
from wamjax.training.step import Learner


@dataclasses.dataclass(frozen=True)
class Cached:
    """A policy whose batches are encoded already; see `Policy` for the methods.

    Attributes:
        policy: the policy.
    """

    policy: Learner

    def init(self, key: Array) -> Params:
        """The policy's."""
        return self.policy.init(key)

    def encode(self, frozen: Params, key: Array | None, batch: Batch) -> Encoded:
        """The batch as it is."""
        return dict(batch)

    def draw(self, key: Array, encoded: Encoded) -> Draws:
        """The policy's."""
        return self.policy.draw(key, encoded)

    def loss(self, params: Params, frozen: Params, encoded: Encoded, draws: Draws) -> dict[str, tuple[Array, Array]]:
        """The policy's."""
        return self.policy.loss(params, frozen, encoded, draws)

    def passes(self, mode: str) -> list[Pass]:
        """The policy's."""
        return self.policy.passes(mode)
