"""Meta-World's Sawyer as `wamjax data collect` films it: 20 Hz, two cameras side by side, absolute actions."""

from wamjax.data.canvas import Placement
from wamjax.data.embodiments import Embodiment, Field

EMBODIMENT = Embodiment(
    name="metaworld",
    tag="metaworld_sawyer",
    number=0,
    cameras=("corner2", "gripperPOV"),
    layout=(Placement(view=0, row=0, column=0), Placement(view=1, row=0, column=1)),
    state=(Field("observation/cartesian_position", 3), Field("observation/gripper_position", 1)),
    action=(Field("action", 4),),
    fps=20.0,
    prompt="{t}",
    video_stride=1,
)
