"""DreamZero checkpoints as policies, and runs of the Wan family as checkpoints."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from wamjax.cli import _experiment
from wamjax.cli._transfer import DESCRIBED, SETTINGS
from wamjax.data import embodiments, prompts
from wamjax.data.canvas import CanvasConfig
from wamjax.data.embodiments import Embodiment
from wamjax.data.files import write_json
from wamjax.data.gear import checkpoint_statistics
from wamjax.errors import UserError
from wamjax.interop.checkpoint import Component, load, of_params
from wamjax.interop.dreamzero_settings import describable, metadata, model_settings, run_settings
from wamjax.networks.clip import CLIPVision
from wamjax.policies.contract import Params
from wamjax.policies.dreamzero.config import DreamZeroConfig, SamplingConfig
from wamjax.policies.dreamzero.policy import DreamZero
from wamjax.policies.frozen import UMT5Text, WanFrames, networks
from wamjax.policies.wan_video import WanVideo

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
    """The components of a trained network of the Wan family, adapters merged; pretrained frozen ones are among them."""
    loaded = _experiment.trained(run)
    policy, frozen = loaded.policy, loaded.frozen
    if not isinstance(policy, DreamZero | WanVideo):
        raise UserError(f"{run} holds neither a DreamZero nor a Wan: other policies have no published layout")
    names = {"frames": "vae", "text": "text_encoder", "image": "image_encoder"}
    parts = {"transformer": of_params(policy.network, loaded.params)}
    for name, network in networks(policy.config).items():
        if isinstance(network, CLIPVision):
            carried = {"projection": frozen["image"].get("projection", np.zeros((0, 0))).shape[1]}
            carried["temperature"] = "log_scale" in frozen["image"]
            network = CLIPVision(dataclasses.replace(network.config, **carried))
        parts[names[name]] = of_params(network, frozen[name])
    return parts


def write_settings(run: Path, destination: Path) -> None:
    """Writes what upstream reads beside a run's weights (where it has such networks), and our own configuration."""
    loaded = _experiment.trained(run)
    policy, settings = loaded.policy, destination / SETTINGS
    if not isinstance(policy, DreamZero):
        return
    if not loaded.statistics:
        raise UserError(f"{run} is of an earlier version, without its dataset's statistics: train it with this one")
    settings.mkdir(exist_ok=True)
    if describable(policy):
        write_json(destination / DESCRIBED, model_settings(policy))
        write_json(settings / "conf.yaml", run_settings(policy))
    write_json(settings / "wamjax.json", json.loads((run / "config.json").read_text()))
    write_json(settings / "metadata.json", metadata(policy, loaded.statistics))
