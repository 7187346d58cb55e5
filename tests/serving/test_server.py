"""The server over real sockets: episodes, sessions, refusals, limits, films, and its end."""

import asyncio
import dataclasses
import logging
import socket
import threading
import time
import urllib.request

import numpy as np
import pytest
from tiny_server import CAMERAS, HORIZON, SIZE, STATE, Client, historian, infer, observation, serving
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from wamjax.data.episode import Video
from wamjax.data.video import decode
from wamjax.errors import UserError
from wamjax.serving.agent import Decision, Description
from wamjax.serving.protocols import DIALECTS
from wamjax.serving.server import PolicyServer, ServerConfig
from wamjax.serving.sessions import Sessions


@dataclasses.dataclass
class Probe:
    """An agent that counts the steps of its episode, waits and fails on demand."""

    delay: float = 0.0
    fail: list = dataclasses.field(default_factory=list)

    @property
    def description(self) -> Description:
        return Description("probe", dict.fromkeys(CAMERAS, SIZE), STATE, "joint_position", HORIZON, 8, warm_up_calls=1)

    def start(self, instruction, observation):
        return 0

    def act(self, state, observation):
        time.sleep(self.delay)
        if self.fail:
            raise self.fail.pop()
        film = np.full((2, *SIZE, 3), 40 * state, np.uint8)
        return Decision(np.full((HORIZON, 8), state, np.float32), state + 1, {"act": 1.0}, lambda: film)


def step_of(reply) -> int:
    """The step of the episode that a probe's reply belongs to."""
    actions = reply["actions"] if isinstance(reply, dict) else reply
    assert actions.shape == (HORIZON, 8)
    return int(actions[0, 0])


def refused(client: Client, message) -> str:
    """Sends a message that is refused: one line of text, then the end of the connection."""
    reason = client.send(message)
    assert isinstance(reason, str)
    assert "\n" not in reason
    assert "Traceback" not in reason
    with pytest.raises(ConnectionClosed) as closed:
        client.socket.recv(5)
    assert closed.value.rcvd.code == 1011
    return reason


