"""A linear frame autoencoder: principal components of square patches.

It plays the part of a video VAE where none is at hand: fitted once on frames of the dataset, frozen afterwards, with
the same encode/decode surface. Each patch of `patch` x `patch` pixels becomes `channels` latent channels.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

Params = dict[str, Float[Array, "..."]]


@dataclasses.dataclass(frozen=True)
class PatchCodec:
    """Shape of the codec.

    Attributes:
        patch: edge of a patch in pixels; frame height and width are multiples of it.
        channels: latent channels, at most 3 * patch^2.
    """

    patch: int = 16
    channels: int = 96

    def fit(self, frames: UInt8[np.ndarray, "n h w 3"]) -> Params:
        """Finds the components of the frames' patches.

        Latents are components over the fourth root of their variance (half way to whitening: strong components stay
        stronger, weak ones are not drowned), scaled to unit variance on average.

        Returns:
            "mean" (p,), "encode" (p, c), "decode" (c, p) with p = 3 * patch^2.
        """
        patches = np.asarray(self._patches(_unit(frames, np)), np.float64).reshape(-1, 3 * self.patch**2)
        mean = patches.mean(0)
        variance, components = np.linalg.eigh(np.cov(patches - mean, rowvar=False))
        variance, components = variance[::-1][: self.channels], components[:, ::-1][:, : self.channels]
        gain = np.maximum(variance, 1e-8) ** -0.25
        gain = gain / np.sqrt(np.mean(gain**2 * np.maximum(variance, 1e-8)))
        return {
            "mean": mean.astype(np.float32),
            "encode": (components * gain).astype(np.float32),
            "decode": (components / gain).T.astype(np.float32),
        }

    def encode(self, params: Params, frames: UInt8[Array, "*b h w 3"]) -> Float[Array, "*b y x c"]:
        """Latents of uint8 frames; y = h / patch, x = w / patch."""
        return self.encode_pixels(params, _unit(frames, jnp))

    def encode_pixels(self, params: Params, pixels: Float[Array, "*b h w 3"]) -> Float[Array, "*b y x c"]:
        """Latents of frames in [-1, 1]."""
        return (self._patches(pixels) - params["mean"]) @ params["encode"]

    def decode(self, params: Params, latents: Float[Array, "*b y x c"]) -> UInt8[Array, "*b h w 3"]:
        """Frames of latents, rounded and clipped to uint8."""
        return jnp.clip(jnp.round((self.decode_pixels(params, latents) + 1) * 127.5), 0, 255).astype(jnp.uint8)

    def decode_pixels(self, params: Params, latents: Float[Array, "*b y x c"]) -> Float[Array, "*b h w 3"]:
        """Frames of latents, in [-1, 1] or a little beyond."""
        *batch, y, x, _ = latents.shape
        patches = latents @ params["decode"] + params["mean"]
        pixels = patches.reshape(*batch, y, x, self.patch, self.patch, 3)
        return jnp.moveaxis(pixels, -4, -3).reshape(*batch, y * self.patch, x * self.patch, 3)

    def _patches(self, frames: Array) -> Array:
        *batch, h, w, c = frames.shape
        blocks = frames.reshape(*batch, h // self.patch, self.patch, w // self.patch, self.patch, c)
        return blocks.swapaxes(-4, -3).reshape(*batch, h // self.patch, w // self.patch, self.patch**2 * c)


def _unit(frames: Any, xp: Any) -> Any:
    """uint8 to float32 in [-1, 1]."""
    return frames.astype(xp.float32) / 127.5 - 1
