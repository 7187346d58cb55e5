"""Training on augmented frames: a policy whose batches are changed before it encodes them."""

from __future__ import annotations

import dataclasses

from jaxtyping import Array

from wamjax.data.augment import AugmentConfig, augment
from wamjax.data.pipeline import AUGMENTATION
from wamjax.errors import UserError
from wamjax.policies.contract import Batch, Encoded, Params
from wamjax.training.around import Around
from wamjax.training.step import Learner


@dataclasses.dataclass(frozen=True)
class Augmented(Around):
    """A policy that is trained on augmented frames, and validated on recorded ones.

    Attributes:
        config: what is done to frames.
    """

    config: AugmentConfig

    def encode(self, frozen: Params, key: Array | None, batch: Batch) -> Encoded:
        """The policy's, of frames changed by the batch's keys where there is a key at all."""
        batch = dict(batch)
        keys = batch.pop(AUGMENTATION, None)
        if key is not None:
            if keys is None:
                raise UserError("batches without keys cannot be augmented: leave train.augment=None")
            batch["frames"] = augment(batch["frames"], keys, self.config)
        return self.policy.encode(frozen, key, batch)


def augmented(policy: Learner, config: AugmentConfig | None) -> Learner:
    """A policy as it is to be trained; None leaves it alone."""
    return policy if config is None else Augmented(policy, config)
