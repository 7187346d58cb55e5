"""Training on augmented frames: a policy whose batches are changed before it encodes them."""

from __future__ import annotations

import dataclasses

from jaxtyping import Array

from wamjax.data.augment import AugmentConfig, augment
from wamjax.data.pipeline import AUGMENTATION
from wamjax.errors import UserError
from wamjax.policies.contract import Batch, Draws, Encoded, Params, Pass
from wamjax.training.step import Learner


@dataclasses.dataclass(frozen=True)
class Augmented:
    """A policy that is trained on augmented frames, and validated on recorded ones; see `Policy` for the methods.

    Attributes:
        policy: the policy. config: what is done to frames.
    """

    policy: Learner
    config: AugmentConfig

    def init(self, key: Array) -> Params:
        """The policy's."""
        return self.policy.init(key)

    def encode(self, frozen: Params, key: Array | None, batch: Batch) -> Encoded:
        """The policy's, of frames changed by the batch's keys where there is a key at all."""
        batch = dict(batch)
        keys = batch.pop(AUGMENTATION, None)
        if key is not None:
            if keys is None:
                raise UserError("batches without keys cannot be augmented: leave train.augment=None")
            batch["frames"] = augment(batch["frames"], keys, self.config)
        return self.policy.encode(frozen, key, batch)

    def draw(self, key: Array, encoded: Encoded) -> Draws:
        """The policy's."""
        return self.policy.draw(key, encoded)

    def loss(self, params: Params, frozen: Params, encoded: Encoded, draws: Draws) -> dict[str, tuple[Array, Array]]:
        """The policy's."""
        return self.policy.loss(params, frozen, encoded, draws)

    def passes(self, mode: str) -> list[Pass]:
        """The policy's."""
        return self.policy.passes(mode)


def augmented(policy: Learner, config: AugmentConfig | None) -> Learner:
    """A policy as it is to be trained; None leaves it alone."""
    return policy if config is None else Augmented(policy, config)
