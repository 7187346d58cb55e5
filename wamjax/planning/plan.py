"""A pod plan: does the run fit, what does a step move and compute, how long does it take, what does it cost."""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from typing import Any

from wamjax.compute.costs import bounds
from wamjax.compute.executed import executed
from wamjax.compute.flops import kernel_pairs, of_passes
from wamjax.planning.program import Program, compile_step
from wamjax.planning.program_text import collectives, float32_products, kernels
from wamjax.planning.topology import Topology
from wamjax.policies.contract import Params, Pass
from wamjax.sharding.mesh import MeshConfig, Rules, make_mesh
from wamjax.training.loop import TrainConfig
from wamjax.training.step import Learner

ATTAINED = 0.6
"""Share of the chip's peak that large products reach: of the slow estimate. Published runs reach 0.4 to 0.7."""

TRAFFIC = {"all-reduce": 2.0}
"""Times that a collective's result crosses a device's links; others once."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a plan found.

    Attributes:
        topology, mesh: where. fits: whether it does.
        hbm_bytes, hbm_limit_bytes: needed on a chip, and there. memory: its parts.
        flops_per_step: of the mathematics, all chips. executed_per_step: with recomputation and padding.
        collectives: bytes a device handles in a step, by kind. terms: seconds of a step by what would bound it.
        step_seconds, mfu: the slow estimate: nothing overlaps, products at `ATTAINED` of the peak.
        step_seconds_best, mfu_best: everything overlaps, products at the peak.
        days, chip_hours: of the whole run, slow estimate.
        attention_ratio: pairs that the kernel computes over pairs that are visible.
        float32: operations that run as float32 products. parameters, compile_seconds: of the program.
        advice: what would help. error: what the compiler said of a plan that does not fit.
    """

    topology: str
    mesh: dict[str, int]
    fits: bool
    hbm_bytes: int
    hbm_limit_bytes: int
    memory: dict[str, int]
    flops_per_step: float
    executed_per_step: float
    collectives: dict[str, int]
    terms: dict[str, float]
    step_seconds: float
    mfu: float
    step_seconds_best: float
    mfu_best: float
    days: float
    chip_hours: float
    attention_ratio: float
    float32: dict[str, int]
    parameters: int
    compile_seconds: float
    kernels: int
    advice: list[str]
    error: str = ""


def plan(
    learner: Learner,
    encoded: Any,
    frozen: Params,
    config: TrainConfig,
    topology: Topology,
    mesh_config: MeshConfig,
    rules: Rules,
) -> Plan:
    """Compiles the training step for the topology and reads the answer off it.

    Args:
        learner, encoded, frozen, config, rules: as of `compile_step`.
        topology, mesh_config: where it is to run.
    """
    mesh = make_mesh(mesh_config, topology.devices())
    sizes = {name: int(size) for name, size in mesh.shape.items()}
    passes = learner.passes("train")
    model = of_passes(passes).total * config.batch_size
    run = executed(passes, kernel_pairs).executed * config.batch_size
    limit, program, error = int(topology.chip.memory), None, ""
    try:
        program = compile_step(learner, encoded, frozen, config, mesh, rules)
        needed = max(program.memory["peak"], program.memory["arguments"] + program.memory["temporaries"])
    except Exception as failure:
        needed, error = _out_of_memory(failure)
    moved = _moved(program)
    terms = _terms(topology, sizes, run, moved, program)
    slow = terms["compute"] / ATTAINED + terms["ici"] + terms["dcn"]
    fast, pod = max(terms.values()), topology.chips * topology.chip.flops
    return Plan(
        topology=topology.name,
        mesh=sizes,
        fits=needed <= limit,
        hbm_bytes=needed,
        hbm_limit_bytes=limit,
        memory=program.memory if program else {},
        flops_per_step=model,
        executed_per_step=run,
        collectives=moved,
        terms=terms,
        step_seconds=slow,
        mfu=model / pod / slow,
        step_seconds_best=fast,
        mfu_best=model / pod / fast,
        days=slow * config.steps / 86_400,
        chip_hours=slow * config.steps / 3600 * topology.chips,
        attention_ratio=_pairs_ratio(passes),
        float32=dict(float32_products(program.text)) if program else {},
        parameters=program.parameters if program else 0,
        compile_seconds=program.seconds if program else 0.0,
        kernels=kernels(program.text) if program else 0,
        advice=[] if needed <= limit else _advice(topology, sizes, config, passes, needed - limit),
        error=error,
    )


def _pairs_ratio(passes: list[Pass]) -> float:
    whole = [one.plan for one in passes if one.queries == one.plan.length]
    return sum(map(kernel_pairs, whole)) / sum(one.pairs() for one in whole)


def _moved(program: Program | None) -> dict[str, int]:
    """Bytes by kind of collective."""
    total: dict[str, int] = defaultdict(int)
    for one in collectives(program.text) if program else ():
        total[one.kind] += one.bytes
    return dict(total)


def _terms(
    topology: Topology, mesh: dict[str, int], executed: float, moved: dict[str, int], program: Program | None
) -> dict[str, float]:
    """Seconds of a step that each resource needs by itself.

    Memory traffic is a lower bound: the state read and written once, temporaries written and read once. Between slices
    go the gradients of a device's share, in bfloat16, twice (a ring's reduction).
    """
    chip, memory = topology.chip, program.memory if program else {"arguments": 0, "temporaries": 0}
    parameters = program.parameters if program else 0
    links = sum(TRAFFIC.get(kind, 1.0) * size for kind, size in moved.items())
    across = 2 * 2 * parameters / (mesh["fsdp"] * mesh["tensor"]) if topology.slices > 1 else 0.0
    touched = 2 * (memory["arguments"] + memory["temporaries"])
    return bounds(chip, executed / topology.chips, touched, links, across)


def _out_of_memory(failure: Exception) -> tuple[int, str]:
    """Bytes that a program would have needed, from what the compiler says; other failures are raised."""
    size = r"([\d.]+)([KMGT])"
    said = (rf"Used {size} of \S+ hbm[^\n]*", rf"memory required for HLO temporaries \({size}\) exceeds[^\n]*")
    match = next(filter(None, (re.search(words, str(failure)) for words in said)), None)
    if not match:
        raise failure
    unit = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    return int(float(match[1]) * unit[match[2]]), match[0]


def _advice(topology: Topology, mesh: dict[str, int], config: TrainConfig, passes: list[Pass], over: int) -> list[str]:
    """What would bring the need down, the cheapest first."""
    samples = mesh["replica"] * mesh["data"] * mesh["fsdp"]
    held, found = config.batch_size / samples / config.portions, []
    if any(one.trained and one.network.stack.remat is None for one in passes):
        found.append('recompute activations: remat=("block_in",) in the network')
    if mesh["data"] > 1:
        found.append(f"spread parameters further: mesh.fsdp={mesh['fsdp'] * mesh['data']}, mesh.data=1")
    if held > 1:
        found.append(f"read the batch in more portions: train.portions={round(held * config.portions)}")
    more = over / topology.chip.memory * 100
    found.append(
        f"take more chips: this need is {more:.0f} % of a chip's memory above it; at equal batch, twice as many"
    )
    return found
