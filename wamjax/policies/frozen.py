"""What policies of the Wan family see and read through, frozen: a codec of clips, a text and an image encoder.

Released weights come with Wan's autoencoder, UMT5 and CLIP; a small model trained from scratch makes do with a linear
codec fitted on its own frames, hashed words and no image encoder. Pixels are floats in [-1, 1], clips have 4 n + 1
frames and n + 1 latent frames, and the first frame is encoded apart.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from wamjax.errors import UserError
from wamjax.networks.bag_of_words import bag_of_words
from wamjax.networks.clip import CLIPVision, CLIPVisionConfig, preprocess
from wamjax.networks.patch_codec import PatchCodec
from wamjax.networks.umt5 import UMT5Config, UMT5Encoder
from wamjax.networks.wan.dit import Latents
from wamjax.networks.wan.vae import WanVAE, WanVAEConfig

Pixels = Float[Array, "b t h w 3"]
Params = Any


class FrameCodec(Protocol):
    """Clips to latents and back."""

    @property
    def channels(self) -> int:
        """Of the latents."""

    @property
    def factor(self) -> int:
        """Pixels of a latent's side."""

    def fit(self, frames: UInt8[np.ndarray, "n h w 3"]) -> Params:
        """Parameters made from frames of the dataset; a UserError where they must be given."""

    def encode(self, params: Params, clip: Pixels) -> Latents:
        """Latents of a clip."""

    def decode(self, params: Params, latents: Latents) -> Pixels:
        """The clip."""


@dataclasses.dataclass(frozen=True)
class WanFrames:
    """Wan's autoencoder.

    Attributes:
        vae: its shape.
    """

    vae: WanVAEConfig = WanVAEConfig()
    kind: Literal["wan"] = "wan"

    @property
    def channels(self) -> int:
        """See `FrameCodec`."""
        return self.vae.latent

    @property
    def factor(self) -> int:
        """See `FrameCodec`."""
        return self.vae.patch * 2 ** len(self.vae.temporal)

    def fit(self, frames: UInt8[np.ndarray, "n h w 3"]) -> Params:
        """Never: its weights are given."""
        raise UserError("Wan's autoencoder is not fitted: name the folder of its weights as `weights`")

    def encode(self, params: Params, clip: Pixels) -> Latents:
        """See `FrameCodec`."""
        latents: Any = WanVAE(self.vae).apply({"params": params}, clip, method="encode")
        return latents

    def decode(self, params: Params, latents: Latents) -> Pixels:
        """See `FrameCodec`."""
        clip: Any = WanVAE(self.vae).apply({"params": params}, latents, method="decode")
        return clip


