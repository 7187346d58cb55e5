"""The components that can be imported and exported: one row each, and how a file is recognised as one of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from wamjax.errors import UserError
from wamjax.interop import dreamzero, encoders, wan_dit, wan_vae
from wamjax.interop.keymap import KeyMap, flatten, place
from wamjax.networks import clip, umt5
from wamjax.networks.wan import dit, vae
from wamjax.policies.dreamzero import network
from wamjax.sharding.mesh import Rules

Shapes = Mapping[str, tuple[int, ...]]
Hints = Mapping[str, Any]
"""The published config.json, or nothing."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of component.

    Attributes:
        config, module: classes of its configuration and of its network.
        inputs: what the network is initialised with, from its configuration.
        keymap: the key map of a configuration and a layout.
        signature: per layout, a tensor that only this kind has.
        sized: the configuration read off the shapes of published tensors.
        described: config.json of a configuration, per layout; None where the original has none.
        stem: name of the weights' files, per layout.
        rules: where its parameters lie on a mesh.
        unused: starts of names that may be in a file beside the component's tensors.
        left: per layout, parameters that it has no tensor for, and that an export leaves out.
        aliases: a name in a file to the name of the tensor that it repeats.
    """

    config: type
    module: type[nn.Module]
    inputs: Callable[[Any], tuple[Any, ...]]
    keymap: Callable[[Any, str], KeyMap]
    signature: Mapping[str, str]
    sized: Callable[[Shapes, str, Hints], Any]
    described: Callable[[Any, str], dict[str, Any] | None]
    stem: Mapping[str, str]
    rules: Rules = ((".*", ()),)
    unused: tuple[str, ...] = ()
    left: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def shapes(self, config: Any) -> dict[str, jax.ShapeDtypeStruct]:
        """Every parameter by path."""
        init = self.module(config).init
        return flatten(jax.eval_shape(init, jax.random.key(0), *self.inputs(config))["params"])


def _dit_sized(shapes: Shapes, layout: str, hints: Hints) -> dit.WanDiTConfig:
    which = place(layout)
    width, inputs, *patch = shapes["patch_embedding.weight"]
    mlp = shapes[("blocks.0.ffn.0.weight", "blocks.0.ffn.net.0.proj.weight")[which]][0]
    outputs = shapes[("head.head.weight", "proj_out.weight")[which]][0]
    text = shapes[f"{wan_dit.LINEARS['text_in'][which]}.weight"][1]
    image = shapes.get(f"{wan_dit.IMAGE_NORMS['image_embedding/norm_in'][which]}.weight", (0,))[0]
    positions = shapes.get(wan_dit.IMAGE_POSITIONS[which], (1, 0, 0))[1]
    return dit.WanDiTConfig(
        width=width,
        mlp=mlp,
        heads=_heads(hints, ("num_heads", "num_attention_heads")[which], width, 128),
        layers=_count(shapes, "blocks."),
        inputs=inputs,
        outputs=outputs // (patch[0] * patch[1] * patch[2]),
        text=text,
        text_length=hints.get("text_len", 512),
        image=image,
        image_positions=positions,
        frequencies=shapes[f"{wan_dit.LINEARS['time_in'][which]}.weight"][1],
        patch=(patch[0], patch[1], patch[2]),
    )


def _dit_described(config: dit.WanDiTConfig, layout: str) -> dict[str, Any]:
    head = config.width // config.heads
    if layout == "original":
        return {
            "_class_name": "WanModel",
            "model_type": _dit_type(config),
            **{"dim": config.width, "ffn_dim": config.mlp, "num_heads": config.heads, "num_layers": config.layers},
            **{"in_dim": config.inputs, "out_dim": config.outputs, "freq_dim": config.frequencies},
            **{"text_len": config.text_length, "eps": 1e-6},
        }
    return {
        "_class_name": "WanTransformer3DModel",
        "patch_size": list(config.patch),
        **{"num_attention_heads": config.heads, "attention_head_dim": head, "num_layers": config.layers},
        **{"in_channels": config.inputs, "out_channels": config.outputs, "ffn_dim": config.mlp},
        **{"text_dim": config.text, "freq_dim": config.frequencies, "rope_max_seq_len": 1024, "eps": 1e-6},
        **{"cross_attn_norm": True, "qk_norm": "rms_norm_across_heads"},
        "image_dim": config.image or None,
        "added_kv_proj_dim": config.width if config.image else None,
        "pos_embed_seq_len": config.image_positions or None,
    }


def _dit_type(config: dit.WanDiTConfig) -> str:
    """The original's name of what the network is conditioned on."""
    if config.image_positions:
        return "flf2v"
    if config.inputs > config.outputs:
        return "i2v"
    return "ti2v" if config.inputs == 48 else "t2v"


