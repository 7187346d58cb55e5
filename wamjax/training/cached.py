"""Training on what frozen networks made beforehand: latents, text and image features."""

from __future__ import annotations

import dataclasses

from jaxtyping import Array

from wamjax.policies.contract import Batch, Encoded, Params
from wamjax.training.around import Around


@dataclasses.dataclass(frozen=True)
class Cached(Around):
    """A policy whose batches are encoded already."""

    def encode(self, frozen: Params, key: Array | None, batch: Batch) -> Encoded:
        """The batch as it is."""
        return dict(batch)
