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

from wamjax.data.storage import brief
from wamjax.errors import UserError

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
_OF_THE_FILE = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
_log = logging.getLogger(__name__)


def momentary(error: BaseException | None) -> bool:
    """Whether an error, or one that it was raised from, may be gone when one tries again."""
    if error is None:
        return False
    library = type(error).__module__.partition(".")[0]
    if isinstance(error, _OF_THE_FILE) or library == "av":  # PyAV gives damage the system's numbers
        return False
    if isinstance(error, ConnectionError | TimeoutError | http.client.HTTPException) or library in _CLIENTS:
        return True
    return (isinstance(error, OSError) and error.errno in _NUMBERS) or momentary(error.__cause__)


def persistently(
    read: Callable[[], T], what: object, seconds: float = SECONDS, pause: Callable[[float], None] = time.sleep
) -> T:
    """What `read` returns, asked again with growing pauses while its errors are of the moment.

    Args:
        what: where it reads from, for the message. seconds: the pauses altogether, at most.

    Raises:
        UserError: it still failed after that. All other errors are passed on at once.
    """
    waited, wait = 0.0, 0.5
    while True:
        try:
            return read()
        except Exception as error:
            if not momentary(error):
                raise
            if waited + wait > seconds:
                raise UserError(
                    f"{what} cannot be reached, {waited:.0f} s long ({brief(error)}): start again when it can"
                ) from error
            _log.warning("%s cannot be reached (%s): asked again in %g s", what, brief(error), wait)
        pause(wait)
        waited, wait = waited + wait, min(2 * wait, 15.0)
