"""Token plans: the dense mask, the pair count and the ids say the same thing."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wamjax.nn.tokens import Group, TokenIds, TokenPlan, at_times, visible


def some_plan(seed: int) -> TokenPlan:
    random = np.random.default_rng(seed)
    groups = [Group(f"s{i}", int(random.integers(1, 5)), causal=bool(random.integers(2))) for i in range(4)]
    relation = random.integers(0, 2, (4, 4)).astype(bool)
    return TokenPlan(tuple(groups), tuple(tuple(bool(x) for x in row) for row in relation))


@pytest.mark.parametrize("seed", range(5))
def test_mask_is_relation_and_causality_token_by_token(seed):
    plan = some_plan(seed)
    tokens = [(g, i) for g, group in enumerate(plan.groups) for i in range(group.length)]
    expected = np.array(
        [
            [plan.visible[a][b] and not (a == b and plan.groups[a].causal and j > i) for b, j in tokens]
            for a, i in tokens
        ]
    )
    np.testing.assert_array_equal(plan.mask, expected)
    for queries in (1, plan.length // 2, plan.length):
        assert plan.pairs(queries) == expected[plan.length - queries :].sum()


def test_rule_and_relation_agree():
    groups = [Group("a", 2, block=0), Group("b", 3, block=1)]
    plan = TokenPlan.from_rule(groups, lambda q, k: k.block <= q.block)
    assert plan.visible == ((True, False), (True, True))
    assert plan.length == 5


def test_tokens_see_only_their_segment_and_absent_ones_see_nothing():
    plan = TokenPlan.from_rule([Group("a", 4)], lambda q, k: True)
    ids = TokenIds(segment=jnp.array([[0, 0, 1, -1]]), time=jnp.zeros((1, 4), int))
    expected = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]], bool)
    np.testing.assert_array_equal(visible(plan, ids.segment, 4)[0], expected)
    np.testing.assert_array_equal(visible(plan, ids.segment, 2)[0], expected[2:])


def test_plans_that_make_no_sense_are_refused():
    groups = (Group("a", 1, expert=1), Group("b", 1, expert=0))
    with pytest.raises(ValueError, match="experts' order"):
        TokenPlan(groups, ((True, True),) * 2)
    with pytest.raises(ValueError, match="2 by 2"):
        TokenPlan((Group("a", 1), Group("b", 1)), ((True, True),))


def test_at_times_and_its_gradient_are_those_of_indexing():
    random = np.random.default_rng(0)
    table = jnp.asarray(random.standard_normal((2, 3, 4)), jnp.float32)
    time = jnp.asarray(random.integers(0, 3, (2, 7)))
    weight = jnp.asarray(random.standard_normal((2, 7, 4)), jnp.float32)

    def plain(table):
        return jnp.stack([table[b][time[b]] for b in range(2)])

    np.testing.assert_array_equal(at_times(table, time), plain(table))
    ours = jax.grad(lambda t: jnp.sum(weight * at_times(t, time)))(table)
    theirs = jax.grad(lambda t: jnp.sum(weight * plain(t)))(table)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)


def test_ids_give_every_stream_its_time():
    plan = TokenPlan.from_rule([Group("a", 2), Group("b", 1)], lambda q, k: True)
    ids = TokenIds.of(plan, 3, {"a": 0, "b": 2})
    assert ids.time.tolist() == [[0, 0, 2]] * 3
    assert set(itertools.chain.from_iterable(ids.segment.tolist())) == {0}
