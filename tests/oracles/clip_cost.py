"""What a short clip costs to decode, by the distance between key frames:

    python tests/oracles/clip_cost.py VIDEO.mp4

Prints bytes per frame and milliseconds of processor time for 33 pictures in a row, and for 33 of every third one.
"""

import sys
import time
from pathlib import Path

import numpy as np

from wamjax.data.storage import Place
from wamjax.data.video import decode, encode
from wamjax.data.video_files import frame_rate, read_video

CLIPS = 30


def main(path: Path) -> None:
    source = read_video(Place.of(path))
    frames, fps = decode(source), frame_rate(source)
    starts = np.random.default_rng(0).integers(len(frames) - 97, size=CLIPS)
    for gop in (1, 2, 5, 15, 30, 60):
        video = encode(frames, fps, gop=gop)
        costs = []
        for stride in (1, 3):
            begun = time.process_time()
            for start in starts:
                decode(video, start + stride * np.arange(33))
            costs.append((time.process_time() - begun) / CLIPS * 1e3)
        print(f"gop {gop:3d}: {len(video.data) / len(frames):7.0f} B/frame {costs[0]:6.1f} ms {costs[1]:6.1f} ms")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
