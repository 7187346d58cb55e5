"""Resizing images as PyTorch does it."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def resize(images: Float[Array, "b h w c"], height: int, width: int) -> Float[Array, "b y x c"]:
    """Images of another size and aspect, by cubic interpolation."""
    resized = jnp.einsum("yh,bhwc->bywc", bicubic(images.shape[1], height), images)
    return jnp.einsum("xw,bywc->byxc", bicubic(images.shape[2], width), resized)


def resize_linear(
    images: Float[Array, "*b h w c"], height: int, width: int, *, antialias: bool
) -> Float[Array, "*b y x c"]:
    """Images of another size and aspect, by linear interpolation.

    Columns before rows and neighbour after neighbour, which is the order of `torch.nn.functional.interpolate` with
    `antialias`: compiled for a processor that multiplies and adds at once, an enlarged image is equal bit for bit.
    """
    return _weigh(_weigh(images, -2, width, antialias), -3, height, antialias)


def _weigh(images: Float[Array, "*b h w c"], axis: int, size: int, antialias: bool) -> Array:
    """Images whose `axis` has `size` places, each the weighted sum of its neighbours."""
    places, weights = linear(images.shape[axis], size, antialias=antialias)
    shape = (size,) + (1,) * (-1 - axis)
    resized = jnp.take(images, places[:, 0], axis) * weights[:, 0].reshape(shape)
    for tap in range(1, places.shape[1]):
        resized = jnp.take(images, places[:, tap], axis) * weights[:, tap].reshape(shape) + resized
    return resized


def linear(
    size: int, resized: int, *, antialias: bool
) -> tuple[Int[np.ndarray, "y taps"], Float[np.ndarray, "y taps"]]:
    """Neighbours and their weights, as torch has them: pixel centres, a triangle of weights, nothing beyond the edges.

    With `antialias` the triangle of a smaller image is as wide as what its pixels cover; without, it has always the
    width of two pixels. Places and weights are in single precision, as there.
    """
    half, one = np.float32(0.5), np.float32(1)
    scale = np.float32(size) / np.float32(resized)
    reach = max(scale, one) if antialias else one
    centre = scale * (np.arange(resized, dtype=np.float32) + half)
    first = np.maximum((centre - reach + half).astype(int), 0)
    last = np.minimum((centre + reach + half).astype(int), size)
    places = first[:, None] + np.arange((last - first).max())
    distance = np.abs((places.astype(np.float32) - centre[:, None] + half) * (one / reach))
    weights = np.where(places < last[:, None], np.maximum(one - distance, 0), 0).astype(np.float32)
    total = np.cumsum(weights, axis=1, dtype=np.float32)[:, -1:]
    return np.minimum(places, size - 1), weights / total


def bicubic(size: int, resized: int) -> Float[np.ndarray, "y h"]:
    """Weights of cubic interpolation as torch does it: a = -0.75, pixel centres, edges repeated, no antialiasing.

    Places are in single precision, as there.
    """
    place = (np.arange(resized, dtype=np.float32) + np.float32(0.5)) * np.float32(size / resized) - np.float32(0.5)
    base = np.floor(place).astype(int)
    weights = np.zeros((resized, size), np.float32)
    for tap in range(-1, 3):
        distance = np.abs(place - base - tap)
        near = (1.25 * distance - 2.25) * distance**2 + 1
        far = ((-0.75 * distance + 3.75) * distance - 6) * distance + 3
        np.add.at(weights, (np.arange(resized), np.clip(base + tap, 0, size - 1)), np.where(distance <= 1, near, far))
    return weights