def get(port: int, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as reply:
        return reply.read().decode()


@pytest.mark.parametrize("protocol", ["roboarena", "dreamzero"])
def test_an_episode_in_the_dialects_with_endpoints(protocol):
    with serving(Probe(), protocol) as port, Client(port) as client:
        assert client.hello["image_resolution"] == list(SIZE)
        replies = [client.send(infer(step)) for step in range(3)]
        assert [step_of(reply) for reply in replies] == [0, 1, 2]
        actions = replies[0]["actions"] if protocol == "roboarena" else replies[0]
        assert isinstance(replies[0], dict if protocol == "roboarena" else np.ndarray)
        assert actions.dtype == np.float32
        assert client.send({"endpoint": "reset", "session_id": "a"}) == "reset successful"
        assert step_of(client.send(infer(0))) == 0


def test_an_episode_in_openpi_says_how_long_it_took():
    with serving(Probe(delay=0.02), "openpi") as port, Client(port) as client:
        assert client.hello["action_horizon"] == HORIZON
        first, second = client.send(observation(0)), client.send(observation(1))
        assert [step_of(first), step_of(second)] == [0, 1]
        timing = second["server_timing"]
        assert set(timing) == {"decode_ms", "wait_ms", "act_ms", "infer_ms", "prev_total_ms"}
        assert set(first["server_timing"]) == set(timing) - {"prev_total_ms"} | {"start_ms"}
        assert 20 <= timing["infer_ms"] < timing["prev_total_ms"] + 1000
        assert timing["prev_total_ms"] >= first["server_timing"]["infer_ms"]


def test_a_session_begins_anew_with_another_instruction_or_name_and_lives_on_across_connections():
    with serving(Probe()) as port:
        with Client(port) as client:
            steps = [step_of(client.send(infer(0, **more))) for more in ({}, {}, {"prompt": "other"}, {})]
            assert steps == [0, 1, 0, 0]
            assert step_of(client.send(infer(0, session="b"))) == 0
        with Client(port) as client:
            assert step_of(client.send(infer(0))) == 1
            assert step_of(client.send(infer(0, session="b"))) == 1


def test_without_a_session_id_every_connection_is_one():
    with serving(Probe()) as port, Client(port) as one, Client(port) as other:
        assert [step_of(one.send(infer(0, session=None))) for _ in range(3)] == [0, 1, 2]
        assert step_of(other.send(infer(0, session=None))) == 0
        assert one.send({"endpoint": "reset"}) == "reset successful"
        assert step_of(one.send(infer(0, session=None))) == 0
        assert step_of(other.send(infer(0, session=None))) == 1


def test_a_reset_without_a_name_forgets_what_the_connection_used():
    with serving(Probe()) as port, Client(port) as one, Client(port) as other:
        one.send(infer(0, session="a"))
        one.send(infer(0, session="b"))
        other.send(infer(0, session="c"))
        one.send({"endpoint": "reset"})
        assert [step_of(one.send(infer(0, session=name))) for name in "abc"] == [0, 0, 1]


def run_alone(seeds: list[int], session: str, text: str) -> list[np.ndarray]:
    """The actions of an episode with a server to itself."""
    with serving(historian()) as port, Client(port) as client:
        return [client.send(infer(seed, session, prompt=text))["actions"] for seed in seeds]


def test_two_interleaved_sessions_give_the_actions_of_two_separate_runs():
    episodes = {"left": ([1, 2, 3, 4, 5, 6], "one"), "right": ([11, 12, 13, 14, 15, 16], "two")}
    alone = {name: run_alone(seeds, name, text) for name, (seeds, text) in episodes.items()}
    assert not np.allclose(alone["left"][-1], alone["right"][-1])
    with serving(historian()) as port, Client(port) as left, Client(port) as right:
        clients = {"left": left, "right": right}
        for step, order in enumerate([("left", "right"), ("right", "left")] * 3):
            for name in order:
                seeds, text = episodes[name]
                actions = clients[name].send(infer(seeds[step], name, prompt=text))["actions"]
                np.testing.assert_array_equal(actions, alone[name][step])


def test_requests_of_many_threads_at_once_stay_apart():
    alone = {name: run_alone([5, 6, 7], name, name) for name in "abcd"}
    together: dict[str, list] = {}

    def drive(port: int, name: str) -> None:
        with Client(port) as client:
            together[name] = [client.send(infer(seed, name, prompt=name))["actions"] for seed in (5, 6, 7)]

    with serving(historian()) as port:
        threads = [threading.Thread(target=drive, args=(port, name)) for name in alone]
        [thread.start() for thread in threads]
        [thread.join(60) for thread in threads]
    for name, actions in alone.items():
        np.testing.assert_array_equal(together[name], actions)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"\xc1\x00", "not msgpack"),
        ("hello", "binary"),
        ({"endpoint": "infer"}, "'prompt' is missing"),
        (infer(0, frames=0), "no frames"),
    ],
)
def test_malformed_messages_are_refused_and_harm_nobody_else(message, reason):
    with serving(historian()) as port, Client(port) as good:
        first = good.send(infer(1))["actions"]
        with Client(port) as bad:
            assert reason in refused(bad, message)
        second = good.send(infer(2))["actions"]
    alone = run_alone([1, 2], "a", "put the cup on the plate")
    np.testing.assert_array_equal([first, second], alone)


def test_a_refused_request_leaves_its_own_session_as_it_was():
    with serving(Probe()) as port:
        with Client(port) as client:
            assert step_of(client.send(infer(0))) == 0
            refused(client, infer(0) | {"observation/wrist_image_left": np.zeros(3)})
        with Client(port) as client:
            assert step_of(client.send(infer(0))) == 1


@pytest.mark.parametrize("failure", [ZeroDivisionError("secret detail"), UserError("the instruction is too long")])
def test_a_failing_agent_is_one_line_for_the_client_and_its_session_begins_anew(failure, caplog):
    agent = Probe()
    with serving(agent) as port, Client(port) as good:
        good.send(infer(0, "good"))
        with Client(port) as client:
            client.send(infer(0))
            agent.fail.append(failure)
            reason = refused(client, infer(0))
        users_own = isinstance(failure, UserError)
        assert ("too long" in reason) if users_own else ("ZeroDivisionError" in reason and "secret" not in reason)
        assert ("Traceback" in caplog.text) == (not users_own)
        with Client(port) as client:
            assert step_of(client.send(infer(0))) == 0
        assert step_of(good.send(infer(0, "good"))) == 1


