"""Makes the fixtures again from the published code:

    python tests/parity/regenerate.py WAN21 WAN22 DREAMZERO

Made with torch 2.13.0 (CPU), diffusers 0.42.1 and transformers 5.23.0, which it needs, and with
checkouts of github.com/Wan-Video/Wan2.1 at 9737cba, Wan2.2 at 42bf4cf and github.com/dreamzero0/dreamzero at
ab790c1 (with einops, and ATTENTION_BACKEND=torch in the environment). A fixture holds the shapes of all tensors by
name, and outputs; weights and inputs are drawn from its seed (recipe.py).
"""

import importlib
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.parity.recipe import DREAMZEROS, FOLDER, WAN_DITS, DreamZeroCase, draw, texts, weights

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
VAE_FILES = {"wan21": "wan/modules/vae.py", "wan22": "wan/modules/vae2_2.py"}


def original_wan_vae(name: str, folder: str, seed: int) -> dict[str, np.ndarray]:
    """Latents of one clip, and the clip decoded from them, by the original code."""
    import torch

    spec = importlib.util.spec_from_file_location(name, Path(folder) / VAE_FILES[name])
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


def wan_dit(name: str, seed: int) -> dict[str, np.ndarray]:
    """Velocities of WanTransformer3DModel on a few clips, of odd sizes and with all kinds of timesteps."""
    import torch
    from diffusers import WanTransformer3DModel

    case = WAN_DITS[name]
    image = {"image_dim": case.image, "added_kv_proj_dim": 48} if case.image else {}
    model = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=4,
        attention_head_dim=12,
        in_channels=case.inputs,
        out_channels=case.outputs,
        text_dim=32,
        freq_dim=256,
        ffn_dim=64,
        num_layers=2,
        pos_embed_seq_len=case.image_positions or None,
        **image,
    ).eval()
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    model.load_state_dict({key: torch.from_numpy(value) for key, value in weights(shapes, seed).items()})
    model.condition_embedder.timesteps_proj.forward = exact_sinusoid
    fixture = {"shapes": np.array(json.dumps(shapes))}
    for i, clip in enumerate(case.clips(seed)):
        latents, timestep, text, image = (None if x is None else torch.from_numpy(x) for x in clip)
        if image is not None and case.image_positions:
            image = image.reshape(-1, case.image_positions // 2, case.image)
        tokens = int(np.prod(latents.shape[1:4])) // 4
        per_token = timestep.repeat_interleave(tokens // timestep.shape[1], dim=1)
        with torch.no_grad():
            velocity = model(
                hidden_states=latents.permute(0, 4, 1, 2, 3),
                timestep=timestep[:, 0] if timestep.shape[1] == 1 else per_token,
                encoder_hidden_states=torch.nn.functional.pad(text, (0, 0, 0, 512 - text.shape[1])),
                encoder_hidden_states_image=image,
            ).sample
        fixture[f"velocity {i}"] = velocity.permute(0, 2, 3, 4, 1).numpy()
    return fixture


def exact_sinusoid(timestep: "torch.Tensor") -> "torch.Tensor":
    """Wan's sinusoid in double precision. In diffusers' own, in single, outputs near t = 1000 are off by 2e-5."""
    import torch

    phase = timestep.double()[:, None] * 10_000 ** -(torch.arange(128).double() / 128)
    return torch.cat([torch.cos(phase), torch.sin(phase)], dim=1).float()


def original_wan_dit(name: str, folder: str, seed: int) -> dict[str, np.ndarray]:
    """Velocities of the first clips by the original code, sample by sample."""
    import torch

    model = original_model(folder)(
        model_type={"t2v": "t2v", "i2v": "i2v", "ti2v": "ti2v"}[name],
        **{"dim": 48, "ffn_dim": 64, "freq_dim": 256, "text_dim": 32, "num_heads": 4, "num_layers": 2},
        in_dim=WAN_DITS[name].inputs,
        out_dim=WAN_DITS[name].outputs,
    ).eval()
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    model.load_state_dict({key: torch.from_numpy(value) for key, value in weights(shapes, seed).items()})
    fixture = {"shapes": np.array(json.dumps(shapes))}
    for i, (latents, timestep, text, image) in enumerate(WAN_DITS[name].clips(seed)):
        tokens = int(np.prod(latents.shape[1:4])) // 4
        velocity = []
        for b in range(len(latents)):
            video = torch.from_numpy(latents[b]).permute(3, 0, 1, 2)
            t = torch.from_numpy(timestep[b : b + 1])
            t = t[:, 0] if t.shape[1] == 1 else t.repeat_interleave(tokens // t.shape[1], dim=1)
            extra = {} if image is None else {"clip_fea": torch.from_numpy(image[b : b + 1]), "y": [video[16:]]}
            video = video if image is None else video[:16]
            with torch.no_grad():
                velocity += model([video], t, [torch.from_numpy(text[b])], tokens, **extra)
        fixture[f"velocity {i}"] = torch.stack(velocity).permute(0, 2, 3, 4, 1).numpy()
    return fixture


def original_model(folder: str) -> type:
    """The class WanModel of a checkout, without its package and with plain attention for the CUDA kernel."""
    import types

    import torch

    for package in ("wan", "wan.modules"):
        sys.modules[package] = types.ModuleType(package)
        sys.modules[package].__path__ = [str(Path(folder, *package.split(".")))]
    for module in ("wan.modules.attention", "wan.modules.model"):
        sys.modules.pop(module, None)
    model = importlib.import_module("wan.modules.model")

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **_: object) -> torch.Tensor:
        heads_first = (x.transpose(1, 2) for x in (q, k, v))
        return torch.nn.functional.scaled_dot_product_attention(*heads_first).transpose(1, 2)

    model.flash_attention = attend
    return model.WanModel


def dreamzero_model(folder: str, case: DreamZeroCase) -> "torch.nn.Module":
    """DreamZero's CausalWanModel in float32 throughout, with the actions' sinusoid in double precision."""
    import torch

    sys.path.insert(0, folder)
    submodule = importlib.import_module("groot.vla.model.dreamzero.modules.wan2_1_submodule")
    module = importlib.import_module("groot.vla.model.dreamzero.modules.wan_video_dit_action_casual_chunk")

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        heads_first = (x.transpose(1, 2) for x in (q, k, v))
        return torch.nn.functional.scaled_dot_product_attention(*heads_first).transpose(1, 2)

    submodule.flash_attention = attend
    model = module.CausalWanModel(
        model_type=case.form,
        **{"dim": 48, "ffn_dim": 64, "freq_dim": 256, "text_dim": 32, "num_heads": 4, "num_layers": 2, "text_len": 512},
        **{"frame_seqlen": case.height * case.width // 4, "in_dim": 16 + case.beside, "out_dim": 16},
        **{"max_chunk_size": 4, "num_frame_per_block": 2, "action_dim": 32, "max_state_dim": 64, "hidden_size": 24},
        **{"num_action_per_block": 24, "num_state_per_block": 1, "qk_norm": True, "cross_attn_norm": True},
        concat_first_frame_latent=case.form == "i2v",
    ).eval()
    for name, part in model.named_modules():
        if type(part).__name__ == "AttentionModule":
            part.attn_func = attend
        if name.endswith("pos_encoding"):
            part.forward = exact_action_sinusoid
    return model


def exact_action_sinusoid(timestep: "torch.Tensor") -> "torch.Tensor":
    """The action encoder's sinusoid: sine, then cosine (width 48)."""
    import torch

    phase = timestep.double()[..., None] * 10_000 ** -(torch.arange(24).double() / 24)
    return torch.cat([torch.sin(phase), torch.cos(phase)], dim=-1).float()


def dreamzero(name: str, folder: str, seed: int) -> dict[str, np.ndarray]:
    """The training pass, and cached calls for the first blocks, each after the frames before it."""
    import torch

    case = DREAMZEROS[name]
    model = dreamzero_model(folder, case)
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    model.load_state_dict({key: torch.from_numpy(value) for key, value in weights(shapes, seed).items()})
    x = {key: torch.from_numpy(value) for key, value in case.inputs(seed).items()}
    clean, noisy, beside = (x[key].permute(0, 4, 1, 2, 3) for key in ("clean", "noisy", "beside"))
    prompt = {"context": x["text"], "clip_feature": x["image"], "embodiment_id": torch.zeros(2, dtype=torch.long)}
    frame = case.height * case.width // 4
    model.gradient_checkpointing = True  # the pass without it does not unpack what its blocks return
    video, action = model(
        noisy,
        timestep=x["timestep"],
        timestep_action=x["timestep_action"],
        seq_len=case.frames * frame,
        clean_x=clean,
        y=beside,
        action=x["action"],
        state=x["state"],
        **prompt,
    )
    fixture, cache = {"video": video, "action": action}, [torch.zeros(2, 2, 0, 4, 12) for _ in range(2)]

    def call(latents: torch.Tensor, start: int, timestep: torch.Tensor, **robot: torch.Tensor) -> tuple:
        frames = latents.shape[2]
        return model(
            latents,
            timestep=timestep,
            seq_len=frames * frame,
            kv_cache=cache,
            crossattn_cache=None,
            current_start_frame=start,
            y=beside[:, :, start : start + frames],
            **prompt,
            **robot,
        )

    with torch.no_grad():
        cache = call(clean[:, :, :1], 0, torch.zeros(2, 1))[2]
        for block in range(case.blocks):
            frames, steps = slice(1 + 2 * block, 3 + 2 * block), slice(24 * block, 24 * (block + 1))
            fixture[f"video {block}"], fixture[f"action {block}"], _ = call(
                noisy[:, :, frames],
                frames.start,
                x["timestep"][:, frames],
                action=x["action"][:, steps],
                timestep_action=x["timestep_action"][:, steps],
                state=x["state"][:, block : block + 1],
            )
            cache = call(clean[:, :, frames], frames.start, torch.zeros(2, 2))[2]
    outputs = {key: value.detach() for key, value in fixture.items()}
    outputs |= {key: value.permute(0, 2, 3, 4, 1) for key, value in outputs.items() if key.startswith("video")}
    return {"shapes": np.array(json.dumps(shapes))} | {key: value.numpy() for key, value in outputs.items()}


if __name__ == "__main__":
    wan21, wan22, dreamzero_folder = sys.argv[1:]
    for name, folder in {"wan21": wan21, "wan22": wan22}.items():
        np.savez_compressed(FOLDER / f"{name}_vae_original.npz", **original_wan_vae(name, folder, seed=5))
    for name, folder in {"t2v": wan21, "i2v": wan21, "ti2v": wan22}.items():
        np.savez_compressed(FOLDER / f"wan_dit_{name}_original.npz", **original_wan_dit(name, folder, seed=5))
    for name in DREAMZEROS:
        np.savez_compressed(FOLDER / f"dreamzero_{name}.npz", **dreamzero(name, dreamzero_folder, seed=3))
    for seed in (0, 1):
        np.savez_compressed(FOLDER / f"umt5_{seed}.npz", **umt5(seed))
        np.savez_compressed(FOLDER / f"clip_{seed}.npz", **clip(seed))
        for name in WAN_VAES:
            np.savez_compressed(FOLDER / f"{name}_vae_{seed}.npz", **wan_vae(name, seed))
        for name in WAN_DITS:
            np.savez_compressed(FOLDER / f"wan_dit_{name}_{seed}.npz", **wan_dit(name, seed))
