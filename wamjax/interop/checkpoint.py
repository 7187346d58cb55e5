"""Loading and saving components: published files, and imported folders, which Orbax reads too.

An imported folder holds `component.json` (kind, configuration) and `params/`, an Orbax checkpoint of one array per
leaf. Everything goes layer by layer: no more than a few layers of one leaf are on the host, whatever the model's size,
and what is written appears under its name only when it is whole.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh, Sharding

from wamjax import config as configuration
from wamjax.errors import UserError
from wamjax.interop.adapters import with_adapters
from wamjax.interop.components import BUNDLES, KINDS, PREFIXES, Kind, recognise
from wamjax.interop.files import INDEX, Index, Tensor, Tensors, open_tensors
from wamjax.interop.keymap import KeyMap, check, complain, flatten, nest, packed, place
from wamjax.interop.placing import Leaf, placed
from wamjax.sharding.mesh import shardings

DESCRIPTION = "component.json"
FOLDERS = {
    "transformer": ("transformer", "high_noise_model"),
    "transformer_2": ("transformer_2", "low_noise_model"),
    "vae": ("vae",),
    "text_encoder": ("text_encoder",),
    "image_encoder": ("image_encoder",),
}
"""Components of a published model, and the folders they lie in (diffusers; the two networks of the original A14B)."""
FILES = {"vae": "*VAE*", "text_encoder": "*t5*", "image_encoder": "*clip*", "transformer": "diffusion_pytorch_model*"}
"""Components of an original release that lie in one folder, and how their files are named."""
EVERY = "original"
"""The layout that has a tensor for every parameter."""
SHARD = 2**30
"""Bytes of a file of weights, about."""
CHUNK = 2**23
"""Numbers of a chunk of a stored array, at most."""

Progress = Callable[[int], None]
"""Told the bytes that have been written since it was last told."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a component lies.

    Attributes:
        path: a file of weights, an index, or an imported folder.
        prefix: start of its tensors' names, where the file holds other components too.
    """

    path: Path
    prefix: str = ""


@dataclasses.dataclass(frozen=True)
class Component:
    """A component that has been found and checked, but not read.

    Attributes:
        kind: its row's name in `KINDS`.
        config: its configuration.
        leaves: its parameters by path.
    """

    kind: str
    config: Any
    leaves: Mapping[str, Leaf]

    @property
    def bytes(self) -> int:
        """Size of all parameters."""
        return sum(leaf.bytes for leaf in self.leaves.values())


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A component in memory.

    Attributes:
        module: the network; `module.apply({"params": params}, ...)`.
        params: its parameters, nested.
        config: its configuration.
    """

    module: Any
    params: Any
    config: Any


def load(
    path: str | Path, component: str | None = None, dtype: Any = None, sharding: Mesh | Sharding | None = None
) -> Loaded:
    """Loads a component of a published checkpoint or of an imported folder; layout and size are recognised.

    Args:
        path: a file, a folder of one component, or of a whole model.
        component: which of a whole model: "transformer", "transformer_2", "vae", "text_encoder", "image_encoder".
        dtype: of the parameters; None keeps each as it is stored.
        sharding: a mesh, over which the network's own rules spread the parameters; or one sharding for all of them.
            None puts them on the default device. Files are read in pieces, by all processes together
            (`wamjax.interop.placing`): no host holds more than its devices' share, and a piece.

    Raises:
        UserError: nothing to load, damaged files, or tensors that do not fill the network exactly.
    """
    found = open_component(choose(Path(path), component))
    row = KINDS[found.kind]
    shapes = {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in found.leaves.items()}
    places: Mapping[str, Any] = dict.fromkeys(shapes, sharding)
    if isinstance(sharding, Mesh):
        places = flatten(shardings(nest(shapes), row.rules, sharding))

    params = nest(
        {
            path: placed(leaf, places[path], leaf.dtype if dtype is None else np.dtype(dtype))
            for path, leaf in found.leaves.items()
        }
    )
    return Loaded(row.module(found.config), params, found.config)


