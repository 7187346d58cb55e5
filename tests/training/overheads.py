"""Measures what training costs beside its compiled step, on this machine; `docs/running.md` has the numbers.

.venv/bin/python -m tests.training.overheads host     # milliseconds of a step that computes next to nothing
.venv/bin/python -m tests.training.overheads saves    # seconds that the loop waits for a save, and that writing takes
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

from tests.training.test_guard import CONFIG, Line, batch
from wamjax.sharding.mesh import MeshConfig, make_mesh
from wamjax.training.checkpoint import Checkpoints
from wamjax.training.loop import train
from wamjax.training.optimizer import OptimizerConfig, make_optimizer
from wamjax.training.step import TrainState
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


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        {"host": host, "saves": saves}[sys.argv[1]](Path(name))
