"""Floating-point operations that really run, with recomputed activations and pairs that attention computes in vain."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import jax

from wamjax.compute.flops import Flops, of_passes
from wamjax.nn.tokens import TokenPlan
from wamjax.policies.contract import Pass


def executed(passes: Iterable[Pass], pairs: Callable[[TokenPlan], int] | None = None) -> Flops:
    """All passes of one sample, with a second forward pass where activations are recomputed.

    Args:
        passes: what runs.
        pairs: of a query and a key that attention computes for a plan; default: what it does on this run's devices.
    """
    pairs, total = pairs or _pairs_here, Flops()
    for one in passes:
        forward = of_passes([dataclasses.replace(one, trained=False)])
        ratio = pairs(one.plan) / one.plan.pairs() if one.queries == one.plan.length else 1.0
        times = (3 + (one.network.stack.remat is not None)) if one.trained else 1
        total = total + Flops(forward.matmul, forward.attention, forward.attention * ratio) * times
    return total


def _pairs_here(plan: TokenPlan) -> int:
    """Pairs that the kernel computes on TPUs, and the reference elsewhere."""
    from wamjax.nn.attention import LONG  # here, since what only counts need not load kernels

    if plan.length < LONG:
        return plan.length**2
    if jax.default_backend() == "tpu":
        from wamjax.nn.splash import executed_pairs

        return executed_pairs(plan)
    return plan.length**2 if plan.causal else plan.pairs()
