"""DROID: a Franka arm with one wrist camera and two cameras around it, 15 Hz."""

from wamjax.data.canvas import Placement
from wamjax.data.embodiments import Embodiment, Field

EMBODIMENT = Embodiment(
    name="droid",
    tag="oxe_droid",
    number=17,
    cameras=("exterior_image_1_left", "exterior_image_2_left", "wrist_image_left"),
    layout=(Placement(2, 0, 0, columns=2), Placement(0, 1, 0), Placement(1, 1, 1)),
    state=(Field("observation/joint_position", 7), Field("observation/gripper_position", 1)),
    action=(Field("action_dict/joint_position", 7, relative=True), Field("action_dict/gripper_position", 1)),
    fps=15,
    prompt="Task: {t}. Above, the wrist camera of one robot arm; below, the scene from its left and right. Now: {t}",
    prompt_sha256="201917bc10205e96ba0cd86a560c098d64290a6e8f2daf875929a2aa64552a66",
    annotations=(
        "language.language_instruction",
        "language.language_instruction_2",
        "language.language_instruction_3",
    ),
)
