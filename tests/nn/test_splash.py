"""The TPU's attention kernel, interpreted, against the reference; and what it computes of a full-size plan."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wamjax.networks.wan.dit import WanDiTConfig
from wamjax.nn.attention import attend_reference, attend_to_all, attention
from wamjax.nn.splash import executed_pairs, layout, splash, splash_to_all
from wamjax.nn.tokens import Group, TokenIds, TokenPlan
from wamjax.policies.dreamzero.network import NetworkConfig, training_plan

TEACHER = training_plan(130, 2, NetworkConfig(WanDiTConfig(32, 64, 4, 1), block_actions=3))
CAUSAL = TokenPlan.from_rule([Group("text", 150), Group("video", 260, causal=True)], lambda q, k: k.stream <= q.stream)
FULL = TokenPlan.from_rule([Group("video", 300)], lambda q, k: True)


@pytest.mark.parametrize("absent", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize("plan", [TEACHER, CAUSAL, FULL], ids=["teacher", "causal", "full"])
def test_the_kernel_equals_the_reference_with_gradients(plan, absent):
    random = np.random.default_rng(0)
    q, k, v = (jnp.asarray(random.standard_normal((2, plan.length, 2, 128)), jnp.float32) for _ in range(3))
    segment = None
    if absent:
        segment = jnp.zeros((2, plan.length), int).at[1, 140:160].set(-1)

    def slopes(run):
        def loss(q, k, v):
            out = run(q, k, v)
            return jnp.sum(jnp.sin(out)), out

        return jax.grad(loss, (0, 1, 2), has_aux=True)(q, k, v)

    found = slopes(lambda q, k, v: splash(q, k, v, plan, segment, interpret=True))
    expected = slopes(lambda q, k, v: attend_reference(q, k, v, plan, segment))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-5)


def test_every_query_to_every_key_of_another_length():
    random = np.random.default_rng(0)
    q, k = (jnp.asarray(random.standard_normal((2, n, 2, 128)), jnp.float32) for n in (200, 57))
    np.testing.assert_allclose(splash_to_all(q, k, k, interpret=True), attend_to_all(q, k, k), rtol=0, atol=2e-6)


def test_pairs_computed_follow_the_rule_at_full_size():
    """DreamZero-14B's training sequence: a dense mask would cost 3.3 times the visible pairs."""
    plan = training_plan(880, 4, NetworkConfig(WanDiTConfig(5120, 13_824, 40, 1)))
    assert plan.length == 15_940
    assert (layout(plan).block, layout(plan).length) == (896, 16_128)
    assert 76_576_484 < executed_pairs(plan) < 1.03 * 76_576_484
    assert plan.length**2 > 3.3 * 76_576_484


def test_the_kernel_lowers_for_tpus_without_one(monkeypatch):
    """What a program for TPUs takes by itself, kernel included."""
    monkeypatch.setattr("wamjax.nn.attention.platform", lambda: "tpu")
    x = jax.ShapeDtypeStruct((1, 600, 2, 128), jnp.bfloat16)
    plan = TokenPlan.from_rule([Group("video", 600)], lambda q, k: True)
    ids = TokenIds(None, jnp.zeros((1, 600), int))
    traced = jax.jit(lambda q: attention(q, q, q, plan, ids)).trace(x)
    assert "tpu_custom_call" in traced.lower(lowering_platforms=("tpu",)).as_text()
