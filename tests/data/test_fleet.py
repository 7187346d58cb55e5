"""Conversions by several processes and by Apache Beam: the bytes of one that a single process wrote."""

import functools
import json
import pickle
import shutil
import sys
from pathlib import Path

import pytest

from wamjax.cli.main import main
from wamjax.data import convert, fleet
from wamjax.data.readers import open_source
from wamjax.errors import UserError

SAMPLES = Path(__file__).parent / "samples"
VERB = ["data", "convert", str(SAMPLES / "lerobot21")]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def single(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A conversion in three shards of one episode."""
    monkeypatch.setattr(convert, "SHARD_EPISODES", 1)
    assert main([*VERB, str(tmp_path / "single")]) == 0
    assert len(list((tmp_path / "single").glob("*.array_record"))) == 3
    return tmp_path / "single"


def rename(folder: Path, name: str) -> dict[str, bytes]:
    """The content as if the dataset had another name, which is that of its folder."""
    found = content(folder)
    said = json.loads(found["dataset.json"])
    del said["checksum"]
    return found | {"dataset.json": json.dumps(said | {"name": name}).encode()}


def test_processes_write_the_same_and_go_on(single: Path, tmp_path: Path) -> None:
    out = tmp_path / "several"
    shutil.copytree(single, out)
    for name in ("train-part-000001.array_record", "train-part-000002.json"):
        (out / name).unlink()
    kept = (out / "train-part-000000.array_record").stat().st_mtime_ns
    assert main([*VERB, str(out), "--processes", "2"]) == 0
    assert rename(out, "x") == rename(single, "x")
    assert (out / "train-part-000000.array_record").stat().st_mtime_ns == kept


def test_a_worker_s_shard_written_twice_is_the_same(single: Path, tmp_path: Path) -> None:
    """Beam may give a shard to two workers, or again; one that fails leaves nothing."""
    source = open_source(SAMPLES / "lerobot21")
    (out := tmp_path / "out").mkdir()
    writer = convert.Writer(str(out), "train", convert._first_schema(source))
    worker = fleet.Worker(pickle.dumps(functools.partial(open_source, SAMPLES / "lerobot21")), writer)
    wanted = {name: data for name, data in content(single).items() if name.startswith("train-part-000001.")}
    for _ in range(2):
        worker(convert.Part("part-000001", 1, 2))
        assert content(out) == wanted
    worker(convert.Part("part/bad", 1, 2))
    assert content(out) == wanted


def test_a_shard_that_nobody_wrote_is_one_line(tmp_path: Path) -> None:
    source = open_source(SAMPLES / "lerobot21")
    with pytest.raises(UserError, match=r"1 shards of .* are not written"):
        convert.to_store(source, tmp_path / "out", run=lambda *_: None)


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    for options, message in (
        (["--processes", "0"], "give at least 1"),
        (["--processes", "2", "--runner", "DirectRunner"], "not beside --runner"),
        (["--beam=--project=x"], "--beam needs a --runner"),
    ):
        assert main([*VERB, str(tmp_path / "x"), *options]) == 2
        assert message in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    assert main([*VERB, str(tmp_path / "x"), "--runner", "DirectRunner"]) == 2
    assert "pip install 'wamjax[beam]'" in capsys.readouterr().err


def test_beam_writes_the_same(single: Path, tmp_path: Path) -> None:
    pytest.importorskip("apache_beam", reason="Apache Beam is not installed: pip install -e '.[beam]'")
    out = tmp_path / "beam"
    flags = [
        "--runner",
        "DirectRunner",
        "--beam=--direct_num_workers=2",
        "--beam=--direct_running_mode=multi_processing",
    ]
    assert main([*VERB, str(out), *flags]) == 0
    assert rename(out, "x") == rename(single, "x")
    (out / "train-part-000002.json").unlink()
    assert main([*VERB, str(out), *flags[:2]]) == 0
    assert rename(out, "x") == rename(single, "x")
