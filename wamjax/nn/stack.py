"""The joint stack: transformer blocks of one or several experts that meet in attention.

Every expert has its own weights and width; all share depth, heads and head size. Blocks are stacked on a leading
layer axis and run by one scan, so that program size and compile time do not grow with depth.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from wamjax.errors import UserError
from wamjax.nn.attention import attention
from wamjax.nn.layers import Linear, TimeEmbedding, rms_norm, stacked
from wamjax.nn.shard import shard
from wamjax.nn.tokens import TokenIds, TokenPlan, at_times

Tokens = dict[int, Float[Array, "b n d"]]
"""Tokens of each expert present, in plan order."""

Cache = dict[str, Float[Array, "layers b n k h"]]
"""Keys ("k") and values ("v") of some of a sequence's tokens."""

Memory = Any
"""Per layer (leading axis), what an expert's blocks read of their condition: the same at every step of a loop."""

Layer = Callable[[Tokens, Any], tuple[Tokens, Cache]]
"""A layer as a scan calls it."""

Condition = Any
"""What an expert's blocks need beside tokens, the same in every layer: modulation, positions, a context to look at."""

POINTS = ("block_in", "qkv", "attended", "attn_out", "mlp_hidden")
"""Points of a block that the backward pass can be given: its input; queries, keys and values; what attention returns;
that after its projection; the hidden layer of the MLP."""


class BlockShare(Protocol):
    """One expert's share of a block: its way into attention, and everything after it."""

    def project(self, x: Array, condition: Condition, time: Array) -> tuple[Array, Array, Array]:
        """Queries, keys and values (b, n, k, h) of tokens (b, n, d); `time` indexes the samples' tables of times."""

    def remember(self, condition: Condition) -> Any:
        """What the block reads of its condition beside modulation: keys and values of a prompt, say; or None."""

    def merge(self, x: Array, attended: Array, condition: Condition, time: Array, memory: Any) -> Array:
        """The tokens after what they attended to (b, n, k, h) and the rest of the block."""


class ExpertKind(Protocol):
    """An expert: hashable, and able to build its share of a block.

    Attributes:
        width, mlp: of its tokens and of its MLP's hidden layer.
    """

    @property
    def width(self) -> int: ...

    @property
    def mlp(self) -> int: ...

    def share(self, heads: int, head_dim: int) -> BlockShare:
        """A module."""


@dataclasses.dataclass(frozen=True)
class Expert:
    """A plain transformer expert with modulation: its width, and that of its MLP's hidden layer."""

    width: int
    mlp: int

    def share(self, heads: int, head_dim: int) -> BlockShare:
        """See `ExpertKind`; its condition are modulation rows (b, m, 6 d)."""
        return ExpertBlock(self, heads, head_dim)


@dataclasses.dataclass(frozen=True)
class StackConfig:
    """Shape of a joint stack.

    Attributes:
        layers, heads, head_dim: shared by all experts.
        experts: one entry per expert.
        remat: names of `POINTS` that are kept for the backward pass on the device; everything between them is
            recomputed. None keeps all activations.
        offload: names of `POINTS` that are kept in the memory of the host, from which they come back layer by layer.

    Raises:
        UserError: unknown names, or two places for one.
    """

    layers: int
    heads: int
    head_dim: int
    experts: tuple[ExpertKind, ...]
    remat: tuple[str, ...] | None = None
    offload: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        kept = self.remat or ()
        for name in (*kept, *self.offload):
            if name not in POINTS:
                near = difflib.get_close_matches(name, POINTS, n=1)
                hint = f"did you mean '{near[0]}'?" if near else f"use some of {', '.join(POINTS)}"
                raise UserError(f"remat and offload name points of a block, but there is no '{name}': {hint}")
        if both := set(kept) & set(self.offload):
            raise UserError(f"'{min(both)}' is in remat and in offload: keep it on the device or on the host")
        if self.offload and self.remat is None:
            raise UserError("offload without remat would keep everything twice: set remat=() to recompute the rest")

    def rematerialised(self, layer: Layer) -> Layer:
        """A layer of which the backward pass keeps what this configuration says."""
        if self.remat is None:
            return layer
        policies = jax.checkpoint_policies
        policy = policies.save_only_these_names(*self.remat)
        if self.offload:
            policy = policies.save_and_offload_only_these_names(
                names_which_can_be_saved=list(self.remat),
                names_which_can_be_offloaded=list(self.offload),
                offload_src="device",
                offload_dst="pinned_host",
            )
        rematerialised: Layer = jax.checkpoint(layer, policy=policy, prevent_cse=False)
        return rematerialised


