"""Rotary position embeddings over several axes, neighbouring channels in pairs (as in Wan)."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from wamjax.nn.layers import angles, frequencies

Rotation = tuple[Float[Array, "b n p"], Float[Array, "b n p"]]
"""Cosine and sine per token and pair of channels."""


def rotation(position: Float[Array, "b n axes"], pairs: tuple[int, ...]) -> Rotation:
    """The rotation of tokens at `position`; `pairs` says how many pairs of channels each axis turns."""
    phase = jnp.concatenate([angles(position[..., i], frequencies(n)) for i, n in enumerate(pairs)], axis=-1)
    return jnp.cos(phase), jnp.sin(phase)


def rotate(x: Float[Array, "b n k h"], by: Rotation) -> Float[Array, "b n k h"]:
    """Turns every pair of neighbouring channels, in float32."""
    cos, sin = (part[:, :, None, :] for part in by)
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    even, odd = pairs[..., 0], pairs[..., 1]
    turned = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
    return turned.reshape(x.shape).astype(x.dtype)
