"""DreamZero's network: Wan's transformer over clean frames, noisy frames, actions and states.

After modules/wan_video_dit_action_casual_chunk.py of github.com/dreamzero0/dreamzero. A clip is one frame and then
blocks of frames; a block brings its actions and its state. Training sees a clean and a noisy copy of the clip at
once (teacher forcing); inference keeps the clean frames' keys and values, and denoises the next block beside them.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from wamjax.networks.wan.dit import PARTITIONS as WAN_PARTITIONS
from wamjax.networks.wan.dit import Latents, Precision, WanCondition, WanDiT, WanDiTConfig, grid_positions
from wamjax.nn.rope import rotation
from wamjax.nn.stack import Cache, Memory, StackConfig
from wamjax.nn.tokens import Group, TokenIds, TokenPlan
from wamjax.policies.codecs import ActionEncoder, CategoryMLP

PARTITIONS = (
    (r"(state_encoder|action_encoder|action_decoder)/layer\d/kernel", (None, "fsdp", "tensor")),
    *WAN_PARTITIONS,
)
"""Parameter path to the mesh axes of its dimensions: the codecs', then the transformer's."""


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
    """Shape of the network.

    Attributes:
        dit: Wan's transformer, which holds all weights but the codecs'.
        state, action: widths that states and actions are padded to.
        hidden: of the state encoder and the action decoder.
        categories: embodiments with weights of their own in the codecs; 1 in released weights.
        block_frames: latent frames of a block.
        block_actions: actions of a block.
    """

    dit: WanDiTConfig
    state: int = 64
    action: int = 32
    hidden: int = 1024
    categories: int = 1
    block_frames: int = 2
    block_actions: int = 24


@struct.dataclass
class Clip:
    """Latents of a batch of clips, each followed in the channels by Wan's image condition where the network reads one.

    Attributes:
        clean, noisy: the frames, and their noisy copy.
        timestep: noise level of each noisy frame, times 1000.
    """

    clean: Latents
    noisy: Latents
    timestep: Float[Array, "b t"]


@struct.dataclass
class Robot:
    """Actions and states of a batch of samples, normalised and padded.

    Attributes:
        actions: noisy actions. timestep: the noise level of each, times 1000.
        state: one per block. category: embodiment of each sample.
    """

    actions: Float[Array, "b n a"]
    timestep: Float[Array, "b n"]
    state: Float[Array, "b i s"]
    category: Int[Array, " b"]


@struct.dataclass
class Present:
    """What a sample has of a clip's blocks.

    Attributes:
        block: whether the block's frames are there. robot: whether its actions and state are.
    """

    block: Bool[Array, "b i"]
    robot: Bool[Array, "b i"]


@struct.dataclass
class Past:
    """Clean frames whose keys and values are known.

    Attributes:
        cache: keys and values of a window of frames.
        held: which frames of the window are there.
    """

    cache: Cache
    held: Bool[Array, "b t"]


@struct.dataclass
class Parts:
    """What tokens have (features, positions, ...) of a clip's frames, actions and states; (b, n, ...) each.

    In a sequence stands the first frame, where there is one, and then block after block: frames, actions, state.
    """

    video: Array
    actions: Array
    state: Array

    def woven(self, blocks: int, first: int = 0) -> Array:
        """All in the sequence's order (b, n, ...); `first` tokens of the video are a frame before the blocks."""
        b = max(part.shape[0] for part in (self.video, self.actions, self.state))
        parts = [
            jnp.broadcast_to(x, (b, *x.shape[1:])).reshape(b, blocks, -1, *x.shape[2:])
            for x in (self.video[:, first:], self.actions, self.state)
        ]
        every = jnp.concatenate(parts, axis=2)
        every = every.reshape(b, -1, *every.shape[3:])
        return jnp.concatenate([self.video[:, :first], every], axis=1) if first else every

    @staticmethod
    def unwoven(x: Array, blocks: int, actions: int, first: int = 0) -> Parts:
        """The inverse, for blocks of so many `actions` and one state."""
        b, width = x.shape[0], x.shape[2:]
        every = x[:, first:].reshape(b, blocks, -1, *width)
        video, *robot = jnp.split(every, [every.shape[2] - actions - 1, every.shape[2] - 1], axis=2)
        video = video.reshape(b, -1, *width)
        return Parts(jnp.concatenate([x[:, :first], video], axis=1), *(part.reshape(b, -1, *width) for part in robot))


StateSees = Literal["all", "itself"]
"""What a state token sees when acting: everything (released code) or itself (as in training)."""


def training_plan(frame: int, blocks: int, config: NetworkConfig) -> TokenPlan:
    """Clean frames, then noisy ones, each block followed by its actions and its state.

    Args:
        frame: tokens of a latent frame. blocks: of the clip. config: sizes of a block.
    """

    def copy(stream: str) -> list[Group]:
        return [Group(stream, frame)] + [Group(stream, frame * config.block_frames, block=1 + i) for i in range(blocks)]

    groups = copy("clean")
    for group in copy("noisy"):
        groups.append(group)
        if group.block:
            groups += [Group("action", config.block_actions, block=group.block), Group("state", 1, block=group.block)]

    def sees(query: Group, key: Group) -> bool:
        if query.stream == "clean":
            return key.stream == "clean" and key.block <= query.block
        if query.stream == "state":
            return key.stream == "state" and key.block == query.block
        if query.block == 0:
            return key.stream == "noisy" and key.block == 0
        return key.block < query.block if key.stream == "clean" else key.block == query.block

    return TokenPlan.from_rule(groups, sees)


