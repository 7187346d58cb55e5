"""Attention. `attention` is the only door; what stands behind it is chosen by platform, never by a flag in a block."""

from __future__ import annotations

import importlib
from types import ModuleType

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from wamjax.nn.context import spread, spread_to_all
from wamjax.nn.shard import current_mesh, platform
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
    if q.shape[1] == plan.length and current_mesh() is not None:
        return spread(attend, q, k, v, plan, ids.segment)
    return attend(q, k, v, plan, ids.segment)


def attention_to_all(
    q: Float[Array, "b q k h"], k: Float[Array, "b n k h"], v: Float[Array, "b n k h"]
) -> Float[Array, "b q k h"]:
    """Softmax attention of every query to every key of another sequence: to a prompt, say."""
    run = _kernels().splash_to_all if _has_kernel(q) else attend_to_all
    return run(q, k, v) if current_mesh() is None else spread_to_all(run, q, k, v)


def attend(
    q: Float[Array, "b q k h"],
    k: Float[Array, "b n k h"],
    v: Float[Array, "b n k h"],
    plan: TokenPlan,
    segment: Int[Array, "b n"] | None,
) -> Float[Array, "b q k h"]:
    """`attention` of a sequence that one device holds; its result is a point that rematerialisation may keep."""
    if q.shape[1] == plan.length >= LONG and _has_kernel(q):
        return _kernels().splash(q, k, v, plan, segment, point="attended")
    return checkpoint_name(attend_reference(q, k, v, plan, segment), "attended")


def _has_kernel(q: Array) -> bool:
    """Whether there is a kernel for such heads where the program will run."""
    return platform() == "tpu" and q.shape[-1] % 128 == 0


def _kernels() -> ModuleType:
    """The TPU's kernels; imported where they run only, since JAX keeps them among its experiments."""
    return importlib.import_module("wamjax.nn.splash")


def attend_reference(
    q: Float[Array, "b q k h"],
    k: Float[Array, "b n k h"],
    v: Float[Array, "b n k h"],
    plan: TokenPlan,
    segment: Int[Array, "b n"] | None,
) -> Float[Array, "b q k h"]:
    """`attend` without a kernel."""
    if plan.full and segment is None:
        return attend_to_all(q, k, v)
    if plan.length >= LONG and not plan.causal:
        return attend_by_spans(q, k, v, plan, segment)
    mask = visible(plan, segment, q.shape[1])[:, None]
    scores = jnp.einsum("bqkh,bnkh->bkqn", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    weights = jnp.where(mask, jax.nn.softmax(scores, axis=-1), 0.0)
    return jnp.einsum("bkqn,bnkh->bqkh", weights.astype(v.dtype), v)


LONG = 512
"""Tokens of a sequence from which it pays to compute the visible pairs only."""


def attend_by_spans(
    q: Float[Array, "b q k h"],
    k: Float[Array, "b n k h"],
    v: Float[Array, "b n k h"],
    plan: TokenPlan,
    segment: Int[Array, "b n"] | None,
) -> Float[Array, "b q k h"]:
    """A few dense attentions, one per run of queries that see the same keys: only visible pairs are computed."""
    first, attended = plan.length - q.shape[1], []
    for span, runs in plan.spans(q.shape[1]):
        asked = q[:, span.start - first : span.stop - first]
        if not runs:
            attended.append(jnp.zeros_like(asked))
            continue
        keys, values = (_pick(x, runs) for x in (k, v))
        mask = None
        if segment is not None:
            asking = segment[:, span]
            mask = (asking[:, :, None] == _pick(segment, runs)[:, None, :]) & (asking >= 0)[:, :, None]
        attended.append(attend_to_all(asked, keys, values, mask))
    return jnp.concatenate(attended, axis=1)


def attend_to_all(
    q: Float[Array, "b q k h"],
    k: Float[Array, "b n k h"],
    v: Float[Array, "b n k h"],
    mask: Bool[Array, "b q n"] | None = None,
    pairs: int = 2**23,
) -> Float[Array, "b q k h"]:
    """Softmax attention of every query to every key, or to those of `mask`.

    Queries go in blocks of so many that a head's scores are at most `pairs`, forwards and backwards: a long clip costs
    time, not memory. Queries that see nothing return zeros.
    """
    queries, block = q.shape[1], max(1, pairs // k.shape[1])
    if queries <= block:
        return _attend(q, k, v, mask)
    count = -(-queries // block)

    def cut(x: Array) -> Array:
        padded = jnp.pad(x, ((0, 0), (0, count * block - queries)) + ((0, 0),) * (x.ndim - 2))
        return jnp.moveaxis(padded.reshape(x.shape[0], count, block, *x.shape[2:]), 1, 0)

    parts = (cut(q), None if mask is None else cut(mask))
    attended = jax.lax.map(jax.checkpoint(lambda part: _attend(part[0], k, v, part[1])), parts)
    return jnp.moveaxis(attended, 0, 1).reshape(q.shape[0], -1, *q.shape[2:])[:, :queries]


def _attend(q: Array, k: Array, v: Array, mask: Array | None) -> Array:
    if mask is None:
        return jax.nn.dot_product_attention(q, k, v)
    attended = jax.nn.dot_product_attention(q, k, v, mask=mask[:, None])
    return attended * mask.any(-1)[:, :, None, None].astype(attended.dtype)


def _pick(x: Array, runs: tuple[slice, ...]) -> Array:
    """Some runs of tokens (b, n, ...), one behind the other."""
    return x[:, runs[0]] if len(runs) == 1 else jnp.concatenate([x[:, run] for run in runs], axis=1)
