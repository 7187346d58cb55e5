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

import numpy as np
from jaxtyping import Int

from wamjax.data.pipeline import Batch, EpisodeReader, Tokenize, stream
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
    store: EpisodeStore,
    config: FilmConfig,
    *,
    batch_size: int,
    seed: int,
    tokenize: Tokenize,
    start_step: int = 0,
    rows: Sequence[int] | None = None,
    cache_bytes: int = 512 << 20,
    threads: int | None = None,
) -> Iterator[Batch]:
    """Endless batches of films; the arguments are those of `pipeline.batches`, but for `config`.

    Yields:
        frames: uint8 (b, 1, t, h, w, 3); language: (b, l), the tokenised instruction ("" where there is none).

    Raises:
        UserError: a camera that the dataset lacks, no episode that is long enough, or too many damaged episodes.
    """
    reader = _FilmReader(store, config, tokenize, cache_bytes)
    return stream(reader, batch_size=batch_size, seed=seed, start_step=start_step, rows=rows, threads=threads)


def first_film(store: EpisodeStore, config: FilmConfig, episode: int, tokenize: Tokenize) -> Batch:
    """The film that begins with an episode, as a batch of one; a UserError for an episode that is too short."""
    reader = _FilmReader(store, config, tokenize, cache_bytes=sys.maxsize)
    first, after = reader.starts[episode : episode + 2]
    if first == after:
        raise UserError(f"episode {episode} is shorter than a film of {config.frames} frames: choose a longer one")
    return {name: value[None] for name, value in reader.read(int(first), (0, int(first))).items()}


class _FilmReader(EpisodeReader):
    """Cuts the films of a `FilmConfig`."""

    def __init__(self, store: EpisodeStore, config: FilmConfig, tokenize: Tokenize, cache_bytes: int):
        super().__init__(store, (config.camera,), (), (), images="true", cache_bytes=cache_bytes)
        self.offsets = config.offsets(store.fps)
        self.tokenize = functools.lru_cache(maxsize=4096)(lambda text: np.asarray(tokenize(text)))
        self.starts = np.cumsum(np.concatenate([[0], np.maximum(store.lengths - self.offsets[-1], 0)]))
        if not self.clips:
            raise UserError(
                f"no episode in {store.folder} has {self.offsets[-1] + 1} steps, which {config.frames} frames at "
                f"{config.fps:g} per second take: make films shorter or faster"
            )

    def read(self, number: int, key: tuple[int, ...]) -> Batch:
        index, step = self.locate(number)
        source = self.source(index)
        language = self.tokenize(source.instruction(step, key))
        return {"frames": self.pictures(source, step + self.offsets), "language": language}
