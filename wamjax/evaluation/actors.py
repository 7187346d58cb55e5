"""What acts in the closed loop, and wrappers that take its sight away.

A policy that does as well with another scene's images as with its own was not looking: report these controls
beside every result.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import numpy as np
from jaxtyping import Bool, Float

from wamjax.evaluation.environment import Observation


class Actor(Protocol):
    """A policy as the runner sees it: a fixed number of rows (slots), each an episode of its own."""

    execute: int  # decisions of a chunk that are carried out before `act` is asked again

    def reset(self, observations: list[Observation], rows: Bool[np.ndarray, " b"]) -> None:
        """New episodes begin in the marked rows; the other rows go on, or are padding whose actions are
        ignored."""

    def act(self, observations: list[Observation]) -> Float[np.ndarray, "b horizon a"]:
        """The next actions of every row, in environment units."""


class ZeroImages:
    """An actor that sees black images."""

    def __init__(self, actor: Actor) -> None:
        self.actor = actor
        self.execute = actor.execute

    def reset(self, observations: list[Observation], rows: Bool[np.ndarray, " b"]) -> None:
        """As `Actor.reset`."""
        self.actor.reset(self._blind(observations), rows)

    def act(self, observations: list[Observation]) -> Float[np.ndarray, "b horizon a"]:
        """As `Actor.act`."""
        return self.actor.act(self._blind(observations))

    def _blind(self, observations: list[Observation]) -> list[Observation]:
        return [replace(o, frames=np.zeros_like(o.frames)) for o in observations]


class SwapImages:
    """An actor that sees, in every row, the images of the next row: another instance of the same task, with
    its own state.

    The images then also contradict the arm's pose, so a low success rate overstates how much of the sight is
    of the object.
    """

    def __init__(self, actor: Actor) -> None:
        self.actor = actor
        self.execute = actor.execute

    def reset(self, observations: list[Observation], rows: Bool[np.ndarray, " b"]) -> None:
        """As `Actor.reset`."""
        self.actor.reset(self._swap(observations), rows)

    def act(self, observations: list[Observation]) -> Float[np.ndarray, "b horizon a"]:
        """As `Actor.act`."""
        return self.actor.act(self._swap(observations))

    def _swap(self, observations: list[Observation]) -> list[Observation]:
        others = observations[1:] + observations[:1]
        return [replace(own, frames=other.frames) for own, other in zip(observations, others, strict=True)]
