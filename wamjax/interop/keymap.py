"""Key maps: a table from our parameter paths to the tensors of a published layout, read in both directions.

A map names, for every leaf of ours, the tensor (or, for leaves stacked by layer, the tensors) it comes from and how
its axes lie there. Import and export are the same table read forwards and backwards; both are strict.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from wamjax.errors import UserError
from wamjax.interop.files import Index

ReadPart = Callable[[str, Index], np.ndarray]
"""(tensor, index) -> what lies there."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a tensor's axes lie in the published layout.

    Attributes:
        order: our axes, taken from theirs; both without the axes of length one named below.
        theirs_alone, ours_alone: positions of axes of length one that only the one or the other has.
    """

    order: tuple[int, ...]
    theirs_alone: tuple[int, ...] = ()
    ours_alone: tuple[int, ...] = ()

    def ours(self, tensor: np.ndarray) -> np.ndarray:
        """Their tensor in our axes."""
        return np.expand_dims(np.squeeze(tensor, self.theirs_alone).transpose(self.order), self.ours_alone)

    def theirs(self, leaf: np.ndarray) -> np.ndarray:
        """Our leaf in their axes."""
        return np.expand_dims(np.squeeze(leaf, self.ours_alone).transpose(np.argsort(self.order)), self.theirs_alone)

    def part_of_theirs(self, index: Index) -> Index:
        """Where a part of our leaf (a slice for each of our axes) lies in their tensor."""
        shared = [part for axis, part in enumerate(index) if axis not in self.ours_alone]
        theirs = [shared[axis] for axis in np.argsort(self.order)]
        for axis in self.theirs_alone:
            theirs.insert(axis, slice(None))
        return tuple(theirs)

    @property
    def along(self) -> int:
        """The axis of ours along which their tensor lies in a file, one part behind the other."""
        shared = [axis for axis in range(len(self.order) + len(self.ours_alone)) if axis not in self.ours_alone]
        return shared[self.order.index(0)] if self.order else 0


VECTOR = Layout((0,))
SCALAR = Layout((), ours_alone=(0,))
"""() there, (1) here."""
TABLE = Layout((0, 1))
LINEAR = Layout((1, 0))
"""(out, in) there, (in, out) here."""
CONV = Layout((2, 3, 4, 1, 0))
"""(out, in, t, h, w) there, (t, h, w, in, out) here."""
CONV_2D = Layout((2, 3, 1, 0), ours_alone=(0,))
"""(out, in, h, w) there, (1, h, w, in, out) here."""
SCALE_2D, SCALE_3D = Layout((0,), theirs_alone=(1, 2)), Layout((0,), theirs_alone=(1, 2, 3))
"""(c, 1, 1) or (c, 1, 1, 1) there, (c) here."""


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a leaf comes from.

    Attributes:
        keys: one tensor; for a stacked leaf those of one layer after the other.
        layout: of each of them.
        stacked: whether the leaf has a leading layer axis.
        joined: how many tensors lie side by side in our last axis.
    """

    keys: tuple[str, ...]
    layout: Layout
    stacked: bool = False
    joined: int = 1

    def shapes(self, leaf: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """Shapes of their tensors for the shape of our leaf."""
        *axes, last = leaf[1:] if self.stacked else leaf
        part = np.broadcast_to(0, (*axes, last // self.joined))
        return dict.fromkeys(self.keys, self.layout.theirs(part).shape)

    @property
    def layers(self) -> int:
        """Layers of a stacked leaf; 1 for another, which is its own only layer."""
        return len(self.keys) // self.joined

    def keys_of(self, layer: int) -> tuple[str, ...]:
        """The tensors of one layer."""
        return self.keys[layer * self.joined : (layer + 1) * self.joined]

    def layer_of_ours(self, layer: int, read: Callable[[str], np.ndarray]) -> np.ndarray:
        """One layer of our leaf, of their tensors."""
        return _beside([self.layout.ours(read(key)) for key in self.keys_of(layer)])

    def part_of_ours(self, layer: int, index: Index, width: int, part: ReadPart) -> np.ndarray:
        """What lies at an index of one layer of our leaf, of no more of their tensors than that.

        Args:
            layer: which. index: a slice for each axis of a layer; () for all of it.
            width: the length of our last axis.
            part: reads what lies at an index of a tensor.
        """
        if not index:
            return self.layer_of_ours(layer, lambda key: part(key, ()))
        each, found = width // self.joined, []
        start, stop, _ = index[-1].indices(width)
        for place, key in enumerate(self.keys_of(layer)):
            own = slice(max(start - place * each, 0), min(stop - place * each, each))
            if own.start < own.stop:
                found.append(self.layout.ours(part(key, self.layout.part_of_theirs((*index[:-1], own)))))
        return _beside(found)

    def layer_of_theirs(self, layer: int, ours: np.ndarray) -> dict[str, np.ndarray]:
        """Their tensors of one layer of our leaf."""
        parts = np.split(ours, self.joined, axis=-1)
        keys = self.keys_of(layer)
        return {key: packed(self.layout.theirs(part)) for key, part in zip(keys, parts, strict=True)}


def _beside(parts: Sequence[np.ndarray]) -> np.ndarray:
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)


LAYOUTS = ("original", "diffusers")
"""The published layouts: Wan's own files, and those of diffusers and transformers."""


def place(layout: str) -> int:
    """The place of a layout in tables of names; a UserError for an unknown one."""
    if layout not in LAYOUTS:
        raise UserError(f"unknown layout '{layout}': use {' or '.join(LAYOUTS)}")
    return LAYOUTS.index(layout)


def stacked(names: Sequence[str], layout: Layout, layers: int) -> Source:
    """The source of a leaf stacked by layer: `names` with "{}" for the layer, joined in our last axis if several."""
    keys = tuple(name.format(layer) for layer in range(layers) for name in names)
    return Source(keys, layout, stacked=True, joined=len(names))


KeyMap = Mapping[str, Source]
"""Our paths, joined by "/", to their sources."""


def packed(array: np.ndarray, block: int = 128) -> np.ndarray:
    """The array without gaps in memory. A transposed matrix goes block by block, seven times as fast as at once."""
    if array.ndim != 2 or array.flags.c_contiguous:
        return np.ascontiguousarray(array).reshape(array.shape)
    result = np.empty(array.shape, array.dtype)
    for start in range(0, array.shape[1], block):
        result[:, start : start + block] = array[:, start : start + block]
    return result


def check(keymap: KeyMap, theirs: Mapping[str, tuple[int, ...]], ours: Mapping[str, tuple[int, ...]]) -> None:
    """Whether shapes of published tensors fill a network exactly.

    Args:
        keymap: the table.
        theirs: the shape of every tensor of the source.
        ours: the shape of every leaf that the network has, by path.

    Raises:
        UserError: lists what is missing, unexpected or misshapen.
    """
    complain("parameters", missing=set(ours) - set(keymap), unexpected=set(keymap) - set(ours))
    expected = {key: shape for path, source in keymap.items() for key, shape in source.shapes(ours[path]).items()}
    both = expected.keys() & theirs.keys()
    complain(
        "tensors",
        missing=expected.keys() - theirs.keys(),
        unexpected=theirs.keys() - expected.keys(),
        misshapen=[f"{key} {theirs[key]}, not {expected[key]}" for key in both if theirs[key] != expected[key]],
    )


def to_ours(keymap: KeyMap, tensors: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Nested parameters from published tensors in memory; see `check` for the shapes and errors."""
    check(keymap, {key: tensor.shape for key, tensor in tensors.items()}, shapes)

    def leaf(source: Source) -> np.ndarray:
        layers = [source.layer_of_ours(i, tensors.__getitem__) for i in range(source.layers)]
        return np.stack(layers) if source.stacked else layers[0]

    return nest({path: leaf(source) for path, source in keymap.items()})


def to_theirs(keymap: KeyMap, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Published tensors from nested parameters; a UserError names what does not fit the table."""
    leaves = flatten(params)
    complain("parameters", missing=set(keymap) - set(leaves), unexpected=set(leaves) - set(keymap))
    tensors: dict[str, np.ndarray] = {}
    for path, source in keymap.items():
        leaf = np.asarray(leaves[path])
        for i, layer in enumerate(leaf if source.stacked else leaf[None]):
            tensors |= source.layer_of_theirs(i, layer)
    return tensors


def complain(what: str, **problems: Iterable[str]) -> None:
    """Raises one UserError that lists the problems, if there are any."""
    found = {name: sorted(items) for name, items in problems.items() if items}
    if found:
        parts = [
            f"{len(items)} {name} ({', '.join(items[:3])}{', ...' * (len(items) > 3)})" for name, items in found.items()
        ]
        raise UserError(f"the {what} do not fit this network: {'; '.join(parts)}")


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Leaves of a nested dict by path."""
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        leaves |= flatten(value, f"{prefix}{name}/") if isinstance(value, Mapping) else {prefix + name: value}
    return leaves


def nest(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for path, value in leaves.items():
        *folders, name = path.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[name] = value
    return tree
