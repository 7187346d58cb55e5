"""Measures what training costs beside its compiled step, on this machine; `docs/running.md` has the numbers.

    .venv/bin/python -m tests.training.overheads host          # milliseconds of a step that computes next to nothing
    .venv/bin/python -m tests.training.overheads loop          # the loop's own cost: step minus compiled compute
    .venv/bin/python -m tests.training.overheads checkpoints   # asynchronous saves: seconds that they add to a run

The last two compare neighbours in time, since machines that others use as well drift by more than is measured.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import statistics
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
        statistics = system.statistics(config, store, self.policy)
        self.frozen, self.rules = system.frozen(config, store, self.policy, statistics), system.rules
        self.batches, self.mesh = system.loader(config, store, self.policy), make_mesh(MeshConfig())

    def train(self, run: Path, config: Any) -> dict[str, Any]:
        options = {"mesh": self.mesh, "rules": self.rules, "validation": None, "run": run, "meta": {}}
        run.mkdir(parents=True)
        return train(self.policy, self.frozen, config, batches=self.batches, **options)  # type: ignore[return-value]

    def compiled(self, config: Any) -> Any:
        """Runs the compiled step alone for so many times and returns the seconds of each."""
        optimizer = make_optimizer(config.optimizer, config.steps)
        state = init_state(self.policy, optimizer, config.optimizer.ema, config.seed, self.mesh, self.rules)
        step = make_step(self.policy, optimizer, config.optimizer.ema, config.seed, self.mesh, state)
        batch = to_devices(next(self.batches(0, process_rows(config.batch_size, self.mesh))), self.mesh)

        def run(times: int) -> float:
            nonlocal state
            start = time.perf_counter()
            for _ in range(times):
                state, metrics = step(state, self.frozen, batch)
            jax.block_until_ready((state, metrics))
            return (time.perf_counter() - start) / times

        run(2)
        return run


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


def loop(setting: Setting, folder: Path, turns: int = 5, steps: int = 20) -> None:
    """Turn by turn: steps of the loop, and the same compiled step alone."""
    config = dataclasses.replace(experiment().train, steps=steps + 1, log_every=steps, checkpoint_every=10**6)
    alone, ratios, own = setting.compiled(config), [], []
    for turn in range(turns):
        before = alone(steps // 2)
        summary = setting.train(folder / str(turn), config)
        after, seconds = alone(steps // 2), summary["seconds"]
        whole = (seconds["compute"] + seconds["data"] + seconds["host_to_device"] + seconds["other"]) / steps
        ratios.append(whole / ((before + after) / 2) - 1)
        own.append((whole - seconds["compute"] / steps) / whole)
        print(
            f"step alone {before:.4f} and {after:.4f} s, in the loop {whole:.4f} s: {100 * ratios[-1]:+.2f} %", end=""
        )
        print(f"; host beside dispatching and waiting {100 * own[-1]:.2f} %", flush=True)
    print(f"median of {turns}: {100 * statistics.median(ratios):+.2f} % over the compiled step alone,", end=" ")
    print(f"of which data, transfer and the loop's own work {100 * statistics.median(own):.2f} %")


def checkpoints(setting: Setting, folder: Path, steps: int = 200, every: int = 25) -> None:
    """What a save adds to the steps while it is written, against the median of those before and after."""
    config = dataclasses.replace(experiment().train, steps=steps, checkpoint_every=every, log_every=1)
    summary = setting.train(folder / "run", config)
    lines = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    seconds = {line["step"]: 1 / line["steps_per_second"] for line in lines if "loss" in line}
    extra, saves = [], range(every, steps - every, every)
    for save in saves:
        around = [seconds[save + step] for step in (*range(-8, 0), *range(9, 17))]
        extra.append(sum(seconds[save + step] - statistics.median(around) for step in range(1, 9)))
    calm = statistics.median(seconds.values())
    size = sum(file.stat().st_size for file in (folder / f"run/checkpoints/{steps}").rglob("*") if file.is_file())
    kept = summary["seconds"]["checkpoint"]
    print(f"{steps} steps of {calm:.3f} s, a save of {size / 2**20:.0f} MiB every {every}, for which the loop waited")
    print(f"{kept:.2f} s in all; added to the steps after each: {', '.join(f'{x:+.2f}' for x in extra)} s")
    share = 100 * 4 * statistics.median(extra) / (200 * calm)
    print(f"median {statistics.median(extra):+.2f} s: {share:+.2f} % of a run of 200 steps with four of them")


if __name__ == "__main__":
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as name:
        if sys.argv[1] == "host":
            host(Path(name))
        else:
            measure = {"loop": loop, "checkpoints": checkpoints}[sys.argv[1]]
            measure(Setting(Path(name) / "data"), Path(name) / "runs")
