"""Open-loop metrics: what a policy predicts from recorded frames, against what was recorded next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8

from wamjax.evaluation.image_metrics import psnr, ssim
from wamjax.policies.contract import Batch, Params, Policy

Predictions = Mapping[str, np.ndarray]


class Predictor:
    """Action chunks and, where the policy imagines, future frames of a batch; compiled once.

    Args:
        policy, params, frozen: what predicts.
        video: whether to imagine.
    """

    def __init__(self, policy: Policy, params: Params, frozen: Params, video: bool = True) -> None:
        def predict(batch: Batch, key: Any) -> dict[str, Any]:
            now = {"frames": batch["frames"][:, :, 0], "state": batch["state"], "language": batch["language"]}
            state = policy.reset(params, frozen, now)
            draws = policy.draw_act(key, batch["state"].shape[0])
            result = {"actions": policy.act(params, frozen, state, now, draws)[0]}
            if video:
                result["imagined"] = policy.imagine(params, frozen, state, now, draws)
                result["codec"] = policy.reconstruct(frozen, batch["frames"][:, :, 1:])
            return result

        self._predict = jax.jit(predict)

    def __call__(self, batch: Mapping[str, np.ndarray], seed: int) -> Predictions:
        """ "actions" (b, h, a), "imagined" and "codec" uint8 (b, v, t, h, w, 3) of the frames after the current one."""
        return {name: np.asarray(value) for name, value in self._predict(dict(batch), jax.random.key(seed)).items()}


def open_loop(
    predictor: Predictor, batches: Iterator[Mapping[str, np.ndarray]], count: int, cameras: Sequence[str]
) -> dict[str, Any]:
    """Mean metrics over `count` batches.

    Returns:
        "action_mae": mean absolute error of actions in the robot's units;
        "psnr" (dB) and "ssim", where the policy imagines: "imagined", "copy_last" (the current frame stands still)
        and "codec" (the best the frame codec can do), each by camera; "clips": number of samples.
    """
    errors: list[np.ndarray] = []
    images: dict[str, dict[str, list[np.ndarray]]] = {"psnr": {}, "ssim": {}}
    samples = 0
    for seed in range(count):
        batch = next(batches)
        predicted = predictor(batch, seed)
        samples += len(batch["state"])
        errors.append(np.abs(predicted["actions"] - batch["actions"])[batch["action_mask"]])
        if "imagined" in predicted:
            _compare(batch, predicted, images)
    result: dict[str, Any] = {"action_mae": float(np.mean(np.concatenate(errors))), "samples": samples}
    for metric, kinds in images.items():
        if kinds:
            result[metric] = {
                kind: dict(zip(cameras, np.mean(np.concatenate(parts), axis=0).tolist(), strict=True))
                for kind, parts in kinds.items()
            }
    return result


def _compare(
    batch: Mapping[str, np.ndarray], predicted: Predictions, images: dict[str, dict[str, list[np.ndarray]]]
) -> None:
    """Adds (frames, v) image metrics of a batch's recorded future frames."""
    recorded = np.moveaxis(batch["frames"][:, :, 1:], 1, 2)  # b t v h w 3
    exists = batch["frame_mask"][:, 1:]
    candidates = {
        "imagined": np.moveaxis(predicted["imagined"], 1, 2),
        "copy_last": np.broadcast_to(batch["frames"][:, None, :, 0], recorded.shape),
        "codec": np.moveaxis(predicted["codec"], 1, 2),
    }
    for name, metric in (("psnr", psnr), ("ssim", ssim)):
        for kind, frames in candidates.items():
            value = metric(recorded[exists], np.ascontiguousarray(frames[exists]))
            images[name].setdefault(kind, []).append(np.minimum(value, 100.0))  # equal frames count as 100 dB


def side_by_side(predictor: Predictor, clips: Mapping[str, np.ndarray], seed: int) -> UInt8[np.ndarray, "t h w 3"]:
    """A film of an episode's clips in order, cameras below each other.

    Left the recorded last future frame of each clip, right the imagined one.
    """
    imagined = predictor(clips, seed)["imagined"][:, :, -1]
    recorded = clips["frames"][:, :, -1]
    pairs = np.concatenate([recorded, imagined], axis=3)  # b v h 2w 3
    return np.concatenate([pairs[:, view] for view in range(pairs.shape[1])], axis=1)
