"""Linear maps, norms and embeddings."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Initializer = jax.nn.initializers.Initializer


class Linear(nn.Module):
    """`x @ kernel + bias`: the one door for weights applied to a token.

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
        x = x @ kernel.astype(x.dtype)
        if not self.bias:
            return x
        return x + self.param("bias", nn.initializers.zeros, (self.features,)).astype(x.dtype)


def rms_norm(x: Float[Array, "*b d"], eps: float = 1e-6) -> Float[Array, "*b d"]:
    """Divides by the root mean square over the last axis, in float32 (no learned scale)."""
    full = x.astype(jnp.float32)
    return (full * jax.lax.rsqrt(jnp.mean(full**2, axis=-1, keepdims=True) + eps)).astype(x.dtype)


def sinusoid(x: Float[Array, "*b"], width: int, period: float = 10_000.0) -> Float[Array, "*b d"]:
    """Sine and cosine of `x` at `width // 2` geometrically spaced frequencies from 1 to 1/period."""
    frequencies = period ** -(np.arange(width // 2) / (width // 2))
    angles = x[..., None].astype(jnp.float32) * jnp.asarray(frequencies, jnp.float32)
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


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