class ExpertBlock(nn.Module):
    """The share of a plain expert."""

    expert: Expert
    heads: int
    head_dim: int

    def setup(self) -> None:
        inner = self.heads * self.head_dim
        self.qkv = Linear(3 * inner)
        self.attn_out = Linear(self.expert.width)
        self.mlp_in = Linear(self.expert.mlp)
        self.mlp_out = Linear(self.expert.width)
        self.modulation = self.param("modulation", _initial_modulation, (6 * self.expert.width,))

    def project(self, x: Array, rows: Array, time: Array) -> tuple[Array, Array, Array]:
        """Queries, keys and values (b, n, k, h) of the modulated, normalised tokens."""
        shift, scale = self._rows(rows, time)[:2]
        qkv = self.qkv(_modulate(rms_norm(x), shift, scale))
        q, k, v = jnp.split(qkv.reshape(*x.shape[:2], 3 * self.heads, self.head_dim), 3, axis=2)
        return rms_norm(q), rms_norm(k), v

    def remember(self, rows: Array) -> None:
        """Nothing: a plain block looks at its tokens only."""

    def merge(self, x: Array, attended: Array, rows: Array, time: Array, memory: None) -> Array:
        """Adds the attention result and the MLP, each through its gate."""
        _, _, gate, shift, scale, mlp_gate = self._rows(rows, time)
        attended = checkpoint_name(self.attn_out(attended.reshape(*x.shape[:2], -1)), "attn_out")
        x = x + gate * attended
        hidden = shard(self.mlp_in(_modulate(rms_norm(x), shift, scale)), "b n f")
        hidden = checkpoint_name(hidden, "mlp_hidden")
        return x + mlp_gate * self.mlp_out(jax.nn.gelu(hidden, approximate=True))

    def _rows(self, rows: Array, time: Array) -> list[Array]:
        table = rows + self.modulation.astype(rows.dtype)
        return [at_times(row, time) for row in jnp.split(table, 6, axis=-1)]


class Block(nn.Module):
    """One layer of the joint stack: every expert projects, all attend together, every expert merges."""

    config: StackConfig

    def setup(self) -> None:
        c = self.config
        self.expert = {str(e): x.share(c.heads, c.head_dim) for e, x in enumerate(c.experts)}

    def __call__(
        self,
        tokens: Tokens,
        conditions: dict[int, Condition],
        ids: TokenIds,
        plan: TokenPlan,
        cache: Cache | None = None,
        memory: dict[int, Memory] | None = None,
    ) -> tuple[Tokens, Cache]:
        queries = sum(x.shape[1] for x in tokens.values())
        times = _split(ids.time[:, plan.length - queries :], tokens)
        memory = self.remember(conditions) if memory is None else memory
        tokens = {e: checkpoint_name(shard(x, "b n d"), "block_in") for e, x in tokens.items()}
        projected = [self.expert[str(e)].project(x, conditions[e], times[e]) for e, x in tokens.items()]
        joined = (jnp.concatenate(parts, axis=1) for parts in zip(*projected, strict=True))
        q, k, v = (checkpoint_name(shard(x, "b n k h"), "qkv") for x in joined)
        new = {"k": k, "v": v}
        every = new if cache is None else extended(cache, new, axis=1)
        attended = _split(attention(q, every["k"], every["v"], plan, ids), tokens)
        for e, x in tokens.items():
            tokens[e] = self.expert[str(e)].merge(x, attended[e], conditions[e], times[e], memory[e])
        return tokens, new

    def remember(self, conditions: dict[int, Condition]) -> dict[int, Memory]:
        """What the experts read of their conditions."""
        return {e: self.expert[str(e)].remember(condition) for e, condition in conditions.items()}


