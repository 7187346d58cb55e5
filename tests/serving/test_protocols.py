"""Dialects: handshakes, camera numbers, and what is wrong with a request in words a client can use."""

import dataclasses

import numpy as np
import pytest
from tiny_server import CAMERAS, SIZE, STATE, infer, observation

from wamjax.errors import UserError
from wamjax.serving import wire
from wamjax.serving.agent import Description
from wamjax.serving.protocols import DIALECTS, Reset, read

DESCRIPTION = Description("tiny", dict.fromkeys(CAMERAS, SIZE), STATE, "joint_position", 5, 8)
ARENA, OPENPI = DIALECTS["roboarena"], DIALECTS["openpi"]
ONE_EXTERIOR = dataclasses.replace(DESCRIPTION, cameras={"exterior_image_1_left": SIZE, "wrist_image_left": SIZE})


def parsed(message, dialect=ARENA, description=DESCRIPTION):
    return read(dialect, description, wire.pack(message))


def changed(**changes):
    """The description with changes, where an underscored `observation` name stands for a key."""
    return dataclasses.replace(DESCRIPTION, **changes)


@pytest.mark.parametrize("name", ["roboarena", "dreamzero"])
def test_the_arena_handshake_has_the_keys_of_its_clients(name):
    assert DIALECTS[name].handshake(DESCRIPTION) == {
        "image_resolution": SIZE,
        "needs_wrist_camera": True,
        "n_external_cameras": 2,
        "needs_stereo_camera": False,
        "needs_session_id": True,
        "action_space": "joint_position",
    }
    stereo = dict.fromkeys(("exterior_image_1_left", "exterior_image_1_right"), SIZE)
    handshake = DIALECTS[name].handshake(changed(cameras=stereo, action_space="cartesian_velocity", action_dim=7))
    assert (handshake["n_external_cameras"], handshake["needs_wrist_camera"]) == (1, False)
    assert handshake["needs_stereo_camera"]
    assert handshake["action_space"] == "cartesian_velocity"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"cameras": {"corner2": SIZE}}, "no camera 'corner2'"),
        ({"cameras": {"exterior_image_3_left": SIZE}}, "no camera"),
        ({"cameras": {"exterior_image_2_left": SIZE}}, "calls it exterior_image_1"),
        ({"cameras": {"wrist_image_left": SIZE, "exterior_image_1_left": (4, 4)}}, "one size"),
        ({"state": {"cartesian_position": 3}}, "no state field"),
        ({"action_dim": 4}, "4 numbers"),
        ({"action_space": "cartesian_position"}, "7"),
    ],
)
def test_what_an_arena_client_cannot_serve_is_refused_when_the_server_starts(changes, reason):
    with pytest.raises(UserError, match=reason):
        ARENA.handshake(changed(**changes))
    assert OPENPI.handshake(changed(**changes))["policy"] == "tiny"


@pytest.mark.parametrize("first", [0, 1])
def test_both_camera_numberings_mean_the_same(first):
    given = infer(3, first=first)
    frames = parsed(given).observation.frames
    assert list(frames) == list(CAMERAS)
    np.testing.assert_array_equal(frames[CAMERAS[0]][0], given[f"observation/exterior_image_{first}_left"])
    np.testing.assert_array_equal(frames[CAMERAS[1]][0], given[f"observation/exterior_image_{first + 1}_left"])
    np.testing.assert_array_equal(frames[CAMERAS[2]][0], given["observation/wrist_image_left"])


@pytest.mark.parametrize("first", [0, 1])
def test_one_exterior_camera_in_both_numberings(first):
    given = infer(3, first=first)
    del given[f"observation/exterior_image_{first + 1}_left"]
    frames = parsed(given, description=ONE_EXTERIOR).observation.frames
    np.testing.assert_array_equal(frames[CAMERAS[0]][0], given[f"observation/exterior_image_{first}_left"])


def test_cameras_and_fields_of_other_robots_keep_their_names():
    other = changed(cameras={"image": SIZE}, state={"state": 3})
    request = {"observation/image": np.zeros((*SIZE, 3), np.uint8), "observation/state": [1, 2, 3], "prompt": "go"}
    seen = parsed(request, OPENPI, other)
    assert seen.observation.state["state"].tolist() == [1, 2, 3]
    assert seen.instruction == "go"
    assert seen.session is None


def test_a_request_as_the_agent_gets_it():
    request = parsed(infer(1, frames=3, session_id=np.array(["abc"])))
    assert request.session == "abc"
    assert {camera: frames.shape for camera, frames in request.observation.frames.items()} == dict.fromkeys(
        CAMERAS, (3, *SIZE, 3)
    )
    assert {field: value.shape for field, value in request.observation.state.items()} == {
        "joint_position": (7,),
        "gripper_position": (1,),
    }
    flat = infer(1) | {"observation/joint_position": np.ones((1, 7)), "observation/gripper_position": 0.5}
    state = parsed(flat).observation.state
    assert state["gripper_position"] == np.float32([0.5])
    assert state["joint_position"].dtype == np.float32
    assert parsed({"endpoint": "reset", "session_id": "abc"}) == Reset("abc")
    assert parsed({"endpoint": "reset"}) == Reset(None)


WRIST, JOINTS = "observation/wrist_image_left", "observation/joint_position"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"endpoint": None}, "'endpoint' is None"),
        ({"endpoint": "x" * 1000}, "'endpoint' is"),
        ({"prompt": None}, "'prompt' is missing"),
        ({"session_id": {}}, "'session_id' must be"),
        ({"session_id": "x" * 300}, "'session_id' must be"),
        ({WRIST: None}, "'observation/wrist_image_left' is NoneType"),
        ({WRIST: np.zeros((*SIZE, 3), np.float32)}, r"is float32 \(8, 16, 3\): send uint8 of shape \(8, 16, 3\)"),
        ({WRIST: np.zeros((16, 8, 3), np.uint8)}, r"is uint8 \(16, 8, 3\)"),
        ({WRIST: np.zeros((1, 1, *SIZE, 3), np.uint8)}, "is uint8"),
        ({WRIST: np.zeros((0, *SIZE, 3), np.uint8)}, "has no frames"),
        ({JOINTS: np.zeros(6)}, r"is float64 \(6,\): send 7 numbers"),
        ({JOINTS: np.full(7, np.nan)}, "not finite"),
        ({JOINTS: ["a"] * 7}, "send 7 numbers"),
        ({JOINTS: [[1], [1, 2]]}, "send 7 numbers"),
        ({JOINTS: {"a": 1}}, "send 7 numbers"),
    ],
)
def test_mistakes_of_a_client_are_told_in_one_line(changes, reason):
    with pytest.raises(UserError, match=reason) as error:
        parsed(infer(0) | changes)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("key", ["endpoint", "prompt", WRIST, JOINTS, "observation/exterior_image_2_left"])
def test_what_is_missing_is_named(key):
    message = infer(0)
    del message[key]
    with pytest.raises(UserError, match=f"'{key}' is missing"):
        parsed(message)


def test_a_client_of_another_dialect_is_told():
    with pytest.raises(UserError, match="no 'endpoint': the server speaks another"):
        parsed(infer(0), OPENPI)
    with pytest.raises(UserError, match="'endpoint' is missing"):
        parsed(observation(0), ARENA)


@pytest.mark.parametrize("data", ["text", b"\xc1", wire.pack([1]), wire.pack(3)])
def test_what_is_no_request_at_all(data):
    with pytest.raises(UserError):
        read(ARENA, DESCRIPTION, data)
