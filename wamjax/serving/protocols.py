"""The dialects of the field's robot clients, as rows of a table: handshake, requests, replies.

All are websockets with messages of `wamjax.serving.wire`. The server speaks first, with a map that describes it; then
every request gets one reply. An error is a text message, after which the server closes the connection (code 1011).

Sources: roboarena/policy_server.py of robo-arena/roboarena, eval_utils/policy_server.py of dreamzero0/dreamzero,
src/openpi/serving/websocket_policy_server.py of Physical-Intelligence/openpi.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from wamjax.errors import UserError
from wamjax.serving import wire
from wamjax.serving.agent import Description, Observation

RESET_REPLY = "reset successful"
ACTION_DIMS = {"joint_position": 8, "joint_velocity": 8, "cartesian_position": 7, "cartesian_velocity": 7}
"""Numbers in an action of each action space of RoboArena, the gripper last."""
STATE_SIZES = {"joint_position": 7, "cartesian_position": 6, "gripper_position": 1}
"""State fields that a RoboArena client sends."""
CAMERA = re.compile(r"(?:exterior_image_(\d+)|wrist_image)_(left|right)")
"""DROID's camera names."""
PREFIX = "observation/"

Message = Mapping[Any, Any]


@dataclasses.dataclass(frozen=True)
class Infer:
    """A request for actions.

    Attributes:
        session: the client's session_id; None where it sends none.
        instruction: what to do. observation: the present.
    """

    session: str | None
    instruction: str
    observation: Observation


@dataclasses.dataclass(frozen=True)
class Reset:
    """A request to forget a session, or with None every session of the connection."""

    session: str | None


@dataclasses.dataclass(frozen=True)
class Dialect:
    """A way of speaking.

    Attributes:
        name: as the user says it.
        handshake: the server's first message; refuses agents that cannot speak this dialect.
        endpoints: whether requests say what they are for ("endpoint": "infer" or "reset").
        reply: the answer to a request for actions, from the actions and the timings in milliseconds.
    """

    name: str
    handshake: Callable[[Description], dict[str, Any]]
    endpoints: bool
    reply: Callable[[Float[np.ndarray, "horizon a"], dict[str, float]], Any]


def read(dialect: Dialect, description: Description, data: bytes | str) -> Infer | Reset:
    """A client's message, checked.

    Raises:
        UserError: what is wrong with it, for the client to read.
    """
    if isinstance(data, str):
        raise UserError("requests are binary messages (msgpack), not text")
    message = wire.unpack(data)
    if not isinstance(message, dict):
        raise UserError(f"a request is a map, not {type(message).__name__}")
    if _endpoint(dialect, message) == "reset":
        return Reset(_session(message))
    instruction = message.get("prompt")
    if not isinstance(instruction, str):
        raise UserError("'prompt' is missing: send the instruction as text")
    frames = {
        camera: _frames(key, _given(message, key), size)
        for (camera, size), key in zip(
            description.cameras.items(), camera_keys(description.cameras, message), strict=True
        )
    }
    state = {field: _numbers(PREFIX + field, message, size) for field, size in description.state.items()}
    return Infer(_session(message), instruction, Observation(frames, state))


def camera_keys(cameras: Mapping[str, Any], message: Message) -> list[str]:
    """The keys under which a message brings the cameras.

    DROID and the program of RoboArena's evaluators count exterior cameras from one; RoboArena's examples and the
    clients of DreamZero count from zero. A message with a camera 0 counts from zero.
    """
    sides = ("left", "right")
    from_zero = any(f"{PREFIX}exterior_image_0_{side}" in message for side in sides)

    def key(camera: str) -> str:
        match = CAMERA.fullmatch(camera)
        if from_zero and match and match[1]:
            return f"{PREFIX}exterior_image_{int(match[1]) - 1}_{match[2]}"
        return PREFIX + camera

    return [key(camera) for camera in cameras]


def _endpoint(dialect: Dialect, message: Message) -> str:
    """ "infer" or "reset"."""
    if not dialect.endpoints:
        if "endpoint" in message:
            raise UserError(
                f"requests of the {dialect.name} protocol have no 'endpoint': the server speaks another one"
            )
        return "infer"
    endpoint = message.get("endpoint")
    if endpoint not in ("infer", "reset"):
        given = f"is {endpoint!r:.80}" if "endpoint" in message else "is missing"
        raise UserError(f"'endpoint' {given}: the {dialect.name} protocol has 'infer' and 'reset'")
    return endpoint


