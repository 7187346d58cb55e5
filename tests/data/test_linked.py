"""Stores that link to datasets of every format: the batches of a lossless conversion, with the pictures left there."""

import functools
import itertools
import pickle
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.data.formats import BUILDERS, H, W
from wamjax.cli.main import main
from wamjax.data.convert import to_store
from wamjax.data.episode import BadEpisode, Pictures, pack
from wamjax.data.linked import LinkedStore, Origin, link, open_numbered, open_store
from wamjax.data.opened import open_dataset
from wamjax.data.pipeline import ClipConfig, batches, replaced
from wamjax.data.readers import Options, open_source, pictures
from wamjax.data.store import EpisodeStore
from wamjax.data.video import decode, encode
from wamjax.errors import UserError

SAMPLES = Path(__file__).parent / "samples"
LOSSLESS = Options(encode=functools.partial(encode, crf=0))


def linked(source: Path, folder: Path, **options: object) -> LinkedStore:
    link(Origin(str(source), **options), folder)
    store = open_dataset(folder)
    assert isinstance(store, LinkedStore)
    return store


def read(store: EpisodeStore, clip: ClipConfig, count: int = 3, **options: object) -> list[dict[str, np.ndarray]]:
    arguments = {"batch_size": 4, "seed": 1, "tokenize": lambda text: np.array([len(text)]), "threads": 1} | options
    return list(itertools.islice(batches(store, clip, **arguments), count))


def clip_of(store: EpisodeStore) -> ClipConfig:
    states = tuple(name for name in store.fields if name.startswith("observation/"))
    action = next(name for name in store.fields if name.startswith("action"))
    return ClipConfig(tuple(store.cameras), (0, 2), 2, action, states)


@pytest.mark.parametrize("case", [case for case in BUILDERS if not case.startswith("captions")])
def test_batches_are_those_of_a_lossless_conversion(case: str, tmp_path: Path) -> None:
    (source := tmp_path / "source").mkdir()
    expected = BUILDERS[case][1](source)
    store = linked(source, tmp_path / "linked")
    episode = store[0]
    for camera, frames in expected.frames.items():
        np.testing.assert_array_equal(decode(episode.videos[camera]), frames, err_msg=camera)
    to_store(open_source(source, options=LOSSLESS), tmp_path / "native")
    native = EpisodeStore(tmp_path / "native")
    assert (store.statistics, store.fields, store.cameras) == (native.statistics, native.fields, native.cameras)
    clip = clip_of(native)
    for ours, theirs in zip(read(store, clip, cache_bytes=0), read(native, clip), strict=True):
        for name, values in theirs.items():
            np.testing.assert_array_equal(ours[name], values, err_msg=name, strict=True)


@pytest.mark.parametrize("sample", ["lerobot21", "lerobot30", "tfds_tfrecord", "tfds_array_record"])
def test_datasets_of_real_tools(sample: str, tmp_path: Path) -> None:
    store = linked(SAMPLES / sample, tmp_path, fps=None if sample.startswith("lerobot") else 15.0)
    for index, episode in enumerate(pickle.loads(pickle.dumps(store))[i] for i in range(len(store))):
        for camera, video in open_source(SAMPLES / sample, options=LOSSLESS)[index].videos.items():
            np.testing.assert_array_equal(decode(episode.videos[camera]), decode(video))


def test_films_without_steps_and_at_another_rate(tmp_path: Path) -> None:
    (source := tmp_path / "source").mkdir()
    BUILDERS["captions"][1](source)
    for name, options in {"same": {}, "slower": {"fps": 5.0}}.items():
        store, theirs = linked(source, tmp_path / name, **options), open_source(source, options=Options(**options))
        assert store.fps == theirs[0].metadata["fps"]
        assert (store[0].language, len(store[0])) == (theirs[0].language, len(theirs[0]))
        assert decode(store[0].videos["video"]).shape == (len(theirs[0]), H, W, 3)


def test_only_pictures_that_are_shown_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (source := tmp_path / "source").mkdir()
    BUILDERS["aloha"][1](source)
    store, decoded, real = linked(source, tmp_path / "linked"), [], pictures.decode_picture
    monkeypatch.setattr(pictures, "decode_picture", lambda *a, **k: decoded.append(a) or real(*a, **k))
    episode = store[0]
    decode(episode.videos["cam_high"], [3, 1])
    assert len(decoded) == 1 + 2  # of the first, the size is wanted
    with pytest.raises(TypeError, match="not encoded"):
        pack(episode)


def test_a_changed_source_is_noticed_and_a_missing_one_is_said(tmp_path: Path) -> None:
    (source := tmp_path / "source").mkdir()
    BUILDERS["libero"][1](source)
    store, file = linked(source, tmp_path / "linked"), next(source.iterdir())
    clip = clip_of(store)
    with h5py.File(file, "r+") as opened:
        opened["data/demo_2/actions"][1, 1] += 1e-6
    with pytest.raises(BadEpisode, match=r"episode 0 of .* has changed since it was linked"):
        store[0]
    assert {told["episode"] for batch in read(store, clip, numbered=True) for told in replaced(batch)} == {0}
    with h5py.File(file, "r+") as opened:
        del opened["data/demo_10"]
    with pytest.raises(BadEpisode, match="has 1 episodes, not 2"):
        open_dataset(tmp_path / "linked")[1]
    shutil.rmtree(source)
    with pytest.raises(UserError, match=f"no dataset at {source}"):
        read(open_dataset(tmp_path / "linked"), clip)
    (tmp_path / "linked/link-train.json").write_text("{}")
    with pytest.raises(UserError, match=r"link-train.json is damaged .*: link the dataset again"):
        open_dataset(tmp_path / "linked")


def test_a_linked_store_becomes_the_native_one(tmp_path: Path) -> None:
    (source := tmp_path / "source").mkdir()
    BUILDERS["robotwin_v1"][1](source)
    linked(source, tmp_path / "linked")
    there, here = open_source(source)[0], open_source(tmp_path / "linked")[0]
    assert not isinstance(here.videos["cam_head"], Pictures)
    assert here.videos == there.videos
    assert dict(here.metadata) == {**there.metadata, "source_episode": 0}


def test_as_a_user_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (source := tmp_path / "source").mkdir()
    BUILDERS["calvin"][1](source)
    monkeypatch.chdir(tmp_path)
    assert main(["data", "convert", "source", "out", "--link"]) == 0
    assert f"1 of 1 episodes, with their pictures in {source}" in capsys.readouterr().out
    assert main(["data", "convert", "source", "out", "--link"]) == 0
    assert main(["data", "inspect", "out", "--verify"]) == 0
    assert f"pictures    in {source}" in capsys.readouterr().out
    assert main(["data", "convert", "source", "out"]) == 2
    assert "was begun with" in capsys.readouterr().err
    assert main(["data", "convert", "source", "other", "--link", "--size", "8x8"]) == 2
    assert "--link leaves episodes as they are" in capsys.readouterr().err
    shutil.move("out", "moved")
    assert open_store("moved")[0].videos["rgb_static"].read(np.array([0])).shape[0] == 1
    opened = pickle.loads(pickle.dumps(functools.partial(open_numbered, Origin(str(source)))))()
    assert len(opened) == 1
