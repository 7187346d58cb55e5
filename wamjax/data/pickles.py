"""Pickled NumPy arrays of strangers, as data: nothing of a pickle is ever imported or called.

Two fences. Only those instructions of the pickle language pass which plain values and NumPy arrays need, and only the
few names below stand for something, namely for classes of this file that keep what they are given; arrays are made
from that afterwards, of numbers alone.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import tokenize
import zipfile
import zlib
from typing import Any

import numpy as np

from wamjax.data.episode import BadEpisode
from wamjax.data.storage import Place, brief

_LIMIT = 1 << 30  # bytes of one array
_INSTRUCTIONS = frozenset(
    [
        *("PROTO", "FRAME", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE"),
        *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
        *("BINUNICODE", "SHORT_BINUNICODE", "BINBYTES", "SHORT_BINBYTES"),
        *("EMPTY_LIST", "LIST", "APPEND", "APPENDS", "EMPTY_DICT", "DICT", "SETITEM", "SETITEMS"),
        *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
        *("MEMOIZE", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET", "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD"),
    ]
)
# What damaged or hostile input raises in the modules used here, found by fuzzing.
_DAMAGE = (
    *(SyntaxError, tokenize.TokenError),  # NumPy's headers are Python
    *(pickle.UnpicklingError, zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError, RuntimeError),
    *(ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, MemoryError, RecursionError),
)


def read_arrays(file: Place) -> dict[str, Any]:
    """The arrays of an `.npz` file by name, or that of an `.npy` file as `""`; pickled ones as values and arrays.

    A pickled object array becomes nested lists of values, one without axes its value.

    Raises:
        BadEpisode: the file is missing, damaged, or its pickles hold anything else.
    """
    try:
        data = file.read_bytes()
        if not data.startswith(b"PK"):
            return {"": _read_npy(data)}
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            if sum(member.file_size for member in members) > _LIMIT:
                raise ValueError(f"more than {_LIMIT} bytes")
            return {member.filename.removesuffix(".npy"): _read_npy(archive.read(member)) for member in members}
    except _DAMAGE as error:
        raise BadEpisode(f"{file} cannot be read as arrays ({brief(error)}): get it again") from error


def safe_loads(data: bytes) -> Any:
    """The value of a pickle that holds plain values and NumPy arrays only.

    Raises:
        ValueError, and others of `_DAMAGE`: it is damaged or holds something else.
    """
    for count, (instruction, argument, _) in enumerate(pickletools.genops(data)):
        if instruction.name not in _INSTRUCTIONS:
            raise ValueError(f"a pickle with {instruction.name}")
        if instruction.name == "LONG_BINPUT" and (not isinstance(argument, int) or argument > count):
            raise ValueError("a pickle that remembers more than it holds")  # would allocate as much memory
    return _finished(_Unpickler(io.BytesIO(data)).load(), {})


class _Array:
    """What a pickle says of an array."""

    def __init__(self, *_: object):
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Dtype(_Array):
    """What a pickle says of a kind of number."""

    def __init__(self, code: Any, *_: object):
        super().__init__()
        self.code = code


class _Scalar(_Array):
    """A NumPy number: its kind and its bytes."""

    def __init__(self, dtype: Any, data: Any):
        super().__init__()
        self.dtype, self.data = dtype, data


class _Encoded(_Array):
    """Bytes that Python 2 wrote as a text."""

    def __init__(self, text: Any, encoding: Any):
        super().__init__()
        if encoding not in ("latin1", "latin-1"):
            raise ValueError(f"a pickle with bytes as {encoding!r}")
        self.data = str(text).encode("latin-1")


_NAMES = {
    **{(f"{module}.multiarray", "_reconstruct"): _Array for module in ("numpy.core", "numpy._core")},
    **{(f"{module}.multiarray", "scalar"): _Scalar for module in ("numpy.core", "numpy._core")},
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _Encoded,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _NAMES:
            raise ValueError(f"a pickle that asks for {module}.{name}")
        return _NAMES[module, name]


def _read_npy(data: bytes) -> Any:
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = header(stream)
    if dtype.hasobject:
        return safe_loads(data[stream.tell() :])
    return _numbers(data[stream.tell() :], dtype, shape, fortran)


def _numbers(data: bytes, dtype: np.dtype, shape: Any, fortran: bool) -> np.ndarray:
    if dtype.kind not in "biuf" or any(type(size) is not int or size < 0 for size in shape):
        raise ValueError(f"an array of {dtype} {shape}")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")


def _finished(value: Any, known: dict[int, Any]) -> Any:
    """A value with arrays for what stands for them; `known` keeps shared parts shared, however often they occur."""
    if id(value) in known:
        return known[id(value)]
    made: Any = value
    if isinstance(value, dict):
        made = {key: _finished(part, known) for key, part in value.items()}
    elif isinstance(value, list | tuple):
        made = type(value)(_finished(part, known) for part in value)
    elif isinstance(value, _Encoded):
        made = value.data
    elif isinstance(value, _Scalar):
        made = np.frombuffer(_bytes(value.data), _dtype(value.dtype))[()].reshape(()).item()
    elif isinstance(value, _Dtype):
        raise ValueError("a pickle with a dtype as a value")
    elif isinstance(value, _Array):
        _, shape, dtype, fortran, data = value.state
        if isinstance(dtype, _Dtype) and str(dtype.code).startswith("O"):
            made = [_finished(part, known) for part in data]
            made = made[0] if shape == () and len(made) == 1 else made
        else:
            made = _numbers(_bytes(data), _dtype(dtype), shape, bool(fortran))
    elif isinstance(value, type):
        raise ValueError("a pickle with a class as a value")
    known[id(value)] = made
    return made


def _bytes(data: Any) -> bytes:
    data = data.data if isinstance(data, _Encoded) else data
    if not isinstance(data, bytes):
        raise ValueError(f"a pickle with {type(data).__name__} for bytes")
    return data


def _dtype(said: Any) -> np.dtype:
    """The kind of number, by its code and byte order."""
    code = said.code if isinstance(said, _Dtype) else None
    if not isinstance(code, str) or code[:1] not in "biuf" or not code[1:].isdigit():
        raise ValueError(f"a pickle with numbers of {code!r}")
    order: Any = said.state[1] if said.state is not None else "="
    if order not in ("<", ">", "=", "|"):
        raise ValueError(f"a pickle with the byte order {order!r}")
    return np.dtype(code).newbyteorder(order)