def _vae_sized(shapes: Shapes, layout: str, hints: Hints) -> vae.WanVAEConfig:
    original = layout == "original"
    width, colours = shapes["encoder.conv1.weight" if original else "encoder.conv_in.weight"][:2]
    latent = shapes["conv2.weight" if original else "post_quant_conv.weight"][0]
    top = shapes["decoder.conv1.weight" if original else "decoder.conv_in.weight"][0]
    second = "encoder.downsamples.0.downsamples." if original else "encoder.down_blocks.0.resnets."
    known = next((c for c in (vae.WAN21_VAE, vae.WAN22_VAE) if c.latent == latent), vae.WanVAEConfig())
    mean, std = (tuple(hints.get(f"latents_{name}") or getattr(known, name)) for name in ("mean", "std"))
    return vae.WanVAEConfig(
        width=width,
        decoder_width=top // known.multipliers[-1],
        latent=latent,
        patch=round((colours / 3) ** 0.5),
        shortcuts=any(name.startswith(second) for name in shapes),
        mean=mean if len(mean) == latent else (),
        std=std if len(std) == latent else (),
    )


def _vae_described(config: vae.WanVAEConfig, layout: str) -> dict[str, Any] | None:
    if layout == "original":
        return None
    spatial = config.patch * 2 ** len(config.temporal)
    residual = {
        **{"decoder_base_dim": config.decoder_width, "is_residual": True, "patch_size": config.patch},
        **{"in_channels": 3 * config.patch**2, "out_channels": 3 * config.patch**2},
    }
    return {
        "_class_name": "AutoencoderKLWan",
        **{"base_dim": config.width, "z_dim": config.latent, "dim_mult": list(config.multipliers)},
        **{"num_res_blocks": config.blocks, "attn_scales": [], "temperal_downsample": list(config.temporal)},
        **{"scale_factor_temporal": 4, "scale_factor_spatial": spatial},
        "latents_mean": list(config.mean) or [0.0] * config.latent,
        "latents_std": list(config.std) or [1.0] * config.latent,
        **(residual if config.shortcuts else {}),
    }


def _umt5_sized(shapes: Shapes, layout: str, hints: Hints) -> umt5.UMT5Config:
    embedding, block, _ = encoders.UMT5_PLACES[layout]
    which = place(layout)
    names = {path: f"{block.format(0)}.{row[which]}.weight" for path, row in encoders.UMT5_BLOCK.items()}
    buckets, heads = shapes[names["positions"]]
    vocabulary, width = shapes[f"{embedding}.weight"]
    return umt5.UMT5Config(
        vocabulary=vocabulary,
        width=width,
        heads=heads,
        head_dim=shapes[names["q/kernel"]][0] // heads,
        mlp=shapes[names["up/kernel"]][0],
        layers=_count(shapes, block.split("{}")[0]),
        buckets=buckets,
        farthest=hints.get("relative_attention_max_distance", 128),
    )


def _umt5_described(config: umt5.UMT5Config, layout: str) -> dict[str, Any] | None:
    if layout == "original":
        return None
    return {
        "architectures": ["UMT5EncoderModel"],
        "model_type": "umt5",
        **{"vocab_size": config.vocabulary, "d_model": config.width, "d_kv": config.head_dim, "d_ff": config.mlp},
        **{"num_layers": config.layers, "num_heads": config.heads, "feed_forward_proj": "gated-gelu"},
        **{"relative_attention_num_buckets": config.buckets, "relative_attention_max_distance": config.farthest},
        **{"layer_norm_epsilon": 1e-6, "is_encoder_decoder": True, "pad_token_id": 0, "eos_token_id": 1},
    }


