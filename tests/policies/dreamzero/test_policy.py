"""The DreamZero policy: losses as written down, the closed loop against its formula, windows, sessions, options."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.policies.dreamzero.tiny import batch, built, drawn, large, small
from wamjax.errors import UserError
from wamjax.flow.samplers import guided, sample
from wamjax.flow.schedules import TrainingTimes, integer_timestep, wan_nodes
from wamjax.flow.solvers import unipc
from wamjax.policies.contract import Draws
from wamjax.policies.dreamzero.config import COMPUTED_STEPS, SamplingConfig
from wamjax.policies.dreamzero.network import Clip, Past, Present, Robot
from wamjax.policies.dreamzero.policy import DreamZero

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[3]
LOOP = {"rtol": 0, "atol": 1e-4}
"""Guidance multiplies rounding errors, and every step adds its own."""


def sampling(kind: str = "small", **changes) -> DreamZero:
    """A built policy that samples in another way."""
    policy = built(kind)[0]
    other = dataclasses.replace(policy.config.sampling, **changes)
    return dataclasses.replace(policy, config=dataclasses.replace(policy.config, sampling=other))


def observation(data: dict, rows=slice(None)) -> dict:
    return {"frames": data["frames"][rows, :, 0], "state": data["state"][rows, 0], "language": data["language"][rows]}


def mixed(policy: DreamZero) -> dict:
    """A batch of a short sample without actions and a full one."""
    data = batch(policy)
    data["chunks"] = np.array([2, policy.config.blocks], np.int32)
    data["action_mask"][0] = False
    return data


# ---- training ----


@pytest.mark.parametrize("kind", ["small", "large"])
def test_the_loss_is_the_published_formula(kind):
    policy, params, frozen = built(kind)
    data = mixed(policy)
    encoded = jax.jit(policy.encode)(frozen, None, data)
    draws = policy.draw(jax.random.key(1), encoded)
    terms = jax.jit(policy.loss)(params, frozen, encoded, draws)

    n, table = policy.config.network, TrainingTimes.wan()
    x, noise, sigma = (
        {k: np.asarray(d[k], np.float64) for k in ("video", "action")} for d in (encoded, draws.noise, draws.sigma)
    )
    level = {"video": sigma["video"][:, :, None, None, None], "action": sigma["action"][:, :, None]}
    noisy = {k: (1 - level[k]) * x[k] + level[k] * noise[k] for k in x}
    beside = np.asarray(encoded["beside"]) if "beside" in encoded else np.zeros((*x["video"].shape[:-1], 0))
    clip = Clip(
        *(jnp.asarray(np.concatenate([v, beside], -1), jnp.float32) for v in (x["video"], noisy["video"])),
        jnp.asarray(1000 * sigma["video"], jnp.float32),
    )
    robot = Robot(
        jnp.asarray(noisy["action"], jnp.float32),
        jnp.asarray(1000 * sigma["action"], jnp.float32),
        encoded["state"],
        jnp.zeros(2, int),
    )
    present = Present(encoded["block"], encoded["robot"])
    apply = jax.jit(policy.network.apply)
    video, action = apply({"params": params}, clip, robot, encoded["text"], encoded.get("image"), present)

    def weight(s):
        return table.weight[np.abs(table.sigma[:, None] - s.reshape(1, -1)).argmin(0)].reshape(s.shape)

    frames, total = [1 + 2 * chunks for chunks in data["chunks"]], 0.0
    for b, count in enumerate(frames):
        error = np.square(np.asarray(video[b], np.float64) - (noise["video"] - x["video"])[b]).mean((1, 2, 3))
        total += (error * weight(sigma["video"][b]))[:count].mean()
    np.testing.assert_allclose(terms["video"][0], total, rtol=1e-4)
    error = np.square(np.asarray(action[1], np.float64) - (noise["action"] - x["action"])[1])
    error[:, policy.embodiment.action_size :] = 0  # padded numbers count as errors of zero
    np.testing.assert_allclose(terms["action"][0], (error.mean(1) * weight(sigma["action"][1])).mean(), rtol=1e-4)
    assert float(terms["video"][1]) == float(terms["action"][1]) == 2
    assert n.action >= policy.embodiment.action_size


@pytest.mark.parametrize("kind", ["small", "large"])
def test_samples_of_a_batch_do_not_touch_each_other(kind):
    """Other prompts, other lengths, samples with and without actions: each term is the sum of those alone."""
    policy, params, frozen = built(kind)
    data = mixed(policy)
    encoded = jax.jit(policy.encode)(frozen, None, data)
    draws = policy.draw(jax.random.key(1), encoded)
    loss = jax.jit(policy.loss)
    together = loss(params, frozen, encoded, draws)
    for name in ("video", "action"):
        alone = sum(
            float(loss(params, frozen, *jax.tree.map(lambda x, b=b: x[b : b + 1], (encoded, draws)))[name][0])
            for b in range(2)
        )
        assert float(together[name][0]) == pytest.approx(alone, rel=1e-5)


def test_every_prompt_keeps_its_own_length():
    policy, _, frozen = built("large")
    data = batch(policy)
    data["language"][0, 3:] = 0
    features = policy.config.text.encode(frozen["text"], data["language"])
    assert np.abs(features[0, 3:]).max() == 0
    assert np.abs(features[1, 3:]).min(axis=0).max() > 0
    data["language"][1] = data["language"][0]
    again = policy.config.text.encode(frozen["text"], data["language"])
    np.testing.assert_allclose(again[0], features[0], rtol=0, atol=1e-6)


def test_what_is_not_there_changes_no_loss():
    policy, params, frozen = built("small")
    data = mixed(policy)
    encoded = jax.jit(policy.encode)(frozen, None, data)
    draws = policy.draw(jax.random.key(1), encoded)
    other = dict(encoded)
    other["video"] = encoded["video"].at[0, 5:].set(9.0)
    other["action"] = encoded["action"].at[0].set(9.0)
    other["state"] = encoded["state"].at[0].set(9.0)
    loss = jax.jit(policy.loss)
    before, after = (loss(params, frozen, e, draws) for e in (encoded, other))
    for name in ("video", "action"):
        np.testing.assert_array_equal(before[name][0], after[name][0])


@pytest.mark.parametrize(("alpha", "coupled"), [(1.0, True), (3.0, True), (7.0, False)])
def test_noise_levels(alpha, coupled):
    """Per frame, one for a block; actions share their block's, or have each their own, evenly (Flash)."""
    policy = small(alpha=alpha, coupled=coupled)
    encoded = {"video": jnp.zeros((256, 9, 1, 1, 1)), "action": jnp.zeros((256, 32, 1))}
    draws = policy.draw(jax.random.key(0), encoded)
    video, action = draws.sigma["video"], draws.sigma["action"]
    assert video.shape == (256, 9)
    np.testing.assert_array_equal(video[:, 1::2], video[:, 2::2])
    assert len(np.unique(video[0])) == 5
    table = TrainingTimes.wan().sigma
    median = table[int(1000 * (1 - 0.5 ** (1 / alpha)))]
    assert float(jnp.median(video)) == pytest.approx(median, abs=0.03)
    if coupled:
        np.testing.assert_array_equal(action, jnp.repeat(video[:, 1::2], 8, axis=1))
    else:
        assert len(np.unique(action[0])) > 24
        assert float(action.mean()) == pytest.approx(table.mean(), abs=0.02)


