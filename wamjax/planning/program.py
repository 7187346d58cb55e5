"""The real training step, lowered and compiled for a topology, with nothing but shapes."""

from __future__ import annotations

import dataclasses
import math
import resource
import sys
import time
from typing import Any

import jax
from jax.sharding import Mesh

from wamjax.policies.contract import Params
from wamjax.sharding.mesh import Rules, batch_sharding, shardings
from wamjax.training.loop import TrainConfig
from wamjax.training.lora import Adapted, LoRAConfig, split
from wamjax.training.optimizer import make_optimizer
from wamjax.training.rounding import in_eight_bits
from wamjax.training.step import Learner, TrainState, abstract_state, make_step


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is to be trained, in shapes.

    Attributes:
        learner: the policy; its batches are encoded already.
        encoded: shapes of a batch. frozen: of the frozen parameters.
        config, rules: as of `train`.
    """

    learner: Learner
    encoded: Any
    frozen: Params
    config: TrainConfig
    rules: Rules

    @classmethod
    def of(cls, learner: Learner, encoded: Any, frozen: Params, config: TrainConfig, rules: Rules) -> Subject:
        """With products in 8 bits and low-rank adapters in place, where the run has these."""
        learner = in_eight_bits(learner, config.products)
        if config.lora is not None:
            frozen = {"policy": frozen, "base": {"base": _base(learner, config.lora)}}
            learner = Adapted(learner, config.lora, "base")
        return cls(learner, encoded, frozen, config, rules)

    def state(self, mesh: Mesh) -> TrainState:
        """Shapes and shardings of the train state."""
        optimizer = make_optimizer(self.config.optimizer, self.config.steps)
        return abstract_state(self.learner, optimizer, self.config.optimizer.ema, mesh, self.rules, self.config.guard)


def _base(learner: Learner, lora: LoRAConfig) -> Params:
    """Shapes of the parameters that stay."""
    return jax.eval_shape(lambda key: split(learner.init(key), lora, key)[1], jax.random.key(0))


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled step.

    Attributes:
        text: of the program that every device runs.
        memory: bytes on a device: "peak", which the compiler holds against what there is; of it "arguments" (state and
            batch), and "temporaries" (the rest). And in the memory of its host: "host".
        parameters: trained.
        seconds: that lowering and compiling took. processor_seconds: of all cores.
        compiler_bytes: the most memory that this process has had so far.
    """

    text: str
    memory: dict[str, int]
    parameters: int
    seconds: float
    processor_seconds: float
    compiler_bytes: int


def compile_step(subject: Subject, mesh: Mesh) -> Program:
    """Compiles `make_step`, the one that `train` runs, for the devices of a mesh."""
    begin, worked, config = time.monotonic(), time.process_time(), subject.config
    optimizer, state = make_optimizer(config.optimizer, config.steps), subject.state(mesh)
    options = (config.optimizer.ema, config.seed, mesh, state, config.portions, config.guard.spike)
    step = make_step(subject.learner, optimizer, *options)
    rows, places = batch_sharding(mesh), shardings(subject.frozen, subject.rules, mesh)
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows), subject.encoded)
    frozen = jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), subject.frozen, places
    )
    compiled = step.lower(state, frozen, batch).compile()
    sizes = compiled.memory_analysis()
    # The compiler's peak has the arguments on hosts in it, though it does not hold them against the chip's memory.
    peak = sizes.peak_memory_in_bytes - sizes.host_argument_size_in_bytes
    memory = {
        "arguments": int(sizes.argument_size_in_bytes),
        # The compiler's own sum of temporaries counts what takes the same place twice.
        "temporaries": int(peak - sizes.argument_size_in_bytes),
        "host": int(sizes.host_temp_size_in_bytes + sizes.host_argument_size_in_bytes),
        "peak": int(peak),
    }
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    spent = time.monotonic() - begin, time.process_time() - worked
    return Program(compiled.as_text(), memory, parameters, *spent, most_memory())


def bytes_on_device(tree: Any) -> int:
    """What a device holds of shapes that have shardings, without what lies in the memory of its host."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if leaf.sharding.memory_kind != "pinned_host"]
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def most_memory() -> int:
    """Bytes of the most memory that this process has had."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
