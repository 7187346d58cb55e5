"""FLOPs from plans, against the compiler's count of an unrolled one-layer program."""

import jax
import jax.numpy as jnp
import pytest

from wamjax.compute import chips
from wamjax.compute.executed import executed_flops
from wamjax.compute.flops import Flops, forward, kernel_pairs, of_passes, parameter_count
from wamjax.networks.stream_transformer import Stream, StreamTransformer
from wamjax.nn.stack import Expert, StackConfig
from wamjax.nn.tokens import Group, TokenIds, TokenPlan
from wamjax.policies.contract import Pass

STREAMS = (Stream("context", 96, 32), Stream("action", 64, 48, outputs=48))


def network(layers: int) -> StreamTransformer:
    return StreamTransformer(STREAMS, StackConfig(layers, 4, 64, (Expert(256, 768),)))


def plan(sees_all: bool) -> TokenPlan:
    groups = [stream.group() for stream in STREAMS]
    return TokenPlan.from_rule(groups, lambda q, k: sees_all or q.stream == "action" or k.stream == "context")


def test_one_layer_agrees_with_the_compiler():
    model, full = network(1), plan(True)
    inputs = {stream.name: jnp.zeros((1, stream.length, stream.channels)) for stream in STREAMS}
    ids = TokenIds.of(full, 1, {"context": 0, "action": 1})
    params = model.init(jax.random.key(0), inputs, jnp.zeros((1, 2)), ids, full)

    def run(params, inputs):
        return model.apply(params, inputs, jnp.zeros((1, 2)), ids, full)[0]

    counted = jax.jit(run).lower(params, inputs).compile().cost_analysis()["flops"]
    ours = forward(model, full, full.length).executed
    # The compiler also counts norms, softmax, activations and the time embedding: a few percent at this width.
    assert ours < counted < 1.05 * ours


def test_layers_add_up_and_masks_save_attention_only():
    one, two = (forward(network(layers), plan(True), 160) for layers in (1, 2))
    ends = 2 * (96 * 32 * 256 + 64 * 48 * 256 * 2)
    assert two.matmul - ends == 2 * (one.matmul - ends)
    assert two.attention == 2 * one.attention
    masked = forward(network(1), plan(False), 160)
    assert masked.matmul == one.matmul
    assert masked.attention == 4 * 256 * (96 * 96 + 64 * 160)
    assert masked.attention_executed == one.attention == 4 * 256 * 160 * 160


def test_cached_tokens_cost_nothing_and_passes_multiply():
    tail = forward(network(1), plan(True), 64)
    whole = forward(network(1), plan(True), 160)
    assert tail.matmul < whole.matmul
    assert tail.attention == 4 * 256 * 64 * 160
    trained = of_passes([Pass(network(1), plan(True), 160, trained=True)])
    assert trained.total == pytest.approx(3 * whole.total)
    through = of_passes([Pass(network(1), plan(True), 160, trained=True, through=True)])
    assert (through.matmul, through.attention) == pytest.approx((2 * whole.matmul, 3 * whole.attention))
    assert of_passes([Pass(network(1), plan(True), 64, repeats=6)]).total == pytest.approx(6 * tail.total)
    assert Flops(1, 2, 3).total == 3
    assert Flops(1, 2, 3).executed == 4


def test_what_runs_has_recomputed_blocks_and_the_pairs_of_whole_blocks():
    short, long = plan(False), TokenPlan.from_rule([Group("a", 400), Group("b", 500)], lambda q, k: q.stream == "b")
    assert kernel_pairs(short) == 160 * 160  # no kernel for short sequences: the dense reference
    assert kernel_pairs(long, 500) == 500 * 900 == long.pairs(500)  # nor beside cached tokens: runs of visible ones
    assert kernel_pairs(long) == 512 * 1024  # two runs, in blocks of 512
    for remat, passes in ((None, 3), (("block_in",), 4)):
        model = StreamTransformer(STREAMS, StackConfig(1, 4, 64, (Expert(256, 768),), remat))
        once = forward(model, short, 160)
        found = executed_flops([Pass(model, short, 160, trained=True)], kernel_pairs)
        assert found.executed == pytest.approx(passes * once.executed)
        assert found.total == pytest.approx(passes * once.total)
        through = executed_flops([Pass(model, short, 160, trained=True, through=True)], kernel_pairs)
        assert through.matmul == pytest.approx((passes - 1) * once.matmul)
        assert through.attention == pytest.approx(passes * once.attention)


def test_parameters_are_counted_from_shapes():
    assert parameter_count({"a": jax.ShapeDtypeStruct((3, 4), jnp.float32), "b": [jnp.zeros(5)]}) == 17


def test_a_processor_is_measured_and_a_known_chip_is_looked_up(monkeypatch):
    measured = chips.peak()
    assert 1e8 < measured.flops < 1e14
    assert "measured" in measured.source

    class Device:
        device_kind = "NVIDIA H100 80GB HBM3"

    monkeypatch.setattr(jax, "devices", lambda: [Device()] * 4)
    monkeypatch.setattr(jax, "device_count", lambda: 4)
    assert chips.peak().flops == 4 * 989.4e12
