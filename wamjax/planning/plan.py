"""A pod plan: does the run fit, what does a step move and compute, how long does it take, what does it cost."""

from __future__ import annotations

import dataclasses
import re

from wamjax.compute.executed import executed_on_chips, pairs_ratio
from wamjax.compute.flops import of_passes
from wamjax.planning.encoding import Encoding
from wamjax.planning.program import Program, Subject, compile_step
from wamjax.planning.program_text import float32_products, kernels
from wamjax.planning.roofline import ATTAINED, moved, terms
from wamjax.planning.topology import Topology
from wamjax.sharding.mesh import MeshConfig, make_mesh


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a plan found.

    Attributes:
        topology, mesh: where. changes: of the configuration, as command lines write them. fits: whether it does.
        hbm_bytes, hbm_limit_bytes: needed on a chip, and there. memory: its parts.
        flops_per_step: of the mathematics, all chips. executed_per_step: with recomputation and padding.
        collectives: bytes gathered, reduced and exchanged on a device in a step, by kind. forward_reduced: of them, by
            all-reduces in forward passes, where there should be none but for sums over `tensor`.
        ici_bytes, dcn_bytes: that a chip sends in a step to its neighbours, and to other slices.
        terms: seconds of a step by what would bound it.
        step_seconds, mfu: the slow estimate: nothing overlaps, products at `ATTAINED` of the peak.
        step_seconds_best, mfu_best: everything overlaps, products at the peak.
        days, chip_hours: of the whole run, slow estimate.
        attention_ratio: pairs that the kernel computes over pairs that are visible.
        float32: operations that run as float32 products. kernels: calls of attention's kernels.
        parameters: trained.
        compile_seconds, processor_seconds, compiler_bytes: wall and processor time of the compiler, and the most memory
            that this process had.
        error: what the compiler said of a plan that does not fit. advice: what was tried then, and what would help.
        encoding: the job that makes latents and features beforehand.
    """

    topology: str
    mesh: dict[str, int]
    changes: tuple[str, ...]
    fits: bool
    hbm_bytes: int
    hbm_limit_bytes: int
    memory: dict[str, int]
    flops_per_step: float
    executed_per_step: float
    collectives: dict[str, int]
    forward_reduced: int
    ici_bytes: float
    dcn_bytes: float
    terms: dict[str, float]
    step_seconds: float
    mfu: float
    step_seconds_best: float
    mfu_best: float
    days: float
    chip_hours: float
    attention_ratio: float
    float32: dict[str, int]
    kernels: int
    parameters: int
    compile_seconds: float
    processor_seconds: float
    compiler_bytes: int
    error: str = ""
    advice: tuple[str, ...] = ()
    encoding: Encoding | None = None

    @property
    def margin(self) -> int:
        """Bytes left on a chip; negative where it does not fit."""
        return self.hbm_limit_bytes - self.hbm_bytes


NOTHING = Program("", {"arguments": 0, "temporaries": 0}, 0, 0.0, 0.0, 0)
"""Of a step that the compiler refused."""


def plan(subject: Subject, topology: Topology, mesh_config: MeshConfig, changes: tuple[str, ...] = ()) -> Plan:
    """Compiles the training step for the topology and reads the answer off it.

    Args:
        subject: what is trained. topology, mesh_config: where it is to run.
        changes: what was changed of the configuration, for the record.
    """
    mesh = make_mesh(mesh_config, topology.devices())
    program, error = NOTHING, ""
    try:
        program = compile_step(subject, mesh)
        needed = program.memory["peak"]
    except Exception as failure:
        needed, error = _out_of_memory(failure)
    config, passes, limit = subject.config, subject.learner.passes("train"), int(topology.chip.memory)
    ways, sent = mesh_config.ring * mesh_config.context, moved(program, topology.slices)
    model = of_passes(passes).total * config.batch_size
    runs = executed_on_chips(passes, config.batch_size, ways, kernels(program.text), topology.chips)
    seconds = terms(topology, runs, sent, program)
    slow = seconds["compute"] / ATTAINED + seconds["ici"] + seconds["dcn"]
    fast, pod = max(seconds.values()), topology.chips * topology.chip.flops
    return Plan(
        topology=topology.name,
        mesh={name: int(size) for name, size in mesh.shape.items()},
        changes=changes,
        fits=needed <= limit,
        hbm_bytes=needed,
        hbm_limit_bytes=limit,
        memory=program.memory,
        flops_per_step=model,
        executed_per_step=runs,
        collectives=sent.collectives,
        forward_reduced=sent.forward,
        ici_bytes=sent.inside,
        dcn_bytes=sent.across,
        terms=seconds,
        step_seconds=slow,
        mfu=model / pod / slow,
        step_seconds_best=fast,
        mfu_best=model / pod / fast,
        days=slow * config.steps / 86_400,
        chip_hours=slow * config.steps / 3600 * topology.chips,
        attention_ratio=pairs_ratio(passes, ways),
        float32=dict(float32_products(program.text)),
        kernels=len(kernels(program.text)),
        parameters=program.parameters,
        compile_seconds=program.seconds,
        processor_seconds=program.processor_seconds,
        compiler_bytes=program.compiler_bytes,
        error=error,
    )


def _out_of_memory(failure: Exception) -> tuple[int, str]:
    """Bytes that a program would have needed, from what the compiler says; other failures are raised."""
    size = r"([\d.]+)([KMGT])"
    said = (rf"Used {size} of \S+ hbm[^\n]*", rf"memory required for HLO temporaries \({size}\) exceeds[^\n]*")
    match = next(filter(None, (re.search(words, str(failure)) for words in said)), None)
    if not match:
        raise failure
    unit = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    return int(float(match[1]) * unit[match[2]]), match[0]
