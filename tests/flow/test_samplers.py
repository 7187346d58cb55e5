"""Solvers against the published schedulers' numbers, and the loop that runs them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wamjax.errors import UserError
from wamjax.flow.matching import interpolate
from wamjax.flow.samplers import ChosenSteps, SimilarSteps, guided, sample
from wamjax.flow.schedules import TrainingTimes, diffusers_nodes, integer_timestep, shifted, uniform_nodes, wan_nodes
from wamjax.flow.solvers import SOLVERS, dpmpp, euler, unipc

RANDOM = np.random.default_rng(0)
DATA, NOISE = (jnp.asarray(RANDOM.standard_normal((3, 2, 4)), jnp.float32) for _ in range(2))


def trajectory(solver) -> np.ndarray:
    """The samples after each step from x = 1 under v = 0.3 x + t / 1000, with Wan's integer timesteps t."""
    seen = []

    def velocity(x, sigma):
        jax.debug.callback(lambda x: seen.append(float(x)), x["x"][0], ordered=True)
        return {"x": 0.3 * x["x"] + integer_timestep(sigma["x"]) / 1000}

    final = sample(velocity, {"x": jnp.ones(1)}, {"x": solver})["x"]
    jax.effects_barrier()
    return np.array([*seen[1:], float(final[0])])


# Printed by the schedulers of github.com/Wan-Video/Wan2.1 (wan/utils/fm_solvers*.py) at shift 5.
@pytest.mark.parametrize(
    ("solver", "last"),
    [
        (unipc(wan_nodes(4)), [0.918768, 0.795499, 0.592356, 0.091540]),
        (unipc(wan_nodes(16)), [0.539634, 0.465874, 0.394452, 0.302692]),
        (dpmpp(uniform_nodes(4, 5.0)), [0.918750, 0.792435, 0.584147, 0.083994]),
        (dpmpp(uniform_nodes(16, 5.0)), [0.538319, 0.464655, 0.393716, 0.301687]),
    ],
    ids=["unipc-4", "unipc-16", "dpmpp-4", "dpmpp-16"],
)
def test_solvers_give_the_published_numbers(solver, last):
    np.testing.assert_allclose(trajectory(solver)[-4:], last, rtol=0, atol=1e-6)


def test_nodes_are_the_published_ones():
    expected = [0.9998, 0.986634, 0.972006, 0.955657, 0.937265, 0.916422, 0.892602, 0.865118, 0.833055]
    expected += [0.795165, 0.7497, 0.694136, 0.624687, 0.535408, 0.416389, 0.2498, 0]
    np.testing.assert_allclose(wan_nodes(16), expected, rtol=0, atol=1e-6)
    times = [999, 986, 972, 955, 937, 916, 892, 865, 833, 795, 749, 694, 624, 535, 416, 249]
    assert integer_timestep(jnp.asarray(wan_nodes(16)[:-1], jnp.float32)).tolist() == times
    assert diffusers_nodes(16)[-2] == pytest.approx(0.252991, abs=1e-6)
    assert diffusers_nodes(16)[0] == 1 - 1e-6


@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0, 12.0])
@pytest.mark.parametrize("nodes", [uniform_nodes, wan_nodes, diffusers_nodes])
def test_nodes_fall_to_zero_and_timesteps_survive_single_precision(nodes, shift):
    every = [nodes(steps, shift) for steps in range(1, 101)]
    for steps, sigma in enumerate(every, start=1):
        assert len(sigma) == steps + 1
        assert sigma[-1] == 0
        assert (np.diff(sigma) < 0).all()
    sigma = np.concatenate(every)
    off = np.asarray(integer_timestep(jnp.asarray(sigma, jnp.float32))) - np.trunc(1000 * sigma)
    near_integer = np.abs(1000 * sigma - np.round(1000 * sigma)) < 1e-3
    assert (off[~near_integer] == 0).all()
    assert np.abs(off).max() <= 1
    np.testing.assert_allclose(shifted(np.array([0.0, 1.0]), shift), [0, 1])


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("dpmpp", 2), ("unipc", 2)])
def test_halving_the_step_divides_the_error_by_two_to_the_order(name, order):
    """dx/dsigma = x from 0.98 to 0.05, in double precision."""
    errors = []
    for steps in (256, 512):
        solver = SOLVERS[name](np.linspace(0.98, 0.05, steps + 1))
        x = corrected = 1.0
        m1 = m2 = 0.0
        for sigma, correct, predict in zip(solver.sigma, solver.correct, solver.predict, strict=False):
            m = x - sigma * x
            corrected = correct @ [x, corrected, m, m1, m2]
            x, m1, m2 = predict @ [corrected, m, m1], m, m1
        errors.append(abs(x - np.exp(-0.93)))
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.1)


