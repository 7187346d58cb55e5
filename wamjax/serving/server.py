"""The policy server: websocket connections on an event loop, one agent on a thread of its own.

Requests of all connections take turns at the agent, in order of arrival; meanwhile the loop answers health checks and
pings, and reads the next messages. Sessions are values that only the request in turn touches, so they need no locks.
"""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import hmac
import http
import logging
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from wamjax.errors import UserError
from wamjax.serving import wire
from wamjax.serving.agent import Agent, Decision, Description, Observation
from wamjax.serving.protocols import RESET_REPLY, Dialect, Infer, Reset, read
from wamjax.serving.sessions import Film, Session, Sessions, save_film

try:
    from websockets.asyncio.server import Request, Response, Server, ServerConnection, serve
    from websockets.exceptions import ConnectionClosed
except ImportError as error:
    raise UserError("the policy server needs websockets: pip install 'websockets>=15'") from error

FILM_BYTES = 256 << 20
"""Imagined frames after which a session's film goes to disk, and a new one begins."""

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class ServerConfig:
    """How a server serves.

    Attributes:
        host, port: where it listens; port 0 takes a free one.
        api_key: what clients must send as `Authorization: Api-Key ...`; None asks for nothing.
        max_sessions: states that are kept at a time; the longest unused one makes room.
        idle_seconds: an unused session ends after so long.
        max_message_mb: larger messages are refused, MiB.
        ping_seconds, ping_timeout: how often connections are checked, and when one is given up.
        videos: folder for what the agent imagines, one film per episode; None leaves it out.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    max_sessions: int = 8
    idle_seconds: float = 1800.0
    max_message_mb: float = 64.0
    ping_seconds: float = 60.0
    ping_timeout: float = 600.0
    videos: Path | None = None

    def __post_init__(self) -> None:
        if self.max_sessions < 1 or self.idle_seconds <= 0 or self.max_message_mb <= 0:
            raise UserError("a server needs room for one session, and idle times and message sizes above zero")


class PolicyServer:
    """Serves one agent in one dialect.

    Args:
        agent: what is served. dialect: how it speaks. config: where and for whom.

    Raises:
        UserError: the agent cannot speak that dialect.
    """

    def __init__(self, agent: Agent, dialect: Dialect, config: ServerConfig) -> None:
        self._agent, self._dialect, self._config = agent, dialect, config
        self._handshake = wire.pack(dialect.handshake(agent.description))
        self._sessions = Sessions(config.max_sessions, config.idle_seconds)
        self._worker = ThreadPoolExecutor(1, "agent")
        self._under_way = 0
        self._stopping = False

    async def run(self, stop: asyncio.Event, ready: Callable[[int], None]) -> None:
        """Warms up, serves until `stop` is set, answers what has been asked by then, and closes.

        Args:
            stop: ends serving. ready: called with the port once clients can connect.

        Raises:
            UserError: the address cannot be listened on.
        """
        self._turn, self._disk, self._idle = asyncio.Lock(), asyncio.Lock(), asyncio.Event()
        self._idle.set()
        began = time.perf_counter()
        await self._work(warm_up, self._agent, self._config.videos is not None)
        _log.info("warmed up in %.1f s", _since(began) / 1000)
        server = await self._listen()
        tidying = asyncio.create_task(self._end_idle_sessions())
        ready(next(iter(server.sockets)).getsockname()[1])
        await stop.wait()
        _log.info("stopping: %d requests are still answered", self._under_way)
        self._stopping = True
        server.close(close_connections=False)
        await self._idle.wait()
        await asyncio.gather(*(c.close(1001, "the server stops") for c in server.connections))
        await server.wait_closed()
        tidying.cancel()
        await self._save(self._sessions.end_all())
        self._worker.shutdown()

    async def _listen(self) -> Server:
        """Opens the socket."""
        config, library = self._config, logging.getLogger(f"{__name__}.websockets")
        library.setLevel(logging.ERROR)
        library.addFilter(_no_failed_handshakes)
        try:
            return await serve(
                self._converse,
                config.host,
                config.port,
                process_request=self._admit,
                compression=None,
                max_size=int(config.max_message_mb * 2**20),
                max_queue=2,
                ping_interval=config.ping_seconds,
                ping_timeout=config.ping_timeout,
                logger=library,
            )
        except OSError as error:
            reasons = {errno.EADDRINUSE: "it is taken", errno.EACCES: "that is not allowed"}
            reason = reasons.get(error.errno or 0, error.strerror or str(error))
            raise UserError(
                f"cannot listen on {config.host}, port {config.port} ({reason}): choose another --port (0 takes a free "
                "one) or --host"
            ) from error

    # ---- connections ----

    def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        """Answers plain HTTP: the health check, and visitors without the key."""
        if request.path == "/healthz":
            return connection.respond(http.HTTPStatus.OK, "OK\n")
        if self._config.api_key is not None:
            given = request.headers.get("Authorization", "")
            if not hmac.compare_digest(given.encode(), f"Api-Key {self._config.api_key}".encode()):
                return connection.respond(http.HTTPStatus.UNAUTHORIZED, "send the header Authorization: Api-Key KEY\n")
        return None

    async def _converse(self, connection: ServerConnection) -> None:
        """One client, from the handshake to the end."""
        own = str(connection.id)
        _log.info("%s connected", _name(connection))
        previous: float | None = None
        try:
            await connection.send(self._handshake)
            async for message in connection:
                began = time.perf_counter()
                if self._stopping or not await self._answer(connection, message, previous):
                    break
                previous = _since(began)
        except ConnectionClosed:
            pass
        finally:
            _log.info("%s disconnected", _name(connection))
            await self._save(self._sessions.end(own))

    async def _answer(self, connection: ServerConnection, message: bytes | str, previous: float | None) -> bool:
        """Answers one message; False ends the conversation."""
        self._under_way += 1
        self._idle.clear()
        try:
            began = time.perf_counter()
            request = read(self._dialect, self._agent.description, message)
            timings = {"decode_ms": _since(began)}
            if isinstance(request, Infer):
                await self._infer(connection, request, timings, previous)
            else:
                await self._reset(connection, request)
            return True
        except UserError as error:
            _log.warning("%s: refused: %s", _name(connection), error)
            await _refuse(connection, str(error))
        except ConnectionClosed:
            raise
        except Exception as error:
            _log.exception("%s: the request failed", _name(connection))
            await _refuse(connection, f"the server failed ({type(error).__name__}): its log has the details")
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._idle.set()
        return False

    # ---- requests ----

    async def _infer(
        self, connection: ServerConnection, request: Infer, timings: dict[str, float], previous: float | None
    ) -> None:
        """Sends the next actions of the request's session; what the agent imagines is computed after they have left."""
        began, own = time.perf_counter(), str(connection.id)
        async with self._turn:
            timings["wait_ms"] = _since(began)
            session, films = self._sessions.use(request.session or own, own, time.monotonic())
            if session.instruction != request.instruction:
                films += session.cut()
                session.state = None
            try:
                decision = await self._work(self._decide, session, request, timings)
            except Exception:  # its state may be half used: the next request begins anew
                self._sessions.end(session.key)
                raise
            packing = time.perf_counter()
            timings |= {"prev_total_ms": previous} if previous is not None else {}
            reply = wire.pack(self._dialect.reply(decision.actions, timings))
            sending = asyncio.create_task(connection.send(reply))
            _report(session, timings | {"encode_ms": _since(packing)})
            if self._config.videos is not None and decision.video is not None:
                session.imagined.append(await self._work(decision.video))
                films += session.cut(FILM_BYTES)
        await self._save(films)
        await sending

    def _decide(self, session: Session, request: Infer, timings: dict[str, float]) -> Decision:
        """Asks the agent, on its thread; a new instruction begins a new episode."""
        began = time.perf_counter()
        if session.state is None:
            session.instruction, session.requests = request.instruction, 0
            session.state = self._agent.start(request.instruction, request.observation)
            timings["start_ms"] = _since(began)
        decision = self._agent.act(session.state, request.observation)
        timings |= {f"{stage}_ms": value for stage, value in decision.timings.items()}
        timings["infer_ms"] = _since(began)
        if not np.isfinite(decision.actions).all():
            raise FloatingPointError("the agent's actions are not finite")
        session.state = decision.state
        session.requests += 1
        return decision

    async def _reset(self, connection: ServerConnection, request: Reset) -> None:
        """Forgets one session, or all that this connection has used."""
        async with self._turn:
            if request.session is None:
                films = self._sessions.end_of(str(connection.id))
            else:
                films = self._sessions.end(request.session)
        await self._save(films)
        await connection.send(RESET_REPLY)

    # ---- sessions ----

    async def _end_idle_sessions(self) -> None:
        """Ends sessions that nobody uses any more, for as long as the server runs."""
        while True:
            await asyncio.sleep(min(30.0, self._config.idle_seconds / 4))
            async with self._turn:
                films = self._sessions.end_idle(time.monotonic())
            await self._save(films)

    async def _save(self, films: list[Film]) -> None:
        """Writes films; one that cannot be written stops nothing."""
        if self._config.videos is None:
            return
        async with self._disk:
            for film in films:
                try:
                    fps = self._agent.description.video_fps
                    path = await asyncio.to_thread(save_film, self._config.videos, film, fps)
                    _log.info("session %r: imagined video in %s", film.name, path)
                except (OSError, UserError) as error:
                    _log.error("session %r: its video is lost: %s", film.name, error)

    async def _work(self, call: Callable[..., _T], *arguments: Any) -> _T:
        """Runs a call on the agent's thread."""
        return await asyncio.get_running_loop().run_in_executor(self._worker, call, *arguments)


