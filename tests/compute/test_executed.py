"""What runs beyond the mathematics: recomputation, and pairs that nobody sees."""

import dataclasses

import pytest

from tests.compute.test_flops import network, plan
from wamjax.compute.executed import executed
from wamjax.compute.flops import forward
from wamjax.networks.stream_transformer import StreamTransformer
from wamjax.policies.contract import Pass


def test_recomputation_is_a_fourth_pass_and_pairs_are_those_computed():
    model, masked = network(2), plan(False)
    stack = dataclasses.replace(model.stack, remat=("block_in",))
    recomputing = StreamTransformer(model.streams, stack)
    once = forward(model, masked, 160)
    for each, times in ((model, 3), (recomputing, 4)):
        trained = executed([Pass(each, masked, 160, trained=True)])
        assert trained.total == pytest.approx(times * once.total)
        assert trained.executed == pytest.approx(times * once.executed)  # here attention computes every pair
    padded = executed([Pass(model, masked, 160)], pairs=lambda plan: 2 * plan.pairs())
    assert padded.executed == pytest.approx(once.matmul + 2 * once.attention)
    cached = executed([Pass(model, masked, 64, repeats=3)])
    assert cached.executed == pytest.approx(3 * forward(model, masked, 64).total)
