"""RLDS datasets are read as TensorFlow Datasets reads them, and no flipped bit passes.

The samples and what TFDS returns for them (`.npz`) come from tests/oracles/tfds.sh.
"""

import functools
import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest

from wamjax.cli.main import main
from wamjax.data.episode import BadEpisode
from wamjax.data.readers import Options, open_source, recognise
from wamjax.data.storage import Place
from wamjax.data.tfrecord import masked_crc, parse_example
from wamjax.data.video import decode, encode
from wamjax.errors import UserError

SAMPLES = Path(__file__).parent / "samples"
LOSSLESS = Options(encode=functools.partial(encode, crf=0))
TEXTS = ("language_instruction", "language_instruction_2", "language_instruction_3")


@pytest.mark.parametrize("kind", ["tfrecord", "array_record"])
def test_every_value_and_frame_is_that_of_tfds(kind: str) -> None:
    folder = SAMPLES / f"tfds_{kind}"
    assert recognise(Place.of(folder)) == "rlds"
    source = open_source(folder, options=LOSSLESS)
    with np.load(SAMPLES / "tfds.npz") as expected:
        compared = set()
        assert len(source) == 3
        for number in range(3):
            episode = source[number]
            for name, values in episode.steps.items():
                np.testing.assert_array_equal(values, expected[f"{number}/{name}"], strict=True)
            for camera, video in episode.videos.items():
                np.testing.assert_array_equal(decode(video), expected[f"{number}/observation/{camera}"])
            language = [expected[f"{number}/{name}"][0].decode() for name in TEXTS]
            assert list(episode.language) == [text for text in language if text]
            path = expected[f"{number}/episode_metadata/file_path"].item().decode()
            assert episode.metadata["file_path"] == path
            assert episode.metadata["success"] == ("/success/" in path)
            assert episode.metadata["extrinsics_wrist_cam"] == expected[f"{number}/extrinsics_wrist_cam"].tolist()
            assert (episode.metadata["fps"], episode.metadata["embodiment"]) == (15.0, "droid")
            cameras = {f"observation/{camera}" for camera in episode.videos}
            compared |= {f"{number}/{name}" for name in {*episode.steps, *cameras, *TEXTS}}
        steps = {name for name in expected if "episode_metadata" not in name and "extrinsics" not in name}
        assert compared == steps - {"fast"}
        # TFDS itself decodes with a faster transform that is not exact: the release's pictures are near, not equal.
        difference = np.abs(expected["fast"].astype(int) - expected["0/observation/wrist_image_left"])
        assert 0 < difference.mean() < 3


def test_no_flipped_bit_passes(tmp_path: Path) -> None:
    """Each one is noticed by a checksum, and damages at most the episodes from there on in its file."""
    shutil.copytree(SAMPLES / "tfds_tfrecord", folder := tmp_path / "set")
    file = next(folder.glob("*.tfrecord-*"))
    whole, rng = file.read_bytes(), np.random.default_rng(0)
    for position in [0, 8, *rng.integers(len(whole), size=60).tolist()]:
        data = bytearray(whole)
        data[position] ^= 1 << int(rng.integers(8))
        (changed := folder / f"x{position}").mkdir()
        for path in folder.glob("*.json"):
            shutil.copy(path, changed)
        (changed / file.name).write_bytes(data)
        refused = 0
        source = open_source(changed)
        for number in range(3):
            try:
                source[number]
            except BadEpisode:
                refused += 1
        assert refused > 0
        assert refused == 1 or position < len(whole) - 1


def test_truncated_and_missing_files(tmp_path: Path) -> None:
    for kind in ("tfrecord", "array_record"):
        shutil.copytree(SAMPLES / f"tfds_{kind}", folder := tmp_path / kind)
        file = next(folder.glob("*-of-00001"))
        whole = file.read_bytes()
        for size in (0, 11, len(whole) // 4):
            file.write_bytes(whole[:size])
            with pytest.raises(BadEpisode, match="get it again") as error:
                open_source(Path(shutil.copytree(folder, tmp_path / f"{kind}{size}")))[2]
            assert "\n" not in str(error.value)
        file.unlink()
        with pytest.raises(BadEpisode, match="get it again"):
            open_source(Path(shutil.copytree(folder, tmp_path / f"{kind}gone")))[0]


def test_wrong_metadata(tmp_path: Path) -> None:
    def changed(file: str, **changes: object) -> Path:
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        shutil.copytree(SAMPLES / "tfds_tfrecord", folder)
        (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | changes))
        return folder

    cases = [
        ("dataset_info.json", {"name": "bridge"}, "give --fps"),
        ("dataset_info.json", {"splits": [{"name": "train"}]}, "damaged"),
        ("dataset_info.json", {"splits": 3}, "damaged"),
        ("dataset_info.json", {"fileFormat": "riegeli"}, "holds riegeli files"),
        ("features.json", {"featuresDict": {"features": {}}}, "no RLDS dataset"),
    ]
    for file, changes, message in cases:
        with pytest.raises(UserError, match=message):
            open_source(changed(file, **changes))
    with pytest.raises(UserError, match="no split 'test' but train"):
        open_source(SAMPLES / "tfds_tfrecord", options=Options(split="test"))


def test_examples_of_every_wire_form() -> None:
    """Unpacked lists, negative numbers and unknown fields; what is cut short is refused at every length."""

    def field(number: int, data: bytes) -> bytes:
        return bytes([number << 3 | 2, len(data)]) + data

    minus = b"\xfe" + b"\xff" * 8 + b"\x01"  # -2
    floats = field(2, b"\x0d" + struct.pack("<f", 0.5) + b"\x0d" + struct.pack("<f", -1.5))
    integers = field(3, field(1, b"\x05" + minus + b"\xac\x02"))
    entries = [
        field(1, b"f") + field(2, floats),
        field(1, b"i") + field(2, integers),
        field(1, b"none") + field(2, b""),
    ]
    unknown = b"\x79" + b"\0" * 8  # field 15, eight bytes
    data = field(1, b"".join(field(1, entry) for entry in entries)) + unknown
    found = parse_example(data)
    np.testing.assert_array_equal(found["f"], np.float32([0.5, -1.5]), strict=True)
    np.testing.assert_array_equal(found["i"], np.int64([5, -2, 300]), strict=True)
    assert len(found["none"]) == 0
    for size in range(1, len(data) - len(unknown)):
        with pytest.raises(BadEpisode):
            parse_example(data[:size])


def test_checksum_is_crc32c() -> None:
    """RFC 3720's example, and TFRecord's mask of it."""
    crc = 0x8A9136AA  # of 32 zero bytes
    assert masked_crc(bytes(32)) == ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def test_convert_and_train_on_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from wamjax.data.chunks import ChunkConfig, chunk_batches
    from wamjax.data.embodiments import load
    from wamjax.data.store import EpisodeStore

    assert main(["data", "convert", str(SAMPLES / "tfds_tfrecord"), str(tmp_path / "store")]) == 0
    assert "3 of 3 episodes" in capsys.readouterr().out
    config = ChunkConfig(max_chunks=1, frames=1, stride=1)
    options = {"batch_size": 2, "seed": 0, "tokenize": lambda text: np.array([len(text)]), "threads": 1}
    batch = next(chunk_batches(EpisodeStore(tmp_path / "store"), load("droid"), config, **options))
    assert batch["frames"].shape == (2, 3, 2, 16, 24, 3)
    assert batch["actions"].shape == (2, 1, 8)
