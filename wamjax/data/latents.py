"""Samples as frozen networks made them: latents, features and whatever else is trained on, read instead of frames.

    <split>-<first>.array_record   a record per sample, and its sealed description (`records.py`)
    texts-<first>.safetensors      what is made of prompts, once for each, and a sealed description beside it
    encoding.json                  what the job was begun with: only with the same it goes on
    encoded.json                   written last: the leaves, the shards, and what they were made of

A record holds the sample's number, episode and step, its leaves as raw little-endian numbers, and the keys of its
prompts. A damaged sample is a record that says so, and is replaced when it is drawn, as one of a dataset is.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 (names bfloat16)
import msgpack
import numpy as np

from wamjax.data.episode import BadEpisode
from wamjax.data.files import read_sealed, sha256
from wamjax.data.records import PathLike, Records, describe
from wamjax.data.samples import Batch, Reader, drawn
from wamjax.data.selection import Runs
from wamjax.data.storage import Place
from wamjax.errors import UserError

FORMAT = 1
ENCODED = "encoded.json"
TEXTS = "texts"
PROMPTS_KEPT = 512  # features of so many prompts stay in memory
_DAMAGE = (ValueError, TypeError, KeyError, msgpack.UnpackException)


@dataclass(frozen=True)
class Leaf:
    """One array of an encoded sample.

    Attributes:
        shape: without the batch axis. dtype: as the networks make it. kept: on the disk.
        prompt: whether it depends on the instruction alone.
    """

    shape: tuple[int, ...]
    dtype: str
    kept: str
    prompt: bool = False

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> Leaf:
        """From its fields."""
        return cls(tuple(said["shape"]), said["dtype"], said["kept"], said["prompt"])


def pack_sample(number: int, place: tuple[int, int], prompts: Sequence[str], leaves: Mapping[str, np.ndarray]) -> bytes:
    """A record: a sample's number in the dataset, its episode and step, the keys of its prompts, its leaves."""
    raw = {name: np.ascontiguousarray(leaf).tobytes() for name, leaf in sorted(leaves.items())}
    return _pack(number, place, {"prompts": list(prompts), "leaves": raw})


def pack_damaged(number: int, place: tuple[int, int], reason: str) -> bytes:
    """The record of a sample that cannot be read."""
    return _pack(number, place, {"damaged": reason})


def _pack(number: int, place: tuple[int, int], more: Mapping[str, Any]) -> bytes:
    return msgpack.packb({"format": FORMAT, "sample": number, "episode": place[0], "step": place[1], **more})


@dataclass(frozen=True)
class Sample:
    """A record.

    Attributes:
        number, episode, step: of the dataset's sample.
        prompts: keys of those of which any is its instruction.
        leaves: what is made of it. text: what is made of the first prompt, where that was looked up.
        damaged: why it could not be read; "" for a sound one.
    """

    number: int
    episode: int
    step: int
    prompts: tuple[str, ...] = ()
    leaves: Batch = field(default_factory=dict)
    text: Batch = field(default_factory=dict)
    damaged: str = ""


def unpack_sample(record: bytes, leaves: Mapping[str, Leaf]) -> Sample:
    """Reads a record of a cache with such leaves.

    Raises:
        BadEpisode: it is damaged, or of a newer format.
    """
    try:
        said = msgpack.unpackb(record)
        if said["format"] != FORMAT:
            raise ValueError(f"format {said['format']!r}")
        place = (said["sample"], said["episode"], said["step"])
        if "damaged" in said:
            return Sample(*place, damaged=said["damaged"])
        own = {name: leaf for name, leaf in leaves.items() if not leaf.prompt}
        return Sample(*place, tuple(said["prompts"]), {name: _array(own[name], said["leaves"][name]) for name in own})
    except _DAMAGE as error:
        raise BadEpisode(f"damaged record of an encoded sample ({error!r})") from error


def prompt_key(identity: str, tokens: np.ndarray) -> str:
    """SHA-256 of what the features of a prompt depend on: the encoder, and the tokens, whose number is the length."""
    tokens = np.ascontiguousarray(tokens)
    told = f"{identity}:{tokens.dtype.str}:{tokens.shape}:".encode()
    return hashlib.sha256(told + tokens.tobytes()).hexdigest()


def text_key(prompt: str, leaf: str) -> str:
    """Name of a tensor in a file of features."""
    return f"{prompt}/{leaf}"


