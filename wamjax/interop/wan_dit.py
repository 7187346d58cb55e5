"""Key maps of Wan's transformers: the original files and diffusers' WanTransformer3DModel."""

from __future__ import annotations

from wamjax.interop.keymap import CONV, LINEAR, VECTOR, KeyMap, Layout, Source, place, stacked
from wamjax.networks.wan.dit import WanDiTConfig

MODULATION = Layout((0, 1), theirs_alone=(0,))
"""(1, rows, d) there, (rows, d) here."""

# Path here: (name in the original, name in diffusers). What the whole network has once,
LINEARS = {
    "time_in": ("time_embedding.0", "condition_embedder.time_embedder.linear_1"),
    "time_out": ("time_embedding.2", "condition_embedder.time_embedder.linear_2"),
    "time_rows": ("time_projection.1", "condition_embedder.time_proj"),
    "text_in": ("text_embedding.0", "condition_embedder.text_embedder.linear_1"),
    "text_out": ("text_embedding.2", "condition_embedder.text_embedder.linear_2"),
    "head": ("head.head", "proj_out"),
}
IMAGE_NORMS = {
    "image_embedding/norm_in": ("img_emb.proj.0", "condition_embedder.image_embedder.norm1"),
    "image_embedding/norm_out": ("img_emb.proj.4", "condition_embedder.image_embedder.norm2"),
}
IMAGE_LINEARS = {
    "image_embedding/hidden": ("img_emb.proj.1", "condition_embedder.image_embedder.ff.net.0.proj"),
    "image_embedding/out": ("img_emb.proj.3", "condition_embedder.image_embedder.ff.net.2"),
}
IMAGE_POSITIONS = ("img_emb.emb_pos", "condition_embedder.image_embedder.pos_embed")
PATCH = ("patch_embedding", "patch_embedding")
HEAD_MODULATION = ("head.modulation", "scale_shift_table")
# and what every block has.
BLOCK_LINEARS = {
    **{f"self_attn/{n}": (f"self_attn.{n}", f"attn1.to_{n}") for n in "qkv"},
    "self_attn/o": ("self_attn.o", "attn1.to_out.0"),
    **{f"cross_attn/{n}": (f"cross_attn.{n}", f"attn2.to_{n}") for n in "qkv"},
    "cross_attn/o": ("cross_attn.o", "attn2.to_out.0"),
    "ffn_in": ("ffn.0", "ffn.net.0.proj"),
    "ffn_out": ("ffn.2", "ffn.net.2"),
}
BLOCK_SCALES = {
    f"{ours}/norm_{n}": (f"{ours}.norm_{n}", f"{theirs}.norm_{n}")
    for ours, theirs in (("self_attn", "attn1"), ("cross_attn", "attn2"))
    for n in "qk"
}
BLOCK_NORMS = {"norm_cross": ("norm3", "norm2")}  # diffusers' norm3 is another one, without parameters
BLOCK_MODULATION = ("modulation", "scale_shift_table")
BLOCK_IMAGE_LINEARS = {
    "cross_attn/k_img": ("cross_attn.k_img", "attn2.add_k_proj"),
    "cross_attn/v_img": ("cross_attn.v_img", "attn2.add_v_proj"),
}
BLOCK_IMAGE_SCALES = {"cross_attn/norm_k_img": ("cross_attn.norm_k_img", "attn2.norm_added_k")}


def keymap(config: WanDiTConfig, layout: str) -> KeyMap:
    """The key map of a transformer in the layout "original" or "diffusers"."""
    which = place(layout)
    rows = {
        "patch_kernel": Source((f"{PATCH[which]}.weight",), CONV),
        "patch_bias": Source((f"{PATCH[which]}.bias",), VECTOR),
        "head_modulation": Source((HEAD_MODULATION[which],), MODULATION),
    }
    image = config.image > 0
    linears, norms = LINEARS | (IMAGE_LINEARS if image else {}), IMAGE_NORMS if image else {}
    block_linears = BLOCK_LINEARS | (BLOCK_IMAGE_LINEARS if image else {})
    block_scales = BLOCK_SCALES | (BLOCK_IMAGE_SCALES if image else {})
    if config.image_positions:
        rows["image_embedding/positions"] = Source((IMAGE_POSITIONS[which],), MODULATION)
    for path, names in {**linears, **norms}.items():
        leaf, how = ("scale", VECTOR) if path in norms else ("kernel", LINEAR)
        rows[f"{path}/{leaf}"] = Source((f"{names[which]}.weight",), how)
        rows[f"{path}/bias"] = Source((f"{names[which]}.bias",), VECTOR)
    rows["blocks/expert_0/modulation"] = stacked([f"blocks.{{}}.{BLOCK_MODULATION[which]}"], MODULATION, config.layers)
    for path, names in {**block_linears, **block_scales, **BLOCK_NORMS}.items():
        leaf, how = ("kernel", LINEAR) if path in block_linears else ("scale", VECTOR)
        name, ours = f"blocks.{{}}.{names[which]}", f"blocks/expert_0/{path}"
        rows[f"{ours}/{leaf}"] = stacked([f"{name}.weight"], how, config.layers)
        if path not in block_scales:
            rows[f"{ours}/bias"] = stacked([f"{name}.bias"], VECTOR, config.layers)
    return rows
