"""Wan's video diffusion transformer: 2.1 (text or image to video) and 2.2 (TI2V-5B, and both networks of A14B).

After wan/modules/model.py of both repositories. Noise levels come as a table per sample that tokens point into, so
modulation is computed once per distinct level, and one module serves a level per clip (2.1), per latent frame
(TI2V-5B) or per token. Policies that put other tokens beside the video's use `condition`, `embed`, `run` and `read`.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from wamjax.errors import UserError
from wamjax.nn.attention import attention_to_all
from wamjax.nn.layers import AffineNorm, Linear, ScaledNorm, layer_norm, sinusoid
from wamjax.nn.rope import Rotation, rotate, rotation
from wamjax.nn.shard import shard
from wamjax.nn.stack import BlockShare, Cache, Memory, StackConfig, remember, run_blocks
from wamjax.nn.tokens import Group, TokenIds, TokenPlan, at_times

Latents = Float[Array, "b t h w c"]

PARTITIONS: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"blocks/.*(/q|/k|/v|k_img|v_img|ffn_in)/kernel", (None, "fsdp", "tensor")),
    (r"blocks/.*(/o|ffn_out)/kernel", (None, "tensor", "fsdp")),
    (r"((text|time)_\w+|image_embedding/\w+)/kernel", ("fsdp", "tensor")),
    (r".*", ()),
)
"""Parameter path (regular expression, first match wins) to the mesh axes of its dimensions."""


@dataclasses.dataclass(frozen=True)
class Precision:
    """In what numbers a network computes; its parameters may be stored in any.

    Attributes:
        compute: of matrix products and attention.
        islands: of noise levels, modulation, norms, the residual stream and the head. Wan keeps these in float32;
            DreamZero's bfloat16 runs do not.
    """

    compute: Any = jnp.float32
    islands: Any = jnp.float32


@dataclasses.dataclass(frozen=True)
class WanDiTConfig:
    """Shape of a transformer.

    Attributes:
        width, mlp, heads, layers: of the transformer.
        inputs, outputs: latent channels read (condition included) and predicted.
        text, text_length: channels of the text features, and the length that they are padded to with zeros.
        image: channels of the image features; 0 for networks that read none.
        image_positions: learned positions of image tokens, for networks that read two images; 0 for none.
        frequencies: width of the noise level's sinusoid.
        patch: latent frames, rows and columns of a token.
        remat, offload: see `StackConfig`.
    """

    width: int
    mlp: int
    heads: int
    layers: int
    inputs: int = 16
    outputs: int = 16
    text: int = 4096
    text_length: int = 512
    image: int = 0
    image_positions: int = 0
    frequencies: int = 256
    patch: tuple[int, int, int] = (1, 2, 2)
    remat: tuple[str, ...] | None = None
    offload: tuple[str, ...] = ()

    @property
    def pairs(self) -> tuple[int, int, int]:
        """Pairs of a head's channels that turn with the frame, the row and the column."""
        pairs = self.width // self.heads // 2
        return pairs - 2 * (pairs // 3), pairs // 3, pairs // 3

    def stack(self, precision: Precision = Precision()) -> StackConfig:
        """Shape of the blocks."""
        expert = WanExpert(self.width, self.mlp, bool(self.image), precision)
        return StackConfig(self.layers, self.heads, self.width // self.heads, (expert,), self.remat, self.offload)

    def products(self, tokens: int, prompt: bool = True) -> float:
        """Multiply-adds of a pass over so many tokens, without self-attention: weights, and cross-attention.

        Args:
            tokens: computed.
            prompt: whether keys and values of prompt and image are computed too.
        """
        seen = self.text_length + (self.image_positions or 257) * bool(self.image)
        block = tokens * 2 * (3 * self.width + self.mlp + seen) * self.width + prompt * seen * 2 * self.width**2
        return self.layers * block + tokens * int(np.prod(self.patch)) * (self.inputs + self.outputs) * self.width


_14B = WanDiTConfig(width=5120, mlp=13_824, heads=40, layers=40)
WAN_DITS = {
    "wan2.1-t2v-1.3b": WanDiTConfig(width=1536, mlp=8960, heads=12, layers=30),
    "wan2.1-t2v-14b": _14B,
    "wan2.1-i2v-14b": dataclasses.replace(_14B, inputs=36, image=1280),
    "wan2.1-flf2v-14b": dataclasses.replace(_14B, inputs=36, image=1280, image_positions=514),
    "wan2.2-ti2v-5b": WanDiTConfig(width=3072, mlp=14_336, heads=24, layers=30, inputs=48, outputs=48),
    "wan2.2-t2v-a14b": _14B,
    "wan2.2-i2v-a14b": dataclasses.replace(_14B, inputs=36),
}
"""The released networks by name (A14B: each of its two)."""


@struct.dataclass
class WanCondition:
    """What every block reads beside tokens.

    Attributes:
        rows: (b, m, 6 d) modulation per noise level.
        level: (b, m, d) embedded noise levels, which the head reads.
        turned: rotation of the tokens computed now.
        text: (b, l, d) embedded text; None where blocks are given their memory of it.
        image: (b, i, d) embedded image, or None.
    """

    rows: Float[Array, "b m 6d"]
    level: Float[Array, "b m d"]
    turned: Rotation
    text: Float[Array, "b l d"] | None = None
    image: Float[Array, "b i d"] | None = None


class WanDiT(nn.Module):
    """The transformer.

    Attributes:
        config: its shape.
        precision: in what numbers it computes.
    """

    config: WanDiTConfig
    precision: Precision = Precision()

    def setup(self) -> None:
        c = self.config
        small = nn.initializers.normal(0.02)
        self.patch_kernel = self.param("patch_kernel", _glorot_patch, (*c.patch, c.inputs, c.width))
        self.patch_bias = self.param("patch_bias", nn.initializers.zeros, (c.width,))
        self.time_in, self.time_out = Linear(c.width, small), Linear(c.width, small)
        self.time_rows = Linear(6 * c.width, _glorot)
        self.text_in, self.text_out = Linear(c.width, small), Linear(c.width, small)
        if c.image:
            self.image_embedding = ImageEmbedding(c)
        self.head = Linear(int(np.prod(c.patch)) * c.outputs, nn.initializers.zeros)
        self.head_modulation = self.param("head_modulation", nn.initializers.normal(c.width**-0.5), (2, c.width))

    def __call__(
        self,
        latents: Latents,
        timestep: Float[Array, "b m"],
        text: Float[Array, "b l e"],
        image: Float[Array, "b i f"] | None = None,
    ) -> Latents:
        """Velocity (noise minus data) of a clip, in float32.

        Args:
            latents: noisy latents, followed in the channels by the condition's where the network reads one.
            timestep: noise levels times 1000: one per clip, per latent frame or per token (m divides the tokens).
            text: features of the prompt, without padding or zero where padded.
            image: features of the image, where the network reads them; of two images, one after the other (FLF2V).

        Raises:
            UserError: what does not fit the network, by name.
        """
        grid = self.grid(latents)
        ids, position = clip_ids(grid, latents.shape[0], timestep), grid_positions(grid)
        plan = TokenPlan.from_rule([Group("video", ids.time.shape[1])], lambda q, k: True)
        image = self._image(image) if self.config.image else None
        condition = self.condition(timestep, rotation(position, self.config.pairs), text, image)
        tokens, _ = self.run(self.embed(latents), condition, ids, plan)
        return self.unpatch(self.read(tokens, condition, ids), grid)

    def condition(
        self, timestep: Float[Array, "b m"], turned: Rotation, text: Array | None = None, image: Array | None = None
    ) -> WanCondition:
        """Embeds the noise levels and, where they are given, the prompt and the image."""
        level = self.time_out(jax.nn.silu(self.time_in(sinusoid(timestep, self.config.frequencies))))
        islands = self.precision.islands
        rows = self.time_rows(jax.nn.silu(level)).astype(islands)
        text = None if text is None else self.embed_text(text)
        image = None if image is None else self.embed_image(image)
        return WanCondition(rows, level.astype(islands), turned, text, image)

    def embed_text(self, text: Float[Array, "b l e"]) -> Float[Array, "b l d"]:
        """A prompt's features as blocks see them; padding is seen too."""
        text = jnp.pad(text, ((0, 0), (0, self._padding(text)), (0, 0))).astype(self.precision.compute)
        return self.text_out(jax.nn.gelu(self.text_in(text), approximate=True))

    def embed_image(self, image: Float[Array, "b i f"]) -> Float[Array, "b i d"]:
        """An image's features as blocks see them."""
        return self.image_embedding(self._image(image).astype(self.precision.compute))

    def remember(self, text: Array | None = None, image: Array | None = None) -> Memory:
        """Keys and values of a prompt, an image or both in all blocks, (layers, b, l, k, h) each: for `run`."""
        given = text if text is not None else image
        if given is None:
            raise ValueError("give a prompt, an image or both to remember")
        nothing = jnp.zeros((given.shape[0], 0))
        embedded = (None if x is None else how(x) for how, x in ((self.embed_text, text), (self.embed_image, image)))
        return remember(self, self.stack, {0: WanCondition(nothing, nothing, (nothing, nothing), *embedded)})[0]

    def embed(self, latents: Latents) -> Float[Array, "b n d"]:
        """One token per patch, frame by frame and row by row."""
        c = self.config
        b, t, h, w, channels = latents.shape
        (pt, ph, pw), dtype = c.patch, self.precision.compute
        patches = latents.reshape(b, t // pt, pt, h // ph, ph, w // pw, pw, channels).transpose(0, 1, 3, 5, 2, 4, 6, 7)
        patches = patches.reshape(b, -1, pt * ph * pw * channels).astype(dtype)
        kernel = self.patch_kernel.astype(dtype).reshape(-1, c.width)
        return (patches @ kernel + self.patch_bias.astype(dtype)).astype(self.precision.islands)

    @nn.compact
    def run(
        self,
        tokens: Float[Array, "b n d"],
        condition: WanCondition,
        ids: TokenIds,
        plan: TokenPlan,
        cache: Cache | None = None,
        memory: Memory | None = None,
    ) -> tuple[Float[Array, "b n d"], Cache]:
        """All blocks over the plan's last tokens, and the keys and values of these.

        Args:
            tokens, condition, ids, plan, cache: as of `nn.stack.run_blocks`.
            memory: what `remember` made of prompt and image, where the condition does not hold them.
        """
        memories = None if memory is None else {0: memory}
        tokens_of, new = run_blocks(self, self.stack, {0: tokens}, {0: condition}, ids, plan, cache, memories)
        return tokens_of[0], new

    def read(self, tokens: Float[Array, "b n d"], condition: WanCondition, ids: TokenIds) -> Float[Array, "b n o"]:
        """Predictions of the last tokens of `ids`, patch by patch, channels last and fastest."""
        table = condition.level[:, :, None] + self.head_modulation.astype(self.precision.islands)
        time = ids.time[:, -tokens.shape[1] :]
        shift, scale = (at_times(table[:, :, i], time) for i in range(2))
        return self.head(layer_norm(tokens) * (1 + scale) + shift).astype(jnp.float32)

    def unpatch(self, patches: Float[Array, "b n o"], grid: tuple[int, int, int]) -> Latents:
        """Patches of a whole clip to latents."""
        (t, h, w), (pt, ph, pw) = grid, self.config.patch
        x = patches.reshape(-1, t, h, w, pt, ph, pw, self.config.outputs).transpose(0, 1, 4, 2, 5, 3, 6, 7)
        return x.reshape(-1, t * pt, h * ph, w * pw, self.config.outputs)

    @property
    def stack(self) -> StackConfig:
        """Shape of the blocks."""
        return self.config.stack(self.precision)

    def products(self, plan: TokenPlan, queries: int) -> float:
        """Multiply-adds of a pass, without attention among the tokens; see `wamjax.policies.contract.Counted`."""
        return self.config.products(queries)

    def grid(self, latents: Latents) -> tuple[int, int, int]:
        """Frames, rows and columns of the tokens of a clip; a UserError for one that the network cannot read."""
        c = self.config
        _, t, h, w, channels = latents.shape
        if channels != c.inputs:
            raise UserError(f"the network reads {c.inputs} latent channels, not {channels}: check the condition's")
        grid = (t // c.patch[0], h // c.patch[1], w // c.patch[2])
        if (t, h, w) != tuple(g * p for g, p in zip(grid, c.patch, strict=True)):
            raise UserError(f"latents of {t}x{h}x{w} cannot be cut into patches of {'x'.join(map(str, c.patch))}")
        return grid

    def _padding(self, text: Array) -> int:
        c = self.config
        if text.shape[1] > c.text_length or text.shape[2] != c.text:
            raise UserError(
                f"text features of {text.shape[1]} tokens of width {text.shape[2]} do not fit: "
                f"the network reads up to {c.text_length} of width {c.text}"
            )
        return c.text_length - text.shape[1]

    def _image(self, image: Array | None) -> Array:
        c = self.config
        if image is None or image.shape[2] != c.image:
            raise UserError(f"the network reads image features of width {c.image}: give it CLIP's of the image")
        if c.image_positions and image.shape[1] != c.image_positions:
            raise UserError(
                f"the network reads {c.image_positions} image tokens, not {image.shape[1]}: "
                "give it the first and the last frame's, one after the other"
            )
        return image


def clip_ids(grid: tuple[int, int, int], batch: int, timestep: Float[Array, "b m"]) -> TokenIds:
    """Ids of whole clips of `grid` frames, rows and columns of tokens; a UserError if the levels do not divide them."""
    tokens = int(np.prod(grid))
    if timestep.ndim != 2 or tokens % timestep.shape[1]:
        raise UserError(
            f"timesteps of shape {timestep.shape} do not fit {tokens} tokens: "
            f"give (batch, 1), (batch, {grid[0]}) for one per frame, or (batch, {tokens})"
        )
    time = jnp.asarray(np.arange(tokens) // (tokens // timestep.shape[1]), jnp.int32)
    return TokenIds(segment=None, time=jnp.broadcast_to(time, (batch, tokens)))


def grid_positions(grid: tuple[int, int, int]) -> Float[Array, "1 n 3"]:
    """Frame, row and column of every token of a clip."""
    grids = np.meshgrid(*map(np.arange, grid), indexing="ij")
    return jnp.asarray(np.stack(grids, axis=-1).reshape(1, -1, 3), jnp.float32)


class ImageEmbedding(nn.Module):
    """Image features to the transformer's width."""

    config: WanDiTConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b i f"]) -> Float[Array, "b i d"]:
        c = self.config
        if c.image_positions:
            x = x + self.param("positions", nn.initializers.zeros, (c.image_positions, c.image)).astype(x.dtype)
        x = AffineNorm(1e-5, name="norm_in")(x)
        x = Linear(c.image, _glorot, name="hidden")(x)
        x = Linear(c.width, _glorot, name="out")(jax.nn.gelu(x, approximate=False))
        return AffineNorm(1e-5, name="norm_out")(x)


@dataclasses.dataclass(frozen=True)
class WanExpert:
    """Wan's blocks as an expert of the joint stack; their condition is a `WanCondition`.

    Attributes:
        width, mlp: of tokens and of the MLP's hidden layer.
        image: whether blocks look at an image too.
        precision: in what numbers they compute.
    """

    width: int
    mlp: int
    image: bool
    precision: Precision

    def share(self, heads: int, head_dim: int) -> BlockShare:
        """See `ExpertKind`."""
        return WanBlock(self, heads, head_dim)


class WanBlock(nn.Module):
    """Modulated self-attention, cross-attention to text and image, modulated MLP."""

    expert: WanExpert
    heads: int
    head_dim: int

    def setup(self) -> None:
        e = self.expert
        self.modulation = self.param("modulation", nn.initializers.normal(e.width**-0.5), (6, e.width))
        self.self_attn = Attention(e.width, self.heads, self.head_dim, image=False)
        self.norm_cross = AffineNorm(1e-6)
        self.cross_attn = Attention(e.width, self.heads, self.head_dim, e.image)
        self.ffn_in, self.ffn_out = Linear(e.mlp, _glorot), Linear(e.width, _glorot)

    def project(self, x: Array, condition: WanCondition, time: Array) -> tuple[Array, Array, Array]:
        """See `BlockShare`."""
        shift, scale, _ = self._rows(condition, time, 0)
        h = (layer_norm(x) * (1 + scale) + shift).astype(self.expert.precision.compute)
        k, v = self.self_attn.read(h)
        return rotate(self.self_attn.ask(h), condition.turned), rotate(k, condition.turned), v

    def remember(self, condition: WanCondition) -> list[tuple[Array, Array]]:
        """Keys and values of the text and, apart from them, of the image."""
        read, read_image = self.cross_attn.read, self.cross_attn.read_image
        seen = ((read, condition.text), (read_image, condition.image))
        return [how(tokens) for how, tokens in seen if tokens is not None]

    def merge(self, x: Array, attended: Array, condition: WanCondition, time: Array, memory: Memory) -> Array:
        """See `BlockShare`."""
        compute = self.expert.precision.compute
        gate = self._rows(condition, time, 0)[2]
        x = x + checkpoint_name(self.self_attn.out(attended), "attn_out").astype(x.dtype) * gate
        x = x + self._look(self.norm_cross(x).astype(compute), memory).astype(x.dtype)
        shift, scale, gate = self._rows(condition, time, 3)
        h = (layer_norm(x) * (1 + scale) + shift).astype(compute)
        hidden = checkpoint_name(shard(self.ffn_in(h), "b n f"), "mlp_hidden")
        return x + self.ffn_out(jax.nn.gelu(hidden, approximate=True)).astype(x.dtype) * gate

    def _look(self, x: Array, memory: Memory) -> Array:
        """Cross-attention: one query, answered by the text and, apart from it, by the image."""
        q = self.cross_attn.ask(x)
        return self.cross_attn.out(functools.reduce(jnp.add, [attention_to_all(q, k, v) for k, v in memory]))

    def _rows(self, condition: WanCondition, time: Int[Array, "b n"], first: int) -> list[Array]:
        """Three modulation rows per token: shift, scale and gate."""
        rows = condition.rows.reshape(*condition.rows.shape[:2], 6, -1)[:, :, first : first + 3]
        table = shard(rows + self.modulation[first : first + 3].astype(rows.dtype), "b - - -")
        return [at_times(table[:, :, i], time) for i in range(3)]


class Attention(nn.Module):
    """Projections of an attention, queries and keys normalised over all heads together."""

    width: int
    heads: int
    head_dim: int
    image: bool

    def setup(self) -> None:
        self.q, self.k, self.v, self.o = (Linear(self.width, _glorot) for _ in range(4))
        self.norm_q, self.norm_k = ScaledNorm(), ScaledNorm()
        if self.image:
            self.k_img, self.v_img = Linear(self.width, _glorot), Linear(self.width, _glorot)
            self.norm_k_img = ScaledNorm()

    def ask(self, x: Array) -> Array:
        """Queries (b, n, k, h)."""
        return self._heads(self.norm_q(self.q(x)))

    def read(self, x: Array) -> tuple[Array, Array]:
        """Keys and values (b, n, k, h)."""
        return self._heads(self.norm_k(self.k(x))), self._heads(self.v(x))

    def read_image(self, x: Array) -> tuple[Array, Array]:
        """Keys and values of image tokens."""
        return self._heads(self.norm_k_img(self.k_img(x))), self._heads(self.v_img(x))

    def out(self, attended: Array) -> Array:
        """Heads (b, n, k, h) back to tokens (b, n, d)."""
        return self.o(attended.reshape(*attended.shape[:2], -1))

    def _heads(self, x: Array) -> Array:
        return x.reshape(*x.shape[:2], self.heads, self.head_dim)


_glorot = nn.initializers.glorot_uniform()


def _glorot_patch(key: Array, shape: tuple[int, ...]) -> Array:
    """Glorot over the flattened kernel."""
    return _glorot(key, (int(np.prod(shape[:-1])), shape[-1])).reshape(shape)