@pytest.mark.parametrize("name", SOLVERS)
def test_all_solvers_are_exact_under_a_constant_data_prediction(name):
    def velocity(x, sigma):
        return {"a": (x["a"] - DATA) / sigma["a"][:, None, None]}

    result = sample(velocity, {"a": NOISE}, {"a": SOLVERS[name](wan_nodes(5))})
    np.testing.assert_allclose(result["a"], DATA, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sigma", [[1.0], [0.0, 1.0], [1.0, 1.0, 0.0], [1.2, 0.0], [1.0, -0.1], [[1.0, 0.0]]])
def test_noise_times_must_fall(sigma):
    for make in SOLVERS.values():
        with pytest.raises(UserError, match="noise times must fall"):
            make(np.array(sigma))


def test_unipc_does_not_start_at_pure_noise():
    with pytest.raises(UserError, match="sigma = 1"):
        unipc(uniform_nodes(4))


def test_guidance_interpolates_and_extrapolates():
    for scale, expected in ((0.0, DATA), (1.0, NOISE), (3.0, DATA + 3 * (NOISE - DATA))):
        np.testing.assert_allclose(guided(NOISE, DATA, scale), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_euler_follows_a_straight_path_exactly(steps):
    """With the true velocity of a straight path, any number of steps arrives at the data."""
    result = sample(lambda x, sigma: {"a": NOISE - DATA}, {"a": NOISE}, {"a": euler(uniform_nodes(steps))})
    np.testing.assert_allclose(result["a"], DATA, rtol=1e-4, atol=1e-5)


def test_streams_move_together_and_get_their_own_sigma():
    seen = []

    def velocity(x, sigma):
        seen.append({name: value.shape for name, value in sigma.items()})
        return {name: -x[name] * sigma[name][:, None, None] for name in x}

    solvers = {"a": euler(uniform_nodes(4)), "b": euler(np.linspace(1, 0.5, 5))}
    result = sample(velocity, {"a": NOISE, "b": NOISE}, solvers)
    assert seen[0] == {"a": (3,), "b": (3,)}
    assert float(jnp.abs(result["a"] - result["b"]).max()) > 1e-3


def test_known_entries_come_out_unchanged_and_follow_their_noise_path():
    mask = jnp.array([True, False])[None, :, None]
    inputs = []

    def velocity(x, sigma):
        jax.debug.callback(lambda x, s: inputs.append((np.array(x), float(s[0]))), x["a"], sigma["a"], ordered=True)
        return {"a": jnp.ones_like(x["a"])}

    result = sample(velocity, {"a": NOISE}, {"a": euler(uniform_nodes(3))}, {"a": (DATA, mask)})
    jax.effects_barrier()
    np.testing.assert_allclose(result["a"][:, 0], DATA[:, 0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(result["a"][:, 1], NOISE[:, 1] - 1, rtol=1e-5, atol=1e-5)
    for x, sigma in inputs:
        np.testing.assert_allclose(x[:, 0], interpolate(DATA, NOISE, jnp.full(3, sigma))[:, 0], rtol=1e-5, atol=1e-5)


def test_training_times_and_weights_are_those_of_the_fine_tuners():
    table = TrainingTimes.wan()
    np.testing.assert_allclose(1000 * table.sigma[[0, 1, 500, 999]], [1000, 999.7998, 833.3333, 4.980], atol=1e-3)
    known = {1000: 0.0, 937.5: 0.398, 833.33: 1.025, 625: 1.914, 500: 2.076, 100: 0.638, 4.98: 0.032}
    found = jax.jit(table.weight_at)(jnp.array(list(known)) / 1000)
    np.testing.assert_allclose(found, list(known.values()), atol=1e-3)
    assert table.weight.mean() == pytest.approx(1)
    sigma = jax.jit(lambda key: table.draw(key, (4, 5000)))(jax.random.key(0))
    weight = table.weight_at(sigma)
    assert sigma.mean() == pytest.approx(table.sigma.mean(), abs=0.01)
    assert weight.mean() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("alpha", [3.0, 7.0])
def test_noisy_times_follow_the_beta_distribution(alpha):
    """DreamZero-Flash: the share of noise r ~ Beta(alpha, 1) picks number floor((1 - r) 1000); E[r] = a / (a + 1)."""
    table = TrainingTimes.wan()
    sigma = np.asarray(table.draw(jax.random.key(1), (20_000,), alpha))
    number = np.searchsorted(-table.sigma.astype(np.float32), -sigma)
    np.testing.assert_array_equal(table.sigma.astype(np.float32)[number], sigma)
    share = 1 - number / 1000
    assert abs(share.mean() - alpha / (alpha + 1)) < 0.005
    assert abs((share**2).mean() - alpha / (alpha + 2)) < 0.005


def counted(reuse, velocities, steps=16):
    """Which steps of a loop call the model, when it gives the velocities listed, one per call."""
    calls, table = [], jnp.asarray(velocities)

    def velocity(streams, sigma):
        jax.debug.callback(lambda s: calls.append(float(s)), sigma["video"][0])
        # The noise time tells the step: what the model gives depends on it alone.
        step = jnp.argmin(jnp.abs(jnp.asarray(uniform_nodes(steps)[:-1]) - sigma["video"][0]))
        return {"video": jnp.broadcast_to(table[step], streams["video"].shape)}

    nodes = uniform_nodes(steps)
    final = sample(velocity, {"video": jnp.zeros((1, 2))}, {"video": euler(nodes)}, reuse=reuse)
    jax.block_until_ready(final)
    jax.effects_barrier()
    return [int(np.argmin(np.abs(nodes[:-1] - s))) for s in sorted(calls, reverse=True)], final["video"]


@pytest.mark.parametrize("chosen", [(0, 1, 2, 7, 12), (0, 1, 2, 6, 10, 13, 14, 15), tuple(range(16))])
def test_chosen_steps_reuse_the_last_velocity(chosen):
    velocities = np.random.default_rng(0).standard_normal((16, 2)).astype(np.float32)
    called, final = counted(ChosenSteps(chosen), velocities)
    assert tuple(called) == chosen
    last = [max(c for c in chosen if c <= i) for i in range(16)]
    np.testing.assert_allclose(final[0], -velocities[last].mean(0), rtol=0, atol=1e-6)


def skipped_by_rule(velocities):
    """The dynamic rule, step by step: 4 steps above 0.95, 2 above 0.93, and the step after a wait always runs."""
    past, wait, ran = [], 0, []
    for step in range(16):
        run = True
        if len(past) >= 2 and wait > 1:
            wait, run = wait - 1, False
        elif len(past) >= 2 and wait == 1:
            wait = 0
        elif len(past) >= 2:
            a, b = past[-1], past[-2]
            similar = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
            wait = 4 if similar > 0.95 else 2 if similar > 0.93 else 0
            run = wait == 0
        if run:
            past.append(velocities[step])
            ran.append(step)
    return ran


@pytest.mark.parametrize("spread", [0.0, 0.1, 0.2, 0.25, 0.3, 0.5, 3.0])
def test_similar_steps_follow_the_dynamic_rule(spread):
    turn = spread * np.random.default_rng(4).standard_normal(16)
    velocities = np.stack([np.cos(turn), np.sin(turn)], axis=1).astype(np.float32)
    called, _ = counted(SimilarSteps(), velocities)
    assert called == skipped_by_rule(velocities)


def test_the_first_step_cannot_be_left_out():
    with pytest.raises(UserError, match="begin with 0"):
        ChosenSteps((1, 2))
