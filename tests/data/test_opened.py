"""Datasets of LeRobot are trained on as they lie there, with the batches of a store that they are converted to."""

import functools
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.data.formats import BUILDERS
from wamjax.data.convert import to_store
from wamjax.data.episode import BadEpisode
from wamjax.data.mixture import Mixture, open_stores
from wamjax.data.opened import OpenedStore, open_dataset
from wamjax.data.pipeline import ClipConfig, batches
from wamjax.data.readers import Options, open_source
from wamjax.data.store import EpisodeStore
from wamjax.data.video import encode
from wamjax.errors import UserError

SAMPLES = Path(__file__).parent / "samples"
LOSSLESS = Options(encode=functools.partial(encode, crf=0))  # pictures that are no video are not encoded when opened
CLIP = ClipConfig(("front", "hand"), (0, 2, 3), 4, "action", ("observation/state",))


def first_batches(store, **options) -> list[dict[str, np.ndarray]]:
    found = batches(
        store, CLIP, batch_size=5, seed=3, tokenize=lambda text: np.array([len(text)]), threads=1, **options
    )
    return [next(found) for _ in range(4)]


@pytest.mark.parametrize("name", ["lerobot21", "lerobot30", "lerobot_converted"])
def test_batches_and_statistics_are_those_of_the_converted_store(name, tmp_path):
    to_store(open_source(SAMPLES / name, options=LOSSLESS), tmp_path)
    opened, native = open_dataset(str(SAMPLES / name)), EpisodeStore(tmp_path)
    assert isinstance(opened, OpenedStore)
    assert opened.statistics == native.statistics
    assert (opened.fps, opened.fields, opened.cameras) == (native.fps, native.fields, native.cameras)
    for ours, theirs in zip(first_batches(opened), first_batches(native), strict=True):
        assert ours.keys() == theirs.keys()
        for key in ours:
            np.testing.assert_array_equal(ours[key], theirs[key])
    again = first_batches(pickle.loads(pickle.dumps(opened)), cache_bytes=0)
    np.testing.assert_array_equal(again[0]["frames"], first_batches(native)[0]["frames"])


def test_fingerprints_follow_the_metadata(tmp_path):
    shutil.copytree(SAMPLES / "lerobot30", tmp_path / "copy")
    same, first = OpenedStore(tmp_path / "copy"), OpenedStore(SAMPLES / "lerobot30")
    assert same.fingerprint == first.fingerprint
    info = tmp_path / "copy/meta/info.json"
    info.write_text(info.read_text().replace("toy", "toi"))
    assert OpenedStore(tmp_path / "copy").fingerprint != first.fingerprint
    assert first.metadata(1)["source"] == "lerobot30/1"
    with pytest.raises(UserError, match="no checksums: run `wamjax data convert`"):
        first.verify()
    with pytest.raises(IndexError):
        first[3]


def test_a_mixture_may_have_both(tmp_path):
    to_store(open_source(SAMPLES / "lerobot30"), tmp_path)
    mixed = open_stores([f"{SAMPLES / 'lerobot30'}=0.5", f"{tmp_path}=0.5"])
    assert isinstance(mixed, Mixture)
    assert first_batches(mixed)[0]["frames"].shape == (5, 2, 3, 32, 48, 3)


def test_other_formats_are_to_be_converted(tmp_path):
    BUILDERS["aloha"][1](tmp_path)
    with pytest.raises(UserError, match=r"first: run `wamjax data convert .* FOLDER`"):
        open_dataset(tmp_path)
    with pytest.raises(UserError, match="no dataset in"):
        open_dataset(tmp_path / "nothing")


def test_an_episode_that_differs_is_bad():
    opened = OpenedStore(SAMPLES / "lerobot30")
    opened.lengths = opened.lengths + 1
    with pytest.raises(BadEpisode, match="differs from the first"):
        opened[0]
