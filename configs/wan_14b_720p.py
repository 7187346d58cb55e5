"""Wan2.1-T2V-14B, trained in full on captioned video: 81 frames of 720x1280 pixels, 75,600 tokens a film.

`weights` is the folder of Wan2.1-T2V-14B; `policy.text.tokenizer` the one of its spiece.model. A dataset needs videos
of one camera, here "video", and captions; neither states nor actions. Films are read at 16 frames per second.

Wan's own optimiser, batch and noise times are not published: those here are what code that fine-tunes Wan uses. Other
networks by their row, for instance TI2V-5B with half of the films given their first frame (recipe 704x1280, 24 fps):

  --set policy.first_frame=0.5 ...
"""

from ml_collections import ConfigDict

from wamjax.config import to_dict
from wamjax.networks.wan.dit import WAN_DITS
from wamjax.networks.wan.vae import WAN21_VAE


def get_config() -> ConfigDict:
    """The experiment; keys left out keep the defaults of the library's dataclasses."""
    return ConfigDict(
        {
            "name": "wan_14b_720p",
            "policy": {
                "kind": "wan_video",
                "network": to_dict(WAN_DITS["wan2.1-t2v-14b"]) | {"remat": ("block_in",)},
                "camera": "video",
                "recipe": {"height": 720, "width": 1280, "frames": 81, "fps": 16.0},
                "frames": {"kind": "wan", "vae": to_dict(WAN21_VAE)},
                "text": {"kind": "umt5"},
                "compute": "bfloat16",
            },
            "train": {
                "steps": 20_000,
                "batch_size": 64,
                "optimizer": {
                    **{"learning_rate": 1e-5, "warmup_steps": 500, "decay_fraction": 0.0},
                    **{"b1": 0.9, "b2": 0.95, "weight_decay": 0.01, "ema": 0.0},
                },
                "checkpoint_every": 500,
                "validate_every": 1000,
            },
            "mesh": {"data": 1, "fsdp": -1},
        }
    )
