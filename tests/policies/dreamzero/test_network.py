"""DreamZero's network against the published code on random weights, who sees whom, caches, absent blocks, sizes."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.parity.recipe import DREAMZEROS, FOLDER, weights
from wamjax.interop.dreamzero import keymap
from wamjax.interop.keymap import flatten, to_ours, to_theirs
from wamjax.networks.wan.dit import WAN_DITS, WanDiTConfig
from wamjax.nn.stack import extended
from wamjax.policies.dreamzero.network import (
    Clip,
    DreamZeroNetwork,
    NetworkConfig,
    Past,
    Present,
    Robot,
    acting_plan,
    training_plan,
)

SEED = 3
PUBLISHED = {"rtol": 0, "atol": 2e-5}
CACHED = {"rtol": 0, "atol": 1e-5}


def tiny(form: str, **changes) -> NetworkConfig:
    dit = WanDiTConfig(
        width=48, mlp=64, heads=4, layers=2, inputs=36 if form == "i2v" else 16, outputs=16, text=32, image=1280
    )
    return NetworkConfig(dit, hidden=24, **changes)


def clip_and_robot(x: dict[str, np.ndarray]) -> tuple[Clip, Robot]:
    clean, noisy = (jnp.concatenate([x[name], x["beside"]], axis=-1) for name in ("clean", "noisy"))
    robot = Robot(x["action"], x["timestep_action"], x["state"], jnp.zeros(len(clean), int))
    return Clip(clean, noisy, jnp.asarray(x["timestep"])), robot


@functools.cache
def shapes(config: NetworkConfig) -> dict[str, tuple[int, ...]]:
    blank = Clip(*(jnp.zeros((1, 3, 2, 2, config.dit.inputs)),) * 2, jnp.zeros((1, 3)))
    robot = Robot(
        jnp.zeros((1, config.block_actions, config.action)),
        jnp.zeros((1, config.block_actions)),
        jnp.zeros((1, 1, config.state)),
        jnp.zeros(1, int),
    )
    text, image = jnp.zeros((1, 1, config.dit.text)), jnp.zeros((1, 257, config.dit.image))
    params = jax.eval_shape(DreamZeroNetwork(config).init, jax.random.key(0), blank, robot, text, image)["params"]
    return {path: leaf.shape for path, leaf in flatten(params).items()}


@functools.cache
def case(name: str):
    """Inputs, what the published code made of them, its tensors, and our parameters."""
    stored = dict(np.load(FOLDER / f"dreamzero_{name}.npz"))
    tensors = weights(json.loads(str(stored.pop("shapes"))), SEED)
    config = tiny(DREAMZEROS[name].form)
    return DREAMZEROS[name].inputs(SEED), stored, tensors, to_ours(keymap(config), tensors, shapes(config))


@functools.partial(jax.jit, static_argnums=0, static_argnames=("method", "state_sees"))
def run(module, params, *inputs, **options):
    return module.apply({"params": params}, *inputs, **options)


def train(name: str, params=None, present=None, **changes):
    """The training pass on a case's inputs, some of them changed."""
    x, _, _, original = case(name)
    clip, robot = clip_and_robot(x | changes)
    module = DreamZeroNetwork(tiny(DREAMZEROS[name].form))
    return run(module, params or original, clip, robot, x["text"], x["image"], present)


@pytest.mark.parametrize("name", DREAMZEROS)
def test_training_equals_the_published_code(name):
    video, action = train(name)
    np.testing.assert_allclose(video, case(name)[1]["video"], **PUBLISHED)
    np.testing.assert_allclose(action, case(name)[1]["action"], **PUBLISHED)


def act(name: str, state_sees: str, window: int = 7):
    """Every block beside a cache of the clean frames before it, in a window of which a part is empty."""
    x, _, _, params = case(name)
    config = tiny(DREAMZEROS[name].form)
    module, (clip, robot) = DreamZeroNetwork(config), clip_and_robot(x)
    memory = run(module, params, x["text"], x["image"], method="remember")
    frame = DREAMZEROS[name].height * DREAMZEROS[name].width // 4
    cache = run(module, params, clip.clean[:, :1], jnp.zeros(2, int), memory, method="commit")
    for block in range(DREAMZEROS[name].blocks):
        start, frames = 1 + 2 * block, slice(1 + 2 * block, 3 + 2 * block)
        steps = slice(24 * block, 24 * (block + 1))
        pad = ((0, 0), (0, 0), (0, (window - start) * frame), (0, 0), (0, 0))
        held = jnp.broadcast_to(jnp.arange(window) < start, (2, window))
        past = Past({k: jnp.pad(v, pad, constant_values=9.0) for k, v in cache.items()}, held)
        now = Robot(
            robot.actions[:, steps], robot.timestep[:, steps], robot.state[:, block : block + 1], robot.category
        )
        first = jnp.full(2, start)
        inputs = (clip.noisy[:, frames], clip.timestep[:, frames], now, first, memory, past)
        yield block, run(module, params, *inputs, method="denoise", state_sees=state_sees)
        new = run(module, params, clip.clean[:, frames], first, memory, past, method="commit")
        cache = extended(cache, new)


@pytest.mark.parametrize("name", DREAMZEROS)
def test_acting_equals_the_published_code(name):
    for block, (video, action) in act(name, "all"):
        np.testing.assert_allclose(video, case(name)[1][f"video {block}"], **PUBLISHED)
        np.testing.assert_allclose(action, case(name)[1][f"action {block}"], **PUBLISHED)


@pytest.mark.parametrize("name", ["i2v_4", "ti2v_2"])
def test_acting_with_the_consistent_state_equals_training(name):
    video, action = train(name)
    for block, (one_video, one_action) in act(name, "itself"):
        np.testing.assert_allclose(one_video, video[:, 1 + 2 * block : 3 + 2 * block], **CACHED)
        np.testing.assert_allclose(one_action, action[:, 24 * block : 24 * (block + 1)], **CACHED)