async def serve_until_signalled(server: PolicyServer, ready: Callable[[int], None]) -> None:
    """Serves until SIGTERM or Ctrl-C; a second one ends the process at once."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    signals = (signal.SIGTERM, signal.SIGINT)

    def end() -> None:
        stop.set()
        for number in signals:
            loop.remove_signal_handler(number)

    for number in signals:
        loop.add_signal_handler(number, end)
    await server.run(stop, ready)


def warm_up(agent: Agent, video: bool = False) -> None:
    """Compiles what an episode needs, with black pictures."""
    d = agent.description
    observation = blank(d)
    state = agent.start("", observation)
    for _ in range(d.warm_up_calls):
        decision = agent.act(state, observation)
        state = decision.state
        if video and decision.video is not None:
            decision.video()


def blank(description: Description) -> Observation:
    """Black pictures and zeros."""
    frames = {camera: np.zeros((1, *size, 3), np.uint8) for camera, size in description.cameras.items()}
    return Observation(frames, {field: np.zeros(size, np.float32) for field, size in description.state.items()})


async def _refuse(connection: ServerConnection, reason: str) -> None:
    """Tells the client what is wrong, in one line, and closes, as the protocols have it."""
    await connection.send(" ".join(reason.split()))
    await connection.close(1011, "see the text message before")


def _no_failed_handshakes(record: logging.LogRecord) -> bool:
    """Leaves out the stack traces that websockets before 17 logs for visitors that speak no websocket."""
    return record.msg != "opening handshake failed"


def _report(session: Session, timings: dict[str, float]) -> None:
    stages = ", ".join(f"{name.removesuffix('_ms')} {value:.1f}" for name, value in timings.items())
    _log.info("session %r, request %d (ms): %s", session.key, session.requests, stages)


def _name(connection: ServerConnection) -> str:
    host, port, *_ = connection.remote_address or ("client", "?")
    return f"{host}:{port}"


def _since(began: float) -> float:
    return (time.perf_counter() - began) * 1000