class Stack(nn.Module):
    """`layers` blocks in one scan.

    Attributes:
        config: the stack's shape.
    """

    config: StackConfig

    @nn.compact
    def __call__(
        self,
        tokens: Tokens,
        sigma: Float[Array, "b m"],
        ids: TokenIds,
        plan: TokenPlan,
        cache: Cache | None = None,
    ) -> tuple[Tokens, Cache]:
        """Runs the stack over the plan's last tokens.

        Args:
            tokens: embedded tokens of each expert, together the plan's last ones.
            sigma: the samples' tables of noise times (1 = noise, 0 = clean), indexed by `ids.time`.
            ids: ids of the whole plan, cached tokens included.
            plan: the whole sequence.
            cache: keys and values of the plan's first tokens.

        Returns:
            The transformed tokens, and their keys and values (`extended` puts them behind those of the cache).
        """
        experts = self.config.experts
        rows = {e: TimeEmbedding(experts[e].width, name=f"time_{e}")(sigma).astype(x.dtype) for e, x in tokens.items()}
        return run_blocks(self, self.config, tokens, rows, ids, plan, cache)


def run_blocks(
    module: nn.Module,
    config: StackConfig,
    tokens: Tokens,
    conditions: dict[int, Condition],
    ids: TokenIds,
    plan: TokenPlan,
    cache: Cache | None = None,
    memory: dict[int, Memory] | None = None,
) -> tuple[Tokens, Cache]:
    """Runs all layers over the plan's last tokens in one scan; their parameters become `module`'s "blocks".

    Args:
        module, config: whose parameters they are, and their shape.
        tokens, ids, plan, cache: as of `Stack`, which also says what is returned.
        conditions: one per expert present.
        memory: what `remember` made of the conditions; None makes it anew in every block.
    """
    block = Block(config, parent=None)
    first = jax.tree.map(lambda x: x[0], (cache, memory))
    blocks = stacked(module, block, config.layers, tokens, conditions, ids, plan, *first)

    def layer(x: Tokens, rows: tuple[dict, Cache | None, dict[int, Memory] | None]) -> tuple[Tokens, Cache]:
        params, *rest = rows
        result: Any = block.apply({"params": params}, x, conditions, ids, plan, *rest)
        return result

    return jax.lax.scan(config.rematerialised(layer), tokens, (blocks, cache, memory))


def remember(module: nn.Module, config: StackConfig, conditions: dict[int, Condition]) -> dict[int, Memory]:
    """What all layers of `module`'s "blocks" read of their conditions, for `run_blocks`."""
    block = Block(config, parent=None)
    blocks: Any = module.get_variable("params", "blocks")
    return jax.lax.map(lambda params: block.apply({"params": params}, conditions, method="remember"), blocks)


def extended(cache: Cache, new: Cache, axis: int = 2) -> Cache:
    """A cache with the keys and values of further tokens behind it; `axis` is that of the tokens."""
    return {name: jnp.concatenate([cache[name], x], axis=axis) for name, x in new.items()}


def _initial_modulation(key: Array, shape: tuple[int, ...]) -> Array:
    """Shifts and scales start at zero, gates at one: the block starts as a plain pre-norm transformer block."""
    del key
    shift, scale, gate = jnp.zeros(shape[0] // 6), jnp.zeros(shape[0] // 6), jnp.ones(shape[0] // 6)
    return jnp.concatenate([shift, scale, gate, shift, scale, gate])


def _modulate(x: Array, shift: Array, scale: Array) -> Array:
    return x * (1 + scale) + shift


def _split(x: Array, like: Tokens) -> dict[int, Array]:
    """Cuts the token axis into the experts' shares."""
    parts, start = {}, 0
    for expert, tokens in like.items():
        parts[expert] = x[:, start : start + tokens.shape[1]]
        start += tokens.shape[1]
    return parts
