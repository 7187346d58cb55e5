"""Our side of loader_speed.sh, which also starts LeRobot's; prints the table of docs/data.md.

    python loader_speed.py FOLDER ROUNDS     # FOLDER: of LeRobot's environments and of the datasets, `speed`

All rows take turns on one core; processor seconds are those of whole processes after their first batch.
"""

import io
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np

from wamjax.data.opened import open_dataset
from wamjax.data.pipeline import ClipConfig, batches
from wamjax.data.samples import Batch
from wamjax.data.video import _groups, _runs

FPS, STRIDE, FRAMES, BATCH, CLIPS = 15, 3, 33, 4, 40
HERE = Path(__file__).parent


def theirs(environment: Path, folder: Path, backend: str) -> float:
    """Clips per processor second of LeRobot's loader; none where the backend does not work here."""
    command = [environment / "bin/python", HERE / "loader_speed_lerobot.py", "read", folder, backend, CLIPS]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"LeRobot, {backend}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return float("nan")
    return CLIPS / float(done.stdout.split()[-2])


def ours(folder: Path, change: Callable[[Batch], object] = lambda batch: None) -> float:
    """Clips per processor second of our loader, without a cache of decoded episodes."""
    store = open_dataset(folder)
    clip = ClipConfig(tuple(store.cameras), tuple(STRIDE * np.arange(FRAMES)), 16, "action", ("observation/state",))
    options = {"tokenize": lambda text: np.zeros(1), "cache_bytes": 0, "threads": 1}
    loader = batches(store, clip, batch_size=BATCH, seed=CLIPS, **options)
    next(loader)
    begun = time.process_time()
    for _ in range(CLIPS // BATCH):
        change(next(loader))
    spent = time.process_time() - begun
    loader.close()
    return CLIPS / spent


def floor(folder: Path) -> float:
    """Clips per processor second of the codec alone: packets in memory, no colours, nothing kept."""
    store, rng, spent = open_dataset(folder), np.random.default_rng(0), 0.0
    episodes = [store[i] for i in range(4)]
    for number in range(CLIPS):
        episode = episodes[number % 4]
        needed = set((rng.integers(len(episode) - STRIDE * (FRAMES - 1)) + STRIDE * np.arange(FRAMES)).tolist())
        for video in episode.videos.values():
            with av.open(io.BytesIO(video.data)) as container:
                stream = container.streams.video[0]
                decoder, rate = stream.codec_context, stream.time_base * stream.average_rate
                decoder.thread_count = 1
                runs = _runs(_groups(container, stream, rate, needed), needed)
                begun = time.process_time()
                for run in runs:
                    for packet in (*run, None):
                        decoder.decode(packet)
                    decoder.flush_buffers()
                spent += time.process_time() - begun
    return CLIPS / spent


def as_floats(batch: Batch) -> np.ndarray:
    """What LeRobot returns: channels first, float32 in [0, 1]."""
    return np.multiply(np.moveaxis(batch["frames"], -1, -3), np.float32(1 / 255), dtype=np.float32, order="C")


def main(base: Path, rounds: int) -> None:
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    folder, older = base / "speed", base / "venv-lerobot-pyav"
    original, kept, fast = folder / "lerobot", folder / "kept", folder / "fast"
    rows: dict[str, Callable[[], float]] = {
        "LeRobot 0.4.4, torchcodec 0.13": lambda: theirs(base / "venv-lerobot", original, "torchcodec"),
        "LeRobot 0.4.4, torchcodec 0.10": lambda: theirs(older, original, "torchcodec"),
        "LeRobot 0.4.4, PyAV 15.1": lambda: theirs(older, original, "pyav"),
        "wamjax, LeRobot's files": lambda: ours(original),
        "wamjax, LeRobot's files, made floats as LeRobot's": lambda: ours(original, as_floats),
        "wamjax, native store, videos kept": lambda: ours(kept),
        "wamjax, native store, --fast": lambda: ours(fast),
        "wamjax, native store, --fast, made floats": lambda: ours(fast, as_floats),
        "codec alone, LeRobot's videos": lambda: floor(kept),
        "codec alone, --fast": lambda: floor(fast),
    }
    measured: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(rounds):
        for name, measure in rows.items():
            measured[name].append(measure())
    found = {name: float(np.median(values)) for name, values in measured.items()}
    best = np.nanmax([value for name, value in found.items() if name.startswith("LeRobot")])
    print("| loader | clips per second and core | times LeRobot's | share of the codec alone |\n|---|---|---|---|")
    for name, value in found.items():
        alone = found["codec alone, --fast" if "--fast" in name else "codec alone, LeRobot's videos"]
        print(f"| {name} | {value:.2f} | {value / best:.2f} | {value / alone:.0%} |")
    sizes = {
        name: sum(f.stat().st_size for f in (folder / name).rglob("*.*")) / 1e6 for name in ("lerobot", "kept", "fast")
    }
    print("MB: " + ", ".join(f"{name} {size:.0f}" for name, size in sizes.items()))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
