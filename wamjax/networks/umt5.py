"""The encoder of UMT5 (arXiv 2304.09151): the text encoder of Wan. Every layer has its own relative positions."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from wamjax.nn.layers import Linear, ScaledNorm, stacked

PARTITIONS: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"embedding", ("tensor", "fsdp")),
    (r"blocks/(q|k|v|gate|up)/kernel", (None, "fsdp", "tensor")),
    (r"blocks/(out|down)/kernel", (None, "tensor", "fsdp")),
    (r".*", ()),
)
"""Parameter path (regular expression, first match wins) to the mesh axes of its dimensions."""


@dataclasses.dataclass(frozen=True)
class UMT5Config:
    """Shape of the encoder; the defaults are UMT5-XXL's.

    Attributes:
        vocabulary: number of tokens.
        width, heads, head_dim, mlp, layers: of the transformer.
        buckets, farthest: relative distances are told apart in so many buckets, up to so many tokens.
    """

    vocabulary: int = 256_384
    width: int = 4096
    heads: int = 64
    head_dim: int = 64
    mlp: int = 10_240
    layers: int = 24
    buckets: int = 32
    farthest: int = 128


class UMT5Encoder(nn.Module):
    """Token numbers to features.

    Attributes:
        config: its shape.
    """

    config: UMT5Config

    @nn.compact
    def __call__(self, tokens: Int[Array, "b l"], present: Bool[Array, "b l"]) -> Float[Array, "b l d"]:
        """Features of every token; tokens that are not `present` are seen by none, and theirs mean nothing."""
        c = self.config
        x = self.param("embedding", nn.initializers.normal(1.0), (c.vocabulary, c.width))[tokens]
        block = Block(c, parent=None)
        buckets = relative_buckets(tokens.shape[1], c.buckets, c.farthest)
        blocks = stacked(self, block, c.layers, x, present, buckets)

        def layer(x: Array, params: Any) -> tuple[Array, None]:
            result: Any = block.apply({"params": params}, x, present, buckets)
            return result, None

        return ScaledNorm(name="norm")(jax.lax.scan(layer, x, blocks)[0])


class Block(nn.Module):
    """Attention and a gated MLP, each behind a norm; no biases, and no scaling of the attention logits."""

    config: UMT5Config

    @nn.compact
    def __call__(self, x: Array, present: Array, buckets: np.ndarray) -> Array:
        c = self.config
        h = ScaledNorm(name="norm_0")(x)
        q, k, v = (
            Linear(c.heads * c.head_dim, bias=False, name=name)(h).reshape(*x.shape[:2], c.heads, c.head_dim)
            for name in ("q", "k", "v")
        )
        positions = self.param("positions", nn.initializers.normal(1.0), (c.buckets, c.heads))
        bias = jnp.moveaxis(positions[buckets], -1, 0)[None].astype(x.dtype)
        attended = jax.nn.dot_product_attention(q, k, v, bias, present[:, None, None, :], scale=1.0)
        x = x + Linear(c.width, bias=False, name="out")(attended.reshape(*x.shape[:2], -1))
        h = ScaledNorm(name="norm_1")(x)
        gate = nn.gelu(Linear(c.mlp, bias=False, name="gate")(h), approximate=True)
        return x + Linear(c.width, bias=False, name="down")(gate * Linear(c.mlp, bias=False, name="up")(h))


def relative_buckets(length: int, buckets: int, farthest: int) -> Int[np.ndarray, "l l"]:
    """Bucket of key minus query: half of the buckets for each direction, exact when near and logarithmic when far.

    In single precision and in upstream's order of operations, on which bucket borders depend.
    """
    distance = np.arange(length)[None, :] - np.arange(length)[:, None]
    half = buckets // 2
    exact = half // 2
    far = np.log(np.maximum(np.abs(distance), 1).astype(np.float32) / np.float32(exact))
    far = far / np.float32(np.log(farthest / exact)) * np.float32(half - exact)
    magnitude = np.where(np.abs(distance) < exact, np.abs(distance), np.minimum(exact + far.astype(int), half - 1))
    return magnitude + half * (distance > 0)
