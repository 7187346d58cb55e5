"""Storage that fails for a while is asked again; what is damaged is not.

An error is of the moment where the system or a client of remote storage says so: that is a question of its number or of
the library that raised it, since libraries of file formats raise `OSError` for damaged files, too.
"""

from __future__ import annotations

import errno
import http.client
import logging
import time
from collections.abc import Callable
from typing import TypeVar

from wamjax.errors import UserError, brief

T = TypeVar("T")

SECONDS = 120.0
"""For so long storage is asked again."""

_NUMBERS = frozenset(
    getattr(errno, name)
    for name in (
        *("EIO", "EAGAIN", "EBUSY", "ESTALE", "ETIMEDOUT", "EREMOTEIO", "EPIPE", "ENOBUFS", "ENOTCONN", "EMFILE"),
        *("ECONNRESET", "ECONNREFUSED", "ECONNABORTED", "ENETDOWN", "ENETUNREACH", "EHOSTDOWN", "EHOSTUNREACH"),
    )
    if hasattr(errno, name)
)
_CLIENTS = ("fsspec", "gcsfs", "s3fs", "aiohttp", "requests", "urllib3", "botocore", "aiobotocore", "google")
# Parts of the names of the clients' classes for trouble on the way, and answers of a service that is busy.
_ON_THE_WAY = ("Connection", "Timeout", "HTTPClient", "Payload", "Transport", "Protocol", "Chunked", "Checksum")
_BUSY = ("408", "425", "429", "5")
_OF_THE_FILE = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
_log = logging.getLogger(__name__)


def momentary(error: BaseException | None) -> bool:
    """Whether an error, or one that it was raised from, may be gone when one tries again."""
    if error is None or isinstance(error, _OF_THE_FILE) or type(error) is UserError:  # which was tried again already
        return False
    if isinstance(error, ConnectionError | TimeoutError | http.client.HTTPException):
        return True
    if answer := _answer(error) or _answer(error.__cause__):
        return answer.startswith(_BUSY)
    if of_client(error):
        return any(part in kind.__name__ for part in _ON_THE_WAY for kind in type(error).__mro__)
    if _library(error) == "av":  # PyAV gives damage the system's numbers
        return False
    return (isinstance(error, OSError) and error.errno in _NUMBERS) or momentary(error.__cause__)


def of_client(error: BaseException) -> bool:
    """Whether a client of remote storage raised it."""
    return _library(error) in _CLIENTS


def _answer(error: BaseException | None) -> str:
    """The status of a service's answer, if that is what the error tells."""
    told = getattr(error, "response", None)  # botocore's
    known = told.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(told, dict) else None
    status = str(known or getattr(error, "status", None) or getattr(error, "code", None))
    return status if status.isdigit() else ""


def _library(error: BaseException) -> str:
    return type(error).__module__.partition(".")[0]


def persistently(read: Callable[[], T], what: object, seconds: float = SECONDS) -> T:
    """What `read` returns, asked again with growing pauses while its errors are of the moment.

    Args:
        what: where it reads from, for the message. seconds: how long after the first failure it is still asked.

    Raises:
        UserError: it still failed after that. All other errors are passed on at once.
    """
    failed, wait = 0.0, 0.5
    while True:
        try:
            return read()
        except Exception as error:
            if not momentary(error):
                raise
            failed = failed or time.monotonic()  # the patience of a client, often half a minute, counts as well
            gone = time.monotonic() - failed
            if gone + wait > seconds:
                raise UserError(
                    f"{what} cannot be reached, {gone:.0f} s long ({brief(error)}): start again when it can"
                ) from error
            _log.warning("%s cannot be reached (%s): asked again in %g s", what, brief(error), wait)
        time.sleep(wait)
        wait = min(2 * wait, 15.0)
