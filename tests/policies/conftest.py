"""A small SmallWAM of every paradigm, with all weights random."""

import functools

import jax
import numpy as np
import pytest

from wamjax.networks.patch_codec import PatchCodec
from wamjax.policies.contract import SampleShapes
from wamjax.policies.small_wam import SmallWAM, SmallWAMConfig

SHAPES = SampleShapes(views=2, height=8, width=8, future=2, horizon=5, state=4, action=3)
BATCH = 3


@functools.cache
def policy(paradigm: str) -> SmallWAM:
    config = SmallWAMConfig(paradigm, width=16, layers=2, heads=2, mlp=32, codec=PatchCodec(4, 12), language_width=8)
    return SmallWAM(config, SHAPES)


@pytest.fixture(scope="session")
def batch() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    masks = {"frame_mask": np.ones((BATCH, 3), bool), "action_mask": np.ones((BATCH, 5), bool)}
    masks["frame_mask"][0, 2] = masks["action_mask"][0, 3:] = False
    return masks | {
        "frames": random.integers(0, 256, (BATCH, 2, 3, 8, 8, 3), dtype=np.uint8),
        "state": random.standard_normal((BATCH, 4)).astype(np.float32),
        "actions": random.uniform(-2, 2, (BATCH, 5, 3)).astype(np.float32),
        "language": random.standard_normal((BATCH, 8)).astype(np.float32),
    }


@pytest.fixture(scope="session")
def frozen() -> dict:
    random = np.random.default_rng(1)
    statistics = {
        "state": {"mean": np.full(4, 0.3), "std": np.full(4, 2.0)},
        "action": {"q01": np.full(3, -2.0), "q99": np.full(3, 1.0)},
    }
    return policy("joint").freeze(random.integers(0, 256, (50, 8, 8, 3), dtype=np.uint8), statistics)


@pytest.fixture(scope="session")
def make(randomise):
    """paradigm -> (policy, params)"""

    @functools.cache
    def build(paradigm: str):
        return policy(paradigm), randomise(jax.eval_shape(policy(paradigm).init, jax.random.key(0)))

    return build
