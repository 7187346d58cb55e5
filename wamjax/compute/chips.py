"""Peak arithmetic rate of devices: published for accelerators, measured for processors."""

from __future__ import annotations

import dataclasses
import time

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Chip:
    """What an accelerator can do, from its maker's data sheet.

    Attributes:
        device: start of the name that JAX gives its devices.
        flops: dense bf16 operations per second.
        bandwidth: bytes per second to its memory.
        memory: bytes of it that programs may use (TPUs: as their compiler says).
        links: bytes per second to its neighbours, all links and one direction together.
        network: bytes per second to other slices, per chip.
    """

    device: str
    flops: float
    bandwidth: float = 0.0
    memory: float = 0.0
    links: float = 0.0
    network: float = 3.1e9


CHIPS = {
    "v4": Chip("TPU v4", 275e12, 1228e9, 30.75 * 2**30, 150e9),
    "v5e": Chip("TPU v5 lite", 197e12, 819e9, 15.75 * 2**30, 100e9),
    "v5p": Chip("TPU v5", 459e12, 2765e9, 95.74 * 2**30, 300e9),
    "v6e": Chip("TPU v6 lite", 918e12, 1638e9, 31.25 * 2**30, 224e9),
    "tpu7x": Chip("TPU7x", 1153.5e12, 3690e9, 94.75 * 2**30, 300e9),
    "a100": Chip("NVIDIA A100", 312e12, 2039e9, 80e9),
    "h100": Chip("NVIDIA H100", 989.4e12, 3350e9, 80e9),
    "h200": Chip("NVIDIA H200", 989.4e12, 4800e9, 141e9),
    "b200": Chip("NVIDIA B200", 2250e12, 8000e9, 180e9),
}
"""By the name in a topology. Ironwood (tpu7x) has two devices a chip: these are one device's. Links are half of the
data sheets' figure for both directions (v4 2.4, v5e 1.6, v5p 4.8, v6e 3.584, v7 9.6 Tbit/s a chip). The network between
slices is taken as 100 Gbit/s for a host of four chips, which is what a plan assumes, not what is promised."""


@dataclasses.dataclass(frozen=True)
class Peak:
    """Operations per second of all devices together, and where the number comes from."""

    flops: float
    source: str


def peak() -> Peak:
    """The peak rate of this run's devices; a processor's is measured, in float32, and takes a second."""
    device, count = jax.devices()[0], jax.device_count()
    known = [chip for chip in CHIPS.values() if device.device_kind.startswith(chip.device)]
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
