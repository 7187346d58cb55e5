"""Video from text, or from text and an image, with any Wan model: recipes, conditions and the denoising loop.

After wan/text2video.py, image2video.py and textimage2video.py of both repositories.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from wamjax.errors import UserError
from wamjax.flow.samplers import guided, sample
from wamjax.flow.schedules import integer_timestep, uniform_nodes, wan_nodes
from wamjax.flow.solvers import SOLVERS, Solver
from wamjax.networks.images import resize
from wamjax.networks.wan.dit import Latents, WanDiT, WanDiTConfig
from wamjax.networks.wan.vae import WanVAE, WanVAEConfig

NODES = {"unipc": wan_nodes, "dpmpp": uniform_nodes, "euler": uniform_nodes}
"""Wan's rule of noise times for each solver."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a released model is sampled.

    Attributes:
        steps, shift, solver: of the denoising.
        guidance: scale of the guidance; of models with two networks that of the high-noise one.
        low_guidance: the other network's.
        boundary: noise time from which the high-noise network works.
        frames, fps, height, width: of the video, in pixels. From an image, height * width is the area, and the image
            has the aspect.
    """

    steps: int = 50
    shift: float = 5.0
    solver: str = "unipc"
    guidance: float = 5.0
    low_guidance: float = 5.0
    boundary: float = 0.0
    frames: int = 81
    fps: float = 16.0
    height: int = 480
    width: int = 832


RECIPES = {
    "t2v": Recipe(),
    "i2v": Recipe(steps=40),
    "ti2v": Recipe(frames=121, fps=24.0, height=704, width=1280),
    "t2v-a14b": Recipe(steps=40, shift=12.0, guidance=4.0, low_guidance=3.0, boundary=0.875),
    "i2v-a14b": Recipe(steps=40, guidance=3.5, low_guidance=3.5, boundary=0.9),
}
"""By what a model is conditioned on."""


def conditioning(config: WanDiTConfig, two: bool) -> str:
    """A model's row in `RECIPES`: of its network's configuration, and whether there is a second network."""
    if config.inputs > config.outputs:
        return "i2v-a14b" if two else "i2v"
    if two:
        return "t2v-a14b"
    return "ti2v" if config.outputs == 48 else "t2v"


def solver_of(recipe: Recipe) -> Solver:
    """The solver of a recipe; a UserError for an unknown one."""
    if recipe.solver not in NODES:
        raise UserError(f"unknown solver '{recipe.solver}': use one of {', '.join(NODES)}")
    return SOLVERS[recipe.solver](NODES[recipe.solver](recipe.steps, recipe.shift))


def factors(dit: WanDiTConfig, vae: WanVAEConfig) -> tuple[int, int]:
    """Pixels of a latent's side, and of a token's: 8 and 16, or 16 and 32."""
    latent = vae.patch * 2 ** len(vae.temporal)
    return latent, latent * dit.patch[1]


def latent_shape(recipe: Recipe, dit: WanDiTConfig, vae: WanVAEConfig) -> tuple[int, int, int, int]:
    """Frames, rows, columns and channels of the latents of a recipe's video; a UserError where it cannot be cut so."""
    latent, token = factors(dit, vae)
    if recipe.frames % 4 != 1 or recipe.height % token or recipe.width % token:
        raise UserError(
            f"{recipe.frames} frames of {recipe.height}x{recipe.width} cannot be made: "
            f"use 4 n + 1 frames, and sides that are multiples of {token}"
        )
    return 1 + recipe.frames // 4, recipe.height // latent, recipe.width // latent, vae.latent


