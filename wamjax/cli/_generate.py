"""Video from a prompt: what `wamjax imagine --prompt` does, one network in memory at a time."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wamjax.errors import UserError
from wamjax.interop import Loaded, load
from wamjax.interop.checkpoint import components
from wamjax.networks import clip
from wamjax.networks.umt5_tokenizer import Tokenizer
from wamjax.networks.wan import generation
from wamjax.networks.wan.dit import Precision, WanDiT
from wamjax.networks.wan.generation import RECIPES, Condition, Recipe
from wamjax.networks.wan.vae import stream

Say = Callable[[str, int], Callable[[], None]]
"""(stage, steps) -> what to call after each: a progress bar."""


def generate(args: argparse.Namespace, changes: dict[str, Any], say: Say) -> tuple[np.ndarray, Recipe]:
    """Frames (t, h, w, 3) uint8 by the model's own recipe with `changes`, and that recipe."""
    model, dtype = Path(args.checkpoint), args.dtype
    places = components(model)
    for name in ("transformer", "vae", "text_encoder"):
        if name not in places:
            raise UserError(f"{model} lacks the component {name}: give the folder of a whole model")
    kept = load(model, "transformer", dtype)
    second = load(model, "transformer_2", dtype) if "transformer_2" in places else None
    kind = generation.conditioning(kept.config, second is not None)
    recipe = dataclasses.replace(RECIPES[kind], **changes)
    if kind.startswith("i2v") and args.image is None:
        raise UserError("this model makes video from an image: give one with --image")
    if kind.startswith("t2v") and args.image is not None:
        raise UserError("this model makes video from text alone: leave --image away")
    vae = load(model, "vae", jnp.float32)
    recipe, condition = conditioned(model, recipe, kept, vae, args.image, kind)
    shape = generation.latent_shape(recipe, kept.config, vae.config)
    text = features(model, [args.prompt, args.negative_prompt], dtype, kept.config.text_length, args.tokenizer)
    compute = jax.tree.leaves(kept.params)[0].dtype
    dit = WanDiT(kept.config, Precision(compute))
    params = (kept.params,) if second is None else (kept.params, second.params)
    noise = jax.random.normal(jax.random.key(args.seed), (1, *shape))
    report = say("denoising", recipe.steps)
    loop = jax.jit(lambda p, n, t, c: generation.denoise(dit, p, n, t[:1], t[1:], Condition(**c), recipe, report))
    latents = loop(params, noise, text, vars(condition))
    return decoded(vae, latents, say), recipe


def features(model: Path, prompts: list[str], dtype: Any, length: int, tokenizer: str | None) -> jax.Array:
    """Features of prompts (n, l, e), zero where they are padded."""
    tokens, present = Tokenizer(Path(tokenizer) if tokenizer else model, length)(prompts)
    used = int(present.sum(axis=1).max())
    tokens, present = tokens[:, :used], present[:, :used]
    encoder = load(model, "text_encoder", dtype)
    if tokens.max() >= encoder.config.vocabulary:
        raise UserError(
            f"the tokenizer knows more tokens than the text encoder ({encoder.config.vocabulary}): not its own"
        )
    found: Any = jax.jit(encoder.module.apply)({"params": encoder.params}, tokens, present)
    return jnp.where(present[..., None], found, 0)


def conditioned(
    model: Path, recipe: Recipe, dit: Loaded, vae: Loaded, image: str | None, kind: str
) -> tuple[Recipe, Condition]:
    """The condition on an image, and the recipe with the size that its aspect gives."""
    if image is None:
        return recipe, Condition()
    picture = opened(image)
    width, height = picture.size
    _, side = generation.factors(dit.config, vae.config)
    rule = generation.size_like if kind == "ti2v" else generation.size_near
    rows, columns = rule(recipe.height * recipe.width, height, width, side)
    if not rows or not columns:
        raise UserError(f"an image of {height}x{width} gives no video of {recipe.height * recipe.width} pixels")
    recipe = dataclasses.replace(recipe, height=rows, width=columns)
    if kind == "ti2v":
        first = cropped(picture, rows, columns)[:, None]
        encode = jax.jit(lambda params: vae.module.apply({"params": params}, first, method="encode"))
        return recipe, Condition(first=encode(vae.params))
    whole = pixels(picture)
    beside = jax.jit(lambda p: generation.beside(vae.module, p, whole, recipe.frames, rows, columns))(vae.params)
    if not dit.config.image:
        return recipe, Condition(beside=beside)
    tower = load(model, "image_encoder", jnp.float32)
    seen = jax.jit(lambda p: tower.module.apply({"params": p}, clip.preprocess(whole, tower.config.image)))(
        tower.params
    )
    return recipe, Condition(beside=beside, image=seen)


def opened(path: str) -> Any:
    """An image of three colours; a UserError where it is none."""
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(path).convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise UserError(f"{path} is no image that can be read ({error})") from error


def pixels(picture: Any) -> jax.Array:
    """An image (1, h, w, 3) in [-1, 1]."""
    return jnp.asarray(picture, jnp.float32)[None] / 127.5 - 1


def cropped(picture: Any, height: int, width: int) -> jax.Array:
    """The middle of an image, enlarged or reduced until it fills height and width."""
    from PIL import Image

    scale = max(width / picture.width, height / picture.height)
    picture = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.LANCZOS)
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    return pixels(picture.crop((left, top, left + width, top + height)))


def decoded(vae: Loaded, latents: jax.Array, say: Say) -> np.ndarray:
    """Frames of latents, one latent frame after the other, in memory that does not grow."""
    report, frames = say("decoding", latents.shape[1]), []
    chunks = (latents[:, i : i + 1] for i in range(latents.shape[1]))
    for chunk in stream(vae.module, vae.params, "decode", chunks):
        frames.append(generation.to_pixels(chunk[0]))
        report()
    return np.concatenate(frames)
