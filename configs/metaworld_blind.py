"""SmallWAM, joint prediction without sight: all images are black, in training and evaluation. The control."""

from pathlib import Path

from ml_collections import ConfigDict

from wamjax.config import load


def get_config() -> ConfigDict:
    """The experiment."""
    config = load(Path(__file__).with_name("metaworld_joint.py"))
    config.name = "blind"
    config.clip.images = "zero"
    return config