def test_augmentation_is_driven_by_the_key_alone():
    policy, _, frozen = built("small")
    encode = jax.jit(policy.encode)
    data = batch(policy)
    plain, one, again, two = (encode(frozen, k, data)["video"] for k in (None, *map(jax.random.key, (1, 1, 2))))
    np.testing.assert_array_equal(one, again)
    assert min(np.abs(one - two).max(), np.abs(one - plain).max()) > 1e-3


# ---- acting ----


def begun(policy: DreamZero, kind: str, data: dict, blocks: int = 0):
    """Sessions after some observed blocks."""
    _, params, frozen = built(kind)
    state = jax.jit(policy.reset)(params, frozen, observation(data))
    observe = jax.jit(policy.observe)
    for block in range(blocks):
        frames = data["frames"][:, :, 1 + 8 * block : 9 + 8 * block]
        state = observe(params, frozen, state, frames, jnp.zeros((len(frames), policy.shapes.horizon, 1)))
    return state


@pytest.mark.parametrize("kind", ["small", pytest.param("large", marks=pytest.mark.slow)])
def test_acting_is_its_formula(kind):
    """Two passes of the network for both prompts at every step, guidance on frames alone, both streams by UniPC."""
    policy, params, frozen = built(kind)
    policy = sampling(kind, final_noise=0.3, guidance=2.5)
    data, n, config = batch(policy), policy.config.network, policy.config
    state, draws = begun(policy, kind, data, blocks=1), policy.draw_act(jax.random.key(5), 2)
    now = observation(data)
    actions, after = jax.jit(policy.act)(params, frozen, state, now, draws)
    assert actions.shape == (2, policy.shapes.horizon, policy.shapes.action)

    apply = jax.jit(policy.network.apply, static_argnames=("method",))
    clip = jax.jit(lambda frames: policy._pixels(frames, None))(data["frames"][:, :, :9])
    latents, features = jax.jit(config.frames.encode), jax.jit(config.text.encode)
    first = latents(frozen["frames"], clip[:, :1])
    window = jnp.concatenate([clip[:, 1:2], clip[:, 1:]], axis=1)
    block = latents(frozen["frames"], window)[:, 1:]
    whole = jax.jit(policy.encode)(frozen, None, data)
    beside = whole.get("beside", jnp.zeros((*whole["video"].shape[:-1], 0)))
    steps = policy._normalisation(frozen)
    velocities = []
    for tokens in (data["language"], jnp.broadcast_to(frozen["negative"], data["language"].shape)):
        memory = apply({"params": params}, features(frozen["text"], jnp.asarray(tokens)), method="remember")
        if "image" in whole:
            memory = memory + apply({"params": params}, None, whole["image"], method="remember")
        seen = (jnp.concatenate([x, b], -1) for x, b in ((first, beside[:, :1]), (block, beside[:, 1:3])))
        cache = apply({"params": params}, next(seen), jnp.zeros(2, int), memory, method="commit")
        new = apply(
            {"params": params},
            next(seen),
            jnp.ones(2, int),
            memory,
            Past(cache, jnp.ones((2, 1), bool)),
            method="commit",
        )
        past = Past({k: jnp.concatenate([cache[k], new[k]], axis=2) for k in "kv"}, jnp.ones((2, 3), bool))
        velocities.append((memory, past))

    def velocity(streams, sigma):
        video = jnp.repeat(integer_timestep(sigma["video"])[:, None], 2, axis=1)
        action = jnp.repeat(integer_timestep(sigma["action"])[:, None], n.block_actions, axis=1)
        robot = Robot(streams["action"], action, steps.normalise_state(now["state"][:, None]), jnp.zeros(2, int))
        noisy = jnp.concatenate([streams["video"], beside[:, 3:5]], -1)
        start = jnp.full(2, 3)
        (v, a), (u, _) = (
            apply({"params": params}, noisy, video, robot, start, *known, method="denoise") for known in velocities
        )
        return {"video": guided(v, u, 2.5), "action": a}

    sigma = wan_nodes(3)
    video = sigma * (sigma[0] - 0.3) / sigma[0] + 0.3
    expected = sample(velocity, draws.noise, {"video": unipc(video), "action": unipc(sigma)})
    np.testing.assert_allclose(after.imagined, expected["video"], **LOOP)
    raw = steps.denormalise_actions(expected["action"], now["state"][:, None])
    np.testing.assert_allclose(actions, raw, **LOOP)


