"""How long a step takes at least, resource by resource, from what its program computes and moves."""

from __future__ import annotations

import dataclasses
from collections import defaultdict

from wamjax.compute.costs import bounds
from wamjax.compute.flops import of_passes
from wamjax.nn.splash import executed_pairs, layout
from wamjax.planning.program import Program
from wamjax.planning.program_text import between_slices, collectives, kernels
from wamjax.planning.topology import Topology
from wamjax.policies.contract import Pass

ATTAINED = 0.6
"""Share of the chip's peak that large products reach: of the slow estimate. Published runs reach 0.4 to 0.7."""


@dataclasses.dataclass(frozen=True)
class Moved:
    """Bytes that a chip sends in a step.

    Attributes:
        collectives: by kind; what is gathered, reduced or exchanged. forward: of them, reduced in forward passes.
        inside, across: that its links carry, and the network between slices.
    """

    collectives: dict[str, int]
    forward: int
    inside: float
    across: float


def moved(program: Program, slices: int) -> Moved:
    """What a compiled step moves; sums over slices go around in a ring."""
    kinds: dict[str, int] = defaultdict(int)
    inside, forward = 0.0, 0
    for one in collectives(program.text):
        kinds[one.kind] += one.bytes
        inside += one.traffic
        forward += one.bytes * (one.kind == "all-reduce" and "jvp(" in one.name and "transpose(" not in one.name)
    return Moved(dict(kinds), forward, inside, 2 * between_slices(program.text) * (slices - 1) / slices)


def executed(passes: list[Pass], program: Program | None, topology: Topology, samples: int, ways: int) -> float:
    """Operations of a step on all chips: recomputation, padding, and what attention's kernels do twice included.

    Args:
        passes, samples: of the step. ways: into how many parts sequences are padded to be cut.
        program: whose kernels are counted; without, two forward passes' worth of attention go backwards.
    """
    products = attention = 0.0
    share: dict[int, float] = {}
    for one in passes:
        forward = of_passes([dataclasses.replace(one, trained=False)])
        remat, plan = one.network.stack.remat, one.plan.padded(-one.plan.length % ways)
        times = (3 + (remat is not None)) if one.trained else 1
        ratio = executed_pairs(plan) / one.plan.pairs() if one.queries == one.plan.length else 1.0
        share[layout(plan).length] = executed_pairs(plan) / layout(plan).length ** 2
        products += forward.matmul * times - (2 * saved(one) if one.trained and remat is not None else 0)
        attention += forward.attention * ratio * times
    within = [one for one in kernels(program.text) if one.queries == one.keys] if program else []
    if any(one.queries in share for one in within):
        attention = sum(one.operations * share.get(one.queries, 1.0) for one in within) * topology.chips / samples
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


def pairs_ratio(passes: list[Pass], ways: int) -> float:
    """Pairs that the kernel computes over those that are visible, in whole sequences."""
    whole = [one.plan for one in passes if one.queries == one.plan.length]
    return sum(executed_pairs(one.padded(-one.length % ways)) for one in whole) / sum(one.pairs() for one in whole)


def terms(topology: Topology, operations: float, sent: Moved, program: Program) -> dict[str, float]:
    """Seconds of a step that each resource needs by itself.

    Memory traffic is a lower bound: the state read and written once, temporaries written and read once.
    """
    touched = 2 * (program.memory["arguments"] + program.memory["temporaries"])
    return bounds(topology.chip, operations / topology.chips, touched, sent.inside, sent.across)