def test_actions_that_are_not_finite_never_reach_a_robot():
    class Broken(Probe):
        def act(self, state, observation):
            return dataclasses.replace(super().act(state, observation), actions=np.full((HORIZON, 8), np.nan))

    with serving(Broken()) as port, Client(port) as client:
        assert "the server failed" in refused(client, infer(0))


def test_too_large_a_message_ends_its_connection_only():
    with serving(Probe(), max_message_mb=0.01) as port, Client(port) as small, Client(port) as large:
        assert step_of(small.send(infer(0))) == 0
        with pytest.raises(ConnectionClosed) as closed:
            large.send(infer(0, frames=50))
        assert closed.value.rcvd.code == 1009
        assert step_of(small.send(infer(0))) == 1


def test_the_longest_unused_session_makes_room():
    with serving(Probe(), max_sessions=2) as port, Client(port) as client:
        assert [step_of(client.send(infer(0, name))) for name in "abacab"] == [0, 0, 1, 0, 2, 0]


def test_unused_sessions_end():
    with serving(Probe(), idle_seconds=1) as port, Client(port) as client:
        client.send(infer(0))
        assert step_of(client.send(infer(0))) == 1
        time.sleep(1.6)
        assert step_of(client.send(infer(0))) == 0


def test_sessions_keep_no_state_of_what_has_ended():
    sessions = Sessions(limit=2, idle_seconds=10)
    for number, key in enumerate("abca"):
        session, _ = sessions.use(key, "connection", now=number)
        session.imagined.append(np.zeros((1, 2, 2, 3), np.uint8))
    assert len(sessions) == 2  # c and the new a: a and b made room
    assert [film.name for film in sessions.end_idle(now=12.5)] == ["c"]
    assert [film.name for film in sessions.end_of("connection")] == ["a"]
    assert not sessions.end_all()
    assert len(sessions) == 0


def test_the_key_is_asked_for_but_not_by_the_health_check():
    with serving(Probe(), api_key="secret") as port:
        assert get(port, "/healthz") == "OK\n"
        for headers in ({}, {"Authorization": "Api-Key wrong"}, {"Authorization": "Bearer secret"}):
            with pytest.raises(InvalidStatus) as refusal:
                Client(port, additional_headers=headers)
            assert refusal.value.response.status_code == 401
        with Client(port, additional_headers={"Authorization": "Api-Key secret"}) as client:
            assert step_of(client.send(infer(0))) == 0


def test_the_health_check_answers_while_the_agent_works():
    with serving(Probe(delay=1.0)) as port, Client(port) as client:
        answers = []
        thread = threading.Thread(target=lambda: answers.append(client.send(infer(0))))
        thread.start()
        time.sleep(0.2)
        began = time.perf_counter()
        assert get(port, "/healthz") == "OK\n"
        assert time.perf_counter() - began < 0.5
        assert not answers
        thread.join(30)
        assert step_of(answers[0]) == 0


def test_stopping_answers_what_was_asked_and_takes_no_more():
    replies = []
    with serving(Probe(delay=0.5)) as port:
        client, idle, late = Client(port), Client(port), Client(port)
        threads = [
            threading.Thread(target=lambda c=c, n=n: replies.append(c.send(infer(0, n))))
            for c, n in ((client, "a"), (late, "b"))
        ]
        [thread.start() for thread in threads]
        time.sleep(0.2)  # one request at the agent, one waiting for its turn
    [thread.join(30) for thread in threads]
    assert [step_of(reply) for reply in replies] == [0, 0]
    with pytest.raises(ConnectionClosed) as closed:
        idle.socket.recv(5)
    assert closed.value.rcvd.code == 1001
    with pytest.raises(ConnectionRefusedError):
        Client(port)


