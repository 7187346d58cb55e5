"""SmallWAM: what each paradigm sees, trains on and samples."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wamjax.errors import UserError
from wamjax.policies.paradigms import PARADIGMS
from wamjax.policies.small_wam import SmallWAM, SmallWAMConfig, denormalise, normalise, random_shift

ALL = tuple(PARADIGMS)
WITH_VIDEO = tuple(name for name in ALL if name != "action_only")


@functools.cache
def compiled(policy: SmallWAM, method: str):
    """A method of a policy as one compiled program."""
    return jax.jit(getattr(policy, method))


def encode(policy, frozen, batch, key=None):
    return compiled(policy, "encode")(frozen, key, batch)


def losses(policy, params, frozen, batch, seed=0):
    encoded = encode(policy, frozen, batch)
    draws = compiled(policy, "draw")(jax.random.key(seed), encoded)
    terms = compiled(policy, "loss")(params, frozen, encoded, draws)
    return {name: float(total / weight) for name, (total, weight) in terms.items()}


@functools.cache
def forward(policy: SmallWAM):
    """The network over the whole training sequence."""
    return jax.jit(
        lambda params, inputs, sigma: policy._forward(params, policy._names, inputs, sigma, inputs["observation"])[0]
    )


def observation(batch):
    return {"frames": batch["frames"][:, :, 0], "state": batch["state"], "language": batch["language"]}


def sampled_actions(policy, params, frozen, batch, draws, prefix=None):
    now = observation(batch)
    state = policy.reset(params, frozen, now)
    return compiled(policy, "act")(params, frozen, state, now, draws, prefix)[0]


@pytest.mark.parametrize("paradigm", ALL)
def test_losses_are_those_of_the_paradigm_and_reach_every_weight(make, frozen, batch, paradigm):
    policy, params = make(paradigm)
    assert set(losses(policy, params, frozen, batch)) == set(PARADIGMS[paradigm].sees)

    def loss(params):
        encoded = encode(policy, frozen, batch)
        terms = policy.loss(params, frozen, encoded, policy.draw(jax.random.key(1), encoded))
        return sum(total / weight for total, weight in terms.values())

    grads = jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(loss))(params))
    silent = [jax.tree_util.keystr(path) for path, grad in grads if not np.abs(grad).max() > 0]
    assert not silent


@pytest.mark.parametrize("paradigm", ALL)
def test_masked_entries_and_clean_video_have_no_weight(make, frozen, batch, paradigm):
    """One sample of three lacks its last two actions and its last frame."""
    policy, params = make(paradigm)
    encoded = encode(policy, frozen, batch)
    draws = policy.draw(jax.random.key(0), encoded)
    terms = compiled(policy, "loss")(params, frozen, encoded, draws)
    assert float(terms["action"][1]) == (5 + 5 + 3) * 3
    if "video" in terms:
        present = np.array([0.5, 1.0, 1.0]) * encoded["video"][0].size
        noisy = np.asarray(draws.sigma["video"] > 0)
        assert float(terms["video"][1]) == pytest.approx(float((present * noisy).sum()))


@pytest.mark.parametrize("paradigm", ALL)
def test_streams_see_what_the_paradigm_says(make, frozen, batch, paradigm):
    """Perturb one noisy stream, and look whose prediction moves."""
    policy, params = make(paradigm)
    encoded = encode(policy, frozen, batch)
    names = tuple(PARADIGMS[paradigm].sees)
    inputs = {n: encoded[n] for n in ("language", "state", "observation", *sorted(names, reverse=True))}
    sigma = jnp.full((3, 3), 0.5).at[:, 0].set(0)
    before = forward(policy)(params, inputs, sigma)
    for touched in names:
        after = forward(policy)(params, inputs | {touched: inputs[touched] + 1}, sigma)
        for reader in names:
            moved = float(jnp.abs(after[reader] - before[reader]).max())
            sees = touched == reader or touched in PARADIGMS[paradigm].sees[reader]
            assert (moved > 1e-4) if sees else (moved == 0.0), (touched, reader)


@pytest.mark.parametrize("paradigm", ALL)
def test_acting_depends_on_context_and_noise_alone(make, frozen, batch, paradigm):
    policy, params = make(paradigm)
    draws = policy.draw_act(jax.random.key(0), 3)
    actions = sampled_actions(policy, params, frozen, batch, draws)
    assert actions.shape == (3, 5, 3)
    np.testing.assert_array_equal(actions, sampled_actions(policy, params, frozen, batch, draws))
    for name in ("frames", "state", "language"):
        changed = batch | {name: np.roll(batch[name], 1, axis=0)}
        assert np.abs(actions - sampled_actions(policy, params, frozen, changed, draws)).max() > 1e-4, name
    other = policy.draw_act(jax.random.key(1), 3)
    assert np.abs(actions - sampled_actions(policy, params, frozen, batch, other)).max() > 1e-4
    alone = {name: value[:1] for name, value in batch.items()}
    first = jax.tree.map(lambda x: x[:1], draws)
    np.testing.assert_allclose(sampled_actions(policy, params, frozen, alone, first), actions[:1], rtol=1e-4, atol=1e-4)


def test_the_first_sampling_step_is_the_training_forward_pass(make, frozen, batch):
    """One Euler step from pure noise: x0 = noise - v(noise), with v from the uncached training sequence."""
    policy, params = make("joint")
    policy = dataclasses.replace(policy, config=dataclasses.replace(policy.config, sampling_steps=1))
    draws = policy.draw_act(jax.random.key(0), 3)
    encoded = encode(policy, frozen, batch)
    inputs = {n: encoded[n] for n in ("language", "state", "observation")} | draws.noise
    outputs = forward(policy)(params, inputs, jnp.ones((3, 3)).at[:, 0].set(0))
    expected = denormalise(frozen["action"], draws.noise["action"] - outputs["action"])
    np.testing.assert_allclose(sampled_actions(policy, params, frozen, batch, draws), expected, rtol=1e-4, atol=1e-4)


def test_committed_actions_come_out_as_they_went_in(make, frozen, batch):
    policy, params = make("joint")
    draws = policy.draw_act(jax.random.key(0), 3)
    prefix = batch["actions"][:, :2]
    actions = sampled_actions(policy, params, frozen, batch, draws, prefix)
    np.testing.assert_allclose(actions[:, :2], prefix, rtol=1e-5, atol=1e-5)
    free = sampled_actions(policy, params, frozen, batch, draws)
    assert np.abs(actions[:, 2:] - free[:, 2:]).max() > 1e-4
    with pytest.raises(UserError, match="longer than the chunk of 5"):
        sampled_actions(policy, params, frozen, batch, draws, np.zeros((3, 6, 3), np.float32))


@pytest.mark.parametrize("paradigm", WITH_VIDEO)
def test_imagination_gives_frames_of_every_view(make, frozen, batch, paradigm):
    policy, params = make(paradigm)
    now = observation(batch)
    draws = policy.draw_act(jax.random.key(0), 3)
    video = compiled(policy, "imagine")(params, frozen, policy.reset(params, frozen, now), now, draws)
    assert video.shape == (3, 2, 2, 8, 8, 3)
    assert video.dtype == jnp.uint8


def test_video_may_keep_the_current_frame_or_the_noisy_one(make, frozen, batch):
    """A readout of nothing but "keep" gives back what is to be kept, in every later frame."""
    policy, params = make("joint")
    channels, future = policy.config.codec.channels, policy.shapes.future
    encoded = encode(policy, frozen, batch)
    noisy = {n: jax.random.normal(jax.random.key(0), encoded[n].shape) for n in ("video", "action")}
    inputs = {n: encoded[n] for n in ("language", "state", "observation")} | noisy
    now = jnp.tile(encoded["observation"], future)
    for kept, expected in (((1.0, 0.0), now), ((0.0, 1.0), noisy["video"]), ((0.5, 2.0), now / 2 + 2 * noisy["video"])):
        read = {"kernel": jnp.zeros((16, future * (channels + 2))), "bias": jnp.zeros(future * (channels + 2))}
        read["bias"] = read["bias"].at[future * channels :].set(jnp.repeat(jnp.asarray(kept), future))
        outputs = forward(policy)(params | {"read_video": read}, inputs, jnp.full((3, 3), 0.5))
        np.testing.assert_allclose(outputs["video"], expected, rtol=1e-6, atol=1e-6)


def test_action_only_has_no_video(make, frozen, batch):
    policy, params = make("action_only")
    now = observation(batch)
    assert not policy.imagines
    with pytest.raises(UserError, match="no video to imagine"):
        policy.imagine(params, frozen, policy.reset(params, frozen, now), now, policy.draw_act(jax.random.key(0), 3))


def test_video_tokens_and_frames_agree(make, frozen, batch):
    """Encoding future frames and reading them back the way imagine does gives the codec's reconstruction."""
    policy, _ = make("joint")
    encoded = encode(policy, frozen, batch)
    c, s = policy.config.codec, policy.shapes
    latents = encoded["video"].reshape(3, s.views, 2, 2, s.future, c.channels)
    frames = c.decode(frozen["codec"], jnp.moveaxis(latents, 4, 2))
    np.testing.assert_array_equal(frames, policy.reconstruct(frozen, batch["frames"][:, :, 1:]))


