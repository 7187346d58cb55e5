"""Samples cut out of the episodes of a store: what every kind of them shares."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import numpy as np

from wamjax.data.episode import ANNOTATION, ANNOTATIONS, BadEpisode, Episode, Video
from wamjax.data.retry import persistently
from wamjax.data.selection import Runs, Selection, kept
from wamjax.data.storage import brief
from wamjax.data.store import EpisodeStore
from wamjax.data.video import decode
from wamjax.errors import UserError

Batch = dict[str, np.ndarray]
Tokenize = Callable[[str], np.ndarray]

EVERYTHING = Selection()
T = TypeVar("T")


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

    def instructions(self, step: int) -> tuple[str, ...]:
        """The instructions of which any holds at `step`; "" where there is none."""
        return (
            self.language[int(self.annotation[step]) :][:1] if self.annotation is not None else self.language or ("",)
        )

    def instruction(self, step: int, key: tuple[int, ...]) -> str:
        """The instruction at `step`, drawn by `key` where there are several; "" where there is none."""
        return drawn(self.instructions(step), key)


def drawn(choices: Sequence[T], key: tuple[int, ...]) -> T:
    """One of several, by a key."""
    return choices[int(np.random.default_rng(key).integers(len(choices)))] if len(choices) > 1 else choices[0]


class Reader(Protocol):
    """What gives samples by their number; safe for threads, picklable.

    Attributes:
        starts: the steps at which samples begin.
        sizes: what datasets of a mixture must have in common, by name.
    """

    @property
    def starts(self) -> Runs: ...

    @property
    def sizes(self) -> dict[str, Any]: ...

    @property
    def store(self) -> Any:
        """What is read; its `folder` is where it lies."""

    @property
    def clips(self) -> int:
        """Number of samples."""

    def read(self, number: int, key: tuple[int, ...]) -> Batch:
        """Sample `number` without its batch axis; `key` decides where anything about it is drawn."""

    def share(self, parts: int) -> None:
        """Leaves only one part in so many of its memory: there are others like this reader."""


class Remembered:
    """A tokeniser that looks at every instruction once; picklable if the tokeniser is."""

    def __init__(self, tokenize: Tokenize, dtype: Any = None):
        self._tokenize, self._dtype = tokenize, dtype
        self._known = functools.lru_cache(maxsize=4096)(self._look)

    def __call__(self, text: str) -> np.ndarray:
        return self._known(text)

    def _look(self, text: str) -> np.ndarray:
        return np.asarray(self._tokenize(text), self._dtype)

    def __reduce__(self) -> tuple[Any, ...]:
        return Remembered, (self._tokenize, self._dtype)


class EpisodeReader:
    """Cuts samples out of a store, keeping decoded episodes in memory while there is room; safe for threads, picklable.

    Samples are drawn uniformly, so no episode is likelier to return than another: once the cache is full it
    keeps what it has (evicting could not raise the hit rate), and of the others only the sample is decoded.

    A subclass says how many samples an episode gives at most (`counts`), cuts the one at a step (`cut`), and has
    `tokenize`, what it makes of instructions.

    Args:
        store, selection: what samples are cut from, and where they may begin.
        cameras, state, action: what of an episode they hold. images: "true", or "zero" for pictures without content.
        cache_bytes: memory for decoded episodes.

    Attributes:
        starts: the steps at which samples begin.
        sizes: what datasets of a mixture must have in common, by name.

    Raises:
        UserError: a camera or field that the dataset lacks.
    """

    tokenize: Tokenize

    def __init__(
        self,
        store: EpisodeStore,
        cameras: tuple[str, ...],
        state: tuple[str, ...],
        action: tuple[str, ...],
        *,
        selection: Selection = EVERYTHING,
        images: str = "true",
        cache_bytes: int = 0,
    ):
        self.store, self.cameras, self.state, self.action, self.images = store, cameras, state, action, images
        self.size = _view_size(store, cameras, (*state, *action))
        fields = {name: int(np.prod(store.fields[name]["shape"])) for name in (*state, *action)}
        self.sizes: dict[str, Any] = {f"camera '{name}'": self.size for name in cameras}
        self.sizes |= {f"step field '{name}'": size for name, size in fields.items()}
        self.starts = kept(store, selection).before(self.counts(np.asarray(store.lengths, np.int64)))
        self._step_bytes = 4 * sum(fields.values()) + 3 * len(cameras) * self.size[0] * self.size[1]
        self._cache: dict[int, Source] = {}
        self._room = cache_bytes
        self._lock = threading.Lock()

    def counts(self, lengths: np.ndarray) -> np.ndarray:
        """Number of samples of episodes of so many steps, which begin at their steps 0, 1, ..."""
        return lengths

    def cut(self, source: Source, step: int, key: tuple[int, ...]) -> Batch:
        """The sample at a step, without its batch axis; `key` decides where anything about it is drawn.

        Raises:
            BadEpisode: the episode or its video is damaged there.
        """
        raise NotImplementedError

    @property
    def clips(self) -> int:
        """Number of samples."""
        return len(self.starts)

    def read(self, number: int, key: tuple[int, ...]) -> Batch:
        """Sample `number` without its batch axis; `key` decides where anything about it is drawn.

        Raises:
            BadEpisode: it cannot be read, or is not what the dataset says.
            UserError: the storage cannot be reached for long.
        """
        index, step = self.starts.locate(number)
        try:
            sample = persistently(lambda: self.cut(self.source(index), step, key), self.store.folder)
        except OSError as error:
            raise BadEpisode(f"it cannot be read ({brief(error)})") from error
        for name, values in sample.items():
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                raise BadEpisode(f"'{name}' has numbers that are not finite")
        return sample

    def source(self, index: int) -> Source:
        """Episode `index`, from the cache, or decoded as a whole if the cache has room for it."""
        if (source := self._cache.get(index)) is not None:
            return source
        episode = self.store[index]
        language, annotation = _language(episode)
        source = Source(
            state=self._vectors(episode, self.state),
            actions=self._vectors(episode, self.action),
            language=language,
            annotation=annotation,
            frames=None,
            videos=self._videos(episode),
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

    def share(self, parts: int) -> None:
        """Leaves only one part in so many of the room for decoded episodes: there are others like this reader."""
        self._room //= parts

    def _videos(self, episode: Episode) -> tuple[Video, ...]:
        """The recordings of the cameras, which must be there and of the dataset's size."""
        found = [episode.videos.get(camera) for camera in self.cameras]
        for camera, video in zip(self.cameras, found, strict=True):
            if video is None or (video.height, video.width) != self.size:
                size = "no recording" if video is None else f"{video.height}x{video.width} pixels"
                raise BadEpisode(f"camera '{camera}' has {size}, expected {self.size[0]}x{self.size[1]} pixels")
        return tuple(video for video in found if video is not None)

    def _vectors(self, episode: Episode, names: Sequence[str]) -> np.ndarray:
        """Step fields side by side as float32 vectors (T, n)."""
        parts = [np.empty((len(episode), 0))]
        for name in names:
            values = episode.steps.get(name, np.empty((len(episode), 0)))
            size = self.sizes[f"step field '{name}'"]
            if values.size != len(episode) * size:
                raise BadEpisode(f"step field '{name}' has {values.size} numbers, not {size} for each step")
            parts.append(values.reshape(len(episode), size))
        return np.concatenate([part.astype(np.float32) for part in parts], axis=1)

    def _decode(self, videos: Sequence[Video], indices: np.ndarray) -> np.ndarray:
        if self.images == "zero":
            return np.zeros((len(videos), len(indices), *self.size, 3), np.uint8)
        return np.stack([decode(video, indices) for video in videos])

    def __getstate__(self) -> dict[str, Any]:
        """Without what is decoded: another process begins with its own."""
        held = sum(len(source.state) * self._step_bytes for source in self._cache.values())
        return vars(self) | {"_cache": {}, "_room": self._room + held, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock())


def alike(readers: Sequence[Reader]) -> None:
    """Refuses readers of datasets whose samples cannot be rows of one batch.

    Raises:
        UserError: names the dataset and what differs.
    """
    first, *others = readers
    for other in others:
        for name, size in other.sizes.items():
            if first.sizes.get(name, size) != size:
                there, here = (_told(each) for each in (first.sizes[name], size))
                raise UserError(
                    f"{name} has {here} in {other.store.folder}, but {there} in {first.store.folder}: "
                    "datasets of a mixture must agree in it"
                )


def _told(size: Any) -> str:
    return "x".join(map(str, size)) + " pixels" if isinstance(size, tuple) else f"{size:g}"


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
