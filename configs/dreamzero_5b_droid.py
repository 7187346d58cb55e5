"""DreamZero on DROID, 5B: Wan2.2-TI2V-5B with an image branch (random at first: Wan's 5B has none) and codecs.

The recipe is that of the 14B. The canvas of 320x640 pixels is resized to 160x320, 50 tokens a latent frame. `weights`
is the folder of Wan2.2-TI2V-5B with CLIP's of Wan2.1-I2V beside it; `policy.text.tokenizer` that of its spiece.model.

Low-rank adapters (rank 4, alpha 4, on attention and MLP), the codecs trained in full:

  wamjax train --config configs/dreamzero_5b_droid.py --set "train.lora={'full': ('(state|action)_\\\\w+/.*',)}" ...
"""

from dreamzero_14b_droid import RECIPE
from ml_collections import ConfigDict

from wamjax.config import to_dict
from wamjax.networks.wan.dit import WAN_DITS
from wamjax.networks.wan.vae import WAN22_VAE


def get_config() -> ConfigDict:
    """The experiment; keys left out keep the defaults of the library's dataclasses."""
    return ConfigDict(
        {
            "name": "dreamzero_5b_droid",
            "policy": {
                "kind": "dreamzero",
                "embodiment": "droid",
                "network": {"dit": to_dict(WAN_DITS["wan2.2-ti2v-5b"]) | {"image": 1280, "remat": ("block_in",)}},
                "canvas": {"height": 160, "width": 320},
                "resized": (160, 320),
                "frames": {"kind": "wan", "vae": to_dict(WAN22_VAE)},
                "compute": "bfloat16",
            },
            "train": RECIPE,
            "mesh": {"data": 1, "fsdp": -1},
        }
    )
