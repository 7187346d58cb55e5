"""Other ways to run: those that would fit where a plan does not, and those that may be faster where it does.

A variant is a mesh and changes of the configuration, written as on a command line. Compiling one takes minutes, so what
cannot fit anyway, because state, gradients and saved activations alone are too large, is passed over.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator

import jax

from wamjax.planning.plan import Plan, plan
from wamjax.planning.program import Subject, bytes_on_device
from wamjax.planning.topology import Topology, default_mesh, other_meshes
from wamjax.policies.contract import Pass
from wamjax.sharding.mesh import MeshConfig, make_mesh

REMATS: tuple[tuple[str, ...] | None, ...] = (
    ("block_in",),
    ("block_in", "attended"),
    ("block_in", "qkv", "attended"),
    ("block_in", "qkv", "attended", "mlp_hidden"),
    None,
)
"""What may be saved for the backward pass, the least first; see `StackConfig.remat`."""

PORTIONS = "train.portions"

DOUBLINGS = 5
"""How often the number of chips is doubled in search of one that is enough."""


@dataclasses.dataclass(frozen=True)
class Variant:
    """A way to run.

    Attributes:
        topology, mesh: where. changes: of the configuration.
    """

    topology: Topology
    mesh: MeshConfig
    changes: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """As people would write it."""
        axes = [f"{name} {size}" for name, size in dataclasses.asdict(self.mesh).items() if size > 1]
        return " ".join((self.topology.name + ":", " x ".join(axes) or "one device", *self.changes))

    def changed(self, key: str, value: object) -> Variant:
        """With a key of the configuration set; None leaves it as it was."""
        others = tuple(change for change in self.changes if not change.startswith(f"{key}="))
        return dataclasses.replace(self, changes=others + ((f"{key}={value}",) if value is not None else ()))

    @property
    def portions(self) -> int | None:
        """Of a batch, where they are changed."""
        found = [change.partition("=")[2] for change in self.changes if change.startswith(f"{PORTIONS}=")]
        return int(found[0]) if found else None

    def all_changed(self, keys: tuple[str, ...], value: object) -> Variant:
        """With several keys set."""
        return functools.reduce(lambda variant, key: variant.changed(key, value), keys, self)


@dataclasses.dataclass(frozen=True)
class Keys:
    """Where a configuration says what saves memory; empty where it cannot.

    Attributes:
        remat, offload: of `StackConfig`.
        moments, state: numbers of the optimizer's moments, and whether its state lies in the memory of hosts.
    """

    remat: tuple[str, ...] = ()
    offload: tuple[str, ...] = ()
    moments: tuple[str, ...] = ()
    state: tuple[str, ...] = ()


Build = Callable[[tuple[str, ...]], Subject]
"""What is trained after some changes of the configuration."""


def at_least(subject: Subject, variant: Variant) -> int:
    """Bytes that a chip cannot do without: state, gradients, and what is saved of the forward pass.

    Gradients are in bfloat16; those of several portions are also summed, in the numbers of the parameters.
    """
    mesh, portions = make_mesh(variant.mesh, variant.topology.devices()), variant.portions or subject.config.portions
    state = subject.state(mesh)
    held = bytes_on_device(state.params)
    gradients = held // 2 + held * (portions > 1)
    samples = subject.config.batch_size / math.prod(mesh.shape[axis] for axis in ("replica", "data", "fsdp")) / portions
    parts = variant.mesh.ring * variant.mesh.context
    kept = sum(saved_bytes(one) for one in subject.learner.passes("train") if one.trained)
    return int(bytes_on_device(state) + gradients + kept * samples / parts)


def saved_bytes(one: Pass) -> float:
    """Activations of a sample that stay for the backward pass, in bfloat16; without remat all that have a name."""
    stack = one.network.stack
    inner, total = stack.heads * stack.head_dim, 0
    for group in one.plan.groups:
        width, mlp = (getattr(stack.experts[group.expert], size) for size in ("width", "mlp"))
        sizes = {"block_in": width, "qkv": 3 * inner, "attended": inner, "attn_out": width, "mlp_hidden": mlp}
        total += group.length * sum(sizes[name] for name in (sizes if stack.remat is None else stack.remat))
    return 2.0 * stack.layers * total


def remedies(subject: Subject, variant: Variant, keys: Keys) -> Iterator[Variant]:
    """Variants that need less memory, each on top of the one before; the cheapest first, more chips last.

    Args:
        subject, variant: that does not fit. keys: of the configuration.
    """
    if any(one.trained and one.network.stack.remat is None for one in subject.learner.passes("train")):
        yield (variant := variant.all_changed(keys.remat, REMATS[0]))
    if (alone := _one_by_one(subject, variant)) != variant:
        yield (variant := alone)
    if variant.mesh.data > 1:
        wider = dataclasses.replace(variant.mesh, fsdp=variant.mesh.fsdp * variant.mesh.data, data=1)
        yield (variant := _one_by_one(subject, dataclasses.replace(variant, mesh=wider)))
    if keys.moments:
        yield (variant := variant.all_changed(keys.moments, "bfloat16"))
    if keys.offload:
        yield (variant := variant.all_changed(keys.remat, ()).all_changed(keys.offload, REMATS[0]))
    if keys.state:
        yield variant.all_changed(keys.state, True)  # by itself: not every compiler can, with every mesh
    for _ in range(DOUBLINGS):
        variant = roomiest(subject, dataclasses.replace(variant, topology=variant.topology.doubled()))
        yield variant


def roomiest(subject: Subject, variant: Variant) -> Variant:
    """The variant with the mesh that leaves most memory: parameters over many devices, or sequences."""
    config, heads = subject.config, subject.learner.passes("train")[0].network.stack.heads
    mesh = default_mesh(variant.topology, config.batch_size, heads)
    found = [dataclasses.replace(variant, mesh=mesh)]
    while mesh.fsdp % 2 == 0 and heads % (2 * mesh.context) == 0:
        mesh = dataclasses.replace(mesh, fsdp=mesh.fsdp // 2, context=2 * mesh.context)
        found.append(dataclasses.replace(variant, mesh=mesh))
    return min((_one_by_one(subject, one) for one in found), key=lambda one: at_least(subject, one))


def _one_by_one(subject: Subject, variant: Variant) -> Variant:
    """The variant with as many portions as a device has samples."""
    mesh, config = variant.mesh, subject.config
    held = config.batch_size // (mesh.replica * mesh.data * mesh.fsdp)
    return variant.changed(PORTIONS, held if held != config.portions else None)


def advise(
    build: Build, variant: Variant, keys: Keys, tries: int, say: Callable[[str], None]
) -> tuple[tuple[str, ...], Plan | None]:
    """What would make a variant fit: lines on what was tried, and the plan of the first that fits.

    Args:
        build, variant, keys: as of `remedies`. tries: how many are compiled at most. say: told before each.
    """
    lines: list[str] = []
    for one in remedies(build(variant.changes), variant, keys):
        subject, limit = build(one.changes), int(one.topology.chip.memory)
        least = at_least(subject, one)
        if least > limit:
            lines.append(f"{one.words}: not enough, needs {_gib(least)} GiB without anything temporary")
            continue
        if not tries:
            lines.append(f"{one.words}: may fit, needs at least {_gib(least)} of {_gib(limit)} GiB (not compiled)")
            break
        say(f"trying {one.words}")
        tries -= 1
        try:
            found = plan(subject, one.topology, one.mesh, one.changes)
        except jax.errors.JaxRuntimeError as refusal:
            lines.append(f"{one.words}: the compiler cannot: {str(refusal).splitlines()[0]}")
            continue
        if found.fits:
            lines.append(f"{one.words}: fits, needs {_gib(found.hbm_bytes)} of {_gib(limit)} GiB (compiled)")
            return tuple(lines), found
        lines.append(f"{one.words}: not enough, needs {_gib(found.hbm_bytes)} GiB (compiled)")
    return tuple(lines), None


def neighbours(subject: Subject, variant: Variant, keys: Keys) -> list[Variant]:
    """Other meshes and other points saved for the backward pass, in turns, without those that cannot fit."""
    passes = subject.learner.passes("train")
    now = next((one.network.stack.remat for one in passes if one.trained), None)
    meshes = [
        dataclasses.replace(variant, mesh=mesh)
        for mesh in other_meshes(variant.mesh, passes[0].network.stack.heads)
        if subject.config.batch_size % (mesh.replica * mesh.data * mesh.fsdp * subject.config.portions) == 0
    ]
    saving = [variant.all_changed(keys.remat, names) for names in REMATS if names != now]
    turns = itertools.zip_longest(saving, meshes)
    return [one for pair in turns for one in pair if one is not None]


def search(
    build: Build, first: Plan, variant: Variant, keys: Keys, count: int, say: Callable[[str], None]
) -> list[Plan]:
    """The first plan and up to `count` of its neighbours, those that fit and are fastest first."""
    plans = [first]
    for one in neighbours(build(variant.changes), variant, keys):
        if len(plans) > count:
            break
        subject = build(one.changes)
        if at_least(subject, one) <= one.topology.chip.memory:
            say(f"trying {one.words}")
            plans.append(plan(subject, one.topology, one.mesh, one.changes))
            jax.clear_caches()  # nothing is run, and traces of one variant are of no use to the next
    return sorted(plans, key=lambda one: (not one.fits, one.step_seconds))


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f}"