class Encoded:
    """A finished cache of encoded samples; picklable, and safe for threads.

    Attributes:
        folder: where it is.
        leaves: what a sample has.
        made_of: what it was made of, as the job was told: dataset, frozen networks, sample, stride, ...
        splits: of the dataset. fingerprint: SHA-256 over all files.

    Raises:
        UserError: an unfinished cache, or one that is damaged.
    """

    def __init__(self, folder: PathLike):
        self.folder = Path(folder)
        path = self.folder / ENCODED
        if not path.exists():
            raise UserError(f"unfinished encoding in {folder}: run the same `wamjax data encode` again to go on")
        try:
            content = read_sealed(path)
            self.leaves = {name: Leaf.of(said) for name, said in content["leaves"].items()}
            self.made_of: dict[str, Any] = content["made_of"]
            self._dataset: str = content["folder"]
            self._splits: dict[str, Any] = content["splits"]
            self._texts: list[dict[str, Any]] = content["texts"]
            self.fingerprint: str = content["fingerprint"]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{path} is damaged ({error!r}): run `wamjax data encode` again") from error
        self.splits = tuple(self._splits)

    @property
    def dataset(self) -> str:
        """Where the dataset lies that was encoded: where it was then, or beside the cache.

        Raises:
            UserError: at neither.
        """
        for place in (Place.of(self._dataset), Place.of(self.folder.parent) / Path(self._dataset).name):
            if place.exists():
                return str(place)
        raise UserError(
            f"{self.folder} was made of {self._dataset}, which is not there, and whose statistics are needed: "
            "put it back, or beside the encoding"
        )

    def records(self, split: str) -> Records:
        """The records of a split, whose shards must be there."""
        shards = self._splits[split]["shards"]
        for shard in shards:
            self._told(shard)
        return Records([self.folder / shard["file"] for shard in shards], [shard["samples"] for shard in shards])

    def samples(self, split: str) -> Iterator[Sample]:
        """The samples of a split in order, but for damaged ones."""
        records, prompts = self.records(split), self.prompts()
        for number in range(len(records)):
            sample = unpack_sample(records[number], self.leaves)
            if not sample.damaged:
                yield dataclasses.replace(sample, text=prompts[sample.prompts[0]])

    @functools.cached_property
    def texts(self) -> dict[str, str]:
        """Prompts by their keys."""
        return {key: text for file in self._texts for key, text in self._told(file)["prompts"].items()}

    @property
    def empty(self) -> Batch:
        """What is made of the empty prompt."""
        return self.prompts()[next(key for key, text in self.texts.items() if not text)]

    def verify(self) -> None:
        """Compares the SHA-256 of every file.

        Raises:
            UserError: one has changed.
        """
        for file in [shard for split in self._splits.values() for shard in split["shards"]] + self._texts:
            if sha256(path := self.folder / file["file"]) != file["sha256"]:
                raise UserError(f"{path} has changed since it was encoded: delete it and encode it again")

    def prompts(self) -> Prompts:
        """The features of all prompts."""
        places = {key: self.folder / file["file"] for file in self._texts for key in self._told(file)["prompts"]}
        return Prompts(places, {name: leaf for name, leaf in self.leaves.items() if leaf.prompt})

    def _told(self, file: dict[str, Any]) -> dict[str, Any]:
        """The description of a file, which must be there."""
        path = self.folder / file["file"]
        found = describe(path)
        if found is None or found["sha256"] != file["sha256"]:
            raise UserError(f"{path} is missing or not the one encoded: encode it again")
        return found


class Prompts:
    """Features of prompts by their keys, of which those used last stay in memory; picklable."""

    def __init__(self, places: Mapping[str, Path], leaves: Mapping[str, Leaf]):
        self._places, self._leaves = places, leaves
        self._known = functools.lru_cache(maxsize=PROMPTS_KEPT)(self._read)

    def __getitem__(self, key: str) -> Batch:
        return {name: self._filled(rows, self._leaves[name].shape) for name, rows in self._known(key).items()}

    @staticmethod
    def _filled(rows: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """With the zeros at the end that are not kept."""
        filled = np.zeros(shape, rows.dtype)
        filled[: len(rows)] = rows
        return filled

    def _read(self, key: str) -> Batch:
        import safetensors

        with safetensors.safe_open(self._places[key], "np") as file:
            return {name: file.get_tensor(text_key(key, name)) for name in self._leaves}

    def __reduce__(self) -> tuple[Any, ...]:
        return Prompts, (self._places, self._leaves)


class EncodedReader:
    """Encoded samples by their numbers, for `pipeline.stream`: where all starts are encoded, in the very order of the
    dataset's own.

    Args:
        cache, split: what is read.
        encoded: the dataset's samples, of which are those in the cache.

    Raises:
        UserError: the cache is of other samples.
    """

    def __init__(self, cache: Encoded, split: str, encoded: Reader):
        self.store, (_, self.starts) = cache, every(encoded.starts, cache.made_of["stride"])
        self.sizes: dict[str, Any] = encoded.sizes
        self._records, self._prompts = cache.records(split), cache.prompts()
        if len(self._records) != len(self.starts):
            raise UserError(
                f"{cache.folder} has {len(self._records)} samples of split '{split}', the dataset gives "
                f"{len(self.starts)}: encode it again"
            )

    @property
    def clips(self) -> int:
        """Number of samples."""
        return len(self._records)

    def read(self, number: int, key: tuple[int, ...]) -> Batch:
        """The leaves of a sample, without the batch axis; which of several prompts is drawn by `key`.

        Raises:
            BadEpisode: the sample was damaged, or its record is.
        """
        sample = unpack_sample(self._records[number], self.store.leaves)
        if sample.damaged:
            raise BadEpisode(sample.damaged)
        return sample.leaves | self._prompts[drawn(sample.prompts, key)]

    def share(self, parts: int) -> None:
        """Nothing: samples are read from the files each time."""


def every(starts: Runs, stride: int) -> tuple[Sequence[int], Runs]:
    """Of the samples that begin at these steps, those at every `stride`-th step of an episode: numbers, and steps."""
    if stride == 1:
        return range(len(starts)), starts
    before = np.concatenate([[0], starts.ends])
    runs = np.repeat(np.arange(len(starts.ends)), np.diff(before))
    steps = (starts.first - before[:-1])[runs] + np.arange(len(starts))
    numbers = np.flatnonzero(steps % stride == 0)
    return numbers.tolist(), Runs.of(starts.episode[runs[numbers]], steps[numbers], steps[numbers] + 1)


def _array(leaf: Leaf, raw: bytes) -> np.ndarray:
    return np.frombuffer(raw, np.dtype(leaf.kept)).reshape(leaf.shape)
