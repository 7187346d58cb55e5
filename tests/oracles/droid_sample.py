"""Camera clips of a DROID episode through store, batch and canvas, and a contact sheet of what comes out:

    python tests/oracles/droid_sample.py FOLDER docs/droid_sample.png

FOLDER holds `exterior_image_1_left.mp4`, `exterior_image_2_left.mp4` and `wrist_image_left.mp4`. The sheet in docs/ was
made of the clips in debug_image/ of dreamzero0/dreamzero (Apache-2.0), frames of the DROID dataset (CC BY 4.0).
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from wamjax.data.canvas import CanvasConfig, canvas
from wamjax.data.chunks import ChunkConfig, chunk_batches
from wamjax.data.embodiments import load
from wamjax.data.episode import Episode
from wamjax.data.storage import Place
from wamjax.data.store import EpisodeStore, finish, write_shard
from wamjax.data.video_files import read_video


def batch_of(folder: Path, store: Path, batch_size: int) -> dict[str, np.ndarray]:
    """Training samples of DreamZero, two chunks each, of an episode that has cameras only."""
    robot = load("droid")
    videos = {camera: read_video(Place.of(folder / f"{camera}.mp4")) for camera in robot.cameras}
    write_shard(store, "train", "a", [Episode({}, videos, metadata={"fps": robot.fps})])
    finish(store)
    config = ChunkConfig.of(robot, max_chunks=2)
    options = {"batch_size": batch_size, "seed": 0, "tokenize": lambda text: np.zeros(1), "threads": 1}
    return next(chunk_batches(EpisodeStore(store), robot, config, **options))


def canvases(batch: dict[str, np.ndarray], config: CanvasConfig) -> np.ndarray:
    """Its pictures as the model sees them, uint8 (b, t, y, x, 3)."""
    return np.asarray(canvas(batch["frames"], load("droid").layout, config))


def main(folder: Path, out: Path) -> None:
    with tempfile.TemporaryDirectory() as store:
        shown = canvases(batch_of(folder, Path(store), batch_size=3), CanvasConfig())
    small = shown[:, ::4, ::3, ::3]  # every fourth frame (0.8 s), a third of the size
    rows = [np.concatenate([np.pad(picture, ((2, 2), (2, 2), (0, 0))) for picture in row], axis=1) for row in small]
    sheet = Image.fromarray(np.concatenate(rows)).quantize(96, dither=Image.Dither.NONE)
    sheet.save(out, optimize=True)
    print(f"{out}: {sheet.size[0]}x{sheet.size[1]}, {out.stat().st_size} bytes, of frames {shown.shape}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
