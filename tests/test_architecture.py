"""The house rules a program can check: arrows point downward, functions fit a screen, the public is documented."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import wamjax

PACKAGE = Path(wamjax.__file__).parent
ROOMS = (
    "nn",
    "flow",
    "networks",
    "data",
    "policies",
    "compute",
    "sharding",
    "training",
    "planning",
    "interop",
    "serving",
    "evaluation",
    "cli",
)
GROUND = ("errors", "config")
FILES = sorted(PACKAGE.rglob("*.py"))
LIGHT = ("nn", "flow", "networks", "policies")


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("wamjax."):
            names.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("wamjax.")}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_imports_only_from_rooms_above(path):
    here = room(path)
    if here not in ROOMS:
        assert imported_rooms(path) <= set(GROUND)
        return
    allowed = {*GROUND, *ROOMS[: ROOMS.index(here) + 1]}
    assert imported_rooms(path) <= allowed


def test_every_folder_is_a_known_room():
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == set(ROOMS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_and_functions_are_short_and_the_public_is_documented(path):
    source = path.read_text()
    assert source.count("\n") <= 600
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 80, node.name
            if not node.name.startswith("_") and node.col_offset == 0:
                assert ast.get_docstring(node), f"{node.name} has no docstring"


def test_models_import_without_data_video_or_simulation_libraries():
    blocked = ("grain", "av", "array_record", "mujoco", "metaworld", "orbax", "tensorstore", "matplotlib", "tokamax")
    modules = [
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        for path in FILES
        if room(path) in LIGHT and path.name != "__init__.py"
    ]
    assert len(modules) > 8
    code = f"import sys\nfor name in {blocked}: sys.modules[name] = None\nimport {', '.join(modules)}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
