"""The real training step, lowered and compiled for a topology, with nothing but shapes."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import jax
from jax.sharding import Mesh

from wamjax.policies.contract import Params
from wamjax.sharding.mesh import Rules, batch_sharding
from wamjax.training.loop import TrainConfig
from wamjax.training.optimizer import make_optimizer
from wamjax.training.step import Learner, abstract_state, make_step


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled step.

    Attributes:
        text: of the program that every device runs.
        memory: bytes on a device: "arguments" (state and batch), "temporaries" (what the step needs beside), "peak".
        parameters: trained.
        seconds: that lowering and compiling took.
    """

    text: str
    memory: dict[str, int]
    parameters: int
    seconds: float


def compile_step(
    learner: Learner, encoded: Any, frozen: Params, config: TrainConfig, mesh: Mesh, rules: Rules
) -> Program:
    """Compiles `make_step`, the one that `train` runs.

    Args:
        learner: what is trained. encoded, frozen: shapes of its batch and of its frozen parameters.
        config, mesh, rules: as of `train`.
    """
    begin = time.monotonic()
    optimizer = make_optimizer(config.optimizer, config.steps)
    state = abstract_state(learner, optimizer, config.optimizer.ema, mesh, rules, config.guard)
    step = make_step(
        learner, optimizer, config.optimizer.ema, config.seed, mesh, state, config.portions, config.guard.spike
    )
    rows = batch_sharding(mesh)
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows), encoded)
    compiled = step.lower(state, frozen, batch).compile()
    sizes = compiled.memory_analysis()
    memory = {
        "arguments": int(sizes.argument_size_in_bytes),
        "temporaries": int(sizes.temp_size_in_bytes),
        "host": int(sizes.host_temp_size_in_bytes),
        "peak": int(sizes.peak_memory_in_bytes),
    }
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    return Program(compiled.as_text(), memory, parameters, time.monotonic() - begin)
