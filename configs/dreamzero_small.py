"""A small DreamZero, trained from scratch on the demo's episodes: linear frame codec, hashed words, no image encoder.

Everything else is the real thing: teacher forcing, per-frame noise, actions and states in one sequence with the video,
the chunked closed loop. Blocks of two latent frames, eight frames and eight actions (0.4 s).
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The experiment; keys left out keep the defaults of the library's dataclasses."""
    return ConfigDict(
        {
            "name": "dreamzero_small",
            "policy": {
                "kind": "dreamzero",
                "embodiment": "metaworld",
                "network": {
                    "dit": {
                        **{"width": 128, "mlp": 384, "heads": 4, "layers": 4, "patch": (1, 1, 1)},
                        **{"inputs": 48, "outputs": 48, "text": 256, "text_length": 1},
                    },
                    **{"state": 8, "action": 4, "hidden": 128, "block_actions": 8},
                },
                "canvas": {
                    "height": 64,
                    "width": 64,
                    "brightness": 0.1,
                    "contrast": 0.1,
                    "saturation": 0.1,
                    "hue": 0.02,
                },
                "frames": {"kind": "patches", "patch": 16, "components": 12},
                "text": {"kind": "words", "width": 256},
                "image": None,
                "blocks": 3,
                "sampling": {"guidance": 1.0},
            },
            "train": {"steps": 1500, "batch_size": 16, "optimizer": {"name": "muon", "learning_rate": 3e-3}},
        }
    )
