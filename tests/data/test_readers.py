"""Every format is recognised and read as it was written, from disk and from elsewhere; mistakes are one line."""

import functools
import io
import pickle
import zipfile
from pathlib import Path

import fsspec
import h5py
import numpy as np
import pytest
from PIL import Image

from tests.data.formats import BUILDERS, Expected, H, T, W, hostile_pickle, jpegs, pictures
from wamjax.cli import data as verb
from wamjax.cli.main import main
from wamjax.data import convert
from wamjax.data.episode import BadEpisode
from wamjax.data.pickles import read_arrays, safe_loads
from wamjax.data.readers import FORMATS, Options, Source, open_source, recognise, titles
from wamjax.data.readers.pictures import decode_picture
from wamjax.data.storage import Place
from wamjax.data.store import EpisodeStore
from wamjax.data.video import decode, encode
from wamjax.errors import UserError

SAMPLES = Path(__file__).parent / "samples"
LOSSLESS = Options(encode=functools.partial(encode, crf=0))


def assert_holds(source: Source, expected: Expected) -> None:
    episode = source[0]
    for name, values in expected.steps.items():
        np.testing.assert_array_equal(episode.steps[name], values, err_msg=name)
    assert set(episode.videos) == set(expected.frames)
    for camera, frames in expected.frames.items():
        np.testing.assert_array_equal(decode(episode.videos[camera]), frames, err_msg=camera)
    assert episode.language == expected.language
    assert dict(episode.metadata) | expected.metadata == dict(episode.metadata)
    assert len(source) == expected.episodes


@pytest.mark.parametrize("case", BUILDERS)
def test_read_as_written(case: str, tmp_path: Path) -> None:
    format, build = BUILDERS[case]
    (folder := tmp_path / "a [1]").mkdir()
    expected = build(folder)
    assert recognise(Place.of(folder)) == format
    assert_holds(open_source(folder, options=LOSSLESS), expected)
    assert convert.to_store(open_source(folder), tmp_path / "store") == expected.episodes
    assert len(EpisodeStore(tmp_path / "store")) == expected.episodes


@pytest.fixture
def memory() -> fsspec.AbstractFileSystem:
    """fsspec's file system in memory, which stands for a bucket."""
    system = fsspec.filesystem("memory")
    yield system
    system.rm("/bucket", recursive=True)


@pytest.mark.parametrize("case", ["libero", "robotwin_legacy", "droid_raw", "roboarena", "calvin", "captions_jsonl"])
def test_read_from_a_bucket(case: str, tmp_path: Path, memory: fsspec.AbstractFileSystem) -> None:
    format, build = BUILDERS[case]
    expected = build(tmp_path)
    memory.put(f"{tmp_path}/", "/bucket/set/", recursive=True)
    assert recognise(Place.of("memory://bucket/set")) == format
    assert_holds(open_source("memory://bucket/set", options=LOSSLESS), expected)


@pytest.mark.parametrize("sample", ["lerobot21", "lerobot30", "tfds_tfrecord", "tfds_array_record"])
def test_samples_of_real_tools_from_a_bucket(sample: str, memory: fsspec.AbstractFileSystem) -> None:
    memory.put(f"{SAMPLES / sample}/", "/bucket/set/", recursive=True)
    here, there = open_source(SAMPLES / sample), open_source("memory://bucket/set")
    assert len(here) == len(there) == 3
    for name, values in here[1].steps.items():
        np.testing.assert_array_equal(there[1].steps[name], values)
    assert here[1].videos == there[1].videos


def test_the_table_of_formats() -> None:
    assert set(titles()) == set(FORMATS)
    assert all(name in verb.__doc__ for name in FORMATS)


