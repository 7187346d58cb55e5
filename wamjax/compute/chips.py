"""Peak arithmetic rate of devices: published for accelerators, measured for processors."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import jax
import jax.numpy as jnp

from wamjax.compute.files import DATA, read, unknown
from wamjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Chip:
    """What an accelerator can do, from its maker's data sheet.

    Attributes:
        flops: dense bf16 operations per second.
        bandwidth: bytes per second to its memory.
        memory: bytes of it that programs may use (TPUs: as their compiler says).
        links: bytes per second to its neighbours, all links and one direction together.
        network: bytes per second to other slices, per chip.
        device: start of the name that JAX gives its devices; empty for what is no device of its own.
        source: who says so.
    """

    flops: float
    bandwidth: float
    memory: float
    links: float = 0.0
    network: float = 3.1e9
    device: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        if min(self.flops, self.bandwidth, self.memory) <= 0:
            raise ValueError("flops, bandwidth and memory must be positive")


@dataclasses.dataclass(frozen=True)
class ChipTable:
    """A file of chips, by the names that people and topologies use."""

    chips: dict[str, Chip]
    version: int = 1


def read_chips(path: Path) -> dict[str, Chip]:
    """The chips of a file; a UserError where it is none."""
    return read(ChipTable, path).chips


CHIPS = read_chips(DATA / "chips.json")
"""By the name in a topology. Ironwood has two devices a chip: tpu7x is one of them, v7 both. Links are half of the data
sheets' figure for both directions. The network between slices is taken as 100 Gbit/s for a host of four chips, which is
what a plan assumes, not what is promised."""


def find_chip(name: str, own: str | Path = "") -> Chip:
    """A chip by name, of the table or of a user's file; an unknown one is a UserError with the nearest names."""
    table = CHIPS | (read_chips(Path(own)) if own else {})
    if name not in table:
        raise UserError(unknown("chip", name, table))
    return table[name]


@dataclasses.dataclass(frozen=True)
class Peak:
    """Operations per second of all devices together, and where the number comes from."""

    flops: float
    source: str


def peak() -> Peak:
    """The peak rate of this run's devices; a processor's is measured, in float32, and takes a second."""
    device, count = jax.devices()[0], jax.device_count()
    known = [chip for chip in CHIPS.values() if chip.device and device.device_kind.startswith(chip.device)]
    if known:
        best = max(known, key=lambda chip: len(chip.device))
        return Peak(best.flops * count, f"{count} x {best.device}, dense bf16, data sheet")
    # Simulated devices share one processor, so they are measured as one.
    return Peak(_measure(), f"{device.device_kind}, float32 matrix product of 1024^3 measured at start")


def _measure(size: int = 1024, repeats: int = 5) -> float:
    """Best rate of a square float32 product on the default device."""
    product = jax.jit(jnp.matmul)
    a = jnp.ones((size, size), jnp.float32)
    product(a, a).block_until_ready()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        product(a, a).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)
