"""What a compiled program says of itself: its collectives, how often they run, and products in float32."""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter, defaultdict

BYTES = {"pred": 1, "s8": 1, "u8": 1, "f8e4m3fn": 1, "f8e5m2": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_COMPUTATION = re.compile(r"^(?:ENTRY )?%([^ ]+) \(.*\{$")
_COLLECTIVE = re.compile(rf"= (.+?) ({'|'.join(KINDS)})(-start)?\(")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_WHILE = re.compile(r" while\(.*condition=%([^,\s]+), body=%([^,\s]+)")
_CALL = re.compile(r"(?:calls|to_apply|branch_computations)=\{?%([^,\s}]+)")
_NAME = re.compile(r'op_name="([^"]*)"')


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective of the program.

    Attributes:
        kind: of `KINDS`. dtype, shape: of its result on a device. times: how often a step runs it.
        name: of the operation in the model that needs it.
    """

    kind: str
    dtype: str
    shape: tuple[int, ...]
    times: int
    name: str

    @property
    def bytes(self) -> int:
        """Of all runs in a step, on a device."""
        return self.times * math.prod(self.shape) * BYTES.get(self.dtype, 4)


def collectives(text: str) -> list[Collective]:
    """The collectives of a compiled program."""
    computations = _computations(text)
    times = _times(computations)
    found = []
    for name, lines in computations.items():
        for line in lines:
            match = _COLLECTIVE.search(line)
            if match:
                dtype, dims = _ARRAY.findall(match[1])[-1]  # of an asynchronous start: the result, behind the operand
                shape = tuple(int(dim) for dim in dims.split(",") if dim)
                operation = _NAME.search(line)
                found.append(Collective(match[2], dtype, shape, times[name], operation[1] if operation else ""))
    return found


def float32_products(text: str) -> Counter[str]:
    """Operations of the model that run as matrix products in float32, with the number of such products."""
    product = re.compile(r"= f32\[[\d,]*\]\S* (?:dot|convolution)\(")
    names = (_NAME.search(line) for line in text.splitlines() if product.search(line))
    return Counter(match[1] if match else "" for match in names)


def kernels(text: str) -> int:
    """How many calls of custom kernels the text has."""
    return text.count('custom_call_target="tpu_custom_call"')


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
