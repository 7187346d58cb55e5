"""DreamZero-DROID, 14B: Wan2.1-I2V-14B with action and state codecs, trained in full as published (arXiv 2602.15922).

Global batch 128 for 100,000 steps; AdamW, cosine decay after 5 % of warm-up; everything decays but biases and layer
norms. `weights` is the folder of Wan2.1-I2V-14B-480P; `policy.text.tokenizer` the one of its spiece.model.

Low-rank adapters (rank 4, alpha 4, on attention and MLP), the codecs trained in full:

  wamjax train --config configs/dreamzero_14b_droid.py --set "train.lora={'full': ('(state|action)_\\\\w+/.*',)}" \\
      --set train.optimizer.learning_rate=1e-4 ...
"""

from ml_collections import ConfigDict

from wamjax.config import to_dict
from wamjax.networks.wan.dit import WAN_DITS
from wamjax.networks.wan.vae import WAN21_VAE

RECIPE = {
    "steps": 100_000,
    "batch_size": 128,
    "seed": 42,
    "optimizer": {
        "learning_rate": 1e-5,
        **{
            "warmup_steps": 0,
            "warmup_fraction": 0.05,
            "decay": "cosine",
            "decay_fraction": 0.95,
            "final_fraction": 0.0,
        },
        **{"b1": 0.95, "b2": 0.999, "eps": 1e-8, "weight_decay": 1e-5, "ema": 0.0},
        # Matrices, adapters, root-mean-square norms and modulation; neither biases nor layer norms.
        "decayed": (
            *(r"kernel(/[ab])?", "patch_kernel", "modulation", "head_modulation", r"norm_(q|k|k_img)/scale"),
            # The codecs' biases too: upstream excludes by a name that these do not have.
            r"(state_encoder|action_encoder|action_decoder)/layer\d/bias",
        ),
    },
    "checkpoint_every": 1000,
    "validate_every": 1000,
}
"""Of the paper and of the published training scripts."""


def get_config() -> ConfigDict:
    """The experiment; keys left out keep the defaults of the library's dataclasses."""
    return ConfigDict(
        {
            "name": "dreamzero_14b_droid",
            "policy": {
                "kind": "dreamzero",
                "embodiment": "droid",
                "network": {"dit": to_dict(WAN_DITS["wan2.1-i2v-14b"]) | {"remat": ("block_in",)}},
                "frames": {"kind": "wan", "vae": to_dict(WAN21_VAE)},
                "compute": "bfloat16",
            },
            "train": RECIPE,
            "mesh": {"data": 1, "fsdp": -1},
        }
    )
