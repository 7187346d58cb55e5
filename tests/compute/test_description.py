"""Networks as dimensions: parameters to the last digit, and operations as programs have them."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from wamjax.compute import systems
from wamjax.compute.description import Work
from wamjax.compute.families import Cosmos, Wan
from wamjax.compute.flops import Flops, kernel_pairs, parameter_count, program, traced
from wamjax.compute.systems import Groups, PackedChunks
from wamjax.networks.clip import CLIPVision, CLIPVisionConfig
from wamjax.networks.umt5 import UMT5Config, UMT5Encoder
from wamjax.networks.wan.dit import WAN_DITS, WanDiT
from wamjax.nn import attention
from wamjax.policies.dreamzero.network import Clip, DreamZeroNetwork, NetworkConfig, Robot

NETWORKS = systems.shared_networks()
STATED = {
    "wan2.1-t2v-14b": 14_288_491_584,
    "wan2.2-i2v-a14b": 14_288_901_184,
    "wan2.1-t2v-1.3b": 1_418_996_800,
    "wan2.2-ti2v-5b": 4_999_787_712,
    "dreamzero-14b": 16_484_292_448,
    "dreamzero-5b": 5_606_692_832,
    "lingbot-va": 5_088_872_670,
    "fast-wam": 4_999_787_712 + 1_020_900_366,
    "cosmos-predict2-2b": 1_956_413_440,
    "cosmos-predict2-14b": 14_265_285_632,
    "siglip-so400m": 412_442_352,
    "gemma-2b": 2_508_531_712,
    "groot-n1.5-dit": 550_386_688,
    "groot-vl": 201_433_088,
    "groot-n1.7-dit": 1_091_722_240,
    "qwen3-1.7b": 1_720_574_976,
    "umt5-xxl": 5_680_910_336,
    "wan-vae-2.1": 126_892_531,
    "wan-vae-2.2": 704_688_668,
}
"""As counted by running the published classes, or as their repositories print them."""


def shape(*sizes: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


@pytest.mark.parametrize("name", STATED)
def test_parameters_equal_the_published_class_to_the_last_digit(name):
    assert NETWORKS[name].family.parameters == STATED[name]


def test_every_stated_number_is_met_and_every_network_has_a_source():
    assert sum(bool(one.stated) for one in NETWORKS.values()) > 20
    assert {name for name, one in NETWORKS.items() if one.stated and one.family.parameters != one.stated} == set()
    assert all(one.source for one in NETWORKS.values())


def test_parts_that_are_published_as_sums_or_rounded():
    count = {name: one.family.parameters for name, one in NETWORKS.items()}
    assert count["siglip-openpi"] + count["gemma-2b"] == 2_923_335_408  # PaliGemma-3B
    assert count["siglip-openpi"] + count["pi0"] == 3_238_048_528
    assert count["siglip-openpi"] + count["pi0.5"] == 3_353_433_872
    expert = NETWORKS["being-h0.5"].family.network.stacks[0]
    assert expert.layers * expert.parameters(expert.experts[1]) == 440_466_432
    for name, millions in {"avdc-metaworld": 201.09, "avdc-ithor": 108.84, "avdc-bridge": 165.64}.items():
        assert count[name] / 1e6 == pytest.approx(millions, abs=0.005)
    assert count["mimic-video-actions"] / 1e6 == pytest.approx(499.04, abs=0.005)
    assert count["unipi-base"] / 1e9 == pytest.approx(1.7, abs=0.1)


FORMS = ("wan2.1-t2v-14b", "wan2.1-flf2v-14b", "wan2.2-ti2v-5b", "wan2.2-i2v-a14b")
"""Of Wan's networks, one with everything that others have too."""


@pytest.mark.parametrize("name", [*FORMS, "dreamzero-14b", "dreamzero-5b", "umt5-xxl", "clip-vit-h"])
def test_formula_and_shapes_of_the_network_agree(name):
    wan = {"dreamzero-14b": "wan2.1-i2v-14b", "dreamzero-5b": "wan2.2-ti2v-5b"}.get(name, name)
    if name == "umt5-xxl":
        module, inputs = UMT5Encoder(UMT5Config()), (jnp.ones((1, 2), int), jnp.ones((1, 2), bool))
    elif name == "clip-vit-h":
        module, inputs = CLIPVision(CLIPVisionConfig()), (shape(1, 224, 224, 3),)
    elif wan != name:
        config = dataclasses.replace(WAN_DITS[wan], image=1280)
        module, inputs = DreamZeroNetwork(NetworkConfig(config)), dreamzero_inputs(config.inputs, 2, 2)
    else:
        c = WAN_DITS[wan]
        seen = (shape(1, c.image_positions or 1, c.image),) if c.image else ()
        module, inputs = WanDiT(c), (shape(1, 1, 2, 2, c.inputs), shape(1, 1), shape(1, 1, c.text), *seen)
    params = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    assert parameter_count(params) == NETWORKS[name].family.parameters


