"""Attention. `attention` is the only door; what stands behind it is chosen by platform, never by a flag in a block."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from wamjax.nn.tokens import TokenIds, TokenPlan, visible


def attention(
    q: Float[Array, "b q k h"],
    k: Float[Array, "b n k h"],
    v: Float[Array, "b n k h"],
    plan: TokenPlan,
    ids: TokenIds,
) -> Float[Array, "b q k h"]:
    """Softmax attention under the plan's visibility rule.

    Keys and values cover the whole plan. Queries are its last `q` tokens; the earlier ones, if any, came out of a
    cache. Rows that see nothing (absent tokens) return zeros. Scores and softmax are float32 whatever the inputs.

    Raises:
        ValueError: keys that do not cover the plan, or ids of another length.
    """
    if k.shape[1] != plan.length or ids.time.shape[1] != plan.length:
        raise ValueError(f"the plan has {plan.length} tokens but keys have {k.shape[1]} and ids {ids.time.shape[1]}")
    if plan.full and ids.segment is None:
        return attend_to_all(q, k, v)
    mask = visible(plan, ids, q.shape[1])[:, None]
    scores = jnp.einsum("bqkh,bnkh->bkqn", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    weights = jnp.where(mask, jax.nn.softmax(scores, axis=-1), 0.0)
    return jnp.einsum("bkqn,bnkh->bqkh", weights.astype(v.dtype), v)


def attend_to_all(
    q: Float[Array, "b q k h"], k: Float[Array, "b n k h"], v: Float[Array, "b n k h"], pairs: int = 2**23
) -> Float[Array, "b q k h"]:
    """Softmax attention of every query to every key, without a mask: to a prompt, say, or within a whole clip.

    Queries go in blocks of so many that a head's scores are at most `pairs`, forwards and backwards: a long clip costs
    time, not memory.
    """
    queries, block = q.shape[1], max(1, pairs // k.shape[1])
    if queries <= block:
        return jax.nn.dot_product_attention(q, k, v)
    count = -(-queries // block)
    padded = jnp.pad(q, ((0, 0), (0, count * block - queries), (0, 0), (0, 0)))
    blocks = jnp.moveaxis(padded.reshape(q.shape[0], count, block, *q.shape[2:]), 1, 0)
    attended = jax.lax.map(jax.checkpoint(lambda part: jax.nn.dot_product_attention(part, k, v)), blocks)
    return jnp.moveaxis(attended, 0, 1).reshape(padded.shape)[:, :queries]
