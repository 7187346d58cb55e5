"""Collects scripted-expert episodes of simulated tasks into the native episode store, in parallel and
resumably.

Training episodes are disturbed so that a policy learns to recover: the expert's action plus correlated noise
is executed, and the clean action the expert wanted is the label. Validation episodes are undisturbed and come
from held-out seeds. An episode is a pure function of (config, task, seed) and a shard of its seeds, so the
number of processes does not matter and an interrupted collection continues at the first shard that is
missing.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from concurrent.futures import as_completed
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from wamjax.config import to_dict
from wamjax.data.episode import Episode
from wamjax.data.files import write_json
from wamjax.data.store import finish, write_shard
from wamjax.data.video import encode
from wamjax.errors import UserError
from wamjax.evaluation.environment import Environment, Observation, held_environment, seeds_of
from wamjax.evaluation.metaworld import DEMO_TASKS, MetaWorldConfig
from wamjax.evaluation.processes import progress_bar, worker_pools


@dataclass(frozen=True)
class NoiseConfig:
    """How an episode of the expert is disturbed. Amplitudes are in units of the action, whose range is
    -1..1."""

    stds: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6)  # each episode draws one
    correlation: float = 0.6  # of an AR(1) process, from one decision to the next
    gripper_scale: float = 0.3  # the gripper's noise relative to that of the motion
    start_probability: float = 0.5  # of moving in a random direction before the recording starts ...
    start_decisions: tuple[int, int] = (2, 5)  # ... for this many decisions, both ends included


@dataclass(frozen=True)
class CollectConfig:
    """What is collected. Failed episodes are dropped, so fewer than `episodes_per_task` are kept."""

    tasks: tuple[str, ...] = DEMO_TASKS
    episodes_per_task: int = 100  # attempts, one per training seed
    validation_episodes_per_task: int = 8  # attempts, undisturbed, on seeds of held_out_a
    shard_episodes: int = 10  # attempts per shard, which is also the unit of work and of resuming
    success_decisions: int = 5  # recording ends after this many successful decisions
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    environment: MetaWorldConfig = field(default_factory=MetaWorldConfig)

    def __post_init__(self) -> None:
        if (
            not self.tasks
            or self.episodes_per_task < 1
            or self.shard_episodes < 1
            or self.validation_episodes_per_task < 0
        ):
            raise UserError("collect needs at least one task, one episode per task and one episode per shard")


@dataclass(frozen=True)
class Job:
    """One shard: a few seeds of one task."""

    split: str
    task: str
    seeds: tuple[int, ...]


def jobs(config: CollectConfig) -> list[Job]:
    """All shards of a dataset, task by task: a process holds the environment of one task at a time."""
    sets = {"train": ("train", config.episodes_per_task)}
    if config.validation_episodes_per_task:
        sets["validation"] = ("held_out_a", config.validation_episodes_per_task)
    found = []
    for task in config.tasks:
        for split, (seed_set, count) in sets.items():
            seeds = seeds_of(seed_set, count)
            for start in range(0, count, config.shard_episodes):
                found.append(Job(split, task, tuple(seeds[start : start + config.shard_episodes])))
    return found


def collect(
    config: CollectConfig, out: Path, processes: int = 1, progress: bool = True
) -> dict[str, dict[str, list[int]]]:
    """Collects the dataset into the folder `out`, or what is missing of it, and finishes it.

    Returns {split: {task: [episodes kept, attempts]}}. Errors (UserError): `out` holds a dataset of other
    settings, a full disk, no OpenGL library, a dead process.
    """
    _claim(config, out)
    counts: dict[str, dict[str, list[int]]] = {}
    with progress_bar(progress) as bar, worker_pools(1, processes) as (pool,):
        todo = jobs(config)
        row = bar.add_task("collecting", total=sum(len(job.seeds) for job in todo))
        futures = {pool.submit(collect_shard, config, out, job): job for job in todo}
        for future in as_completed(futures):
            job = futures[future]
            count = counts.setdefault(job.split, {}).setdefault(job.task, [0, 0])
            count[0] += future.result()
            count[1] += len(job.seeds)
            bar.update(row, advance=len(job.seeds))
    finish(out)
    return counts


def collect_shard(config: CollectConfig, out: Path, job: Job) -> int:
    """Writes one shard, unless it is there already, and returns how many episodes it holds."""
    name = f"{job.task}-{job.seeds[0]:05d}"
    noise = config.noise if job.split == "train" else NoiseConfig(stds=(0.0,), start_probability=0.0)
    return int(write_shard(out, job.split, name, _episodes(config, noise, job))["episodes"])


def _episodes(config: CollectConfig, noise: NoiseConfig, job: Job) -> Iterator[Episode]:
    environment = held_environment(config.environment, job.task)
    for seed in job.seeds:
        episode = record(environment, job.task, seed, noise, config.success_decisions)
        if episode is not None:
            yield episode


def record(
    environment: Environment, task: str, seed: int, noise: NoiseConfig, success_decisions: int
) -> Episode | None:
    """One episode of the expert under noise, or None when it fails within the decision limit.

    A step holds what was observed before a decision, the clean label, the action executed, and whether the
    decision succeeded.
    """
    random = np.random.default_rng([seed, zlib.crc32(task.encode())])
    environment.reset(seed)
    std = float(random.choice(noise.stds))
    start = _random_start(environment, noise, random)
    scale = np.array([1, 1, 1, noise.gripper_scale]) * std
    disturbance = np.zeros(4)
    steps: list[tuple[Observation, np.ndarray, np.ndarray, bool]] = []
    successes = 0
    for _ in range(environment.decision_limit):
        observation, action = environment.observe(), environment.expert_action()
        fresh = np.sqrt(1 - noise.correlation**2) * random.standard_normal(4)
        disturbance = noise.correlation * disturbance + fresh
        disturbed = np.clip(action + scale * disturbance, environment.action_low, environment.action_high)
        executed = disturbed.astype(np.float32)  # exactly what is stored
        environment.step(executed)
        steps.append((observation, action, executed, environment.success))
        successes += environment.success
        if successes == success_decisions:
            details = {
                "noise": {"std": std, "start_decisions": start},
                "instance": list(environment.instance),
            }
            return _episode(environment, steps, {"task": task, "seed": seed, **details})
    return None


def _random_start(environment: Environment, noise: NoiseConfig, random: np.random.Generator) -> int:
    """Sometimes moves the hand away from where episodes begin; returns the number of decisions spent."""
    if random.random() >= noise.start_probability:
        return 0
    low, high = noise.start_decisions
    count = int(random.integers(low, high + 1))
    action = environment.expert_action()  # keeps the gripper as the expert wants it
    direction = random.standard_normal(3)
    action[:3] = direction / np.linalg.norm(direction)
    for _ in range(count):
        environment.step(action)
    return count


def _episode(
    environment: Environment,
    steps: list[tuple[Observation, np.ndarray, np.ndarray, bool]],
    details: dict[str, Any],
) -> Episode:
    observations, actions, executed, success = (list(column) for column in zip(*steps, strict=True))
    state = np.stack([observation.state for observation in observations])
    frames = np.stack([observation.frames for observation in observations], axis=1)  # v t h w 3
    return Episode(
        steps={
            "observation/cartesian_position": state[:, :3],
            "observation/gripper_position": state[:, 3:4],
            "action": np.stack(actions).astype(np.float32),
            "action_executed": np.stack(executed).astype(np.float32),
            "success": np.array(success),
        },
        videos={name: encode(frames[i], environment.fps) for i, name in enumerate(environment.cameras)},
        language=(observations[0].instruction,),
        metadata={
            "embodiment": "metaworld_sawyer",
            "source": f"metaworld {version('metaworld')} scripted expert",
            "mujoco": version("mujoco"),
            "fps": environment.fps,
            "success": True,
            **details,
        },
    )


def _claim(config: CollectConfig, out: Path) -> None:
    """Notes the settings beside the shards, and refuses to add to a dataset collected with others."""
    note = out / "collect.json"
    settings = json.loads(json.dumps(to_dict(config)))
    if note.exists() and any(out.glob("*.array_record")):
        there = json.loads(note.read_text())
        if there != settings:
            names = sorted(key for key in settings.keys() | there.keys() if settings.get(key) != there.get(key))
            changed = ", ".join(names)
            raise UserError(f"{out} was collected with other settings ({changed}): choose another folder or delete it")
        return
    out.mkdir(parents=True, exist_ok=True)
    write_json(note, settings)