@pytest.mark.parametrize("window", ["restart", "slide"])
def test_sessions_of_a_batch_are_apart(window):
    """Two sessions at different places in their windows act as they would alone."""
    policy, (_, params, frozen) = sampling(window=window), built("small")
    data, act, observe = batch(policy), jax.jit(policy.act), jax.jit(policy.observe)
    both = begun(policy, "small", data, blocks=3)
    second = begun(policy, "small", {k: v[1:] for k, v in data.items()}, blocks=1)
    state = jax.tree.map(lambda a, b: jnp.concatenate([a[:1], b]), both, second)
    np.testing.assert_array_equal(state.known, [7, 3])
    frames, executed = data["frames"][:, :, 9:17], jnp.zeros((2, 8, 4))
    draws = policy.draw_act(jax.random.key(2), 2)
    together = observe(params, frozen, state, frames, executed)
    np.testing.assert_array_equal(together.known, [1 if window == "restart" else 7, 5])
    actions, _ = act(params, frozen, together, observation(data), draws)
    for row, alone in enumerate((jax.tree.map(lambda x: x[:1], both), second)):
        one = slice(row, row + 1)
        alone = observe(params, frozen, alone, frames[one], executed[one])
        noise = Draws({}, {k: v[one] for k, v in draws.noise.items()})
        expected, _ = act(params, frozen, alone, observation(data, one), noise)
        np.testing.assert_allclose(actions[one], expected, rtol=0, atol=2e-5)


