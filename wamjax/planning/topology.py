"""TPU topologies by name, their chips, and the mesh to begin with."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Sequence
from typing import Any

import jax

from wamjax.compute.chips import CHIPS, Chip
from wamjax.errors import UserError
from wamjax.sharding.mesh import MeshConfig

TORUS = {"v4": 3, "v5p": 3, "v5e": 2, "v6e": 2, "tpu7x": 3}
"""Dimensions of the network between chips, by generation."""

OPTIONS: dict[str, dict[str, Any]] = {"v4": {"chip_config_name": "megacore"}}
"""What the compiler must be told beside the name, so that a chip is one device."""


@dataclasses.dataclass(frozen=True)
class Topology:
    """A pod slice, or several.

    Attributes:
        generation: of TPU, e.g. "v5p".
        shape: chips along each dimension of a slice.
        slices: how many, joined by the data center's network.
    """

    generation: str
    shape: tuple[int, ...]
    slices: int = 1

    @classmethod
    def parse(cls, name: str, slices: int = 1) -> Topology:
        """Of a name such as "v5p:8x8x8"; a UserError for one that is not."""
        match = re.fullmatch(r"(\w+):(\d+(?:x\d+)+)", name)
        if not match or match[1] not in TORUS:
            known = ", ".join(TORUS)
            raise UserError(f"unknown topology '{name}': write GENERATION:SHAPE, e.g. v5p:8x8x8 (one of {known})")
        shape = tuple(map(int, match[2].split("x")))
        if len(shape) != TORUS[match[1]] or min(shape) < 1 or slices < 1:
            raise UserError(f"topology '{name}' with {slices} slices: {match[1]} has {TORUS[match[1]]} dimensions")
        return cls(match[1], shape, slices)

    @property
    def name(self) -> str:
        """As people write it."""
        times = f"{self.slices} x " if self.slices > 1 else ""
        return f"{times}{self.generation}:{'x'.join(map(str, self.shape))}"

    @property
    def chips(self) -> int:
        """Of all slices."""
        return self.slices * math.prod(self.shape)

    @property
    def chip(self) -> Chip:
        """What one can do."""
        return CHIPS[self.generation]

    def doubled(self) -> Topology:
        """With twice as many chips, the shortest side of a slice being twice as long."""
        shape = list(self.shape)
        shortest = max(range(len(shape)), key=lambda i: (-shape[i], i))
        shape[shortest] *= 2
        return dataclasses.replace(self, shape=tuple(sorted(shape)))

    def devices(self) -> Sequence[jax.Device]:
        """Descriptions of the devices, to compile for; a UserError where the TPU compiler is not installed."""
        from jax.experimental import topologies

        name = f"{self.generation}:{'x'.join(map(str, self.shape))}"
        options = OPTIONS.get(self.generation, {}) | ({"num_slices": self.slices} if self.slices > 1 else {})
        try:
            return topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices
        except Exception as error:
            first = str(error).strip().splitlines()[0][:160]
            raise UserError(
                f"no compiler for {name} ({first}): pip install 'wamjax[plan]', and name a shape that exists"
            ) from error


def quiet_compiler() -> None:
    """Lets the TPU compiler work without TPUs, and beside others; call it before anything asks for devices."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")


def default_mesh(topology: Topology, batch: int, heads: int) -> MeshConfig:
    """The layout to begin with: one replica per slice, samples apart as far as they go, sequences over what is left.

    Parameters are spread over two dimensions of the torus at most: over three, gathers become reductions of zeros,
    with twice the traffic (measured on v5p).

    Raises:
        UserError: a batch that does not spread over the slices.
    """
    per_slice = math.prod(topology.shape)
    if batch % topology.slices:
        raise UserError(f"train.batch_size {batch} does not spread over {topology.slices} slices: make it a multiple")
    samples = math.gcd(batch // topology.slices, per_slice)
    parts = per_slice // samples
    context = math.gcd(parts, heads)
    two = math.prod(sorted(topology.shape)[-2:])
    fsdp = math.gcd(samples, two)
    return MeshConfig(topology.slices, samples // fsdp, fsdp, parts // context, context, 1)


def other_meshes(first: MeshConfig, heads: int) -> list[MeshConfig]:
    """Layouts near a first one: parameters spread over fewer or more devices, sequences over fewer heads."""
    found = []
    for factor in (2, 4):
        if first.fsdp % factor == 0:
            found.append(dataclasses.replace(first, fsdp=first.fsdp // factor, data=first.data * factor))
        if first.data % factor == 0:
            found.append(dataclasses.replace(first, fsdp=first.fsdp * factor, data=first.data // factor))
        if first.context % factor == 0 and heads % (first.context // factor * factor) == 0:
            found.append(dataclasses.replace(first, context=first.context // factor, tensor=first.tensor * factor))
    return found
