"""DreamZero checkpoints as policies, and runs as checkpoints."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from wamjax.cli import _experiment
from wamjax.cli._transfer import SETTINGS, copy_settings
from wamjax.data import embodiments, prompts
from wamjax.data.canvas import CanvasConfig
from wamjax.data.embodiments import Embodiment, Field
from wamjax.data.gear import checkpoint_statistics
from wamjax.errors import UserError
from wamjax.interop.checkpoint import Component, load, of_params
from wamjax.networks.clip import CLIPVision
from wamjax.networks.umt5 import UMT5Encoder
from wamjax.networks.wan.vae import WanVAE
from wamjax.policies.contract import Params
from wamjax.policies.dreamzero.config import DreamZeroConfig, SamplingConfig
from wamjax.policies.dreamzero.frozen import UMT5Text, WanFrames
from wamjax.policies.dreamzero.policy import DreamZero

PICTURES = {8: (CanvasConfig(), None), 16: (CanvasConfig(height=160, width=320), (160, 320))}
"""By the pixels of a latent's side (Wan2.1, Wan2.2): cells of the canvas, and what it is resized to."""


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What a checkpoint does not say itself.

    Attributes:
        embodiment: the robot.
        size: height and width of its cameras' frames; None for those of the checkpoint's metadata, or else DROID's.
        prompts: file of the prompts that the weights were trained with; None takes our own, which is said.
        tokenizer: folder or file of spiece.model; None looks beside the weights.
        sampling, compute: see `DreamZeroConfig`.
    """

    embodiment: str
    size: tuple[int, int] | None = None
    prompts: str | None = None
    tokenizer: str | None = None
    sampling: SamplingConfig = SamplingConfig()
    compute: str = "float32"


def released(folder: Path, wanted: Wanted) -> tuple[DreamZero, Params, Params]:
    """The policy of a published or imported checkpoint, its parameters and its frozen ones.

    Raises:
        UserError: not such a checkpoint, no statistics of the robot, prompts other than the weights'.
    """
    robot = embodiments.load(wanted.embodiment)
    names = {"network": "transformer", "frames": "vae", "text": "text_encoder", "image": "image_encoder"}
    dtype = np.dtype(wanted.compute) if wanted.compute == "float32" else None
    parts = {ours: load(folder, theirs, dtype=dtype) for ours, theirs in names.items()}
    texts = prompts.own(robot)
    if wanted.prompts is not None:
        texts = prompts.load(wanted.prompts, robot)
    elif warning := prompts.foreign(texts, robot):
        print(f"warning: {warning}", flush=True)
    frames = WanFrames(vae=parts["frames"].config)
    canvas, resized = PICTURES[frames.factor]
    config: Any = DreamZeroConfig(
        network=parts["network"].config,
        embodiment=wanted.embodiment,
        prompts=texts,
        canvas=canvas,
        resized=resized,
        frames=frames,
        text=UMT5Text(encoder=parts["text"].config, tokenizer=wanted.tokenizer or str(folder)),
        image=parts["image"].config,
        sampling=wanted.sampling,
        compute=wanted.compute,  # type: ignore[arg-type]
    )
    size = wanted.size or camera_size(folder, robot)
    policy = DreamZero(config, len(robot.cameras), *size)
    given = {name: parts[name].params for name in ("frames", "text", "image")}
    statistics = checkpoint_statistics(folder, robot)
    frozen = policy.freeze(np.zeros((0, *size, 3), np.uint8), statistics, given)
    return policy, parts["network"].params, frozen


def camera_size(folder: Path, robot: Embodiment) -> tuple[int, int]:
    """Height and width of a robot's pictures as a checkpoint's metadata has them, or those of DROID."""
    file = folder / SETTINGS / "metadata.json"
    found = json.loads(file.read_text()).get(robot.tag, {}).get("modalities", {}).get("video", {})
    sizes = {tuple(found[camera]["resolution"]) for camera in robot.cameras if camera in found}
    if len(sizes) > 1:
        raise UserError(f"{file} has cameras of several sizes, which cannot stand in one batch: give one size to all")
    width, height = sizes.pop() if sizes else (320, 180)
    return int(height), int(width)


def parts_of_run(run: Path) -> dict[str, Component]:
    """The components of a trained DreamZero, adapters merged; pretrained frozen networks are among them."""
    loaded = _experiment.trained(run)
    policy = loaded.policy
    if not isinstance(policy, DreamZero):
        raise UserError(f"{run} holds no DreamZero: other policies have no published layout")
    parts = {"transformer": of_params(policy.network, loaded.params)}
    frozen, config = loaded.frozen, policy.config
    if isinstance(config.frames, WanFrames):
        parts["vae"] = of_params(WanVAE(config.frames.vae), frozen["frames"])
    if isinstance(config.text, UMT5Text):
        parts["text_encoder"] = of_params(UMT5Encoder(config.text.encoder), frozen["text"])
    if config.image is not None:
        carried = {"projection": frozen["image"].get("projection", np.zeros((0, 0))).shape[1]}
        carried["temperature"] = "log_scale" in frozen["image"]
        parts["image_encoder"] = of_params(CLIPVision(dataclasses.replace(config.image, **carried)), frozen["image"])
    return parts


def write_settings(run: Path, destination: Path) -> None:
    """Writes experiment_cfg: the run's configuration, and its statistics as released checkpoints have them.

    Upstream's own settings come from the checkpoint that the run began with, where there is one.
    """
    loaded = _experiment.trained(run)
    policy: Any = loaded.policy
    if loaded.experiment.weights:
        copy_settings(Path(loaded.experiment.weights), destination)
    (destination / SETTINGS).mkdir(exist_ok=True)
    resolved = json.loads((run / "config.json").read_text())
    (destination / SETTINGS / "wamjax.json").write_text(json.dumps(resolved, indent=1))
    (destination / SETTINGS / "metadata.json").write_text(json.dumps(_metadata(policy, loaded.frozen), indent=1))


def _metadata(policy: DreamZero, frozen: Params) -> dict[str, Any]:
    """What released checkpoints say of their robot."""
    robot = policy.embodiment
    video = {"resolution": [policy.width, policy.height], "channels": 3, "fps": robot.fps}

    def described(field: Field) -> dict[str, Any]:
        return {"absolute": True, "rotation_type": None, "shape": [field.size], "continuous": True}

    modalities = {
        "video": dict.fromkeys(robot.cameras, video),
        "state": {field.key: described(field) for field in robot.state},
        "action": {field.key: described(field) for field in robot.action},
    }
    statistics = _statistics(policy, frozen)
    return {robot.tag: {"statistics": statistics, "modalities": modalities, "embodiment_tag": robot.tag}}


def _statistics(policy: DreamZero, frozen: Params) -> dict[str, dict[str, dict[str, list[float]]]]:
    """The quantiles of every field, out of those of the whole vectors."""
    parts: dict[str, dict[str, dict[str, list[float]]]] = {}
    for part, fields in (("state", policy.embodiment.state), ("action", policy.embodiment.action)):
        start, parts[part] = 0, {}
        for field in fields:
            stop = start + field.size
            bounds = {q: np.asarray(frozen["statistics"][part][k]) for q, k in (("q01", "low"), ("q99", "high"))}
            parts[part][field.key] = {q: values[start:stop].tolist() for q, values in bounds.items()}
            start = stop
    return parts