def _session(message: Message) -> str | None:
    """The session's name; RoboArena's documentation calls it an array of one, its programs send text."""
    value = message.get("session_id")
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if value is None or (isinstance(value, str | int) and len(str(value)) <= 256):
        return None if value is None else str(value)
    raise UserError("'session_id' must be a text of at most 256 characters")


def _given(message: Message, key: str) -> Any:
    if key not in message:
        present = ", ".join(sorted(name for name in message if isinstance(name, str) and name.startswith(PREFIX)))
        raise UserError(f"'{key}' is missing; the request has {present[:400] or 'no observation'}")
    return message[key]


def _frames(key: str, value: Any, size: tuple[int, int]) -> UInt8[np.ndarray, "t h w 3"]:
    """One frame (h, w, 3) or several (t, h, w, 3), always as several."""
    shape = (*size, 3)
    if not isinstance(value, np.ndarray) or value.dtype != np.uint8 or value.shape[-3:] != shape or value.ndim > 4:
        found = f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
        raise UserError(f"'{key}' is {found}: send uint8 of shape {shape} or (T, {size[0]}, {size[1]}, 3)")
    frames = value.reshape(-1, *shape)
    if not len(frames):
        raise UserError(f"'{key}' has no frames: send at least one")
    return frames


def _numbers(key: str, message: Message, size: int) -> Float[np.ndarray, " s"]:
    """A state field as a vector."""
    try:
        value = np.asarray(_given(message, key))
    except ValueError:  # lists of unequal lengths
        value = np.asarray("")
    if value.dtype.kind not in "iuf" or value.size != size:
        raise UserError(f"'{key}' is {value.dtype} {value.shape}: send {size} numbers")
    if not np.isfinite(value).all():
        raise UserError(f"'{key}' holds numbers that are not finite")
    return value.ravel().astype(np.float32)


# ---- the table ----


def _arena_handshake(description: Description) -> dict[str, Any]:
    """What a RoboArena client must send (PolicyServerConfig)."""
    _check_arena(description)
    matches = [CAMERA.fullmatch(camera) for camera in description.cameras]
    numbers = {match[1] for match in matches if match and match[1]}
    return {
        "image_resolution": next(iter(description.cameras.values())),
        "needs_wrist_camera": any(camera.startswith("wrist") for camera in description.cameras),
        "n_external_cameras": len(numbers),
        "needs_stereo_camera": any(camera.endswith("_right") for camera in description.cameras),
        "needs_session_id": True,
        "action_space": description.action_space,
    }


def _check_arena(description: Description) -> None:
    """Whether a RoboArena client has what the agent wants, and takes what it gives."""
    for camera in description.cameras:
        match = CAMERA.fullmatch(camera)
        if not match or match[1] not in (None, "1", "2"):
            raise UserError(
                f"RoboArena has no camera '{camera}': it has exterior_image_1, exterior_image_2 and wrist_image, each "
                "_left and _right; name the policy's cameras with --camera, or use --protocol openpi"
            )
    if "exterior_image_2" in str(description.cameras) and "exterior_image_1" not in str(description.cameras):
        raise UserError("a policy with one exterior camera calls it exterior_image_1 in RoboArena: see --camera")
    if len(set(description.cameras.values())) > 1:
        raise UserError("RoboArena clients send all cameras in one size: use --protocol openpi")
    for field, size in description.state.items():
        if STATE_SIZES.get(field) != size:
            known = ", ".join(f"{name} ({count})" for name, count in STATE_SIZES.items())
            raise UserError(f"RoboArena has no state field {field} ({size}), only {known}: use --protocol openpi")
    wanted = ACTION_DIMS.get(description.action_space)
    if description.action_dim != wanted:
        raise UserError(
            f"the policy's actions have {description.action_dim} numbers, {description.action_space} in RoboArena has "
            f"{wanted}: give the right --action-space, or use --protocol openpi"
        )


def _openpi_handshake(description: Description) -> dict[str, Any]:
    """openpi leaves the content to the server; clients may read it."""
    return {
        "policy": description.name,
        "cameras": {PREFIX + camera: list(size) for camera, size in description.cameras.items()},
        "state": {PREFIX + field: size for field, size in description.state.items()},
        "action_space": description.action_space,
        "action_horizon": description.horizon,
        "action_dim": description.action_dim,
    }


DIALECTS = {
    dialect.name: dialect
    for dialect in (
        Dialect("roboarena", _arena_handshake, True, lambda actions, _: {"actions": actions}),
        Dialect("dreamzero", _arena_handshake, True, lambda actions, _: actions),
        Dialect("openpi", _openpi_handshake, False, lambda actions, ms: {"actions": actions, "server_timing": ms}),
    )
}
"""By name."""
