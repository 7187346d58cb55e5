"""Kernels in 8 bits, with a scale per output column (and layer), made by qwix.

Weights only: tokens stay in the numbers they are in. Because a scale belongs to a column, a product with the small
numbers is scaled afterwards, and no kernel is ever written out in full precision: what is converted is one layer's at
a time, inside the product. Works under a scan over layers, and below adapters (`wamjax.training.lora`).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from wamjax.errors import UserError
from wamjax.interop.keymap import flatten, nest
from wamjax.nn.weights import dense, product

try:
    import qwix
except ImportError as missing:
    raise UserError("quantised weights need qwix: run pip install 'wamjax[quant]'") from missing

KINDS = {"int8": jnp.int8, "fp8": jnp.float8_e4m3fn}
"""The kinds of numbers by name."""

BLOCKS = (r"blocks/.*/kernel",)
"""Patterns of the kernels of all stacked blocks, nearly all weights of a transformer."""


def quantise(params: Mapping[str, Any], kind: str, patterns: tuple[str, ...] = BLOCKS) -> dict[str, Any]:
    """Parameters whose kernels of `Linear` are quantised where a pattern matches; others are as they were.

    Args:
        params: nested parameters.
        kind: a name of `KINDS`.
        patterns: regular expressions for the ends of paths, from the start of a name.

    Raises:
        UserError: an unknown kind, or a pattern that matches nothing.
    """
    if kind not in KINDS:
        raise UserError(f"unknown kind of numbers '{kind}': use one of {', '.join(KINDS)}")
    leaves = flatten(params)
    chosen: set[str] = set()
    for pattern in patterns:
        found = {path for path in leaves if re.search(f"(^|/)({pattern})$", path)}
        if not found:
            raise UserError(f"no parameter matches '{pattern}', for instance {next(iter(leaves), None)}")
        chosen |= found
    return nest({path: _quantised(leaf, kind) if path in chosen else leaf for path, leaf in leaves.items()})


def report(params: Mapping[str, Any], quantised: Mapping[str, Any]) -> dict[str, float]:
    """By path of every quantised kernel: the norm of what changed over that of the kernel, all layers together."""
    leaves = flatten(params)
    pairs = {path: leaf for path, leaf in flatten(quantised).items() if isinstance(leaf, qwix.QArray)}
    return {path: float(_relative_error(leaves[path], leaf)) for path, leaf in pairs.items()}


@functools.partial(jax.jit, static_argnames="kind")
def _quantised(kernel: Array, kind: str) -> qwix.QArray:
    columns = [axis for axis in range(kernel.ndim) if axis != kernel.ndim - 2]
    return qwix.quantize(kernel.astype(jnp.float32), KINDS[kind], channelwise_axes=columns)


@jax.jit
def _relative_error(kernel: Array, quantised: qwix.QArray) -> Array:
    full = kernel.astype(jnp.float32)
    return jnp.linalg.norm(dense(quantised) - full) / jnp.linalg.norm(full)


@product.register
def _(kernel: qwix.QArray, x: Array) -> Array:
    return ((x @ kernel.qvalue.astype(x.dtype)) * kernel.scale[0]).astype(x.dtype)


@dense.register
def _(kernel: qwix.QArray) -> Array:
    return qwix.dequantize(kernel)
