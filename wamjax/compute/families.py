"""Families of networks: from the few dimensions that a paper or a configuration gives to a description.

The data files name a family by its `kind` and give its fields. Parameters come out exact to the last digit, norms and
biases included; where a network exists in wamjax, tests hold both counts against each other.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import itertools
from typing import Literal

from wamjax.compute.description import Context, Cost, Expert, Matrix, Network, Stack, Work
from wamjax.compute.flops import Flops, parameter_count, traced
from wamjax.errors import UserError

VIDEO = ("video", "clean", "noisy", "first", "future")
"""Streams of latent frames."""

PREDICTED = ("video", "noisy", "future")
"""Those that a head reads."""


class Family(abc.ABC):
    """Dimensions that describe a network."""

    @functools.cached_property
    @abc.abstractmethod
    def network(self) -> Network:
        """The description."""

    @property
    def parameters(self) -> int:
        """All of it."""
        return self.network.parameters

    def cost(self, work: Work) -> Cost:
        """See `Described`."""
        return self.network.cost(work)


@dataclasses.dataclass(frozen=True)
class Wan(Family):
    """Wan's diffusion transformer, as `WanDiTConfig` has it; with a second, narrower expert, Fast-WAM's.

    Attributes:
        width, mlp, heads, layers, inputs, outputs, text, image, image_positions, frequencies: as of `WanDiTConfig`.
        pixels: latent pixels of a token.
        action_width, action_mlp: of an expert for actions, which keeps the heads; 0 for none.
        action: numbers of an action, where there is that expert.
        extra: matrices beside these.
    """

    width: int
    mlp: int
    heads: int
    layers: int
    inputs: int = 16
    outputs: int = 16
    text: int = 4096
    image: int = 0
    image_positions: int = 0
    frequencies: int = 256
    pixels: int = 4
    action_width: int = 0
    action_mlp: int = 0
    action: int = 0
    extra: tuple[Matrix, ...] = ()
    kind: Literal["wan"] = "wan"

    @functools.cached_property
    def network(self) -> Network:
        """The description."""
        d = self.width
        embedded = (
            *self._condition(d, "text", "times"),
            Matrix("patches", self.pixels * self.inputs, d, VIDEO),
            Matrix("head", d, self.pixels * self.outputs, PREDICTED),
        )
        vectors, experts = 2 * d, [self._expert(d, self.mlp, bool(self.image))]
        if self.image:
            embedded += (
                Matrix("image", self.image, self.image, ("image",)),
                Matrix("image to width", self.image, d, ("image",)),
            )
            vectors += (2 + self.image_positions) * self.image + 2 * d
        if self.action_width:
            experts.append(self._expert(self.action_width, self.action_mlp, False))
            embedded += self._condition(self.action_width, "action text", "action times")
            embedded += (
                Matrix("actions in", self.action, self.action_width, ("action",)),
                Matrix("actions out", self.action_width, self.action, ("action",)),
            )
        stack = Stack(self.layers, self.heads, d // self.heads, tuple(experts))
        return Network((stack,), (*embedded, *self.extra), vectors)

    def _expert(self, width: int, mlp: int, image: bool) -> Expert:
        """Its vectors: norms of queries and keys (twice, thrice with an image), of the cross-attention, modulation."""
        text = Context("text" if width == self.width else "action text", width)
        contexts = (text, Context("image", width, shares=True)) if image else (text,)
        return Expert(width, mlp, contexts=contexts, vectors=(4 + image) * self.width + 8 * width)

    def _condition(self, width: int, text: str, times: str) -> tuple[Matrix, ...]:
        return (
            Matrix(f"{text} in", self.text, width, (text,)),
            Matrix(f"{text} out", width, width, (text,)),
            Matrix(f"{times} in", self.frequencies, width, (times,)),
            Matrix(f"{times} out", width, width, (times,)),
            Matrix(f"{times} rows", width, 6 * width, (times,)),
        )


@dataclasses.dataclass(frozen=True)
class Cosmos(Family):
    """Cosmos-Predict2's diffusion transformer: no biases, modulation of low rank.

    Attributes:
        width, heads, layers: of the transformer, whose MLP is four times as wide.
        inputs, outputs: latent channels. context: width of the text features.
        rank: of the modulation. projected: width of text features that are brought down to `context` first, or 0.
    """

    width: int
    heads: int
    layers: int
    inputs: int = 18
    outputs: int = 16
    context: int = 1024
    rank: int = 256
    projected: int = 0
    kind: Literal["cosmos"] = "cosmos"

    @functools.cached_property
    def network(self) -> Network:
        """The description."""
        d = self.width
        modulation = (
            Matrix("modulation in", d, self.rank, ("times",), False, 3),
            Matrix("modulation out", self.rank, 3 * d, ("times",), False, 3),
        )
        contexts = (Context("text", self.context),)
        expert = Expert(d, 4 * d, bias=False, contexts=contexts, matrices=modulation, vectors=4 * (d // self.heads))
        beside: tuple[Matrix, ...] = (
            Matrix("patches", 4 * self.inputs, d, VIDEO, False),
            Matrix("head", d, 4 * self.outputs, PREDICTED, False),
            Matrix("times in", d, d, ("times",), False),
            Matrix("times out", d, 3 * d, ("times",), False),
            Matrix("head modulation in", d, self.rank, ("times",), False),
            Matrix("head modulation out", self.rank, 2 * d, ("times",), False),
        )
        if self.projected:
            beside += (Matrix("text projection", self.projected, self.context, ("text",)),)
        return Network((Stack(self.layers, self.heads, d // self.heads, (expert,)),), beside, vectors=d)


@dataclasses.dataclass(frozen=True)
class Decoder(Family):
    """A language model's blocks (Gemma, Qwen3, SmolLM2; UMT5's encoder), alone or beside a narrower expert.

    Attributes:
        width, mlp, heads, keys, head_dim, layers: of the blocks; `keys` are heads of keys and values.
        vocabulary: embedded tokens, with one matrix for both ends; 0 for blocks alone. untied: whether there are two.
        head_norms: whether queries and keys have a norm. final: whether there is one after the blocks.
        biases: relative positions of every block, for each head.
        expert_width, expert_mlp: of a second expert; 0 for none. adaptive: whether its norms read the noise level.
        extra: matrices beside these.
    """

    width: int
    mlp: int
    heads: int
    keys: int
    head_dim: int
    layers: int
    vocabulary: int = 0
    untied: bool = False
    head_norms: bool = False
    final: bool = True
    biases: int = 0
    expert_width: int = 0
    expert_mlp: int = 0
    adaptive: bool = False
    extra: tuple[Matrix, ...] = ()
    kind: Literal["decoder"] = "decoder"

    @functools.cached_property
    def network(self) -> Network:
        """The description."""
        norms = 2 * self.head_dim * self.head_norms + self.biases * self.heads
        experts = [Expert(self.width, self.mlp, True, False, vectors=2 * self.width + norms)]
        beside: tuple[Matrix, ...] = ()
        vectors = self.final * self.width
        if self.vocabulary:
            beside += (Matrix("words", self.width, self.vocabulary, ("logits",), False, 1, 1 + self.untied),)
        if self.expert_width:
            w = self.expert_width
            adapted = (Matrix("norms", w, 3 * w, ("times",), True, 2),) if self.adaptive else ()
            scales = 0 if self.adaptive else 2 * w
            experts.append(Expert(w, self.expert_mlp, True, False, matrices=adapted, vectors=scales + norms))
            beside += (Matrix("last norm", w, 3 * w, ("times",)),) if self.adaptive else ()
            vectors += 0 if self.adaptive else self.final * w
        stack = Stack(self.layers, self.heads, self.head_dim, tuple(experts), self.keys)
        return Network((stack,), (*beside, *self.extra), vectors)


@dataclasses.dataclass(frozen=True)
class Vision(Family):
    """A vision transformer over patches: SigLIP, CLIP, InternViT.

    Attributes:
        width, mlp, heads, layers: of the transformer. patch: edge in pixels. channels: of its pixels, of all its
            frames. positions: learned ones.
        patch_bias: whether the patches' map has one. outer: norms before and after the blocks.
        vectors: other parameters of a block (InternViT's layer scales), and of the whole.
        extra: matrices behind it: projectors.
    """

    width: int
    mlp: int
    heads: int
    layers: int
    patch: int = 14
    channels: int = 3
    positions: int = 256
    patch_bias: bool = True
    outer: int = 1
    block_vectors: int = 0
    vectors: int = 0
    extra: tuple[Matrix, ...] = ()
    kind: Literal["vision"] = "vision"

    @functools.cached_property
    def network(self) -> Network:
        """The description."""
        d = self.width
        expert = Expert(d, self.mlp, vectors=4 * d + self.block_vectors)
        patches = Matrix("patches", self.channels * self.patch**2, d, ("image",), self.patch_bias)
        stack = Stack(self.layers, self.heads, d // self.heads, (expert,))
        return Network((stack,), (patches, *self.extra), (self.positions + 2 * self.outer) * d + self.vectors)


@dataclasses.dataclass(frozen=True)
class CrossDiT(Family):
    """GR00T's action head: blocks that look at features in turn with blocks that look at each other.

    Attributes:
        width, mlp, heads: of the transformer. pairs: of blocks, one of each sort. features: width of what is looked at.
        outputs: of the last map. extra: encoders and decoders of states and actions.
    """

    width: int
    mlp: int
    heads: int
    pairs: int
    features: int
    outputs: int
    frequencies: int = 256
    extra: tuple[Matrix, ...] = ()
    kind: Literal["cross_dit"] = "cross_dit"

    @functools.cached_property
    def network(self) -> Network:
        """The description."""
        d, size = self.width, self.width // self.heads
        rows = (Matrix("modulation", d, 2 * d, ("times",)),)
        looking = Expert(d, self.mlp, contexts=(Context("features", self.features),), matrices=rows)
        seeing = Expert(d, self.mlp, matrices=rows)
        beside = (
            Matrix("times in", self.frequencies, d, ("times",)),
            Matrix("times out", d, d, ("times",)),
            Matrix("head modulation", d, 2 * d, ("times",)),
            Matrix("head", d, self.outputs, ("state", "future", "action")),
        )
        stacks = (
            Stack(self.pairs, self.heads, size, (looking,), attends=False),
            Stack(self.pairs, self.heads, size, (seeing,)),
        )
        return Network(stacks, (*beside, *self.extra))


@dataclasses.dataclass(frozen=True)
class Encoder(Family):
    """Plain blocks with biases and two affine norms: GR00T's attention among features.

    Attributes:
        width, mlp, heads, layers: of the transformer.
    """

    width: int
    mlp: int
    heads: int
    layers: int
    kind: Literal["encoder"] = "encoder"

    @functools.cached_property
    def network(self) -> Network:
        """The description."""
        expert = Expert(self.width, self.mlp, vectors=4 * self.width)
        return Network((Stack(self.layers, self.heads, self.width // self.heads, (expert,)),))


@dataclasses.dataclass(frozen=True)
class WorldToAction(Family):
    """mimic-video's action decoder: looks at the video network's hidden states.

    Attributes:
        width, heads, layers: of the transformer, whose MLP is four times as wide. features: width of hidden states.
        rank: of the modulation. positions: tokens at most, the state's included. action: numbers of an action.
        hidden: widths inside the encoders of states and of actions.
    """

    width: int
    heads: int
    layers: int
    features: int
    rank: int
    positions: int
    action: int
    hidden: tuple[int, int] = (47, 220)
    kind: Literal["world_to_action"] = "world_to_action"

    @functools.cached_property
    def network(self) -> Network:
        """The description."""
        d, times = self.width, ("state", "action")
        modulation = (
            Matrix("modulation in", d, self.rank, times, False, 3),
            Matrix("modulation out", self.rank, 3 * d, times, False, 3),
        )
        contexts = (Context("features", self.features),)
        expert = Expert(d, 4 * d, bias=False, contexts=contexts, matrices=modulation, vectors=4 * (d // self.heads))
        sizes = (self.action, *self.hidden, d)
        beside = tuple(
            Matrix(f"{stream} encoder {i}", a, b, (stream,))
            for stream in times
            for i, (a, b) in enumerate(itertools.pairwise(sizes))
        )
        beside += (
            Matrix("times", d, d, times, True, 4),
            Matrix("times out", d, 3 * d, times, False),
            Matrix("head", d, self.action, times, False),
            Matrix("head modulation in", d, self.rank, times, False),
            Matrix("head modulation out", self.rank, 2 * d, times, False),
        )
        vectors = d + self.positions * d + 2 * self.features + d
        return Network((Stack(self.layers, self.heads, d // self.heads, (expert,)),), beside, vectors)


@dataclasses.dataclass(frozen=True)
class Counted:
    """A network of which no more is known than its number of parameters, all of which multiply every token.

    Attributes:
        size: that number. layers, inner: for attention: blocks, and width of queries; 0 leaves attention out.
    """

    size: float
    layers: int = 0
    inner: int = 0
    kind: Literal["counted"] = "counted"

    @property
    def parameters(self) -> int:
        """As stated."""
        return round(self.size)

    def cost(self, work: Work) -> Cost:
        """See `Described`."""
        pair, n = 4 * self.layers * self.inner, work.queries
        flops = Flops(2 * self.size * n, pair * work.plan.pairs(n), pair * n * work.plan.length)
        return Cost(flops * work.rows, self.size, 0.0)


@dataclasses.dataclass(frozen=True)
class WanCodec:
    """Wan's video autoencoders, whose operations are read off wamjax's own program.

    Clips have 4 n + 1 frames; 4 n frames are those after the first of a stream.

    Attributes:
        version: "2.1" or "2.2".
    """

    version: Literal["2.1", "2.2"]
    kind: Literal["wan_codec"] = "wan_codec"

    @property
    def parameters(self) -> int:
        """All of it."""
        return parameter_count(_codec(self.version)[1])

    def cost(self, work: Work) -> Cost:
        """See `Described`."""
        frames, *size = work.clip
        if frames < 1 or frames % 4 > 1 or any(side < 16 or side % 16 for side in size):
            raise UserError(
                f"a clip of {'x'.join(map(str, work.clip))}: give 4 n or 4 n + 1 frames, and sides of 16 n pixels"
            )
        operations = traced_codec(self.version, (frames + (frames % 4 == 0), *size), work.decode)
        if frames % 4 == 0:
            operations -= traced_codec(self.version, (1, *size), work.decode)
        flops = Flops(operations) * work.rows
        part = {name: leaf for name, leaf in _codec(self.version)[1].items() if ("dec" in name) == work.decode}
        return Cost(flops, parameter_count(part))


@functools.cache
def _codec(version: str):  # type: ignore[no-untyped-def]
    """The module and the shapes of its parameters."""
    import jax
    import jax.numpy as jnp

    from wamjax.networks.wan.vae import WAN21_VAE, WAN22_VAE, WanVAE

    module = WanVAE({"2.1": WAN21_VAE, "2.2": WAN22_VAE}[version])
    return module, jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 1, 32, 32, 3)))["params"]


@functools.cache
def traced_codec(version: str, clip: tuple[int, int, int], decode: bool) -> float:
    """Operations of encoding a clip (frames, height, width), or of decoding its latents."""
    import jax
    import jax.numpy as jnp

    module, params = _codec(version)
    frames, height, width = clip
    shape: tuple[int, ...] = (1, frames, height, width, 3)
    if decode:
        side = {"2.1": 8, "2.2": 16}[version]
        shape = (1, 1 + (frames - 1) // 4, height // side, width // side, module.config.latent)
    method = "decode" if decode else "encode"
    given = jax.ShapeDtypeStruct(shape, jnp.float32)
    return traced(lambda p, x: module.apply({"params": p}, x, method=method), params, given)
