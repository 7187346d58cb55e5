"""Small datasets written by LeRobot itself, each beside what LeRobot returns for them; run by lerobot.sh.

The frozen samples of tests/data/samples are copies of its output.
"""

import shutil
import sys
from pathlib import Path

import numpy as np
import torch

# torchvision's own operators want CUDA; importing it only needs them declared.
_OPERATORS = torch.library.Library("torchvision", "DEF")
for _name in ("nms", "qnms"):
    _OPERATORS.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from lerobot.datasets.lerobot_dataset import LeRobotDataset  # noqa: E402

LENGTHS = (7, 5, 9)
SIZE = (32, 48)
FEATURES = {
    "observation.state": {"dtype": "float32", "shape": (3,), "names": ["x", "y", "z"]},
    "action": {"dtype": "float32", "shape": (2,), "names": None},
    "next.success": {"dtype": "bool", "shape": (1,), "names": None},
    "observation.images.front": {"dtype": "video", "shape": (*SIZE, 3), "names": ["height", "width", "channels"]},
    "observation.images.hand": {"dtype": "image", "shape": (*SIZE, 3), "names": ["height", "width", "channels"]},
}


def frame(episode: int, step: int) -> dict[str, np.ndarray]:
    """One step: noise, and pictures in which a bar moves."""
    rng = np.random.default_rng((episode, step))
    pictures = np.full((2, *SIZE, 3), 40 * episode + 20, np.uint8)
    pictures[:, :, 4 * step : 4 * step + 8] = rng.integers(0, 256, 3, np.uint8)
    return {
        "observation.state": rng.normal(size=3).astype(np.float32),
        "action": rng.normal(size=2).astype(np.float32),
        "next.success": np.array([step == LENGTHS[episode] - 1]),
        "observation.images.front": pictures[0],
        "observation.images.hand": pictures[1],
    }


def write(folder: Path, version: int) -> None:
    """A dataset of three episodes; the task of the second changes."""
    shutil.rmtree(folder, ignore_errors=True)
    dataset = LeRobotDataset.create("oracle/small", fps=10, features=FEATURES, root=folder, robot_type="toy")
    for episode, length in enumerate(LENGTHS):
        for step in range(length):
            task = f"task {episode}" if episode != 1 or step < 2 else "another task"
            if version == 21:
                dataset.add_frame(frame(episode, step), task=task)
            else:
                dataset.add_frame(frame(episode, step) | {"task": task})
        dataset.save_episode()
    if version == 30:
        dataset.finalize()


def read(folder: Path, out: Path) -> None:
    """Every value and frame that LeRobot returns, in the order of the dataset."""
    dataset = LeRobotDataset("oracle/small", root=folder, video_backend="torchcodec")
    rows = [dataset[i] for i in range(len(dataset))]
    arrays = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        if isinstance(values[0], str):
            arrays[name] = np.array(values)
        else:
            array = np.stack([np.asarray(value) for value in values])
            is_picture = "images" in name
            arrays[name] = np.round(np.moveaxis(array, 1, -1) * 255).astype(np.uint8) if is_picture else array
    np.savez_compressed(out, **arrays)


def convert(folder: Path, source: Path) -> None:
    """The dataset of v2.1 by LeRobot's own converter, whose v3.0 differs from that of its writer."""
    from lerobot.datasets.v30.convert_dataset_v21_to_v30 import convert_dataset

    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder)
    convert_dataset(folder.name, root=folder.parent, push_to_hub=False)
    shutil.rmtree(folder.with_name(f"{folder.name}_old"), ignore_errors=True)


if __name__ == "__main__":
    verb, target = sys.argv[1], Path(sys.argv[2])
    if verb == "read":
        read(target, Path(sys.argv[3]))
    elif verb == "convert":
        convert(target, Path(sys.argv[3]))
    else:
        write(target, int(verb.removeprefix("write")))
        read(target, target.with_suffix(".npz"))
