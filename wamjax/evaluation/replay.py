"""Recorded episodes replayed chunk by chunk: what a policy with a memory of frames would have done and imagined.

The policy acts at the start of every chunk and then observes the recorded frames, as if it had acted as recorded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from wamjax.data.episode import Episode
from wamjax.data.video import decode
from wamjax.errors import UserError
from wamjax.evaluation.image_metrics import psnr, ssim
from wamjax.policies.contract import Params, Policy, RolloutState


class ChunkedPolicy(Policy, Protocol):
    """A policy that observes the frames between its chunks."""

    @property
    def stride(self) -> int:
        """Steps from one observed frame to the next."""

    def picture(self, frames: UInt8[Array, "b v t h w 3"]) -> UInt8[Array, "b 1 t y x 3"]:
        """Frames as `imagine` shows them."""

    def show(
        self, frozen: Params, state: RolloutState, frames: UInt8[Array, "b v h w 3"]
    ) -> UInt8[Array, "b 1 t y x 3"]:
        """What `act` imagined last, after the current frames."""


class Replay:
    """Replays episodes; compiled once.

    Args:
        policy, params, frozen: what acts.
        cameras, state: views and state fields, in the policy's order. action: fields of its actions.
        seed: of the sampling noise.
    """

    def __init__(
        self,
        policy: ChunkedPolicy,
        params: Params,
        frozen: Params,
        cameras: tuple[str, ...],
        state: tuple[str, ...],
        action: tuple[str, ...],
        seed: int = 0,
    ) -> None:
        self._policy, self._cameras, self._state, self._action, self._seed = policy, cameras, state, action, seed

        def act(memory: RolloutState, now: Mapping[str, Array], key: Array) -> tuple[Array, RolloutState, Array]:
            actions, memory = policy.act(params, frozen, memory, now, policy.draw_act(key, 1))
            return actions[0], memory, policy.show(frozen, memory, now["frames"])[0, 0]

        self._reset = jax.jit(lambda now: policy.reset(params, frozen, now))
        self._observe = jax.jit(lambda *inputs: policy.observe(params, frozen, *inputs))
        self._act = jax.jit(act)
        self._picture = jax.jit(lambda frames: policy.picture(frames[None])[0, 0])

    def __call__(self, episodes: Iterable[Episode]) -> dict[str, Any]:
        """Mean errors over all whole chunks of the episodes.

        Returns:
            "chunks", and "action_mae" in the robot's units, over all; "by_chunk": that of first, second, ... chunks;
            "later": over chunks that follow an action: "chunks", "action_mae", and "copy_last", that of repeating it;
            "psnr" (dB) and "ssim": of imagined frames, and of a picture that stands still ("copy_last").
        """
        rows = [row for number, episode in enumerate(episodes) for row in self._chunks(episode, number)]
        if not any("film" in row for row in rows):
            raise UserError("no episode has a chunk of actions and the frame after it: replay longer ones")
        later = [row for row in rows if "copy_last" in row]
        count = 1 + max(row["number"] for row in rows)

        def mean(name: str, among: list[dict[str, Any]]) -> float:
            return float(np.mean([row[name] for row in among])) if among else float("nan")

        result: dict[str, Any] = {
            "chunks": len(rows),
            "action_mae": mean("error", rows),
            "by_chunk": [mean("error", [row for row in rows if row["number"] == i]) for i in range(count)],
            "later": {"chunks": len(later), "action_mae": mean("error", later), "copy_last": mean("copy_last", later)},
        }
        seen = [row for row in rows if "psnr" in row]
        for metric in ("psnr", "ssim"):
            kinds = ("imagined", "copy_last")
            result[metric] = {kind: float(np.mean([row[metric][kind] for row in seen])) for kind in kinds}
        return result

    def film(self, episode: Episode) -> UInt8[np.ndarray, "t h w 3"]:
        """Recorded frames left, and right what was imagined of them at the start of their chunk."""
        pairs = [row["film"] for row in self._chunks(episode, 0) if "film" in row]
        if not pairs:
            raise UserError(f"the episode has {len(episode)} steps, less than a chunk and one: choose a longer one")
        return np.concatenate(pairs)

    def _chunks(self, episode: Episode, number: int) -> Iterable[dict[str, Any]]:
        """Errors chunk by chunk."""
        horizon, stride = self._policy.shapes.horizon, self._policy.stride
        frames = np.stack([decode(episode.videos[camera], np.arange(len(episode))) for camera in self._cameras])
        state, actions = (
            np.concatenate([episode.steps[name].reshape(len(episode), -1) for name in names], axis=1).astype(np.float32)
            for names in (self._state, self._action)
        )
        instruction = episode.language[0] if episode.language else ""
        language = np.asarray(self._policy.tokenize(instruction), np.float32)[None]
        key, memory = jax.random.fold_in(jax.random.key(self._seed), number), None
        for chunk, start in enumerate(range(0, len(episode) - horizon + 1, horizon)):
            now = {"frames": frames[None, :, start], "state": state[None, start], "language": language}
            memory = self._reset(now) if memory is None else memory
            predicted, memory, video = self._act(memory, now, jax.random.fold_in(key, chunk))
            recorded = actions[start : start + horizon]
            row = {"number": chunk, "error": np.abs(np.asarray(predicted) - recorded).mean()}
            if start:
                row["copy_last"] = np.abs(actions[start - 1] - recorded).mean()
            following = np.arange(start + stride, start + horizon + 1, stride)
            if following[-1] < len(episode):
                row |= self._video(frames[:, [start, *following]], video)
                memory = self._observe(memory, frames[None][:, :, following], jnp.asarray(recorded)[None])
            yield row

    def _video(self, frames: np.ndarray, imagined: Float[Array, "t y x 3"]) -> dict[str, Any]:
        """Metrics of imagined frames and of the current one standing still; and the frames beside each other."""
        now, *then = np.asarray(self._picture(frames))
        recorded = np.stack(then)
        candidates = {"imagined": np.asarray(imagined), "copy_last": np.broadcast_to(now, recorded.shape)}
        measures: dict[str, Any] = {"film": np.concatenate([recorded, candidates["imagined"]], axis=2)}
        return measures | {
            name: {
                kind: float(np.minimum(metric(recorded, np.ascontiguousarray(video)), 100.0).mean())
                for kind, video in candidates.items()
            }
            for name, metric in (("psnr", psnr), ("ssim", ssim))
        }
