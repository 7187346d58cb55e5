"""Servers of tiny agents, and a client of a few lines."""

import asyncio
import contextlib
import dataclasses
import threading
from collections.abc import Iterator

import jax
import numpy as np
from flax import struct
from jaxtyping import Array
from websockets.sync.client import ClientConnection, connect

from wamjax.policies.contract import Draws, SampleShapes
from wamjax.serving import wire
from wamjax.serving.policy_agent import Interface, PolicyAgent
from wamjax.serving.protocols import DIALECTS
from wamjax.serving.server import PolicyServer, ServerConfig

CAMERAS = ("exterior_image_1_left", "exterior_image_2_left", "wrist_image_left")
STATE = {"joint_position": 7, "gripper_position": 1}
SIZE = (8, 16)
HORIZON = 5
INTERFACE = Interface("tiny", CAMERAS, SIZE, STATE)
SHAPES = SampleShapes(views=3, height=8, width=16, future=2, horizon=HORIZON, state=8, action=8)


@struct.dataclass
class Memory:
    """What `Historian` remembers: every observed frame, folded into one number, and an array of its parameters."""

    text: Array
    past: Array
    borrowed: Array


class Historian:
    """A policy whose actions betray everything it was ever shown in its episode."""

    shapes = SHAPES
    imagines = True

    def tokenize(self, text: str) -> np.ndarray:
        return np.float32([sum(text.encode()) % 97])

    def init(self):
        return {"weight": np.float32([0.37])}

    def reset(self, params, frozen, observation):
        past = observation["frames"].mean(axis=(1, 2, 3, 4)) / 255
        return Memory(observation["language"], past, params["weight"])

    def observe(self, params, frozen, state, frames, executed):
        assert frames.shape == (1, 3, 4, *SIZE, 3)
        order = np.arange(1, 13, dtype=np.float32).reshape(3, 4)  # tells cameras and times apart
        seen = (frames.mean(axis=(3, 4, 5)) * order).sum(axis=(1, 2)) / 255
        return state.replace(past=state.past * 0.9 + seen + executed.sum(axis=(1, 2)) * 0.01)

    def draw_act(self, key, sessions):
        return Draws({}, {"action": jax.random.normal(key, (sessions, HORIZON, 8))})

    def act(self, params, frozen, state, observation, draws, prefix=None):
        now = observation["frames"].mean(axis=(1, 2, 3, 4)) + state.text[:, 0] + state.past + state.borrowed
        return now[:, None, None] + observation["state"][:, None, :] + draws.noise["action"], state

    def imagine(self, params, frozen, state, observation, draws):
        return observation["frames"][:, :, None].repeat(2, axis=2)


def historian(**changes) -> PolicyAgent:
    """An agent whose actions depend on its whole episode."""
    policy = Historian()
    return PolicyAgent(policy, policy.init(), {}, dataclasses.replace(INTERFACE, **changes))


@contextlib.contextmanager
def serving(agent, protocol: str = "roboarena", **config) -> Iterator[int]:
    """Runs a server on a thread of its own and yields its port."""
    server = PolicyServer(agent, DIALECTS[protocol], ServerConfig(port=0, **config))
    started, loop, stop, port = threading.Event(), asyncio.new_event_loop(), asyncio.Event(), []

    def ready(number: int) -> None:
        port.append(number)
        started.set()

    thread = threading.Thread(target=lambda: loop.run_until_complete(server.run(stop, ready)))
    thread.start()
    assert started.wait(60)
    try:
        yield port[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(60)
        loop.close()
        assert not thread.is_alive()


class Client:
    """Speaks to a server as a robot does; `hello` is the server's first message."""

    def __init__(self, port: int, **options) -> None:
        self.socket: ClientConnection = connect(f"ws://127.0.0.1:{port}", compression=None, max_size=None, **options)
        self.hello = wire.unpack(self.socket.recv(10))

    def send(self, message):
        """Sends a message (bytes and text as they are) and returns the reply; text for errors and resets."""
        self.socket.send(message if isinstance(message, bytes | str) else wire.pack(message))
        reply = self.socket.recv(30)
        return reply if isinstance(reply, str) else wire.unpack(reply)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()


def observation(seed: int, first: int = 1, frames: int | None = None, **more) -> dict:
    """A request of random pictures; exterior cameras count from `first`."""
    random = np.random.default_rng(seed)
    shape = (*SIZE, 3) if frames is None else (frames, *SIZE, 3)
    cameras = [f"exterior_image_{first}_left", f"exterior_image_{first + 1}_left", "wrist_image_left"]
    return {
        **{f"observation/{camera}": random.integers(0, 256, shape, np.uint8) for camera in cameras},
        "observation/joint_position": random.uniform(-1, 1, 7),
        "observation/cartesian_position": random.uniform(-1, 1, 6),
        "observation/gripper_position": random.uniform(0, 1, 1),
        "prompt": "put the cup on the plate",
        **more,
    }


def infer(seed: int, session: str | None = "a", **more) -> dict:
    """A RoboArena request for actions."""
    names = {} if session is None else {"session_id": session}
    return {"endpoint": "infer", **names, **observation(seed, **more)}
