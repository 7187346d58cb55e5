"""The training loop.

Its order is a contract: evaluate, save (state and data position), next batch, dispatch step s, read the metrics of
step s - 1. The host never waits for the device it has just fed, and a saved data position always fits the saved state.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from wamjax.data.augment import AugmentConfig
from wamjax.errors import UserError
from wamjax.policies.contract import Params
from wamjax.sharding import processes
from wamjax.sharding.mesh import OnMesh, Rules, place, process_rows, shardings, to_devices
from wamjax.training.augmented import augmented
from wamjax.training.checkpoint import Checkpoints, DamagedCheckpoint
from wamjax.training.clock import Clock, Ledger
from wamjax.training.guard import GuardConfig, Rewind
from wamjax.training.lineage import Lineage, on_device
from wamjax.training.lora import LoRAConfig, adapt
from wamjax.training.meter import Rates
from wamjax.training.optimizer import OptimizerConfig, make_optimizer
from wamjax.training.quarantine import QuarantineConfig
from wamjax.training.rounding import in_eight_bits
from wamjax.training.step import Learner, TrainState, abstract_state, init_state, make_step, make_validation
from wamjax.training.watch import Notice, Profiler, WatchConfig, Watchdog

Batches = Callable[[int, Sequence[int]], Iterator[dict[str, np.ndarray]]]
"""(number of the first batch, rows of this process) -> endless batches, with what `ON_HOST` names."""

Initial = Callable[[], Params | None]
"""Makes parameters to begin with; None: the policy's own."""


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
        augment: what is done to the frames of training batches; None for nothing.
        guard: what is done about bad steps. quarantine: how much bad input is too much.
        watch: how the run is watched.
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
    augment: AugmentConfig | None = None
    guard: GuardConfig = GuardConfig()
    quarantine: QuarantineConfig = QuarantineConfig()
    watch: WatchConfig = WatchConfig()
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
    initial: Initial = lambda: None,
    clock: Clock | None = None,
) -> dict[str, Any] | None:
    """Trains until `config.steps`, going on from the run folder's newest checkpoint.

    Args:
        policy: what to train. frozen: its frozen parameters.
        mesh, rules: where arrays lie.
        batches, validation: loaders.
        run: folder for checkpoints and metrics.
        meta: stored with every checkpoint.
        initial: makes the parameters to begin with, which are used up; a run that goes on does not ask, without LoRA.
        clock: of this process; default: one that starts now.

    Returns:
        A summary (see `Meter.summary`); None where the run was told to stop, and has saved what it had.

    Raises:
        NonFiniteLoss: bad steps, as far as `config.guard` says; names the last good checkpoint.
    """
    clock = clock or Clock()
    policy = augmented(in_eight_bits(policy, config.products), config.augment)
    policy, initial, frozen = _adapted(policy, initial, frozen, config)
    frozen = place(frozen, shardings(frozen, rules, mesh))
    made = _make(policy, config, mesh, rules, initial, batches, validation, run, clock)
    checkpoints, watch, rewinds = made.checkpoints, config.watch, config.guard.on_bad_step == "rewind"
    with (
        _telling(checkpoints),
        contextlib.ExitStack() as ending,
        Watchdog(run, watch.hang_seconds, watch.hang_exit) as watchdog,
        Notice() as notice,
        Profiler(run, watch.profile_steps, config.log_every) as profiler,
    ):
        state, frozen, lineage = _begin(made, frozen, ending)
        step, saved, pending = lineage.first, lineage.saved, None
        while True:
            try:
                ended, told = step == config.steps, notice.heard()
                if step > lineage.first and (ended or step % config.validate_every == 0):
                    with clock.spend("validation"):
                        lineage.write(step, made.validate(state.averaged, frozen))
                due = step % config.checkpoint_every == 0 and (step > 0 or rewinds)
                if step > saved and (ended or told or due):
                    lineage.take(step, pending)  # never save a state whose gradient was not finite
                    with clock.spend("checkpoint"):
                        checkpoints.save(state, frozen, meta | lineage.record(step), step)
                    saved, pending = step, None
                    lineage.note(step)
                if ended or told:
                    break
                watchdog.beat()
                profiler.before(step)
                with clock.spend("data"):
                    batch = lineage.next(step)
                with clock.spend("host_to_device"):
                    spread = to_devices(batch, mesh)
                with clock.spend(made.phase(batch)):
                    state, metrics = made.step(state, frozen, spread)
                lineage.take(step, pending)
                step, pending = step + 1, metrics
            except Rewind as bad:
                del state  # its place is needed for the one that is read
                lineage.note(step)
                state, _, lineage = _begin(made, None, ending, bad)
                step, saved, pending = lineage.first, lineage.first, None
        with clock.spend("checkpoint"):
            checkpoints.wait()
        lineage.note(step)
    return lineage.summary(state) if ended else None


def _adapted(policy: Learner, initial: Initial, frozen: Params, config: TrainConfig) -> tuple[Learner, Initial, Params]:
    """`adapt`, which has to know the first parameters only where there are adapters."""
    if config.lora is None:
        return policy, initial, frozen
    policy, params, frozen = adapt(policy, initial(), frozen, config.lora, config.seed)
    return policy, lambda: params, frozen