def save(path: str | Path, loaded: Loaded | nn.Module, params: Any = None, layout: str = "diffusers") -> None:
    """Writes a component as published: safetensors in shards of about a gigabyte, and its config.json.

    Args:
        path: a new folder.
        loaded: what `load` returned, or a module.
        params: its parameters; None takes those of `loaded`.
        layout: "diffusers" (also for transformers), or "original" (names of Wan's files; those of the autoencoder and
            the encoders become safetensors too, which `safetensors.torch.load_file` reads).

    Raises:
        UserError: parameters that do not fit the module, an unknown layout, a folder that exists.
    """
    module = loaded.module if isinstance(loaded, Loaded) else loaded
    params = loaded.params if params is None and isinstance(loaded, Loaded) else params
    export(of_params(module, params), Path(path), layout)


def of_params(module: nn.Module, params: Any) -> Component:
    """Parameters in memory as a component."""
    kind = next((name for name, row in KINDS.items() if isinstance(module, row.module)), None)
    if kind is None:
        raise UserError(f"{type(module).__name__} has no published layout: it cannot be exported")
    config = module.config
    keymap = KINDS[kind].keymap(config, EVERY)

    def leaf(array: Any, stacked: bool) -> Leaf:
        def part(layer: int, index: Index) -> np.ndarray:
            return np.asarray((array[layer] if stacked else array)[index])

        return Leaf(array.shape, np.dtype(array.dtype), stacked, part)

    found = {p: leaf(array, p in keymap and keymap[p].stacked) for p, array in flatten(params).items()}
    return _checked(Component(kind, config, found))


def components(path: Path) -> dict[str, Place]:
    """What a file or folder holds: components by name; "" for one that has none.

    Raises:
        UserError: nothing there.
    """
    if path.is_file():
        return _bundled(path) or {"": Place(path)}
    if not path.is_dir():
        raise UserError(f"there is no file or folder {path}")
    if (path / DESCRIPTION).is_file():
        return {"": Place(path)}
    found: dict[str, Place] = {}
    for name, folders in FOLDERS.items():
        for folder in folders:
            if (path / folder).is_dir():
                found[name] = next(iter(components(path / folder).values()))
    weights = _weights(path)
    if not found and len(weights) == 1:
        return components(weights[0])
    for name, pattern in FILES.items():
        matching = [file for file in weights if file.match(pattern)]
        if matching:
            found.setdefault(name, Place(matching[0]))
    if not found:
        raise UserError(f"{path} holds no weights: no .safetensors, no .pth, and no folder named after a component")
    return found


def open_component(place: Place, base: Place | None = None) -> Component:
    """A component from one of the places that `components` names; recognised and checked, not read.

    Args:
        place: where it lies.
        base: where the weights lie that it has low-rank changes of, if it has nothing but these.
    """
    path = place.path
    if path.is_dir():
        return _open_imported(path)
    tensors = with_adapters(_tensors(place), None if base is None else _tensors(base), path)
    kind, layout = recognise({name: tensor.shape for name, tensor in tensors.items()})
    row = KINDS[kind]
    tensors = _without_repeats(row, tensors)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    hints = path.parent / "config.json"
    try:
        config = row.sized(shapes, layout, json.loads(hints.read_text()) if hints.is_file() else {})
    except (KeyError, ValueError, IndexError) as error:
        raise UserError(f"{path} lacks tensors of a {kind} ({error}): download it again") from error
    keymap, expected = row.keymap(config, layout), row.shapes(config)
    check(keymap, shapes, {path: leaf.shape for path, leaf in expected.items()})
    leaves = {}
    for name, source in keymap.items():
        kinds = {tensors[key].dtype for key in source.keys}
        if len(kinds) > 1:
            raise UserError(f"{path} stores the layers of {name} in several types: convert it to one first")

        shape = expected[name].shape
        part = functools.partial(
            source.part_of_ours, width=shape[-1], part=lambda name, index: tensors[name].part(index)
        )
        leaves[name] = Leaf(shape, kinds.pop(), source.stacked, part, source.layout.along)
    return Component(kind, config, leaves)


