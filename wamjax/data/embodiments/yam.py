"""YAM: two arms with a gripper each, a camera above and one on each arm, 30 Hz."""

from wamjax.data.canvas import Placement
from wamjax.data.embodiments import Embodiment, Field

_PARTS = {"left_joint_pos": 6, "left_gripper_pos": 1, "right_joint_pos": 6, "right_gripper_pos": 1}

EMBODIMENT = Embodiment(
    name="yam",
    tag="yam",
    number=32,
    cameras=("top_camera-images-rgb", "left_camera-images-rgb", "right_camera-images-rgb"),
    layout=(Placement(0, 0, 0), Placement(1, 1, 0), Placement(2, 0, 1)),
    state=tuple(Field(f"observation/{key}", size) for key, size in _PARTS.items()),
    action=tuple(Field(f"action_dict/{key}", size, relative=True) for key, size in _PARTS.items()),
    fps=30,
    prompt="Task: {t}. Left, two robot arms from above, over the left arm's camera; right, the right arm's. Now: {t}",
    prompt_sha256="ec1049668612783b48dda6e8a40073c90b5a01abf001a777b01245ecd926eae4",
)
