"""Weights and inputs of the parity fixtures: drawn from seeds, so that a fixture stores outputs only.

NumPy keeps its generators' streams; both sides, the published code when a fixture is made and wamjax when it is
tested, draw the same numbers. No weight is left at zero or one, where it could hide a mistake.
"""

import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent


def draw(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Standard normal numbers that depend on name, shape and seed alone."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(shape).astype(np.float32)


def weights(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    """A random tensor for every name: matrices and kernels that keep a signal's size, scales near 1, small biases."""
    tensors = {}
    for name, shape in shapes.items():
        noise = draw(name, tuple(shape), seed)
        if name.endswith("gamma") or (name.endswith("weight") and len(shape) == 1):
            tensors[name] = 1 + 0.2 * noise
        elif len(shape) > 1:
            tensors[name] = noise / np.sqrt(np.prod(shape[1:])).astype(np.float32)
        else:
            tensors[name] = 0.2 * noise
    return tensors


def texts(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Token numbers (2, 300) below 100, and which of them are present: all of the first row, 37 of the second."""
    tokens = np.random.default_rng([seed, 1]).integers(0, 100, (2, 300))
    return tokens, np.arange(300)[None, :] < np.array([[300], [37]])
