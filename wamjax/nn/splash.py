"""Attention on TPUs: the block-sparse Pallas kernel that JAX keeps ("splash"), laid out for token plans.

The kernel works in square blocks and skips those in which nobody sees anybody. Frames of 880 tokens fit no block, so
tokens are laid out anew: every run of tokens that see the same is padded to whole blocks of a size chosen for the
plan (896 for those frames). Then blocks are visible in full or not at all, but for the few with single odd tokens, and
the pairs computed are nearly the pairs visible. Padding and absent tokens are kept apart at run time, by segments.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jaxtyping import Array, Float, Int

from wamjax.nn.tokens import TokenPlan

LANES = 128
"""The kernel's smallest block, and what its head size must be a multiple of."""

BLOCKS = tuple(range(LANES, 1024 + 1, LANES))
"""Sizes of blocks to choose from; larger ones need more fast memory than there is."""

OVERHEAD = 64
"""What a block costs beside its pairs, in rows of itself: small blocks use the matrix unit badly."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the tokens of a sequence stand for the kernel.

    Attributes:
        plan: the sequence; None for one whose tokens all see, and are seen, alike.
        runs: (start, stop) of neighbouring tokens that begin at a whole block.
        block: tokens of a block.
    """

    plan: TokenPlan | None
    runs: tuple[tuple[int, int], ...]
    block: int

    @property
    def sizes(self) -> list[int]:
        """Places that each run takes."""
        return [-(-(stop - start) // self.block) * self.block for start, stop in self.runs]

    @property
    def length(self) -> int:
        """Places in all."""
        return sum(self.sizes)

    @functools.cached_property
    def token(self) -> np.ndarray:
        """The token at every place; the run's last where there is none, so that groups stay in order."""
        places = [np.full(size, stop - 1, np.int32) for (_, stop), size in zip(self.runs, self.sizes, strict=True)]
        for place, (start, stop) in zip(places, self.runs, strict=True):
            place[: stop - start] = np.arange(start, stop)
        return np.concatenate(places)

    @functools.cached_property
    def empty(self) -> np.ndarray:
        """Which places hold no token."""
        holds = [np.arange(size) >= stop - start for (start, stop), size in zip(self.runs, self.sizes, strict=True)]
        return np.concatenate(holds)

    def place(self, x: Array) -> Array:
        """Tokens (b, n, ...) at their places, zeros between."""
        parts = [
            jnp.pad(x[:, start:stop], ((0, 0), (0, size - (stop - start))) + ((0, 0),) * (x.ndim - 2))
            for (start, stop), size in zip(self.runs, self.sizes, strict=True)
        ]
        return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)

    def take(self, x: Array) -> Array:
        """The inverse of `place`."""
        starts = np.cumsum([0, *self.sizes])
        parts = [x[:, at : at + stop - start] for at, (start, stop) in zip(starts, self.runs, strict=False)]
        return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)

    def segments(self, segment: Array | None, batch: int) -> Int[Array, "b m"]:
        """Of places: the tokens', -1 where there is none."""
        if segment is None:
            row = jnp.asarray(-self.empty.astype(np.int32))
            return jnp.broadcast_to(row, (batch, self.length))
        return jnp.where(self.empty, -1, self.place(segment))


@functools.lru_cache(maxsize=64)
def layout(plan: TokenPlan) -> Layout:
    """The layout of least cost for a plan's sequence: pairs that run, and what every block costs beside."""
    runs = ((0, plan.length),) if plan.causal or plan.full else tuple(_runs(plan))
    return min((Layout(plan, runs, block) for block in BLOCKS), key=_cost)


def executed_pairs(plan: TokenPlan) -> int:
    """Pairs of a query and a key that the kernel computes, padding included."""
    chosen = layout(plan)
    return int(_visible_blocks(chosen).sum()) * chosen.block**2


def splash(
    q: Float[Array, "b n k h"],
    k: Float[Array, "b n k h"],
    v: Float[Array, "b n k h"],
    plan: TokenPlan,
    segment: Int[Array, "b n"] | None,
    interpret: bool = False,
    point: str | None = None,
) -> Float[Array, "b n k h"]:
    """Attention under a plan's rule; tokens that are absent return zeros.

    Args:
        interpret: runs it without a TPU.
        point: names what the kernel's backward pass needs of its result, for rematerialisation; where that is kept,
            the kernel does not run again.
    """
    places = layout(plan)
    mask: masks.Mask = masks.FullMask((places.length,) * 2) if plan.full else PlanMask(places)
    out = _run(q, k, v, mask, (places, places), (segment, segment), interpret, point)
    return out if segment is None else out * (segment >= 0)[:, :, None, None].astype(out.dtype)


