"""Configuration: from nested mappings (``configs/*.py``, JSON) to frozen dataclasses, and back.

A configuration file defines ``get_config() -> ml_collections.ConfigDict``. The library never reads that
mapping directly: each room declares a frozen dataclass and `build` fills it, so that a misspelt key or a
wrong type is found before anything runs.
"""

import ast
import copy
import dataclasses
import difflib
import json
import runpy
import sys
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from wamjax.errors import UserError

T = TypeVar("T")


def load(path: str | Path, overrides: Iterable[str] = ()) -> Any:
    """Reads a configuration file and applies ``key=value`` overrides.

    Args:
      path: a Python file with ``get_config()``, or a JSON file (the ``config.json`` of a run).
      overrides: assignments such as ``"train.steps=100"``; see `override`.

    Returns:
      The ConfigDict (Python file) or the nested dict (JSON file).
    """
    path = Path(path)
    if not path.is_file():
        neighbours = [p.name for p in sorted(path.parent.glob(f"*{path.suffix or '.py'}"))]
        hint = _nearest(path.name, neighbours) or "give the path of a file such as configs/metaworld_joint.py"
        raise UserError(f"no configuration file {path}: {hint}")
    if path.suffix == ".json":
        try:
            config = json.loads(path.read_text())
        except ValueError as error:
            raise UserError(f"{path} is not valid JSON ({error}): repair it or write it again") from error
    else:
        config = _run_python(path)
    return override(config, overrides)


def build(cls: type[T], mapping: Any, where: str = "") -> T:
    """Builds the frozen dataclass `cls` from a nested mapping.

    Args:
      cls: a dataclass whose fields are bool, int, float, str, Literals, other dataclasses, or tuples, dicts
        and optionals of these.
      mapping: a dict or ConfigDict; lists become tuples, an int is accepted where a float is expected.
      where: dotted path of the mapping inside the whole configuration, for the error message.

    Raises:
      UserError: unknown key (with the nearest known one), missing key, wrong type, or a ValueError of the
        dataclass's ``__post_init__``.
    """
    if isinstance(mapping, cls):
        return mapping
    if not _is_mapping(mapping):
        raise UserError(f"configuration '{where or cls.__name__}' must be a section of keys, not {mapping!r}")
    fields = {f.name: f for f in dataclasses.fields(typing.cast(Any, cls)) if f.init}
    for key in mapping:
        if key not in fields:
            raise _unknown(_join(where, str(key)), [_join(where, name) for name in fields])
    missing = [n for n, f in fields.items() if n not in mapping and _is_required(f)]
    if missing:
        raise UserError(f"configuration key '{_join(where, missing[0])}' is missing: {cls.__name__} needs it")
    hints = typing.get_type_hints(cls)
    values = {key: _convert(hints[key], mapping[key], _join(where, key)) for key in mapping}
    try:
        return cls(**values)
    except ValueError as error:
        raise UserError(f"configuration '{where or cls.__name__}': {error}") from error


def to_dict(config: Any) -> Any:
    """The plain, JSON-able form of a dataclass or mapping: dicts, lists, numbers, text, None."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: to_dict(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if _is_mapping(config):
        return {str(key): to_dict(value) for key, value in config.items()}
    if isinstance(config, (tuple, list)):
        return [to_dict(value) for value in config]
    if config is None or isinstance(config, (bool, int, float, str)):
        return config
    if isinstance(config, Path):
        return str(config)
    raise TypeError(f"a configuration cannot hold {config!r} ({type(config).__name__})")


def override(mapping: T, assignments: Iterable[str]) -> T:
    """A copy of `mapping` with ``"section.key=value"`` assignments applied.

    Values are Python literals (``3``, ``1e-3``, ``True``, ``('corner2',)``); anything else is taken as text.
    Only keys that the mapping already has can be set. Types are checked later, by `build`.
    """
    result: Any = copy.deepcopy(mapping)
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals or not path.strip():
            raise UserError(f"cannot read the override '{assignment}': write it as section.key=value")
        _assign(result, path.strip(), _literal(text.strip()))
    return result


def _run_python(path: Path) -> Any:
    """The result of a file's ``get_config()``; the file may import its neighbours by name (a shared base)."""
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        namespace = runpy.run_path(str(path))
    finally:
        sys.path.pop(0)
    if "get_config" not in namespace:
        raise UserError(f"{path} is not a configuration file: it defines no get_config() -> ConfigDict")
    return namespace["get_config"]()


