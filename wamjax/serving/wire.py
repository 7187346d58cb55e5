"""Messages as bytes: msgpack with the numpy extension that openpi, RoboArena and DreamZero share.

An array travels as the map {b"__ndarray__": true, b"data": its bytes in C order, b"dtype": dtype.str, b"shape": ...},
a numpy scalar as {b"__npgeneric__": true, b"data": its value, b"dtype": dtype.str}. Decoded arrays are read-only views
of the message. Format: packages/openpi-client/src/openpi_client/msgpack_numpy.py of Physical-Intelligence/openpi.
"""

from __future__ import annotations

import math
import re
from typing import Any

import msgpack
import numpy as np

from wamjax.errors import UserError

REFUSED_KINDS = "VOc"
"""Kinds of dtype that do not travel: raw bytes and structures, Python objects, complex numbers."""

_DTYPE = re.compile(r"[<>|=]?[biufSU]\d+")


def pack(message: Any) -> bytes:
    """A message of maps, lists, texts, numbers and arrays as bytes.

    Raises:
        UserError: an array of a kind that does not travel.
    """
    return msgpack.packb(message, default=_encode)


def unpack(data: bytes) -> Any:
    """The message that `pack` made of it.

    Raises:
        UserError: the message is damaged, or holds an array of a kind that does not travel.
    """
    try:
        return msgpack.unpackb(data, object_hook=_decode)
    except (ValueError, TypeError, OverflowError, msgpack.exceptions.UnpackException) as error:
        reason = str(error) or type(error).__name__
        raise UserError(f"the message is not msgpack with numpy arrays: {reason}") from error


def _encode(value: Any) -> Any:
    if not isinstance(value, np.ndarray | np.generic):
        return value  # msgpack says that it cannot pack it
    if value.dtype.kind in REFUSED_KINDS:
        raise UserError(f"arrays of dtype {value.dtype} do not travel")
    if isinstance(value, np.ndarray):
        return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
    return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}


def _decode(value: dict[Any, Any]) -> Any:
    if b"__ndarray__" in value:
        return _array(value.get(b"data"), _dtype(value.get(b"dtype")), value.get(b"shape"))
    if b"__npgeneric__" in value:
        return _dtype(value.get(b"dtype")).type(value.get(b"data"))
    return value


def _dtype(name: Any) -> np.dtype[Any]:
    if not isinstance(name, str) or not _DTYPE.fullmatch(name):
        raise UserError(f"arrays of dtype {name!r} do not travel: use booleans, numbers or text")
    return np.dtype(name)


def _array(data: Any, dtype: np.dtype[Any], shape: Any) -> np.ndarray:
    if not isinstance(data, bytes) or not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        raise UserError("an array of the message lacks its bytes or its shape")
    if math.prod(shape) * dtype.itemsize != len(data):
        raise UserError(f"an array of shape {tuple(shape)} and dtype {dtype} cannot have {len(data)} bytes")
    return np.ndarray(tuple(shape), dtype, buffer=data)
