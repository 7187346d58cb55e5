"""Weights and inputs of the parity fixtures: drawn from seeds, so that a fixture stores outputs only.

NumPy keeps its generators' streams; both sides, the published code when a fixture is made and wamjax when it is
tested, draw the same numbers. No weight is left at zero or one, where it could hide a mistake.
"""

import dataclasses
import zlib
from collections.abc import Iterator, Mapping
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
        elif name.endswith(".W"):
            tensors[name] = noise / np.sqrt(shape[1]).astype(np.float32)
        elif len(shape) > 1:
            tensors[name] = noise / np.sqrt(np.prod(shape[1:])).astype(np.float32)
        else:
            tensors[name] = 0.2 * noise
    return tensors


def texts(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Token numbers (2, 300) below 100, and which of them are present: all of the first row, 37 of the second."""
    tokens = np.random.default_rng([seed, 1]).integers(0, 100, (2, 300))
    return tokens, np.arange(300)[None, :] < np.array([[300], [37]])


@dataclasses.dataclass(frozen=True)
class WanDiTCase:
    """A tiny Wan transformer (width 48, 4 heads, 2 layers, text of width 32) and what it is run on.

    Attributes:
        inputs, outputs: latent channels. image: width of image features. image_positions: of two images, or 0.
        levels: per clip, timesteps per sample: one, one per frame, or one per token.
        sizes: per clip, samples, latent frames, rows and columns.
    """

    inputs: int = 16
    outputs: int = 16
    image: int = 0
    image_positions: int = 0
    levels: tuple[str, ...] = ("clip", "clip", "clip")
    sizes: tuple[tuple[int, int, int, int], ...] = ((2, 1, 4, 6), (1, 3, 2, 10), (2, 4, 6, 2))

    def clips(self, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]]:
        """Latents, timesteps (b, m), text features (b, l, 32) and image features of every clip."""
        for i, (levels, (b, t, h, w)) in enumerate(zip(self.levels, self.sizes, strict=True)):
            count = {"clip": 1, "frame": t, "token": t * h * w // 4}[levels]
            timestep = np.random.default_rng([seed, i]).uniform(0, 1000, (b, count)).astype(np.float32)
            timestep[0, 0] = 999 if levels == "clip" else 0
            tokens = self.image_positions or 257
            image = draw(f"image {i}", (b, tokens, self.image), seed) if self.image else None
            yield (
                draw(f"latents {i}", (b, t, h, w, self.inputs), seed),
                timestep,
                draw(f"text {i}", (b, 7 + 5 * i, 32), seed),
                image,
            )


WAN_DITS = {
    "t2v": WanDiTCase(),
    "i2v": WanDiTCase(inputs=36, image=1280),
    "flf2v": WanDiTCase(inputs=36, image=40, image_positions=514),
    "ti2v": WanDiTCase(inputs=12, outputs=12, levels=("clip", "frame", "token")),
}


@dataclasses.dataclass(frozen=True)
class DreamZeroCase:
    """A tiny DreamZero network (width 48, 4 heads, 2 layers) and what it is run on: a batch of 2.

    Attributes:
        form: "i2v" (as on Wan2.1: the image's latents stand beside the noisy ones) or "ti2v" (as on Wan2.2).
        blocks: of the training clip. height, width: of latents.
    """

    form: str
    blocks: int
    height: int = 4
    width: int = 6

    @property
    def frames(self) -> int:
        """Latent frames of the training clip."""
        return 1 + 2 * self.blocks

    @property
    def beside(self) -> int:
        """Channels beside the 16 of the latents."""
        return 20 if self.form == "i2v" else 0

    def inputs(self, seed: int) -> dict[str, np.ndarray]:
        """Latents (b, t, h, w, c), robot's arrays, and features, by name."""
        rng = np.random.default_rng([seed, self.blocks])
        size = (2, self.frames, self.height, self.width)
        level = rng.uniform(0, 1000, (2, self.frames)).astype(np.float32)
        level[:, 2::2] = level[:, 1::2]  # the frames of a block share their level
        return {
            "clean": draw("clean", (*size, 16), seed),
            "noisy": draw("noisy", (*size, 16), seed),
            "beside": draw("beside", (*size, self.beside), seed),
            "timestep": level,
            "timestep_action": rng.uniform(0, 1000, (2, 24 * self.blocks)).astype(np.float32),
            "action": draw("action", (2, 24 * self.blocks, 32), seed),
            "state": draw("state", (2, self.blocks, 64), seed),
            "text": draw("text", (2, 512, 32), seed),
            "image": draw("image", (2, 257, 1280), seed),
        }


DREAMZEROS = {f"{form}_{n}": DreamZeroCase(form, n) for form in ("i2v", "ti2v") for n in (1, 2, 4)}