@dataclasses.dataclass(frozen=True)
class PatchFrames:
    """Principal components of square patches; the components of four frames lie side by side in the channels.

    The first frame is taken as standing still for four.

    Attributes:
        patch: edge of a patch in pixels.
        components: per patch and frame.
    """

    patch: int = 8
    components: int = 12
    kind: Literal["patches"] = "patches"

    @property
    def channels(self) -> int:
        """See `FrameCodec`."""
        return 4 * self.components

    @property
    def factor(self) -> int:
        """See `FrameCodec`."""
        return self.patch

    @property
    def _codec(self) -> PatchCodec:
        return PatchCodec(self.patch, self.components)

    def fit(self, frames: UInt8[np.ndarray, "n h w 3"]) -> Params:
        """See `FrameCodec`."""
        return self._codec.fit(frames)

    def encode(self, params: Params, clip: Pixels) -> Latents:
        """See `FrameCodec`."""
        each = self._codec.encode_pixels(params, clip)
        each = jnp.concatenate([jnp.repeat(each[:, :1], 3, axis=1), each], axis=1)
        b, t, y, x, c = each.shape
        return jnp.moveaxis(each.reshape(b, t // 4, 4, y, x, c), 2, 4).reshape(b, t // 4, y, x, 4 * c)

    def decode(self, params: Params, latents: Latents) -> Pixels:
        """See `FrameCodec`."""
        b, t, y, x, c = latents.shape
        each = jnp.moveaxis(latents.reshape(b, t, y, x, 4, c // 4), 4, 2).reshape(b, 4 * t, y, x, c // 4)
        return self._codec.decode_pixels(params, each[:, 3:])


class TextEncoder(Protocol):
    """Prompts to features."""

    def tokenize(self, prompt: str) -> np.ndarray:
        """What a batch carries of a prompt (l,)."""

    def encode(self, params: Params, tokens: Array) -> Float[Array, "b l e"]:
        """Features; zero where there is no token."""


@dataclasses.dataclass(frozen=True)
class UMT5Text:
    """UMT5, as Wan uses it.

    Attributes:
        encoder: its shape.
        length: tokens of a prompt, at most.
        tokenizer: folder or file of spiece.model.
    """

    encoder: UMT5Config = UMT5Config()
    length: int = 512
    tokenizer: str = ""
    kind: Literal["umt5"] = "umt5"

    def tokenize(self, prompt: str) -> Int[np.ndarray, " l"]:
        """Token numbers, 0 where there is none."""
        return _umt5_tokenizer(self.tokenizer, self.length)([prompt])[0][0]

    def encode(self, params: Params, tokens: Int[Array, "b l"]) -> Float[Array, "b l e"]:
        """See `TextEncoder`; every sample keeps its own length."""
        tokens = tokens.astype(int)
        present = tokens > 0
        features: Any = UMT5Encoder(self.encoder).apply({"params": params}, tokens, present)
        return features * present[..., None]


@functools.cache
def _umt5_tokenizer(path: str, length: int) -> Callable[[list[str]], tuple[np.ndarray, np.ndarray]]:
    from wamjax.networks.umt5_tokenizer import Tokenizer

    if not path:
        raise UserError("there is no tokenizer: name the folder of spiece.model as `text.tokenizer`")
    return Tokenizer(Path(path), length)


@dataclasses.dataclass(frozen=True)
class WordsText:
    """Hashed words: one feature vector without parameters.

    Attributes:
        width: of the vector.
    """

    width: int = 256
    kind: Literal["words"] = "words"

    def tokenize(self, prompt: str) -> Float[np.ndarray, " e"]:
        """The vector."""
        return bag_of_words(prompt, self.width)

    def encode(self, params: Params, tokens: Float[Array, "b e"]) -> Float[Array, "b 1 e"]:
        """See `TextEncoder`."""
        return tokens[:, None]


class AnyText(UMT5Text):
    """UMT5 behind a tokenizer of letters, which needs no file: features mean nothing, and cost what they cost."""

    def tokenize(self, prompt: str) -> np.ndarray:
        """See `TextEncoder`."""
        letters = [1 + ord(letter) % (self.encoder.vocabulary - 1) for letter in prompt][: self.length]
        return np.pad(letters, (0, self.length - len(letters)))


class Reads(Protocol):
    """The configuration of a policy that reads through these networks."""

    @property
    def frames(self) -> WanFrames | PatchFrames: ...

    @property
    def text(self) -> UMT5Text | WordsText: ...

    @property
    def image(self) -> CLIPVisionConfig | None: ...


def networks(config: Reads) -> dict[str, nn.Module]:
    """The networks whose weights must be given."""
    found: dict[str, nn.Module] = {}
    if isinstance(config.frames, WanFrames):
        found["frames"] = WanVAE(config.frames.vae)
    if isinstance(config.text, UMT5Text):
        found["text"] = UMT5Encoder(config.text.encoder)
    if config.image:
        found["image"] = CLIPVision(config.image)
    return found


def pretrained_shapes(config: Reads) -> dict[str, Params]:
    """Shapes of the weights that must be given."""
    side, image = 2 * config.frames.factor, config.image.image if config.image else 0
    inputs: dict[str, tuple[Array, ...]] = {
        "frames": (jnp.zeros((1, 1, side, side, 3)),),
        "text": (jnp.ones((1, 2), int), jnp.ones((1, 2), bool)),
        "image": (jnp.zeros((1, image, image, 3)),),
    }
    return {
        name: jax.eval_shape(network.init, jax.random.key(0), *inputs[name])["params"]
        for name, network in networks(config).items()
    }


def image_features(config: CLIPVisionConfig | None, params: Params, image: Float[Array, "b h w 3"]) -> Array | None:
    """CLIP's features (b, i, f) of images, or None without an encoder."""
    if config is None:
        return None
    features: Any = CLIPVision(config).apply({"params": params}, preprocess(image, config.image))
    return features


def with_condition(codec: FrameCodec, params: Params, clip: Pixels) -> Float[Array, "b t y x c"]:
    """Wan's condition on a clip's first frame: a mask of four channels, one there; the frame, then grey, encoded."""
    grey = jnp.zeros_like(clip[:, 1:])
    latents = codec.encode(params, jnp.concatenate([clip[:, :1], grey], axis=1))
    mask = jnp.zeros((*latents.shape[:-1], 4), latents.dtype).at[:, 0].set(1)
    return jnp.concatenate([mask, latents], axis=-1)
