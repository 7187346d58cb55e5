"""Storage that is elsewhere and fails now and then, or refuses: fsspec's file system in memory, with failures."""

import errno
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from wamjax.cli.main import main
from wamjax.data.mixture import of_split, open_stores
from wamjax.data.opened import open_dataset
from wamjax.data.readers import open_source
from wamjax.data.storage import Place
from wamjax.errors import UserError

T = TypeVar("T")
BYTES = bytes(range(256)) * 1000
SAMPLES = Path(__file__).parent / "samples"


class Weather:
    """Each question raises `error` when it is asked for the first time; always, where that lasts."""

    def __init__(self) -> None:
        self.error: BaseException = ConnectionResetError("reset by peer")
        self.lasting = False
        self.asked: set[tuple[object, ...]] = set()
        self.pauses: list[float] = []

    def __call__(self, question: tuple[object, ...], answer: Callable[[], T]) -> T:
        if self.lasting or question not in self.asked:
            self.asked.add(question)
            raise self.error
        return answer()


class Shaky:
    """An open file behind a bad line."""

    def __init__(self, file: Any, weather: Weather):
        self._file, self._weather = file, weather

    def read(self, size: int = -1) -> bytes:
        return bytes(self._weather(("read", self._file.path, self._file.tell()), lambda: self._file.read(size)))

    def __enter__(self) -> "Shaky":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@pytest.fixture
def bucket() -> str:
    """The address of a copy of the samples, and of a file of bytes."""
    system = fsspec.filesystem("memory")
    for file in filter(Path.is_file, SAMPLES.rglob("*")):
        system.pipe_file(f"/bucket/{file.relative_to(SAMPLES)}", file.read_bytes())
    system.pipe_file("/bucket/file", BYTES)
    system.pipe_file("/bucket/native/train-0.array_record", BYTES)
    return "memory://bucket"


@pytest.fixture
def raining(bucket: str, monkeypatch: pytest.MonkeyPatch) -> Weather:
    """The weather of `bucket`, in which pauses take no time."""
    weather = Weather()

    def expose(name: str, wrap: Callable[[Any], Any] = lambda found: found) -> None:
        real = getattr(MemoryFileSystem, name)

        def exposed(self: MemoryFileSystem, path: str, *args: Any, **options: Any) -> Any:
            return wrap(weather((name, path), lambda: real(self, path, *args, **options)))

        monkeypatch.setattr(MemoryFileSystem, name, exposed)

    monkeypatch.setattr("wamjax.data.retry.time.sleep", weather.pauses.append)
    for name in ("info", "find", "ls", "cat_file"):
        expose(name)
    expose("open", lambda file: Shaky(file, weather))
    return weather


@pytest.mark.parametrize("sample", ["lerobot30", "lerobot21", "tfds_array_record", "tfds_tfrecord"])
def test_what_is_read_does_not_depend_on_the_weather(sample: str, bucket: str, raining: Weather) -> None:
    here, there = open_source(SAMPLES / sample), open_source(pickle.loads(pickle.dumps(Place.of(f"{bucket}/{sample}"))))
    assert len(there) == len(here)
    for ours, theirs in zip((there[i] for i in range(len(here))), (here[i] for i in range(len(here))), strict=True):
        assert ours.metadata == theirs.metadata
        for name, values in theirs.steps.items():
            np.testing.assert_array_equal(ours.steps[name], values)
        for name, video in theirs.videos.items():
            assert ours.videos[name].data == video.data
    assert len(raining.pauses) > 10


def test_a_file_is_read_at_any_position(bucket: str, raining: Weather, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(BYTES)
    for place in (Place.of(tmp_path / "file"), Place.of(f"{bucket}/file")):
        for ahead in (True, False):
            with place.open(ahead) as file:
                assert file.seek(70_000) == 70_000
                assert file.read(40_000) == BYTES[70_000:110_000]
                assert file.tell() == 110_000
                file.seek(-3, 2)
                assert file.read() == BYTES[-3:]
                assert not file.read(5)
        assert place.exists()
        assert place.is_file()
        assert place.parent.exists()
        assert not place.parent.is_file()
        assert not (place.parent / "nothing").exists()
        with place.local() as path:
            assert path.read_bytes() == BYTES


@pytest.mark.parametrize(
    "pattern", ["*", "*.npz", "*/meta/*.json*", "lerobot30/*/*/*/*.parquet", "**/*.mp4", "file/*", "none/*", "*/none"]
)
def test_what_is_found_does_not_depend_on_the_weather(pattern: str, bucket: str, raining: Weather) -> None:
    """Of listings of many folders none is left out, though s3fs's own `glob` leaves out what it cannot list."""
    raining.error = OSError(errno.EBUSY, "Service Unavailable")
    found = [place.path.removeprefix("/bucket/") for place in Place.of(bucket).find(pattern)]
    wanted = [str(path.relative_to(SAMPLES)) for path in SAMPLES.glob(pattern)]
    if pattern == "*":
        wanted += ["file", "native"]
    assert found == sorted(wanted)


def test_an_outage_is_not_an_empty_folder(bucket: str, raining: Weather) -> None:
    """Clients' own `exists` says no to whatever goes wrong."""
    raining.lasting = True
    file, folder = Place.of(f"{bucket}/lerobot30/meta/info.json"), Place.of(f"{bucket}/lerobot30")
    asked: list[Callable[[], object]] = [
        *(file.exists, file.is_file, file.read_bytes, file.open),
        *(lambda: folder.find("**"), lambda: file.local().__enter__()),
    ]
    raining.error = PermissionError(errno.EACCES, "Forbidden")
    for ask in asked:
        with pytest.raises(UserError, match=r"memory://.*bucket/lerobot30.* cannot be read \(PermissionError.*log in"):
            ask()
    assert not raining.pauses


def test_what_lasts_is_one_line(
    bucket: str, raining: Weather, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 10_000, 50))
    monkeypatch.setattr("wamjax.data.retry.time.monotonic", lambda: next(clock))
    raining.lasting = True
    assert main(["data", "inspect", f"{bucket}/lerobot30"]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1
    assert "memory:///bucket/lerobot30 cannot be reached" in told[0]


def test_splits_and_copies_know_where_they_are(bucket: str, raining: Weather) -> None:
    store = open_dataset(f"{bucket}/lerobot30")
    assert str(store.folder) == "memory:///bucket/lerobot30"
    found = of_split(open_stores([f"{bucket}/lerobot30", f"{bucket}/lerobot21=2"]), "train")
    assert found is not None
    assert str(found.folder) == "memory:///bucket/lerobot30, memory:///bucket/lerobot21"
    assert store.fingerprint == open_dataset(SAMPLES / "lerobot30").fingerprint


def test_what_cannot_be_trained_on_from_afar_is_one_line(bucket: str, raining: Weather) -> None:
    with pytest.raises(UserError, match=r"no dataset at memory:///bucket/nothing: give the folder"):
        open_dataset(f"{bucket}/nothing")
    with pytest.raises(UserError, match=r"memory:///bucket/native is a native store.*copy it here"):
        open_dataset(f"{bucket}/native")
