"""From datasets to training batches: a batch is a pure function of (datasets, samples, seed, step).

A clip is one step t of one episode with the frames, state and actions around it; every selected step of every episode
is a clip (`chunks.py` and `films.py` cut other samples). Which samples a step has is arithmetic (`sampling.py`), and a
sample that cannot be read is replaced by one that depends on the seed and its place only. Hence any number of hosts,
worker processes, threads and restarts sees the same batches, each host reading only its own rows.
"""

import contextlib
import ctypes
import json
import logging
import multiprocessing
import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, Unpack

import numpy as np

from wamjax.data.episode import BadEpisode
from wamjax.data.mixture import Dataset, parts
from wamjax.data.samples import EVERYTHING, Batch, EpisodeReader, Reader, Remembered, Source, Tokenize, alike
from wamjax.data.sampling import Order
from wamjax.data.selection import Selection
from wamjax.data.store import EpisodeStore
from wamjax.errors import UserError

SAMPLE, DATASET, REPLACED = "sample", "dataset", "replaced"
"""Names, in a batch that is asked for them, of what stays on the host; see `Options`."""
ON_HOST = (SAMPLE, DATASET, REPLACED)
FRAMES = "frames"
"""Name, in a batch, of the frames, uint8 (b, v, t, h, w, 3)."""
AUGMENTATION = "augmentation"
"""Name, in a batch that is asked for them, of random keys: uint32 (b, 2), for `augment.augment`."""

REDRAWS = 20  # bad samples in a row, after which the dataset itself is taken to be damaged
CACHE_BYTES = 512 << 20
TRIM = 200  # batches after which a process gives freed memory back
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClipConfig:
    """What a training sample holds.

    Attributes:
        cameras: names of the views, in the order of the view axis.
        frame_offsets: steps from the clip's step to each of its frames; negative ones look back.
        action_horizon: number of actions, the first being the one at the clip's step.
        action: step field with the actions to learn.
        state: step fields concatenated into the state vector.
        images: "true", or "zero" for a policy that must do without seeing.
        fps: what a step is, per second; of datasets of another rate the nearest recorded steps are taken, which suits
            actions that are targets, not differences. 0: as recorded.
    """

    cameras: tuple[str, ...]
    frame_offsets: tuple[int, ...] = (0, 4, 8)
    action_horizon: int = 8
    action: str = "action"
    state: tuple[str, ...] = ("observation/cartesian_position", "observation/gripper_position")
    images: str = "true"
    fps: float = 0.0

    def __post_init__(self) -> None:
        if self.images not in ("true", "zero"):
            raise UserError(f"clip.images is '{self.images}': use 'true' or 'zero'")
        if not self.cameras or not self.frame_offsets or self.action_horizon < 1:
            raise UserError("a clip needs at least one camera, one frame offset and one action")
        if not self.fps >= 0:
            raise UserError(f"clip.fps is {self.fps}: give steps per second, or 0 for those recorded")


@dataclass(frozen=True)
class DataConfig:
    """How an experiment reads its datasets.

    Attributes:
        selection: steps at which samples begin.
        frames: lengths of films, of which every step has one; (): the policy's. shares: of the steps that each length
            has, in proportion; (): equal ones.
        workers: processes that read beside the training process; 0 for none. cache_mib: memory for decoded episodes
            in MiB, of all of them together. Neither changes a batch.
    """

    selection: Selection = EVERYTHING
    frames: tuple[int, ...] = ()
    shares: tuple[float, ...] = ()
    workers: int = 0
    cache_mib: int = CACHE_BYTES >> 20

    def __post_init__(self) -> None:
        if self.workers < 0 or self.cache_mib < 0:
            raise UserError(f"data.workers={self.workers}, data.cache_mib={self.cache_mib}: neither is below 0")
        if len(set(self.frames)) < len(self.frames):
            raise UserError(f"data.frames={self.frames}: give each length once")
        if self.shares and (len(self.shares) != len(self.frames) or not all(share > 0 for share in self.shares)):
            raise UserError(
                f"data.shares={self.shares} for data.frames={self.frames}: give each length a positive one, or none"
            )


