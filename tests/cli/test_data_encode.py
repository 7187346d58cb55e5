"""`wamjax data encode`, and training on what it makes, which is training on the dataset."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from wamjax.cli.main import main
from wamjax.data.episode import Episode
from wamjax.data.latents import Encoded
from wamjax.data.store import EpisodeStore, finish, write_shard
from wamjax.data.video import encode

TRAIN = """
    optimizer = {"learning_rate": 3e-3, "warmup_steps": 0, "ema": 0.0}
    train = {"steps": 3, "batch_size": 4, "log_every": 1, "validate_every": 3, "checkpoint_every": 3}
    return ConfigDict({"policy": policy, "train": train | {"optimizer": optimizer}} | more)
"""
WAN = (
    '''
from ml_collections import ConfigDict


def get_config():
    """A tiny Wan."""
    dit = {"width": 32, "mlp": 64, "heads": 2, "layers": 1, "inputs": 12, "outputs": 12, "text": 16, "text_length": 2}
    policy = {
        "kind": "wan_video", "network": dit, "camera": "corner2", "first_frame": 0.5,
        "recipe": {"frames": 5, "fps": 10.0, "height": 16, "width": 16, "steps": 2, "guidance": 2.0},
        "frames": {"kind": "patches", "patch": 4, "components": 3}, "text": {"kind": "words", "width": 16},
    }
    more = {"name": "tiny_wan"}
'''
    + TRAIN
)
SMALL = (
    '''
from ml_collections import ConfigDict


def get_config():
    """A tiny SmallWAM without augmentation."""
    policy = {
        "kind": "small_wam", "width": 32, "layers": 1, "heads": 2, "mlp": 32, "language_width": 16,
        "codec": {"patch": 4, "channels": 3}, "shift_pixels": 0, "state_noise": 0.0,
    }
    more = {
        "name": "tiny",
        "clip": {"cameras": ("corner2", "gripperPOV"), "frame_offsets": (0, 2, 4), "action_horizon": 4},
        "data": {"selection": {"min_steps": 12}},
    }
'''
    + TRAIN
)
CONFIGS = {"wan": WAN, "small": SMALL}


def episode(seed: int, length: int = 14, language: tuple[str, ...] = ("a square moves", "it moves", "go")) -> Episode:
    """A square moves over a plain; several instructions hold."""
    made = np.random.default_rng(seed)
    frames = np.full((2, length, 16, 16, 3), 60, np.uint8)
    for step, x in enumerate(np.clip(6 + made.uniform(-1, 1) * np.arange(length), 4, 11).astype(int)):
        frames[:, step, 6:10, x : x + 4] = (220, 120, 40)
    steps = {
        "observation/cartesian_position": made.normal(size=(length, 3)).astype(np.float32),
        "observation/gripper_position": made.random((length, 1)).astype(np.float32),
        "action": made.normal(size=(length, 4)).astype(np.float32),
    }
    videos = {camera: encode(frames[view], 20.0) for view, camera in enumerate(("corner2", "gripperPOV"))}
    return Episode(steps, videos, language, {"fps": 20.0, "source": f"{seed}"})


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("encode") / "data"
    write_shard(folder, "train", "a", [episode(seed) for seed in range(3)] + [episode(3, 9), episode(4, 13, ("go",))])
    write_shard(folder, "validation", "a", [episode(100)])
    finish(folder, name="squares")
    return folder


@pytest.fixture(scope="module")
def configs(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("configs")
    for name, text in CONFIGS.items():
        (folder / f"{name}.py").write_text(text)
    return {name: str(folder / f"{name}.py") for name in CONFIGS}


@pytest.fixture(scope="module")
def encoded(data, configs, tmp_path_factory) -> dict[str, Path]:
    """Both policies' encodings of the dataset, in single precision, in several shards."""
    folder = tmp_path_factory.mktemp("encoded")
    for name, config in configs.items():
        options = ["--dtype", "float32", "--shard", "16", "--batch", "4", "--out", str(folder / name)]
        assert main(["data", "encode", "--config", config, "--data", str(data), *options]) == 0
    return {name: folder / name for name in configs}


def losses(run: Path) -> list[float]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [value for record in records for name, value in sorted(record.items()) if "loss" in name]


@pytest.mark.parametrize("name", CONFIGS)
def test_training_on_it_is_training_on_the_dataset(name, data, configs, encoded, tmp_path):
    for kind, folder in (("frames", data), ("latents", encoded[name])):
        assert main(["train", "--config", configs[name], "--data", str(folder), "--out", str(tmp_path / kind)]) == 0
    frames, latents = losses(tmp_path / "frames"), losses(tmp_path / "latents")
    assert len(frames) > 6
    np.testing.assert_allclose(latents, frames, rtol=2e-5)
