"""What a compiled program says of itself: its collectives, how often they run, and products in float32."""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter, defaultdict

import numpy as np

BYTES = {"pred": 1, "s8": 1, "u8": 1, "f8e4m3fn": 1, "f8e5m2": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

SCATTERING = "all-reduce-scatter"
"""What the TPU's compiler calls a computation that is a reduce-scatter, written as an all-reduce and a slice of it."""

_COMPUTATION = re.compile(r"^(?:ENTRY )?%([^ ]+) \(.*\{$")
_COLLECTIVE = re.compile(rf"= (.+?) ({'|'.join(KINDS)})(-start)?\(")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_SENT = re.compile(r"= \((\w+\[[\d,]+\]).* send\(.*xla_megascale_runtime")
_WHILE = re.compile(r" while\(.*condition=%([^,\s]+), body=%([^,\s]+)")
_CALL = re.compile(r"(?:calls|to_apply|branch_computations)=\{?%([^,\s}]+)")
_NAME = re.compile(r'op_name="([^"]*)"')
_KERNEL = re.compile(
    r"%splash\w*?_(fwd|dq|dkv)_\S* = .* custom-call\(.*\"tpu_custom_call\", operand_layout_constraints=\{(.*)"
)
_HEADS = re.compile(r"\b(?:bf16|f32)\[(\d+(?:,\d+){2,3})\]")
_LISTED = re.compile(r"(?:replica_groups|source_target_pairs)=\{\{([\d,]*)\}")
_COUNTED = re.compile(r"replica_groups=(\[[\d,]+\])<=(\[[\d,]+\](?:T\([\d,]+\))?)")
_NAMED = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^{]*)\))? \{([^}]*)\}")

Array = tuple[str, tuple[int, ...]]
"""Type and shape."""


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective of the program.

    Attributes:
        kind: of `KINDS`. arrays: on a device; gathered, before a reduction, or exchanged.
        times: how often a step runs it.
        name: of the operation in the model that needs it.
        group: the first of the groups of devices that take part; empty where all do.
    """

    kind: str
    arrays: tuple[Array, ...]
    times: int
    name: str
    group: tuple[int, ...] = ()

    @property
    def bytes(self) -> int:
        """Of the arrays, in all runs of a step."""
        return self.times * sum(math.prod(shape) * BYTES.get(dtype, 4) for dtype, shape in self.arrays)

    @property
    def traffic(self) -> float:
        """Bytes that a device sends in a step: a ring's, twice for an all-reduce."""
        if self.kind == "collective-permute":
            return self.bytes
        others = (len(self.group) - 1) / len(self.group) if self.group else 1.0
        return self.bytes * others * (2 if self.kind == "all-reduce" else 1)


def collectives(text: str) -> list[Collective]:
    """The collectives of a compiled program."""
    computations = _computations(text)
    times, names = _times(computations), _names_of_calls(text)
    found = []
    for computation, lines in computations.items():
        for line in lines:
            match = _COLLECTIVE.search(line)
            if match:
                kind = "reduce-scatter" if computation.startswith(SCATTERING) else match[2]
                operation = _NAME.search(line)
                name = operation[1] if operation else names.get(computation, "")
                arrays, group = _arrays(match, line, lines), _group(line)
                found.append(Collective(kind, arrays, times[computation], name, group))
    return found


def between_slices(text: str) -> int:
    """Bytes that a device hands over in a step to be summed with those of other slices.

    The TPU's compiler writes a collective over slices as one inside a slice, which leaves every device its share, and
    a transfer of that share.
    """
    computations = _computations(text)
    times, total = _times(computations), 0
    for computation, lines in computations.items():
        for line in lines:
            match = _SENT.search(line)
            if match:
                ((dtype, dims),) = _ARRAY.findall(match[1])
                total += times[computation] * math.prod(map(int, dims.split(","))) * BYTES.get(dtype, 4)
    return total


