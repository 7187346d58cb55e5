"""The systems of the field as data: networks, passes, training recipes and ways of acting, each with its source.

Files of `wamjax/compute/data/systems`, and a user's own, have the fields of `System`. Nothing in them is a result: what
they say is dimensions, recipes, and what was published.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from wamjax.compute import families
from wamjax.compute.description import Cost, Work
from wamjax.compute.files import DATA, read, unknown
from wamjax.compute.unet import VideoUNet
from wamjax.errors import UserError
from wamjax.nn.tokens import Group, TokenPlan

AnyFamily = (
    families.Wan
    | families.Cosmos
    | families.Decoder
    | families.Vision
    | families.CrossDiT
    | families.Encoder
    | families.WorldToAction
    | VideoUNet
    | families.Counted
    | families.WanCodec
)


@dataclasses.dataclass(frozen=True)
class Groups:
    """A sequence of named groups.

    Attributes:
        tokens: of each group, in order; cached ones first.
        sees: what a group sees; everything where it is not named.
        causal: groups whose tokens see only earlier ones of their group. experts: of groups, where not the first.
        computed: groups that are computed; empty for all.
    """

    tokens: dict[str, int] = dataclasses.field(default_factory=dict)
    sees: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    causal: tuple[str, ...] = ()
    experts: dict[str, int] = dataclasses.field(default_factory=dict)
    computed: tuple[str, ...] = ()
    kind: Literal["groups"] = "groups"

    def __post_init__(self) -> None:
        named = [*self.sees, *self.causal, *self.experts, *self.computed]
        named += [name for seen in self.sees.values() for name in seen]
        for name in named:
            if name not in self.tokens:
                raise ValueError(unknown("group", name, self.tokens))
        streams = tuple(group.stream for group in self.plan.groups)  # which checks what plans ask for
        if streams[len(streams) - len(self.computed) :] != self.computed:
            raise ValueError(f"groups that are computed come last, in their order: {', '.join(self.computed)}")

    @functools.cached_property
    def plan(self) -> TokenPlan:
        """Who sees whom."""
        groups = [Group(n, size, self.experts.get(n, 0), causal=n in self.causal) for n, size in self.tokens.items()]
        every = tuple(self.tokens)
        return TokenPlan.from_rule(groups, lambda q, k: k.stream in self.sees.get(q.stream, every))

    @property
    def queries(self) -> int:
        """Tokens that are computed."""
        return sum(self.tokens[name] for name in self.computed or self.tokens)


@dataclasses.dataclass(frozen=True)
class TeacherForcing:
    """DreamZero's training sequence: see `wamjax.policies.dreamzero.network.training_plan`.

    Attributes:
        frame: tokens of a latent frame. blocks: of the clip. block_frames, block_actions: of a block.
    """

    frame: int
    blocks: int = 4
    block_frames: int = 2
    block_actions: int = 24
    kind: Literal["teacher_forcing"] = "teacher_forcing"

    @functools.cached_property
    def plan(self) -> TokenPlan:
        """Who sees whom."""
        from wamjax.networks.wan.dit import WAN_DITS
        from wamjax.policies.dreamzero.network import NetworkConfig, training_plan

        sizes = {"block_frames": self.block_frames, "block_actions": self.block_actions}
        return training_plan(self.frame, self.blocks, NetworkConfig(WAN_DITS["wan2.1-i2v-14b"], **sizes))

    @property
    def queries(self) -> int:
        """Tokens that are computed."""
        return self.plan.length


@dataclasses.dataclass(frozen=True)
class PackedChunks:
    """LingBot-VA's training sequence: a noisy and a clean copy of video and actions, in chunks that take turns.

    Attributes:
        frames: latent frames. video, action: tokens of a frame's video and of its actions.
        chunk: frames of a chunk. window: chunks of video or actions that are seen, at most, on one side.
    """

    frames: int
    video: int
    action: int
    chunk: int
    window: int
    kind: Literal["packed_chunks"] = "packed_chunks"

    @functools.cached_property
    def plan(self) -> TokenPlan:
        """Who sees whom."""
        sizes = [min(self.chunk, self.frames - at) for at in range(0, self.frames, self.chunk)]
        streams = (("noisy", self.video), ("clean", self.video), ("action", self.action), ("clean action", self.action))
        turn = {"noisy": 0, "clean": 0, "action": 1, "clean action": 1}
        groups = [
            Group(stream, tokens * size, block=2 * i + turn[stream])
            for stream, tokens in streams
            for i, size in enumerate(sizes)
        ]

        def sees(query: Group, key: Group) -> bool:
            if abs(query.block - key.block) > self.window:
                return False
            if not key.stream.startswith("clean"):
                return key.block == query.block and not query.stream.startswith("clean")
            return key.block <= query.block if query.stream.startswith("clean") else key.block < query.block

        return TokenPlan.from_rule(groups, sees)

    @property
    def queries(self) -> int:
        """Tokens that are computed."""
        return self.plan.length


@dataclasses.dataclass(frozen=True)
class Run:
    """One pass of a network.

    Attributes:
        network: its name. sequence: its tokens. beside: tokens of other streams.
        known, layers, clip, decode, rows: as of `Work`.
        source: where the numbers come from.
    """

    network: str
    sequence: Groups | TeacherForcing | PackedChunks = Groups()
    beside: dict[str, int] = dataclasses.field(default_factory=dict)
    known: tuple[str, ...] = ()
    layers: int | None = None
    clip: tuple[int, int, int] = (1, 0, 0)
    decode: bool = False
    rows: int = 1
    source: str = ""

    @property
    def work(self) -> Work:
        """What it computes."""
        sequence = (self.sequence.plan, self.sequence.queries)
        return Work(*sequence, self.beside, self.known, self.layers, self.clip, self.decode, self.rows)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A training.

    Attributes:
        name: of it. batch, steps: samples a step, and steps; or tokens: all of them.
        trained: runs of a sample that are trained, and how often. through: those whose weights stay while gradients
            pass (adapters). frozen: forward passes alone.
        remat: whether blocks are computed a second time.
        chip, hours: what it was trained on, and chip-hours, where they are known.
        published: 1e21 operations as published. reason: why the derived number differs.
        source: where the numbers come from.
    """

    name: str
    batch: int = 0
    steps: int = 0
    tokens: float = 0.0
    trained: dict[str, float] = dataclasses.field(default_factory=dict)
    through: dict[str, float] = dataclasses.field(default_factory=dict)
    frozen: dict[str, float] = dataclasses.field(default_factory=dict)
    remat: bool = True
    chip: str = ""
    hours: float = 0.0
    published: float | None = None
    reason: str = ""
    source: str = ""


