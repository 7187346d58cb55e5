"""SmallWAM, inverse_dynamics: as metaworld_joint in everything but the paradigm."""

from pathlib import Path

from ml_collections import ConfigDict

from wamjax.config import load


def get_config() -> ConfigDict:
    """The experiment."""
    config = load(Path(__file__).with_name("metaworld_joint.py"))
    config.name = config.policy.paradigm = "inverse_dynamics"
    return config
