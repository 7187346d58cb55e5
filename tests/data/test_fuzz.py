"""Mutated datasets: nothing crashes or hangs, and what a format can notice is noticed.

Seeded: a mutation cuts a file short, flips a bit, overwrites bytes, or removes the file; then everything is read and
every frame decoded. It must end in a `UserError`, or in what was written. The few exceptions are the formats whose
bytes carry no checksum; `SILENT` lists them, and docs/data.md tells what that means.
"""

import faulthandler
import functools
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.data.formats import BUILDERS
from wamjax.data import convert
from wamjax.data.episode import Episode
from wamjax.data.lerobot_export import export_dataset
from wamjax.data.readers import Options, open_source
from wamjax.data.video import decode, encode
from wamjax.errors import UserError

SAMPLES = Path(__file__).parent / "samples"
LOSSLESS = Options(encode=functools.partial(encode, crf=0))
SECONDS = 20  # a mutation takes milliseconds


def sample(name: str) -> Callable[[Path], object]:
    return lambda folder: shutil.copytree(SAMPLES / name, folder, dirs_exist_ok=True)


def native(folder: Path) -> None:
    convert.to_store(open_source(SAMPLES / "lerobot21"), folder)


def exported(folder: Path) -> None:
    folder.rmdir()
    export_dataset(open_source(SAMPLES / "lerobot21"), folder)


CASES: dict[str, tuple[str, Callable[[Path], object]]] = {
    **{name: ("lerobot", sample(name)) for name in ("lerobot21", "lerobot30")},
    **{name: ("rlds", sample(name)) for name in ("tfds_tfrecord", "tfds_array_record")},
    **{
        name: BUILDERS[name] for name in ("libero", "robomimic", "aloha", "robotwin_legacy", "robotwin_v1", "droid_raw")
    },
    **{name: BUILDERS[name] for name in ("roboarena", "calvin", "captions", "captions_csv", "captions_parquet")},
    "native": ("native", native),
    "exported": ("lerobot", exported),
}
# Files without checksums of their content: a changed bit can be another number, letter or picture.
SILENT = (".mp4", ".hdf5", ".h5", ".parquet", ".json", ".jsonl", ".yaml", ".csv", ".txt", ".npy")
GUARDED = ("tfrecord-00000-of-00001", "array_record-00000-of-00001", ".array_record", ".npz")
TEXTS = (".json", ".jsonl", ".yaml", ".csv", ".txt")  # cut short, it may be a shorter text


def content(folder: Path, format: str) -> list[tuple]:
    """All that a dataset holds, comparable."""
    return [comparable(episode) for episode in iterate(open_source(folder, format, LOSSLESS))]


def iterate(source: object) -> Iterator[Episode]:
    for index in range(len(source)):
        yield source[index]


def comparable(episode: Episode) -> tuple:
    steps = {name: (a.dtype.str, a.shape, a.tobytes()) for name, a in episode.steps.items()}
    frames = {camera: decode(video).tobytes() for camera, video in episode.videos.items()}
    return steps, frames, episode.language, {k: v for k, v in episode.metadata.items() if k != "source"}


def mutate(file: Path, rng: np.random.Generator) -> str:
    """Change a file; returns how."""
    data = bytearray(file.read_bytes())
    kind = str(rng.choice(["cut", "flip", "overwrite", "remove"], p=[0.3, 0.4, 0.25, 0.05])) if data else "remove"
    if kind == "remove":
        file.unlink()
        return kind
    place = int(rng.integers(len(data)))
    if kind == "cut":
        del data[place:]
    elif kind == "flip":
        data[place] ^= 1 << int(rng.integers(8))
    else:
        data[place : place + 16] = rng.bytes(len(data[place : place + 16]))
    file.write_bytes(data)
    return kind


def fuzz(case: str, count: int, folder: Path) -> Counter[str]:
    """Mutate one file `count` times; returns how often that was refused, harmless or silent."""
    format, build = CASES[case]
    (clean := folder / "clean").mkdir()
    build(clean)
    right = content(clean, format)
    files = sorted(path.relative_to(clean) for path in clean.rglob("*") if path.is_file())
    outcomes: Counter[str] = Counter()
    for number in range(count):
        rng = np.random.default_rng((number, len(case)))
        shutil.copytree(clean, changed := folder / "changed")
        name = files[int(rng.integers(len(files)))]
        kind = mutate(changed / name, rng)
        start = time.monotonic()
        faulthandler.dump_traceback_later(2 * SECONDS, exit=True)
        signal.alarm(SECONDS)
        try:
            found = content(changed, format)
            outcome = "harmless" if found == right else "silent"
        except UserError as error:
            outcome = "refused" if "\n" not in str(error) else f"{number}: {error}"
        finally:
            signal.alarm(0)
            faulthandler.cancel_dump_traceback_later()
        assert time.monotonic() - start < SECONDS
        assert outcome in ("refused", "harmless", "silent")
        if outcome == "silent":
            assert not name.name.endswith(GUARDED), (number, name, kind)
            assert format != "native" or name.name.startswith("conversion"), (number, name, kind)
            assert name.name.endswith(SILENT), (number, name, kind)
            whole = (".mp4", ".parquet", *TEXTS) if kind == "remove" and format in ("roboarena", "captions") else TEXTS
            assert kind not in ("cut", "remove") or name.name.endswith(whole), (number, name, kind)
        outcomes[outcome] += 1
        shutil.rmtree(changed)
    return outcomes


@pytest.mark.parametrize("case", CASES)
def test_some_mutations(case: str, tmp_path: Path) -> None:
    assert fuzz(case, 16, tmp_path)["refused"] > 2


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_thousand_mutations(case: str, tmp_path: Path) -> None:
    outcomes = fuzz(case, 1000, tmp_path)
    print(case, dict(outcomes))
    assert outcomes["refused"] > 100
