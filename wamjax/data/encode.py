"""The job that makes a cache of encoded samples (`latents.py`): shard by shard, by any number of processes.

A shard is some consecutive samples of a split. It is encoded in batches of one size that begin with it, so that its
bytes do not depend on what was done before, or by whom. Prompts come last, when all are known.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
import itertools
import logging
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wamjax.config import flat
from wamjax.data.episode import BadEpisode
from wamjax.data.files import replacing, sha256, write_json, write_sealed
from wamjax.data.latents import (
    ENCODED,
    FORMAT,
    TEXTS,
    Leaf,
    every,
    pack_damaged,
    pack_sample,
    prompt_key,
    text_key,
)
from wamjax.data.records import BEGUN, describe, shard_path, write_shard
from wamjax.data.samples import Batch, EpisodeReader, Source
from wamjax.data.storage import Place, read_json
from wamjax.errors import UserError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Encoder:
    """Frozen networks, ready to run.

    Attributes:
        samples: a batch of samples -> their leaves (b, ...), which may still be on their way.
        prompts: tokens (b, l) -> the leaves that depend on nothing else (b, ...).
        leaves: what they make. batch: rows of every call.
        identity: of what prompts are encoded by.
    """

    samples: Callable[[Batch], Mapping[str, Any]]
    prompts: Callable[[np.ndarray], Mapping[str, Any]]
    leaves: Mapping[str, Leaf]
    batch: int
    identity: str


@dataclass(frozen=True)
class Job:
    """What is encoded into which folder.

    Attributes:
        folder: of the cache.
        readers: the dataset's samples, by split; their episodes stay in memory as far as the readers have room.
        stride: samples at every so many-th step of an episode are encoded. shard: samples, and prompts, per file.
        made_of: what else the result depends on, JSON: only with the same a job goes on.
        dataset: where the dataset lies.
    """

    folder: Path
    readers: Mapping[str, EpisodeReader]
    stride: int
    shard: int
    made_of: Mapping[str, Any]
    dataset: str

    def shards(self) -> list[tuple[str, str, Sequence[int]]]:
        """Split, name and sample numbers of every shard."""
        found = []
        for split, reader in self.readers.items():
            numbers, _ = every(reader.starts, self.stride)
            found += [(split, f"{i:09d}", numbers[i : i + self.shard]) for i in range(0, len(numbers), self.shard)]
        return found


def begin(job: Job) -> None:
    """Notes what is encoded, or compares it with what was noted when that began.

    Raises:
        UserError: the folder holds something else.
    """
    file = job.folder / BEGUN
    if file.exists():
        then, now = flat(read_json(Place.of(file))), flat(job.made_of)
        other = sorted(key for key in then | now if then.get(key) != now.get(key))
        if other:
            told = "; ".join(f"{key} {then.get(key)!s:.80}, now {now.get(key)!s:.80}" for key in other)
            raise UserError(f"{job.folder} was begun with {told}: delete it or encode to elsewhere")
    elif job.folder.exists() and any(job.folder.iterdir()):
        raise UserError(f"{job.folder} holds something else already: encode to elsewhere")
    else:
        job.folder.mkdir(parents=True, exist_ok=True)
        write_json(file, dict(job.made_of))


def encode_samples(
    job: Job, encoder: Encoder, process: int = 0, processes: int = 1, done: Callable[[int], None] = lambda count: None
) -> None:
    """Writes this process's shards, but for those that are finished; `done` hears of the samples of each.

    Raises:
        UserError: the disk is full, or storage cannot be reached.
    """
    for split, name, numbers in job.shards()[process::processes]:
        path = shard_path(job.folder, split, name)
        if describe(path) is None:
            _log.info("encoding %s", path.name)
            reader = copy.copy(job.readers[split])  # with memory of its own, that ends with the shard
            write_shard(path, lambda write, r=reader, n=numbers: _fill(write, r, n, encoder), ENCODED)  # type: ignore[misc]
        done(len(numbers))


def encode_prompts(job: Job, encoder: Encoder, process: int = 0, processes: int = 1) -> None:
    """Writes this process's files of prompts, but for those that are finished; all samples must be encoded."""
    split, *_ = job.readers
    empty = prompt_key(encoder.identity, job.readers[split].tokenize(""))  # what guidance leads away from, often
    texts = {empty: (split, "")}  # by key: a split and an instruction
    for split, name, _ in job.shards():
        told = describe(shard_path(job.folder, split, name)) or {}
        texts |= {key: (split, text) for key, text in told.get("prompts", {}).items()}
    keys = sorted(texts)
    groups = [(i, keys[i : i + job.shard]) for i in range(0, len(keys), job.shard)]
    for first, group in groups[process::processes]:
        path = job.folder / f"{TEXTS}-{first:09d}.safetensors"
        if describe(path) is None:
            _log.info("encoding %s", path.name)
            tokens = {key: job.readers[texts[key][0]].tokenize(texts[key][1]) for key in group}
            _write_prompts(path, tokens, {key: texts[key][1] for key in group}, encoder)


def finish(job: Job, encoder: Encoder) -> dict[str, Any]:
    """Writes encoded.json once every shard is there; returns its content.

    Raises:
        UserError: one is missing.
    """
    splits: dict[str, Any] = {split: {"samples": 0, "damaged": 0, "shards": []} for split in job.readers}
    for split, name, numbers in job.shards():
        told = _finished(shard_path(job.folder, split, name))
        splits[split]["samples"] += len(numbers)
        splits[split]["damaged"] += told["damaged"]
        splits[split]["shards"].append({key: told[key] for key in ("file", "samples", "bytes", "sha256")})
    texts = [
        {key: told[key] for key in ("file", "bytes", "sha256")}
        for told in map(_finished, sorted(job.folder.glob(f"{TEXTS}-*.safetensors")))
    ]
    files = [shard for split in splits.values() for shard in split["shards"]] + texts
    content = {
        "format": FORMAT,
        "folder": job.dataset,
        "made_of": dict(job.made_of),
        "leaves": {name: dataclasses.asdict(leaf) for name, leaf in sorted(encoder.leaves.items())},
        "splits": splits,
        "texts": texts,
        "fingerprint": hashlib.sha256("".join(f"{f['file']}:{f['sha256']}\n" for f in files).encode()).hexdigest(),
    }
    write_sealed(job.folder / ENCODED, content)
    return content


