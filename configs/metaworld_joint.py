"""SmallWAM, joint prediction: video and actions are one sample, denoised together.

Four Meta-World tasks, 64-pixel frames of two cameras, trained from scratch on a processor.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The experiment; keys left out keep the defaults of the library's dataclasses."""
    return ConfigDict(
        {
            "name": "joint",
            "policy": {"paradigm": "joint", "width": 128, "layers": 4, "heads": 4, "mlp": 384},
            "clip": {
                "cameras": ("corner2", "gripperPOV"),
                "frame_offsets": (0, 4, 8),
                "action_horizon": 8,
                "images": "true",
            },
            "train": {"steps": 3000, "batch_size": 32, "optimizer": {"name": "muon", "learning_rate": 3e-3}},
        }
    )
