"""Training samples of video models: a film of one camera and its instruction, which is all that they read.

Any dataset will do, also captioned videos without states or actions. A step s of an episode gives the film that begins
there, at the frame rate asked for, if the episode is long enough. The order of samples, the redraw of damaged ones and
the cache are those of `pipeline.py`.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Unpack

import numpy as np
from jaxtyping import Int

from wamjax.data.mixture import Dataset
from wamjax.data.pipeline import CACHE_BYTES, Bucket, Options, stream
from wamjax.data.samples import EVERYTHING, Batch, EpisodeReader, Remembered, Source, Tokenize
from wamjax.data.selection import Selection
from wamjax.data.store import EpisodeStore
from wamjax.errors import UserError


@dataclass(frozen=True)
class FilmConfig:
    """What a film holds.

    Attributes:
        camera: its name in the dataset.
        frames: how many. fps: per second; the nearest recorded ones are taken.
    """

    camera: str
    frames: int
    fps: float

    def offsets(self, fps: float) -> Int[np.ndarray, " t"]:
        """Steps from the first frame to each, of an episode with so many steps per second."""
        return np.rint(np.arange(self.frames) * fps / self.fps).astype(np.int64)


def film_batches(
    store: Dataset,
    config: FilmConfig | Sequence[FilmConfig],
    *,
    batch_size: int,
    seed: int,
    tokenize: Tokenize,
    shares: Sequence[float] | None = None,
    selection: Selection = EVERYTHING,
    cache_bytes: int = CACHE_BYTES,
    **options: Unpack[Options],
) -> Iterator[Batch]:
    """Endless batches of films; the arguments are those of `pipeline.batches`, but for `config` and `shares`.

    Args:
        config: several are buckets: each step has films of one of them, which one depends on the step alone.
        shares: of the steps that each bucket has, in proportion; default: equal ones.

    Yields:
        frames: uint8 (b, 1, t, h, w, 3); language: (b, l), the tokenised instruction ("" where there is none); and what
        `options` ask for.

    Raises:
        UserError: a camera that the dataset lacks, no episode that is long enough, or too many damaged episodes.
    """
    configs = [config] if isinstance(config, FilmConfig) else config
    shares = [1.0] * len(configs) if shares is None else shares
    if len(shares) != len(configs):
        raise UserError(f"{len(configs)} kinds of films and {len(shares)} shares: give each kind one")

    def reader(config: FilmConfig, one: EpisodeStore, room: int) -> FilmReader:
        return FilmReader(one, config, tokenize, room, selection)

    buckets = [
        Bucket.of(store, functools.partial(reader, each), cache_bytes // len(configs), share)
        for each, share in zip(configs, shares, strict=True)
    ]
    return stream(buckets, batch_size=batch_size, seed=seed, **options)


def first_film(store: EpisodeStore, config: FilmConfig, episode: int, tokenize: Tokenize) -> Batch:
    """The film that begins with an episode, as a batch of one; a UserError for an episode that is too short."""
    reader = FilmReader(store, config, tokenize, cache_bytes=sys.maxsize)
    numbers = reader.starts.within(episode)
    if not numbers:
        raise UserError(f"episode {episode} is shorter than a film of {config.frames} frames: choose a longer one")
    return {name: value[None] for name, value in reader.read(numbers[0], (0, numbers[0])).items()}


class FilmReader(EpisodeReader):
    """Cuts the films of a `FilmConfig`."""

    def __init__(
        self,
        store: EpisodeStore,
        config: FilmConfig,
        tokenize: Tokenize,
        cache_bytes: int,
        selection: Selection = EVERYTHING,
    ):
        self.offsets = config.offsets(store.fps)
        super().__init__(store, (config.camera,), (), (), selection=selection, cache_bytes=cache_bytes)
        self.tokenize = Remembered(tokenize)
        if not self.counts(store.lengths).any():
            raise UserError(
                f"no episode in {store.folder} has {self.offsets[-1] + 1} steps, which {config.frames} frames at "
                f"{config.fps:g} per second take: make films shorter or faster"
            )

    def counts(self, lengths: np.ndarray) -> np.ndarray:
        """Number of steps from which the film fits into the episode."""
        return np.maximum(lengths - self.offsets[-1], 0)

    def cut(self, source: Source, step: int, key: tuple[int, ...]) -> Batch:
        """The film that begins at a step."""
        language = self.tokenize(source.instruction(step, key))
        return {"frames": self.pictures(source, step + self.offsets), "language": language}
