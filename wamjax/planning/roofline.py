"""How long a step takes at least, resource by resource, from what its program computes and moves."""

from __future__ import annotations

import dataclasses
from collections import defaultdict

from wamjax.compute.costs import bounds
from wamjax.planning.program import Program
from wamjax.planning.program_text import between_slices, collectives
from wamjax.planning.topology import Topology

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


def terms(topology: Topology, operations: float, sent: Moved, program: Program) -> dict[str, float]:
    """Seconds of a step that each resource needs by itself.

    Memory traffic is a lower bound: the state read and written once, temporaries written and read once.
    """
    touched = 2 * (program.memory["arguments"] + program.memory["temporaries"])
    return bounds(topology.chip, operations / topology.chips, touched, sent.inside, sent.across)
