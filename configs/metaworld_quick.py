"""SmallWAM, joint prediction, a short run: as metaworld_joint with fewer steps."""

from pathlib import Path

from ml_collections import ConfigDict

from wamjax.config import load


def get_config() -> ConfigDict:
    """The experiment."""
    config = load(Path(__file__).with_name("metaworld_joint.py"))
    config.train.steps = 1400
    return config
