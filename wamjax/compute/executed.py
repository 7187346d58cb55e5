"""Floating-point operations that really run, with recomputed activations and pairs that attention computes in vain."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import jax

from wamjax.compute.flops import Flops, of_passes
from wamjax.nn.tokens import TokenPlan
from wamjax.policies.contract import Pass


def executed_flops(passes: Iterable[Pass], pairs: Callable[[TokenPlan], int] | None = None) -> Flops:
    """All passes of one sample, with a second forward pass where activations are recomputed.

    Args:
        passes: what runs.
        pairs: of a query and a key that attention computes for a plan; default: what it does on this run's devices.
    """
    pairs, total = pairs or _pairs_here, Flops()
    for one in passes:
        forward = of_passes([dataclasses.replace(one, trained=False)])
        ratio = pairs(one.plan) / one.plan.pairs() if one.queries == one.plan.length else 1.0
        again = one.trained and one.network.stack.remat is not None
        products, attention = (times + again for times in one.forwards)
        total = total + Flops(forward.matmul, forward.attention, forward.attention * ratio).times(products, attention)
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


class KernelCalls(Protocol):
    """Calls of an attention kernel in a compiled program, on one device.

    Attributes:
        queries, keys: of a call, padding included. operations: of all calls in a step, had they no mask.
    """

    @property
    def queries(self) -> int: ...

    @property
    def keys(self) -> int: ...

    @property
    def operations(self) -> float: ...


def executed_on_chips(
    passes: Sequence[Pass], samples: int, ways: int = 1, kernels: Iterable[KernelCalls] = (), chips: int = 1
) -> float:
    """Operations of a step on all TPU chips: recomputation, padding, and what attention's kernels do twice included.

    Args:
        passes, samples: of the step. ways: into how many parts sequences are padded to be cut.
        kernels: those that its program calls; without, two forward passes' worth of attention go backwards.
        chips: that run the program.
    """
    from wamjax.nn.splash import executed_pairs, layout

    products = attention = 0.0
    share: dict[int, float] = {}
    for one in passes:
        forward = of_passes([dataclasses.replace(one, trained=False)])
        plan, again = one.plan.padded(-one.plan.length % ways), one.trained and one.network.stack.remat is not None
        times, attended = (number + again for number in one.forwards)
        ratio = executed_pairs(plan) / one.plan.pairs() if one.queries == one.plan.length else 1.0
        share[layout(plan).length] = executed_pairs(plan) / layout(plan).length ** 2
        products += forward.matmul * times - (2 * saved(one) if again else 0)
        attention += forward.attention * ratio * attended
    within = [one for one in kernels if one.queries == one.keys]
    if any(one.queries in share for one in within):
        attention = sum(one.operations * share.get(one.queries, 1.0) for one in within) * chips / samples
    return samples * (products + attention)


def saved(one: Pass) -> float:
    """Multiply-adds of a pass that are not done again, because their results are kept for the backward pass."""
    stack = one.network.stack
    inner, total = stack.heads * stack.head_dim, 0
    for group in one.plan.groups:
        expert = stack.experts[group.expert]
        kept = {
            "qkv": 3 * expert.width * inner,
            "attn_out": inner * expert.width,
            "mlp_hidden": expert.width * expert.mlp,
        }
        total += group.length * sum(kept.get(name, 0) for name in stack.remat or ())
    return float(stack.layers * total)


def pairs_ratio(passes: Sequence[Pass], ways: int = 1) -> float:
    """Pairs that the TPU's kernel computes over those that are visible, in whole sequences padded to `ways` parts."""
    from wamjax.nn.splash import executed_pairs

    whole = [one.plan for one in passes if one.queries == one.plan.length]
    return sum(executed_pairs(one.padded(-one.length % ways)) for one in whole) / sum(one.pairs() for one in whole)
