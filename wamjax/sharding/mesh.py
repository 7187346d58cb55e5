"""The device mesh, and where batches and parameters lie on it."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from wamjax.errors import UserError
from wamjax.nn.shard import AXES

BATCH_AXES = AXES["b"]
"""Axes over which samples are spread."""

Rules = Sequence[tuple[str, tuple[str | None, ...]]]
"""Parameter path (regular expression, first match wins) to the mesh axes of the dimensions."""


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes; at most one may be -1, which takes the devices that are left.

    Attributes:
        replica: copies of the model that exchange gradients only (across slices).
        data: copies inside a slice.
        fsdp: over which parameters, gradients and optimizer state are spread.
        ring, context: over which long sequences are spread: the keys and values of `ring` parts travel, and within a
            part `context` devices exchange tokens for heads, which they must divide (see `wamjax.nn.context`).
        tensor: over which single matrices are spread.
    """

    replica: int = 1
    data: int = -1
    fsdp: int = 1
    ring: int = 1
    context: int = 1
    tensor: int = 1

    def over(self, devices: int) -> MeshConfig:
        """With the size that -1 stands for; a UserError where the sizes do not fit so many devices."""
        sizes = dataclasses.asdict(self)
        if any(size == 0 or size < -1 for size in sizes.values()) or list(sizes.values()).count(-1) > 1:
            raise UserError(f"mesh sizes {sizes} must be positive, with at most one -1 for 'all that are left'")
        fixed = math.prod(size for size in sizes.values() if size != -1)
        if devices % fixed or (-1 not in sizes.values() and fixed != devices):
            raise UserError(f"a mesh of {sizes} does not fit {devices} devices: set one of mesh.* to -1")
        return MeshConfig(**{name: size if size != -1 else devices // fixed for name, size in sizes.items()})


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh over all devices; a UserError where sizes and devices do not agree."""
    devices = jax.devices() if devices is None else devices
    sizes = dataclasses.asdict(config.over(len(devices)))
    shape = tuple(sizes.values())
    return Mesh(_arranged(shape, devices), tuple(sizes), axis_types=(AxisType.Auto,) * len(shape))


def _arranged(shape: tuple[int, ...], devices: Sequence[jax.Device]) -> np.ndarray:
    """Devices such that those of an inner axis are neighbours, and only the first axis, `replica`, leaves a slice.

    GPUs have no slices: their order is that of the processes, so that the last axes stay within a machine. Nor have the
    devices of a topology of one slice that is only described.
    """
    slices = len({getattr(device, "slice_index", 0) for device in devices if device.platform == "tpu"})
    if slices <= 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    replica, *inside = shape
    if replica % slices:
        raise UserError(f"mesh.replica is {replica}, but the TPUs are {slices} slices: set mesh.replica={slices}")
    within, across = (replica // slices, *inside), (slices,) + (1,) * len(inside)
    return mesh_utils.create_hybrid_device_mesh(within, across, devices, allow_split_physical_axes=True)


@dataclasses.dataclass(frozen=True)
class OnMesh:
    """A compiled function that is traced and run with a mesh in context, which activations ask for their place.

    Attributes:
        mesh: the mesh. function: what `jax.jit` returned.
    """

    mesh: Mesh
    function: Any

    def __call__(self, *arguments: Any) -> Any:
        """Runs it."""
        with jax.set_mesh(self.mesh):
            return self.function(*arguments)

    def lower(self, *arguments: Any) -> Any:
        """Lowers it for arrays or their shapes."""
        with jax.set_mesh(self.mesh):
            return self.function.lower(*arguments)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Samples spread over the batch axes."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def shardings(tree: Any, rules: Rules, mesh: Mesh) -> Any:
    """The sharding of every leaf, by the first rule that its path matches.

    A path is the leaf's keys joined by "/". The same table serves parameters, gradients, optimizer state and moving
    averages, whose paths end alike. A dimension that its axes do not divide stays whole.
    """

    def place(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        name = "/".join(_key(part) for part in path)
        axes = next((axes for pattern, axes in rules if re.search(f"(^|/){pattern}$", name)), ())
        axes = axes + (None,) * (leaf.ndim - len(axes)) if leaf.ndim >= len(axes) else (None,) * leaf.ndim
        fits = [
            axis if axis and dim % mesh.shape[axis] == 0 else None for axis, dim in zip(axes, leaf.shape, strict=True)
        ]
        return NamedSharding(mesh, PartitionSpec(*fits))

    return jax.tree_util.tree_map_with_path(place, tree)


def _key(part: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(part, attribute):
            return str(getattr(part, attribute))
    return str(part)


def process_rows(batch_size: int, mesh: Mesh, portions: int = 1) -> tuple[int, ...]:
    """The rows of the global batch that this process feeds; a UserError where the batch cannot be spread evenly.

    They are those that its devices hold: not always neighbours, and not always its own alone, since devices that share
    context or matrices across processes hold the same rows.
    """
    ways = _ways(mesh)
    if batch_size % (ways * portions):
        over = f"the {ways} ways the mesh spreads samples" + f" x train.portions {portions}" * (portions > 1)
        raise UserError(f"train.batch_size {batch_size} is not a multiple of {over}")
    size = batch_size // ways
    return tuple(row for part in _own_parts(mesh) for row in range(part * size, (part + 1) * size))


def to_devices(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows, in the order of `process_rows`, as global arrays spread over the batch axes."""
    sharding, own, ways = batch_sharding(mesh), _own_parts(mesh), _ways(mesh)

    def spread(rows: np.ndarray) -> jax.Array:
        size = len(rows) // len(own)

        def part(index: Any) -> np.ndarray:
            first = own.index((index[0].start or 0) // size) * size
            return rows[first : first + size]

        return jax.make_array_from_callback((ways * size, *rows.shape[1:]), sharding, part)

    return {name: spread(rows) for name, rows in batch.items()}


def place(tree: Any, where: Any) -> Any:
    """Host arrays, the same in all processes, as global arrays; each process hands over what its devices hold.

    What lies on the mesh already stays where it is: a frozen network follows rules of its own.
    """

    def put(leaf: Any, sharding: NamedSharding) -> jax.Array:
        if isinstance(leaf, jax.Array) and getattr(leaf.sharding, "mesh", None) == sharding.mesh:
            return leaf
        if sharding.is_fully_addressable:
            return jax.device_put(leaf, sharding)
        array = np.asarray(leaf)  # device_put would compare all of it between the processes
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(put, tree, where)


def _ways(mesh: Mesh) -> int:
    """Into how many equal parts a batch is cut."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def _own_parts(mesh: Mesh) -> list[int]:
    """Which parts of a batch the devices of this process hold."""
    held = batch_sharding(mesh).addressable_devices_indices_map((_ways(mesh),))
    return sorted({index[0].start or 0 for index in held.values()})  # type: ignore[index]
