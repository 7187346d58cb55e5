"""DreamZero's stages, to be timed one by one; and what stands in for data meanwhile."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from wamjax.policies.contract import Draws, Params, Stage
from wamjax.policies.dreamzero.network import Robot
from wamjax.policies.dreamzero.policy import DreamZero, Session
from wamjax.policies.frozen import UMT5Text, WanFrames, image_features, with_condition

Observation = dict[str, Array]


def stages(policy: DreamZero) -> list[Stage]:
    """In the order in which they run; the prompt's encoding runs once a session and the decoder only to show frames.

    A session that restarts whenever its window is full reads its first frame again once in `blocks` chunks.
    """
    c, network = policy.config, policy.config.network
    again = 1 / c.blocks if c.sampling.window == "restart" else 0.0
    commit, denoise = (dataclasses.replace(one, repeats=policy._branches) for one in policy.passes("act"))
    runs = policy.passes("act")[1].repeats / policy._branches

    def clip(frames: int) -> Any:
        size = (frames, policy.latent_size[0] * c.frames.factor, policy.latent_size[1] * c.frames.factor, 3)
        return lambda params, frozen, session, seen, draws: jnp.zeros((len(seen["state"]), *size))

    def tokens(params: Params, frozen: Params, session: Session, seen: Observation, draws: Draws) -> Array:
        return policy._repeat(seen["language"])

    def latents(params: Params, frozen: Params, session: Session, seen: Observation, draws: Draws) -> Array:
        return jnp.concatenate([session.imagined[:, :1], session.imagined], axis=1)

    found, codec = [], "VAE" if isinstance(c.frames, WanFrames) else "codec"
    if isinstance(c.text, UMT5Text):
        found += [Stage("text encoder", 0.0, tokens, lambda p, frozen, x: c.text.encode(frozen["text"], x))]
    if c.image:
        first = lambda *given: clip(1)(*given)[:, 0]  # noqa: E731
        found += [Stage("image encoder", again, first, lambda p, f, x: image_features(c.image, f["image"], x))]
    if policy._reads_condition:
        whole = clip(1 + 4 * network.block_frames * c.blocks)
        found += [
            Stage(f"{codec} encode, condition", again, whole, lambda p, f, x: with_condition(c.frames, f["frames"], x))
        ]
    block = clip(1 + 4 * network.block_frames)
    found += [
        Stage(f"{codec} encode, block", 1.0, block, lambda p, f, x: c.frames.encode(f["frames"], x)),
        Stage("prefill", 1.0, *_prefill(policy), commit),
        Stage("denoise, one run", runs, *_denoise(policy), denoise),
        Stage(f"{codec} decode", 0.0, latents, lambda p, f, x: c.frames.decode(f["frames"], x)),
    ]
    return found


def _prefill(policy: DreamZero) -> tuple[Any, Any]:
    """The network's pass over a seen block, beside a window's frames."""

    def prepare(params: Params, frozen: Params, session: Session, seen: Observation, draws: Draws) -> Any:
        past, memory, start = policy._past(session)
        frames = jnp.concatenate([session.imagined, policy._beside(session)], axis=-1)
        return policy._repeat(frames), start, memory, past

    return prepare, lambda params, frozen, x: policy._apply(params, *x, method="commit")


def _denoise(policy: DreamZero) -> tuple[Any, Any]:
    """The network's pass over a noisy block and its actions, for all prompts of a session."""
    c, n = policy.config, policy.config.network

    def prepare(params: Params, frozen: Params, session: Session, seen: Observation, draws: Draws) -> Any:
        past, memory, start = policy._past(session)
        frames = policy._repeat(jnp.concatenate([draws.noise["video"], policy._beside(session)], axis=-1))
        state = policy._normalisation(frozen).normalise_state(seen["state"][:, None])
        level, rows = jnp.full((len(frames), 1), 500.0), jnp.zeros(len(frames), int)
        action = jnp.repeat(level, n.block_actions, axis=1)
        robot = Robot(policy._repeat(draws.noise["action"]), action, policy._repeat(state), rows)
        return frames, jnp.repeat(level, n.block_frames, axis=1), robot, start, memory, past

    return prepare, lambda params, frozen, x: policy._apply(params, *x, c.sampling.state_sees, method="denoise")


def statistics(policy: DreamZero) -> dict[str, dict[str, Any]]:
    """Statistics of numbers between -1 and 1."""
    robot = policy.embodiment
    return {
        part: {f.key: {"q01": [-1.0] * f.size, "q99": [1.0] * f.size} for f in fields}
        for part, fields in (("state", robot.state), ("action", robot.action))
    }


def batch(policy: DreamZero, rows: int) -> dict[str, np.ndarray]:
    """A training batch of full samples, of random pixels and numbers."""
    rng, s, blocks = np.random.default_rng(0), policy.shapes, policy.config.blocks
    tokens = np.asarray(policy.tokenize("put the cup on the plate"))
    return {
        "frames": rng.integers(0, 256, (rows, s.views, s.future + 1, s.height, s.width, 3), np.uint8),
        "chunks": np.full(rows, blocks, np.int32),
        "state": rng.uniform(-1, 1, (rows, blocks, s.state)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (rows, blocks * s.horizon, s.action)).astype(np.float32),
        "action_mask": np.ones((rows, blocks * s.horizon), bool),
        "language": np.broadcast_to(tokens, (rows, *tokens.shape)).astype(np.float32),
    }