def _clip_sized(shapes: Shapes, layout: str, hints: Hints) -> clip.CLIPVisionConfig:
    original = layout == "original"
    patch_name = "visual.patch_embedding.weight" if original else "embeddings.patch_embedding.weight"
    positions = shapes["visual.pos_embedding" if original else "embeddings.position_embedding.weight"][-2]
    block = encoders.CLIP_PLACES[layout][1]
    width, _, patch, _ = shapes[patch_name]
    layers = _count(shapes, block.split("{}")[0])
    mlp = shapes[f"{block.format(0)}.{'mlp.0' if original else 'mlp.fc1'}.weight"][0]
    return clip.CLIPVisionConfig(
        image=round((positions - 1) ** 0.5) * patch,
        patch=patch,
        width=width,
        heads=_heads(hints, "num_attention_heads", width, 80),
        mlp=mlp,
        layers=layers,
        used=layers - 1,
        projection=shapes.get("visual.head", (0, 0))[1],
        temperature="log_scale" in shapes,
    )


def _clip_described(config: clip.CLIPVisionConfig, layout: str) -> dict[str, Any] | None:
    if layout == "original":
        return None
    return {
        "architectures": ["CLIPVisionModel"],
        "model_type": "clip_vision_model",
        **{"hidden_size": config.width, "intermediate_size": config.mlp, "num_hidden_layers": config.layers},
        **{"num_attention_heads": config.heads, "image_size": config.image, "patch_size": config.patch},
        **{"hidden_act": "gelu", "layer_norm_eps": 1e-5},
    }


def _heads(hints: Hints, key: str, width: int, head: int) -> int:
    """Heads are not in the shapes: from config.json, or as in the released models."""
    if key in hints:
        return int(hints[key])
    if width % head:
        raise UserError(
            f"a network of width {width} is none of the released ones: put its config.json (with {key}) beside"
        )
    return width // head


def _count(shapes: Shapes, prefix: str) -> int:
    """Number of blocks whose names start so."""
    return len({name.removeprefix(prefix).split(".")[0] for name in shapes if name.startswith(prefix)})


def _dit_inputs(config: dit.WanDiTConfig) -> tuple[Any, ...]:
    image = jnp.zeros((1, config.image_positions or 1, config.image)) if config.image else None
    return jnp.zeros((1, *config.patch, config.inputs)), jnp.zeros((1, 1)), jnp.zeros((1, 1, config.text)), image


def _dreamzero_sized(shapes: Shapes, layout: str, hints: Hints) -> network.NetworkConfig:
    head = hints.get("action_head_cfg", {})  # where released checkpoints have it
    head = head.get("config", head)
    hints = {**hints, **head, **head.get("diffusion_model_cfg", {})}
    categories, action, _ = shapes["action_encoder.W1.W"]
    _, state, hidden = shapes["state_encoder.layer1.W"]
    return network.NetworkConfig(
        dit=_dit_sized(shapes, layout, hints),
        state=state,
        action=action,
        hidden=hidden,
        categories=categories,
        block_frames=hints.get("num_frame_per_block", 2),
        block_actions=hints.get("num_action_per_block", 24),
    )


def _dreamzero_inputs(config: network.NetworkConfig) -> tuple[Any, ...]:
    latents, _, text, image = _dit_inputs(config.dit)
    frames = jnp.repeat(latents, 1 + config.block_frames, axis=1)
    actions = jnp.zeros((1, config.block_actions, config.action))
    robot = network.Robot(actions, actions[..., 0], jnp.zeros((1, 1, config.state)), jnp.zeros(1, int))
    return network.Clip(frames, frames, jnp.zeros(frames.shape[:2])), robot, text, image


