"""Shared by all tests: a small synthetic dataset, and a small policy whose weights are all random."""

from pathlib import Path

import jax
import numpy as np
import pytest

from wamjax.data.episode import Episode
from wamjax.data.store import finish, write_shard
from wamjax.data.video import encode

CAMERAS = ("corner2", "gripperPOV")


def synthetic_episode(seed: int, length: int = 14, size: int = 16) -> Episode:
    """A square moves over a plain; the action is its velocity, the state its position."""
    random = np.random.default_rng(seed)
    velocity = random.uniform(-1, 1, 4).astype(np.float32)
    position = random.uniform(4, 10, 2) + np.arange(length)[:, None] * velocity[:2] * 0.3
    frames = np.full((2, length, size, size, 3), 60, np.uint8)
    for step, (y, x) in enumerate(np.clip(position, 0, size - 4).astype(int)):
        frames[:, step, y : y + 4, x : x + 4] = (220, 120, 40 * (seed % 5))
    state = np.concatenate([position, position[:, :1]], axis=1).astype(np.float32)
    return Episode(
        steps={
            "observation/cartesian_position": state,
            "observation/gripper_position": np.zeros((length, 1), np.float32),
            "action": np.tile(velocity, (length, 1)),
        },
        videos={camera: encode(frames[view], 20.0) for view, camera in enumerate(CAMERAS)},
        language=("push the square",),
        metadata={"fps": 20.0, "seed": seed, "task": "square", "instance": velocity.tolist(), "success": True},
    )


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight training and two validation episodes of 16-pixel frames."""
    folder = tmp_path_factory.mktemp("dataset")
    write_shard(folder, "train", "square", [synthetic_episode(seed) for seed in range(8)])
    write_shard(folder, "validation", "square", [synthetic_episode(seed) for seed in (100, 101)])
    finish(folder, name="squares")
    return folder


@pytest.fixture(scope="session")
def randomise():
    """Replaces every weight by noise: zero-initialised layers would hide mistakes."""

    def apply(params, seed: int = 0, scale: float = 0.3):
        leaves, structure = jax.tree.flatten(params)
        random = np.random.default_rng(seed)
        return structure.unflatten([np.float32(scale * random.standard_normal(leaf.shape)) for leaf in leaves])

    return apply