def test_noise_times_are_shared_or_separate(make, frozen, batch):
    for paradigm, shared in (("joint", True), ("representation_only", False)):
        policy, _ = make(paradigm)
        sigma = policy.draw(jax.random.key(0), encode(policy, frozen, batch)).sigma
        assert bool((sigma["video"] == sigma["action"]).all()) is shared
    policy, _ = make("inverse_dynamics")
    encoded = jax.tree.map(lambda x: jnp.repeat(x, 200, axis=0), encode(policy, frozen, batch))
    clean = np.asarray(policy.draw(jax.random.key(0), encoded).sigma["video"] == 0)
    assert 0.4 < clean.mean() < 0.6


def test_executed_actions_are_counted_per_session(make, frozen, batch):
    policy, params = make("joint")
    state = policy.reset(params, frozen, observation(batch))
    state = policy.observe(params, frozen, state, None, np.zeros((3, 4, 3)))
    assert state.executed.tolist() == [4, 4, 4]


def test_passes_describe_what_runs(make):
    policy, _ = make("inverse_dynamics")
    train = policy.passes("train")
    assert [(p.queries, p.repeats, p.trained) for p in train] == [(10 + 8 + 5, 1, True)]
    act = policy.passes("act")
    # context (1 + 1 + 8), then six video steps and one that commits, then six action steps
    assert [(p.queries, p.plan.length, p.repeats) for p in act] == [(10, 10, 1), (8, 18, 7), (5, 23, 6)]
    with pytest.raises(UserError, match="unknown mode"):
        policy.passes("dream")


