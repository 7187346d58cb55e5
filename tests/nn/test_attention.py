"""The attention door against NumPy in double precision."""

import jax.numpy as jnp
import numpy as np
import pytest

from wamjax.nn.attention import attention
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


def test_keys_must_cover_the_plan():
    plan = TokenPlan.from_rule([Group("a", 4)], lambda q, k: True)
    x = jnp.zeros((1, 3, 1, 2))
    with pytest.raises(ValueError, match="4 tokens but keys have 3"):
        attention(x, x, x, plan, TokenIds.of(plan, 1, {"a": 0}))
