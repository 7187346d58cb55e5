"""The job beside the training: latents and features of all samples, made once by the frozen networks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax

from wamjax.compute.flops import traced
from wamjax.planning.topology import Topology

ATTAINED = 0.3
"""Share of the chip's peak that is assumed of the autoencoders' convolutions, whose channels are few."""


@dataclasses.dataclass(frozen=True)
class Encoding:
    """What the job takes.

    Attributes:
        samples: that are encoded; the run's, if none is read twice.
        flops_per_sample: of the frozen networks. bytes_per_sample: of what they make, as kept in bfloat16.
        seconds, chip_hours: on the run's chips, at `ATTAINED` of the peak. seconds_best: at the peak.
    """

    samples: int
    flops_per_sample: float
    bytes_per_sample: int
    seconds: float
    seconds_best: float
    chip_hours: float


def encoding(encode: Callable[..., Any], frozen: Any, sample: Any, samples: int, topology: Topology) -> Encoding:
    """Plans the job.

    Args:
        encode: (frozen, batch) -> latents and features; its products and convolutions are counted.
        frozen, sample: shapes of the frozen parameters and of a batch of one.
        samples, topology: how many, and where.
    """
    operations = traced(encode, frozen, sample)
    made = sum(2 * math.prod(leaf.shape) for leaf in jax.tree.leaves(jax.eval_shape(encode, frozen, sample)))
    best = samples * operations / (topology.chips * topology.chip.flops)
    return Encoding(samples, operations, made, best / ATTAINED, best, best / ATTAINED / 3600 * topology.chips)