def _assign(root: Any, path: str, value: Any) -> None:
    """Sets the existing leaf `path` (dotted) of the nested mapping `root`, in place."""
    section = root
    *parents, leaf = path.split(".")
    for key in parents:
        if not _is_mapping(section) or key not in section:
            raise _unknown(path, _leaves(root))
        section = section[key]
    if not _is_mapping(section) or leaf not in section:
        raise _unknown(path, _leaves(root))
    if _is_mapping(section[leaf]) and not _is_mapping(value):
        example = _join(path, next(iter(section[leaf]), "key"))
        raise UserError(f"configuration '{path}' is a section: set one of its keys, such as {example}=...")
    # A ConfigDict guards types by the old value; `build` knows the declared ones.
    if hasattr(section, "ignore_type"):
        with section.ignore_type():
            section[leaf] = value
    else:
        section[leaf] = value


def _convert(kind: Any, value: Any, where: str) -> Any:
    """`value` as the annotated type `kind`, or a UserError that says what was expected at `where`."""
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return build(typing.cast(type, kind), value, where)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        return _convert_union(arguments, value, where)
    if origin is Literal:
        if value in arguments:
            return value
        choices = ", ".join(map(repr, arguments))
        raise UserError(f"configuration '{where}' must be one of {choices}, not {value!r}")
    if origin in (tuple, list, Sequence) or kind in (tuple, list):
        return _convert_sequence(arguments, value, where)
    if origin in (dict, Mapping) or kind is dict:
        if not _is_mapping(value):
            raise _wrong_type(where, "a section of keys", value)
        inner = arguments[1] if arguments else Any
        return {key: _convert(inner, item, _join(where, str(key))) for key, item in value.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, bool) and kind in (int, float):
        raise _wrong_type(where, _NAMES[kind], value)
    if isinstance(value, kind):
        return value
    raise _wrong_type(where, _NAMES.get(kind, getattr(kind, "__name__", str(kind))), value)


def _convert_union(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    """The first alternative that accepts `value`, exact types first (1 stays an int in ``int | float``)."""
    if value is None and type(None) in kinds:
        return None
    candidates = [kind for kind in kinds if kind is not type(None)]
    if _is_mapping(value) and "kind" in value:
        return _convert(_named(candidates, value["kind"], where), value, where)
    candidates.sort(key=lambda kind: kind is not type(value))
    for kind in candidates[:-1]:
        try:
            return _convert(kind, value, where)
        except UserError:
            continue
    return _convert(candidates[-1], value, where)


def _named(candidates: Sequence[Any], kind: Any, where: str) -> Any:
    """The dataclass whose `kind` field is a Literal of this `kind`."""
    known: dict[Any, Any] = {}
    for candidate in filter(dataclasses.is_dataclass, candidates):
        names = typing.get_args(typing.get_type_hints(candidate).get("kind"))
        known |= dict.fromkeys(names, candidate)
    if kind not in known:
        raise UserError(f"configuration '{where}.kind' must be one of {', '.join(map(repr, known))}, not {kind!r}")
    return known[kind]


def _convert_sequence(arguments: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    """A tuple of converted items; ``tuple[X, ...]`` has any length, ``tuple[X, Y]`` exactly two."""
    if not isinstance(value, (tuple, list)):
        raise _wrong_type(where, "a tuple", value)
    if len(arguments) == 1 or arguments[1:] == (Ellipsis,):
        kinds = [arguments[0]] * len(value)
    else:
        kinds = list(arguments) or [Any] * len(value)
    if len(kinds) != len(value):
        raise UserError(f"configuration '{where}' must have {len(kinds)} values, not {len(value)}: {value!r}")
    pairs = enumerate(zip(kinds, value, strict=True))
    return tuple(_convert(kind, item, f"{where}[{i}]") for i, (kind, item) in pairs)


_NAMES = {bool: "True or False", int: "a whole number", float: "a number", str: "text"}


def _wrong_type(where: str, expected: str, value: Any) -> UserError:
    return UserError(f"configuration '{where}' must be {expected}, not {value!r} ({type(value).__name__})")


def _unknown(path: str, known: Sequence[str]) -> UserError:
    hint = _nearest(path, known) or f"known keys: {', '.join(known)}"
    return UserError(f"unknown configuration key '{path}': {hint}")


def _nearest(name: str, known: Sequence[str]) -> str:
    """``did you mean 'x'?`` for the known name closest to `name`, or an empty string."""
    match = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean '{match[0]}'?" if match else ""


def _leaves(mapping: Any, prefix: str = "") -> list[str]:
    """Dotted paths of every leaf of a nested mapping."""
    paths: list[str] = []
    for key, value in mapping.items():
        path = _join(prefix, str(key))
        paths += _leaves(value, path) if _is_mapping(value) else [path]
    return paths


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _is_mapping(value: Any) -> bool:
    """Dicts and ConfigDicts (which are not registered as Mappings)."""
    return isinstance(value, Mapping) or (hasattr(value, "items") and hasattr(value, "keys"))


def _is_required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def flat(tree: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """The values of nested mappings by their paths, `train.steps`; lists are values."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flat(value, f"{where}{key}.") if isinstance(value, Mapping) else {f"{where}{key}": value}
    return found
