"""Wan's causal video autoencoders: 2.1 (16 latent channels, 8x8) and 2.2 (48 channels, 16x16), both 4x in time.

The reference code (wan/modules/vae.py, vae2_2.py) streams a clip through caches, a frame first and then four at a
time. The same numbers come out of one pass over the whole clip, because every layer is causal and treats frame 0
apart: temporal down- and upsampling leave it alone, and upsampling does not even show it to later frames. Both ways
are here. Where the collection "stream" is mutable, layers remember in it the frames that the next chunk needs; see
`stream`. Pixels are floats in [-1, 1], clips are 4 n + 1 frames long.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from wamjax.errors import UserError

Video = Float[Array, "b t h w c"]
Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Stage:
    """Residual blocks at one resolution, and the change of resolution after them.

    Attributes:
        features: width of the blocks.
        resample: ("time", "space"), ("space",), or () where the resolution stays.
        resampled: width after the resampling.
    """

    features: int
    resample: tuple[str, ...]
    resampled: int


@dataclasses.dataclass(frozen=True)
class WanVAEConfig:
    """Shape of an autoencoder.

    Attributes:
        width, decoder_width: of the finest resolution.
        latent: latent channels.
        multipliers: of the width, from fine to coarse.
        temporal: per change of resolution, whether time is halved too.
        blocks: residual blocks of an encoder stage; a decoder stage has one more.
        patch: edge of the pixel blocks folded into channels.
        shortcuts: whether stages have a parameter-free shortcut, averaging or repeating (2.2).
        mean, std: of the latents, per channel; empty for none.
    """

    width: int = 96
    decoder_width: int = 96
    latent: int = 16
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    temporal: tuple[bool, ...] = (False, True, True)
    blocks: int = 2
    patch: int = 1
    shortcuts: bool = False
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    @property
    def encoder_stages(self) -> tuple[Stage, ...]:
        """From fine to coarse."""
        kinds = [("time", "space") if t else ("space",) for t in self.temporal] + [()]
        widths = [self.width * m for m in self.multipliers]
        return tuple(Stage(w, kind, w) for w, kind in zip(widths, kinds, strict=True))

    @property
    def decoder_stages(self) -> tuple[Stage, ...]:
        """From coarse to fine; without shortcuts the resampling halves the width."""
        kinds = [("time", "space") if t else ("space",) for t in self.temporal[::-1]] + [()]
        widths = [self.decoder_width * m for m in self.multipliers[::-1]]
        halve = 1 if self.shortcuts else 2
        return tuple(Stage(w, kind, w // halve if kind else w) for w, kind in zip(widths, kinds, strict=True))


WAN21_VAE = WanVAEConfig(
    mean=(
        *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
        *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
    ),
    std=(
        *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
        *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
    ),
)
WAN22_VAE = WanVAEConfig(
    width=160,
    decoder_width=256,
    latent=48,
    patch=2,
    shortcuts=True,
    mean=(
        *(-0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891),
        *(0.1570, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502),
        *(-0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230, -0.0313, -0.1649, 0.0117, 0.0723),
        *(-0.2839, -0.2083, -0.0520, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667),
    ),
    std=(
        *(0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901),
        *(0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659),
        *(0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944),
        *(0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744),
    ),
)


class WanVAE(nn.Module):
    """The autoencoder; call its methods with `apply(..., method="encode")`.

    Attributes:
        config: its shape.
    """

    config: WanVAEConfig

    def setup(self) -> None:
        c = self.config
        self.encoder = Encoder(c)
        self.decoder = Decoder(c)
        self.quant = Conv(2 * c.latent, (1, 1, 1))
        self.post_quant = Conv(c.latent, (1, 1, 1))

    def __call__(self, video: Video) -> Video:
        """Encodes and decodes; touches every parameter, for `init`."""
        return self.decode(self.encode(video))

    def moments(self, video: Video, first: bool = True) -> tuple[Video, Video]:
        """Mean and log-variance (b, 1 + (t - 1) / 4, h / s, w / s, c) of the raw latents; s is 8 or 16.

        `first` says that the video begins here; a later chunk of a stream has 4 n frames.

        Raises:
            UserError: a clip whose length is not 4 n + 1, or whose sides s does not divide.
        """
        c = self.config
        side = c.patch * 2 ** len(c.temporal)
        _, frames, height, width, _ = video.shape
        if frames % 4 != first or height % side or width % side:
            raise UserError(
                f"a clip of {frames} frames of {height}x{width} pixels cannot be encoded: "
                f"use 4 n + {int(first)} frames, and sides that are multiples of {side}"
            )
        mean, log_variance = jnp.split(self.quant(self.encoder(fold(video, c.patch), first)), 2, axis=-1)
        return mean, log_variance

    def encode(self, video: Video, first: bool = True) -> Video:
        """Normalised latents: the posterior's mean, which is what Wan is trained on."""
        return self._normalised(self.moments(video, first)[0])

    def sample(self, video: Video, noise: Video, first: bool = True) -> Video:
        """Normalised latents drawn from the posterior, with standard normal `noise` of their shape."""
        mean, log_variance = self.moments(video, first)
        return self._normalised(mean + jnp.exp(0.5 * jnp.clip(log_variance, -30, 20)) * noise)

    def decode(self, latents: Video, first: bool = True) -> Video:
        """The clip (b, 1 + 4 (t - 1), s h, s w, 3) of normalised latents, clamped to [-1, 1]; later chunks give 4 t."""
        c = self.config
        if c.mean:
            latents = latents * jnp.asarray(c.std, latents.dtype) + jnp.asarray(c.mean, latents.dtype)
        return jnp.clip(unfold(self.decoder(self.post_quant(latents), first), c.patch), -1, 1)

    def _normalised(self, latents: Video) -> Video:
        c = self.config
        if not c.mean:
            return latents
        return (latents - jnp.asarray(c.mean, latents.dtype)) / jnp.asarray(c.std, latents.dtype)


