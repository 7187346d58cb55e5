"""PyTorch's zip files, written without PyTorch: a table of contents in pickle, and numbers beside it.

Source of the layout: `torch/serialization.py`, `torch/_utils.py` and `caffe2/serialize/inline_container.cc`.
"""

from __future__ import annotations

import math
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from wamjax.data.files import replacing
from wamjax.interop.files import TORCH_STORAGES

_EPOCH = (1980, 1, 1, 0, 0, 0)  # equal content gives equal bytes
_STORAGES = {np.dtype(dtype): name for name, dtype in TORCH_STORAGES.items()}


def write_torch(path: Path, content: Mapping[str, Any] | np.ndarray) -> None:
    """Writes names and their values, or one array, as `torch.save` would: arrays become tensors, all else stays.

    Raises:
        UserError: the disk is full.
    """
    arrays = (
        [content] if isinstance(content, np.ndarray) else [x for x in content.values() if isinstance(x, np.ndarray)]
    )
    numbers = {id(array): number for number, array in enumerate(arrays)}

    def value(x: Any) -> bytes:
        return _tensor(x, numbers[id(x)]) if isinstance(x, np.ndarray) else _plain(x)

    table = value(content) if isinstance(content, np.ndarray) else _table(content, value)
    table = pickle.PROTO + b"\x02" + table + pickle.STOP
    root = path.name.rsplit(".", 1)[0]
    with replacing(path) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
        entries = {"data.pkl": table, "byteorder": b"little", "version": b"3\n"}
        entries |= {f"data/{number}": np.ascontiguousarray(array).tobytes() for number, array in enumerate(arrays)}
        for name, data in entries.items():
            archive.writestr(zipfile.ZipInfo(f"{root}/{name}", _EPOCH), data)


def _table(content: Mapping[str, Any], value: Callable[[Any], bytes]) -> bytes:
    items = b"".join(_plain(name) + value(x) for name, x in content.items())
    return pickle.EMPTY_DICT + pickle.MARK + items + pickle.SETITEMS


def _plain(value: Any) -> bytes:
    """A value of Python's own types, without what begins and ends a pickle."""
    return pickle.dumps(value, protocol=2)[2:-1]


def _tensor(array: np.ndarray, number: int) -> bytes:
    """What builds a tensor out of the numbers `data/<number>`."""
    strides = tuple(math.prod(array.shape[axis + 1 :]) for axis in range(array.ndim))
    place: tuple[Any, ...] = (str(number), "cpu", array.size)
    return (
        _global("torch._utils", "_rebuild_tensor_v2")
        + pickle.MARK
        + (pickle.MARK + _plain("storage") + _global("torch", _STORAGES[array.dtype]))
        + (b"".join(map(_plain, place)) + pickle.TUPLE + pickle.BINPERSID)
        + (_plain(0) + _plain(array.shape) + _plain(strides) + _plain(False))
        + (_global("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE)
        + (pickle.TUPLE + pickle.REDUCE)
    )


def _global(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()
