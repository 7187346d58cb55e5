"""Token plans: what a sequence is made of, and who may see whom.

A sequence is an ordered list of groups. What is known when a program is built (order, lengths, visibility) is a
`TokenPlan`; what differs from sample to sample (segments, noise times) is a `TokenIds`. Masks, caches and FLOP
counts are all read from these two, so there is no second place where visibility is written down.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int


@dataclasses.dataclass(frozen=True)
class Group:
    """A run of consecutive tokens of one stream.

    Attributes:
        stream: what the tokens are ("language", "observation", "video", "action", ...).
        length: number of tokens.
        expert: index of the expert (a stack with its own weights and width) that processes them.
        block: time or chunk index, for rules that depend on it.
        causal: whether a token sees only itself and earlier tokens of its own group.
    """

    stream: str
    length: int
    expert: int = 0
    block: int = 0
    causal: bool = False


@dataclasses.dataclass(frozen=True)
class TokenPlan:
    """The static part of a sequence: its groups in order and one group-by-group visibility relation.

    Attributes:
        groups: the groups, in sequence order; groups of one expert are neighbours.
        visible: `visible[i][j]` is true when queries of group i may see keys of group j.
    """

    groups: tuple[Group, ...]
    visible: tuple[tuple[bool, ...], ...]

    def __post_init__(self) -> None:
        experts = [group.expert for group in self.groups]
        if experts != sorted(experts):
            raise ValueError(f"groups of one expert must be neighbours, in the experts' order; got experts {experts}")
        if len(self.visible) != len(self.groups) or any(len(row) != len(self.groups) for row in self.visible):
            raise ValueError(f"the visibility relation must be {len(self.groups)} by {len(self.groups)}")

    @classmethod
    def from_rule(cls, groups: Sequence[Group], sees: Callable[[Group, Group], bool]) -> TokenPlan:
        """Builds the plan whose relation is `sees(query_group, key_group)`."""
        return cls(tuple(groups), tuple(tuple(bool(sees(q, k)) for k in groups) for q in groups))

    @property
    def length(self) -> int:
        """Number of tokens."""
        return sum(group.length for group in self.groups)

    @property
    def causal(self) -> bool:
        """Whether there are tokens that see a part of a group."""
        return any(group.causal and group.length > 1 for group in self.groups)

    @property
    def full(self) -> bool:
        """Whether every token may see every token."""
        return all(map(all, self.visible)) and not self.causal

    @functools.cached_property
    def stops(self) -> np.ndarray:
        """Where every group ends in the sequence."""
        return np.cumsum([group.length for group in self.groups], dtype=int)

    @functools.cached_property
    def owner(self) -> np.ndarray:
        """The index of every token's group (n,)."""
        return np.repeat(np.arange(len(self.groups), dtype=np.int32), [group.length for group in self.groups])

    def padded(self, tokens: int) -> TokenPlan:
        """The plan with so many tokens behind it that see nothing and that nothing sees."""
        if not tokens:
            return self
        groups = (*self.groups, Group("padding", tokens, self.groups[-1].expert))
        return TokenPlan(groups, (*((*row, False) for row in self.visible), (False,) * len(groups)))

    def spans(self, queries: int) -> Iterator[tuple[slice, tuple[slice, ...]]]:
        """Neighbouring tokens that see the same, among the last `queries`, and the runs of tokens that they see.

        Raises:
            ValueError: a group that is causal inside, whose tokens all see something else.
        """
        if self.causal:
            raise ValueError("tokens of a causal group see each something else: the plan has no spans")
        stops, first = self.stops, self.length - queries
        for row, members in itertools.groupby(range(len(self.groups)), self.visible.__getitem__):
            *_, last = span = list(members)
            start, stop = stops[span[0]] - self.groups[span[0]].length, stops[last]
            if stop > first:
                seen = [i for i, sees in enumerate(row) if sees]
                yield slice(int(max(start, first)), int(stop)), _runs(seen, stops, self.groups)

    @functools.cached_property
    def mask(self) -> np.ndarray:
        """The dense visibility (n, n) without segments; for the reference attention and for counting."""
        owner = self.owner
        dense = np.asarray(self.visible, bool).reshape(len(self.groups), len(self.groups))[owner][:, owner]
        causal = np.asarray([group.causal for group in self.groups], bool)[owner]
        inside = owner[:, None] == owner[None, :]
        future = np.arange(len(owner))[None, :] > np.arange(len(owner))[:, None]
        return dense & ~(inside & future & causal[:, None])

    def pairs(self, queries: int | None = None) -> int:
        """Exact number of (query, key) pairs that are visible, for the last `queries` tokens (default: all)."""
        first, total = 0 if queries is None else self.length - queries, 0
        for i, (group, stop) in enumerate(zip(self.groups, self.stops, strict=True)):
            asking = min(group.length, max(0, int(stop) - first))
            seen = sum(key.length for key, sees in zip(self.groups, self.visible[i], strict=True) if sees)
            total += asking * seen
            if group.causal and self.visible[i][i]:
                total -= asking * (asking - 1) // 2  # the last token sees its whole group, the one before one less
        return total