def _tensors(place: Place) -> Tensors:
    """The tensors of a place by their plain names."""
    if place.path.is_dir():
        return _published(_open_imported(place.path))
    every = open_tensors(place.path).items()
    return _plain_names({n.removeprefix(place.prefix): t for n, t in every if n.startswith(place.prefix)})


def _published(component: Component) -> Tensors:
    """The tensors that a component would be published as; each reads the layer that it is of."""
    keymap = KINDS[component.kind].keymap(component.config, EVERY)

    def tensor(path: str, layer: int, key: str) -> Tensor:
        leaf, source = component.leaves[path], keymap[path]
        shape = source.shapes(leaf.shape)[key]
        return Tensor(shape, leaf.dtype, lambda index: source.layer_of_theirs(layer, leaf.read(layer))[key][index])

    places = [(path, i) for path in component.leaves for i in range(keymap[path].layers)]
    return {key: tensor(path, i, key) for path, i in places for key in keymap[path].keys_of(i)}


def absent(found: Mapping[str, Place]) -> list[str]:
    """Components that are published together with some that were found, but are not there."""
    prefixes = {place.prefix for place in found.values()} - {""}
    together = [name for bundle in BUNDLES.values() if prefixes & set(bundle.values()) for name in bundle]
    return [name for name in together if name not in found]


def _bundled(path: Path) -> dict[str, Place]:
    """The components of a file that holds several, or nothing."""
    names = open_tensors(path)
    for bundle in BUNDLES.values():
        found = {part: prefix for part, prefix in bundle.items() if any(n.startswith(prefix) for n in names)}
        if found:
            strays = [n for n in names if not n.startswith(tuple(found.values()))]
            complain("tensors", unexpected=strays)
            return {part: Place(path, prefix) for part, prefix in found.items()}
    return {}


def import_component(component: Component, folder: Path, progress: Progress = lambda _: None) -> None:
    """Writes a component as an imported folder; a UserError for one that exists."""
    described = {"kind": component.kind, "config": configuration.to_dict(component.config)}
    with appearing(folder) as partial:
        for path, leaf in component.leaves.items():
            _write_leaf(partial / "params", path, leaf, progress)
        keys = {path: path.split("/") for path in component.leaves}
        entries = {
            str(tuple(parts)): {
                "key_metadata": [{"key": part, "key_type": 2} for part in parts],
                "value_metadata": {"value_type": "np.ndarray", "skip_deserialize": False},
            }
            for parts in keys.values()
        }
        tree = {"tree_metadata": entries, "use_ocdbt": False, "use_zarr3": False}
        (partial / "params" / "_METADATA").write_text(json.dumps(tree))
        (partial / DESCRIPTION).write_text(json.dumps(described, indent=1))


def export(component: Component, folder: Path, layout: str, progress: Progress = lambda _: None) -> None:
    """Writes a component as published; see `save`. A component that is published in one layout only has that."""
    row, _ = KINDS[component.kind], place(layout)
    layout = layout if layout in row.signature else next(iter(row.signature))
    with appearing(folder) as partial:
        _write_tensors(partial, row.stem[layout], {"": _of_layout(component, layout)}, progress)
        described = row.described(component.config, layout)
        if described is not None:
            (partial / "config.json").write_text(json.dumps(described, indent=1))


