"""Measures what training costs beside its compiled step, on this machine; `docs/running.md` has the numbers.

    .venv/bin/python -m tests.training.overheads host      # milliseconds of a step that computes next to nothing
    .venv/bin/python -m tests.training.overheads shares    # the loop and its saves, as shares of a step's work

Shares are of processor time, which other work on the machine hardly changes, between runs that differ by nothing else.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax

from tests.conftest import synthetic_episode
from tests.training.test_guard import CONFIG, Line, batch
from wamjax.cli import _experiment
from wamjax.data.store import EpisodeStore, finish, write_shard
from wamjax.sharding.mesh import MeshConfig, make_mesh, process_rows, to_devices
from wamjax.training.host_memory import keep_freed_memory
from wamjax.training.loop import train
from wamjax.training.optimizer import make_optimizer
from wamjax.training.step import init_state, make_step
from wamjax.training.watch import WatchConfig

SIZE = ("policy.width=256", "policy.mlp=768", "policy.layers=6", "train.batch_size=48", "train.optimizer.name='adamw'")
QUIET = ("train.validate_every=100000", "train.log_every=20")


def experiment(*overrides: str) -> Any:
    return _experiment.load("configs/metaworld_joint.py", (*SIZE, *QUIET, *overrides))


class Setting:
    """A dataset, a policy and its loader."""

    def __init__(self, folder: Path) -> None:
        write_shard(folder, "train", "square", [synthetic_episode(seed) for seed in range(8)])
        finish(folder, name="squares")
        store, config = EpisodeStore(folder), experiment()
        system = _experiment.system(config)
        self.policy = system.policy(config, system.shapes(config, store))
        self.mesh = make_mesh(MeshConfig())
        statistics = system.statistics(config, store, self.policy)
        self.frozen, self.rules = system.frozen(config, store, self.policy, statistics, self.mesh), system.rules
        self.batches = system.loader(config, store, self.policy)

    def train(self, run: Path, steps: int, every: int) -> tuple[float, dict[str, Any]]:
        """Processor seconds of a training with a save every so many steps, and its summary."""
        config = dataclasses.replace(experiment().train, steps=steps, checkpoint_every=every)
        options: dict[str, Any] = {"rules": self.rules, "batches": self.batches, "validation": None, "meta": {}}
        run.mkdir(parents=True)
        start = time.process_time()
        summary = train(self.policy, self.frozen, config, mesh=self.mesh, run=run, **options)
        return time.process_time() - start, summary or {}

    def alone(self, times: int) -> float:
        """Processor seconds of the compiled step, again and again on one batch."""
        config = experiment().train
        optimizer = make_optimizer(config.optimizer, config.steps)
        state = init_state(self.policy, optimizer, config.optimizer.ema, config.seed, self.mesh, self.rules)
        step = make_step(self.policy, optimizer, config.optimizer.ema, config.seed, self.mesh, state)
        batch = to_devices(next(self.batches(0, process_rows(config.batch_size, self.mesh))), self.mesh)
        state, metrics = jax.block_until_ready(step(state, self.frozen, batch))
        start = time.process_time()
        for _ in range(times):
            state, metrics = step(state, self.frozen, batch)
            jax.device_get(metrics)
        return (time.process_time() - start) / times


def host(folder: Path, steps: int = 3000) -> None:
    """A fit of three numbers, so that nearly all of the time is the loop's."""
    rows = batch(0)
    watch = WatchConfig(log_samples=True)
    config = dataclasses.replace(CONFIG, steps=steps, log_every=20, checkpoint_every=10**6, watch=watch)
    config = dataclasses.replace(config, validate_every=10**6)
    options: dict[str, Any] = {"rules": (), "batches": lambda first, own: itertools.repeat(rows), "validation": None}
    frozen = {"shift": jax.numpy.zeros(1)}
    summary = train(Line(), frozen, config, mesh=make_mesh(MeshConfig()), run=folder, meta={}, **options)
    each = {phase: 1e3 * summary["seconds"][phase] / steps for phase in ("data", "host_to_device", "compute", "other")}
    print(", ".join(f"{phase} {value:.3f}" for phase, value in each.items()), end="")
    print(f": {sum(each.values()):.2f} ms a step, records every 20 steps and the log of samples included")


def shares(setting: Setting, folder: Path, steps: int = 60, saves: int = 6) -> None:
    """What loop and saves add to a step: long runs less short ones, runs with saves less those without."""
    never, fewer = 10**6, steps // 3
    setting.train(folder / "warm", 2, never)
    short, _ = setting.train(folder / "short", fewer, never)
    alone = setting.alone(steps - fewer)
    long, summary = setting.train(folder / "long", steps, never)
    saving, saved = setting.train(folder / "saving", steps, steps // saves)
    each, save = (long - short) / (steps - fewer), (saving - long) / (saves - 1)
    wall = summary["seconds"]["compute"] / steps
    size = sum(file.stat().st_size for file in (folder / f"saving/checkpoints/{steps}").rglob("*") if file.is_file())
    print(f"a step alone {alone:.3f} s of processor time, in the loop {each:.3f} s: {100 * (each / alone - 1):+.2f} %")
    waited = (saved["seconds"]["checkpoint"] - summary["seconds"]["checkpoint"]) / (saves - 1)
    print(f"a save of {size / 2**20:.0f} MiB {save:.2f} s; the loop waits {waited:.2f} s (a step is {wall:.2f} s)")
    print(f"four saves add {100 * 4 * save / (200 * each):+.2f} % to the work of 200 steps")


if __name__ == "__main__":
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as name:
        if sys.argv[1] == "host":
            host(Path(name))
        else:
            shares(Setting(Path(name) / "data"), Path(name) / "runs")