def test_shifts_move_all_frames_of_a_camera_together():
    random = np.random.default_rng(0)
    still = np.repeat(random.integers(0, 256, (4, 2, 1, 8, 8, 3), dtype=np.uint8), 3, axis=2)
    shifted = np.asarray(random_shift(jax.random.key(0), still, 2))
    np.testing.assert_array_equal(shifted[:, :, 0], shifted[:, :, 2])
    padded = np.pad(still[:, :, 0], ((0, 0), (0, 0), (2, 2), (2, 2), (0, 0)), mode="edge")
    offsets = set()
    for b in range(4):
        for v in range(2):
            found = [
                (y, x)
                for y in range(5)
                for x in range(5)
                if (padded[b, v, y : y + 8, x : x + 8] == shifted[b, v, 0]).all()
            ]
            assert found
            offsets.add(found[0])
    assert len(offsets) > 3
    np.testing.assert_array_equal(random_shift(jax.random.key(0), still, 0), still)


def test_augmentation_only_with_a_key(make, frozen, batch):
    policy, _ = make("joint")
    plain = encode(policy, frozen, batch)
    np.testing.assert_array_equal(plain["observation"], encode(policy, frozen, batch)["observation"])
    augmented = encode(policy, frozen, batch, jax.random.key(0))
    assert np.abs(augmented["state"] - plain["state"]).max() > 1e-3
    np.testing.assert_array_equal(augmented["action"], plain["action"])


def test_normalisation_round_trip_and_constant_dimensions(make):
    policy, _ = make("joint")
    statistics = {
        "state": {"mean": np.zeros(4), "std": np.zeros(4)},
        "action": {"q01": np.array([-1.0, 0.0, 5.0]), "q99": np.array([1.0, 4.0, 5.0])},
    }
    frozen = policy.freeze(np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8), statistics)
    x = np.array([[-1.0, 4.0, 5.0]], np.float32)
    np.testing.assert_allclose(normalise(frozen["action"], x), [[-1.0, 1.0, 0.0]], atol=1e-5)
    np.testing.assert_allclose(denormalise(frozen["action"], normalise(frozen["action"], x)), x, atol=1e-5)
    assert np.isfinite(normalise(frozen["state"], np.zeros(4))).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 18, "heads": 4}, "multiple of policy.heads"),
        ({"paradigm": "jiont"}, "unknown paradigm"),
        ({"predict_video": "score"}, "unknown prediction"),
    ],
)
def test_bad_configurations_are_named(make, change, message):
    policy, _ = make("joint")
    with pytest.raises(UserError, match=message):
        SmallWAM(dataclasses.replace(policy.config, **change), policy.shapes)


def test_frames_must_divide_into_patches(make):
    policy, _ = make("joint")
    with pytest.raises(UserError, match="patches of 16"):
        SmallWAM(SmallWAMConfig(), dataclasses.replace(policy.shapes, height=20))
