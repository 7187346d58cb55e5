"""The attention door against NumPy in double precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wamjax.nn.attention import attend_by_spans, attend_to_all, attention
from wamjax.nn.tokens import Group, TokenIds, TokenPlan


def reference(q, k, v, mask):
    scores = np.einsum("bqkh,bnkh->bkqn", q, k) / np.sqrt(q.shape[-1])
    weights = np.where(mask[:, None], np.exp(scores - scores.max(-1, keepdims=True)), 0)
    total = weights.sum(-1, keepdims=True)
    return np.einsum("bkqn,bnkh->bqkh", np.divide(weights, total, where=total > 0, out=np.zeros_like(weights)), v)


@pytest.mark.parametrize(("batch", "heads", "size", "queries"), [(1, 1, 3, 9), (3, 2, 5, 9), (2, 4, 8, 4)])
def test_equals_double_precision(batch, heads, size, queries):
    random = np.random.default_rng(batch)
    plan = TokenPlan.from_rule([Group("a", 3, causal=True), Group("b", 6)], lambda q, k: q.stream >= k.stream)
    q, k, v = (random.standard_normal((batch, 9, heads, size)) for _ in range(3))
    segment = random.integers(-1, 2, (batch, 9))
    ids = TokenIds(jnp.asarray(segment), jnp.zeros((batch, 9), int))
    mask = plan.mask[None] & (segment[:, :, None] == segment[:, None]) & (segment[:, :, None] >= 0)
    expected = reference(q, k, v, mask)[:, 9 - queries :]
    arrays = (jnp.asarray(x, jnp.float32) for x in (q[:, 9 - queries :], k, v))
    np.testing.assert_allclose(attention(*arrays, plan, ids), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("queries", [13, 9, 4])
@pytest.mark.parametrize("absent", [False, True])
def test_spans_equal_double_precision(queries, absent):
    random = np.random.default_rng(queries)
    groups = [Group("clean", 4), Group("noisy", 3), Group("noisy", 2), Group("action", 3), Group("state", 1)]
    plan = TokenPlan.from_rule(groups, lambda q, k: q.stream == k.stream or {q.stream, k.stream} == {"noisy", "clean"})
    q, k, v = (random.standard_normal((2, 13, 2, 4)) for _ in range(3))
    segment = random.integers(-1, 2, (2, 13)) if absent else np.zeros((2, 13), int)
    ids = TokenIds(jnp.asarray(segment) if absent else None, jnp.zeros((2, 13), int))
    mask = plan.mask[None] & (segment[:, :, None] == segment[:, None]) & (segment[:, :, None] >= 0)
    expected = reference(q, k, v, mask)[:, 13 - queries :]
    arrays = (jnp.asarray(x, jnp.float32) for x in (q[:, 13 - queries :], k, v))
    np.testing.assert_allclose(attend_by_spans(*arrays, plan, ids.segment), expected, rtol=1e-5, atol=1e-5)


def test_long_plans_compute_the_visible_pairs_only():
    groups = [Group("clean", 256, block=i) for i in range(4)]
    plan = TokenPlan.from_rule(groups, lambda q, k: k.block == q.block)
    x = jax.ShapeDtypeStruct((1, 1024, 1, 8), jnp.float32)

    def flops(run) -> float:
        ids = TokenIds.of(plan, 1, {"clean": 0})
        return jax.jit(lambda q, k, v: run(q, k, v, plan, ids)).lower(x, x, x).compile().cost_analysis()["flops"]

    every = jax.jit(attend_to_all).lower(x, x, x).compile().cost_analysis()["flops"]
    assert flops(attention) < 0.4 * every


def test_causal_groups_have_no_spans():
    plan = TokenPlan.from_rule([Group("a", 3, causal=True)], lambda q, k: True)
    with pytest.raises(ValueError, match="causal"):
        list(plan.spans(3))


def test_keys_must_cover_the_plan():
    plan = TokenPlan.from_rule([Group("a", 4)], lambda q, k: True)
    x = jnp.zeros((1, 3, 1, 2))
    with pytest.raises(ValueError, match="4 tokens but keys have 3"):
        attention(x, x, x, plan, TokenIds.of(plan, 1, {"a": 0}))


@pytest.mark.parametrize("pairs", [1, 40, 77, 2**20])
def test_queries_in_blocks_give_the_same_as_at_once(pairs):
    q, k, v = (jax.random.normal(jax.random.key(i), (2, n, 3, 4)) for i, n in enumerate((7, 11, 11)))

    def run(q, k, v, pairs):
        return jnp.sum(jnp.sin(attend_to_all(q, k, v, pairs=pairs)))

    plan = TokenPlan.from_rule([Group("a", 11)], lambda q, k: True)
    masked = attention(q, k, v, plan, TokenIds.of(plan, 2, {"a": 0}))
    np.testing.assert_allclose(attend_to_all(q, k, v, pairs=pairs), masked, rtol=0, atol=1e-6)
    whole, blocks = (jax.grad(run, (0, 1, 2))(q, k, v, p) for p in (2**20, pairs))
    for a, b in zip(whole, blocks, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


def test_memory_does_not_grow_with_the_square_of_the_length():
    def temporary(n: int) -> int:
        x = jax.ShapeDtypeStruct((1, n, 1, 8), jnp.float32)
        run = jax.jit(lambda q, k, v: attend_to_all(q, k, v, pairs=2**16))
        return run.lower(x, x, x).compile().memory_analysis().temp_size_in_bytes

    assert temporary(4096) < 2.5 * temporary(2048)
    assert temporary(4096) < 4096**2
