"""Augmentation of training frames: on the device, from uint8 to uint8, with a random key for every sample.

All frames of a view are changed alike, views each in their own way. Keys come with the batch (`pipeline.Options`), so a
sample is changed alike whatever the mesh and wherever a run was interrupted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8, UInt32

from wamjax.errors import UserError

_GREY = (0.299, 0.587, 0.114)  # Rec. 601 luma, as in Pillow and torchvision
_TO_YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))


@dataclass(frozen=True)
class AugmentConfig:
    """What is done to frames, in this order; a strength of 0 (of 1 for `crop` and `aspect`) leaves it out.

    Attributes:
        crop: the smallest part of the area that is cut out and enlarged to the whole, uniform up to 1.
        aspect: the cut-out is at most so many times wider or narrower than the frame; its logarithm is uniform.
        uncropped: views (places on the view axis) that are never cropped: cameras at a gripper, whose geometry counts.
        brightness, contrast, saturation: factors are uniform in 1 - strength .. 1 + strength; contrast is about the
            mean brightness of all frames of the view.
        hue: the largest turn of the colours, in turns, at equal brightness (in the plane of I and Q).
    """

    crop: float = 0.9
    aspect: float = 1.0
    uncropped: tuple[int, ...] = ()
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    hue: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.crop <= 1 or self.aspect < 1:
            raise UserError(f"augment: crop={self.crop} must be in 0 .. 1 and aspect={self.aspect} at least 1")
        if not all(0 <= x <= 1 for x in (self.brightness, self.contrast, self.saturation)) or not 0 <= self.hue <= 0.5:
            raise UserError("augment: brightness, contrast and saturation must be in 0 .. 1, hue in 0 .. 0.5")


def augment(
    frames: UInt8[Array, "b v t h w 3"], keys: UInt32[Array, "b 2"], config: AugmentConfig
) -> UInt8[Array, "b v t h w 3"]:
    """Frames changed at random; row i depends on `keys[i]` alone."""
    views = jnp.arange(frames.shape[1])
    cropped = jnp.array([view not in config.uncropped for view in range(frames.shape[1])])

    def view(key: Array, place: Array, crop: Array, one: Array) -> Array:
        key = jax.random.wrap_key_data(key, impl="threefry2x32")
        return _changed(one, jax.random.fold_in(key, place), crop, config)

    changed: Array = jax.vmap(jax.vmap(view, (None, 0, 0, 0)), (0, None, None, 0))(keys, views, cropped, frames)
    return changed


def _changed(clip: Array, key: Array, crop: Array, config: AugmentConfig) -> Array:
    """One view (t, h, w, 3)."""
    uniform = jax.random.uniform(key, (8,))
    bounds = jnp.array([config.brightness, config.contrast, config.saturation, config.hue])
    light, contrast, saturation, hue = bounds * (2 * uniform[:4] - 1)
    x = clip.astype(jnp.float32) / 255
    if config.crop < 1 or config.aspect > 1:
        x = jnp.where(crop, _enlarged(x, uniform[4:], config), x)
    x = jnp.clip(x * (1 + light), 0, 1)
    mean = jnp.mean(x @ jnp.array(_GREY))
    x = jnp.clip(mean + (x - mean) * (1 + contrast), 0, 1)
    grey = (x @ jnp.array(_GREY))[..., None]
    x = jnp.clip(grey + (x - grey) * (1 + saturation), 0, 1)
    if config.hue:
        x = jnp.clip(jnp.einsum("thwc,dc->thwd", x, _turn(hue), precision="highest"), 0, 1)
    return jnp.round(x * 255).astype(jnp.uint8)


def _enlarged(
    x: Float[Array, "t h w 3"], uniform: Float[Array, " 4"], config: AugmentConfig
) -> Float[Array, "t h w 3"]:
    """A random part of the frames, brought to their size by linear interpolation."""
    height, width = x.shape[1:3]
    area = config.crop + (1 - config.crop) * uniform[0]
    wider = jnp.exp(math.log(config.aspect) * (2 * uniform[1] - 1))
    rows = jnp.minimum(jnp.sqrt(area / wider), 1.0) * height
    columns = jnp.minimum(jnp.sqrt(area * wider), 1.0) * width
    top, left = uniform[2] * (height - rows), uniform[3] * (width - columns)
    x = jnp.einsum("yh,thwc->tywc", _read(top, rows, height), x, precision="highest")
    return jnp.einsum("xw,tywc->tyxc", _read(left, columns, width), x, precision="highest")


def _read(begin: Array, length: Array, size: int) -> Float[Array, "y h"]:
    """The matrix that reads `size` evenly spread points of begin .. begin + length out of `size` pixels."""
    points = begin + (jnp.arange(size) + 0.5) * length / size - 0.5
    points = jnp.clip(points, 0, size - 1)
    return jnp.maximum(0, 1 - jnp.abs(points[:, None] - jnp.arange(size)))


def _turn(hue: Array) -> Float[Array, "3 3"]:
    """The matrix that turns colours about grey, in turns."""
    cos, sin = jnp.cos(2 * jnp.pi * hue), jnp.sin(2 * jnp.pi * hue)
    to, back = np.array(_TO_YIQ), np.linalg.inv(_TO_YIQ)
    parts = [back @ np.diag(kept) @ to for kept in ((1, 0, 0), (0, 1, 1))]
    quarter = back @ np.array([[0, 0, 0], [0, 0, -1], [0, 1, 0]]) @ to
    return parts[0] + cos * parts[1] + sin * quarter
