"""AgiBot G1: two arms on a mobile base with a head camera and two hand cameras, 30 Hz."""

from wamjax.data.canvas import Placement
from wamjax.data.embodiments import Embodiment, Field

_PARTS = {
    "left_arm_joint_position": 7,
    "right_arm_joint_position": 7,
    "left_effector_position": 1,
    "right_effector_position": 1,
    "head_position": 2,
    "waist_position": 2,
}

EMBODIMENT = Embodiment(
    name="agibot",
    tag="agibot",
    number=26,
    cameras=("top_head", "hand_left", "hand_right"),
    layout=(Placement(0, 0, 0), Placement(1, 1, 0), Placement(2, 0, 1)),
    state=tuple(Field(f"observation/{key}", size) for key, size in _PARTS.items()),
    action=(
        *(Field(f"action_dict/{key}", size, relative=True) for key, size in _PARTS.items()),
        Field("action_dict/robot_velocity", 2),
    ),
    fps=30,
    prompt="Task: {t}. Left, a two-armed robot's head camera above its left hand's; right, its right hand's. Now: {t}",
    prompt_sha256="d7ee36ff0a056c8d4008d36bc0b7f85226d9772df11d59ea3028edc56f9205fa",
    annotations=("language.action_text",),
)
