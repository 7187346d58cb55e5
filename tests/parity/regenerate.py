"""Makes the fixtures again from the published code: python tests/parity/regenerate.py (needs torch and diffusers).

Made with torch 2.13.0 (CPU), diffusers 0.42.1. The fixtures hold shapes of all tensors by name, and outputs.
"""

import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.parity.recipe import FOLDER, draw, weights

WAN_VAES = {
    "wan21": {"base_dim": 8, "z_dim": 4},
    "wan22": {
        **{"base_dim": 8, "decoder_base_dim": 12, "z_dim": 6, "is_residual": True, "patch_size": 2},
        **{"in_channels": 12, "out_channels": 12, "scale_factor_temporal": 4, "scale_factor_spatial": 16},
    },
}
CLIPS = {"wan21": ((2, 1, 16, 24), (2, 5, 16, 8), (1, 9, 8, 24), (1, 17, 16, 16))}
CLIPS["wan22"] = tuple((b, t, 2 * h, 2 * w) for b, t, h, w in CLIPS["wan21"])


def wan_vae(name: str, seed: int) -> dict[str, np.ndarray]:
    """Latent means, log-variances and decoded clips of AutoencoderKLWan."""
    import torch
    from diffusers import AutoencoderKLWan

    latent = WAN_VAES[name]["z_dim"]
    model = AutoencoderKLWan(
        **WAN_VAES[name],
        num_res_blocks=2,
        attn_scales=[],
        latents_mean=[0.0] * latent,
        latents_std=[1.0] * latent,
    ).eval()
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    model.load_state_dict({key: torch.from_numpy(value) for key, value in weights(shapes, seed).items()})
    fixture = {"shapes": np.array(json.dumps(shapes))}
    for i, (b, t, h, w) in enumerate(CLIPS[name]):
        clip = draw(f"clip {i}", (b, t, h, w, 3), seed)
        with torch.no_grad():
            moments = model.encode(torch.from_numpy(clip).permute(0, 4, 1, 2, 3)).latent_dist
            factor = 16 if name == "wan22" else 8
            latents = draw(f"latents {i}", (b, 1 + (t - 1) // 4, h // factor, w // factor, latent), seed)
            decoded = model.decode(torch.from_numpy(latents).permute(0, 4, 1, 2, 3)).sample
        for key, value in {"mean": moments.mean, "logvar": moments.logvar, "decoded": decoded}.items():
            fixture[f"{key} {i}"] = value.permute(0, 2, 3, 4, 1).numpy()
    return fixture


if __name__ == "__main__":
    for name in WAN_VAES:
        for seed in (0, 1):
            np.savez_compressed(FOLDER / f"{name}_vae_{seed}.npz", **wan_vae(name, seed))