def test_videos_are_brought_to_a_size_and_rate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Clips of different sizes and rates make one store; new pictures are those shown at their times."""
    (source := tmp_path / "clips").mkdir()
    (source / "a.mp4").write_bytes(encode(pictures(0, 20), 20).data)
    (source / "b.mp4").write_bytes(encode(np.repeat(pictures(1, 9), 2, axis=1), 10).data)
    assert main(["data", "convert", str(source), str(tmp_path / "one")]) == 0
    assert "1 of 2 episodes" in capsys.readouterr().out
    arguments = ["data", "convert", str(source), str(tmp_path / "both"), "--size", "16x24", "--fps", "5", "--crf", "0"]
    assert main(arguments) == 0
    store = EpisodeStore(tmp_path / "both")
    assert (store.fps, store.cameras, store.lengths.tolist()) == (5.0, {"video": (16, 24)}, [5, 4])
    whole = decode(encode(pictures(0, 20), 20))
    np.testing.assert_array_equal(decode(store[0].videos["video"]), whole[::4])
    assert main(["data", "convert", str(source), str(tmp_path / "x"), "--size", "16"]) == 2
    assert "give height and width" in capsys.readouterr().err


@pytest.mark.parametrize("case", ["droid_raw", "roboarena"])
def test_recorded_videos_are_brought_to_a_size(case: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    expected = BUILDERS[case][1](tmp_path / "in")
    assert main(["data", "convert", str(tmp_path / "in"), str(tmp_path / "out"), "--size", "8x12", "--crf", "0"]) == 0
    store = EpisodeStore(tmp_path / "out")
    assert store.cameras == dict.fromkeys(sorted(expected.frames), (8, 12))
    for camera, frames in expected.frames.items():
        small = [np.asarray(Image.fromarray(frame).resize((12, 8), Image.Resampling.BICUBIC)) for frame in frames]
        np.testing.assert_array_equal(decode(store[0].videos[camera]), small)


def test_a_store_is_of_one_conversion(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sample, out = str(SAMPLES / "lerobot21"), str(tmp_path / "out")
    assert main(["data", "convert", sample, out]) == 0
    for arguments, message in (
        ([sample, out, "--crf", "0"], "was begun with crf 18, now 0"),
        ([str(SAMPLES / "lerobot30"), out], "name lerobot21, now lerobot30"),
    ):
        assert main(["data", "convert", *arguments]) == 2
        assert message in capsys.readouterr().err
    (tmp_path / "out/conversion-train.json").unlink()
    assert main(["data", "convert", sample, out]) == 2
    assert "holds a split 'train' already" in capsys.readouterr().err


def fuzzed(data: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        changed[int(rng.integers(len(changed)))] = int(rng.integers(256))
    return bytes(changed[: int(rng.integers(len(changed) // 2, len(changed) + 1))])


def test_mutated_pickles_are_refused_or_data(tmp_path: Path) -> None:
    """Without the checksums of a zip file around them, and with the names of others in reach of a mutation."""
    steps = [{"action": np.arange(8.0), "joint_position": np.ones(7, np.float32), "n": t} for t in range(3)]
    np.save(tmp_path / "x.npy", np.array(steps, dtype=object), allow_pickle=True)
    data, refused = (tmp_path / "x.npy").read_bytes(), 0
    for number in range(500):
        (tmp_path / "y.npy").write_bytes(fuzzed(data, np.random.default_rng(number)))
        try:
            values = [read_arrays(Place.of(tmp_path / "y.npy"))[""]]
        except BadEpisode:
            refused += 1
            continue
        while values:
            value = values.pop()
            if isinstance(value, dict):
                values += [*value, *value.values()]
            elif isinstance(value, list | tuple):
                values += value
            else:
                assert value is None or isinstance(value, bool | int | float | str | bytes | np.ndarray)
    assert refused > 250


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("nothing")
    cases = [
        (tmp_path / "none", None, "no dataset at"),
        (tmp_path, None, "of no known format"),
        (tmp_path, "calvn", "did you mean 'calvin'"),
        (tmp_path, "gear", "give --embodiment"),
        ("nothing://x", None, "cannot be opened"),
    ]
    for address, format, message in cases:
        with pytest.raises(UserError, match=message) as error:
            open_source(address, format)
        assert "\n" not in str(error.value)


def change(file: Path, remove: str, values: object = None) -> None:
    with h5py.File(file, "a") as opened:
        del opened[remove]
        if values is not None:
            opened[remove] = values


WRONG = [
    ("aloha", "episode_0.hdf5", "action", None, "no array 'action'"),
    ("aloha", "episode_0.hdf5", "observations/images", None, "no group 'observations/images'"),
    ("aloha", "episode_0.hdf5", "observations/qpos", np.zeros((3, 14)), "not numbers of 5 steps"),
    ("aloha", "episode_0.hdf5", "observations/images/cam_high", np.zeros((T, 9)), "not pictures"),
    ("aloha", "episode_0.hdf5", "observations/images/cam_high", np.zeros((2, H, W, 3), np.uint8), "2 pictures for 5"),
    ("aloha", "episode_0.hdf5", "observations/images/cam_high", np.zeros((T, 40), np.uint8), "cannot be decoded"),
    ("robotwin_v1", "episode_0000000.hdf5", "data_format_version", "v2.0", "has the format v2.0"),
    ("robotwin_v1", "episode_0000000.hdf5", "additional_info/frequency", 10**9, "1e+09 steps per second"),
    ("robotwin_v1", "episode_0000000.hdf5", "instructions", "[", "cannot be read as HDF5"),
    (
        "droid_raw",
        "success/2023-07-07/Fri_1/trajectory.h5",
        "observation/camera_type/20",
        None,
        "1 wrist cameras and 1",
    ),
    ("droid_raw", "success/2023-07-07/Fri_1/trajectory.h5", "action/joint_position", np.zeros(9), "of [5, 9] steps"),
]


@pytest.mark.parametrize(("case", "file", "name", "values", "message"), WRONG)
def test_wrong_parts(case: str, file: str, name: str, values: object, message: str, tmp_path: Path) -> None:
    format, build = BUILDERS[case]
    build(tmp_path)
    change(tmp_path / file, name, values)
    with pytest.raises(BadEpisode) as error:
        open_source(tmp_path, format)[0]
    assert message in str(error.value)
    assert file.rsplit("/", 1)[-1] in str(error.value)
    assert "\n" not in str(error.value)


def test_wrong_tables_of_captions(tmp_path: Path) -> None:
    for text, message in (
        ('{"clip": "a.mp4", "text": "x"}', "name the video one of"),
        ('{"video": "a.mp4"}', "the caption one of"),
        ("3", "no table row"),
        ("{", "cannot be read"),
        ("", "lists no videos"),
    ):
        (tmp_path / "list.jsonl").write_text(text + "\n")
        with pytest.raises(UserError, match=message):
            open_source(tmp_path)
    (tmp_path / "list.jsonl").write_text('{"video": "a.mp4", "text": "x"}\n')
    with pytest.raises(BadEpisode, match="is no video"):
        open_source(tmp_path)[0]


@pytest.mark.parametrize("size", [(65535, 65535), (9000, 9000), (65535, 1)])
def test_pictures_that_say_to_be_huge(size: tuple[int, int]) -> None:
    data = bytearray(jpegs(pictures(0, 1))[0])
    place = data.index(b"\xff\xc0") + 5  # height and width in the header of the frame
    data[place : place + 4] = size[0].to_bytes(2, "big") + size[1].to_bytes(2, "big")
    with pytest.raises(BadEpisode, match="a picture in here cannot be decoded"):
        decode_picture(bytes(data), "here")


def npz(data: bytes) -> bytes:
    """An .npz file with an object array of these pickled bytes."""
    member = io.BytesIO()
    np.lib.format.write_array_header_1_0(member, {"descr": "|O", "fortran_order": False, "shape": (1,)})
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("data.npy", member.getvalue() + data)
    return file.getvalue()


def test_pickles_of_strangers_do_nothing(tmp_path: Path) -> None:
    proof = Path("/tmp/wamjax-was-here")
    hostile = [
        hostile_pickle(),
        b"cos\nsystem\n(S'touch /tmp/wamjax-was-here'\ntR.",
        b"cnumpy\nload\n.",
        b"cbuiltins\neval\n.",
        b"\x80\x04\x96\xff\xff\xff\xff\xff\xff\xff\x7f.",  # a byte array of eight exabytes
        b"\x80\x04Nr\xff\xff\xff\x7f.",  # remembered at place two thousand million
        b"cnumpy\nndarray\n.",
        b"cnumpy\ndtype\n}X\x01\x00\x00\x00aK\x01sb.",  # state for the class itself
        b"\x80\x04]\x94h\x00a.",  # a list that holds itself
        pickle.dumps({1, 2}),
        pickle.dumps(np.array(["text"])),
        pickle.dumps(np.zeros(3, [("a", "f4")])),
    ]
    for data in hostile:
        (tmp_path / "x.npz").write_bytes(npz(data))
        with pytest.raises(BadEpisode, match="cannot be read as arrays"):
            read_arrays(Place.of(tmp_path / "x.npz"))
    assert not proof.exists()


def test_pickled_arrays_come_back() -> None:
    value = {
        "a": np.arange(6, dtype=">i2").reshape(2, 3),
        "b": [np.asfortranarray(np.random.default_rng(0).normal(size=(3, 2))), (True, None, 1.5, "text", b"bytes")],
        "c": np.float32(0.25),
        "d": np.array([[1, "x"], [np.ones(2), None]], dtype=object),
    }
    for protocol in (2, 3, 4):
        found = safe_loads(pickle.dumps(value, protocol=protocol))
        np.testing.assert_array_equal(found["a"], value["a"], strict=True)
        np.testing.assert_array_equal(found["b"][0], value["b"][0], strict=True)
        assert found["b"][1] == value["b"][1]
        assert found["c"] == 0.25
        np.testing.assert_array_equal(found["d"][2], np.ones(2))
    doubled: list = []
    for _ in range(60):  # 2 ** 60 lists if shared parts were taken apart
        doubled = [doubled, doubled]
    assert len(safe_loads(pickle.dumps(doubled))) == 2


def test_a_native_store_in_a_bucket_is_refused(tmp_path: Path, memory: fsspec.AbstractFileSystem) -> None:
    convert.to_store(open_source(SAMPLES / "lerobot21"), tmp_path / "store")
    memory.put(f"{tmp_path}/store/", "/bucket/store/", recursive=True)
    with pytest.raises(UserError, match="copy it here"):
        open_source("memory://bucket/store")


def test_inspect_any_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    BUILDERS["roboarena"][1](tmp_path)
    assert main(["data", "inspect", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "wrist_image_left 16x24" in text
    assert "language    put it away" in text
