"""A policy with a memory of frames behind the agent: sessions side by side act as they would alone."""

import numpy as np
import pytest

from tests.policies.dreamzero.tiny import built
from wamjax.cli.serve import _rounded
from wamjax.serving.agent import Observation
from wamjax.serving.policy_agent import Interface, PolicyAgent

CAMERAS = ("exterior_image_1_left", "wrist_image_left")
STATE = {"cartesian_position": 3, "gripper_position": 1}


@pytest.fixture(scope="module")
def agent():
    return PolicyAgent(*built("small"), Interface("small", CAMERAS, (20, 24), STATE, fresh_noise=False))


def seen(session: int, call: int) -> Observation:
    """One frame of each camera at first, later four."""
    rng, count = np.random.default_rng([session, call]), 4 if call else 1
    frames = {name: rng.integers(0, 256, (count, 20, 24, 3), np.uint8) for name in CAMERAS}
    return Observation(frames, {name: rng.uniform(-1, 1, size) for name, size in STATE.items()})


def test_interleaved_sessions_act_as_they_would_alone(agent):
    """Six chunks each, through a window's end; the one begins two chunks before the other."""

    def alone(session: int) -> list[np.ndarray]:
        state, actions = agent.start("push", seen(session, 0)), []
        for call in range(6):
            decision = agent.act(state, seen(session, call))
            state = decision.state
            actions.append(decision.actions)
        return actions

    expected = {session: alone(session) for session in (1, 2)}
    states, found = {}, {1: [], 2: []}
    for turn in range(8):
        for session, call in ((1, turn), (2, turn - 2)):
            if not 0 <= call < 6:
                continue
            if call == 0:
                states[session] = agent.start("push", seen(session, 0))
            decision = agent.act(states[session], seen(session, call))
            states[session] = decision.state
            found[session].append(decision.actions)
    for session in (1, 2):
        np.testing.assert_array_equal(np.stack(found[session]), np.stack(expected[session]))
    assert np.abs(np.stack(expected[1]) - np.stack(expected[2])).max() > 1e-3


def test_the_imagined_frames_are_a_film_of_the_canvas(agent):
    decision = agent.act(agent.start("push", seen(3, 0)), seen(3, 0))
    assert decision.actions.shape == (8, 4)
    film = decision.video()
    assert film.shape == (8, 16, 32, 3)
    assert film.dtype == np.uint8


@pytest.mark.parametrize("kind", ["int8", pytest.param("fp8", marks=pytest.mark.slow)])
def test_rounded_weights_act_nearly_the_same(agent, kind, capsys):
    policy, params, frozen = built("small")
    rounded = PolicyAgent(policy, _rounded(params, kind), frozen, agent._interface)
    assert f"kernels in {kind}: relative error up to" in capsys.readouterr().out
    exact, near = (one.act(one.start("push", seen(4, 0)), seen(4, 0)).actions for one in (agent, rounded))
    assert 0 < np.abs(exact - near).max() < 0.2 * np.abs(exact).max()