def acting_plan(frame: int, window: int, config: NetworkConfig, state_sees: StateSees) -> TokenPlan:
    """`window` cached clean frames, then a noisy block, its actions and its state."""
    groups = [
        Group("clean", frame * window),
        Group("noisy", frame * config.block_frames),
        Group("action", config.block_actions),
        Group("state", 1),
    ]
    alone = state_sees == "itself"
    return TokenPlan.from_rule(groups, lambda q, k: not (alone and q.stream == "state") or k.stream == "state")


def committing_plan(frame: int, window: int, frames: int) -> TokenPlan:
    """`window` cached clean frames, then `frames` new ones."""
    groups = [Group("clean", frame * window)] * (window > 0) + [Group("clean", frame * frames)]
    return TokenPlan.from_rule(groups, lambda q, k: True)


class DreamZeroNetwork(nn.Module):
    """The network.

    Attributes:
        config: its shape.
        precision: in what numbers it computes.
    """

    config: NetworkConfig
    precision: Precision = Precision()

    def setup(self) -> None:
        c = self.config
        self.dit = WanDiT(c.dit, self.precision)
        self.state_encoder = CategoryMLP(c.categories, c.hidden, c.dit.width)
        self.action_encoder = ActionEncoder(c.categories, c.dit.width)
        self.action_decoder = CategoryMLP(c.categories, c.hidden, c.action)

    def __call__(
        self,
        clip: Clip,
        robot: Robot,
        text: Float[Array, "b l e"],
        image: Float[Array, "b i f"] | None = None,
        present: Present | None = None,
    ) -> tuple[Latents, Float[Array, "b n a"]]:
        """Velocities (noise minus data) of all frames and actions, in float32: the training pass.

        Args:
            clip, robot: what is denoised.
            text, image: features of the prompt and of the first frame, as of `WanDiT`.
            present: blocks that samples have; None where all have all. What is not there is seen by nothing, and its
                predictions mean nothing.
        """
        grid, (b, frames) = self.dit.grid(clip.noisy), clip.timestep.shape
        blocks, frame = (frames - 1) // self.config.block_frames, grid[1] * grid[2]
        plan = training_plan(frame, blocks, self.config)
        levels = jnp.concatenate([jnp.zeros((b, 1)), clip.timestep, robot.timestep], axis=1)
        level = _levels(1, frames, frame, self.config.block_actions, blocks)
        time = jnp.concatenate([jnp.zeros((1, frames * frame), int), level.woven(blocks, frame)], axis=1)
        ids = TokenIds(_segments(plan, present), jnp.broadcast_to(time, (b, plan.length)))
        cos, sin = (
            jnp.concatenate([x.video, x.woven(blocks, frame)], axis=1)
            for x in self._turned(grid, jnp.zeros(1, int), blocks)
        )
        condition = self.dit.condition(levels, (cos, sin), text, image if self.config.dit.image else None)
        noisy = self._tokens(clip.noisy, robot).woven(blocks, frame)
        tokens = jnp.concatenate([self.dit.embed(clip.clean), noisy], axis=1)
        tokens, _ = self.dit.run(tokens, condition, ids, plan)
        parts = Parts.unwoven(tokens[:, frames * frame :], blocks, self.config.block_actions, frame)
        return self._read(parts, level, condition, grid, robot)

    def remember(self, text: Array | None = None, image: Array | None = None) -> Memory:
        """Keys and values of a prompt, or of the first frame's image, in all blocks: computed once for all steps."""
        return self.dit.remember(text, image)

    def commit(self, latents: Latents, start: Int[Array, " b"], memory: Memory, past: Past | None = None) -> Cache:
        """Keys and values of clean frames.

        Args:
            latents: the frames, as in `Clip`.
            start: number of the first of them in its clip.
            memory: of prompt and image.
            past: what is known of earlier frames.
        """
        grid, b = self.dit.grid(latents), latents.shape[0]
        frame, window = grid[1] * grid[2], 0 if past is None else past.held.shape[1]
        plan = committing_plan(frame, window, grid[0])
        ids = _cached_ids(plan, past, frame, jnp.zeros((b, grid[0] * frame), int))
        turned = rotation(grid_positions(grid) + _frames_later(start), self.config.dit.pairs)
        condition = self.dit.condition(jnp.zeros((b, 1)), turned)
        cache = None if past is None else past.cache
        return self.dit.run(self.dit.embed(latents), condition, ids, plan, cache, memory)[1]

    def denoise(
        self,
        latents: Latents,
        timestep: Float[Array, "b t"],
        robot: Robot,
        start: Int[Array, " b"],
        memory: Memory,
        past: Past,
        state_sees: StateSees = "all",
    ) -> tuple[Latents, Float[Array, "b n a"]]:
        """Velocities of one block of frames and its actions, beside clean frames.

        Args:
            latents: the noisy frames, as in `Clip`. timestep: noise level of each, times 1000.
            robot: the block's actions and state.
            start, memory, past: as of `commit`.
            state_sees: what the state token sees.
        """
        grid, (b, frames) = self.dit.grid(latents), timestep.shape
        frame = grid[1] * grid[2]
        plan = acting_plan(frame, past.held.shape[1], self.config, state_sees)
        level = _levels(0, frames, frame, self.config.block_actions, 1)
        time = level.woven(1)
        ids = _cached_ids(plan, past, frame, jnp.broadcast_to(time, (b, time.shape[1])))
        cos, sin = (x.woven(1) for x in self._turned(grid, start, 1))
        condition = self.dit.condition(jnp.concatenate([timestep, robot.timestep], axis=1), (cos, sin))
        tokens, _ = self.dit.run(self._tokens(latents, robot).woven(1), condition, ids, plan, past.cache, memory)
        return self._read(Parts.unwoven(tokens, 1, self.config.block_actions), level, condition, grid, robot)

    @property
    def stack(self) -> StackConfig:
        """Shape of the blocks."""
        return self.config.dit.stack(self.precision)

    def products(self, plan: TokenPlan, queries: int) -> float:
        """See `wamjax.policies.contract.Counted`; the codecs' few tokens are left out."""
        return self.config.dit.products(queries, prompt=queries == plan.length)

    def _tokens(self, latents: Latents, robot: Robot) -> Parts:
        """Noisy frames, actions and states as tokens."""
        compute, islands = self.precision.compute, self.precision.islands
        actions = self.action_encoder(robot.actions.astype(compute), robot.timestep, robot.category)
        state = self.state_encoder(robot.state.astype(compute), robot.category)
        return Parts(self.dit.embed(latents), actions.astype(islands), state.astype(islands))

    def _read(
        self, tokens: Parts, level: Parts, condition: WanCondition, grid: tuple[int, int, int], robot: Robot
    ) -> tuple[Latents, Float[Array, "b n a"]]:
        """Velocities out of the last block's tokens."""
        time = jnp.broadcast_to(level.video, tokens.video.shape[:2])
        video = self.dit.read(tokens.video, condition, TokenIds(None, time))
        actions = self.action_decoder(tokens.actions.astype(self.precision.compute), robot.category)
        return self.dit.unpatch(video, grid), actions.astype(jnp.float32)

    def _turned(self, grid: tuple[int, int, int], start: Int[Array, " b"], blocks: int) -> tuple[Parts, Parts]:
        """Cosines and sines of frames, of actions and of states; `start` is the number of the first frame."""
        c, pairs = self.config, self.config.dit.pairs
        first = jnp.maximum(start - 1, 0)[:, None] // c.block_frames
        number = first + jnp.arange(blocks)
        action = first * c.block_actions + jnp.arange(blocks * c.block_actions)
        video = rotation(grid_positions(grid) + _frames_later(start), pairs)
        actions, states = (rotation(x[..., None], (sum(pairs),)) for x in (action, number))
        return Parts(video[0], actions[0], states[0]), Parts(video[1], actions[1], states[1])


