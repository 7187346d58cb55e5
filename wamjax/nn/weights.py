"""What may stand where a kernel stands: an array, or an array with a low-rank change.

`product` is how `Linear` applies whatever it finds. Other kinds of weights register themselves, as the quantised ones
of `wamjax.interop.quantise` do. A kind's first array must have the kernel's shape (flax compares it), and all its
arrays must keep leading axes, so that a scan over stacked layers cuts them like any other parameter.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

Kernel = Any
"""An array (*l, d_in, d_out), or what is registered with `product` and `dense`."""


@struct.dataclass
class LowRank:
    """`base + scale * a @ b`, which is never written out (LoRA, arXiv 2106.09685).

    Attributes:
        base: the kernel (*l, d_in, d_out) that is changed; itself of any kind.
        a, b: the two factors.
        scale: of the change.
    """

    base: Kernel
    a: Float[Array, "*l d_in r"]
    b: Float[Array, "*l r d_out"]
    scale: float = struct.field(pytree_node=False)


@functools.singledispatch
def product(kernel: Kernel, x: Float[Array, "*b d_in"]) -> Float[Array, "*b d_out"]:
    """`x @ kernel` in the numbers of `x`, for a kernel of one layer."""
    return x @ kernel.astype(x.dtype)


@product.register
def _(kernel: LowRank, x: Array) -> Array:
    change = (x @ kernel.a.astype(x.dtype)) @ kernel.b.astype(x.dtype)
    return product(kernel.base, x) + kernel.scale * change


@functools.singledispatch
def dense(kernel: Kernel) -> Float[Array, "*l d_in d_out"]:
    """The kernel as one array."""
    return kernel


@dense.register
def _(kernel: LowRank) -> Array:
    if kernel.a.ndim > 2:
        return jax.lax.map(dense, kernel)  # layer by layer: a stack in float32 may be more than memory holds
    base = jnp.asarray(dense(kernel.base))
    change = kernel.scale * jnp.matmul(kernel.a, kernel.b, precision="highest")
    return (base + change).astype(base.dtype)
