"""Conversions by many: processes of one machine, or the workers of Apache Beam (Dataflow, Flink, Spark).

A shard is the unit of work. Workers open the source for themselves, and write with `convert.Writer`, so that a shard's
bytes do not depend on who wrote it. What a worker began and did not finish leaves nothing that looks finished.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import logging
import multiprocessing
import pickle
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wamjax.data.convert import Part, Run, Writer
from wamjax.data.readers import Source
from wamjax.errors import UserError

Open = Callable[[], Source]
APART = ".apart-"
"""How folders begin in which workers write shards, inside the store."""

_log = logging.getLogger(__name__)


def in_processes(open_source: Open, count: int, done: Callable[[int], None]) -> Run:
    """By so many processes; `done` hears of the episodes of each shard. `open_source` is picklable."""
    recipe = pickle.dumps(open_source)

    def run(source: Source, writer: Writer, parts: Sequence[Part]) -> None:
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(min(count, len(parts)), context) as pool:
            written = [pool.submit(_write, recipe, writer, part) for part in parts]
            try:
                for one in concurrent.futures.as_completed(written):
                    part = one.result()
                    done(part.stop - part.start)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    return run


def on_beam(open_source: Open, flags: Sequence[str]) -> Run:
    """By Beam's workers, which all see the store's folder under its path.

    Args:
        open_source: opens the source; pickled to workers, where wamjax is installed.
        flags: Beam's own, such as `--runner=DataflowRunner`; without a runner, Beam's direct one.

    Raises:
        UserError: Beam is not installed.
    """
    beam, recipe = _beam(), pickle.dumps(open_source)

    def run(source: Source, writer: Writer, parts: Sequence[Part]) -> None:
        (Path(writer.destination) / "dataset.json").unlink(missing_ok=True)
        options = beam.options.pipeline_options.PipelineOptions(list(flags))
        with beam.Pipeline(options=options) as pipeline:
            (
                pipeline
                | "shards" >> beam.Create(list(parts))
                | "spread" >> beam.Reshuffle()
                | "write" >> beam.Map(Worker(recipe, writer))
            )
        for leftover in Path(writer.destination).glob(f"{APART}*"):
            shutil.rmtree(leftover, ignore_errors=True)

    return run


@dataclass(frozen=True)
class Worker:
    """What a worker of Beam does with a shard; the same one may be given to two workers at once, or again.

    Attributes:
        recipe: the pickled function that opens the source. writer: of the conversion.
    """

    recipe: bytes
    writer: Writer

    def __call__(self, part: Part) -> None:
        """Writes a shard in a folder of its own, then brings it where it belongs, its description last."""
        place = Path(self.writer.destination)
        apart = Path(tempfile.mkdtemp(prefix=APART, dir=place))
        try:
            dataclasses.replace(self.writer, destination=str(apart))(_source(self.recipe), part)
            for file in sorted(apart.iterdir(), key=lambda file: file.suffix == ".json"):
                file.replace(place / file.name)
        except UserError as error:  # trying again would not help; what is missing is noticed at the end
            _log.error("shard %s is not written: %s", part.name, error)
        finally:
            shutil.rmtree(apart, ignore_errors=True)


def _write(recipe: bytes, writer: Writer, part: Part) -> Part:
    writer(_source(recipe), part)
    return part


@functools.lru_cache(maxsize=1)
def _source(recipe: bytes) -> Source:
    """The source, opened once by each process."""
    found: Source = pickle.loads(recipe)()
    return found


def _beam() -> Any:
    try:
        import apache_beam
        import apache_beam.options.pipeline_options
    except ImportError as error:
        raise UserError("Apache Beam is not installed: pip install 'wamjax[beam]'") from error
    return apache_beam