def changed(name: str, key: str, where, **options) -> tuple[list[bool], list[bool], bool]:
    """Which blocks' video and actions, and whether the noisy first frame's video, a change of an input moves."""
    x = case(name)[0]
    moved = np.array(x[key])
    moved[:, where] += 1.0
    before, after = train(name, **options), train(name, **options, **{key: moved})
    video = np.abs(np.asarray(before[0] - after[0])).max(axis=(0, 2, 3, 4)) > 0
    action = np.abs(np.asarray(before[1] - after[1])).max(axis=(0, 2)) > 0
    blocks = DREAMZEROS[name].blocks
    return video[1:].reshape(blocks, 2).any(1).tolist(), action.reshape(blocks, 24).any(1).tolist(), bool(video[0])


@pytest.mark.parametrize(
    ("key", "where", "blocks"),
    [
        ("clean", slice(0, 1), {0, 1, 2, 3}),
        *[("clean", slice(1 + 2 * i, 3 + 2 * i), set(range(i + 1, 4))) for i in range(4)],
        *[("noisy", slice(1 + 2 * i, 3 + 2 * i), {i}) for i in range(4)],
        *[("action", slice(24 * i, 24 * i + 24), {i}) for i in range(4)],
        *[("state", slice(i, i + 1), {i}) for i in range(4)],
    ],
)
def test_who_sees_whom(key, where, blocks):
    video, action, first = changed("i2v_4", key, where)
    assert video == action == [i in blocks for i in range(4)]
    assert not first


def test_the_noisy_first_frame_sees_and_is_seen_by_itself_alone():
    assert changed("i2v_4", "noisy", slice(0, 1)) == ([False] * 4, [False] * 4, True)


@pytest.mark.parametrize("name", ["i2v_4"])
def test_absent_blocks_change_nothing(name):
    """Samples of 1 to 4 blocks, with and without actions, stand in one batch as they would alone."""
    x = case(name)[0]
    block = jnp.array([[True, True, False, False], [True, True, True, True]])
    robot = jnp.array([[True, False, False, False], [False, False, True, False]])
    garbage = dict(x)
    for key, there, each in (("clean", block, 2), ("noisy", block, 2), ("action", robot, 24), ("state", robot, 1)):
        first = 1 if each == 2 else 0
        gone = np.repeat(~np.asarray(there), each, axis=1)
        garbage[key] = np.array(x[key])
        garbage[key][:, first:][gone] = 50.0
    clean, dirty = (train(name, present=Present(block, robot), **data) for data in (x, garbage))
    frames = np.repeat(np.asarray(block), 2, axis=1)
    np.testing.assert_array_equal(clean[0][:, 0], dirty[0][:, 0])
    np.testing.assert_array_equal(clean[0][:, 1:][frames], dirty[0][:, 1:][frames])
    steps = np.repeat(np.asarray(robot), 24, axis=1)
    np.testing.assert_array_equal(clean[1][steps], dirty[1][steps])
    whole = train(name)
    np.testing.assert_allclose(clean[0][0, :3], whole[0][0, :3], **CACHED)  # block 1 has what it has alone
    assert np.abs(clean[0][1, 1:3] - whole[0][1, 1:3]).max() > 1e-3  # and without actions something else


def test_categories_have_codecs_of_their_own():
    config = tiny("ti2v", categories=3)
    x = DREAMZEROS["ti2v_1"].inputs(0)
    clip, robot = clip_and_robot(x)
    module = DreamZeroNetwork(config)
    params = jax.jit(module.init)(jax.random.key(0), clip, robot, x["text"], x["image"])["params"]

    def actions(category: list[int]):
        changed = dataclasses.replace(robot, category=jnp.array(category))
        return run(module, params, clip, changed, x["text"], x["image"])[1]

    mixed, twos = actions([0, 2]), actions([2, 2])
    np.testing.assert_array_equal(mixed[1], twos[1])
    assert np.abs(mixed[0] - twos[0]).max() > 1e-4
    codecs = ("state_encoder", "action_encoder", "action_decoder")
    single = params | {name: jax.tree.map(lambda leaf: leaf[2:], params[name]) for name in codecs}
    alone = run(DreamZeroNetwork(tiny("ti2v")), single, clip, robot, x["text"], x["image"])[1]
    np.testing.assert_allclose(alone, twos, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("dit", "tensors", "parameters"),
    [
        (WAN_DITS["wan2.1-i2v-14b"], 1317, 16_484_292_448),
        (dataclasses.replace(WAN_DITS["wan2.2-ti2v-5b"], image=1280), 997, 5_606_692_832),
    ],
)
def test_full_sizes(dit, tensors, parameters):
    config = NetworkConfig(dit)
    found = shapes(config)
    assert sum(int(np.prod(shape)) for shape in found.values()) == parameters
    names = [key for source in keymap(config).values() for key in source.keys]
    assert len(names) == len(set(names)) == tensors
    assert set(keymap(config)) == set(found)


def test_the_key_map_is_its_own_inverse():
    _, _, tensors, params = case("i2v_1")
    back = to_theirs(keymap(tiny("i2v")), params)
    assert set(back) == set(tensors)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(back[name], tensor)


def test_a_plan_has_the_published_number_of_tokens():
    config = NetworkConfig(WAN_DITS["wan2.1-i2v-14b"])
    assert training_plan(880, 4, config).length == 15_940
    assert training_plan(50, 4, config).length == 1000
    assert acting_plan(880, 7, config, "all").length - 7 * 880 == 1785
    assert acting_plan(880, 7, config, "all").full
