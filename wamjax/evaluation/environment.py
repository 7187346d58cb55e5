"""The one interface behind which every simulator sits.

An environment advances in *decisions*: one action, held for as many simulator steps as the environment's
control rate asks for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Float, UInt8

from wamjax.errors import UserError


@dataclass(frozen=True)
class Observation:
    """What a policy sees before one decision."""

    frames: UInt8[np.ndarray, "v h w 3"]  # one image per camera, in the order of the environment's `cameras`
    state: Float[np.ndarray, " s"]  # proprioception, raw units (metres, gripper opening 0..1), float32
    instruction: str


class Environment(Protocol):
    """One simulated task. `reset` comes first; everything after it is a function of the seed and the actions
    alone."""

    cameras: tuple[str, ...]
    fps: float  # decisions per second of simulated time
    decision_limit: int  # an episode is a failure when it has not succeeded after this many decisions
    action_low: Float[np.ndarray, " a"]
    action_high: Float[np.ndarray, " a"]

    def reset(self, seed: int) -> None:
        """Starts the episode of `seed`: draws the instance (object and goal positions) from the task's reset
        space."""

    def step(self, action: Float[np.ndarray, " a"]) -> None:
        """Carries out one decision (environment units, clipped to the action bounds)."""

    def observe(self) -> Observation:
        """Renders every camera; costs far more than `step`, so loops that need no image do not call it."""

    def expert_action(self) -> Float[np.ndarray, " a"]:
        """The scripted expert's action for the present state, clipped to the action bounds."""

    @property
    def success(self) -> bool:
        """Whether the last decision reached the goal (at any simulator step of it)."""

    @property
    def instance(self) -> tuple[float, ...]:
        """What `reset` randomised, as one vector: equal vectors mean the same instance of the task."""

    def close(self) -> None:
        """Frees the simulator and its renderer."""


class EnvironmentConfig(Protocol):
    """A picklable recipe for environments: what worker processes receive."""

    def make(self, task: str, like: Environment | None = None) -> Environment:
        """Builds one environment of `task`, sharing with `like`, another one of that task, what is slow to
        build.

        Errors: an unknown task is a UserError.
        """


_held: dict[tuple[EnvironmentConfig, str, int], Environment] = {}


def held_environment(config: EnvironmentConfig, task: str, number: int = 0) -> Environment:
    """This process's environment `number` of a task, built once and used again for every seed.

    Building one takes ten times as long as resetting it. Those of another task or config are closed first: a
    worker process goes through the tasks one after another.
    """
    if (config, task, number) not in _held:
        for key in [key for key in _held if key[:2] != (config, task)]:
            _held.pop(key).close()
        like = next(iter(_held.values()), None)
        _held[config, task, number] = config.make(task, like)
    return _held[config, task, number]


SEEDS_PER_SET = 10_000
SEED_SETS = {
    "train": 0,
    "held_out_a": 10_000,
    "held_out_b": 20_000,
}  # first seed of each set; sets never overlap


def seeds_of(seed_set: str, count: int) -> list[int]:
    """The first `count` seeds of a named set. Train on "train", choose settings on "held_out_a", report on
    "held_out_b"."""
    if seed_set not in SEED_SETS:
        raise UserError(f"unknown seed set {seed_set!r}: use one of {', '.join(SEED_SETS)}")
    if not 0 < count <= SEEDS_PER_SET:
        raise UserError(f"{count} seeds of {seed_set} asked for: a set has 1 to {SEEDS_PER_SET}")
    return list(range(SEED_SETS[seed_set], SEED_SETS[seed_set] + count))