def _levels(first: int, frames: int, frame: int, actions: int, blocks: int) -> Parts:
    """Numbers (1, n) of tokens' noise levels: one per frame, then one per action; a state has its first action's."""
    video = jnp.repeat(first + jnp.arange(frames), frame)
    action = first + frames + jnp.arange(blocks * actions)
    return Parts(video[None], action[None], action[None, ::actions])


def _segments(plan: TokenPlan, present: Present | None) -> Int[Array, "b n"] | None:
    """0 for tokens that are there, -1 for others."""
    if present is None:
        return None
    always = jnp.ones_like(present.block[:, :1])
    block, robot = (jnp.concatenate([always, x], axis=1) for x in (present.block, present.robot))
    groups = [(robot if g.stream in ("action", "state") else block)[:, g.block] for g in plan.groups]
    lengths = np.array([group.length for group in plan.groups])
    there = jnp.repeat(jnp.stack(groups, axis=1), lengths, axis=1, total_repeat_length=plan.length)
    return there.astype(int) - 1


def _cached_ids(plan: TokenPlan, past: Past | None, frame: int, time: Int[Array, "b n"]) -> TokenIds:
    """Ids of cached frames (whose time is never read) and of tokens with the times given."""
    if past is None:
        return TokenIds(None, time)
    held = jnp.repeat(past.held, frame, axis=1).astype(int) - 1
    segment = jnp.concatenate([held, jnp.zeros_like(time)], axis=1)
    return TokenIds(segment, jnp.concatenate([jnp.zeros_like(held), time], axis=1))


def _frames_later(start: Array) -> Float[Array, "b 1 3"]:
    return start[:, None, None] * jnp.array([1.0, 0.0, 0.0])
