"""The episode contract and its record on disk."""

from collections.abc import Callable
from dataclasses import replace

import msgpack
import numpy as np
import pytest

from wamjax.data.episode import BadEpisode, Episode, Video, pack, unpack


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint16", "int64", "float16", "float32", "float64", ">f4"])
def test_round_trip_keeps_everything(dtype: str) -> None:
    values = np.arange(24).reshape(4, 3, 2).astype(dtype)
    episode = Episode(
        steps={"x": values[:, :, ::-1], "scalar": values[:, 0, 0]},
        videos={"wrist": Video(b"\x00\xff bytes", 4, 2, 6)},
        language=("öffne die Tür", ""),
        metadata={"fps": 12.5, "nested": {"list": [1, None, True, 1e-300]}, "none": None},
    )
    back = unpack(pack(episode))
    assert back.steps.keys() == episode.steps.keys()
    for name, array in back.steps.items():
        assert array.dtype == np.dtype(dtype).newbyteorder("<")
        assert not array.flags.writeable
        np.testing.assert_array_equal(array, episode.steps[name])
    assert (back.videos, back.language, back.metadata) == (episode.videos, episode.language, episode.metadata)
    assert len(back) == 4


def test_equal_episodes_give_equal_records(make_episode: Callable[..., Episode]) -> None:
    a = make_episode(3, 5)
    assert pack(a) == pack(replace(a, steps=dict(reversed(a.steps.items()))))


def test_video_only_episode() -> None:
    episode = Episode(steps={}, videos={"web": Video(b"", 7, 4, 4)}, language=("a cat",))
    assert len(unpack(pack(episode))) == 7


@pytest.mark.parametrize(
    ("steps", "videos"),
    [
        ({"a": np.zeros((3, 1)), "b": np.zeros((4, 1))}, {}),
        ({"a": np.zeros((3, 1))}, {"c": Video(b"", 4, 2, 2)}),
        ({"a": np.zeros((0, 1))}, {}),
        ({}, {}),
        ({"a": np.float32(1)}, {}),
        ({"a": np.array(["text"])}, {}),
        ({"a": np.array([object()])}, {}),
    ],
)
def test_contradicting_parts_are_refused(steps: dict, videos: dict) -> None:
    with pytest.raises(BadEpisode):
        Episode(steps=steps, videos=videos)


def test_newer_format_is_refused(make_episode: Callable[..., Episode]) -> None:
    fields = msgpack.unpackb(pack(make_episode(0, 2)))
    with pytest.raises(BadEpisode, match="format 99"):
        unpack(msgpack.packb({**fields, "format": 99}))


def mutate(value: object, rng: np.random.Generator) -> object:
    """Replace one random part of a nested value by something else."""
    others = [None, -1, 2**62, 1.5, "O", "<f4", b"", b"abc", [], {}, [1, [2]], {"a": 1}, True]
    if isinstance(value, dict | list) and value and rng.random() < 0.85:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = keys[rng.integers(len(keys))]
        copy = value.copy()
        copy[key] = mutate(copy[key], rng)
        return copy
    return others[rng.integers(len(others))]


def test_damaged_records_raise_nothing_but_bad_episode(make_episode: Callable[..., Episode]) -> None:
    rng = np.random.default_rng(0)
    original = make_episode(1, 4)
    record = pack(original)
    refused = 0
    for trial in range(1500):
        if trial % 3 == 0:
            damaged = record[: rng.integers(len(record))]
        elif trial % 3 == 1:
            damaged = bytearray(record)
            for _ in range(rng.integers(1, 5)):
                damaged[rng.integers(min(400, len(record)))] = rng.integers(256)
            damaged = bytes(damaged)
        else:
            damaged = msgpack.packb(mutate(msgpack.unpackb(record), rng))
        try:
            assert len(unpack(damaged)) >= 1
        except BadEpisode:
            refused += 1
    assert refused > 1000
