"""A tiny environment whose answer is in its images, for tests of the loop around environments.

The goal is a shade of grey, drawn from the seed. A decision is right when the action names the shade; after
`seed % 3 + 1` right decisions the episode has succeeded. Seeds that are 6 modulo 7 never succeed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np

from wamjax.evaluation.environment import Environment, Observation

LIMIT = 5


@dataclass(frozen=True)
class ToyConfig:
    crash_at: int = -1  # the seed at which the process dies

    def make(self, task: str, like: Environment | None = None) -> Toy:
        return Toy(self)


class Toy:
    cameras = ("left", "right")
    fps = 10.0
    decision_limit = LIMIT

    def __init__(self, config: ToyConfig) -> None:
        self.config = config
        self.action_low, self.action_high = np.zeros(1, np.float32), np.ones(1, np.float32)

    def reset(self, seed: int) -> None:
        if seed == self.config.crash_at:
            os._exit(3)
        self.seed, self.right = seed, 0
        self.goal = int(np.random.default_rng(seed).integers(1, 256))

    def step(self, action: np.ndarray) -> None:
        self.right += round(float(action[0]) * 255) == self.goal

    def observe(self) -> Observation:
        frames = np.full((2, 16, 16, 3), self.goal, np.uint8)
        return Observation(frames, np.array([self.seed, self.right], np.float32), "name the shade")

    def expert_action(self) -> np.ndarray:
        return np.array([self.goal / 255], np.float32)

    @property
    def success(self) -> bool:
        return self.seed % 7 != 6 and self.right > self.seed % 3

    @property
    def instance(self) -> tuple[float, ...]:
        return (self.goal / 255,)

    def close(self) -> None:
        pass


class Looker:
    """Names the shade it sees, for a whole chunk; notes every call."""

    def __init__(self, execute: int = 2) -> None:
        self.execute = execute
        self.resets: list[tuple[np.ndarray, list[int]]] = []
        self.calls: list[list[int]] = []

    def reset(self, observations: list[Observation], rows: np.ndarray) -> None:
        self.resets.append((rows, [int(o.state[0]) for o in observations]))

    def act(self, observations: list[Observation]) -> np.ndarray:
        self.calls.append([int(o.state[0]) for o in observations])
        shades = np.array([o.frames.mean() / 255 for o in observations])
        return np.tile(shades[:, None, None], (1, 4, 1))
