"""Makes the fixtures again from the published code:

    python tests/parity/regenerate.py WAN21/wan/modules/vae.py WAN22/wan/modules/vae2_2.py

Made with torch 2.13.0 (CPU), diffusers 0.42.1 and transformers 5.23.0, which it needs, and with
the two files of github.com/Wan-Video at 9737cba (Wan2.1) and 42bf4cf (Wan2.2). A fixture holds the shapes of
all tensors by name, and outputs; weights and inputs are drawn from its seed (recipe.py).
"""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.parity.recipe import FOLDER, draw, texts, weights

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


ORIGINALS = {"wan21": {"dim": 8, "z_dim": 4}, "wan22": {"dim": 8, "dec_dim": 12, "z_dim": 6}}


def original_wan_vae(name: str, file: str, seed: int) -> dict[str, np.ndarray]:
    """Latents of one clip, and the clip decoded from them, by the original code."""
    import torch

    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    shape = {"dim_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_scales": [], "dropout": 0.0}
    model = module.WanVAE_(**ORIGINALS[name], **shape, temperal_downsample=[False, True, True]).eval()
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    model.load_state_dict({key: torch.from_numpy(value) for key, value in weights(shapes, seed).items()})
    side = 8 if name == "wan21" else 16
    clip = torch.from_numpy(draw("clip", (1, 9, side, 2 * side, 3), seed)).permute(0, 4, 1, 2, 3)
    latent = ORIGINALS[name]["z_dim"]
    unscaled = [torch.zeros(latent), torch.ones(latent)]
    with torch.no_grad():
        latents = model.encode(clip, unscaled)
        decoded = model.decode(latents, unscaled).clamp(-1, 1)
    return {
        "shapes": np.array(json.dumps(shapes)),
        "latents": latents.permute(0, 2, 3, 4, 1).numpy(),
        "decoded": decoded.permute(0, 2, 3, 4, 1).numpy(),
    }


UMT5 = {"vocab_size": 100, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 3, "num_heads": 4}
CLIP = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 28}


def umt5(seed: int) -> dict[str, np.ndarray]:
    """Features of a long text, so that far buckets are met, and of a short one that is padded."""
    import torch
    from transformers import UMT5Config, UMT5EncoderModel

    config = UMT5Config(**UMT5, dropout_rate=0, feed_forward_proj="gated-gelu", layer_norm_epsilon=1e-6)
    model = UMT5EncoderModel(config).eval()
    shapes = {k: tuple(v.shape) for k, v in model.state_dict().items() if k != "encoder.embed_tokens.weight"}
    tensors = {key: torch.from_numpy(value) for key, value in weights(shapes, seed).items()}
    model.load_state_dict(tensors | {"encoder.embed_tokens.weight": tensors["shared.weight"]})
    tokens, present = texts(seed)
    with torch.no_grad():
        output = model(torch.from_numpy(tokens), attention_mask=torch.from_numpy(present).long()).last_hidden_state
    return {"shapes": np.array(json.dumps(shapes)), "output": output.numpy()}


def clip(seed: int) -> dict[str, np.ndarray]:
    """Features before the last block, and a resized image."""
    import torch
    from transformers import CLIPVisionConfig, CLIPVisionModel

    model = CLIPVisionModel(CLIPVisionConfig(**CLIP, patch_size=14, hidden_act="gelu", layer_norm_eps=1e-5)).eval()
    shapes = {k: tuple(v.shape) for k, v in model.state_dict().items() if not k.endswith("position_ids")}
    tensors = {key: torch.from_numpy(value) for key, value in weights(shapes, seed).items()}
    model.load_state_dict(tensors, strict=False)
    images = torch.from_numpy(draw("images", (3, 28, 28, 3), seed)).permute(0, 3, 1, 2)
    picture = torch.from_numpy(draw("picture", (2, 37, 19, 3), seed)).permute(0, 3, 1, 2)
    with torch.no_grad():
        features = model(images, output_hidden_states=True).hidden_states[-2]
    resized = torch.nn.functional.interpolate(picture, (28, 28), mode="bicubic", align_corners=False)
    return {
        "shapes": np.array(json.dumps(shapes)),
        "output": features.numpy(),
        "resized": resized.permute(0, 2, 3, 1).numpy(),
    }


if __name__ == "__main__":
    for name, file in zip(WAN_VAES, sys.argv[1:], strict=True):
        np.savez_compressed(FOLDER / f"{name}_vae_original.npz", **original_wan_vae(name, file, seed=5))
    for seed in (0, 1):
        np.savez_compressed(FOLDER / f"umt5_{seed}.npz", **umt5(seed))
        np.savez_compressed(FOLDER / f"clip_{seed}.npz", **clip(seed))
        for name in WAN_VAES:
            np.savez_compressed(FOLDER / f"{name}_vae_{seed}.npz", **wan_vae(name, seed))
