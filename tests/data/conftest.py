"""A small store of synthetic episodes whose every clip can be told from its state."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from wamjax.data.episode import Episode
from wamjax.data.store import EpisodeStore, finish, write_shard
from wamjax.data.video import encode

SIZE = 32
LENGTHS = (5, 9, 3, 12, 1, 7, 10, 4)
FPS = 20.0


def scene(frames: int, seed: int, size: int = SIZE) -> np.ndarray:
    """Saturated discs that move over a gradient: uint8 (frames, size, size, 3)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size
    pictures = np.empty((frames, size, size, 3))
    pictures[:] = np.stack([x, y, 1 - x], -1) * 160
    for _ in range(3):
        start, speed, colour = rng.random(2), rng.normal(0, 0.03, 2), rng.integers(0, 256, 3)
        for t in range(frames):
            centre = (start + speed * t) % 1
            pictures[t][(x - centre[0]) ** 2 + (y - centre[1]) ** 2 < 0.02] = colour
    return pictures.astype(np.uint8)


def episode(index: int, length: int, *, language: tuple[str, ...] | None = None) -> Episode:
    """Episode `index`: cartesian_position is (index, step, 0), so that a clip's state names the clip."""
    rng = np.random.default_rng(index)
    step = np.arange(length, dtype=np.float32)
    return Episode(
        steps={
            "observation/cartesian_position": np.stack([np.full_like(step, index), step, 0 * step], axis=1),
            "observation/gripper_position": rng.random((length, 1)).astype(np.float32),
            "action": rng.normal(size=(length, 4)).astype(np.float32),
            "success": step > length - 2,
        },
        videos={
            camera: encode(scene(length, 100 * index + view), FPS)
            for view, camera in enumerate(("corner2", "gripperPOV"))
        },
        language=(f"task {index % 3}",) if language is None else language,
        metadata={"fps": FPS, "seed": index, "instance": [index / 7, 0.5], "success": True},
    )


@pytest.fixture(scope="session")
def make_episode() -> Callable[..., Episode]:
    return episode


@pytest.fixture(scope="session")
def make_scene() -> Callable[..., np.ndarray]:
    return scene


@pytest.fixture(scope="session")
def episodes() -> list[Episode]:
    return [episode(i, length) for i, length in enumerate(LENGTHS)]


@pytest.fixture(scope="session")
def make_store(tmp_path_factory: pytest.TempPathFactory) -> Callable[[list[Episode]], Path]:
    """Writes a finished dataset of two training shards and one of validation."""

    def write(episodes: list[Episode]) -> Path:
        folder = tmp_path_factory.mktemp("stores") / "store"
        write_shard(folder, "train", "a-0", episodes[:3])
        write_shard(folder, "train", "a-1", episodes[3:])
        write_shard(folder, "validation", "a-0", episodes[:2])
        finish(folder, name="synthetic")
        return folder

    return write


@pytest.fixture(scope="session")
def folder(make_store: Callable[[list[Episode]], Path], episodes: list[Episode]) -> Path:
    return make_store(episodes)


@pytest.fixture
def store(folder: Path) -> EpisodeStore:
    return EpisodeStore(folder)
