"""Training with products in 8 bits: of tokens and weights, and of gradients with either (qwix's quantised training).

Weights, gradients and the optimizer's state stay what they are. For every product tokens are rounded with a scale per
token, weights with one per output column, gradients with one per token on the way to the tokens and per column on the
way to the weights; so chips that multiply 8-bit numbers faster do so in all three products of a step. Rounding is to
the nearest: what it costs is measured in docs/scale.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from wamjax.errors import UserError
from wamjax.nn.weights import Kernel, LowRank, dense, product
from wamjax.policies.contract import Draws, Encoded, Params
from wamjax.training.around import Around
from wamjax.training.paths import leaves, matches, nest
from wamjax.training.step import Learner

KINDS: Mapping[str, tuple[Any, Any]] = {
    "int8": (jnp.int8, jnp.int8),
    "fp8": (jnp.float8_e4m3fn, jnp.float8_e5m2),
}
"""Numbers of tokens and weights, and of gradients, by name."""

BLOCKS = (r"blocks/.*/kernel",)
"""Patterns of the kernels of all stacked blocks, where nearly all products are."""


@struct.dataclass
class Rounded:
    """A kernel whose products are made in 8 bits.

    Attributes:
        kernel: as it is. kind: a name of `KINDS`.
    """

    kernel: Float[Array, "*l d_in d_out"]
    kind: str = struct.field(pytree_node=False)


@dataclasses.dataclass(frozen=True)
class InEightBits(Around):
    """A policy whose blocks multiply in 8 bits while it is trained.

    Attributes:
        kind: a name of `KINDS`.
    """

    kind: str

    def loss(self, params: Params, frozen: Params, encoded: Encoded, draws: Draws) -> dict[str, tuple[Array, Array]]:
        """The policy's, of rounded kernels."""
        return self.policy.loss(rounded(params, self.kind), frozen, encoded, draws)


def in_eight_bits(policy: Learner, kind: str) -> Learner:
    """A policy as it is to be trained; "" leaves it alone.

    Raises:
        UserError: an unknown kind, or qwix is missing.
    """
    if not kind:
        return policy
    if kind not in KINDS:
        raise UserError(f"unknown train.products '{kind}': use one of {', '.join(KINDS)}, or '' for the policy's own")
    _qwix()
    return InEightBits(policy, kind)


def rounded(params: Params, kind: str, patterns: tuple[str, ...] = BLOCKS) -> Params:
    """Parameters whose kernels are `Rounded` where a pattern describes the end of a path; those below adapters too."""

    def one(leaf: Kernel) -> Kernel:
        return dataclasses.replace(leaf, base=one(leaf.base)) if isinstance(leaf, LowRank) else Rounded(leaf, kind)

    return nest({path: one(leaf) if matches(path, patterns) else leaf for path, leaf in leaves(params).items()})


@product.register
def _(kernel: Rounded, x: Array) -> Array:
    qwix, (numbers, gradients) = _qwix(), KINDS[kernel.kind]
    config = qwix.DotGeneralQtConfig(
        lhs_qtype=numbers, rhs_qtype=numbers, dlhs_grad_qtype=gradients, drhs_grad_qtype=gradients
    )
    contracted = (((x.ndim - 1,), (0,)), ((), ()))
    out: Array = qwix.dot_general_qt(x, kernel.kernel.astype(x.dtype), contracted, config)
    return out.astype(x.dtype)


@dense.register
def _(kernel: Rounded) -> Array:
    return kernel.kernel


def _qwix() -> Any:
    """The part of qwix that does it: not among its public names, which expect models that it can take apart."""
    try:
        from qwix._src.core import dot_general_qt
    except ImportError as missing:
        raise UserError("products in 8 bits need qwix 0.1: run pip install 'wamjax[quant]'") from missing
    return dot_general_qt