@dataclasses.dataclass(frozen=True)
class Stage:
    """A part of an action chunk's work.

    Attributes:
        name: what runs. run: which pass. times: how often in a chunk, or in a step where `step` is set.
        step: whether it runs at every denoising step.
    """

    name: str
    run: str
    times: float = 1.0
    step: bool = False


@dataclasses.dataclass(frozen=True)
class Measured:
    """A published or measured time of an action chunk.

    Attributes:
        ms: milliseconds. chip, devices: on what. how: with what software. steps: where other than the way's.
        source: who says so.
    """

    ms: float
    chip: str
    devices: int = 1
    how: str = ""
    steps: int = 0
    source: str = ""


@dataclasses.dataclass(frozen=True)
class Acting:
    """A way of making an action chunk.

    Attributes:
        name: of it. stages: what runs on one device. steps: of denoising. devices: that share the work.
        actions: in a chunk. measured: how long it took. source: where the numbers come from.
    """

    name: str
    stages: tuple[Stage, ...]
    steps: int
    devices: int = 1
    actions: int = 0
    measured: tuple[Measured, ...] = ()
    source: str = ""


@dataclasses.dataclass(frozen=True)
class Law:
    """Milliseconds of a chunk as passes of a network and a rest: (steps + beside) * call + rest.

    Attributes:
        call, rest: milliseconds. beside: passes beside the steps'.
    """

    call: float
    rest: float
    beside: int

    @classmethod
    def through(cls, points: tuple[tuple[int, float], tuple[int, float]], beside: int) -> Law:
        """The law through two measurements (steps, milliseconds)."""
        (many, long), (few, short) = points
        call = (long - short) / (many - few)
        return cls(call, long - (many + beside) * call, beside)

    def at(self, steps: int) -> float:
        """Milliseconds with so many steps."""
        return (steps + self.beside) * self.call + self.rest