def _arrays(match: re.Match[str], line: str, lines: list[str]) -> tuple[Array, ...]:
    """What a collective moves: its results, but of a reduce-scatter what it reads."""
    results = [(dtype, tuple(map(int, filter(None, dims.split(","))))) for dtype, dims in _ARRAY.findall(match[1])]
    if match[3] and match[2] in ("all-gather", "collective-permute"):  # operands stand before the results
        results = [one for one in results if one != ("u32", ())]
        results = results[len(results) // 2 :]
    if match[2] != "reduce-scatter":
        return tuple(results)
    return tuple((dtype, (math.prod(shape) * max(1, len(_group(line))),)) for dtype, shape in results)


def _group(line: str) -> tuple[int, ...]:
    """The first group of devices of a collective, however it is written."""
    if match := _LISTED.search(line):
        return tuple(map(int, filter(None, match[1].split(","))))
    if match := _COUNTED.search(line):
        shape = _sizes(match[1])
        return tuple(map(int, _ordered(match[2]).reshape(shape)[0]))
    if match := _NAMED.search(line):
        axes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
        shape, over = tuple(map(int, axes.values())), re.findall(r"'(\w+)'", match[3])
        ids = _ordered(match[2]) if match[2] else np.arange(math.prod(shape))
        where = tuple(slice(None) if axis in over else 0 for axis in axes)
        return tuple(map(int, np.ravel(ids.reshape(shape)[where])))
    return ()


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)))


def _ordered(text: str) -> np.ndarray:
    """Numbers of devices as "[8,64]T(1,0)" orders them."""
    shape, _, order = text.partition("T")
    ids = np.arange(math.prod(_sizes(shape))).reshape(_sizes(shape))
    return ids.transpose(_sizes(order)).ravel() if order else ids.ravel()


def float32_products(text: str) -> Counter[str]:
    """Operations of the model that run as matrix products in float32, with the number of such products."""
    product = re.compile(r"= f32\[[\d,]*\]\S* (?:dot|convolution)\(")
    names = (_NAME.search(line) for line in text.splitlines() if product.search(line))
    return Counter(match[1] if match else "" for match in names)


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A call of an attention kernel.

    Attributes:
        phase: "fwd", "dq" or "dkv". products: of queries, keys and values, in it.
        heads, queries, keys, head_dim: on a device, padding included; heads of all its samples.
        times: how often a step runs it.
    """

    phase: str
    products: int
    heads: int
    queries: int
    keys: int
    head_dim: int
    times: int

    @property
    def operations(self) -> float:
        """Of all runs, as if no block were skipped."""
        return 2.0 * self.times * self.products * self.heads * self.queries * self.keys * self.head_dim


def kernels(text: str) -> list[Kernel]:
    """The attention kernels of a compiled program."""
    computations = _computations(text)
    times, found = _times(computations), []
    for computation, lines in computations.items():
        for line in lines:
            match = _KERNEL.search(line)
            if match:
                shapes = [tuple(map(int, dims.split(","))) for dims in _HEADS.findall(match[2])]
                (*heads, queries, head_dim), (*_, keys, _) = shapes[:2]
                found.append(Kernel(match[1], 0, math.prod(heads), queries, keys, head_dim, times[computation]))
    apart = any(one.phase == "dq" for one in found)  # else one kernel makes all three gradients
    products = {"fwd": 2, "dq": 3, "dkv": 4 if apart else 5}
    return [dataclasses.replace(one, products=products[one.phase]) for one in found]


def _names_of_calls(text: str) -> dict[str, str]:
    """Of computations that are called: the name of the operation that calls them."""
    calls = ((called, _NAME.search(line)) for line in text.splitlines() for called in _CALL.findall(line))
    return {called: name[1] for called, name in calls if name}


def _computations(text: str) -> dict[str, list[str]]:
    """Lines by computation; the first one is the last in the text, the entry."""
    found: dict[str, list[str]] = {}
    current: list[str] = []
    for line in text.splitlines():
        match = _COMPUTATION.match(line)
        if match:
            current = found.setdefault(match[1], [])
        else:
            current.append(line)
    return found


def _times(computations: dict[str, list[str]]) -> dict[str, int]:
    """How often a step runs each computation."""
    callers: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for name, lines in computations.items():
        for line in lines:
            loop = _WHILE.search(line)
            if loop:
                callers[loop[2]].append((name, _trips(computations.get(loop[1], []))))
            for called in _CALL.findall(line):
                callers[called].append((name, 1))

    known: dict[str, int] = {}

    def times(name: str) -> int:
        if name not in known:
            known[name] = sum(count * times(caller) for caller, count in callers[name]) if callers[name] else 1
        return known[name]

    return {name: times(name) for name in computations}


def _trips(condition: list[str]) -> int:
    """Of a counted loop: the number that its counter is compared with."""
    numbers = [int(n) for line in condition for n in re.findall(r"= s32\[\]\S* constant\((\d+)\)", line)]
    return max(numbers, default=1)
