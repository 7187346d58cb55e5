"""Key maps of the encoders: UMT5 and CLIP's vision tower, in Wan's original files and in transformers."""

from __future__ import annotations

from wamjax.interop.keymap import LINEAR, SCALAR, TABLE, VECTOR, KeyMap, Layout, Source, place, stacked
from wamjax.networks.clip import CLIPVisionConfig
from wamjax.networks.umt5 import UMT5Config

PATCH = Layout((2, 3, 1, 0))
"""(out, in, h, w) there, (h, w, in, out) here."""
CLASS_TOKEN, POSITIONS = Layout((0,), theirs_alone=(0, 1)), Layout((0, 1), theirs_alone=(0,))

# Path in a block of ours: (name in the original block, name in the transformers block, layout).
UMT5_BLOCK = {
    "norm_0/scale": ("norm1", "layer.0.layer_norm", VECTOR),
    "q/kernel": ("attn.q", "layer.0.SelfAttention.q", LINEAR),
    "k/kernel": ("attn.k", "layer.0.SelfAttention.k", LINEAR),
    "v/kernel": ("attn.v", "layer.0.SelfAttention.v", LINEAR),
    "out/kernel": ("attn.o", "layer.0.SelfAttention.o", LINEAR),
    "positions": ("pos_embedding.embedding", "layer.0.SelfAttention.relative_attention_bias", TABLE),
    "norm_1/scale": ("norm2", "layer.1.layer_norm", VECTOR),
    "gate/kernel": ("ffn.gate.0", "layer.1.DenseReluDense.wi_0", LINEAR),
    "up/kernel": ("ffn.fc1", "layer.1.DenseReluDense.wi_1", LINEAR),
    "down/kernel": ("ffn.fc2", "layer.1.DenseReluDense.wo", LINEAR),
}
UMT5_PLACES = {
    "original": ("token_embedding", "blocks.{}", "norm"),
    "diffusers": ("shared", "encoder.block.{}", "encoder.final_layer_norm"),
}

# Path in a block of ours: (name in the original block, names in the transformers block).
CLIP_BLOCK = {
    "norm_0": ("norm1", ("layer_norm1",)),
    "qkv": ("attn.to_qkv", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    "out": ("attn.proj", ("self_attn.out_proj",)),
    "norm_1": ("norm2", ("layer_norm2",)),
    "mlp_in": ("mlp.0", ("mlp.fc1",)),
    "mlp_out": ("mlp.2", ("mlp.fc2",)),
}
CLIP_PLACES = {
    "original": ("visual.pre_norm", "visual.transformer.{}", "visual.post_norm"),
    "diffusers": ("pre_layrnorm", "encoder.layers.{}", "post_layernorm"),
}
CLIP_EMBEDDINGS = {
    "original": {
        "patch": Source(("visual.patch_embedding.weight",), PATCH),
        "class_token": Source(("visual.cls_embedding",), CLASS_TOKEN),
        "positions": Source(("visual.pos_embedding",), POSITIONS),
    },
    "diffusers": {
        "patch": Source(("embeddings.patch_embedding.weight",), PATCH),
        "class_token": Source(("embeddings.class_embedding",), VECTOR),
        "positions": Source(("embeddings.position_embedding.weight",), TABLE),
    },
}


def umt5(config: UMT5Config, layout: str) -> KeyMap:
    """The key map of a UMT5 encoder in the layout "original" or "diffusers" (transformers' UMT5EncoderModel)."""
    which = place(layout)
    embedding, block, norm = UMT5_PLACES[layout]
    blocks = {
        f"blocks/{path}": stacked([f"{block}.{row[which]}.weight"], row[2], config.layers)
        for path, row in UMT5_BLOCK.items()
    }
    return {
        "embedding": Source((f"{embedding}.weight",), TABLE),
        **blocks,
        "norm/scale": Source((f"{norm}.weight",), VECTOR),
    }


def clip_vision(config: CLIPVisionConfig, layout: str) -> KeyMap:
    """The key map of a vision tower in the layout "original" or "diffusers" (transformers' CLIPVisionModel)."""
    which = place(layout)
    norm_in, block, norm_out = CLIP_PLACES[layout]
    rows: dict[str, Source] = dict(CLIP_EMBEDDINGS[layout])
    for path, (original, transformers) in CLIP_BLOCK.items():
        names = ((original,), transformers)[which]
        weight, main = ("scale", VECTOR) if path.startswith("norm") else ("kernel", LINEAR)
        for leaf, tensor, how in ((weight, "weight", main), ("bias", "bias", VECTOR)):
            rows[f"blocks/{path}/{leaf}"] = stacked([f"{block}.{n}.{tensor}" for n in names], how, config.layers)
    if config.projection and layout == "original":  # transformers' tower has no head
        rows["projection"] = Source(("visual.head",), TABLE)
    if config.temperature and layout == "original":
        rows["log_scale"] = Source(("log_scale",), SCALAR)
    for path, name in (("norm_in", norm_in), ("norm_out", norm_out)):
        rows[f"{path}/scale"] = Source((f"{name}.weight",), VECTOR)
        rows[f"{path}/bias"] = Source((f"{name}.bias",), VECTOR)
    return rows
