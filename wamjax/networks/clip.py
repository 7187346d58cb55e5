"""CLIP's vision tower (arXiv 2103.00020), as Wan2.1 uses it: the features before the last block, class token kept."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from wamjax.networks.images import resize
from wamjax.nn.layers import AffineNorm, Linear, stacked

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of the training images, per colour in [0, 1]."""


@dataclasses.dataclass(frozen=True)
class CLIPVisionConfig:
    """Shape of the tower; the defaults are ViT-H/14's.

    Attributes:
        image, patch: edges in pixels.
        width, heads, mlp, layers: of the transformer.
        used: blocks that run. The others, and the last norm, are carried along for export,
        projection: as is the head of the original files, of so many outputs; 0 where there is none;
        temperature: and the contrast's temperature, where they have it.
    """

    image: int = 224
    patch: int = 14
    width: int = 1280
    heads: int = 16
    mlp: int = 5120
    layers: int = 32
    used: int = 31
    projection: int = 0
    temperature: bool = False


class CLIPVision(nn.Module):
    """Images to tokens.

    Attributes:
        config: its shape.
    """

    config: CLIPVisionConfig

    @nn.compact
    def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b n d"]:
        """Features of the class token and of every patch, row by row, of images from `preprocess`."""
        c = self.config
        b, side = images.shape[0], c.image // c.patch
        kernel = self.param("patch", nn.initializers.lecun_normal(), (c.patch, c.patch, 3, c.width))
        patches = images.reshape(b, side, c.patch, side, c.patch, 3).swapaxes(2, 3).reshape(b, side**2, -1)
        x = patches @ kernel.reshape(-1, c.width).astype(images.dtype)
        first = self.param("class_token", nn.initializers.normal(0.02), (c.width,)).astype(x.dtype)
        x = jnp.concatenate([jnp.broadcast_to(first, (b, 1, c.width)), x], axis=1)
        x = x + self.param("positions", nn.initializers.normal(0.02), (side**2 + 1, c.width)).astype(x.dtype)
        x = AffineNorm(1e-5, name="norm_in")(x)
        block = Block(c, parent=None)
        blocks = stacked(self, block, c.layers, x)
        AffineNorm(1e-5, name="norm_out")(x)  # only to hold its parameters
        if c.projection:
            self.param("projection", nn.initializers.normal(0.02), (c.width, c.projection))
        if c.temperature:
            self.param("log_scale", nn.initializers.zeros, (1,))

        def layer(x: Array, params: Any) -> tuple[Array, None]:
            result: Any = block.apply({"params": params}, x)
            return result, None

        return jax.lax.scan(layer, x, jax.tree.map(lambda leaf: leaf[: c.used], blocks))[0]


class Block(nn.Module):
    """Attention and an MLP, each behind a norm."""

    config: CLIPVisionConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        c = self.config
        qkv = Linear(3 * c.width, name="qkv")(AffineNorm(1e-5, name="norm_0")(x))
        q, k, v = jnp.split(qkv.reshape(*x.shape[:2], 3 * c.heads, c.width // c.heads), 3, axis=2)
        x = x + Linear(c.width, name="out")(jax.nn.dot_product_attention(q, k, v).reshape(x.shape))
        hidden = Linear(c.mlp, name="mlp_in")(AffineNorm(1e-5, name="norm_1")(x))
        return x + Linear(c.width, name="mlp_out")(nn.gelu(hidden, approximate=False))


def preprocess(images: Float[Array, "b h w 3"], size: int = 224) -> Float[Array, "b s s 3"]:
    """Images in [-1, 1] as the tower expects them: resized without regard to their aspect, normalised per colour."""
    return (resize(images, size, size) * 0.5 + 0.5 - jnp.array(MEAN)) / jnp.array(STD)