def size_like(area: int, height: int, width: int, side: int) -> tuple[int, int]:
    """Height and width near an image's aspect, within `area` pixels, multiples of `side` (TI2V's rule); 0 if none."""
    aspect, candidates = width / height, []
    x, y = (max(side, int(math.sqrt(area * ratio) // side * side)) for ratio in (aspect, 1 / aspect))
    candidates += [(int(area / x // side * side), x), (y, int(area / y // side * side))]
    if not all(map(all, candidates)):
        return 0, 0
    ratios = [max(aspect * h / w, w / h / aspect) for h, w in candidates]
    return candidates[0] if ratios[0] < ratios[1] else candidates[1]


def size_near(area: int, height: int, width: int, side: int) -> tuple[int, int]:
    """Height and width near an image's aspect and near `area` pixels, multiples of `side` (I2V's rule)."""
    aspect = height / width
    return int(math.sqrt(area * aspect) // side * side), int(math.sqrt(area / aspect) // side * side)


@dataclasses.dataclass(frozen=True)
class Condition:
    """What a video is made from, beside text; arrays of one batch.

    Attributes:
        beside: latents that stand beside the noisy ones in the channels (I2V): a mask of 4, and the image's.
        image: CLIP's features (I2V of Wan2.1).
        first: the first latent frame, kept as it is (TI2V).
    """

    beside: Latents | None = None
    image: Float[Array, "b i f"] | None = None
    first: Latents | None = None


def beside(vae: WanVAE, params: Any, image: Float[Array, "b y x 3"], frames: int, height: int, width: int) -> Latents:
    """I2V's condition: a mask of four channels, one on the first latent frame; the image, then grey, encoded."""
    first = resize(image, height, width)[:, None]
    clip = jnp.concatenate([first, jnp.zeros((first.shape[0], frames - 1, *first.shape[2:]), first.dtype)], axis=1)
    latents: Any = vae.apply({"params": params}, clip, method="encode")
    mask = jnp.zeros((*latents.shape[:-1], 4), latents.dtype).at[:, 0].set(1)
    return jnp.concatenate([mask, latents], axis=-1)


def denoise(
    dit: WanDiT,
    params: tuple[Any, ...],
    noise: Latents,
    text: Float[Array, "b l e"],
    negative: Float[Array, "b l e"],
    condition: Condition,
    recipe: Recipe,
    report: Callable[[], None] | None = None,
) -> Latents:
    """Latents of videos, from noise, in one compiled loop.

    Args:
        dit, params: the network, and its parameters: one tree, or the high-noise and the low-noise network's.
        noise: (b, t, h, w, c), standard normal.
        text, negative: features of the prompts, and of what the videos shall not be.
        condition, recipe: see there.
        report: called after every step, for a progress bar.
    """

    def kept(x: Latents) -> Latents:
        return x if condition.first is None else x.at[:, :1].set(condition.first)

    def both(x: Array | None) -> Array | None:
        return None if x is None else jnp.concatenate([x, x])

    def network(params: Any, scale: float | Array, x: Latents, timestep: Array) -> Latents:
        velocity: Any = dit.apply(
            {"params": params}, both(x), both(timestep), jnp.concatenate([text, negative]), both(condition.image)
        )
        conditional, unconditional = jnp.split(velocity, 2)
        return guided(conditional, unconditional, scale)

    def velocity(streams: dict[str, Array], sigma: dict[str, Array]) -> dict[str, Array]:
        timestep = integer_timestep(sigma["video"])[:, None]
        if condition.first is not None:
            timestep = timestep * (jnp.arange(noise.shape[1]) > 0)
        x = kept(streams["video"])
        if condition.beside is not None:
            x = jnp.concatenate([x, condition.beside], axis=-1)
        if report is not None:
            jax.debug.callback(report)
        if len(params) == 1:
            return {"video": network(params[0], recipe.guidance, x, timestep)}
        high = timestep.max() >= recipe.boundary * 1000
        scale = jnp.where(high, recipe.guidance, recipe.low_guidance)
        run = [lambda p=p: network(p, scale, x, timestep) for p in params]
        return {"video": jax.lax.cond(high, *run)}

    return kept(sample(velocity, {"video": noise}, {"video": solver_of(recipe)})["video"])


def to_pixels(video: Float[Array, "t h w 3"]) -> np.ndarray:
    """Frames in [-1, 1] as uint8."""
    return np.asarray(jnp.round((video.astype(jnp.float32) + 1) * 127.5).astype(jnp.uint8))