def test_a_full_window_begins_anew_from_the_newest_frame():
    policy, (_, params, frozen) = sampling(), built("small")
    data = batch(policy)
    state = begun(policy, "small", data, blocks=4)
    np.testing.assert_array_equal(state.known, 1)
    np.testing.assert_array_equal(state.executed, 32)
    newest = observation(data) | {"frames": data["frames"][:, :, -1]}
    fresh = jax.jit(policy.reset)(params, frozen, newest)
    used = policy._frame_tokens
    for a, b in zip(jax.tree.leaves(state.cache), jax.tree.leaves(fresh.cache), strict=True):
        np.testing.assert_allclose(a[:, :, :, :used], b[:, :, :, :used], rtol=0, atol=1e-5)


def test_a_sliding_window_is_one_that_never_saw_the_oldest_block():
    """With one layer, keys depend on their own frame alone: the slid window equals one built without the block."""
    policy = sampling(window="slide")
    network = dataclasses.replace(policy.config.network, dit=dataclasses.replace(policy.config.network.dit, layers=1))
    policy = dataclasses.replace(policy, config=dataclasses.replace(policy.config, network=network))
    frozen = built("small")[2]
    params = drawn(policy.init, 1)
    data, observe = batch(policy), jax.jit(policy.observe)

    def after(*blocks: int):
        state = jax.jit(policy.reset)(params, frozen, observation(data))
        for block in blocks:
            frames = data["frames"][:, :, 1 + 8 * block : 9 + 8 * block]
            state = observe(params, frozen, state, frames, jnp.zeros((2, 8, 4)))
        return state

    slid, built_so = after(0, 1, 2, 3), after(1, 2, 3)
    np.testing.assert_array_equal(slid.known, built_so.known)
    for a, b in zip(jax.tree.leaves(slid.cache), jax.tree.leaves(built_so.cache), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


@pytest.mark.parametrize("given", [8, 4, 9])
def test_frames_of_a_block_may_come_in_three_ways(given):
    policy, _, _ = built("small")
    clip = jax.random.uniform(jax.random.key(0), (1, 9, 16, 32, 3))
    block = policy._block(clip[:, 1 : 1 + given] if given < 9 else clip)
    assert block.shape[1] == 9
    if given == 4:
        np.testing.assert_array_equal(block[0, 1::2], block[0, 2::2])
    if given < 9:
        np.testing.assert_array_equal(block[0, 0], block[0, 1])
    with pytest.raises(UserError, match="3 frames are not those of a block"):
        policy._block(clip[:, :3])


def test_imagined_frames_are_those_that_act_denoised_and_can_be_dreamt_on():
    policy, (_, params, frozen) = sampling(), built("small")
    data = batch(policy)
    state, draws = begun(policy, "small", data), policy.draw_act(jax.random.key(3), 2)
    _, after = jax.jit(policy.act)(params, frozen, state, observation(data), draws)
    video = jax.jit(policy.imagine)(params, frozen, state, observation(data), draws)
    assert video.shape == (2, 1, 8, 16, 32, 3)
    assert video.dtype == jnp.uint8
    np.testing.assert_array_equal(video, policy.show(frozen, after, data["frames"][:, :, 0]))
    dream = jax.jit(policy.dream)(params, after)
    np.testing.assert_array_equal(dream.known, 3)
    for _ in range(4):
        _, dream = jax.jit(policy.act)(params, frozen, dream, observation(data), draws)
        dream = jax.jit(policy.dream)(params, dream)
    np.testing.assert_array_equal(dream.known, 7)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(dream))


def test_committed_actions_come_out_as_they_are():
    policy, (_, params, frozen) = sampling(), built("small")
    data = batch(policy)
    state, draws = begun(policy, "small", data), policy.draw_act(jax.random.key(3), 2)
    low, high = (frozen["statistics"]["action"][k] for k in ("low", "high"))
    prefix = jnp.broadcast_to((0.7 * low + 0.3 * high), (2, 3, 4))
    actions, _ = policy.act(params, frozen, state, observation(data), draws, prefix)
    free, _ = policy.act(params, frozen, state, observation(data), draws)
    np.testing.assert_allclose(actions[:, :3], prefix, rtol=1e-4, atol=1e-4)
    assert np.abs(actions[:, 3:] - free[:, 3:]).max() > 1e-4
    with pytest.raises(UserError, match="longer than the chunk"):
        policy.act(params, frozen, state, observation(data), draws, jnp.zeros((2, 9, 4)))