def _runs(groups: Sequence[int], stops: np.ndarray, every: tuple[Group, ...]) -> tuple[slice, ...]:
    """Tokens of some groups as slices, neighbours joined."""
    runs: list[slice] = []
    for i in groups:
        start, stop = int(stops[i]) - every[i].length, int(stops[i])
        if runs and runs[-1].stop == start:
            start = runs.pop().start
        runs.append(slice(start, stop))
    return tuple(runs)


@struct.dataclass
class TokenIds:
    """The per-sample part of a sequence.

    Attributes:
        segment: (b, n) which packed sample a token belongs to; -1 marks an absent token. Tokens see only their segment.
            None: all tokens are there and belong together, which kernels need not check.
        time: (b, n) index of the token's noise time in the sample's table of times.
    """

    segment: Int[Array, "b n"] | None
    time: Int[Array, "b n"]

    @classmethod
    def of(cls, plan: TokenPlan, batch: int, time_of: dict[str, int]) -> TokenIds:
        """Ids of `batch` unpacked samples: one segment, and the time index that `time_of` gives each stream."""
        row = np.concatenate([np.full(g.length, time_of[g.stream], np.int32) for g in plan.groups])
        time = jnp.broadcast_to(jnp.asarray(row), (batch, plan.length))
        return cls(segment=jnp.zeros_like(time), time=time)


def visible(plan: TokenPlan, segment: Int[Array, "b n"] | None, queries: int) -> Bool[Array, "#b q n"]:
    """Who sees whom: the plan's relation and equal segments, for the plan's last `queries` tokens."""
    relation = jnp.asarray(plan.mask[plan.length - queries :])
    if segment is None:
        return relation[None]
    query_segment = segment[:, plan.length - queries :, None]
    return relation[None] & (query_segment == segment[:, None, :]) & (query_segment >= 0)


@jax.custom_vjp
def at_times(table: Float[Array, "b m d"], time: Int[Array, "b n"]) -> Float[Array, "b n d"]:
    """Reads each token's row of a per-time table.

    The forward pass is a gather, which compilers fuse into whatever uses it, so that rows are not stored per token;
    the backward pass is a product with a one-hot matrix instead of the gather's own scatter, which is slow everywhere.
    """
    return jnp.take_along_axis(table, time[..., None], axis=1)


def _at_times_forward(table: Array, time: Array) -> tuple[Array, tuple[Array, int]]:
    return at_times(table, time), (time, table.shape[1])


def _at_times_backward(saved: tuple[Array, int], grad: Array) -> tuple[Array, None]:
    time, times = saved
    return jnp.einsum("bnm,bnd->bmd", jax.nn.one_hot(time, times, dtype=grad.dtype), grad), None


at_times.defvjp(_at_times_forward, _at_times_backward)
