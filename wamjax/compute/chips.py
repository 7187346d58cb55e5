"""Peak arithmetic rate of devices: published for accelerators, measured for processors."""

from __future__ import annotations

import dataclasses
import time

import jax
import jax.numpy as jnp

PEAKS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989.4e12,
    "NVIDIA H200": 989.4e12,
    "NVIDIA B200": 2250e12,
}
"""Dense bf16 operations per second by the start of the device's name, from the makers' data sheets."""


@dataclasses.dataclass(frozen=True)
class Peak:
    """Operations per second of all devices together, and where the number comes from."""

    flops: float
    source: str


def peak() -> Peak:
    """The peak rate of this run's devices; a processor's is measured, in float32, and takes a second."""
    device, count = jax.devices()[0], jax.device_count()
    known = [name for name in PEAKS if device.device_kind.startswith(name)]
    if known:
        best = max(known, key=len)
        return Peak(PEAKS[best] * count, f"{count} x {best}, dense bf16, data sheet")
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
