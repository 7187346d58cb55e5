"""Training samples of DreamZero: up to four chunks of one task, each 24 actions beside 8 frames.

A step s of an episode gives a chunk at s, and others before and after it as far as the task and the episode go, all at
the robot's rate: of a dataset that has another the nearest recorded steps are taken. The order of samples, the redraw
of damaged ones and the cache are those of `pipeline.py`.

Source: DreamZero (arXiv 2602.15922), `groot/vla/data/dataset/lerobot_sharded.py`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Unpack

import numpy as np
from jaxtyping import Int64

from wamjax.data.embodiments import Embodiment, Field
from wamjax.data.episode import BadEpisode
from wamjax.data.mixture import Dataset
from wamjax.data.pipeline import CACHE_BYTES, Bucket, Options, stream
from wamjax.data.samples import EVERYTHING, Batch, EpisodeReader, Remembered, Source, Tokenize
from wamjax.data.selection import Selection
from wamjax.data.store import EpisodeStore
from wamjax.errors import UserError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ChunkConfig:
    """How an episode is cut.

    Attributes:
        max_chunks: the most chunks of one sample.
        frames: frames per chunk; a sample has one more, at the end of its last chunk.
        stride: steps from one frame to the next.
        images: "true", or "zero" for a policy that must do without seeing.
    """

    max_chunks: int = 4
    frames: int = 8
    stride: int = 3
    images: str = "true"

    def __post_init__(self) -> None:
        if self.images not in ("true", "zero"):
            raise UserError(f"chunks.images is '{self.images}': use 'true' or 'zero'")
        if min(self.max_chunks, self.frames, self.stride) < 1:
            raise UserError("chunks: max_chunks, frames and stride must be at least 1")

    @property
    def actions(self) -> int:
        """Steps, and so actions, per chunk."""
        return self.frames * self.stride

    @classmethod
    def of(cls, embodiment: Embodiment, max_chunks: int = 4, images: str = "true") -> ChunkConfig:
        """The configuration with the frame rate and the chunk length of a robot."""
        return cls(max_chunks, embodiment.frames_per_chunk, embodiment.video_stride, images)


def anchors(length: int, step: int, config: ChunkConfig, annotation: np.ndarray | None = None) -> np.ndarray:
    """First steps of the chunks that `step` of an episode of `length` steps gives: ascending, maybe none.

    The chunk at `step` comes first, then alternately one before and one after those there are, each as long as
    `annotation` (T,) at its first step is that at `step`, up to `max_chunks`. Chunks must lie in the episode. The
    last one is left out if the step after it, whose frame ends the sample, is beyond the end; its place is not given
    to another.
    """
    size = config.actions
    chosen = [step] if step + size <= length else []
    directions, distance = [-1, 1], 0
    while directions and len(chosen) < config.max_chunks:
        distance += size
        for direction in list(directions):
            anchor = step + direction * distance
            if not 0 <= anchor < length or (annotation is not None and annotation[anchor] != annotation[step]):
                directions.remove(direction)
            elif anchor + size <= length and len(chosen) < config.max_chunks:
                chosen.append(anchor)
    return np.array([anchor for anchor in sorted(chosen) if anchor + size < length], np.int64)


def start_steps(length: int, config: ChunkConfig, rate: Fraction = Fraction(1)) -> int:
    """How many steps of an episode are drawn: from the first on, those behind which lie K steps of the robot's rate.

    Behind the last of them lie only K - 1, which are drawn if the first of these gives a chunk. In an episode whose
    task changes there, they may give none all the same.

    Args:
        rate: recorded steps per step of the robot's rate.
    """
    whole = max(0, math.floor(length - 1 - config.actions * rate) + 1)
    every = math.floor(length - 1 - (config.actions - 1) * rate) + 1
    if every > whole:
        steps, at = around(length, whole, rate)
        return every if len(anchors(len(steps), at, config)) else whole
    return whole


def around(length: int, step: int, rate: Fraction) -> tuple[Int64[np.ndarray, " n"], int]:
    """An episode at the robot's rate, one of whose steps is `step`: the recorded steps, and the place of that one."""
    before, after = math.floor(step / rate), math.floor((length - 1 - step) / rate)
    return step + np.rint(np.arange(-before, after + 1) * float(rate)).astype(np.int64), before


