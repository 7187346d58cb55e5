"""Robots: the facts of the released configurations, and that one file adds another."""

from dataclasses import replace
from pathlib import Path

import pytest

from wamjax.data.canvas import Placement
from wamjax.data.embodiments import Embodiment, Field, load, names
from wamjax.errors import UserError


def test_every_file_is_a_robot_of_its_name() -> None:
    assert {"agibot", "droid", "yam"} <= set(names())
    assert [load(name).name for name in names()] == names()
    numbers = {load(name).tag: load(name).number for name in ("agibot", "droid", "yam")}
    assert numbers == {"oxe_droid": 17, "agibot": 26, "yam": 32}


def test_droid() -> None:
    robot = load("droid")
    assert robot.cameras == ("exterior_image_1_left", "exterior_image_2_left", "wrist_image_left")
    assert robot.layout == (Placement(2, 0, 0, 2), Placement(0, 1, 0), Placement(1, 1, 1))
    assert [(f.name, f.size) for f in robot.state] == [
        ("observation/joint_position", 7),
        ("observation/gripper_position", 1),
    ]
    assert [(f.name, f.size, f.relative) for f in robot.action] == [
        ("action_dict/joint_position", 7, True),
        ("action_dict/gripper_position", 1, False),
    ]
    assert (robot.state_size, robot.action_size, robot.fps, robot.actions_per_chunk) == (8, 8, 15, 24)


def test_agibot_and_yam() -> None:
    agibot, yam = load("agibot"), load("yam")
    assert (agibot.state_size, agibot.action_size, agibot.fps) == (20, 22, 30)
    assert [f.key for f in agibot.action if not f.relative] == ["robot_velocity"]
    assert (yam.state_size, yam.action_size, yam.fps) == (14, 14, 30)
    assert all(f.relative for f in yam.action)
    for robot in (agibot, yam):
        assert robot.layout == (Placement(0, 0, 0), Placement(1, 1, 0), Placement(2, 0, 1))
        assert (robot.video_stride, robot.frames_per_chunk, robot.actions_per_chunk) == (3, 8, 24)


FILE = """
from wamjax.data.canvas import Placement
from wamjax.data.embodiments import Embodiment, Field

EMBODIMENT = Embodiment(
    name="mine", tag="mine", number=0, cameras=("front",), layout=(Placement(0, 0, 0),),
    state=(Field("observation/arm", 6),), action=(Field("action_dict/arm", 6, relative=True),),
    fps=20, prompt="A robot: {t}",
)
"""


def test_one_file_adds_a_robot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "my_robot.py"
    path.write_text(FILE)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "arm.py").write_text(FILE)
    for robot in (load(str(path)), load("my_package.arm")):
        assert (robot.name, robot.reference, robot.prompt_sha256) == ("mine", (0, 1, 2, 3, 4, 5), None)


def test_the_documented_file_is_a_robot(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs/embodiments.md").read_text()
    path = tmp_path / "my_robot.py"
    path.write_text(page.split("```python\n")[1].split("```")[0])
    robot = load(str(path))
    assert (robot.name, robot.action_size, robot.actions_per_chunk) == ("my_robot", 7, 24)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("drod", "choose agibot, droid"),
        ("", "choose agibot, droid"),
        ("nowhere.robot", "nowhere"),
        (".relative", "no embodiment"),
        ("..", "no embodiment"),
        ("missing/robot.py", "no file missing/robot.py"),
        ("json.decoder", "defines no EMBODIMENT"),
    ],
)
def test_no_such_robot(reference: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        load(reference)
    assert "\n" not in str(error.value)


def test_a_file_without_a_robot(tmp_path: Path) -> None:
    (tmp_path / "empty.py").write_text("EMBODIMENT = 3\n")
    with pytest.raises(UserError, match="defines no EMBODIMENT"):
        load(str(tmp_path / "empty.py"))


WRONG = [
    ({"state": (Field("a/x", 1), Field("b/x", 2))}, "different last names"),
    ({"state": (Field("observation/joint_position", 0),)}, "sizes of at least 1"),
    ({"action": (Field("action_dict/joint_position", 6, relative=True),)}, "no state 'joint_position' has its size"),
    ({"action": (Field("action_dict/velocity", 2, relative=True),)}, "no state 'velocity'"),
    ({"state": (Field("observation/joint_position", 7, relative=True),)}, "only actions can be relative"),
    ({"cameras": ("front",)}, "layout shows views"),
    ({"cameras": (), "layout": ()}, "layout shows views"),
    ({"fps": 0}, "positive"),
    ({"video_stride": 0}, "positive"),
    ({"prompt": "no place"}, "placeholder"),
]


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_wrong_robots(change: dict, message: str) -> None:
    robot: Embodiment = load("droid")
    with pytest.raises(UserError, match=message) as error:
        replace(robot, **change)
    assert "\n" not in str(error.value)