def dreamzero_inputs(channels: int, height: int, width: int):
    frames = shape(1, 9, height, width, channels)
    robot = Robot(shape(1, 96, 32), shape(1, 96), shape(1, 4, 64), jax.ShapeDtypeStruct((1,), jnp.int32))
    return Clip(frames, frames, shape(1, 9)), robot, shape(1, 512, 4096), shape(1, 257, 1280)


@pytest.fixture
def unrolled(monkeypatch):
    """Programs without loops, and attention in one piece: XLA counts what is in a loop once."""
    scan = jax.lax.scan
    monkeypatch.setattr(jax.lax, "scan", lambda *given, **options: scan(*given, **(options | {"unroll": True})))
    monkeypatch.setattr(attention.attend_to_all, "__defaults__", (None, 2**60))


def xla(function, *shapes) -> float:
    return jax.jit(function).lower(*shapes).cost_analysis()["flops"]


def wan_program(layers: int, heads: int):
    """The network's program for 81 frames of 720p, its arguments, and our count."""
    module = WanDiT(dataclasses.replace(WAN_DITS["wan2.1-t2v-14b"], layers=layers, heads=heads))
    given = (shape(1, 21, 90, 160, 16), shape(1, 1), shape(1, 512, 4096))
    params = jax.eval_shape(module.init, jax.random.key(0), *given)
    groups = Groups({"video": 75_600})
    work = Work(groups.plan, groups.queries, {"text": 512, "times": 1})
    return module.apply, (params, *given), Wan(5120, 13_824, heads, layers).cost(work).flops.total


def test_wan_at_720p_is_what_programs_have(unrolled):
    run, given, ours = wan_program(1, 40)
    assert traced(run, *given) == ours
    # XLA counts softmax too, in proportion to the heads; with none of it, both agree.
    many, (run, given, _) = xla(run, *given), wan_program(1, 20)
    few = xla(run, *given)
    assert 2 * few - many == pytest.approx(ours, rel=0.001)
    assert many == pytest.approx(ours, rel=0.01)


def test_dreamzero_is_what_programs_have(unrolled):
    layers = 2
    module = DreamZeroNetwork(NetworkConfig(dataclasses.replace(WAN_DITS["wan2.1-i2v-14b"], layers=layers)))
    given = dreamzero_inputs(36, 44, 80)
    params = jax.eval_shape(module.init, jax.random.key(0), *given)
    system = systems.find("dreamzero-14b")
    family = dataclasses.replace(system.network("dreamzero-14b"), layers=layers)
    ours = family.cost(system.runs["train, as wamjax runs it"].work).flops.total
    assert traced(module.apply, params, *given) == ours
    assert xla(module.apply, params, *given) == pytest.approx(ours, rel=0.005)


def cosmos_block(params, x, text, modulation):
    """A block of Cosmos-Predict2, after its description; heads of 128."""

    def look(x, context, w):
        q, k, v = (
            (t @ w[name]).reshape(*t.shape[:2], -1, 128) for t, name in ((x, "q"), (context, "k"), (context, "v"))
        )
        weights = jax.nn.softmax(jnp.einsum("bqkh,bnkh->bkqn", q, k) * 128**-0.5)
        return jnp.einsum("bkqn,bnkh->bqkh", weights, v).reshape(x.shape) @ w["o"]

    rows = [(modulation @ w["in"]) @ w["out"] for w in params["modulation"]]
    x = x + look(x, x, params["self"]) * rows[0][:, :1, : x.shape[-1]]
    x = x + look(x, text, params["cross"]) * rows[1][:, :1, : x.shape[-1]]
    return x + jax.nn.gelu(x @ params["up"]) @ params["down"] * rows[2][:, :1, : x.shape[-1]]