def export_bundle(parts: Mapping[str, Component], folder: Path, progress: Progress = lambda _: None) -> None:
    """Writes the components of a checkpoint that is published as one (DreamZero's) into one set of files.

    Args:
        parts: components by their names in `BUNDLES`, a "transformer" of one of its kinds among them.
        folder: a new folder.
        progress: told the bytes written.
    """
    network = parts["transformer"]
    bundle = BUNDLES[network.kind]
    complain("components", unexpected=parts.keys() - bundle.keys())
    with appearing(folder) as partial:
        prefixed = {bundle[name]: _of_layout(component, EVERY) for name, component in parts.items()}
        _write_tensors(partial, "model", prefixed, progress)
        described = KINDS[network.kind].described(network.config, EVERY)
        (partial / "config.json").write_text(json.dumps(described, indent=1))


def _of_layout(component: Component, layout: str) -> tuple[KeyMap, Component]:
    """A component's table for a layout, and the component without what that has no tensors for."""
    row = KINDS[component.kind]
    leaves = {path: leaf for path, leaf in component.leaves.items() if path not in row.left.get(layout, ())}
    return row.keymap(component.config, layout), dataclasses.replace(component, leaves=leaves)


def _write_tensors(folder: Path, stem: str, parts: Mapping[str, tuple[KeyMap, Component]], progress: Progress) -> None:
    """Writes components, each with its prefix, in shards of about `SHARD` bytes, and their index."""
    from safetensors.numpy import save_file

    pieces = [(prefix, shard) for prefix, part in parts.items() for shard in _shards(*part)]
    names = [f"{stem}.safetensors"]
    if len(pieces) > 1:
        names = [f"{stem}-{i + 1:05}-of-{len(pieces):05}.safetensors" for i in range(len(pieces))]
    index: dict[str, str] = {}
    for name, (prefix, shard) in zip(names, pieces, strict=True):
        keymap, component = parts[prefix]
        tensors: dict[str, np.ndarray] = {}
        for path, layer in shard:
            theirs = keymap[path].layer_of_theirs(layer, component.leaves[path].read(layer))
            tensors |= {prefix + key: tensor for key, tensor in theirs.items()}
        save_file(tensors, folder / name, metadata={"format": "pt"})
        index |= dict.fromkeys(tensors, name)
        progress(sum(tensor.nbytes for tensor in tensors.values()))
    if len(pieces) > 1:
        content = {"metadata": {"total_size": sum(part.bytes for _, part in parts.values())}, "weight_map": index}
        (folder / f"{stem}{INDEX}").write_text(json.dumps(content, indent=1))


@contextlib.contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """A hidden folder to write to, renamed to `folder` when all went well; of a failure nothing stays.

    Raises:
        UserError: `folder` exists already, or the disk is full.
    """
    if folder.exists():
        raise UserError(f"{folder} exists already: choose another name, or remove it first")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of an attempt that was killed
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.rename(folder)
    except Exception as error:
        if "No space left on device" in str(error):
            raise UserError(f"the disk is full while writing {folder}: free some space and try again") from error
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def choose(path: Path, component: str | None) -> Place:
    """The place of a component; a UserError lists those there are."""
    found = components(path)
    if component is None and len(found) == 1:
        return next(iter(found.values()))
    if component is None:
        raise UserError(f"{path} holds several components: name one of {', '.join(sorted(found))}")
    if component not in found and set(found) != {""}:
        raise UserError(f"{path} holds no component '{component}': it has {', '.join(sorted(found))}")
    return found[component] if component in found else found[""]


def _weights(folder: Path) -> list[Path]:
    """Files of weights: indices, and whatever is not a shard of one."""
    indices = sorted(folder.glob(f"*{INDEX}"))
    stems = tuple(file.name.removesuffix(INDEX) for file in indices)
    single = [file for file in sorted(folder.glob("*.safetensors")) if not file.name.startswith(stems or ("/",))]
    return indices + single + sorted(folder.glob("*.pth"))


