"""The training loop.

Its order is a contract: evaluate, save (state and data position), next batch, dispatch step s, read the metrics of
step s - 1. The host never waits for the device it has just fed, and a saved data position always fits the saved state.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from wamjax.compute.chips import peak
from wamjax.compute.flops import of_passes, parameter_count
from wamjax.errors import NonFiniteLoss, UserError
from wamjax.policies.contract import Params
from wamjax.sharding import processes
from wamjax.sharding.mesh import Rules, place, process_rows, shardings, to_devices
from wamjax.training.checkpoint import Checkpoints, DamagedCheckpoint
from wamjax.training.lora import LoRAConfig, adapt
from wamjax.training.metrics import MetricWriter, SilentWriter, make_writer
from wamjax.training.optimizer import OptimizerConfig, make_optimizer, schedule
from wamjax.training.rounding import in_eight_bits
from wamjax.training.step import Learner, TrainState, abstract_state, init_state, make_step, make_validation

Batches = Callable[[int, Sequence[int]], Iterator[dict[str, np.ndarray]]]
"""(first step, rows of this process) -> endless batches."""

FINAL_STEPS = 50
"""The final loss is the mean over so many last steps."""


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A training run.

    Attributes:
        steps: length of the run.
        batch_size: samples per step over all devices.
        portions: in how many parts, one after the other, a step reads its batch (gradient accumulation).
        seed: of parameters, data order and noise.
        optimizer: optimizer and schedule.
        lora: adapters to train beside parameters that stay; None trains all parameters.
        products: "int8" or "fp8": blocks multiply in 8 bits (`wamjax.training.rounding`); "" for the policy's numbers.
        log_every, validate_every, checkpoint_every: in steps.
        validation_batches: batches of one validation.
        keep: newest checkpoints kept. keep_every: checkpoints of such steps are kept for ever; 0 for none.
    """

    steps: int = 5000
    batch_size: int = 32
    portions: int = 1
    seed: int = 0
    optimizer: OptimizerConfig = OptimizerConfig()
    lora: LoRAConfig | None = None
    products: str = ""
    log_every: int = 20
    validate_every: int = 500
    validation_batches: int = 4
    checkpoint_every: int = 250
    keep: int = 2
    keep_every: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "portions", "log_every", "validate_every", "checkpoint_every", "keep"):
            if getattr(self, name) < 1:
                raise UserError(f"train.{name} is {getattr(self, name)}: it must be at least 1")


def train(
    policy: Learner,
    frozen: Params,
    config: TrainConfig,
    *,
    mesh: Mesh,
    rules: Rules,
    batches: Batches,
    validation: Batches | None,
    run: Path,
    meta: dict[str, Any],
    initial: Params | None = None,
) -> dict[str, Any]:
    """Trains until `config.steps`, going on from the run folder's newest checkpoint.

    Args:
        policy: what to train. frozen: its frozen parameters.
        mesh, rules: where arrays lie.
        batches, validation: loaders.
        run: folder for checkpoints and metrics.
        meta: stored with every checkpoint.
        initial: parameters to begin with, for instance imported ones; their arrays are used up. None: the policy's.

    Returns:
        A summary: steps, flops, mfu, final_loss, parameters, wall_seconds, batch_size, peak_flops, peak_source.

    Raises:
        NonFiniteLoss: loss or gradient is not finite; names the last good checkpoint.
    """
    optimizer = make_optimizer(config.optimizer, config.steps)
    checkpoints = Checkpoints(run, config.keep, config.keep_every)
    policy = in_eight_bits(policy, config.products)
    policy, initial, frozen = adapt(policy, initial, frozen, config.lora, config.seed)
    frozen = place(frozen, shardings(frozen, rules, mesh))
    initial = place(initial, shardings(initial, rules, mesh))
    state, frozen, spent = _start(policy, initial, frozen, optimizer, config, mesh, rules, checkpoints)
    first = int(state.step)
    step_fn = make_step(policy, optimizer, config.optimizer.ema, config.seed, mesh, state, config.portions)
    rows = process_rows(config.batch_size, mesh, config.portions)
    loader = batches(first, rows)
    validate = _validator(policy, config, mesh, validation, rows)
    writer = make_writer(run, config.steps, first)
    meter = _Meter(policy, config, first, spent, checkpoints)

    def save(step: int) -> None:
        position = {"next_step": step, "seed": config.seed}
        checkpoints.save(state, frozen, meta | {"data": position, "meter": meter.record()}, step)

    pending: dict[str, jax.Array] | None = None
    try:
        for step in range(first, config.steps):
            if step > first and step % config.validate_every == 0:
                writer.write(step, validate(state.averaged, frozen))
            if step > first and step % config.checkpoint_every == 0:
                meter.read(step, pending, writer)  # never save a state whose gradient was not finite
                pending = None
                save(step)
            batch = to_devices(next(loader), mesh)
            state, metrics = step_fn(state, frozen, batch)
            meter.read(step, pending, writer)
            pending = metrics
        meter.read(config.steps, pending, writer)
        if checkpoints.latest != config.steps:
            writer.write(config.steps, validate(state.averaged, frozen))
            save(config.steps)
    except BaseException as error:
        processes.fail(error)  # first, since closing waits for checkpoints that all processes write
        raise
    finally:
        checkpoints.close()
        writer.close()
    return meter.summary(state)