@dataclasses.dataclass(frozen=True)
class _Made:
    """What a run is made of, wherever it goes on.

    Attributes:
        checkpoints, step, validate: of the run. abstract: shapes and places of its state.
        create: makes a fresh state. follow: (first step, record of its checkpoint, reason to go back) -> lineage.
        compiled: shapes of batches that steps were compiled for.
    """

    checkpoints: Checkpoints
    step: OnMesh
    validate: Callable[[Params, Params], dict[str, float]]
    abstract: TrainState
    create: Callable[[], TrainState]
    follow: Callable[[int, dict[str, Any] | None, Rewind | None], Lineage]
    clock: Clock
    compiled: set[Any] = dataclasses.field(default_factory=set)

    def phase(self, batch: Mapping[str, np.ndarray]) -> str:
        """What a step's time counts as: the first one on batches of some shapes compiles the program for these."""
        shapes = tuple(rows.shape for rows in batch.values())
        new = shapes not in self.compiled
        self.compiled.add(shapes)
        return "compile" if new else "compute"


def _make(
    policy: Learner,
    config: TrainConfig,
    mesh: Mesh,
    rules: Rules,
    initial: Initial,
    batches: Batches,
    validation: Batches | None,
    run: Path,
    clock: Clock,
) -> _Made:
    ema, seed, guard = config.optimizer.ema, config.seed, config.guard
    optimizer = make_optimizer(config.optimizer, config.steps)
    abstract = abstract_state(policy, optimizer, ema, mesh, rules, guard)
    rows = process_rows(config.batch_size, mesh, config.portions)
    checkpoints = Checkpoints(run, config.keep, config.keep_every)
    rates = Rates(policy, config.batch_size, config.optimizer, config.steps)

    def create() -> TrainState:
        params = initial()
        params = place(params, shardings(params, rules, mesh))
        return init_state(policy, optimizer, ema, seed, mesh, rules, params, guard)

    return _Made(
        checkpoints=checkpoints,
        step=make_step(policy, optimizer, ema, seed, mesh, abstract, config.portions, guard.spike),
        validate=_validator(policy, config, mesh, validation, rows),
        abstract=abstract,
        create=create,
        follow=functools.partial(
            Lineage,
            run,
            clock,
            Ledger(run),
            batches,
            rows,
            config.log_every,
            config.watch.log_samples,
            config.quarantine,
            guard,
            rates,
            checkpoints.last_good,
        ),
        clock=clock,
    )


def _begin(
    made: _Made, frozen: Params | None, ending: contextlib.ExitStack, bad: Rewind | None = None
) -> tuple[TrainState, Params, Lineage]:
    """The state to go on with, restored where there is a checkpoint, the frozen parameters likewise, and the lineage.

    Args:
        frozen: parameters to begin with; None: they are not needed.
        ending: closes the lineage's files, now those of the one before.
        bad: why the run goes back.
    """
    ending.close()
    if bad is not None:
        made.checkpoints.wait()
    with made.clock.spend("restore"):
        restored = _restored(made.checkpoints, made.abstract, frozen)
    step, state, frozen, meta = restored or (0, made.create(), frozen, None)
    lineage = made.follow(step, meta, bad)
    ending.callback(lineage.close)
    return state, frozen, lineage


def _restored(
    checkpoints: Checkpoints, abstract: TrainState, frozen: Params | None
) -> tuple[int, TrainState, Params, dict[str, Any]] | None:
    """Step, state, frozen parameters and description of the newest whole checkpoint; None where there is none."""
    damaged = checkpoints.damaged()
    processes.agree(the_damaged_checkpoints=damaged)
    for broken, wrong in damaged.items():
        checkpoints.set_aside(broken, wrong)
    while (step := checkpoints.latest) is not None:
        processes.agree(the_newest_checkpoint=step)
        try:
            state, frozen = checkpoints.restore(step, abstract, _shapes(frozen))
            meta = checkpoints.meta(step)
        except DamagedCheckpoint as error:
            checkpoints.set_aside(step, error)
            continue
        processes.say(f"going on from {checkpoints.path(step)}")
        return step, state, frozen, meta
    processes.agree(the_newest_checkpoint=None)
    return None


def _shapes(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), tree)


@contextlib.contextmanager
def _telling(checkpoints: Checkpoints) -> Iterator[None]:
    """Around a run: tells the others of an error, then waits for what is being written."""
    try:
        yield
    except BaseException as error:
        processes.fail(error)  # first, since closing waits for checkpoints that all processes write
        raise
    finally:
        checkpoints.close()


def _validator(
    policy: Learner, config: TrainConfig, mesh: Mesh, validation: Batches | None, rows: Sequence[int]
) -> Callable[[Params, Params], dict[str, float]]:
    """(averaged params, frozen) -> mean validation losses, always over the same batches and noise."""
    if validation is None:
        return lambda params, frozen: {}
    loss = make_validation(policy, config.seed, mesh)

    def run(params: Params, frozen: Params) -> dict[str, float]:
        loader = validation(0, rows)
        each = [
            loss(params, frozen, to_devices(on_device(next(loader)), mesh)) for _ in range(config.validation_batches)
        ]
        return {f"validation/{name}": float(np.mean([float(one[name]) for one in each])) for name in each[0]}

    return run
