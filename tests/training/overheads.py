"""Measures what training costs beside its compiled step, on this machine; `docs/running.md` has the numbers.

.venv/bin/python -m tests.training.overheads host    # milliseconds of a step that computes next to nothing
.venv/bin/python -m tests.training.overheads saves   # seconds that the loop waits for a save, and that writing takes
.venv/bin/python -m tests.training.overheads runs    # whole runs with and without saves, their step alone: 10 minutes
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tests.conftest import synthetic_episode
from tests.training.test_guard import CONFIG, Line, batch
from wamjax.cli import _experiment
from wamjax.data.store import EpisodeStore, finish, write_shard
from wamjax.sharding.mesh import MeshConfig, make_mesh, process_rows, to_devices
from wamjax.training.checkpoint import Checkpoints
from wamjax.training.loop import train
from wamjax.training.optimizer import OptimizerConfig, make_optimizer
from wamjax.training.step import TrainState, init_state, make_step
from wamjax.training.watch import WatchConfig


def host(folder: Path, steps: int = 3000) -> None:
    """A fit of three numbers, so that nearly all of the time is the loop's."""
    rows = batch(0)
    watch = WatchConfig(log_samples=True)
    config = dataclasses.replace(CONFIG, steps=steps, log_every=20, checkpoint_every=10**6, watch=watch)
    config = dataclasses.replace(config, validate_every=10**6)
    options: dict[str, Any] = {"rules": (), "batches": lambda first, own: itertools.repeat(rows), "validation": None}
    frozen = {"shift": jax.numpy.zeros(1)}
    summary = train(Line(), frozen, config, mesh=make_mesh(MeshConfig()), run=folder, meta={}, **options)
    seconds = (summary or {})["seconds"]
    each = {phase: 1e3 * seconds[phase] / steps for phase in ("data", "host_to_device", "compute", "other")}
    print(", ".join(f"{phase} {value:.3f}" for phase, value in each.items()), end="")
    print(f": {sum(each.values()):.2f} ms a step, records every 20 steps and the log of samples included")


def saves(folder: Path, parameters: int = 4_600_000, times: int = 8) -> None:
    """Saves of a state with AdamW's moments and an average, one after the other on an idle loop."""
    random = np.random.default_rng(0)
    params = {f"layer_{i}": {"kernel": jax.numpy.asarray(random.random((46, 2000), np.float32))} for i in range(50)}
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == parameters
    optimizer = make_optimizer(OptimizerConfig(), 1000)
    state = TrainState(jax.numpy.int32(0), params, params, jax.jit(optimizer.init)(params))
    noise = jax.tree.map(lambda x: random.random(x.shape, np.float32) if x.ndim else x, state.opt_state)
    state = dataclasses.replace(state, opt_state=jax.tree.map(jax.numpy.asarray, noise))
    checkpoints, waited, written, worked = Checkpoints(folder), [], [], []
    for step in range(times + 1):
        wall, work = time.perf_counter(), time.process_time()
        checkpoints.save(state, {"shift": jax.numpy.zeros(1)}, {}, step)
        waited.append(time.perf_counter() - wall)
        checkpoints.wait()
        written.append(time.perf_counter() - wall)
        worked.append(time.process_time() - work)
    size = sum(file.stat().st_size for file in checkpoints.path(times).rglob("*") if file.is_file()) / 2**20
    wait, write, work = (statistics.median(x[1:]) for x in (waited, written, worked))
    print(f"a save of {size:.0f} MiB: the loop waits {wait:.3f} s, written after {write:.2f} s, processor {work:.2f} s")
    print(f"200 steps of 0.5 s with four saves: {4 * wait:+.2f} % waiting, {4 * write:+.2f} % if nothing overlapped")


SIZE = ("policy.width=256", "policy.mlp=768", "policy.layers=6", "train.batch_size=120", "train.optimizer.name='adamw'")


def runs(folder: Path, steps: int = 200, saves: int = 4, rounds: int = 2) -> None:
    """A step of about 0.5 s alone, in the loop, and in the loop with saves, in turns: wall and processor time."""
    write_shard(folder / "data", "train", "square", [synthetic_episode(seed) for seed in range(8)])
    finish(folder / "data", name="squares")
    store, experiment = EpisodeStore(folder / "data"), _experiment.load("configs/metaworld_joint.py", SIZE)
    system, mesh = _experiment.system(experiment), make_mesh(MeshConfig())
    policy = system.policy(experiment, system.shapes(experiment, store))
    frozen = system.frozen(experiment, store, policy, system.statistics(experiment, store, policy), mesh)
    batches = system.loader(experiment, store, policy)
    options: dict[str, Any] = {"mesh": mesh, "rules": system.rules, "batches": batches, "validation": None, "meta": {}}
    optimizer = make_optimizer(experiment.train.optimizer, experiment.train.steps)
    ema, seed = experiment.train.optimizer.ema, experiment.train.seed
    config = dataclasses.replace(experiment.train, steps=steps, validate_every=10**6)
    batch = to_devices(next(batches(0, process_rows(config.batch_size, mesh))), mesh)

    def alone() -> np.ndarray:
        state = init_state(policy, optimizer, ema, seed, mesh, system.rules, guard=config.guard)
        step = make_step(policy, optimizer, ema, seed, mesh, state, spike=config.guard.spike)
        state, _ = jax.block_until_ready(step(state, frozen, batch))
        began = _clocks()
        for _ in range(steps - 1):
            state, metrics = step(state, frozen, batch)
        jax.block_until_ready((state, metrics))
        return (_clocks() - began) / (steps - 1)

    def trained(every: int) -> np.ndarray:
        """Everything from the second step on, the last save included."""
        with tempfile.TemporaryDirectory(dir=folder) as run:
            one = dataclasses.replace(config, checkpoint_every=every)
            began = _clocks()
            seconds = (train(policy, frozen, one, run=Path(run), **options) or {})["seconds"]
            return (_clocks() - began - seconds["compile"]) / (steps - 1)

    measured = np.array([(alone(), trained(10**6), trained(steps // saves)) for _ in range(rounds)])
    for which, name in enumerate(("wall", "processor")):
        for row in measured[..., which]:
            print("{}: alone {:.4f} s, in the loop {:.4f} s, with saves {:.4f} s".format(name, *row))
        step, loop, saving = np.median(measured[..., which], axis=0)
        added = 100 * (loop / step - 1), saves, 100 * (saving / loop - 1)
        print("{}: the loop adds {:+.2f} % to a step, {} saves {:+.2f} %".format(name, *added))


def _clocks() -> np.ndarray:
    """Wall and processor time, seconds."""
    return np.array([time.perf_counter(), time.process_time()])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        {"host": host, "saves": saves, "runs": runs}[sys.argv[1]](Path(name))