def _plain_names(tensors: Tensors) -> Tensors:
    """Without a prefix that all names share."""
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in tensors):
            return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _without_repeats(row: Kind, tensors: Tensors) -> Tensors:
    """Without what the component does not use, and with every tensor under one name."""
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(row.unused or ("\0",))}
    for alias, name in row.aliases.items():
        if alias in kept and name in kept and not np.array_equal(kept[alias].read(), kept[name].read()):
            raise UserError(f"{alias} and {name} differ, but they are one tensor in this network")
        if alias in kept:
            kept[name] = kept.pop(alias)
    return kept


def _checked(component: Component) -> Component:
    """The component, if its parameters are those of its configuration."""
    expected = {path: leaf.shape for path, leaf in KINDS[component.kind].shapes(component.config).items()}
    keymap = KINDS[component.kind].keymap(component.config, EVERY)
    found = component.leaves
    if odd := expected.keys() ^ found.keys():
        raise UserError(f"the parameters do not fit this {component.kind}: {len(odd)} differ, first {min(odd)}")
    theirs = {key: shape for path, leaf in found.items() for key, shape in keymap[path].shapes(leaf.shape).items()}
    check(keymap, theirs, expected)
    return component


def _open_imported(folder: Path) -> Component:
    import tensorstore

    try:
        described = json.loads((folder / DESCRIPTION).read_text())
        row = KINDS[described["kind"]]
        config: Any = configuration.build(row.config, described["config"])
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder} is no imported component ({error}): import it again") from error
    keymap = row.keymap(config, EVERY)

    def leaf(path: str, stacked: bool) -> Leaf:
        try:
            array = tensorstore.open(_spec(folder / "params", path)).result()
        except (ValueError, KeyError) as error:
            raise UserError(f"{folder} lacks the parameter {path}: import it again") from error
        return Leaf(
            tuple(array.shape),
            np.dtype(array.dtype.numpy_dtype),
            stacked,
            lambda layer, index: (array[layer] if stacked else array)[index].read().result(),
            along=max(0, len(array.shape) - stacked - 1),  # its last axis, in which layers are cut into files
        )

    return _checked(Component(described["kind"], config, {p: leaf(p, s.stacked) for p, s in keymap.items()}))


def _write_leaf(params: Path, path: str, leaf: Leaf, progress: Progress) -> None:
    import tensorstore

    layer = leaf.shape[1:] if leaf.stacked else leaf.shape
    chunk = list(layer)
    while math.prod(chunk) > CHUNK and chunk[-1] > 1:
        chunk[-1] = -(-chunk[-1] // 2)
    spec = _spec(params, path) | {
        "create": True,
        "metadata": {
            "shape": list(leaf.shape),
            "chunks": [1, *chunk] if leaf.stacked else chunk,
            "dtype": tensorstore.dtype(leaf.dtype).to_json() if leaf.dtype.kind == "V" else leaf.dtype.str,
            "compressor": None,
            "fill_value": None,
            "filters": None,
            "order": "C",
            "dimension_separator": ".",
            "zarr_format": 2,
        },
    }
    array = tensorstore.open(spec).result()
    for i in range(leaf.shape[0] if leaf.stacked else 1):
        numbers = packed(leaf.read(i))
        (array[i] if leaf.stacked else array).write(numbers).result()
        progress(numbers.nbytes)


def _spec(params: Path, path: str) -> dict[str, Any]:
    """Where Orbax expects an array."""
    return {"driver": "zarr", "kvstore": {"driver": "file", "path": str((params / path.replace("/", ".")).resolve())}}


def _shards(keymap: Any, component: Component) -> list[list[tuple[str, int]]]:
    """Layers of leaves, in files of about `SHARD` bytes."""
    shards: list[list[tuple[str, int]]] = [[]]
    size = 0
    for path, leaf in component.leaves.items():
        each = leaf.bytes // keymap[path].layers
        for layer in range(keymap[path].layers):
            if shards[-1] and size + each > SHARD:
                shards.append([])
                size = 0
            shards[-1].append((path, layer))
            size += each
    return shards
