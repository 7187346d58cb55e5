"""Resizing images as PyTorch does it."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def resize(images: Float[Array, "b h w c"], height: int, width: int) -> Float[Array, "b y x c"]:
    """Images of another size and aspect, by cubic interpolation."""
    resized = jnp.einsum("yh,bhwc->bywc", bicubic(images.shape[1], height), images)
    return jnp.einsum("xw,bywc->byxc", bicubic(images.shape[2], width), resized)


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
