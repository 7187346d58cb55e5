"""Attention of a sequence that is spread over devices.

Tokens lie over two axes of the mesh. Over `context`, heads take the place of tokens while they attend (Ulysses,
arXiv 2309.14509): two exchanges, and every device sees the whole sequence for some of the heads. Over `ring`, queries
stay, and keys and values travel from device to device (ring attention, arXiv 2310.01889): any number of heads, and no
device ever holds all keys. With both, heads are exchanged inside the parts of the ring.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from wamjax.errors import UserError
from wamjax.nn.shard import current_mesh, spec, ways
from wamjax.nn.tokens import TokenPlan

Attend = Callable[[Array, Array, Array, TokenPlan, Array | None], Array]
"""(q, k, v, plan, segment) -> attended, for a sequence that one device holds."""


def spread(
    attend: Attend,
    q: Float[Array, "b n k h"],
    k: Float[Array, "b n k h"],
    v: Float[Array, "b n k h"],
    plan: TokenPlan,
    segment: Int[Array, "b n"] | None,
) -> Float[Array, "b n k h"]:
    """Attention within a sequence that is spread over the mesh; `attend` does what is left for one device.

    Raises:
        UserError: heads that the mesh does not divide.
    """
    context, ring = _size("context"), _size("ring")
    if q.shape[2] % (context * ways("k")):
        raise UserError(
            f"{q.shape[2]} heads are not a multiple of mesh.context x mesh.tensor = {context * ways('k')}: "
            "make these smaller, and mesh.ring larger for long sequences"
        )
    tokens = plan.length
    plan = plan.padded(-tokens % ways("n"))
    q, k, v = (jnp.pad(x, ((0, 0), (0, plan.length - tokens), (0, 0), (0, 0))) for x in (q, k, v))
    if segment is not None:
        segment = jnp.pad(segment, ((0, 0), (0, plan.length - tokens)), constant_values=-1)

    def body(q: Array, k: Array, v: Array, segment: Array | None) -> Array:
        q, k, v = (_exchange(x, 2, 1, context) for x in (q, k, v))
        run = attend if ring == 1 else functools.partial(_around, ring)
        return _exchange(run(q, k, v, plan, segment), 1, 2, context)

    tokens_and_heads = spec("b n k h")
    inputs = (tokens_and_heads,) * 3 + (spec("b -") if segment is not None else None,)
    # Replication is not tracked through kernels, hence not checked.
    spreading = jax.shard_map(body, in_specs=inputs, out_specs=tokens_and_heads, check_vma=False)
    return spreading(q, k, v, segment)[:, :tokens]


def spread_to_all(
    attend: Callable[[Array, Array, Array], Array],
    q: Float[Array, "b n k h"],
    k: Float[Array, "b l k h"],
    v: Float[Array, "b l k h"],
) -> Float[Array, "b n k h"]:
    """Attention of a sequence that is spread over the mesh to a context that every device has."""
    inputs = (spec("b n k h"), spec("b - k h"), spec("b - k h"))
    padding = -q.shape[1] % ways("n")
    padded = jnp.pad(q, ((0, 0), (0, padding), (0, 0), (0, 0)))
    spreading = jax.shard_map(attend, in_specs=inputs, out_specs=inputs[0], check_vma=False)
    return spreading(padded, k, v)[:, : q.shape[1]]


def _size(axis: str) -> int:
    mesh = current_mesh()
    return 1 if mesh is None else int(mesh.shape.get(axis, 1))


def _exchange(x: Array, split: int, join: int, context: int) -> Array:
    """Cuts one axis into shares for the devices of `context`, and puts what comes back together along another."""
    return x if context == 1 else jax.lax.all_to_all(x, "context", split, join, tiled=True)


def _around(parts: int, q: Array, k: Array, v: Array, plan: TokenPlan, segment: Array | None) -> Array:
    """Attention of this device's part of the sequence while all parts' keys and values pass by."""
    size = plan.length // parts
    own = jax.lax.axis_index("ring")
    meets = jnp.asarray(_meeting(plan, parts))

    def see(so_far: _Seen, source: Array, k: Array, v: Array) -> _Seen:
        """Adds what queries see of the part that `source` had at first."""
        visible = functools.partial(_visible, plan, segment, own * size, source * size, size)
        return jax.lax.cond(meets[own, source], lambda: _add(so_far, q, k, v, visible), lambda: so_far)

    @jax.checkpoint
    def pass_by(carry: tuple[_Seen, Array, Array], step: Array) -> tuple[tuple[_Seen, Array, Array], None]:
        so_far, k, v = carry
        so_far = see(so_far, (own - step) % parts, k, v)
        k, v = (jax.lax.ppermute(x, "ring", [(i, (i + 1) % parts) for i in range(parts)]) for x in (k, v))
        return (so_far, k, v), None

    b, n, heads, _ = q.shape
    nothing = (jnp.zeros(q.shape, jnp.float32), jnp.full((b, n, heads), _LOW), jnp.zeros((b, n, heads)))
    ((total, _, weight), _, _), _ = jax.lax.scan(pass_by, (nothing, k, v), jnp.arange(parts))
    return checkpoint_name((total / jnp.where(weight == 0, 1.0, weight)[..., None]).astype(v.dtype), "attended")


_LOW = float(np.finfo(np.float32).min)

_Seen = tuple[Float[Array, "b n k h"], Float[Array, "b n k"], Float[Array, "b n k"]]
"""Weighted sum of values, largest score, and sum of weights relative to it."""


def _add(
    so_far: _Seen, q: Array, k: Array, v: Array, visible: Callable[[Array, int], Array], pairs: int = 2**23
) -> _Seen:
    """One step of the running softmax, block by block of queries, so that scores stay small."""
    n = q.shape[1]
    block = max(
        divisor for divisor in range(1, n + 1) if n % divisor == 0 and (divisor * k.shape[1] <= pairs or divisor == 1)
    )

    def one(first: Array, q: Array, total: Array, top: Array, weight: Array) -> _Seen:
        mask = visible(first, block)[:, None]
        scores = jnp.einsum("bqkh,bnkh->bkqn", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
        scores = jnp.where(mask, scores, _LOW)
        new_top = jnp.maximum(top, jnp.moveaxis(scores.max(-1), 1, 2))
        weights = jnp.where(mask, jnp.exp(scores - jnp.moveaxis(new_top, 1, 2)[..., None]), 0.0)
        rescale = jnp.exp(top - new_top)
        values = jnp.einsum("bkqn,bnkh->bqkh", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
        return total * rescale[..., None] + values, new_top, weight * rescale + jnp.moveaxis(weights.sum(-1), 1, 2)

    if block == n:
        return one(jnp.zeros((), int), q, *so_far)

    def cut(x: Array) -> Array:
        return jnp.moveaxis(x.reshape(x.shape[0], n // block, block, *x.shape[2:]), 1, 0)

    parts = jax.lax.map(jax.checkpoint(lambda part: one(*part)), (jnp.arange(0, n, block), cut(q), *map(cut, so_far)))
    total, top, weight = (jnp.moveaxis(x, 0, 1).reshape(x.shape[1], n, *x.shape[3:]) for x in parts)
    return total, top, weight


def _visible(
    plan: TokenPlan, segment: Array | None, query: Array, key: Array, keys: int, first: Array, queries: int
) -> Bool[Array, "#b q n"]:
    """Who sees whom among `queries` tokens from `query + first` on and `keys` tokens from `key` on."""
    owner, relation = jnp.asarray(plan.owner), jnp.asarray(plan.visible)
    asking = jax.lax.dynamic_slice_in_dim(owner, query + first, queries)
    asked = jax.lax.dynamic_slice_in_dim(owner, key, keys)
    seen = relation[asking][:, asked]
    if plan.causal:
        causal = jnp.asarray([group.causal for group in plan.groups])[asking]
        later = key + jnp.arange(keys)[None, :] > query + first + jnp.arange(queries)[:, None]
        seen &= ~((asking[:, None] == asked[None, :]) & later & causal[:, None])
    if segment is None:
        return seen[None]
    asking = jax.lax.dynamic_slice_in_dim(segment, query + first, queries, axis=1)
    asked = jax.lax.dynamic_slice_in_dim(segment, key, keys, axis=1)
    return seen[None] & (asking[:, :, None] == asked[:, None, :]) & (asking >= 0)[:, :, None]


def _meeting(plan: TokenPlan, parts: int) -> np.ndarray:
    """Which parts of the sequence have queries that see keys of which parts (parts, parts)."""
    relation, owner = np.asarray(plan.visible), plan.owner.reshape(parts, -1)
    members = [np.unique(part) for part in owner]
    return np.array([[relation[np.ix_(asking, asked)].any() for asked in members] for asking in members])
