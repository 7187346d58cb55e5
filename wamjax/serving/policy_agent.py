"""Any policy of the house as an agent: one episode is a batch of one, every stage one compiled program."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from wamjax.errors import UserError
from wamjax.policies.contract import Params, Policy, RolloutState
from wamjax.serving.agent import Decision, Description, Observation


@dataclasses.dataclass(frozen=True)
class Interface:
    """How a policy meets a robot.

    Attributes:
        name: of the policy, for people.
        cameras: DROID's names of the policy's views, in its order.
        resolution: (height, width) of the frames it takes, in pixels.
        state: its state fields, in its order, and their sizes.
        action_space: see `Description`.
        history: frames of each camera that `observe` gets; the oldest is repeated where there are fewer.
        seed: of the sampling noise.
        fresh_noise: whether every call of an episode draws other noise, or all the same (as DreamZero does).
        video_fps, warm_up_calls: see `Description`.
    """

    name: str
    cameras: tuple[str, ...]
    resolution: tuple[int, int]
    state: Mapping[str, int]
    action_space: str = "joint_position"
    history: int = 4
    seed: int = 0
    fresh_noise: bool = True
    video_fps: float = 5.0
    warm_up_calls: int = 2


@dataclasses.dataclass(frozen=True)
class Episode:
    """What a policy agent remembers of an episode.

    Attributes:
        rollout: the policy's own memory.
        language: the tokenised instruction.
        frames: the newest frames of each camera, at most `Interface.history`.
        executed: the last chunk of actions, all of which the robot carries out; none before the first.
        calls: chunks so far.
    """

    rollout: RolloutState
    language: np.ndarray
    frames: Mapping[str, UInt8[np.ndarray, "t h w 3"]]
    executed: Float[Array, "1 horizon a"] | None = None
    calls: int = 0


class PolicyAgent:
    """Serves a policy.

    The first request of an episode resets the policy with the newest frame of each camera. Every later one first
    commits the newest `history` frames and the actions of the chunk before (`Policy.observe`), then acts: the frame
    supply of DreamZero's server (eval_utils/policy_server.py and socket_test_optimized_AR.py of dreamzero0/dreamzero).
    Equal requests give equal actions, whatever happens in other episodes: noise depends on the seed and the number of
    the call within its episode only.

    Args:
        policy, params, frozen: what acts; placed and sharded arrays stay where they are.
        interface: how it meets the robot.

    Raises:
        UserError: the policy has another number of views or state dimensions than the interface.
    """

    def __init__(self, policy: Policy, params: Params, frozen: Params, interface: Interface) -> None:
        _check(policy, interface)
        self._policy, self._interface = policy, interface
        self._params, self._frozen = jax.tree.map(jnp.asarray, (params, frozen))
        self._key = jax.random.key(interface.seed)
        self._reset = jax.jit(policy.reset)
        # The old memory is given up for the new: caches of large policies do not fit twice.
        self._observe = jax.jit(policy.observe, donate_argnums=2)
        self._act = jax.jit(self._act_one)
        self._imagine = jax.jit(self._imagine_one)

    @functools.cached_property
    def description(self) -> Description:
        """What the policy wants to see and what it gives; the chunk's shape is found by tracing, not by running."""
        i = self._interface
        batch = {
            "frames": np.zeros((1, len(i.cameras), *i.resolution, 3), np.uint8),
            "state": np.zeros((1, sum(i.state.values())), np.float32),
            "language": np.asarray(self._policy.tokenize(""))[None],
        }
        rollout = jax.eval_shape(self._reset, self._params, self._frozen, batch)
        actions, _ = jax.eval_shape(self._act, self._params, self._frozen, rollout, batch, self._key)
        return Description(
            name=i.name,
            cameras=dict.fromkeys(i.cameras, i.resolution),
            state=dict(i.state),
            action_space=i.action_space,
            horizon=actions.shape[1],
            action_dim=actions.shape[2],
            video_fps=i.video_fps,
            warm_up_calls=i.warm_up_calls,
        )

    def start(self, instruction: str, observation: Observation) -> Episode:
        """Begins an episode with the newest frame of each camera."""
        frames = {camera: observation.frames[camera][-1:].copy() for camera in self._interface.cameras}
        language = np.asarray(self._policy.tokenize(instruction))
        rollout = self._reset(self._params, self._frozen, self._batch(frames, observation, language))
        return Episode(jax.block_until_ready(rollout), language, frames)

    def act(self, state: Episode, observation: Observation) -> Decision:
        """Commits what happened since the last chunk and samples the next."""
        began = time.perf_counter()
        timings = {}
        episode = state
        if episode.executed is not None:
            episode = self._observed(episode, observation)
            timings["observe"] = _milliseconds(began)
        batch = self._batch(episode.frames, observation, episode.language)
        key = jax.random.fold_in(self._key, episode.calls if self._interface.fresh_noise else 0)
        began = time.perf_counter()
        actions, rollout = self._act(self._params, self._frozen, episode.rollout, batch, key)
        chunk = np.asarray(actions[0], np.float32)
        timings["act"] = _milliseconds(began)
        after = dataclasses.replace(episode, rollout=rollout, executed=actions, calls=episode.calls + 1)
        video = functools.partial(self._video, rollout, batch, key) if self._policy.imagines else None
        return Decision(chunk, after, timings, video)

    def _observed(self, episode: Episode, observation: Observation) -> Episode:
        """The episode after the frames and the actions since its last chunk."""
        frames = {
            camera: np.concatenate([old, observation.frames[camera]])[-self._interface.history :].copy()
            for camera, old in episode.frames.items()
        }
        clips = [_padded(clip, self._interface.history) for clip in frames.values()]
        rollout = self._observe(self._params, self._frozen, episode.rollout, np.stack(clips)[None], episode.executed)
        return dataclasses.replace(episode, rollout=jax.block_until_ready(rollout), frames=frames)

    def _batch(
        self, frames: Mapping[str, np.ndarray], observation: Observation, language: np.ndarray
    ) -> dict[str, np.ndarray]:
        """The present as a batch of one."""
        state = np.concatenate([np.ravel(observation.state[field]) for field in self._interface.state])
        now = np.stack([clip[-1] for clip in frames.values()])
        return {"frames": now[None], "state": state[None].astype(np.float32), "language": language[None]}

    def _act_one(self, params: Params, frozen: Params, rollout: Any, batch: Any, key: Array) -> Any:
        return self._policy.act(params, frozen, rollout, batch, self._policy.draw_act(key, 1))

    def _imagine_one(self, params: Params, frozen: Params, rollout: Any, batch: Any, key: Array) -> Any:
        return self._policy.imagine(params, frozen, rollout, batch, self._policy.draw_act(key, 1))

    def _video(self, rollout: RolloutState, batch: Any, key: Array) -> UInt8[np.ndarray, "t h w 3"]:
        """What the policy expects to see, its views side by side, with the memory that `act` left and its noise."""
        views = np.asarray(self._imagine(self._params, self._frozen, rollout, batch, key))[0]
        return np.concatenate(list(views), axis=2)


def _check(policy: Policy, interface: Interface) -> None:
    views, size = policy.shapes.views, sum(interface.state.values())
    if views != len(interface.cameras):
        raise UserError(f"the policy has {views} views, not {len(interface.cameras)} ({', '.join(interface.cameras)})")
    if policy.shapes.state != size:
        fields = ", ".join(f"{name} {count}" for name, count in interface.state.items())
        raise UserError(f"the policy has a state of {policy.shapes.state} numbers, not {size} ({fields})")


def _padded(clip: UInt8[np.ndarray, "t h w 3"], length: int) -> UInt8[np.ndarray, "length h w 3"]:
    """The clip with its first frame repeated in front."""
    return np.concatenate([np.repeat(clip[:1], length - len(clip), axis=0), clip])


def _milliseconds(began: float) -> float:
    return (time.perf_counter() - began) * 1000
