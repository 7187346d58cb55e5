"""Training on what frozen networks made beforehand: what depends on what, the encoder, and a policy that reads it.

What a leaf of the encoded batch depends on is read off the program of `Policy.encode`: leaves of the instruction alone
are made once per prompt, and only frozen parameters that something depends on count for whether a cache fits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from wamjax.data.encode import Encoder
from wamjax.data.latents import Leaf
from wamjax.policies.contract import Batch, Encoded, Params
from wamjax.sharding.mesh import OnMesh, to_devices
from wamjax.training.cached import Cached
from wamjax.training.checkpoint import fingerprint
from wamjax.training.step import Learner

SEEN, SAID = "frames", "language"
"""Names, in a batch, of what networks encode; all else is numbers that are kept as they are."""

KEY = "the key"
Shapes = Mapping[str, jax.ShapeDtypeStruct]


@dataclasses.dataclass(frozen=True)
class Making:
    """What `Policy.encode` makes of batches of some shapes.

    Attributes:
        leaves: what it makes, without the batch axis; `sources` says for each which parts of a batch it depends on.
        frozen: paths of the frozen parameters that something depends on; `said` those of what prompts give.
        draws: whether anything is drawn anew in each step, that is, augmented.
    """

    leaves: dict[str, jax.ShapeDtypeStruct]
    sources: dict[str, frozenset[str]]
    frozen: frozenset[str]
    said: frozenset[str]
    draws: bool

    @classmethod
    def of(cls, policy: Learner, frozen: Params, batch: Shapes) -> Making:
        """Traces a policy; `frozen` may be shapes."""
        frozen = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype), frozen)
        weights = _by_path(frozen)
        made, needs = _traced(policy, frozen, batch, None)
        drawn = set[str]().union(*_traced(policy, frozen, batch, jax.random.key(0))[1].values())
        sources = {name: frozenset(needs[name] & batch.keys()) for name in made}
        read = {name: frozenset(needs[name] & weights.keys()) for name in made}
        leaves = {name: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype) for name, leaf in made.items()}
        said = frozenset[str]().union(*(read[name] for name in made if sources[name] == {SAID}))
        return cls(leaves, sources, frozenset[str]().union(*read.values()), said, KEY in drawn)

    def kept(self, dtype: str) -> dict[str, Leaf]:
        """The leaves of a cache; `dtype` is what numbers made of pictures and prompts are kept in."""

        def leaf(name: str, made: jax.ShapeDtypeStruct) -> Leaf:
            encoded = bool({SEEN, SAID} & self.sources[name]) and jnp.issubdtype(made.dtype, jnp.floating)
            kept = dtype if encoded else made.dtype.name
            return Leaf(made.shape, made.dtype.name, kept, self.sources[name] == {SAID})

        return {name: leaf(name, made) for name, made in self.leaves.items()}


def read_fingerprint(frozen: Params, paths: frozenset[str]) -> str:
    """A short hash of those frozen parameters."""
    found = _by_path(frozen)
    return fingerprint({path: found[path] for path in sorted(paths)})


def read_fingerprints(frozen: Params, paths: frozenset[str]) -> dict[str, str]:
    """The same for each network or whatever else they are grouped into at the top."""
    groups: dict[str, set[str]] = {}
    for path in paths:
        groups.setdefault(path.split("'")[1], set()).add(path)
    return {name: read_fingerprint(frozen, frozenset(groups[name])) for name in sorted(groups)}


def encoder(
    policy: Learner, frozen: Params, making: Making, batch: Shapes, rows: int, dtype: str, mesh: Mesh
) -> Encoder:
    """The frozen networks of a policy, compiled for batches of so many rows on a mesh.

    Args:
        policy, frozen, making: whose. batch: shapes of a batch. dtype: see `Making.kept`. mesh: of this process.
    """
    leaves = making.kept(dtype)

    def make(prompts: bool) -> OnMesh:
        def run(frozen: Params, given: Batch) -> Encoded:
            blank = {name: jnp.zeros((rows, *shape.shape[1:]), shape.dtype) for name, shape in batch.items()}
            made = policy.encode(frozen, None, {**blank, **given})  # what is not asked for is not computed
            return {name: made[name].astype(leaf.kept) for name, leaf in leaves.items() if leaf.prompt == prompts}

        return OnMesh(mesh, jax.jit(run))

    samples, prompts = make(prompts=False), make(prompts=True)
    return Encoder(
        samples=lambda batch: samples(frozen, to_devices(batch, mesh)) if batch else {},
        prompts=lambda tokens: prompts(frozen, to_devices({SAID: tokens}, mesh)),
        leaves=leaves,
        batch=rows,
        identity=f"{read_fingerprint(frozen, making.said)}:{dtype}",
    )


@dataclasses.dataclass(frozen=True)
class Precomputed(Cached):
    """A policy whose batches are read from a cache of encoded samples.

    Attributes:
        leaves: what they have.
    """

    leaves: Mapping[str, Leaf]

    def encode(self, frozen: Params, key: Array | None, batch: Batch) -> Encoded:
        """The batch itself, in the kinds of numbers that the policy's own networks give."""
        return {name: batch[name].astype(leaf.dtype) for name, leaf in self.leaves.items()}


def _traced(policy: Learner, frozen: Params, batch: Shapes, key: Any) -> tuple[Any, dict[str, set[str]]]:
    """Shapes of what a policy encodes, and for each what it depends on: paths of frozen parameters, parts of the batch,
    and `KEY`. A call inside counts as depending on all that it is given."""
    run = jax.make_jaxpr(lambda frozen, key, batch: policy.encode(frozen, key, batch), return_shape=True)
    program, made = run(frozen, key, dict(batch))
    inputs = [*_by_path(frozen), *([] if key is None else [KEY]), *sorted(batch)]
    needs = {variable: {name} for variable, name in zip(program.jaxpr.invars, inputs, strict=True)}
    for equation in program.jaxpr.eqns:
        found = set[str]().union(*(needs.get(one, set()) for one in equation.invars if _is_variable(one)))
        needs |= dict.fromkeys(equation.outvars, found)
    outputs = [needs.get(one, set()) if _is_variable(one) else set() for one in program.jaxpr.outvars]
    return made, dict(zip(sorted(made), outputs, strict=True))


def _is_variable(atom: Any) -> bool:
    return not isinstance(atom, jax.extend.core.Literal)


def _by_path(tree: Any) -> dict[str, Any]:
    """Leaves by their paths, in the order in which JAX takes them."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
