"""Networks as dimensions: what they hold, and what a forward pass multiplies and reads. Nothing is built or run.

A network is stacks of transformer blocks, in which experts of their own widths meet in attention, and matrices beside
them. What a pass costs follows from the tokens of every stream and from the token plan's rule of visibility.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Protocol

from wamjax.compute.flops import Flops
from wamjax.nn.tokens import TokenPlan


@dataclasses.dataclass(frozen=True)
class Matrix:
    """A linear map outside of a block's attention and MLP.

    Attributes:
        name: what it is for.
        inputs, outputs: its sizes. bias: whether it adds one.
        streams: whose tokens it is multiplied with; none for tables that are looked up.
        copies: how many there are, each used. alternatives: how many there are of each, of which a token uses one.
    """

    name: str
    inputs: int
    outputs: int
    streams: tuple[str, ...] = ()
    bias: bool = True
    copies: int = 1
    alternatives: int = 1

    @property
    def parameters(self) -> int:
        """Of all copies."""
        return self.copies * self.alternatives * (self.inputs + self.bias) * self.outputs

    def products(self, counts: Mapping[str, int]) -> int:
        """Multiply-adds with so many tokens of each stream."""
        return self.copies * self.inputs * self.outputs * sum(counts.get(stream, 0) for stream in self.streams)


@dataclasses.dataclass(frozen=True)
class Context:
    """What blocks look at beside their sequence.

    Attributes:
        stream: whose tokens. width: of these.
        shares: whether queries and outputs are those of the context before (Wan's image beside its text).
    """

    stream: str
    width: int
    shares: bool = False


@dataclasses.dataclass(frozen=True)
class Expert:
    """One expert's share of a block.

    Attributes:
        width, mlp: of its tokens and of the MLP's hidden layer. gated: whether the MLP has a gate.
        bias: whether projections and MLP have one.
        contexts: what it looks at. matrices: others, in every block.
        vectors: parameters that multiply no tokens: norms, tables of modulation.
    """

    width: int
    mlp: int
    gated: bool = False
    bias: bool = True
    contexts: tuple[Context, ...] = ()
    matrices: tuple[Matrix, ...] = ()
    vectors: int = 0


@dataclasses.dataclass(frozen=True)
class Stack:
    """Blocks of one kind.

    Attributes:
        layers, heads, head_dim: of the blocks. keys: heads of keys and values.
        experts: in the order of the plan's.
        attends: whether tokens of the sequence see each other, or contexts only.
    """

    layers: int
    heads: int
    head_dim: int
    experts: tuple[Expert, ...]
    keys: int = 0
    attends: bool = True

    @property
    def inner(self) -> int:
        """Width of queries."""
        return self.heads * self.head_dim

    @property
    def read(self) -> int:
        """Width of keys, and of values."""
        return (self.keys or self.heads) * self.head_dim

    def own(self, expert: Expert) -> tuple[int, int]:
        """Weights and biases of a block's attention among its tokens and of its MLP."""
        e, mats = expert, 2 + expert.gated
        weights = mats * e.width * e.mlp + self.attends * 2 * e.width * (self.inner + self.read)
        biases = (mats - 1) * e.mlp + e.width + self.attends * (self.inner + 2 * self.read + e.width)
        return weights, biases * e.bias

    def looking(self, expert: Expert, context: Context) -> tuple[int, int, int]:
        """Weights for queries and outputs of a context, weights for its keys and values, and biases."""
        ask = 0 if context.shares else 2 * expert.width * self.inner
        read = 2 * context.width * self.read
        biases = 2 * self.read + (0 if context.shares else self.inner + expert.width)
        return ask, read, biases * expert.bias

    def parameters(self, expert: Expert) -> int:
        """Of an expert in one block."""
        parts = [self.own(expert), *(self.looking(expert, context) for context in expert.contexts)]
        return sum(map(sum, parts)) + sum(m.parameters for m in expert.matrices) + expert.vectors


@dataclasses.dataclass(frozen=True)
class Work:
    """One forward pass.

    Attributes:
        plan: the sequence, cached tokens first. queries: how many of its last tokens are computed.
        beside: tokens of other streams: a prompt's, an image's, noise levels.
        known: contexts whose keys and values are known, and not computed.
        layers: blocks that run; None for all.
        clip: frames, height and width in pixels, for networks without tokens. decode: whether latents become pixels.
        rows: sequences that share one reading of the weights.
    """

    plan: TokenPlan = TokenPlan((), ())
    queries: int = 0
    beside: Mapping[str, int] = dataclasses.field(default_factory=dict)
    known: tuple[str, ...] = ()
    layers: int | None = None
    clip: tuple[int, int, int] = (1, 0, 0)
    decode: bool = False
    rows: int = 1

    @property
    def counts(self) -> dict[str, int]:
        """Tokens computed of every stream."""
        found, first = dict(self.beside), self.plan.length - self.queries
        for group, stop in zip(self.plan.groups, self.plan.stops, strict=True):
            computed = max(0, min(group.length, int(stop) - first))
            found[group.stream] = found.get(group.stream, 0) + computed
        return found

    def computed(self, expert: int) -> int:
        """Tokens computed by an expert."""
        first = self.plan.length - self.queries
        every = zip(self.plan.groups, self.plan.stops, strict=True)
        return sum(max(0, min(g.length, int(stop) - first)) for g, stop in every if g.expert == expert)


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a pass needs.

    Attributes:
        flops: operations of all its rows.
        weights, cache: numbers read: parameters that are used, and keys and values known from before.
        summed: numbers that are summed over devices where matrices are spread over several.
    """

    flops: Flops
    weights: float = 0.0
    cache: float = 0.0
    summed: float = 0.0


class Described(Protocol):
    """A network that is known by its dimensions."""

    @property
    def parameters(self) -> int:
        """All of it."""

    def cost(self, work: Work) -> Cost:
        """Of a forward pass."""


@dataclasses.dataclass(frozen=True)
class Network:
    """Stacks of blocks, one after the other.

    Attributes:
        stacks: the blocks. matrices: beside them. vectors: other parameters.
    """

    stacks: tuple[Stack, ...]
    matrices: tuple[Matrix, ...] = ()
    vectors: int = 0

    @property
    def parameters(self) -> int:
        """All of it."""
        blocks = sum(s.layers * s.parameters(expert) for s in self.stacks for expert in s.experts)
        return blocks + sum(m.parameters for m in self.matrices) + self.vectors

    def cost(self, work: Work) -> Cost:
        """See `Described`."""
        counts, flops, weights, cache, summed, left = work.counts, Flops(), 0.0, 0.0, 0.0, work.layers
        for stack in self.stacks:
            layers = stack.layers if left is None else min(left, stack.layers)
            left = None if left is None else left - layers
            flops = flops + _blocks(stack, work, counts) * layers
            weights += layers * _weights(stack, work, counts)
            cache += layers * _cache(stack, work)
            summed += layers * _summed(stack, work)
        beside = sum(m.products(counts) for m in self.matrices)
        weights += sum(m.parameters for m in self.matrices if m.products(counts))
        return Cost((flops + Flops(matmul=2 * beside)) * work.rows, weights, cache * work.rows, summed * work.rows)


def _blocks(stack: Stack, work: Work, counts: Mapping[str, int]) -> Flops:
    """One block of a stack."""
    products, looked = 0, 0
    for index, expert in enumerate(stack.experts):
        tokens = work.computed(index)
        products += tokens * stack.own(expert)[0] + sum(m.products(counts) for m in expert.matrices) * (tokens > 0)
        for context in expert.contexts:
            ask, read, _ = stack.looking(expert, context)
            seen = counts.get(context.stream, 0)
            products += tokens * ask + (tokens > 0 and context.stream not in work.known) * seen * read
            looked += 2 * stack.inner * tokens * seen
    pair = 4 * stack.inner * stack.attends
    attended = pair * work.plan.pairs(work.queries), pair * work.queries * work.plan.length
    return Flops(2 * products, *(2 * looked + each for each in attended))


def _weights(stack: Stack, work: Work, counts: Mapping[str, int]) -> int:
    """Parameters of a block that a pass reads: none for what is known, nor where there are no tokens."""
    total = 0
    for index, expert in enumerate(stack.experts):
        unread = sum(stack.looking(expert, c)[1] for c in expert.contexts if c.stream in work.known)
        unread += sum(m.parameters for m in expert.matrices if not m.products(counts))
        total += (work.computed(index) > 0) * (stack.parameters(expert) - unread)
    return total


def _cache(stack: Stack, work: Work) -> int:
    """Keys and values of a block that a pass reads and does not compute."""
    known = sum(
        work.beside.get(c.stream, 0)
        for index, expert in enumerate(stack.experts)
        for c in expert.contexts
        if c.stream in work.known and work.computed(index)
    )
    return 2 * stack.read * (known + stack.attends * (work.plan.length - work.queries))


def _summed(stack: Stack, work: Work) -> int:
    """Numbers of tokens that a block's attentions and MLPs put out."""
    return sum(
        work.computed(index) * expert.width * (stack.attends + bool(expert.contexts) + 1)
        for index, expert in enumerate(stack.experts)
    )
