"""Video from a prompt: what `wamjax imagine --prompt` does. The text encoder is gone when the transformer comes."""

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
from wamjax.interop.checkpoint import components, open_component
from wamjax.networks import clip
from wamjax.networks.umt5_tokenizer import Tokenizer
from wamjax.networks.wan import generation
from wamjax.networks.wan.dit import Precision, WanDiT, WanDiTConfig
from wamjax.networks.wan.generation import RECIPES, Condition, Recipe, solver_of
from wamjax.networks.wan.vae import WanVAEConfig, stream

Say = Callable[[str, int], Callable[[], None]]
"""(stage, steps) -> what to call after each: a progress bar."""


def generate(args: argparse.Namespace, changes: dict[str, Any], say: Say) -> tuple[np.ndarray, Recipe]:
    """Frames (t, h, w, 3) uint8 by the model's own recipe with `changes`, and that recipe."""
    model, dtype = Path(args.checkpoint), args.dtype
    places = components(model)
    for name in ("transformer", "vae", "text_encoder"):
        if name not in places:
            raise UserError(f"{model} lacks the component {name}: give the folder of a whole model")
    network, codec = (open_component(places[name]).config for name in ("transformer", "vae"))
    kind = generation.conditioning(network, "transformer_2" in places)
    recipe = sized(dataclasses.replace(RECIPES[kind], **changes), kind, args.image, network, codec)
    shape = generation.latent_shape(recipe, network, codec)
    solver_of(recipe)
    text = features(model, [args.prompt, args.negative_prompt], dtype, network.text_length, args.tokenizer)
    vae = load(model, "vae", jnp.float32)
    condition = Condition() if args.image is None else conditioned(model, recipe, network, vae, args.image, kind)
    both = [name for name in ("transformer", "transformer_2") if name in places]
    params = tuple(load(model, name, dtype).params for name in both)
    dit = WanDiT(network, Precision(jax.tree.leaves(params)[0].dtype))
    noise = jax.random.normal(jax.random.key(args.seed), (1, *shape))
    report = say("denoising", recipe.steps)
    loop = jax.jit(lambda p, n, t, c: generation.denoise(dit, p, n, t[:1], t[1:], Condition(**c), recipe, report))
    latents = loop(params, noise, text, vars(condition))
    del params
    return decoded(vae, latents, say), recipe


def sized(recipe: Recipe, kind: str, image: str | None, network: WanDiTConfig, codec: WanVAEConfig) -> Recipe:
    """The recipe with the size that the image's aspect gives, if there is an image."""
    if network.image_positions:
        raise UserError("this model joins a first and a last frame, which cannot be asked for yet: use an I2V model")
    if kind.startswith("i2v") and image is None:
        raise UserError("this model makes video from an image: give one with --image")
    if kind.startswith("t2v") and image is not None:
        raise UserError("this model makes video from text alone: leave --image away")
    if image is None:
        return recipe
    width, height = opened(image).size
    _, side = generation.factors(network, codec)
    rule = generation.size_like if kind == "ti2v" else generation.size_near
    rows, columns = rule(recipe.height * recipe.width, height, width, side)
    if not rows or not columns:
        raise UserError(f"an image of {height}x{width} gives no video of {recipe.height * recipe.width} pixels")
    return dataclasses.replace(recipe, height=rows, width=columns)


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


def conditioned(model: Path, recipe: Recipe, network: WanDiTConfig, vae: Loaded, image: str, kind: str) -> Condition:
    """The condition on an image, for a video of the recipe's size."""
    picture = opened(image)
    if kind == "ti2v":
        first = cropped(picture, recipe.height, recipe.width)[:, None]
        encode = jax.jit(lambda p: vae.module.apply({"params": p}, first, method="encode"))
        return Condition(first=encode(vae.params))
    whole, size = pixels(picture), (recipe.frames, recipe.height, recipe.width)
    beside = jax.jit(lambda p: generation.beside(vae.module, p, whole, *size))(vae.params)
    if not network.image:
        return Condition(beside=beside)
    tower = load(model, "image_encoder", jnp.float32)
    see = jax.jit(lambda p: tower.module.apply({"params": p}, clip.preprocess(whole, tower.config.image)))
    return Condition(beside=beside, image=see(tower.params))


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
