"""The one contract between the server and what it serves: observations of a robot in, chunks of actions out.

An agent knows nothing of sockets, messages and sessions. What it remembers of an episode is a value that the server
keeps for it, one per session; calls never overlap.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float, UInt8

State = Any
"""What an agent remembers of one episode; opaque to the server."""


@dataclasses.dataclass(frozen=True)
class Description:
    """What an agent wants to see and what it gives; the server announces it and checks requests against it.

    Attributes:
        name: of the policy, for people.
        cameras: DROID's name of each camera ("exterior_image_1_left", "wrist_image_left", ...) and its (height, width)
            in pixels.
        state: DROID's name of each state field ("joint_position", ...) and its size.
        action_space: what the actions are: "joint_position", "joint_velocity", "cartesian_position" or
            "cartesian_velocity", each followed by the gripper.
        horizon: actions in a chunk. action_dim: numbers in an action.
        video_fps: of the imagined video, frames per second.
        warm_up_calls: calls of `act` after which everything an episode needs has been compiled.
    """

    name: str
    cameras: Mapping[str, tuple[int, int]]
    state: Mapping[str, int]
    action_space: str
    horizon: int
    action_dim: int
    video_fps: float = 5.0
    warm_up_calls: int = 2


@dataclasses.dataclass(frozen=True)
class Observation:
    """What a robot sees and feels, as one request brings it.

    Attributes:
        frames: the new frames of every camera, oldest first; the last is the present.
        state: every state field, in the robot's units.
    """

    frames: Mapping[str, UInt8[np.ndarray, "t h w 3"]]
    state: Mapping[str, Float[np.ndarray, " s"]]


@dataclasses.dataclass(frozen=True)
class Decision:
    """What an agent answers.

    Attributes:
        actions: the chunk, in the robot's units.
        state: what it remembers from now on. The state it was given must not be used again.
        timings: milliseconds of each stage.
        video: makes the frames that the agent expects; to be called before the next `act`, or not at all.
    """

    actions: Float[np.ndarray, "horizon a"]
    state: State
    timings: Mapping[str, float]
    video: Callable[[], UInt8[np.ndarray, "t h w 3"]] | None = None


class Agent(Protocol):
    """Whatever can be served."""

    @property
    def description(self) -> Description:
        """What it wants to see and what it gives."""

    def start(self, instruction: str, observation: Observation) -> State:
        """Begins an episode; `act` with the same observation follows."""

    def act(self, state: State, observation: Observation) -> Decision:
        """The next chunk of actions."""
