"""A policy as an agent: its supply of frames, its noise, its memory."""

import dataclasses

import jax
import numpy as np
import pytest
from tiny_server import CAMERAS, HORIZON, INTERFACE, SHAPES, SIZE, Historian, historian

from wamjax.errors import UserError
from wamjax.policies.contract import Draws
from wamjax.serving.agent import Observation
from wamjax.serving.policy_agent import PolicyAgent


class Recorder(Historian):
    """Keeps what the agent hands it, which for arrays that are not traced is only possible without compiling."""

    def __init__(self):
        self.observed = []

    def observe(self, params, frozen, state, frames, executed):
        jax.debug.callback(lambda *seen: self.observed.append(seen), frames, executed, ordered=True)
        return super().observe(params, frozen, state, frames, executed)


def seen(*values: int) -> Observation:
    """New frames, each of one grey; the second camera is brighter by 100, the third by 200."""

    def clip(offset: int) -> np.ndarray:
        return np.stack([np.full((*SIZE, 3), value + offset, np.uint8) for value in values])

    frames = {camera: clip(100 * number) for number, camera in enumerate(CAMERAS)}
    return Observation(frames, {"joint_position": np.zeros(7, np.float32), "gripper_position": np.ones(1, np.float32)})


def greys(frames) -> list[list[int]]:
    """The grey of every frame: cameras by times."""
    return np.asarray(frames)[0, :, :, 0, 0, 0].tolist()


def test_frames_are_supplied_as_dreamzero_does_it():
    policy = Recorder()
    agent = PolicyAgent(policy, policy.init(), {}, INTERFACE)
    state = agent.start("go", seen(9, 1))  # of the first request only the last frame counts
    chunks = []
    for given in (seen(9, 1), seen(2), seen(3, 4), seen(5), seen(6, 7, 8, 9, 10)):
        decision = agent.act(state, given)
        state = decision.state
        chunks.append(decision.actions)
    jax.effects_barrier()
    expected = [[1, 1, 1, 2], [1, 2, 3, 4], [2, 3, 4, 5], [7, 8, 9, 10]]
    assert [greys(frames)[0] for frames, _ in policy.observed] == expected
    assert greys(policy.observed[1][0])[2] == [201, 202, 203, 204]
    for (_, executed), chunk in zip(policy.observed, chunks, strict=False):
        np.testing.assert_array_equal(executed[0], chunk)


def episode(agent: PolicyAgent, steps: int = 3) -> np.ndarray:
    state = agent.start("go", seen(1))
    chunks = []
    for step in range(steps):
        decision = agent.act(state, seen(1 + step))
        state = decision.state
        chunks.append(decision.actions)
    return np.stack(chunks)


def test_noise_depends_on_the_seed_and_the_number_of_the_request():
    agent = historian()
    first = episode(agent)
    np.testing.assert_array_equal(first, episode(agent))
    assert not np.allclose(first, episode(historian(seed=1)))

    class Noise(Historian):
        def act(self, params, frozen, state, observation, draws, prefix=None):
            return draws.noise["action"], state

    def chunks(**changes) -> np.ndarray:
        return episode(PolicyAgent(Noise(), Noise().init(), {}, dataclasses.replace(INTERFACE, **changes)))

    fresh, same = chunks(), chunks(fresh_noise=False)
    assert not np.allclose(fresh[0], fresh[1])
    np.testing.assert_array_equal(same[0], same[1])
    np.testing.assert_array_equal(same[0], fresh[0])


def test_giving_up_old_memory_keeps_the_parameters():
    """`reset` hands a parameter through into the memory that `observe` gives up."""
    policy = Historian()
    params = jax.tree.map(jax.numpy.asarray, policy.init())
    agent = PolicyAgent(policy, params, {}, INTERFACE)
    first = episode(agent)
    assert not params["weight"].is_deleted()
    np.testing.assert_array_equal(first, episode(agent))


def test_the_description_is_that_of_the_chunk_and_needs_no_computation():
    class Short(Historian):
        def draw_act(self, key, sessions):
            return Draws({}, {"action": jax.random.normal(key, (sessions, 2, 8))})

        def act(self, params, frozen, state, observation, draws, prefix=None):
            return draws.noise["action"][:, :, :3], state

    description = PolicyAgent(Short(), Short().init(), {}, INTERFACE).description
    assert (description.horizon, description.action_dim) == (2, 3)
    assert historian().description.horizon == HORIZON
    assert historian().description.cameras == dict.fromkeys(CAMERAS, SIZE)


def test_timings_name_the_stages():
    agent = historian()
    state = agent.start("go", seen(1))
    first = agent.act(state, seen(1))
    second = agent.act(first.state, seen(2))
    assert set(first.timings) == {"act"}
    assert set(second.timings) == {"observe", "act"}
    assert all(value > 0 for value in second.timings.values())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"cameras": CAMERAS[:2]}, "3 views, not 2"), ({"state": {"joint_position": 7}}, "8 numbers")],
)
def test_an_interface_that_does_not_fit_is_refused(changes, reason):
    assert (SHAPES.views, SHAPES.state) == (3, 8)
    with pytest.raises(UserError, match=reason):
        historian(**changes)
