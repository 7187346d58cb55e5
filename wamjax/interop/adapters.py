"""Low-rank adapters in published checkpoints (PEFT's names), added to the weights that they change as these are read.

`base_model.model.<name>.lora_A.default.weight` (r, in) and `lora_B` (out, r) change the weight of <name> by
alpha / r B A; the weight itself is there as `<name>.base_layer.weight`, or is not there at all.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from wamjax.errors import UserError
from wamjax.interop.files import Index, Tensor, Tensors

ALPHA = 4.0
"""Of DreamZero's adapters where their checkpoint does not say."""
SETTINGS = ("config.json", "experiment_cfg/conf.yaml")
"""Files beside a checkpoint that may say."""
OUTER, LAYER, DOWN, UP = "base_model.model.", ".base_layer.", ".lora_A.default.weight", ".lora_B.default.weight"


def with_adapters(tensors: Tensors, base: Tensors | None, path: Path) -> Tensors:
    """Tensors under their plain names, with adapters, if there are any, added to what they change.

    Args:
        tensors: of a checkpoint. base: those that its adapters change, if it does not hold them itself.
        path: of the checkpoint, for messages.

    Raises:
        UserError: adapters without a base, a base without adapters, halves or shapes that do not fit.
    """
    plain = {n.removeprefix(OUTER).replace(LAYER, "."): t for n, t in tensors.items()}
    down = {n.removesuffix(DOWN): t for n, t in plain.items() if n.endswith(DOWN)}
    up = {n.removesuffix(UP): t for n, t in plain.items() if n.endswith(UP)}
    if not down and not up:
        if base is not None:
            raise UserError(f"{path} holds no adapters: leave out the base")
        return plain
    if odd := down.keys() ^ up.keys():
        raise UserError(f"{path} has one half only of {len(odd)} adapters, first {min(odd)}: download it again")
    kept = {n: t for n, t in plain.items() if not n.endswith((DOWN, UP))}
    if base is None and any(f"{name}.weight" not in kept for name in down):
        raise UserError(
            f"{path} holds adapters without the weights they change: name the checkpoint they were trained on as base"
        )
    kept, scale = {**(base or {}), **kept}, alpha(path.parent)
    for name in down:
        if f"{name}.weight" not in kept:
            raise UserError(f"the base has no {name}.weight, which {path} changes: give the base it was trained on")
        kept[f"{name}.weight"] = _changed(name, kept[f"{name}.weight"], down[name], up[name], scale)
    return kept


def alpha(folder: Path) -> float:
    """By what, over their rank, the adapters of a checkpoint in this folder are scaled."""
    for file in (folder / name for name in SETTINGS):
        found = re.search(r"\blora_alpha\"?\s*:\s*([\d.]+)", file.read_text()) if file.is_file() else None
        if found:
            return float(found[1])
    return ALPHA


def _changed(name: str, weight: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """The weight with its change added, in its own type; the sum is made in single precision."""
    if (up.shape[0], down.shape[1]) != weight.shape or up.shape[1] != down.shape[0]:
        raise UserError(f"the adapter of {name} ({up.shape} {down.shape}) does not fit its weight {weight.shape}")

    def part(index: Index) -> np.ndarray:
        rows, columns = index or (slice(None), slice(None))
        change = up.read()[rows].astype(np.float32) @ down.read()[:, columns].astype(np.float32)
        return (weight.part(index).astype(np.float32) + scale / down.shape[0] * change).astype(weight.dtype)

    return Tensor(weight.shape, weight.dtype, part)
