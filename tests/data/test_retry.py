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


def of_library(module: str, *names: str) -> Exception:
    """An error of the last of these classes, each of which is one of those before it."""
    kind: type[Exception] = Exception
    for name in names:
        kind = type(name, (kind,), {"__module__": module})
    return kind("said so")


def answered(status: int) -> OSError:
    """What s3fs raises for an answer that it has no error of Python's for."""
    error = OSError(errno.EIO, f"An error occurred ({status})")
    error.__cause__ = of_library("botocore.exceptions", "ClientError")
    error.__cause__.response = {"ResponseMetadata": {"HTTPStatusCode": status}}  # type: ignore[union-attr]
    return error


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EIO, "Input/output error"),
        OSError(errno.ESTALE, "Stale file handle"),
        ConnectionResetError("reset by peer"),
        TimeoutError("timed out"),
        fsspec.exceptions.FSTimeoutError(),
        answered(503),
        answered(429),
        of_library("botocore.exceptions", "ConnectionError", "EndpointConnectionError"),
        of_library("aiohttp.client_exceptions", "ClientPayloadError"),
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
        answered(401),
        answered(403),
        raised_from(answered(404)),
        of_library("botocore.exceptions", "NoCredentialsError"),
        of_library("botocore.exceptions", "ParamValidationError"),
    ],
)
def test_errors_of_the_file(error: BaseException) -> None:
    assert not momentary(error)


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses; time passes in them alone."""
    pauses: list[float] = []
    monkeypatch.setattr("wamjax.data.retry.time.sleep", pauses.append)
    monkeypatch.setattr("wamjax.data.retry.time.monotonic", lambda: 1000 + sum(pauses))
    return pauses


def test_pauses_grow_and_end(slept: list[float]) -> None:
    failures = iter([OSError(errno.EIO, "busy")] * 4)

    def flaky() -> str:
        for error in failures:
            raise error
        return "content"

    assert persistently(flaky, "a bucket") == "content"
    assert slept == [0.5, 1, 2, 4]

    def down() -> str:
        raise TimeoutError("no answer")

    slept.clear()
    with pytest.raises(UserError, match=r"a bucket cannot be reached, 106 s long .*no answer") as caught:
        persistently(lambda: persistently(down, "a bucket"), "a dataset")
    assert not momentary(caught.value)
    assert (sum(slept), max(slept)) == (105.5, 15)

    def damaged() -> str:
        raise OSError("truncated file")

    slept.clear()
    with pytest.raises(OSError, match="truncated"):
        persistently(damaged, "a bucket")
    assert not slept


def test_the_patience_of_a_client_counts(slept: list[float]) -> None:
    def slow() -> str:
        slept.append(50)
        raise TimeoutError("no answer")

    with pytest.raises(UserError, match="cannot be reached, 154 s long"):
        persistently(slow, "a bucket")
    assert slept == [50, 0.5, 50, 1, 50, 2, 50]


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


def test_a_batch_does_not_depend_on_the_weather(folder: Path, slept: list[float]) -> None:
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