def test_what_was_imagined_is_filmed_per_episode(tmp_path):
    with serving(Probe(), videos=tmp_path) as port, Client(port) as client:
        for _ in range(3):
            client.send(infer(0, "robot/../1"))
        client.send({"endpoint": "reset", "session_id": "robot/../1"})
        assert [path.name for path in tmp_path.iterdir()] == ["robot_1_0000.mp4"]
        client.send(infer(0, "robot/../1"))
        client.send(infer(0, "robot/../1", prompt="other"))
    films = sorted(tmp_path.iterdir())
    assert [path.name for path in films] == [f"robot_1_{number:04}.mp4" for number in range(3)]
    frames = decode(Video(films[0].read_bytes(), 6, *SIZE))
    np.testing.assert_allclose(frames.mean(axis=(1, 2, 3)), [0, 0, 40, 40, 80, 80], atol=3)


def test_the_films_of_a_policy_show_its_views_side_by_side(tmp_path):
    with serving(historian(), videos=tmp_path) as port, Client(port) as client:
        given = infer(0)
        given["observation/wrist_image_left"][:] = 200
        client.send(given)
    frames = decode(Video(next(tmp_path.iterdir()).read_bytes(), 2, SIZE[0], 3 * SIZE[1]))
    np.testing.assert_allclose(frames[:, :, 2 * SIZE[1] :].mean(), 200, atol=3)


def test_a_film_that_cannot_be_written_stops_nothing(tmp_path, caplog):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with serving(Probe(), videos=blocked) as port, Client(port) as client:
        client.send(infer(0))
        assert client.send({"endpoint": "reset"}) == "reset successful"
    assert "its video is lost" in caplog.text


def test_every_request_is_logged_with_its_stages(caplog):
    with caplog.at_level(logging.INFO, "wamjax.serving"), serving(Probe()) as port, Client(port) as client:
        client.send(infer(0, "my robot"))
    line = next(record.getMessage() for record in caplog.records if "request 1" in record.getMessage())
    assert line.startswith("session 'my robot', request 1 (ms): decode ")
    assert all(stage in line for stage in ("wait ", "start ", "act 1.0", "infer ", "encode "))


def test_messages_are_not_compressed_even_for_clients_that_offer_it():
    with serving(Probe()) as port, connect(f"ws://127.0.0.1:{port}", compression="deflate") as client:
        assert not client.protocol.extensions


def test_a_session_without_a_name_ends_with_its_connection(tmp_path):
    with serving(Probe(), videos=tmp_path) as port:
        with Client(port) as client:
            client.send(infer(0, session=None))
            client.send(infer(0, session="named"))
        deadline = time.monotonic() + 20
        while not list(tmp_path.glob("*.mp4")) and time.monotonic() < deadline:
            time.sleep(0.02)
        (film,) = tmp_path.glob("*.mp4")  # written at once; the named session goes on
        assert not film.name.startswith("named")


def test_a_visitor_that_speaks_no_websocket_leaves_no_stack_trace(caplog, capfd):
    with serving(Probe()) as port:
        for greeting in (b"\x16\x03\x01 this is no HTTP\r\n\r\n", b""):
            with socket.create_connection(("127.0.0.1", port)) as visitor:
                visitor.sendall(greeting)
                visitor.shutdown(socket.SHUT_WR)
                visitor.recv(1000)  # until the server has given up
        with Client(port) as client:
            assert step_of(client.send(infer(0))) == 0
    assert "Traceback" not in caplog.text + capfd.readouterr().err


def test_a_taken_port_is_one_line():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = PolicyServer(Probe(), DIALECTS["roboarena"], ServerConfig(port=port))

        async def run() -> None:
            await server.run(asyncio.Event(), lambda port: None)

        with pytest.raises(UserError, match=f"port {port} .it is taken"):
            asyncio.run(run())


@pytest.mark.parametrize("option", ["max_sessions", "idle_seconds", "max_message_mb"])
def test_limits_of_nothing_are_refused(option):
    with pytest.raises(UserError, match="above zero"):
        ServerConfig(**{option: 0})
