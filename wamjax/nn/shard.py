"""Where activations lie: the one door between networks and the mesh of the program that is being traced.

Networks say what the axes of an array are (`shard(x, "b n d")`); the table below says over which axes of the mesh each
is spread. Without a mesh (`jax.set_mesh`) nothing happens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import jax
from jax.sharding import AbstractMesh, PartitionSpec

AXES: Mapping[str, tuple[str, ...]] = {
    "b": ("replica", "data", "fsdp"),
    "n": ("ring", "context"),
    "k": ("tensor",),
    "f": ("tensor",),
}
"""Axis of an array (b samples, n tokens, k heads, f hidden features) to axes of the mesh; others stay whole."""


def current_mesh() -> AbstractMesh | None:
    """The mesh of the program that is being traced; None without one, or where it has one device only."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or mesh.size == 1 else mesh


def platform() -> str:
    """What the program that is being traced will run on: "cpu", "gpu" or "tpu"."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.abstract_device is None:
        return jax.default_backend()
    return str(mesh.abstract_device.platform)


def ways(axis: str) -> int:
    """In how many parts an axis of arrays is spread."""
    mesh = current_mesh()
    return 1 if mesh is None else math.prod(mesh.shape[name] for name in AXES[axis] if name in mesh.shape)


def spec(axes: str) -> PartitionSpec:
    """The partition of an array with these axes, e.g. "b n d"; "-" for one that stays whole whatever it is."""
    mesh = jax.sharding.get_abstract_mesh()
    return PartitionSpec(*(tuple(a for a in AXES.get(axis, ()) if a in mesh.shape) or None for axis in axes.split()))


def shard(x: jax.Array, axes: str) -> jax.Array:
    """`x` spread as its axes say, e.g. "b n d"; XLA moves what must move."""
    if current_mesh() is None:
        return x
    return jax.lax.with_sharding_constraint(x, spec(axes))
