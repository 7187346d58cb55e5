"""From a store to training batches: a batch is a pure function of (store, clip, seed, step).

A clip is one step t of one episode with the frames, state and actions around it; every step of every episode
is a clip (`chunks.py` cuts other samples). The global order is position p = step * batch_size + row; the epoch
p // clips has its own shuffle (Grain's index shuffle: arithmetic, no table of clips). Hence any number of
processes, threads and restarts sees the same batches, each process reading only its own rows.
"""

import contextlib
import functools
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from wamjax.data.episode import ANNOTATION, ANNOTATIONS, BadEpisode, Episode, Video
from wamjax.data.store import EpisodeStore
from wamjax.data.video import decode
from wamjax.errors import UserError

Batch = dict[str, np.ndarray]
Tokenize = Callable[[str], np.ndarray]

SAMPLE = "sample"
"""Name, in a batch that is asked for them, of the numbers of its samples in the dataset."""

REDRAWS = 20  # bad clips in a row, after which the dataset itself is taken to be damaged
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
    """

    cameras: tuple[str, ...]
    frame_offsets: tuple[int, ...] = (0, 4, 8)
    action_horizon: int = 8
    action: str = "action"
    state: tuple[str, ...] = ("observation/cartesian_position", "observation/gripper_position")
    images: str = "true"

    def __post_init__(self) -> None:
        if self.images not in ("true", "zero"):
            raise UserError(f"clip.images is '{self.images}': use 'true' or 'zero'")
        if not self.cameras or not self.frame_offsets or self.action_horizon < 1:
            raise UserError("a clip needs at least one camera, one frame offset and one action")


def batches(
    store: EpisodeStore,
    clip: ClipConfig,
    *,
    batch_size: int,
    seed: int,
    tokenize: Tokenize,
    start_step: int = 0,
    rows: Sequence[int] | None = None,
    cache_bytes: int = 512 << 20,
    threads: int | None = None,
    numbered: bool = False,
) -> Iterator[Batch]:
    """Endless batches from `start_step` on, prefetched by `threads` (default: the cores, at most 8).

    Args:
        store, clip: where the clips come from, and what each holds.
        batch_size: rows of the global batch; may exceed the number of clips.
        seed: of the shuffle, 0 .. 2**32 - 1.
        tokenize: instruction -> vector (l,); called once per instruction.
        rows: the rows of the global batch that this process wants (default: all).
        cache_bytes: memory for decoded episodes.
        numbered: whether to add which samples they are.

    Yields:
        frames: uint8 (b, v, t, h, w, 3) at step + frame_offsets, the nearest one where the episode has none;
        frame_mask: bool (b, t), False for those;
        state: float32 (b, s), as recorded;
        actions: float32 (b, horizon, a), as recorded, the last one repeated past the end;
        action_mask: bool (b, horizon), False for the repeated ones;
        language: float32 (b, l), the tokenised instruction ("" where there is none);
        sample: int64 (b,), where numbered: the clip, after redraws.

    Raises:
        UserError: a camera or field that the dataset lacks, or too many damaged episodes.
    """
    reader = _ClipReader(store, clip, tokenize, cache_bytes)
    return stream(
        reader, batch_size=batch_size, seed=seed, start_step=start_step, rows=rows, threads=threads, numbered=numbered
    )


def stream(
    reader: "EpisodeReader",
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    rows: Sequence[int] | None = None,
    threads: int | None = None,
    numbered: bool = False,
) -> Iterator[Batch]:
    """Endless batches of a reader's samples, in the order that the module describes; arguments as in `batches`.

    Raises:
        UserError: arguments out of range, or too many damaged episodes.
    """
    import grain  # here, because configs import this module and grain takes seconds

    wanted = range(batch_size) if rows is None else rows
    if not wanted or not set(wanted) <= set(range(batch_size)) or start_step < 0 or not 0 <= seed < 2**32:
        raise UserError(
            f"batch_size={batch_size}, rows={rows}, start_step={start_step}, seed={seed}: "
            "ask for rows of the batch, at least one, a step of at least 0 and a seed of 0 .. 2**32 - 1"
        )
    threads = threads or min(8, os.cpu_count() or 1)
    order = grain.MapDataset.range(reader.clips).shuffle(seed=seed)
    steps = grain.MapDataset.range(start_step, sys.maxsize // batch_size)
    load = functools.partial(_load, reader=reader, order=order, batch_size=batch_size, rows=wanted, seed=seed)
    load = functools.partial(load, numbered=numbered)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    return iter(steps.map(load).to_iter_dataset(options))


def episode_clips(store: EpisodeStore, clip: ClipConfig, episode: int, tokenize: Tokenize) -> Batch:
    """Every clip of one episode in order, as one batch (b = the episode's steps)."""
    reader = _ClipReader(store, clip, tokenize, cache_bytes=sys.maxsize)
    samples = [reader.read(number, (0, number)) for number in range(*reader.starts[episode : episode + 2])]
    return {name: np.stack([sample[name] for sample in samples]) for name in samples[0]}


def _load(
    step: int,
    *,
    reader: "EpisodeReader",
    order: Sequence[int],
    batch_size: int,
    rows: Sequence[int],
    seed: int,
    numbered: bool,
) -> Batch:
    """The wanted rows of one step's batch; `order`, indexed past its length, is shuffled anew each epoch."""
    positions = [step * batch_size + row for row in rows]
    numbers, samples = zip(
        *(_draw(position, int(order[position]), reader, seed) for position in positions), strict=True
    )
    batch = {name: np.stack([sample[name] for sample in samples]) for name in samples[0]}
    return batch | {SAMPLE: np.array(numbers)} if numbered else batch


def _draw(position: int, number: int, reader: "EpisodeReader", seed: int) -> tuple[int, Batch]:
    """Clip `number`, or where it is damaged another one that depends on the seed and the position only; and which."""
    for attempt in range(REDRAWS):
        key = (seed, position, attempt)
        try:
            return number, reader.read(number, key)
        except BadEpisode as error:
            redrawn = int(np.random.default_rng(key).integers(reader.clips))
            _log.warning("sample %d: clip %d is replaced by clip %d: %s", position, number, redrawn, error)
            number = redrawn
    raise UserError(f"{REDRAWS} damaged clips in a row in {reader.store.folder}: collect the dataset again")


@dataclass(frozen=True)
class Source:
    """An episode ready to cut: state (T, s), actions (T, a), and frames (v, T, h, w, 3) or the videos.

    `annotation` (T,) are indices into `language` where the instruction changes with the steps; where it is None,
    any of `language` is an instruction for all of them.
    """

    state: np.ndarray
    actions: np.ndarray
    language: tuple[str, ...]
    annotation: np.ndarray | None
    frames: np.ndarray | None
    videos: tuple[Video, ...]

    def instruction(self, step: int, key: tuple[int, ...]) -> str:
        """The instruction at `step`, drawn by `key` where there are several; "" where there is none."""
        if self.annotation is not None:
            return self.language[int(self.annotation[step])]
        if len(self.language) > 1:
            return self.language[int(np.random.default_rng(key).integers(len(self.language)))]
        return self.language[0] if self.language else ""


class EpisodeReader:
    """Cuts samples out of a store, keeping decoded episodes in memory while there is room; safe for threads.

    Samples are drawn uniformly, so no episode is likelier to return than another: once the cache is full it
    keeps what it has (evicting could not raise the hit rate), and of the others only the sample is decoded.

    A subclass says how many samples there are (`starts`: of the first sample of each episode, and their number at
    the end) and cuts them (`read`).
    """

    starts: np.ndarray

    def __init__(
        self,
        store: EpisodeStore,
        cameras: tuple[str, ...],
        state: tuple[str, ...],
        action: tuple[str, ...],
        *,
        images: str,
        cache_bytes: int,
    ):
        self.store, self.cameras, self.state, self.action, self.images = store, cameras, state, action, images
        self.size = _view_size(store, cameras, (*state, *action))
        vectors = sum(int(np.prod(store.fields[name]["shape"])) for name in (*state, *action))
        self._step_bytes = 4 * vectors + 3 * len(cameras) * self.size[0] * self.size[1]
        self._cache: dict[int, Source] = {}
        self._room = cache_bytes
        self._lock = threading.Lock()

    @property
    def clips(self) -> int:
        """Number of samples."""
        return int(self.starts[-1])

    def read(self, number: int, key: tuple[int, ...]) -> Batch:
        """Sample `number` without its batch axis; `key` decides where anything about it is drawn.

        Raises:
            BadEpisode: the episode or its video is damaged.
        """
        raise NotImplementedError

    def locate(self, number: int) -> tuple[int, int]:
        """Episode of sample `number`, and the number that the sample has in it."""
        index = int(np.searchsorted(self.starts, number, side="right")) - 1
        return index, number - int(self.starts[index])

    def source(self, index: int) -> Source:
        """Episode `index`, from the cache, or decoded as a whole if the cache has room for it."""
        if (source := self._cache.get(index)) is not None:
            return source
        episode = self.store[index]
        language, annotation = _language(episode)
        source = Source(
            state=_vectors(episode, self.state),
            actions=_vectors(episode, self.action),
            language=language,
            annotation=annotation,
            frames=None,
            videos=tuple(episode.videos[camera] for camera in self.cameras),
        )
        if (size := len(episode) * self._step_bytes) <= self._room:
            # Damage elsewhere in the video must not decide about this sample, as it does not without a cache.
            with contextlib.suppress(BadEpisode):
                frames = self._decode(source.videos, np.arange(len(episode)))
                source = replace(source, frames=frames, videos=())
            with self._lock:
                if index not in self._cache and size <= self._room:
                    self._cache[index] = source
                    self._room -= size
        return source

    def pictures(self, source: Source, indices: np.ndarray) -> np.ndarray:
        """Frames (v, t, h, w, 3) at `indices` of every view."""
        return self._decode(source.videos, indices) if source.frames is None else source.frames[:, indices]

    def _decode(self, videos: Sequence[Video], indices: np.ndarray) -> np.ndarray:
        if self.images == "zero":
            return np.zeros((len(videos), len(indices), *self.size, 3), np.uint8)
        return np.stack([decode(video, indices) for video in videos])


class _ClipReader(EpisodeReader):
    """Cuts the clips of a `ClipConfig`."""

    def __init__(self, store: EpisodeStore, clip: ClipConfig, tokenize: Tokenize, cache_bytes: int):
        super().__init__(store, clip.cameras, clip.state, (clip.action,), images=clip.images, cache_bytes=cache_bytes)
        self.tokenize = functools.lru_cache(maxsize=4096)(lambda text: np.asarray(tokenize(text), np.float32))
        self.starts = np.cumsum(np.concatenate([[0], store.lengths]))
        self.offsets = np.array(clip.frame_offsets)
        self.horizon = np.arange(clip.action_horizon)

    def read(self, number: int, key: tuple[int, ...]) -> Batch:
        index, step = self.locate(number)
        source = self.source(index)
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


def _view_size(store: EpisodeStore, cameras: tuple[str, ...], fields: tuple[str, ...]) -> tuple[int, int]:
    """Height and width of the views, after checking that the store has all that is asked for."""
    for name in fields:
        if name not in store.fields:
            known = ", ".join(store.fields) or "none"
            raise UserError(f"no step field '{name}' in {store.folder}: choose among {known}")
    for name in cameras:
        if name not in store.cameras:
            known = ", ".join(store.cameras) or "none"
            raise UserError(f"no camera '{name}' in {store.folder}: choose among {known}")
    sizes = {store.cameras[name] for name in cameras}
    if len(sizes) > 1:
        raise UserError(f"cameras {', '.join(cameras)} differ in size {sorted(sizes)}: choose cameras of one size")
    return sizes.pop()


def _vectors(episode: Episode, names: Sequence[str]) -> np.ndarray:
    """Step fields side by side as float32 vectors (T, n)."""
    parts = [np.empty((len(episode), 0)), *(episode.steps[name].reshape(len(episode), -1) for name in names)]
    return np.concatenate([part.astype(np.float32) for part in parts], axis=1)


def _language(episode: Episode) -> tuple[tuple[str, ...], np.ndarray | None]:
    """The instructions, and which of them holds at which step (None: any of them)."""
    annotation = episode.steps.get(ANNOTATION)
    if annotation is None:
        return episode.language, None
    texts = episode.metadata.get(ANNOTATIONS)
    if not isinstance(texts, list) or annotation.shape != (len(episode),) or annotation.dtype.kind not in "iu":
        raise BadEpisode(f"'{ANNOTATION}' must be one index per step into the metadata '{ANNOTATIONS}'")
    if not 0 <= annotation.min() <= annotation.max() < len(texts):
        raise BadEpisode(f"'{ANNOTATION}' has indices outside the {len(texts)} texts of '{ANNOTATIONS}'")
    return tuple(map(str, texts)), annotation