def test_a_block_of_cosmos_policy_is_what_xla_counts():
    d, n = 2048, 1764
    maps = {name: shape(d, d) for name in "qkvo"}
    cross = maps | {"k": shape(1024, d), "v": shape(1024, d)}
    low = [{"in": shape(d, 256), "out": shape(256, 3 * d)}] * 3
    params = {"self": maps, "cross": cross, "up": shape(d, 4 * d), "down": shape(4 * d, d), "modulation": low}
    one, none = (
        Cosmos(d, 16, layers).cost(Work(Groups({"video": n}).plan, n, {"text": 512, "times": 9})).flops.total
        for layers in (1, 0)
    )
    given = (params, shape(1, n, d), shape(1, 512, 1024), shape(1, 9, d))
    assert traced(cosmos_block, *given) == one - none
    assert xla(cosmos_block, *given) == pytest.approx(one - none, rel=0.005)


def test_scans_are_multiplied_out_conditions_take_the_dearer_branch_and_reads_are_counted():
    w = shape(3, 8, 8)

    def loop(x, stacked, unused):
        return jax.lax.scan(lambda x, m: (x @ m, None), x, stacked)[0]

    assert traced(loop, shape(4, 8), w, w) == 3 * 2 * 4 * 8 * 8
    assert program(loop, shape(4, 8), w, w) == (Flops(3 * 2 * 4 * 8 * 8), 4 * 8 + 3 * 8 * 8)

    def either(p, x, m):
        return jax.lax.cond(p, lambda x: (x @ m) @ m, lambda x: x @ m, x)

    assert traced(either, jax.ShapeDtypeStruct((), jnp.bool_), shape(4, 8), shape(8, 8)) == 2 * 2 * 4 * 8 * 8
    again = jax.grad(lambda m, x: jnp.sum(jax.checkpoint(lambda x: jnp.sin(x @ m) @ m)(x)))
    assert traced(again, shape(8, 8), shape(4, 8)) == 2 * 4 * 8 * 8 * (2 + 1 + 3)  # forward, once more, backward

    def convolve(x, k):
        return jax.lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    assert traced(convolve, shape(1, 5, 5, 2), shape(3, 3, 2, 7)) == 2 * 25 * 9 * 2 * 7


def test_pairs_of_published_masks():
    run = systems.find("dreamzero-14b").runs["train"].work
    assert (run.plan.length, run.plan.pairs()) == (15_940, 76_576_484)
    assert kernel_pairs(run.plan) / run.plan.pairs() < 1.03
    assert systems.find("fast-wam").runs["train RoboTwin"].work.plan.pairs() == 120**2 + 240 * 360 + 32 * (120 + 32)
    packed = PackedChunks(frames=6, video=3, action=2, chunk=2, window=64).plan
    groups = {(g.stream, g.block): i for i, g in enumerate(packed.groups)}
    sees = packed.visible
    assert packed.length == 2 * 6 * 5
    assert sees[groups["noisy", 2]][groups["clean", 0]]
    assert sees[groups["noisy", 2]][groups["clean action", 1]]
    assert not sees[groups["noisy", 2]][groups["clean", 2]]
    assert sees[groups["action", 3]][groups["clean", 2]]
    assert not sees[groups["action", 3]][groups["clean action", 3]]
    assert sees[groups["clean action", 3]][groups["clean action", 3]]
    assert not sees[groups["clean", 2]][groups["noisy", 2]]


def test_only_what_runs_is_counted_and_read():
    system = systems.find("fast-wam")
    step, first = system.cost("action step"), system.cost("first frame")
    assert step.weights == pytest.approx(1_020_900_366, rel=1e-4)
    assert first.weights == pytest.approx(4_999_787_712, rel=1e-3)
    assert step.cache == 2 * 30 * 3072 * 120
    tapped, whole = systems.find("mimic-video").cost("video, 21 blocks"), systems.find("mimic-video").cost("video")
    assert tapped.flops.total / whole.flops.total == pytest.approx(21 / 28, rel=1e-3)
    once, twice = system.cost("encode 1 frame").flops.total, system.cost("encode 9 frames").flops.total
    stream = dataclasses.replace(system.runs["encode 9 frames"].work, clip=(8, 384, 320))
    assert system.network("wan-vae-2.2").cost(stream).flops.total == twice - once