class Encoder(nn.Module):
    """Pixels to latent moments (b, t, h, w, 2 latent), before the last 1x1 convolution."""

    config: WanVAEConfig

    @nn.compact
    def __call__(self, x: Video, first: bool) -> Video:
        c = self.config
        x = Conv(c.width, name="conv_in")(x)
        for i, stage in enumerate(c.encoder_stages):
            shortcut = average(x, stage.resampled, stage.resample) if c.shortcuts else 0
            for j in range(c.blocks):
                x = ResidualBlock(stage.features, name=f"stage_{i}_block_{j}")(x)
            if stage.resample:
                x = Downsample("time" in stage.resample, name=f"stage_{i}_resample")(x, first)
            x = x + shortcut
        x = Middle(name="middle")(x)
        return Conv(2 * c.latent, name="conv_out")(nn.silu(ChannelNorm(name="norm_out")(x)))


class Decoder(nn.Module):
    """Latents to pixels, after the first 1x1 convolution."""

    config: WanVAEConfig

    @nn.compact
    def __call__(self, x: Video, first: bool) -> Video:
        c = self.config
        x = Middle(name="middle")(Conv(c.decoder_stages[0].features, name="conv_in")(x))
        for i, stage in enumerate(c.decoder_stages):
            shortcut = repeat(x, stage.resampled, stage.resample, first) if c.shortcuts and stage.resample else 0
            for j in range(c.blocks + 1):
                x = ResidualBlock(stage.features, name=f"stage_{i}_block_{j}")(x)
            if stage.resample:
                x = Upsample(stage.resampled, "time" in stage.resample, name=f"stage_{i}_resample")(x, first)
            x = x + shortcut
        return Conv(3 * c.patch**2, name="conv_out")(nn.silu(ChannelNorm(name="norm_out")(x)))


class Middle(nn.Module):
    """Block, attention, block at the coarsest resolution."""

    @nn.compact
    def __call__(self, x: Video) -> Video:
        x = ResidualBlock(x.shape[-1], name="block_0")(x)
        x = FrameAttention(name="attention")(x)
        return ResidualBlock(x.shape[-1], name="block_1")(x)