class Options(TypedDict, total=False):
    """How a stream of batches is read.

    start_step: number of the first batch.
    rows: the rows of the global batch that this process wants; default: all.
    threads: that prefetch; default: the cores, at most 8, shared by the workers.
    workers: processes that read; 0: none but this one. They get the pickled readers and a part of the memory each.
    numbered: add `sample` int64 (b,), the numbers of the samples over all datasets in their order, after redraws;
        `dataset` int64 (b,); and, where some had to be replaced, `replaced` uint8 (n,), see `replaced`.
    keyed: add `augmentation` uint32 (b, 2), random keys that depend on the seed and the row's position.
    """

    start_step: int
    rows: Sequence[int] | None
    threads: int | None
    workers: int
    numbered: bool
    keyed: bool


@dataclass(frozen=True)
class Bucket:
    """Samples of one shape.

    Attributes:
        readers: of its datasets. weights: of every so many samples, so many are of each.
        share: of all steps, so many are of this bucket, in proportion to the others.

    Raises:
        UserError: datasets that differ in what a batch has, or one without samples.
    """

    readers: tuple[Reader, ...]
    weights: tuple[float, ...] = (1.0,)
    share: float = 1.0

    def __post_init__(self) -> None:
        for each in self.readers:
            if not each.clips:
                raise UserError(f"no step in {each.store.folder} is selected: choose another data.selection")
        alike(self.readers)

    @classmethod
    def of(
        cls,
        store: Dataset,
        reader: Callable[[EpisodeStore, int], Reader],
        cache_bytes: int = CACHE_BYTES,
        share: float = 1.0,
    ) -> "Bucket":
        """Of a dataset or a mixture, given how a store is read with so much memory."""
        stores = parts(store)
        readers = tuple(reader(one, cache_bytes // len(stores)) for one, _ in stores)
        return cls(readers, tuple(weight for _, weight in stores), share)


def batches(
    store: Dataset,
    clip: ClipConfig,
    *,
    batch_size: int,
    seed: int,
    tokenize: Tokenize,
    selection: Selection = EVERYTHING,
    cache_bytes: int = CACHE_BYTES,
    **options: Unpack[Options],
) -> Iterator[Batch]:
    """Endless batches of clips.

    Args:
        store, clip: where the clips come from, and what each holds.
        batch_size: rows of the global batch; may exceed the number of clips.
        seed: of the shuffle, 0 .. 2**32 - 1.
        tokenize: instruction -> vector (l,); called once per instruction.
        selection: steps at which clips are.
        cache_bytes: memory for decoded episodes.
        options: see `Options`.

    Yields:
        frames: uint8 (b, v, t, h, w, 3) at step + frame_offsets, the nearest one where the episode has none;
        frame_mask: bool (b, t), False for those;
        state: float32 (b, s), as recorded;
        actions: float32 (b, horizon, a), as recorded, the last one repeated past the end;
        action_mask: bool (b, horizon), False for the repeated ones;
        language: float32 (b, l), the tokenised instruction ("" where there is none);
        and what `options` ask for.

    Raises:
        UserError: a camera or field that a dataset lacks, or too many damaged episodes.
    """
    bucket = Bucket.of(store, lambda one, room: ClipReader(one, clip, tokenize, room, selection), cache_bytes)
    return stream([bucket], batch_size=batch_size, seed=seed, **options)


def episode_clips(store: EpisodeStore, clip: ClipConfig, episode: int, tokenize: Tokenize) -> Batch:
    """Every clip of one episode in order, as one batch (b = the episode's steps)."""
    reader = ClipReader(store, clip, tokenize, sys.maxsize)
    samples = [reader.read(number, (0, number)) for number in reader.starts.within(episode)]
    return {name: np.stack([sample[name] for sample in samples]) for name in samples[0]}


def stream(buckets: Sequence[Bucket], *, batch_size: int, seed: int, **options: Unpack[Options]) -> Iterator[Batch]:
    """Endless batches of the buckets' samples, one bucket per step; arguments as in `batches`.

    Raises:
        UserError: arguments out of range; while reading: too many damaged episodes, or storage that does not answer.
    """
    import grain  # here, because configs import this module and grain takes seconds

    rows, start, workers = options.get("rows"), options.get("start_step", 0), options.get("workers", 0)
    wanted = range(batch_size) if rows is None else rows
    if not wanted or not set(wanted) <= set(range(batch_size)) or start < 0 or workers < 0 or not 0 <= seed < 2**32:
        raise UserError(
            f"batch_size={batch_size}, rows={rows}, start_step={start}, workers={workers}, seed={seed}: ask for rows "
            "of the batch, at least one, a step and workers of at least 0 and a seed of 0 .. 2**32 - 1"
        )
    threads = options.get("threads") or max(1, min(8, os.cpu_count() or 1) // max(1, workers))
    for reader in (reader for bucket in buckets for reader in bucket.readers):
        reader.share(max(1, workers))
    load = _Loader(tuple(buckets), batch_size, seed, tuple(wanted), options)
    steps = grain.MapDataset.range(start, sys.maxsize // batch_size).map(load)
    found = steps.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads))
    if workers:
        _parsed_flags()
        shape = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
        found = found.mp_prefetch(shape, worker_init_fn=_begin_worker)
    return _Batches(iter(found))


def replaced(batch: Batch) -> list[dict[str, Any]]:
    """What a batch says of samples that had to be replaced, in the order of its rows.

    `row` of the global batch, `dataset` (its folder), `sample` (its number there), `episode`, `at` (its step there),
    `reason`, and `instead`, the sample drawn in its place, which may be bad as well and follow.
    """
    return json.loads(batch[REPLACED].tobytes()) if REPLACED in batch else []


class _Loader:
    """The wanted rows of a step's batch; picklable."""

    def __init__(
        self, buckets: tuple[Bucket, ...], batch_size: int, seed: int, rows: tuple[int, ...], options: Options
    ):
        self._buckets, self._batch_size, self._rows, self._seed = buckets, batch_size, rows, seed
        self._numbered, self._keyed = options.get("numbered", False), options.get("keyed", False)
        sizes = [[reader.clips for reader in bucket.readers] for bucket in buckets]
        weights = [bucket.weights for bucket in buckets]
        self._order = Order(sizes, weights, [bucket.share for bucket in buckets], batch_size, seed)
        self._first = [0, *np.cumsum([size for each in sizes for size in each]).tolist()]
        self._places = np.cumsum([0] + [len(each) for each in sizes]).tolist()
        self._loads = 0

    def __call__(self, step: int) -> Batch:
        self._loads += 1  # of this process; a few more or less, as threads go, do not matter
        if self._loads % TRIM == 0:
            _trim()
        drawn = [self._row(step, row) for row in self._rows]
        samples = [sample for sample, *_ in drawn]
        batch = {name: _stacked([sample[name] for sample in samples]) for name in samples[0]}
        if self._numbered:
            places = np.array([place for _, place, *_ in drawn])
            batch[DATASET], batch[SAMPLE] = places, np.array([number for _, _, number, _ in drawn])
            if told := [entry for *_, entries in drawn for entry in entries]:
                batch[REPLACED] = np.frombuffer(json.dumps(told).encode(), np.uint8)
        if self._keyed:
            positions = [step * self._batch_size + row for row in self._rows]
            batch[AUGMENTATION] = np.stack(
                [np.random.SeedSequence((self._seed, one)).generate_state(2, np.uint32) for one in positions]
            )
        return batch

    def _row(self, step: int, row: int) -> tuple[Batch, int, int, list[dict[str, Any]]]:
        """A row's sample, its dataset and number over all of them, and what had to be replaced by it.

        A replacement is of the same dataset, so that weights hold, and depends on the seed and the position alone.
        """
        bucket, dataset, number = self._order.sample(step, row)
        reader, place = self._buckets[bucket].readers[dataset], self._places[bucket] + dataset
        told: list[dict[str, Any]] = []
        for attempt in range(REDRAWS):
            key = (self._seed, step * self._batch_size + row, attempt)
            try:
                return reader.read(number, key), place, self._first[place] + number, told
            except BadEpisode as error:
                instead = int(np.random.default_rng(key).integers(reader.clips))
                episode, at = reader.starts.locate(number)
                told.append(
                    {"row": row, "dataset": str(reader.store.folder), "sample": number, "episode": episode, "at": at}
                    | {"reason": str(error), "instead": instead}
                )
                where = f"batch {step}, row {row}: clip {number} of {reader.store.folder}"
                _log.warning("%s is replaced by clip %d: %s", where, instead, str(error))
                number = instead
        raise UserError(f"{REDRAWS} damaged clips in a row in {reader.store.folder}: collect the dataset again")


def _stacked(rows: list[np.ndarray]) -> np.ndarray:
    """The rows in one array, in C order whatever theirs is: workers share no others, but send them through a pipe."""
    return np.stack(rows, out=np.empty((len(rows), *np.shape(rows[0])), np.asarray(rows[0]).dtype))


def _trim() -> None:
    """Gives freed memory back: of what decoders free between longer-lived arrays glibc would keep ever more."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)


class _Batches(Iterator[Batch]):
    """The batches; threads and workers end when it is closed or forgotten, and while Python can still end them."""

    def __init__(self, found: Any):
        self._found = [found]
        self.close = weakref.finalize(self, _end, self._found)

    def __next__(self) -> Batch:
        if not self._found:
            raise StopIteration
        return _forgotten(next(self._found[0]))


def _end(found: list[Any]) -> None:
    found.pop().close()


def _forgotten(batch: Batch) -> Batch:
    """A batch whose shared memory has lost its name, so that it goes with the arrays, however the program ends.

    Grain takes the name away when an array is deleted, by a thread that may not get to it any more.
    """
    for array in batch.values():
        if getattr(array, "_unlink_on_del", False):
            vars(array)["shm"].unlink()
            vars(array)["_unlink_on_del"] = False
    return batch


def _parsed_flags() -> None:
    """Grain's workers read flags of absl, which nothing here has parsed."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def _begin_worker(worker: int, workers: int) -> None:
    """A worker never touches an accelerator, leaves signals to the process that started it, and ends with it."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if (parent := multiprocessing.parent_process()) is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


class ClipReader(EpisodeReader):
    """Cuts the clips of a `ClipConfig`."""

    def __init__(
        self,
        store: EpisodeStore,
        clip: ClipConfig,
        tokenize: Tokenize,
        cache_bytes: int,
        selection: Selection = EVERYTHING,
    ):
        options: Any = {"selection": selection, "images": clip.images, "cache_bytes": cache_bytes}
        super().__init__(store, clip.cameras, clip.state, (clip.action,), **options)
        if not clip.fps:
            self.sizes["steps per second (see clip.fps)"] = store.fps
        rate = store.fps / clip.fps if clip.fps else 1.0
        self.tokenize = Remembered(tokenize, np.float32)
        self.offsets = np.rint(np.array(clip.frame_offsets) * rate).astype(np.int64)
        self.horizon = np.rint(np.arange(clip.action_horizon) * rate).astype(np.int64)

    def cut(self, source: Source, step: int, key: tuple[int, ...]) -> Batch:
        frames, steps = step + self.offsets, step + self.horizon
        last = len(source.actions) - 1
        shown, taken = frames.clip(0, last), steps.clip(0, last)
        return {
            "frames": self.pictures(source, shown),
            "frame_mask": frames == shown,
            "state": source.state[step],
            "actions": source.actions[taken],
            "action_mask": steps == taken,
            "language": self.tokenize(source.instruction(step, key)),
        }
