"""Floating-point operations, counted from token plans and shapes, and read off programs.

A multiply-add counts as two. Only matrix products, convolutions and attention are counted, as is usual: norms and
activations are left out. Nothing is taken from a compiler, whose counts miss scanned layers and kernels.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax

from wamjax.nn.attention import LONG
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
        return self.times(factor, factor)

    def times(self, products: float, attention: float) -> Flops:
        """With another number of products, and of attention."""
        return Flops(products * self.matmul, attention * self.attention, attention * self.attention_executed)

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
    """All passes of one sample; a trained pass costs three forward ones, or fewer (`Pass.forwards`)."""
    total = Flops()
    for one in passes:
        total = total + (forward(one.network, one.plan, one.queries) * one.repeats).times(*one.forwards)
    return total


def kernel_pairs(plan: TokenPlan, queries: int | None = None) -> int:
    """Pairs that run on a TPU: whole blocks of the kernel for long sequences; see `wamjax.nn.attention.attend`."""
    count = plan.length if queries is None else queries
    if plan.length < LONG:
        return count * plan.length
    if count < plan.length:
        return count * plan.length if plan.causal else plan.pairs(count)
    from wamjax.nn.splash import executed_pairs

    return executed_pairs(plan)


def traced(function: Callable[..., Any], *shapes: Any) -> float:
    """Operations of the products and convolutions in a function's program, loops multiplied out.

    This is what the program computes, recomputation and masked pairs included; kernels are not looked into. Of the
    branches of a condition the dearest counts, and loops of unknown length count once.

    Args:
        function: anything that JAX traces. shapes: its arguments, as arrays or as shapes.
    """
    return _operations(jax.make_jaxpr(function)(*shapes).jaxpr)


def program(function: Callable[..., Any], *shapes: Any) -> tuple[Flops, float]:
    """A function's operations, and how many numbers of its arguments it reads."""
    found = jax.make_jaxpr(function)(*shapes).jaxpr
    used = {id(one) for step in found.eqns for one in step.invars}
    read = sum(math.prod(one.aval.shape) for one in found.invars if id(one) in used)
    return Flops(_operations(found)), float(read)


def _operations(code: Any) -> float:
    total = 0.0
    for step in code.eqns:
        name, out = step.primitive.name, step.outvars
        if name == "dot_general":
            (contracted, _), _ = step.params["dimension_numbers"]
            each = math.prod(step.invars[0].aval.shape[axis] for axis in contracted)
            total += 2 * each * math.prod(out[0].aval.shape)
        elif name == "conv_general_dilated":
            kernel, axes = step.invars[1].aval.shape, step.params["dimension_numbers"].rhs_spec
            total += 2 * math.prod(kernel) / kernel[axes[0]] * math.prod(out[0].aval.shape)
        elif name != "pallas_call":
            inside = [_operations(one) for one in _inside(step.params.values())]
            together = max(inside, default=0.0) if name == "cond" else sum(inside)
            total += together * (step.params["length"] if name == "scan" else 1)
    return total


def _inside(values: Iterable[Any]) -> Iterator[Any]:
    """Programs among a step's parameters."""
    for value in values:
        if isinstance(value, tuple | list):
            yield from _inside(value)
        elif hasattr(value, "eqns"):
            yield value
        elif hasattr(value, "jaxpr"):
            yield value.jaxpr


def parameter_count(params: Any) -> int:
    """Number of scalars in a tree of arrays or shapes."""
    return sum(int(leaf.size) for leaf in jax.tree.leaves(params))