class ResidualBlock(nn.Module):
    """Two normalised convolutions around a shortcut, which is a 1x1 convolution where the width changes."""

    features: int

    @nn.compact
    def __call__(self, x: Video) -> Video:
        h = Conv(self.features, name="conv_0")(nn.silu(ChannelNorm(name="norm_0")(x)))
        h = Conv(self.features, name="conv_1")(nn.silu(ChannelNorm(name="norm_1")(h)))
        return h + (x if x.shape[-1] == self.features else Conv(self.features, (1, 1, 1), name="shortcut")(x))


class FrameAttention(nn.Module):
    """Attention of one head over the pixels of each frame."""

    @nn.compact
    def __call__(self, x: Video) -> Video:
        *frames, h, w, c = x.shape
        qkv = Conv(3 * c, (1, 1, 1), name="qkv")(ChannelNorm(name="norm")(x)).reshape(*frames, h * w, 3 * c)
        q, k, v = jnp.split(qkv, 3, axis=-1)
        weights = jax.nn.softmax(jnp.einsum("btqc,btkc->btqk", q, k).astype(jnp.float32) * c**-0.5, axis=-1)
        return x + Conv(c, (1, 1, 1), name="out")(
            jnp.einsum("btqk,btkc->btqc", weights.astype(x.dtype), v).reshape(x.shape)
        )


class Downsample(nn.Module):
    """Halves the sides, and time where asked: frame 0 stays, every other output frame reads three input frames."""

    temporal: bool

    @nn.compact
    def __call__(self, x: Video, first: bool) -> Video:
        c = x.shape[-1]
        x = Conv(c, (1, 3, 3), (1, 2, 2), padding=((0, 0), (0, 1), (0, 1)), name="conv")(x)
        if not self.temporal:
            return x
        halve = Conv(c, (3, 1, 1), (2, 1, 1), padding=((0, 0),) * 3, name="time_conv")
        if streaming(self):
            last = self.variable("stream", "last", lambda: x[:, -1:])
            previous, last.value = last.value, x[:, -1:]
            if not first:
                return halve(jnp.concatenate([previous, x], axis=1))
        return jnp.concatenate([x[:, :1], halve(x)], axis=1)


class Upsample(nn.Module):
    """Doubles the sides, and time where asked: frame 0 stays one frame and no other frame sees it."""

    features: int
    temporal: bool

    @nn.compact
    def __call__(self, x: Video, first: bool) -> Video:
        if self.temporal:
            alone = int(first)
            b, t, h, w, c = x[:, alone:].shape
            pairs = Conv(2 * c, (3, 1, 1), name="time_conv")(x[:, alone:])
            pairs = jnp.moveaxis(pairs.reshape(b, t, h, w, 2, c), 4, 2).reshape(b, 2 * t, h, w, c)
            x = jnp.concatenate([x[:, :alone], pairs], axis=1)
        x = jnp.repeat(jnp.repeat(x, 2, axis=2), 2, axis=3)
        return Conv(self.features, (1, 3, 3), name="conv")(x)


