"""A mid-size DreamZero for timing on a processor: all of Wan's parts, each with fewer or narrower layers.

The transformer has 169 million parameters and head size 128, reads Wan2.1's 36 latent channels, 512 text tokens and 257
image tokens, and sees DROID's canvas at 96x160 pixels: 60 tokens a latent frame, 145 tokens a denoising run. It is
timed, never trained to do anything:

  wamjax bench --config configs/dreamzero_bench.py
"""

from ml_collections import ConfigDict

from wamjax.config import to_dict
from wamjax.networks.wan.vae import WAN21_VAE


def get_config() -> ConfigDict:
    """The experiment; keys left out keep the defaults of the library's dataclasses."""
    return ConfigDict(
        {
            "name": "dreamzero_bench",
            "policy": {
                "kind": "dreamzero",
                "embodiment": "droid",
                "network": {
                    "dit": {
                        **{"width": 1024, "mlp": 4096, "heads": 8, "layers": 8},
                        **{"inputs": 36, "outputs": 16, "text": 1024, "image": 1280},
                    },
                },
                "canvas": {"height": 48, "width": 80},
                "frames": {"kind": "wan", "vae": to_dict(WAN21_VAE) | {"width": 32, "decoder_width": 32}},
                "text": {
                    "kind": "umt5",
                    "encoder": {
                        **{"vocabulary": 32_000, "width": 1024, "heads": 16, "head_dim": 64},
                        **{"mlp": 2560, "layers": 6},
                    },
                },
                "image": {"layers": 4, "used": 3},
            },
            "train": {"steps": 100, "batch_size": 1, "optimizer": {"learning_rate": 1e-5, "ema": 0.0}},
        }
    )
