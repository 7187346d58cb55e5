"""Paths of parameters, and patterns that choose among them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any


def matches(path: str, patterns: Iterable[str]) -> bool:
    """Whether one of the regular expressions describes the end of the path, from the start of one of its names."""
    return any(re.search(f"(^|/)({pattern})$", path) for pattern in patterns)


def leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """What nested mappings hold by path, names joined by "/"; weights made of several arrays stay whole."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found |= leaves(value, f"{prefix}{name}/") if isinstance(value, Mapping) else {prefix + name: value}
    return found


def nest(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `leaves`."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *folders, name = path.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[name] = leaf
    return tree