def test_options_of_sampling_do_what_they_say():
    policy, (_, params, frozen) = sampling(), built("small")
    data, draws = batch(policy), policy.draw_act(jax.random.key(3), 2)
    begin, blind = (begun(sampling(video=video), "small", data, blocks=1) for video in ("denoise", "noise"))

    def actions(begin=begin, **changes):
        return jax.jit(sampling(**changes).act)(params, frozen, begin, observation(data), draws)

    base, state = actions()
    np.testing.assert_array_equal(base, actions()[0])
    for changes in ({"state_sees": "itself"}, {"steps": 1}, {"final_noise": 0.8}):
        assert np.abs(base - actions(**changes)[0]).max() > 1e-5, changes
    alone, untouched = actions(blind, video="noise")
    assert np.isfinite(alone).all()
    assert np.abs(untouched.imagined).max() == 0
    every, chosen = actions(steps=16), actions(steps=16, reuse="static", computed=8)
    assert np.abs(every[0] - chosen[0]).max() > 1e-6
    assert np.isfinite(actions(steps=16, reuse="dynamic")[0]).all()
    assert not sampling(video="noise").imagines
    with pytest.raises(UserError, match="no video to imagine"):
        sampling(video="noise").imagine(params, frozen, state, observation(data), draws)


def test_published_step_schedules():
    assert {n: len(steps) for n, steps in COMPUTED_STEPS.items()} == {5: 5, 6: 6, 7: 7, 8: 8}
    with pytest.raises(ValueError, match="static schedule has 16 steps"):
        SamplingConfig(steps=10)
    with pytest.raises(ValueError, match="which video 'noise' has none of"):
        SamplingConfig(reuse="dynamic", video="noise")


def split_guidance() -> None:
    """Each of two devices holds and computes one prompt's half; nothing in the policy knows."""
    policy, (_, params, frozen) = sampling(), built("small")
    data = {k: v[:1] for k, v in batch(policy).items()}
    state, draws = begun(policy, "small", data, blocks=1), policy.draw_act(jax.random.key(3), 1)
    whole = jax.jit(policy.act).lower(params, frozen, state, observation(data), draws).compile()
    expected, _ = whole(params, frozen, state, observation(data), draws)
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("prompt",))
    spread = policy.split(state, mesh, "prompt")
    assert spread.cache["k"].addressable_shards[0].data.shape[2] == 1
    inputs = jax.device_put((params, frozen), jax.NamedSharding(mesh, jax.P()))
    compiled = jax.jit(policy.act).lower(*inputs, spread, observation(data), draws).compile()
    actions, _ = compiled(*inputs, spread, observation(data), draws)
    np.testing.assert_allclose(actions, expected, rtol=0, atol=1e-5)
    assert compiled.cost_analysis()["flops"] < 0.7 * whole.cost_analysis()["flops"]


def test_guidance_may_be_split_over_two_devices():
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", f"from {__name__} import split_guidance; split_guidance()"]
    subprocess.run(command, check=True, cwd=ROOT, env=environment | {"PYTHONPATH": f"{ROOT}:{HERE}"}, timeout=300)


def test_half_precision_is_near():
    policy, params, frozen = built("small")
    half = dataclasses.replace(policy, config=dataclasses.replace(policy.config, compute="bfloat16"))
    data, draws = batch(policy), policy.draw_act(jax.random.key(3), 2)
    results = []
    for one, weights in ((policy, params), (half, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params))):
        state = jax.jit(one.reset)(weights, frozen, observation(data))
        results.append(jax.jit(one.act)(weights, frozen, state, observation(data), draws)[0])
    assert state.cache["k"].dtype == jnp.bfloat16
    assert np.abs(results[0] - results[1]).max() < 0.05 * np.abs(results[0]).max()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"views": 3}, "has 2 cameras, not 3"),
        ({"config": {"resized": (18, 32)}}, "does not divide into tokens"),
        ({"config": {"embodiment": "droid"}}, "not a chunk of 8 frames and 24 actions"),
    ],
)
def test_what_does_not_fit_is_named(changes, message):
    policy = built("small")[0]
    config = dataclasses.replace(policy.config, **changes.pop("config", {}))
    with pytest.raises(UserError, match=message):
        dataclasses.replace(policy, config=config, **changes)


def test_channels_must_fit():
    policy = built("small")[0]
    dit = dataclasses.replace(policy.config.network.dit, inputs=20)
    network = dataclasses.replace(policy.config.network, dit=dit)
    with pytest.raises(UserError, match="reads 20 and predicts 12 latent channels"):
        small(network=network)


def test_passes_are_those_of_training_and_of_a_chunk():
    policy = large()
    (train,), (commit, act) = policy.passes("train"), policy.passes("act")
    assert (policy.window, policy.latent_size) == (7, (4, 4, 10))
    assert train.plan.length == 2 * 9 * 4 + 4 * 25
    assert (commit.queries, act.queries, act.repeats) == (8, 8 + 25, 2 * 3)