def chunk_batches(
    store: Dataset,
    embodiment: Embodiment,
    config: ChunkConfig,
    *,
    batch_size: int,
    seed: int,
    tokenize: Tokenize,
    selection: Selection = EVERYTHING,
    cache_bytes: int = CACHE_BYTES,
    **options: Unpack[Options],
) -> Iterator[Batch]:
    """Endless batches of chunks; the arguments are those of `pipeline.batches`, but for `embodiment` and `config`.

    Yields, with v views, N = max_chunks and K actions per chunk:
        frames: uint8 (b, v, frames * N + 1, h, w, 3), the last one repeated where there are fewer chunks;
        chunks: int32 (b,), how many there are, 1 .. N;
        state: float32 (b, N, s), as recorded at the first step of each chunk;
        actions: float32 (b, N * K, a), as recorded;
        action_mask: bool (b, N * K), False for chunks that are not there, and in datasets without actions;
        language: (b, l), the tokenised instruction of the sample's step ("" where there is none);
        and what `options` ask for.

    State and actions of chunks that are not there repeat those of the last one; a dataset without any of the action
    fields (or of the state fields) has zeros.

    Raises:
        UserError: a camera or field that the dataset lacks or that has another size, no episode that is long enough,
            or too many damaged episodes.
    """

    def reader(one: EpisodeStore, room: int) -> ChunkReader:
        return ChunkReader(one, embodiment, config, tokenize, room, selection)

    return stream([Bucket.of(store, reader, cache_bytes)], batch_size=batch_size, seed=seed, **options)


class ChunkReader(EpisodeReader):
    """Cuts the chunks of a `ChunkConfig`."""

    def __init__(
        self,
        store: EpisodeStore,
        embodiment: Embodiment,
        config: ChunkConfig,
        tokenize: Tokenize,
        cache_bytes: int,
        selection: Selection = EVERYTHING,
    ):
        state, action = _present(store, embodiment.state), _present(store, embodiment.action)
        if action and not state and any(field.relative for field in embodiment.action):
            raise UserError(f"{store.folder} has actions but no state, which they are relative to: collect it again")
        self.config, self.embodiment = config, embodiment
        self.rate = Fraction(store.fps) / Fraction(embodiment.fps)
        options: Any = {"selection": selection, "images": config.images, "cache_bytes": cache_bytes}
        super().__init__(store, embodiment.cameras, state, action, **options)
        if self.rate != 1:
            _log.warning(
                "%s has %g steps per second, and is read at the %g of %s: its actions must be targets, not differences",
                *(store.folder, store.fps, embodiment.fps, embodiment.name),
            )
        self.tokenize = Remembered(tokenize)
        if not self.counts(store.lengths).any():
            raise UserError(f"no episode in {store.folder} has {config.actions + 1} steps: collect longer ones")

    def counts(self, lengths: np.ndarray) -> np.ndarray:
        """Number of steps that are drawn; see `start_steps`."""
        different, places = np.unique(lengths, return_inverse=True)
        found = [start_steps(length, self.config, self.rate) for length in different.tolist()]
        return np.array(found, np.int64)[places]

    def cut(self, source: Source, step: int, key: tuple[int, ...]) -> Batch:
        """The chunks that a step gives."""
        config = self.config
        steps, at = around(len(source.state), step, self.rate)
        annotation = None if source.annotation is None else source.annotation[steps]
        found = anchors(len(steps), at, config, annotation)
        if not (count := len(found)):
            raise BadEpisode(f"step {step} gives no whole chunk of its task")
        filled = found[np.minimum(np.arange(config.max_chunks), count - 1)]
        shown = np.minimum(np.arange(config.max_chunks * config.frames + 1), count * config.frames)
        taken = (filled[:, None] + np.arange(config.actions)).ravel()
        there = np.repeat(np.arange(config.max_chunks) < count, config.actions)
        return {
            "frames": self.pictures(source, steps[found[0] + config.stride * shown]),
            "chunks": np.array(count, np.int32),
            "state": self._filled(source.state[steps[filled]], self.embodiment.state_size),
            "actions": self._filled(source.actions[steps[taken]], self.embodiment.action_size),
            "action_mask": there & bool(self.action),
            "language": self.tokenize(source.instruction(step, key)),
        }

    @staticmethod
    def _filled(vectors: np.ndarray, size: int) -> np.ndarray:
        """The vectors, or zeros where the dataset has none."""
        return vectors if vectors.shape[1] else np.zeros((len(vectors), size), np.float32)


def _present(store: EpisodeStore, fields: tuple[Field, ...]) -> tuple[str, ...]:
    """The fields' names, or none if the store has none of them; that it has all is checked by the reader."""
    present = [field for field in fields if field.name in store.fields]
    for field in present:
        if (size := int(np.prod(store.fields[field.name]["shape"]))) != field.size:
            raise UserError(
                f"step field '{field.name}' in {store.folder} has {size} numbers, not {field.size}: "
                "choose another embodiment"
            )
    return tuple(field.name for field in fields) if present else ()