class Conv(nn.Module):
    """Convolution over (t, h, w), causal in time: zeros stand before the first frame.

    Attributes:
        features: output channels.
        kernel, strides: over t, h, w.
        padding: zeros before and after each axis; None keeps the size, causally in time.
    """

    features: int
    kernel: tuple[int, int, int] = (3, 3, 3)
    strides: tuple[int, int, int] = (1, 1, 1)
    padding: tuple[tuple[int, int], ...] | None = None

    @nn.compact
    def __call__(self, x: Video) -> Video:
        t, h, w = self.kernel
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (t, h, w, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        padding = self.padding or ((0, 0), (h // 2, h // 2), (w // 2, w // 2))
        if self.padding is None and t > 1:
            x = self._after_the_past(x, t - 1)
        if x.shape[1] < t:
            return jnp.zeros((x.shape[0], 0, *x.shape[2:4], self.features), x.dtype)  # too few frames for one output
        x = jax.lax.conv_general_dilated(
            x, kernel.astype(x.dtype), self.strides, padding, dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
        )
        return x + bias.astype(x.dtype)

    def _after_the_past(self, x: Video, frames: int) -> Video:
        """The frames before this chunk, zeros where there are none, and then the chunk."""
        zeros = jnp.zeros((x.shape[0], frames, *x.shape[2:]), x.dtype)
        if not streaming(self):
            return jnp.concatenate([zeros, x], axis=1)
        past = self.variable("stream", "past", lambda: zeros)
        x = jnp.concatenate([past.value, x], axis=1)
        past.value = x[:, -frames:]
        return x


def streaming(module: nn.Module) -> bool:
    """Whether the module works on chunks of a longer video."""
    return module.is_mutable_collection("stream") and not module.is_initializing()


class ChannelNorm(nn.Module):
    """Divides by the root mean square over channels and scales; in float32."""

    @nn.compact
    def __call__(self, x: Video) -> Video:
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        full = x.astype(jnp.float32)
        length = jnp.maximum(jnp.linalg.norm(full, axis=-1, keepdims=True), 1e-12)
        return (full / length * x.shape[-1] ** 0.5 * scale).astype(x.dtype)


def fold(video: Video, patch: int) -> Video:
    """Pixel blocks to channels, ordered (colour, column, row)."""
    b, t, h, w, c = video.shape
    blocks = video.reshape(b, t, h // patch, patch, w // patch, patch, c)
    return blocks.transpose(0, 1, 2, 4, 6, 5, 3).reshape(b, t, h // patch, w // patch, c * patch**2)


def unfold(x: Video, patch: int) -> Video:
    """The inverse of `fold`."""
    b, t, h, w, c = x.shape
    blocks = x.reshape(b, t, h, w, c // patch**2, patch, patch)
    return blocks.transpose(0, 1, 2, 6, 3, 5, 4).reshape(b, t, h * patch, w * patch, c // patch**2)


def average(x: Video, features: int, resample: tuple[str, ...]) -> Video:
    """Shortcut around a downsampling stage: folds (t, y, x) into channels and averages them in groups."""
    ft, fs = 1 + ("time" in resample), 1 + ("space" in resample)
    x = jnp.pad(x, ((0, 0), (-x.shape[1] % ft, 0), (0, 0), (0, 0), (0, 0)))
    b, t, h, w, c = x.shape
    blocks = x.reshape(b, t // ft, ft, h // fs, fs, w // fs, fs, c).transpose(0, 1, 3, 5, 7, 2, 4, 6)
    return blocks.reshape(b, t // ft, h // fs, w // fs, features, -1).mean(-1)


def repeat(x: Video, features: int, resample: tuple[str, ...], first: bool) -> Video:
    """Shortcut around an upsampling stage: repeats channels, unfolds them over (t, y, x); frame 0 stays one frame."""
    ft, fs = 1 + ("time" in resample), 1 + ("space" in resample)
    b, t, h, w, c = x.shape
    blocks = jnp.repeat(x, features * ft * fs * fs // c, axis=-1).reshape(b, t, h, w, features, ft, fs, fs)
    frames = blocks.transpose(0, 1, 5, 2, 6, 3, 7, 4).reshape(b, t * ft, h * fs, w * fs, features)
    return frames[:, ft - 1 :] if first else frames


def stream(vae: WanVAE, params: Params, method: str, chunks: Iterable[Video]) -> Iterator[Video]:
    """Encodes or decodes a video chunk by chunk, in memory that does not grow with its length.

    Joined, the results equal those of the whole clip. Two programs are compiled, for the first chunk and for later
    ones, if the later ones are of one size.

    Args:
        vae, params: the autoencoder.
        method: "encode", whose chunks are 4 n + 1 frames and then 4 n each; or "decode", with latents of any number.
        chunks: consecutive pieces (b, t, h, w, c).
    """

    @functools.partial(jax.jit, static_argnames="first")
    def step(params: Params, memory: Params, chunk: Video, first: bool) -> tuple[Video, Params]:
        result: Any = vae.apply({"params": params, **memory}, chunk, first, method=method, mutable=["stream"])
        return result

    memory: Params = {}
    for index, chunk in enumerate(chunks):
        result, memory = step(params, memory, chunk, first=index == 0)
        yield result
