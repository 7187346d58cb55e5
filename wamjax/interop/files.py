"""Tensors in files, read one at a time: safetensors (single or sharded) and PyTorch's .pth, without PyTorch.

Opening a file reads its table of contents and checks that it is whole; a tensor's numbers, or a part of them, are read
when asked for.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import ml_dtypes
import numpy as np

from wamjax.errors import UserError

Index = tuple[slice, ...]
"""A part of an array: a slice for each axis; () for all of it."""


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor that has not been read.

    Attributes:
        shape, dtype: of the array.
        part: reads what lies at an index.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    part: Callable[[Index], np.ndarray]

    def read(self) -> np.ndarray:
        """All of it."""
        return self.part(())


Tensors = Mapping[str, Tensor]

SAFETENSORS_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
TORCH_STORAGES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
INDEX = ".safetensors.index.json"


def open_tensors(path: Path) -> Tensors:
    """The tensors of a file by name: `*.safetensors`, an index `*.safetensors.index.json`, `*.pth`, `*.pt` or `*.bin`.

    Raises:
        UserError: no such file, another format, a damaged or shortened file, an index that does not fit its shards.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    if path.name.endswith(INDEX):
        return _open_index(path)
    if path.suffix == ".safetensors":
        return _open_safetensors(path)
    if path.suffix in (".pth", ".pt", ".bin"):
        return _open_torch(path)
    raise UserError(f"{path} is of no known format: give a .safetensors, its index, or a .pth file")


def _open_safetensors(path: Path) -> Tensors:
    import safetensors

    try:
        file = safetensors.safe_open(path, "np")
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged or cut short ({error}): download it again") from error

    def tensor(name: str) -> Tensor:
        part = file.get_slice(name)
        kind = part.get_dtype()
        if kind not in SAFETENSORS_DTYPES:
            raise UserError(f"{path}: tensor {name} is of type {kind}, which cannot be read")
        return Tensor(tuple(part.get_shape()), np.dtype(SAFETENSORS_DTYPES[kind]), part.__getitem__)

    return {name: tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)


def _open_index(path: Path) -> Tensors:
    try:
        places = dict(json.loads(path.read_text())["weight_map"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no index of safetensors shards: download it again") from error
    absent = sorted({name for name in places.values() if not (path.parent / name).is_file()})
    if absent:
        raise UserError(f"{path.parent} lacks {len(absent)} of its shards (first {absent[0]}): download them again")
    tensors: dict[str, Tensor] = {}
    for shard in sorted(set(places.values())):
        found = _open_safetensors(path.parent / shard)
        listed = {name for name, place in places.items() if place == shard}
        if found.keys() != listed:
            odd = sorted(found.keys() ^ listed)
            raise UserError(
                f"{path} and {shard} disagree about {len(odd)} tensors (first {odd[0]}): download both again"
            )
        tensors |= found
    return tensors


def read_torch(path: Path) -> Any:
    """Whatever a PyTorch file holds, with arrays for its tensors.

    Raises:
        UserError: a damaged or shortened file, or one that holds anything but tensors and plain values.
    """
    return _read(_torch_tree(path))


def _read(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _read(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(_read(value) for value in tree)
    return tree.read() if isinstance(tree, Tensor) else tree


def _open_torch(path: Path) -> Tensors:
    tensors = dict(_leaves(_torch_tree(path)))
    if not tensors:
        raise UserError(f"{path} holds no tensors by name")
    return tensors


def _torch_tree(path: Path) -> Any:
    """The table of contents is a pickle: only what tensors are made of is ever built from it."""
    try:
        archive = zipfile.ZipFile(path)
        (contents,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        with archive.open(contents) as file:
            return _Weights(file, archive, contents.removesuffix("data.pkl")).load()
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path}") from error
    except (zipfile.BadZipFile, ValueError, EOFError, IndexError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is damaged, cut short, or not of PyTorch's zip format ({error}): download it again, "
            "or load it in PyTorch and save it as safetensors"
        ) from error
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} is refused: {error}") from error


def _leaves(tree: Any, prefix: str = "") -> Any:
    """Named tensors of nested dicts; a lone "state_dict" or "model_state" around them does not count as a name."""
    for name, value in tree.items() if isinstance(tree, dict) else ():
        if isinstance(value, Tensor):
            yield f"{prefix}{name}", value
        elif isinstance(value, dict):
            yield from _leaves(value, prefix if len(tree) == 1 else f"{prefix}{name}.")


@dataclasses.dataclass(frozen=True)
class _Storage:
    """A run of numbers in the archive."""

    dtype: np.dtype
    count: int
    numbers: Callable[[], np.ndarray]


class _Weights(pickle.Unpickler):
    """Reads a state dict; whatever else the pickle asks for is refused."""

    def __init__(self, file: IO[bytes], archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(file)
        self.archive, self.folder = archive, folder

    def numbers(self, entry: str, dtype: np.dtype) -> np.ndarray:
        """A storage, of which only what is asked for comes into memory if the archive does not compress it."""
        info = self.archive.getinfo(entry)
        if info.compress_type != zipfile.ZIP_STORED or not info.file_size:
            return np.frombuffer(self.archive.read(entry), dtype)
        with open(str(self.archive.filename), "rb") as file:
            file.seek(info.header_offset + 26)  # of the entry's own header: 30 bytes, its name, and padding
            name, extra = struct.unpack("<HH", file.read(4))
        start = info.header_offset + 30 + name + extra
        return np.memmap(str(self.archive.filename), dtype, "r", start, (info.file_size // dtype.itemsize,))

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda tensor, *_: tensor
        if module == "torch" and name in TORCH_STORAGES:
            return np.dtype(TORCH_STORAGES[name])
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no file of weights needs; do not trust it")

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _, count = pid
        entry = f"{self.folder}data/{key}"
        if kind != "storage" or self.archive.getinfo(entry).file_size != count * dtype.itemsize:
            raise ValueError(f"{entry} is not {count} numbers of {dtype}")
        return _Storage(dtype, count, lambda: self.numbers(entry, dtype))


def _rebuild(storage: _Storage, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    last = offset + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
    if not all(isinstance(x, int) and x >= 0 for x in (offset, *shape, *stride)) or last >= max(storage.count, 1):
        raise ValueError(f"a tensor of shape {shape} reaches beyond its {storage.count} numbers")

    def part(index: Index) -> np.ndarray:
        flat = np.asarray(storage.numbers()[offset:])
        strides = tuple(s * storage.dtype.itemsize for s in stride)
        return np.lib.stride_tricks.as_strided(flat, shape, strides, writeable=False)[index]

    return Tensor(tuple(shape), storage.dtype, part)
