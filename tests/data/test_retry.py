"""Storage that fails for a while is asked again; what is damaged, missing or forbidden is not."""

import errno
import http.client
from collections.abc import Callable
from pathlib import Path

import av
import fsspec
import numpy as np
import pytest

from wamjax.data.episode import BadEpisode, Episode
from wamjax.data.pipeline import REPLACED, SAMPLE, ClipConfig, batches, replaced
from wamjax.data.retry import momentary, persistently
from wamjax.data.store import EpisodeStore
from wamjax.errors import UserError


def raised_from(cause: BaseException) -> BaseException:
    try:
        raise BadEpisode("a file cannot be read") from cause
    except BadEpisode as error:
        return error


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EIO, "Input/output error"),
        OSError(errno.ESTALE, "Stale file handle"),
        ConnectionResetError("reset by peer"),
        TimeoutError("timed out"),
        fsspec.exceptions.FSTimeoutError(),
        http.client.IncompleteRead(b""),
        raised_from(OSError(errno.ETIMEDOUT, "Connection timed out")),
    ],
)
def test_errors_of_the_moment(error: BaseException) -> None:
    assert momentary(error)


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file"),
        PermissionError(errno.EACCES, "Permission denied"),
        OSError("Unable to open file (truncated file)"),  # h5py, pyarrow
        av.error.OSError(errno.EIO, "Input/output error"),
        ValueError("damaged"),
        BadEpisode("damaged"),
        raised_from(FileNotFoundError(errno.ENOENT, "No such file")),
    ],
)
def test_errors_of_the_file(error: BaseException) -> None:
    assert not momentary(error)


def test_pauses_grow_and_end() -> None:
    pauses: list[float] = []
    failures = iter([OSError(errno.EIO, "busy")] * 4)

    def flaky() -> str:
        for error in failures:
            raise error
        return "content"

    assert persistently(flaky, "a bucket", pause=pauses.append) == "content"
    assert pauses == [0.5, 1, 2, 4]

    def down() -> str:
        raise TimeoutError("no answer")

    pauses.clear()
    with pytest.raises(UserError, match=r"a bucket cannot be reached, 106 s long .*no answer"):
        persistently(down, "a bucket", pause=pauses.append)
    assert sum(pauses) <= 120
    assert max(pauses) == 15

    def damaged() -> str:
        raise OSError("truncated file")

    with pytest.raises(OSError, match="truncated"):
        persistently(damaged, "a bucket", pause=pytest.fail)


class Flaky(EpisodeStore):
    """Fails every other time for a moment, and for ever where a file is missing."""

    missing = 3

    def __getitem__(self, index: int) -> Episode:
        calls = vars(self).setdefault("calls", {})
        calls[index] = calls.get(index, 0) + 1
        if index == self.missing:
            raise FileNotFoundError(errno.ENOENT, "No such file", "episode_3.mp4")
        if calls[index] % 2:
            raise ConnectionResetError("reset by peer")
        return super().__getitem__(index)


def test_a_batch_does_not_depend_on_the_weather(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("wamjax.data.retry.time.sleep", slept.append)
    monkeypatch.setattr(persistently, "__defaults__", (120.0, slept.append))
    tokenize: Callable[[str], np.ndarray] = lambda text: np.array([len(text)])  # noqa: E731
    options = {"batch_size": 51, "seed": 0, "tokenize": tokenize, "threads": 1, "numbered": True}
    clip = ClipConfig(cameras=("corner2",), images="zero")
    found = next(batches(Flaky(folder), clip, **options))
    calm = next(batches(EpisodeStore(folder), clip, **options))
    assert slept
    told = replaced(found)
    rows = {entry["row"] for entry in told}
    assert {(entry["episode"], entry["reason"]) for entry in told} == {
        (3, "it cannot be read (FileNotFoundError: [Errno 2] No such file: 'episode_3.mp4')")
    }
    same = np.array([row not in rows for row in range(51)])
    assert len(rows) == 12
    assert REPLACED not in calm
    for name in calm:
        np.testing.assert_array_equal(found[name][same], calm[name][same])
    assert (found[SAMPLE][~same] != calm[SAMPLE][~same]).all()