def _start(
    policy: Learner,
    initial: Params | None,
    frozen: Params,
    optimizer: Any,
    config: TrainConfig,
    mesh: Mesh,
    rules: Rules,
    checkpoints: Checkpoints,
) -> tuple[TrainState, Params, dict[str, Any]]:
    """The state to begin with, restored where there is a checkpoint, and what the meter had recorded by then."""
    ema, damaged = config.optimizer.ema, checkpoints.damaged()
    processes.agree(the_damaged_checkpoints=damaged)
    for broken, wrong in damaged.items():
        checkpoints.set_aside(broken, wrong)
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), frozen)
    while (step := checkpoints.latest) is not None:
        processes.agree(the_newest_checkpoint=step)
        try:
            state, frozen = checkpoints.restore(step, abstract_state(policy, optimizer, ema, mesh, rules), abstract)
            spent = checkpoints.meta(step)["meter"]
        except DamagedCheckpoint as error:
            checkpoints.set_aside(step, error)
            continue
        processes.say(f"going on from {checkpoints.path(step)}")
        return state, frozen, spent
    processes.agree(the_newest_checkpoint=None)
    state = init_state(policy, optimizer, ema, config.seed, mesh, rules, initial)
    return state, frozen, {"wall_seconds": 0.0, "losses": []}


def _validator(
    policy: Learner, config: TrainConfig, mesh: Mesh, validation: Batches | None, rows: Sequence[int]
) -> Callable[[Params, Params], dict[str, float]]:
    """(averaged params, frozen) -> mean validation losses, always over the same batches and noise."""
    if validation is None:
        return lambda params, frozen: {}
    loss = make_validation(policy, config.seed, mesh)

    def run(params: Params, frozen: Params) -> dict[str, float]:
        loader = validation(0, rows)
        each = [loss(params, frozen, to_devices(next(loader), mesh)) for _ in range(config.validation_batches)]
        return {f"validation/{name}": float(np.mean([float(one[name]) for one in each])) for name in each[0]}

    return run


class _Meter:
    """Reads metrics one step late, guards against non-finite values, and keeps the clock."""

    def __init__(
        self, policy: Learner, config: TrainConfig, first: int, spent: dict[str, Any], checkpoints: Checkpoints
    ) -> None:
        self._config, self._checkpoints = config, checkpoints
        self._rate = schedule(config.optimizer, config.steps)
        self._flops = of_passes(policy.passes("train")).total * config.batch_size
        self._peak = peak()
        self._before, self._began = float(spent["wall_seconds"]), time.monotonic()
        self._last_step, self._last_time = first, self._began
        self._losses: deque[float] = deque(spent["losses"], maxlen=FINAL_STEPS)

    @property
    def wall(self) -> float:
        """Seconds spent in this run, earlier starts included."""
        return self._before + time.monotonic() - self._began

    def record(self) -> dict[str, Any]:
        """What a later start needs to go on counting."""
        return {"wall_seconds": self.wall, "losses": list(self._losses)}

    def read(self, step: int, metrics: dict[str, jax.Array] | None, writer: MetricWriter | SilentWriter) -> None:
        """Takes in the metrics that `step` steps ended with (None: nothing pending)."""
        if metrics is None:
            return
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if not (math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])):
            self._stop(step, values)
        self._losses.append(values["loss"])
        if step % self._config.log_every == 0 or step == self._config.steps:
            now = time.monotonic()
            rate = (step - self._last_step) / max(now - self._last_time, 1e-9)
            self._last_step, self._last_time = step, now
            mfu = rate * self._flops / self._peak.flops
            extra = {
                "learning_rate": float(self._rate(step - 1)),
                "steps_per_second": rate,
                "mfu": mfu,
                "seconds": self.wall,
            }
            writer.write(step, values | extra)

    def summary(self, state: TrainState) -> dict[str, Any]:
        """What the run spent and reached."""
        steps = self._config.steps
        return {
            "steps": steps,
            "flops": self._flops * steps,
            "mfu": self._flops * steps / self.wall / self._peak.flops,
            "final_loss": float(np.mean(self._losses)) if self._losses else None,
            "parameters": parameter_count(state.params),
            "batch_size": self._config.batch_size,
            "wall_seconds": self.wall,
            "peak_flops": self._peak.flops,
            "peak_source": self._peak.source,
        }

    def _stop(self, step: int, values: dict[str, float]) -> None:
        self._checkpoints.wait()
        latest = self._checkpoints.latest
        good = (
            "there is no checkpoint yet"
            if latest is None
            else f"the last good checkpoint is {self._checkpoints.path(latest)}"
        )
        raise NonFiniteLoss(
            f"step {step}: loss {values['loss']} and gradient norm {values['grad_norm']} are not both finite; {good}. "
            "Lower train.optimizer.learning_rate or look at the data, then start again"
        )
