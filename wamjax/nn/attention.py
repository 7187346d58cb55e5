"""Attention. `attention` is the only door; what stands behind it is chosen by platform, never by a flag in a block."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from types import ModuleType

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.extend.backend import get_backend
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
    run = _splash().splash_to_all if _kernel(q) == "tpu" else attend_to_all
    return run(q, k, v) if current_mesh() is None else spread_to_all(run, q, k, v)


def attend(
    q: Float[Array, "b q k h"],
    k: Float[Array, "b n k h"],
    v: Float[Array, "b n k h"],
    plan: TokenPlan,
    segment: Int[Array, "b n"] | None,
) -> Float[Array, "b q k h"]:
    """`attention` of a sequence that one device holds; its result is a point that rematerialisation may keep."""
    if q.shape[1] == plan.length >= LONG and _kernel(q) == "tpu":
        return _splash().splash(q, k, v, plan, segment, point="attended")
    return checkpoint_name(attend_reference(q, k, v, plan, segment), "attended")


KERNELS: Mapping[str, Callable[[Array], bool]] = {
    "tpu": lambda q: q.shape[-1] % 128 == 0,
    "gpu": lambda q: q.shape[-1] % 8 == 0 and q.shape[-1] <= 128 and q.dtype in (jnp.bfloat16, jnp.float16),
}
"""Platforms that have a kernel, and for which queries: JAX's splash on TPUs, which knows the plan's rule; cuDNN's flash
attention on GPUs of NVIDIA, which stands behind every span of `attend_by_spans`. Elsewhere XLA makes one."""


def _kernel(q: Array) -> str | None:
    """The platform whose kernel will run, if one takes such queries."""
    where = platform()
    if where == "gpu" and "cuda" not in get_backend().platform_version:
        return None
    return where if where in KERNELS and KERNELS[where](q) else None


def _splash() -> ModuleType:
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
    time, not memory. A kernel keeps no scores and needs no blocks, but for a mask. Queries that see nothing return
    zeros.
    """
    queries, block = q.shape[1], max(1, pairs // k.shape[1])
    if queries <= block or (mask is None and _kernel(q) == "gpu"):
        return _attend(q, k, v, mask)
    count = -(-queries // block)
    block = -(-queries // count)  # as equal as can be: little is padded

    def cut(x: Array) -> Array:
        padded = jnp.pad(x, ((0, 0), (0, count * block - queries)) + ((0, 0),) * (x.ndim - 2))
        return jnp.moveaxis(padded.reshape(x.shape[0], count, block, *x.shape[2:]), 1, 0)

    parts = (cut(q), None if mask is None else cut(mask))
    attended = jax.lax.map(jax.checkpoint(lambda part: _attend(part[0], k, v, part[1])), parts)
    return jnp.moveaxis(attended, 0, 1).reshape(q.shape[0], -1, *q.shape[2:])[:, :queries]


def _attend(q: Array, k: Array, v: Array, mask: Array | None) -> Array:
    run = _cudnn if _kernel(q) == "gpu" else jax.nn.dot_product_attention
    if mask is None:
        return run(q, k, v)
    attended = run(q, k, v, mask=mask[:, None])
    return attended * mask.any(-1)[:, :, None, None].astype(attended.dtype)


def _cudnn(q: Array, k: Array, v: Array, mask: Array | None = None) -> Array:
    """cuDNN's attention, which differentiates even lengths only: others get a token more that nobody sees."""
    (queries, batch), odd, lengths = (q.shape[1], q.shape[0]), k.shape[1] % 2, None
    if odd and mask is None:
        lengths = jnp.full((batch,), k.shape[1], jnp.int32)
    if mask is not None:
        mask = jnp.pad(mask, ((0, 0), (0, 0), (0, queries % 2), (0, odd)))
    q, k, v = (jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0))) for x in (q, k, v))
    attended = jax.nn.dot_product_attention(q, k, v, mask=mask, key_value_seq_lengths=lengths, implementation="cudnn")
    return attended[:, :queries]


def _pick(x: Array, runs: tuple[slice, ...]) -> Array:
    """Some runs of tokens (b, n, ...), one behind the other."""
    return x[:, runs[0]] if len(runs) == 1 else jnp.concatenate([x[:, run] for run in runs], axis=1)
