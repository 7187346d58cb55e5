"""LeRobot's side of loader_speed.sh: writes the dataset, and reads clips of it.

    python loader_speed_lerobot.py write DATASET CLIPS
    python loader_speed_lerobot.py read DATASET BACKEND CLIPS     # prints processor and wall seconds of that many clips

A clip is 33 pictures of each of three cameras, every third of 15 per second, as `LeRobotDataset` with
`delta_timestamps` returns it through PyTorch's DataLoader.
"""

import sys
import time
from pathlib import Path

import numpy as np
import torch

if torch.version.cuda is None:  # torchvision's own operators want CUDA; importing it only needs them declared
    _OPERATORS = torch.library.Library("torchvision", "DEF")
    for _name in ("nms", "qnms"):
        _OPERATORS.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import av
from lerobot.datasets.lerobot_dataset import LeRobotDataset

FPS, LENGTH, EPISODES, STRIDE, FRAMES, BATCH = 15, 240, 20, 3, 33, 4


def write(folder: Path, clips: Path) -> None:
    """Episodes of 16 seconds, cut out of the clips at different places, forwards and backwards."""
    sources = {}
    for file in sorted(clips.glob("*.mp4")):
        with av.open(str(file)) as container:
            sources[file.stem] = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    features = {
        f"observation.images.{name}": {
            "dtype": "video",
            "shape": (180, 320, 3),
            "names": ["height", "width", "channels"],
        }
        for name in sources
    }
    features |= {name: {"dtype": "float32", "shape": (8,), "names": None} for name in ("observation.state", "action")}
    dataset = LeRobotDataset.create("oracle/speed", fps=FPS, features=features, root=folder, robot_type="toy")
    rng = np.random.default_rng(0)
    for episode in range(EPISODES):
        for step in range(LENGTH):
            row = {name: rng.normal(size=8).astype(np.float32) for name in ("observation.state", "action")}
            for name, frames in sources.items():
                both = frames + frames[::-1]
                row[f"observation.images.{name}"] = both[(17 * episode + step) % len(both)]
            dataset.add_frame(row | {"task": "move"})
        dataset.save_episode()
    dataset.finalize()


def read(folder: Path, backend: str, clips: int) -> None:
    """Random clips that lie in their episodes whole."""
    cameras = [
        f"observation.images.{p.name.removeprefix('observation.images.')}" for p in (folder / "videos").iterdir()
    ]
    times = [STRIDE * i / FPS for i in range(FRAMES)]
    torch.set_num_threads(1)
    options = {"delta_timestamps": dict.fromkeys(cameras, times), "video_backend": backend}
    dataset = LeRobotDataset("oracle/speed", root=folder, **options)
    rng = np.random.default_rng(clips)
    first = rng.integers(0, LENGTH - STRIDE * (FRAMES - 1), clips + BATCH)
    order = (rng.integers(0, EPISODES, clips + BATCH) * LENGTH + first).tolist()
    loader = torch.utils.data.DataLoader(dataset, batch_size=BATCH, sampler=order, num_workers=0)
    for number, batch in enumerate(loader):
        assert batch[cameras[0]].shape == (BATCH, FRAMES, 3, 180, 320)
        if number == 0:  # after which everything is loaded
            begun = time.process_time(), time.perf_counter()
    print(time.process_time() - begun[0], time.perf_counter() - begun[1])


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        read(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