def _dreamzero_described(config: network.NetworkConfig, layout: str) -> dict[str, Any]:
    described = _dit_described(config.dit, layout) | {"_class_name": "CausalWanModel"}
    blocks = {"num_frame_per_block": config.block_frames, "num_action_per_block": config.block_actions}
    sizes = {"action_dim": config.action, "max_state_dim": config.state, "hidden_size": config.hidden}
    return described | blocks | sizes


KINDS = {
    # Before Wan's own transformer, whose tensors it has too.
    "dreamzero": Kind(
        config=network.NetworkConfig,
        module=network.DreamZeroNetwork,
        inputs=_dreamzero_inputs,
        keymap=dreamzero.keymap,
        signature={"original": "action_encoder.W1.W"},
        sized=_dreamzero_sized,
        described=_dreamzero_described,
        stem={"original": "model"},
        rules=dit.PARTITIONS,
    ),
    "wan_dit": Kind(
        config=dit.WanDiTConfig,
        module=dit.WanDiT,
        inputs=_dit_inputs,
        keymap=wan_dit.keymap,
        signature={"original": "blocks.0.self_attn.q.weight", "diffusers": "blocks.0.attn1.to_q.weight"},
        sized=_dit_sized,
        described=_dit_described,
        stem={"original": "diffusion_pytorch_model", "diffusers": "diffusion_pytorch_model"},
        rules=dit.PARTITIONS,
    ),
    "wan_vae": Kind(
        config=vae.WanVAEConfig,
        module=vae.WanVAE,
        inputs=lambda config: (jnp.zeros((1, 1, 16 * config.patch, 16 * config.patch, 3)),),
        keymap=wan_vae.keymap,
        signature={"original": "decoder.head.2.weight", "diffusers": "post_quant_conv.weight"},
        sized=_vae_sized,
        described=_vae_described,
        stem={"original": "Wan_VAE", "diffusers": "diffusion_pytorch_model"},
    ),
    "umt5": Kind(
        config=umt5.UMT5Config,
        module=umt5.UMT5Encoder,
        inputs=lambda config: (jnp.zeros((1, 2), int), jnp.ones((1, 2), bool)),
        keymap=encoders.umt5,
        signature={
            "original": "token_embedding.weight",
            "diffusers": "encoder.block.0.layer.0.SelfAttention.q.weight",
        },
        sized=_umt5_sized,
        described=_umt5_described,
        stem={"original": "models_t5_umt5-xxl-enc", "diffusers": "model"},
        rules=umt5.PARTITIONS,
        aliases={"encoder.embed_tokens.weight": "shared.weight"},
    ),
    "clip": Kind(
        config=clip.CLIPVisionConfig,
        module=clip.CLIPVision,
        inputs=lambda config: (jnp.zeros((1, config.image, config.image, 3)),),
        keymap=encoders.clip_vision,
        signature={"original": "visual.patch_embedding.weight", "diffusers": "embeddings.patch_embedding.weight"},
        sized=_clip_sized,
        described=_clip_described,
        stem={"original": "models_clip_open-clip-xlm-roberta-large-vit-huge-14", "diffusers": "model"},
        unused=("textual.", "embeddings.position_ids"),
        left={"diffusers": ("projection", "log_scale")},
    ),
}
"""By the name that imported folders carry."""

BUNDLES: Mapping[str, Mapping[str, str]] = {
    "dreamzero": {
        "transformer": "action_head.model.",
        "text_encoder": "action_head.text_encoder.",
        "image_encoder": "action_head.image_encoder.model.",
        "vae": "action_head.vae.model.",
    },
}
"""Kinds of transformer that are published together with other components: each with the start of its tensors' names."""

PREFIXES = ("model.diffusion_model.", "vision_model.", "module.")
"""Put before all names of a file by some tools, and dropped."""


def recognise(shapes: Shapes) -> tuple[str, str]:
    """The kind and layout of a file's tensors; a UserError where they are none that is known."""
    for kind, row in KINDS.items():
        for layout, name in row.signature.items():
            if name in shapes:
                return kind, layout
    raise UserError(
        f"the tensors ({', '.join(sorted(shapes)[:3])}, ...) belong to no known component: "
        "Wan transformers and autoencoders, UMT5 and CLIP's vision tower can be read"
    )
