"""The policy contract: what a trainer, a server, an evaluator and the FLOP counter may ask of any system.

Everything is pure and jit-able. Noise is an argument (`Draws`), so that a run can be repeated and compared exactly.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, UInt8

from wamjax.errors import UserError
from wamjax.nn.stack import StackConfig
from wamjax.nn.tokens import TokenPlan

Params = Any
"""Nested dict of arrays."""

Batch = Mapping[str, Array]
"""What the loader yields; see `wamjax.data.pipeline`."""

Encoded = dict[str, Array]
"""A batch after the frozen networks: normalised clean streams and their masks."""


@struct.dataclass
class Draws:
    """Everything random of one training step or one action.

    Attributes:
        sigma: noise times of each stream, one per sample (b,) or per token or frame (b, n); empty when sampling.
        noise: standard normal, of each stream's shape.
        chosen: what is decided sample by sample: whose prompt is left out, say.
    """

    sigma: dict[str, Float[Array, "b ..."]]
    noise: dict[str, Float[Array, "b ..."]]
    chosen: dict[str, Bool[Array, " b"]] = struct.field(default_factory=dict)


RolloutState = Any
"""What a policy remembers of its sessions: a tree of its own, every leaf of which leads with the session axis."""


@dataclasses.dataclass(frozen=True)
class SampleShapes:
    """Sizes of one training sample, which fix a policy's streams.

    Attributes:
        views: cameras. height, width: of a frame in pixels. future: frames after the current one.
        horizon: actions in a chunk. state, action: their dimensions.
    """

    views: int
    height: int
    width: int
    future: int
    horizon: int
    state: int
    action: int

    @classmethod
    def of(cls, batch: Mapping[str, np.ndarray]) -> SampleShapes:
        """Reads the sizes off a batch."""
        _, views, times, height, width, _ = batch["frames"].shape
        _, horizon, action = batch["actions"].shape
        return cls(views, height, width, times - 1, horizon, batch["state"].shape[-1], action)


class Counted(Protocol):
    """A network whose operations can be counted.

    Attributes:
        stack: its blocks' shape.
    """

    @property
    def stack(self) -> StackConfig: ...

    def products(self, plan: TokenPlan, queries: int) -> float:
        """Multiply-adds of a forward pass over the plan's last tokens, without attention among the plan's tokens."""


@dataclasses.dataclass(frozen=True)
class Pass:
    """One kind of forward pass through a network, for counting.

    Attributes:
        network: the module.
        plan: the whole sequence.
        queries: how many of the plan's last tokens are computed (the others come from a cache).
        repeats: how often it runs.
        trained: whether a backward pass follows.
        through: whether that only passes through, as the weights stay: no gradients are made of them.
    """

    network: Counted
    plan: TokenPlan
    queries: int
    repeats: int = 1
    trained: bool = False
    through: bool = False

    @property
    def forwards(self) -> tuple[int, int]:
        """Forward passes' worth of products with weights, and of attention, backward pass included."""
        return (2 if self.through else 3, 3) if self.trained else (1, 1)


@dataclasses.dataclass(frozen=True)
class Stage:
    """A part of an action chunk's work that can be run, and timed, apart from the rest; pure functions.

    Attributes:
        name: what runs.
        per_chunk: how often, on average over a long session.
        prepare: (params, frozen, session, observation, draws) -> what `run` reads; not part of the work.
        run: (params, frozen, prepared) -> arrays.
        cost: its network pass for one session, where operations are counted.
    """

    name: str
    per_chunk: float
    prepare: Callable[..., Any]
    run: Callable[[Params, Params, Any], Any]
    cost: Pass | None = None


class Policy(Protocol):
    """A system of the field, as the rest of the house sees it."""

    @property
    def shapes(self) -> SampleShapes:
        """Sizes of a sample."""

    @property
    def imagines(self) -> bool:
        """Whether `imagine` has a video to show."""

    def tokenize(self, text: str) -> np.ndarray:
        """An instruction as the loader stores it in `batch["language"]` (l,)."""

    def freeze(
        self, frames: UInt8[np.ndarray, "n h w 3"], statistics: Mapping[str, Mapping[str, np.ndarray]]
    ) -> Params:
        """The frozen parameters: encoders, decoders and normalisation statistics (of "state" and "action")."""

    def init(self, key: Array) -> Params:
        """Trainable parameters."""

    def encode(self, frozen: Params, key: Array | None, batch: Batch) -> Encoded:
        """Runs the frozen networks; `key` drives augmentation, None leaves it out."""

    def draw(self, key: Array, encoded: Encoded) -> Draws:
        """Noise times and noises of one training step."""

    def loss(self, params: Params, frozen: Params, encoded: Encoded, draws: Draws) -> dict[str, tuple[Array, Array]]:
        """Loss terms as (weighted sum, weight); the training loss is the sum of the terms' quotients."""

    def reset(self, params: Params, frozen: Params, observation: Batch) -> RolloutState:
        """Starts sessions with the observation's instructions."""

    def observe(
        self, params: Params, frozen: Params, state: RolloutState, frames: Array | None, executed: Array
    ) -> RolloutState:
        """Commits what really happened: frames seen and actions executed (b, e, a) since the last call."""

    def draw_act(self, key: Array, sessions: int) -> Draws:
        """The noise of one call of `act` or `imagine`."""

    def act(
        self,
        params: Params,
        frozen: Params,
        state: RolloutState,
        observation: Batch,
        draws: Draws,
        prefix: Float[Array, "b p a"] | None = None,
    ) -> tuple[Float[Array, "b h a"], RolloutState]:
        """An action chunk in the robot's units; its first p actions are `prefix` where that is given."""

    def imagine(
        self, params: Params, frozen: Params, state: RolloutState, observation: Batch, draws: Draws
    ) -> UInt8[Array, "b v t h w 3"]:
        """The frames the policy expects."""

    def reconstruct(self, frozen: Params, frames: UInt8[Array, "*b h w 3"]) -> UInt8[Array, "*b h w 3"]:
        """Frames after the frozen codec and back: the best that imagined frames can be."""

    def passes(self, mode: str, frames: int | None = None) -> list[Pass]:
        """The network passes of one training step ("train", per sample) or one action chunk ("act").

        Args:
            frames: of the sample, for policies that are trained on several lengths; None: what they are made for.
        """


def require(condition: bool, message: str) -> None:
    """Raises a UserError with `message` unless the condition holds."""
    if not condition:
        raise UserError(message)
