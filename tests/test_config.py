"""Configurations: building, overriding, and the mistakes people make in them."""

import dataclasses
import json
from pathlib import Path
from typing import Literal

import pytest
from ml_collections import ConfigDict

from wamjax import config
from wamjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Optimizer:
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.99)
    clip: float | None = 1.0


@dataclasses.dataclass(frozen=True)
class Train:
    steps: int
    cameras: tuple[str, ...] = ("corner2",)
    images: Literal["true", "zero"] = "true"
    ema: bool = True
    optimizer: Optimizer = Optimizer()
    weights: dict[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be positive, not {self.steps}")


@dataclasses.dataclass(frozen=True)
class Experiment:
    name: str
    train: Train


def experiment() -> dict:
    return {"name": "joint", "train": {"steps": 10, "cameras": ["a", "b"], "optimizer": {"betas": [1, 0.5]}}}


@pytest.mark.parametrize("kind", [dict, ConfigDict])
def test_build_fills_nested_dataclasses(kind: type) -> None:
    built = config.build(Experiment, kind(experiment()))
    assert built == Experiment("joint", Train(10, ("a", "b"), optimizer=Optimizer(betas=(1.0, 0.5))))
    assert isinstance(built.train.optimizer.betas[0], float)


def test_to_dict_is_json_and_builds_back() -> None:
    built = config.build(Experiment, experiment())
    plain = config.to_dict(built)
    assert json.loads(json.dumps(plain)) == plain
    assert config.build(Experiment, plain) == built


def test_to_dict_refuses_what_json_cannot_hold() -> None:
    with pytest.raises(TypeError, match="object"):
        config.to_dict({"key": object()})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nam": "x"}, "unknown configuration key 'nam': did you mean 'name'?"),
        (
            {"train": {"steps": 1, "optimizer": {"learning_rat": 1}}},
            "unknown configuration key 'train.optimizer.learning_rat': did you mean 'train.optimizer.learning_rate'?",
        ),
        ({"train": {}}, "configuration key 'train.steps' is missing: Train needs it"),
        ({"train": 3}, "configuration 'train' must be a section of keys, not 3"),
        ({"train": {"steps": 1.5}}, "configuration 'train.steps' must be a whole number, not 1.5 (float)"),
        ({"train": {"steps": True}}, "configuration 'train.steps' must be a whole number, not True (bool)"),
        ({"train": {"steps": 0}}, "configuration 'train': steps must be positive, not 0"),
        ({"train": {"steps": 1, "ema": 1}}, "configuration 'train.ema' must be True or False, not 1 (int)"),
        ({"train": {"steps": 1, "cameras": 1}}, "configuration 'train.cameras' must be a tuple, not 1 (int)"),
        (
            {"train": {"steps": 1, "cameras": [1]}},
            "configuration 'train.cameras[0]' must be text, not 1 (int)",
        ),
        (
            {"train": {"steps": 1, "images": "zeros"}},
            "configuration 'train.images' must be one of 'true', 'zero', not 'zeros'",
        ),
        (
            {"train": {"steps": 1, "optimizer": {"betas": [1.0]}}},
            "configuration 'train.optimizer.betas' must have 2 values, not 1: [1.0]",
        ),
        (
            {"train": {"steps": 1, "weights": {"video": "big"}}},
            "configuration 'train.weights.video' must be a number, not 'big' (str)",
        ),
    ],
)
def test_build_says_what_is_wrong(change: dict, message: str) -> None:
    with pytest.raises(UserError) as error:
        config.build(Experiment, experiment() | change)
    assert str(error.value) == message


@pytest.mark.parametrize("kind", [dict, ConfigDict])
def test_override_sets_leaves_of_a_copy(kind: type) -> None:
    original = kind(experiment())
    changes = ["train.steps=20", "name=new-name", "train.cameras=('c',)", "train.optimizer.betas=[0.5, 1e-1]"]
    changed = config.override(original, changes)
    built = config.build(Experiment, changed)
    assert built == Experiment("new-name", Train(20, ("c",), optimizer=Optimizer(betas=(0.5, 0.1))))
    assert original["train"]["steps"] == 10
    assert type(changed) is kind


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("train.step=3", "unknown configuration key 'train.step': did you mean 'train.steps'?"),
        ("steps=3", "unknown configuration key 'steps': did you mean 'train.steps'?"),
        ("train.steps.more=3", "unknown configuration key 'train.steps.more': did you mean 'train.steps'?"),
        ("train.steps", "cannot read the override 'train.steps': write it as section.key=value"),
        ("=3", "cannot read the override '=3': write it as section.key=value"),
        ("train=3", "configuration 'train' is a section: set one of its keys, such as train.steps=..."),
    ],
)
def test_override_says_what_is_wrong(assignment: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        config.override(experiment(), [assignment])
    assert str(error.value) == message


def test_unknown_key_unlike_any_other_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"unknown configuration key 'zzz': known keys: name, train$"):
        config.build(Experiment, experiment() | {"zzz": 1})


def test_optional_takes_none_and_a_number() -> None:
    assert config.build(Optimizer, {"clip": None}).clip is None
    assert config.build(Optimizer, {"clip": 2}).clip == 2.0


def test_load_reads_python_and_json_with_overrides(tmp_path: Path) -> None:
    (tmp_path / "shared_base.py").write_text(f"BASE = {experiment()!r}")
    source = "from ml_collections import ConfigDict\nfrom shared_base import BASE\n"
    (tmp_path / "small.py").write_text(source + "def get_config():\n    return ConfigDict(BASE)\n")
    (tmp_path / "config.json").write_text(json.dumps(experiment()))
    for name in ("small.py", "config.json"):
        built = config.build(Experiment, config.load(tmp_path / name, ["train.steps=7"]))
        assert built.train.steps == 7


def test_load_says_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "metaworld_joint.py").write_text("x = 1")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"no configuration file .*: did you mean 'metaworld_joint.py'\?"):
        config.load(tmp_path / "metaworld_jiont.py")
    with pytest.raises(UserError, match="it defines no get_config"):
        config.load(tmp_path / "metaworld_joint.py")
    with pytest.raises(UserError, match="is not valid JSON"):
        config.load(tmp_path / "config.json")
