"""Sessions: what the server keeps of every episode that is going on, and the films of what was imagined."""

from __future__ import annotations

import dataclasses
import re
from collections import OrderedDict
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from wamjax.data.files import replacing
from wamjax.data.video import encode
from wamjax.serving.agent import State


@dataclasses.dataclass(frozen=True)
class Film:
    """What an agent imagined in one episode, or in a part of it.

    Attributes:
        name: the session's key. frames: chunk after chunk.
    """

    name: str
    frames: list[UInt8[np.ndarray, "t h w 3"]]


@dataclasses.dataclass
class Session:
    """One robot's episode, or several one after another.

    Attributes:
        key: the client's session_id, or the connection's own where it sends none.
        connection: the connection that used it last.
        used: when, by the server's clock.
        instruction, state: of the episode under way; no state before its first request.
        requests: of the episode that were answered.
        imagined: frames that are in no film yet.
    """

    key: str
    connection: str
    used: float
    instruction: str | None = None
    state: State | None = None
    requests: int = 0
    imagined: list[UInt8[np.ndarray, "t h w 3"]] = dataclasses.field(default_factory=list)

    def cut(self, at_bytes: int = 0) -> list[Film]:
        """Takes the imagined frames off as a film, if there are any, and at least so many bytes."""
        if not self.imagined or sum(frames.nbytes for frames in self.imagined) < at_bytes:
            return []
        film, self.imagined = Film(self.key, self.imagined), []
        return [film]


class Sessions:
    """At most `limit` sessions; the one that was used longest ago makes room for a new one.

    Whatever ends sessions returns their films, and keeps nothing of their states.

    Args:
        limit: sessions, and so states, that are kept.
        idle_seconds: a session that is not used for so long ends.
    """

    def __init__(self, limit: int, idle_seconds: float) -> None:
        self._limit, self._idle = limit, idle_seconds
        self._table: OrderedDict[str, Session] = OrderedDict()

    def __len__(self) -> int:
        return len(self._table)

    def use(self, key: str, connection: str, now: float) -> tuple[Session, list[Film]]:
        """The session of a key, begun where there is none, and the films of those that ended to make room for it."""
        films = []
        if key not in self._table:
            films = self._end(list(self._table)[: max(0, len(self._table) - self._limit + 1)])
            self._table[key] = Session(key, connection, now)
        session = self._table[key]
        self._table.move_to_end(key)
        session.connection, session.used = connection, now
        return session, films

    def end(self, key: str) -> list[Film]:
        """Ends the session of a key, if there is one."""
        return self._end([key] if key in self._table else [])

    def end_of(self, connection: str) -> list[Film]:
        """Ends the sessions that were last used by a connection."""
        return self._end([key for key, session in self._table.items() if session.connection == connection])

    def end_idle(self, now: float) -> list[Film]:
        """Ends the sessions that nobody has used for too long."""
        return self._end([key for key, session in self._table.items() if now - session.used > self._idle])

    def end_all(self) -> list[Film]:
        """Ends every session."""
        return self._end(list(self._table))

    def _end(self, keys: list[str]) -> list[Film]:
        return [film for key in keys for film in self._table.pop(key).cut()]


def save_film(folder: Path, film: Film, fps: float) -> Path:
    """Writes a film to the next free file of its name, and returns it."""
    frames = np.concatenate(film.frames)
    name = re.sub(r"[^A-Za-z0-9-]+", "_", film.name)[:64]
    folder.mkdir(parents=True, exist_ok=True)
    numbers = [int(path.stem.rpartition("_")[2]) for path in folder.glob(f"{name}_[0-9][0-9][0-9][0-9].mp4")]
    path = folder / f"{name}_{max(numbers, default=-1) + 1:04}.mp4"
    even = frames.shape[1] % 2 == frames.shape[2] % 2 == 0
    with replacing(path) as partial:
        partial.write_bytes(encode(frames, fps, everywhere=even).data)
    return path
