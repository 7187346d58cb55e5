"""Linear maps, norms and embeddings."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from wamjax.nn.weights import product

Initializer = jax.nn.initializers.Initializer


class Linear(nn.Module):
    """`x @ kernel + bias`: the one door for weights applied to a token, of any kind in `wamjax.nn.weights`.

    Attributes:
        features: output width.
        kernel_init: initializer of the kernel (d_in, d_out).
        bias: whether there is a bias; it starts at zero.
    """

    features: int
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b e"]:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        x = product(kernel, x)
        if not self.bias:
            return x
        return x + self.param("bias", nn.initializers.zeros, (self.features,)).astype(x.dtype)


def rms_norm(x: Float[Array, "*b d"], eps: float = 1e-6) -> Float[Array, "*b d"]:
    """Divides by the root mean square over the last axis, in float32 (no learned scale)."""
    full = x.astype(jnp.float32)
    return (full * jax.lax.rsqrt(jnp.mean(full**2, axis=-1, keepdims=True) + eps)).astype(x.dtype)


def layer_norm(x: Float[Array, "*b d"], eps: float = 1e-6) -> Float[Array, "*b d"]:
    """Zero mean and unit variance over the last axis, in float32 (no learned scale or bias)."""
    full = x.astype(jnp.float32)
    full = full - jnp.mean(full, axis=-1, keepdims=True)
    return (full * jax.lax.rsqrt(jnp.mean(full**2, axis=-1, keepdims=True) + eps)).astype(x.dtype)


class ScaledNorm(nn.Module):
    """Root-mean-square norm with a learned scale."""

    @nn.compact
    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        return rms_norm(x) * self.param("scale", nn.initializers.ones, x.shape[-1:]).astype(x.dtype)


class AffineNorm(nn.Module):
    """LayerNorm with a learned scale and bias, in float32."""

    eps: float

    @nn.compact
    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        return (layer_norm(x.astype(jnp.float32), self.eps) * scale + bias).astype(x.dtype)


def frequencies(count: int, period: float = 10_000.0) -> np.ndarray:
    """`count` geometrically spaced angular frequencies (f,), from 1 down towards 1/period, in double precision."""
    return period ** -(np.arange(count) / count)


def angles(x: Float[Array, "*b"], frequencies: np.ndarray) -> Float[Array, "*b f"]:
    """`x * frequencies` modulo whole turns, to 1e-6 for |x| up to 4096, as if computed in double precision.

    In float32 the product of 1000 and a frequency would be off by 6e-5. Here whole numbers meet the frequencies' first
    12 bits, which is exact, and only small products are rounded.
    """
    turns = frequencies / (2 * np.pi)
    high = np.floor(turns * 2**12) / 2**12
    x = x[..., None].astype(jnp.float32)
    whole = jnp.floor(x)
    low, all_bits = (turns - high).astype(np.float32), turns.astype(np.float32)
    return 2 * np.pi * (jnp.mod(whole * high.astype(np.float32), 1.0) + whole * low + (x - whole) * all_bits)


def sinusoid(x: Float[Array, "*b"], width: int, period: float = 10_000.0) -> Float[Array, "*b d"]:
    """Cosine, then sine, of `x` at `width // 2` frequencies from 1 to 1/period."""
    phase = angles(x, frequencies(width // 2, period))
    return jnp.concatenate([jnp.cos(phase), jnp.sin(phase)], axis=-1)


def stacked(module: nn.Module, block: nn.Module, layers: int, *inputs: Any) -> Any:
    """Parameters "blocks" of `module`: those of `layers` equal blocks, on a leading layer axis to scan over.

    Args:
        module: whose parameter they become.
        block: one of them, built with `parent=None`.
        inputs: what a block is called with.
    """

    def init(key: Array) -> Any:
        return jax.vmap(lambda one: block.init(one, *inputs)["params"])(jax.random.split(key, layers))

    # What exists is taken as it is: initialising is traced once only, and blocks need not be called with all inputs.
    if module.has_variable("params", "blocks"):
        return module.get_variable("params", "blocks")
    return module.param("blocks", init)


class TimeEmbedding(nn.Module):
    """Noise times to modulation rows, computed once per distinct time (never per token).

    The layout is that of DiT with one projection shared by all blocks, as in Wan: a sinusoid of 1000·sigma, a two
    layer MLP, and a projection to `rows` vectors of the model's width.

    Attributes:
        width: model width d.
        rows: modulation vectors per time.
        features: width of the sinusoid.
    """

    width: int
    rows: int = 6
    features: int = 128

    @nn.compact
    def __call__(self, sigma: Float[Array, "b m"]) -> Float[Array, "b m rd"]:
        x = sinusoid(1000.0 * sigma, self.features)
        x = Linear(self.width, name="hidden")(x)
        x = Linear(self.width, name="out")(jax.nn.silu(x))
        return Linear(self.rows * self.width, kernel_init=nn.initializers.zeros, name="rows")(jax.nn.silu(x))
