"""The worker's side of the closed loop: a process advances the episodes of a few slots on command.

The episodes under way live in the process, between one call and the next.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

from wamjax.evaluation.environment import Environment, EnvironmentConfig, Observation, held_environment


@dataclass(frozen=True)
class EpisodeResult:
    """How one episode ended."""

    task: str
    seed: int
    success: bool
    decisions: int  # until success, or the limit
    instance: tuple[float, ...]
    fps: float
    frames: (
        UInt8[np.ndarray, "t h w 3"] | None
    )  # all cameras side by side, one image per decision and the first; or not filmed


@dataclass(frozen=True)
class Begin:
    """Command to a slot: start the episode of this seed."""

    seed: int
    film: bool


Command = Begin | np.ndarray  # an array (k, a) holds the next k actions, in environment units


@dataclass(frozen=True)
class Reply:
    """What a slot looks like after its command; `result` is there when the episode has ended."""

    observation: Observation
    result: EpisodeResult | None


@dataclass
class Slot:
    """An episode under way."""

    environment: Environment
    task: str
    seed: int
    film: list[np.ndarray] | None
    decisions: int = 0

    @classmethod
    def begin(cls, config: EnvironmentConfig, task: str, number: int, seed: int, film: bool) -> Slot:
        """Starts an episode in the process's environment `number`."""
        slot = cls(held_environment(config, task, number), task, seed, [] if film else None)
        slot.environment.reset(seed)
        slot.shoot()
        return slot

    def shoot(self) -> None:
        """Adds the present view to the film, if there is one."""
        if self.film is not None:
            self.film.append(np.concatenate(list(self.environment.observe().frames), axis=1))

    def step(self, action: Float[np.ndarray, " a"]) -> bool:
        """One decision; returns whether the episode has ended."""
        self.environment.step(action)
        self.decisions += 1
        self.shoot()
        return self.environment.success or self.decisions >= self.environment.decision_limit

    def result(self) -> EpisodeResult:
        """The result of the episode as it stands."""
        e = self.environment
        film = None if self.film is None else np.stack(self.film)
        return EpisodeResult(self.task, self.seed, e.success, self.decisions, e.instance, e.fps, film)


_slots: dict[int, Slot] = {}  # of this process


def advance(config: EnvironmentConfig, task: str, commands: dict[int, Command]) -> dict[int, Reply]:
    """Carries out one command for each of some slots of this process."""
    replies = {}
    for number, command in commands.items():
        ended = False
        if isinstance(command, Begin):
            _slots[number] = Slot.begin(config, task, number, command.seed, command.film)
        else:
            ended = any(_slots[number].step(action) for action in command)  # stops where the episode ends
        slot = _slots[number]
        replies[number] = Reply(slot.environment.observe(), slot.result() if ended else None)
    return replies


def play(config: EnvironmentConfig, task: str, seed: int, actor: str, film: bool) -> EpisodeResult:
    """A whole episode of an actor that needs no images: "expert", or "random" (uniform within the action
    bounds)."""
    slot = Slot.begin(config, task, 0, seed, film)
    act = _scripted(slot.environment, actor, seed, task)
    while not slot.step(act()):
        pass
    return slot.result()


def _scripted(environment: Environment, actor: str, seed: int, task: str) -> Callable[[], Float[np.ndarray, " a"]]:
    if actor == "expert":
        return environment.expert_action
    if actor != "random":
        raise ValueError(f"unknown actor {actor!r}")
    generator = np.random.default_rng([seed, zlib.crc32(task.encode())])
    return lambda: generator.uniform(environment.action_low, environment.action_high)
