"""Puts this folder on the path, for `tiny_server`; a run folder that needed no training."""

import sys
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from tiny_server import CAMERAS, HORIZON, SHAPES, SIZE, STATE

from wamjax import config as configuration
from wamjax.cli._experiment import Experiment
from wamjax.data.pipeline import ClipConfig
from wamjax.networks.patch_codec import PatchCodec
from wamjax.policies.small_wam import SmallWAM, SmallWAMConfig
from wamjax.training.checkpoint import Checkpoints
from wamjax.training.step import TrainState


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory, randomise) -> Path:
    """What `wamjax train` leaves, with random weights: a DROID robot of eight by sixteen pixels."""
    config = SmallWAMConfig("joint", width=16, layers=2, heads=2, mlp=32, codec=PatchCodec(4, 12), language_width=8)
    state = tuple(f"observation/{field}" for field in STATE)
    experiment = Experiment("tiny", config, ClipConfig(CAMERAS, (0, 1, 2), HORIZON, state=state))
    policy = SmallWAM(config, SHAPES)
    statistics = {
        "state": {"mean": np.zeros(8), "std": np.ones(8)},
        "action": {"q01": np.full(8, -1.0), "q99": np.ones(8)},
    }
    frames = np.random.default_rng(0).integers(0, 256, (50, *SIZE, 3), np.uint8)
    params = randomise(jax.eval_shape(policy.init, jax.random.key(0)))
    state = TrainState(np.int32(1), params, params, optax.EmptyState())
    folder = tmp_path_factory.mktemp("run")
    checkpoints = Checkpoints(folder)
    meta = {"config": configuration.to_dict(experiment), "shapes": configuration.to_dict(SHAPES)}
    checkpoints.save(state, policy.freeze(frames, statistics), meta, 1)
    checkpoints.close()
    return folder