def splash_to_all(
    q: Float[Array, "b q k h"], k: Float[Array, "b n k h"], v: Float[Array, "b n k h"], interpret: bool = False
) -> Float[Array, "b q k h"]:
    """Attention of every query to every key."""
    both = [Layout(None, ((0, n),), _block(n)) for n in (q.shape[1], k.shape[1])]
    mask = masks.FullMask((both[0].length, both[1].length))
    return _run(q, k, v, mask, (both[0], both[1]), (None, None), interpret)


class PlanMask(masks.Mask):
    """A plan's rule, looked up block by block when the kernel is built; no dense mask is ever made."""

    def __init__(self, places: Layout) -> None:
        assert places.plan is not None
        self._places, self._plan = places, places.plan

    @property
    def shape(self) -> tuple[int, int]:
        """Queries and keys."""
        return self._places.length, self._places.length

    def __getitem__(self, index: Any) -> np.ndarray:
        asking, asked = (self._places.token[part] for part in index)
        relation, owner = np.asarray(self._plan.visible), self._plan.owner
        ends = [owner[[tokens[0], tokens[-1]]] for tokens in (asking, asked)]
        if not self._plan.causal and all(first == last for first, last in ends):  # groups are in order
            return np.full((len(asking), len(asked)), relation[ends[0][0], ends[1][0]])
        seen = relation[np.ix_(owner[asking], owner[asked])]
        causal = np.array([group.causal for group in self._plan.groups])[owner[asking]]
        same = owner[asking][:, None] == owner[asked][None, :]
        return seen & ~(same & (asked[None, :] > asking[:, None]) & causal[:, None])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PlanMask) and self._places == other._places

    def __hash__(self) -> int:
        return hash(self._places)


def _run(
    q: Array,
    k: Array,
    v: Array,
    mask: masks.Mask,
    places: tuple[Layout, Layout],
    segments: tuple[Array | None, Array | None],
    interpret: bool,
    point: str | None = None,
) -> Array:
    """The kernel on tokens at their places, sample by sample."""
    batch, (asking, asked) = q.shape[0], places
    ids = None
    if any(one is not None for one in segments) or asking.empty.any() or asked.empty.any():
        ids = kernels.SegmentIds(
            *(where.segments(segment, batch) for where, segment in zip(places, segments, strict=True))
        )
    kernel = kernels.make_splash_mha(
        mask=masks.MultiHeadMask([mask] * q.shape[2]),
        block_sizes=_block_sizes(asking.block, asked.block),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
        residual_checkpoint_name=point,
    )
    heads_first = [jnp.moveaxis(where.place(x), 2, 1) for x, where in ((q, asking), (k, asked), (v, asked))]
    scaled = (heads_first[0] * q.shape[-1] ** -0.5, *heads_first[1:])
    # Absent keys are out of sight because their segment differs from any that is there.
    out = jax.vmap(kernel)(*scaled, ids)
    return asking.take(jnp.moveaxis(out, 1, 2))


def _block_sizes(q: int, kv: int) -> kernels.BlockSizes:
    names = [name for name in inspect.signature(kernels.BlockSizes).parameters if name.startswith("block_")]
    sizes: dict[str, Any] = {name: q if name.startswith("block_q") else kv for name in names}
    return kernels.BlockSizes(**sizes)


def _runs(plan: TokenPlan) -> Sequence[tuple[int, int]]:
    """Neighbouring tokens that see the same; runs shorter than the smallest block join the one before."""
    runs: list[tuple[int, int]] = []
    for span, _ in plan.spans(plan.length):
        if runs and span.stop - span.start < LANES:
            runs[-1] = (runs[-1][0], span.stop)
        else:
            runs.append((span.start, span.stop))
    return runs


def _block(tokens: int) -> int:
    """The block of least cost for a run of tokens."""
    return min(BLOCKS, key=lambda block: -(-tokens // block) * block * (1 + OVERHEAD / block))


def _cost(places: Layout) -> float:
    return float(_visible_blocks(places).sum()) * places.block * (places.block + OVERHEAD)


def _visible_blocks(places: Layout) -> np.ndarray:
    """Which blocks of keys the blocks of queries look at."""
    plan = places.plan
    assert plan is not None
    owners = plan.owner[places.token].reshape(-1, places.block)
    relation = np.asarray(plan.visible)
    has = np.zeros((len(owners), len(plan.groups)), bool)
    for row, members in zip(has, owners, strict=True):
        row[np.unique(members)] = True
    seen = (has.astype(np.int32) @ relation.astype(np.int32) @ has.T.astype(np.int32)) > 0
    if plan.causal:
        first, last = places.token.reshape(-1, places.block)[:, 0], places.token.reshape(-1, places.block)[:, -1]
        future = (first[None, :] > last[:, None]) & np.array([g.causal for g in plan.groups])[owners[:, -1]][:, None]
        seen &= ~(future & (owners[:, -1][:, None] == owners[:, 0][None, :]) & (owners[:, 0] == owners[:, -1])[:, None])
    return seen