def _fill(
    write: Callable[[bytes], None], reader: EpisodeReader, numbers: Sequence[int], encoder: Encoder
) -> dict[str, Any]:
    """Writes the records of a shard and describes it; a batch is read while the networks encode the one before."""
    told: dict[str, Any] = {"format": FORMAT, "samples": len(numbers), "damaged": 0}
    prompts: dict[str, str] = {}
    for sample, leaves in _made(reader, numbers, encoder):
        if isinstance(sample.content, BadEpisode):
            told["damaged"] += 1
            write(pack_damaged(sample.number, sample.place, str(sample.content)))
            continue
        keys = [prompt_key(encoder.identity, reader.tokenize(text)) for text in sample.instructions]
        prompts |= zip(keys, sample.instructions, strict=True)
        write(pack_sample(sample.number, sample.place, keys, leaves))
    return told | {"prompts": dict(sorted(prompts.items()))}


def _made(
    reader: EpisodeReader, numbers: Sequence[int], encoder: Encoder
) -> Iterator[tuple[_Sample, Mapping[str, np.ndarray]]]:
    """Samples in order, and what the networks make of each (of a damaged one, nothing to be used)."""
    behind: list[_Sample] = []
    making: Mapping[str, Any] = {}
    with contextlib.closing(_samples(reader, numbers, 2 * encoder.batch)) as samples:
        for batch in itertools.chain(iter(lambda: list(itertools.islice(samples, encoder.batch)), []), [[]]):
            begun = encoder.samples(_stacked([one.content for one in batch], encoder.batch)) if batch else {}
            made = {name: np.asarray(leaf) for name, leaf in making.items()}  # waits for it
            yield from ((one, {name: leaf[row] for name, leaf in made.items()}) for row, one in enumerate(behind))
            behind, making = batch, begun


@dataclass(frozen=True)
class _Sample:
    """A sample, or why it cannot be read; where it begins, and the instructions of which any is its."""

    number: int
    place: tuple[int, int]
    instructions: tuple[str, ...]
    content: Batch | BadEpisode


def _samples(reader: EpisodeReader, numbers: Sequence[int], ahead: int) -> Generator[_Sample, None, None]:
    """Samples in order, so many read ahead by threads; an episode is opened once for all its samples."""
    opened: dict[int, Future[Source]] = {}
    running: deque[Future[_Sample]] = deque()

    def read(number: int, place: tuple[int, int], source: Future[Source]) -> _Sample:
        try:
            instructions = source.result().instructions(place[1])
            return _Sample(number, place, instructions, reader.read(number, (0, number)))
        except BadEpisode as error:
            return _Sample(number, place, (), error)

    with ThreadPoolExecutor() as pool:
        try:
            for number in numbers:
                place = reader.starts.locate(number)
                if place[0] not in opened:
                    opened[place[0]] = pool.submit(reader.source, place[0])  # before its samples, which wait for it
                running.append(pool.submit(read, number, place, opened[place[0]]))
                if len(running) > ahead:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _stacked(samples: Sequence[Batch | BadEpisode], rows: int) -> Batch:
    """A batch of so many rows; a sound one stands for those that are damaged or too few. Nothing where none is."""
    sound = [sample for sample in samples if not isinstance(sample, BadEpisode)]
    if not sound:
        return {}
    filled = [sound[0] if isinstance(sample, BadEpisode) else sample for sample in samples]
    filled += sound[:1] * (rows - len(filled))
    return {name: np.stack([sample[name] for sample in filled]) for name in sound[0]}


def _write_prompts(path: Path, tokens: Mapping[str, np.ndarray], texts: Mapping[str, str], encoder: Encoder) -> None:
    from safetensors.numpy import save_file

    tensors: dict[str, np.ndarray] = {}
    keys = list(tokens)
    for group in (keys[i : i + encoder.batch] for i in range(0, len(keys), encoder.batch)):
        stacked = _stacked([{"tokens": tokens[key]} for key in group], encoder.batch)["tokens"]
        for name, leaf in encoder.prompts(stacked).items():
            rows = np.asarray(leaf)
            tensors |= {text_key(key, name): _without_zeros(rows[row]) for row, key in enumerate(group)}
    path.with_name(ENCODED).unlink(missing_ok=True)
    path.with_suffix(".json").unlink(missing_ok=True)
    with replacing(path) as partial:
        save_file(tensors, partial)
        told = {"file": path.name, "bytes": partial.stat().st_size, "sha256": sha256(partial)}
    write_sealed(path.with_suffix(".json"), {"format": FORMAT, "prompts": dict(texts), **told})


def _without_zeros(rows: np.ndarray) -> np.ndarray:
    """Rows up to the last that is not all zero: encoders leave places without a token empty."""
    some = np.flatnonzero(rows.reshape(len(rows), -1).any(-1))
    return np.ascontiguousarray(rows[: some[-1] + 1 if len(some) else 0])


def _finished(path: Path) -> dict[str, Any]:
    told = describe(path)
    if told is None:
        raise UserError(f"{path} is not encoded yet: run the same command again to go on")
    return told
