"""Parameters from files onto devices, in pieces: what a host holds at a time does not grow with the model.

On a mesh every device reads a share of its own of a piece, along the axis in which the numbers lie in the file, and the
devices exchange what they read for what they are to hold. So a run of many processes reads a file once, not once
per process, and columns of a matrix, whose numbers are strewn over a whole file, cost no more than rows.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from wamjax.interop.files import Index
from wamjax.interop.keymap import packed

PIECE = 2**27
"""Bytes of a leaf, as stored, that are on their way at a time, over all devices; a layer of it may be more."""
SMALL = 2**20
"""Bytes of a leaf below which every device reads by itself what it holds."""


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A parameter that is read layer by layer.

    Attributes:
        shape, dtype: of the whole.
        stacked: whether the first axis counts layers; otherwise the leaf is one layer.
        part: what lies at an index of one layer.
        along: the axis of a layer along which it lies in its file.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    stacked: bool
    part: Callable[[int, Index], np.ndarray]
    along: int = 0

    @property
    def bytes(self) -> int:
        """Size of the whole."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def layers(self) -> int:
        """How many there are."""
        return self.shape[0] if self.stacked else 1

    def read(self, layer: int) -> np.ndarray:
        """One layer."""
        return self.part(layer, ())


def placed(leaf: Leaf, where: Sharding | None, dtype: np.dtype) -> jax.Array:
    """A leaf on the devices of a sharding (None: on the default device), in other numbers if asked for.

    All processes that share the sharding must ask for the same leaves in the same order.
    """
    reading, along = _reading(leaf, where), leaf.along + leaf.stacked
    exchange = _exchange(reading, where, along, dtype)
    piece = max(1, min(leaf.layers, PIECE * leaf.layers // max(1, leaf.bytes)))
    while leaf.layers % piece:
        piece -= 1  # all pieces alike, so that one program writes them
    if piece == leaf.layers or (where is not None and reading is where):
        return exchange(_read(leaf, 0, leaf.layers, reading))
    whole = jnp.zeros(leaf.shape, dtype, device=where)
    for first in range(0, leaf.layers, piece):
        whole = _write(where)(whole, exchange(_read(leaf, first, piece, reading)), first)
        whole.block_until_ready()  # else the host would read ahead, and hold it all
    return whole


def _reading(leaf: Leaf, where: Sharding | None) -> Sharding | None:
    """How a piece of a leaf is spread while it is read: along its file, over as many devices as divide that axis.

    The order of the devices is such that `_exchange` can undo it: the axes that stay, then those that hold copies, then
    those that are to go to other axes of the leaf.
    """
    if not isinstance(where, NamedSharding) or leaf.bytes < SMALL:
        return where
    axes = (*where.spec, *[None] * (len(leaf.shape) - len(where.spec)))
    if any(isinstance(axis, tuple) for axis in axes) or (leaf.stacked and axes[0] is not None):
        return where  # no rule of ours is like that
    along = leaf.along + leaf.stacked
    own = [name for name in where.mesh.axis_names if name == axes[along]]
    copies = [name for name in where.mesh.axis_names if name not in axes]
    moving = [name for name in axes if name is not None and name not in own]
    names: tuple[str, ...] = ()
    for name in (*own, *copies, *moving):
        if leaf.shape[along] % math.prod(where.mesh.shape[one] for one in (*names, name)) == 0:
            names = (*names, name)
    kept = [None if axis in names else axis for axis in axes]
    return NamedSharding(where.mesh, PartitionSpec(*kept[:along], names, *kept[along + 1 :]))


@functools.cache
def _exchange(reading: Sharding | None, where: Sharding | None, along: int, dtype: np.dtype) -> Any:
    """Brings a piece from where it was read, along an axis, to where it belongs, in the numbers asked for."""
    if reading is where or not isinstance(reading, NamedSharding) or not isinstance(where, NamedSharding):
        return lambda piece: piece.astype(dtype)
    names = reading.spec[along] or ()
    targets = (*where.spec, *[None] * len(reading.spec))

    def body(piece: jax.Array) -> jax.Array:
        for name in reversed((names,) if isinstance(names, str) else names):
            if name == targets[along]:
                break
            if name in targets:
                piece = jax.lax.all_to_all(piece, name, targets.index(name), along, tiled=True)
            else:
                piece = jax.lax.all_gather(piece, name, axis=along, tiled=True)
        return piece.astype(dtype)

    spreading = jax.shard_map(body, mesh=where.mesh, in_specs=reading.spec, out_specs=where.spec, check_vma=False)
    return jax.jit(spreading, out_shardings=where)


@functools.cache
def _write(where: Sharding | None) -> Any:
    """Writes a piece into its leaf, from its first layer on; the memory of the leaf is used again."""

    def write(whole: jax.Array, piece: jax.Array, first: Any) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(whole, piece, first, axis=0)

    return jax.jit(write, donate_argnums=0, out_shardings=where)


def _read(leaf: Leaf, first: int, layers: int, where: Sharding | None) -> jax.Array:
    """Some layers of a leaf; what several devices of this process hold is read once."""
    shape = (layers, *leaf.shape[1:]) if leaf.stacked else leaf.shape
    everything = (slice(None),) * len(shape)
    held = [everything] if where is None else where.addressable_devices_indices_map(shape).values()
    parts: dict[tuple[tuple[int, int], ...], np.ndarray] = {}
    for index in held:
        parts.setdefault(_bounds(index or everything, shape), np.empty(0))
    for bounds in parts:
        parts[bounds] = _host_part(leaf, first, bounds)
    if where is None:
        return jnp.asarray(parts[_bounds(everything, shape)])
    return jax.make_array_from_callback(shape, where, lambda index: parts[_bounds(index or everything, shape)])


def _host_part(leaf: Leaf, first: int, bounds: tuple[tuple[int, int], ...]) -> np.ndarray:
    """The numbers between bounds that count layers from `first` on."""
    index = tuple(slice(start, stop) for start, stop in bounds)
    if not leaf.stacked:
        return packed(leaf.part(0, index))
    part = np.empty([stop - start for start, stop in bounds], leaf.dtype)
    for place, layer in enumerate(range(*bounds[0])):
        part[place] = packed(leaf.part(first + layer, index[1:]))
    return part


def _bounds(index: Index, shape: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """Start and stop on every axis."""
    return tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))
