"""Floating-point operations, counted from token plans and shapes.

A multiply-add counts as two. Only matrix products and attention are counted, as is usual for model FLOPs: norms,
activations and codecs are left out. Nothing is read from a compiler, whose counts miss scanned layers and kernels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax

from wamjax.nn.tokens import TokenPlan
from wamjax.policies.contract import Counted, Pass


@dataclasses.dataclass(frozen=True)
class Flops:
    """Operations of some computation.

    Attributes:
        matmul: products of tokens with weights.
        attention: scores and weighted sums over the pairs that the plan allows.
        attention_executed: the same over the pairs that the dense reference really computes.
    """

    matmul: float = 0.0
    attention: float = 0.0
    attention_executed: float = 0.0

    def __add__(self, other: Flops) -> Flops:
        return Flops(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))

    def __mul__(self, factor: float) -> Flops:
        return Flops(*(factor * value for value in dataclasses.astuple(self)))

    @property
    def total(self) -> float:
        """Model FLOPs: what the mathematics needs (the numerator of MFU)."""
        return self.matmul + self.attention

    @property
    def executed(self) -> float:
        """FLOPs that run, pairs under the mask included (the numerator of HFU, without recomputation)."""
        return self.matmul + self.attention_executed


def forward(network: Counted, plan: TokenPlan, queries: int) -> Flops:
    """One sample's forward pass over the plan's last `queries` tokens."""
    stack = network.stack
    pair = 4 * stack.heads * stack.head_dim * stack.layers
    return Flops(2 * network.products(plan, queries), pair * plan.pairs(queries), pair * queries * plan.length)


def of_passes(passes: Iterable[Pass]) -> Flops:
    """All passes of one sample; a trained pass costs three forward ones."""
    total = Flops()
    for one in passes:
        total = total + forward(one.network, one.plan, one.queries) * (one.repeats * (3 if one.trained else 1))
    return total


def parameter_count(params: Any) -> int:
    """Number of scalars in a tree of arrays or shapes."""
    return sum(int(leaf.size) for leaf in jax.tree.leaves(params))
