"""Low-rank adapters (LoRA, arXiv 2106.09685): what is trained beside a base that stays as it is.

`adapt` turns a policy, its parameters and its frozen parameters into others that the training loop takes like any:

    trainable  {base: {..., "kernel": {"a", "b"}, ...}}    adapters, and the parameters that are trained in full
    frozen     {"policy": ..., "base": {base: {...}}}      the policy's own, and all other parameters

where the name `base` is "base_" and the fingerprint of the base. It is a key, and so part of every checkpoint of the
adapters, however it is stored: another base does not fit. `merged` gives plain parameters again, to act and to export.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from wamjax.errors import UserError
from wamjax.nn.weights import LowRank, dense
from wamjax.policies.contract import Batch, Draws, Encoded, Params, Pass
from wamjax.training.around import Around
from wamjax.training.checkpoint import fingerprint
from wamjax.training.paths import leaves, matches, nest
from wamjax.training.step import Learner


@dataclasses.dataclass(frozen=True)
class LoRAConfig:
    """What is adapted, and how. The defaults are DreamZero's (r = 4 on the attention and MLP of Wan's blocks).

    A pattern is a regular expression for the end of a parameter's path, from the start of one of its names.

    Attributes:
        rank: of the change of a kernel. alpha: the change is scaled by alpha / rank.
        targets: patterns of the kernels that get adapters: by default those of attention and MLP in Wan's and in
            plain experts' blocks (not of attention to an image).
        full: patterns of parameters that are trained themselves; they come before `targets`.
    """

    rank: int = 4
    alpha: float = 4.0
    targets: tuple[str, ...] = (r"blocks/.*/([qkvo]|ffn_in|ffn_out|qkv|attn_out|mlp_in|mlp_out)/kernel",)
    full: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UserError(f"train.lora.rank is {self.rank}: it must be at least 1")

    @property
    def scale(self) -> float:
        """Of the change."""
        return self.alpha / self.rank


def split(params: Params, config: LoRAConfig, key: Array) -> tuple[Params, Params]:
    """Parameters apart: what is trained, in float32, and the base, as it was.

    Adapters start as PEFT's do: `a` (*l, d_in, r) uniform within ±1/sqrt(d_in), and `b` (*l, r, d_out) zero, so that
    nothing changes yet. What `a` is depends on the key and its own path alone.

    Raises:
        UserError: a pattern that matches nothing, or a target that is no matrix.
    """
    found = leaves(params)
    for pattern in (*config.targets, *config.full):
        if not any(matches(path, (pattern,)) for path in found):
            raise UserError(f"train.lora: no parameter matches '{pattern}', for instance {next(iter(found), None)}")
    trainable: dict[str, Any] = {}
    base: dict[str, Any] = {}
    for path, leaf in found.items():
        if matches(path, config.full):
            trainable[path] = leaf.astype(jnp.float32)
            continue
        base[path] = leaf
        if matches(path, config.targets):
            trainable[f"{path}/a"], trainable[f"{path}/b"] = _adapter(path, leaf, config.rank, key)
    return nest(trainable), nest(base)


def join(trainable: Params, base: Params, config: LoRAConfig) -> Params:
    """Parameters for a network, of what `split` took apart: adapted kernels are `LowRank`, nothing is multiplied out.

    Raises:
        UserError: adapters that do not fit the base.
    """
    if not isinstance(base, Mapping):
        if set(trainable) != {"a", "b"}:
            names = ", ".join(sorted(trainable))
            raise UserError(f"the base has one array where the adapters have {names}: give the base they belong to")
        a, b = trainable["a"], trainable["b"]
        if (*a.shape[:-1], b.shape[-1]) != base.shape:
            raise UserError(
                f"adapters of {a.shape} and {b.shape} do not fit a base of {base.shape}: give the base they belong to"
            )
        return LowRank(base, a, b, config.scale)
    joined = dict(base)
    for name, value in trainable.items():
        joined[name] = join(value, base[name], config) if name in base else value
    return joined


def merge(params: Params) -> Params:
    """Joined parameters as plain arrays: every adapted kernel with its change added, in the numbers of the base."""
    return nest({path: dense(leaf) for path, leaf in leaves(params).items()})


def adapt(
    policy: Learner, params: Params | None, frozen: Params, config: LoRAConfig | None, seed: int
) -> tuple[Learner, Params | None, Params]:
    """A policy, its first parameters and its frozen ones, such that training changes only what `config` says.

    Args:
        policy, frozen: to train. config: None changes nothing.
        params: to begin with; None for the policy's own, by `seed`.
    """
    if config is None:
        return policy, params, frozen
    key = jax.random.key(seed)
    trainable, base = split(jax.jit(policy.init)(key) if params is None else params, config, jax.random.fold_in(key, 1))
    name = f"base_{fingerprint(base)}"
    return Adapted(policy, config, name), {name: trainable}, {"policy": frozen, "base": {name: base}}


def merged(trainable: Params, frozen: Params, config: LoRAConfig | None) -> tuple[Params, Params]:
    """The plain parameters and the policy's own frozen ones, from those of a run with this configuration."""
    if config is None:
        return trainable, frozen
    return merge(_joined(trainable, frozen["base"], config)), frozen["policy"]


@dataclasses.dataclass(frozen=True)
class Adapted(Around):
    """A policy of which adapters are trained.

    Attributes:
        config: what is adapted. base: the name of the base, which has its fingerprint.
    """

    config: LoRAConfig
    base: str

    def init(self, key: Array) -> Params:
        """Trainable parameters; the base that they would belong to is not made."""
        return {self.base: split(self.policy.init(key), self.config, jax.random.fold_in(key, 1))[0]}

    def encode(self, frozen: Params, key: Array | None, batch: Batch) -> Encoded:
        """The policy's."""
        return self.policy.encode(frozen["policy"], key, batch)

    def loss(self, params: Params, frozen: Params, encoded: Encoded, draws: Draws) -> dict[str, tuple[Array, Array]]:
        """The policy's, of base and adapters together."""
        return self.policy.loss(_joined(params, frozen["base"], self.config), frozen["policy"], encoded, draws)

    def passes(self, mode: str, frames: int | None = None) -> list[Pass]:
        """The policy's, without gradients of the base; adapters are small, and not counted."""
        return [dataclasses.replace(one, through=one.trained) for one in self.policy.passes(mode, frames)]


def _joined(trainable: Params, base: Params, config: LoRAConfig) -> Params:
    """`join` under the fingerprint that both must carry."""
    (wanted,), (found,) = trainable, base
    if wanted != found:
        raise UserError(f"the adapters belong to {wanted}, not to {found}: give the base they belong to")
    return join(trainable[wanted], base[found], config)


def _adapter(path: str, kernel: Any, rank: int, key: Array) -> tuple[Array, Array]:
    if len(kernel.shape) < 2:
        raise UserError(f"train.lora.targets: {path} of shape {kernel.shape} is no matrix: train it in full instead")
    *stacked, inputs, outputs = kernel.shape
    own = jax.random.fold_in(key, zlib.crc32(path.encode()))
    bound = inputs**-0.5  # Kaiming's for a slope of sqrt(5)
    a = jax.random.uniform(own, (*stacked, inputs, rank), minval=-bound, maxval=bound)
    return a, jnp.zeros((*stacked, rank, outputs))