@dataclasses.dataclass(frozen=True)
class Measurements:
    """Two times of a chunk that make a law.

    Attributes:
        points: (steps, milliseconds). beside: passes beside the steps'. run: what a pass is. chip: on what, each half.
        source: who says so.
    """

    points: tuple[tuple[int, float], tuple[int, float]]
    beside: int
    run: str
    chip: str
    source: str

    @property
    def through(self) -> Law:
        """The law."""
        return Law.through(self.points, self.beside)


@dataclasses.dataclass(frozen=True)
class System:
    """A system of the field.

    Attributes:
        title: its name. paradigm: what it predicts. networks: its own, beside the shared ones.
        runs: passes by name. recipes, acting: what it is for.
        law: of its times, where two are published. source: where the numbers come from.
    """

    title: str
    paradigm: str
    runs: dict[str, Run]
    networks: dict[str, AnyFamily] = dataclasses.field(default_factory=dict)
    recipes: tuple[Recipe, ...] = ()
    acting: tuple[Acting, ...] = ()
    law: Measurements | None = None
    source: str = ""
    version: int = 1

    def __post_init__(self) -> None:
        known = {**shared_networks(), **self.networks}
        for name, run in self.runs.items():
            if run.network not in known:
                raise ValueError(f"run '{name}': {unknown('network', run.network, known)}")
        for one in self.recipes:
            if not one.batch * one.steps and not (one.tokens and one.trained):
                raise ValueError(f"recipe '{one.name}' needs batch and steps, or tokens and trained passes")
        for where, names in self._references():
            for name in names:
                if name not in self.runs:
                    raise ValueError(f"{where}: {unknown('run', name, self.runs)}")

    def _references(self) -> list[tuple[str, list[str]]]:
        recipes = [(f"recipe '{r.name}'", [*r.trained, *r.through, *r.frozen]) for r in self.recipes]
        law = [("law", [self.law.run])] if self.law else []
        return recipes + law + [(f"acting '{a.name}'", [stage.run for stage in a.stages]) for a in self.acting]

    def network(self, name: str) -> AnyFamily:
        """One of its networks."""
        return self.networks[name] if name in self.networks else shared_networks()[name].family

    @property
    def trained(self) -> tuple[str, ...]:
        """Networks that its first recipe trains or adapts; without a recipe, that of its first pass."""
        runs = [run for one in self.recipes[:1] for run in (*one.trained, *one.through)] or list(self.runs)[:1]
        return tuple(dict.fromkeys(self.runs[run].network for run in runs))

    def cost(self, run: str) -> Cost:
        """Of one of its passes."""
        return self.network(self.runs[run].network).cost(self.runs[run].work)


@dataclasses.dataclass(frozen=True)
class Shared:
    """A network that several systems use.

    Attributes:
        family: its dimensions. source: where they come from.
        stated: parameters as somebody counted them, which the formula must give.
    """

    family: AnyFamily
    source: str
    stated: int = 0


@dataclasses.dataclass(frozen=True)
class _Networks:
    networks: dict[str, Shared]
    version: int = 1


@functools.cache
def shared_networks() -> Mapping[str, Shared]:
    """Of `data/networks.json`."""
    return read(_Networks, DATA / "networks.json").networks


@functools.cache
def names() -> tuple[str, ...]:
    """Systems that come with wamjax."""
    return tuple(sorted(path.stem for path in (DATA / "systems").glob("*.json")))


def find(name: str) -> System:
    """A system by its name, or of a user's file.

    Raises:
        UserError: an unknown name (with the nearest ones), or a file with something wrong in it.
    """
    own = Path(name)
    if own.suffix == ".json" and own.is_file():
        return read(System, own)
    if name not in names():
        raise UserError(unknown("system", name, names()))
    return _known(name)


@functools.cache
def _known(name: str) -> System:
    return read(System, DATA / "systems" / f"{name}.json")
