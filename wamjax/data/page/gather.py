"""What the page of a dataset shows: read once, episode by episode, with memory that does not grow with the dataset."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from wamjax.data.episode import ANNOTATIONS, BadEpisode, Episode
from wamjax.data.quality import CHECKS, Flag, Report, Thresholds, examine
from wamjax.data.readers import Source
from wamjax.data.statistics import QUANTILES
from wamjax.data.store import EpisodeStore
from wamjax.data.video import decode
from wamjax.errors import UserError

EXAMINED = 200
SHOWN, SHOWN_FLAGGED = 3, 8  # episodes that are drawn: spread evenly, and the first of every kind of flag
PICTURES, PICTURE_WIDTH = 8, 176  # of every camera of a drawn episode, pixels
BINS = 33
WIDEST = 64  # numbers of a field that are shown
ROWS = 40_000  # steps of a field that histograms are made of
LISTED = 100  # flagged episodes in the table


@dataclasses.dataclass(frozen=True)
class Column:
    """One number of a field: which (with the field's name), its statistics by name, its histogram."""

    index: int
    name: str
    statistics: Mapping[str, float]
    counts: list[int]


@dataclasses.dataclass(frozen=True)
class Drawn:
    """An episode that is drawn.

    Attributes:
        number, seconds, steps, rate: which, how long, steps per second.
        texts: instructions. facts: of its metadata, as text.
        flags: what is suspicious.
        cameras: name -> (seconds, JPEG as data URI) of some pictures; none where they cannot be decoded.
        fields: name -> values (t, n).
    """

    number: int
    seconds: float
    steps: int
    rate: float
    texts: tuple[str, ...]
    facts: Mapping[str, str]
    flags: tuple[Flag, ...]
    cameras: Mapping[str, list[tuple[float, str]]]
    fields: Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Look:
    """All that the page shows.

    Attributes:
        name: of the dataset. facts: in words. total: its episodes. reports: of those that were read.
        cameras: name -> "height x width". fields: name -> columns. exact: whether their statistics are of all steps.
        widths: name -> numbers per step of each field, of which the first ones are shown.
        lengths: histogram of lengths, and the shortest and longest, seconds.
        kinds: kind of flag -> reports with it. flagged: with any, the first ones. drawn: episodes.
    """

    name: str
    facts: Mapping[str, str]
    total: int
    reports: Sequence[Report]
    cameras: Mapping[str, str]
    fields: Mapping[str, list[Column]]
    widths: Mapping[str, int]
    exact: bool
    lengths: tuple[list[int], float, float]
    kinds: Mapping[str, list[Report]]
    drawn: Sequence[Drawn]

    @property
    def flagged(self) -> list[Report]:
        """Reports with flags."""
        return [report for report in self.reports if report.flags]

    @property
    def listed(self) -> int:
        """How many of them the page lists."""
        return LISTED


def look(source: Source, thresholds: Thresholds, examined: int, tell: Callable[[int, int], None]) -> Look:
    """Reads up to `examined` episodes; arguments as of `wamjax.data.page.write`.

    Raises:
        UserError: no episode can be read.
    """
    numbers = _spread(len(source), examined)
    noting = _Noting(source, max(1, ROWS // max(1, len(numbers))))
    reports = []
    for report in examine(noting, tuple(CHECKS.values()), thresholds, numbers):
        reports.append(report)
        tell(len(reports), len(numbers))
    if (first := noting.first) is None:
        why = reports[0].flags[0].detail if reports else "it has none"
        raise UserError(f"no episode of {source.name} can be read: {why}")
    kinds: dict[str, list[Report]] = {}
    for report in reports:
        for kind in dict.fromkeys(flag.kind for flag in report.flags):
            kinds.setdefault(kind, []).append(report)
    kinds = dict(sorted(kinds.items(), key=lambda item: -len(item[1])))
    known = source.statistics if isinstance(source, EpisodeStore) and source.split == "train" else None
    return Look(
        name=source.name,
        facts=_facts(source, first, noting.seconds),
        total=len(source),
        reports=reports,
        cameras={name: f"{video.height} × {video.width}" for name, video in first.videos.items()},
        fields={name: _columns(name, rows, known) for name, rows in noting.fields()},
        widths={name: int(np.prod(values.shape[1:])) for name, values in first.steps.items()},
        exact=known is not None,
        lengths=_lengths(noting.seconds),
        kinds=kinds,
        drawn=list(_drawn(source, reports, kinds)),
    )


class _Noting:
    """A source that keeps some rows of what is read, and the lengths."""

    def __init__(self, source: Source, rows: int):
        self._source, self._rows = source, rows
        self._kept: dict[str, list[np.ndarray]] = {}
        self.first: Episode | None = None
        self.seconds: list[float] = []

    @property
    def name(self) -> str:
        return self._source.name

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Episode:
        episode = self._source[index]
        self.first = self.first or episode
        self.seconds.append(len(episode) / _rate(episode))
        chosen = _spread(len(episode), self._rows)
        for name, values in episode.steps.items():
            self._kept.setdefault(name, []).append(values.reshape(len(values), -1)[chosen].astype(np.float64))
        return episode

    def fields(self) -> Iterator[tuple[str, np.ndarray]]:
        """Rows of every field (n, k), in the order of their names; of another width than the first ones' not."""
        for name, parts in sorted(self._kept.items()):
            yield name, np.concatenate([part for part in parts if part.shape[1] == parts[0].shape[1]])


def _spread(total: int, most: int) -> list[int]:
    """Numbers below `total`, evenly spread, from the first to the last."""
    return np.unique(np.linspace(0, total - 1, min(total, most)).round().astype(int)).tolist() if total else []


def _rate(episode: Episode) -> float:
    rate: Any = episode.metadata["fps"]
    return float(rate)


def _facts(source: Source, first: Episode, seconds: Sequence[float]) -> dict[str, str]:
    """The head of the page."""
    facts = {"episodes": f"{len(source):,}"}
    if isinstance(source, EpisodeStore):
        steps = int(source.lengths.sum())
        size = sum(shard.stat().st_size for shard in Path(source.folder).glob("*.array_record"))
        facts |= {"steps": f"{steps:,}", "recorded": _duration(steps / source.fps), "size": f"{size / 1e6:,.1f} MB"}
        if len(source.splits) > 1:
            facts["split"] = f"{source.split} (of {', '.join(source.splits)})"
        facts["fingerprint"] = source.fingerprint[:12]
    else:
        facts["read"] = f"{len(seconds):,} episodes, {_duration(sum(seconds))}"
    return facts | {"rate": f"{_rate(first):g} Hz"}


def _duration(seconds: float) -> str:
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.1f} s"


def _columns(name: str, rows: np.ndarray, known: Mapping[str, Any] | None) -> list[Column]:
    """Statistics and histogram of every number of a field."""
    entry = _described(rows) if known is None or name not in known else known[name]
    found = []
    for index in range(min(rows.shape[1], WIDEST)):
        values = {key: np.ravel(entry[key])[index] for key in ("mean", "std", "min", "q01", "q99", "max")}
        column = rows[:, index]
        counts = np.histogram(column[np.isfinite(column)], BINS)[0].tolist()
        found.append(Column(index, f"{name}[{index}]", {key: float(value) for key, value in values.items()}, counts))
    return found


def _described(rows: np.ndarray) -> dict[str, np.ndarray]:
    found = {"mean": rows.mean(0), "std": rows.std(0), "min": rows.min(0), "max": rows.max(0)}
    return found | {name: np.quantile(rows, share, axis=0) for name, share in QUANTILES.items()}


def _lengths(seconds: Sequence[float]) -> tuple[list[int], float, float]:
    return np.histogram(seconds, BINS)[0].tolist(), min(seconds), max(seconds)


def _drawn(source: Source, reports: Sequence[Report], kinds: Mapping[str, Sequence[Report]]) -> Iterator[Drawn]:
    """Some episodes in order: evenly spread ones, and the first of each kind of flag."""
    readable = [report for report in reports if report.steps]
    chosen = {readable[i].episode: readable[i] for i in _spread(len(readable), SHOWN)}
    for of_kind in list(kinds.values())[:SHOWN_FLAGGED]:
        chosen |= {report.episode: report for report in [r for r in of_kind if r.steps][:1]}
    for number, report in sorted(chosen.items()):
        episode = source[number]
        metadata: Any = episode.metadata
        yield Drawn(
            number=number,
            seconds=len(episode) / _rate(episode),
            steps=len(episode),
            rate=_rate(episode),
            texts=tuple(str(text) for text in episode.language or metadata.get(ANNOTATIONS, ())),
            facts={key: _text(value) for key, value in metadata.items() if key not in ("fps", ANNOTATIONS)},
            flags=report.flags,
            cameras={camera: _pictures(episode, camera) for camera in episode.videos},
            fields={name: values.reshape(len(values), -1).astype(np.float64) for name, values in episode.steps.items()},
        )


def _text(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 80 else text[:79] + "…"


def _pictures(episode: Episode, camera: str) -> list[tuple[float, str]]:
    """Seconds and data URIs of evenly spread pictures; none where they cannot be decoded."""
    chosen = _spread(len(episode), PICTURES)
    try:
        frames = decode(episode.videos[camera], chosen)
    except BadEpisode:
        return []
    return [(step / _rate(episode), _uri(frame)) for step, frame in zip(chosen, frames, strict=True)]


def _uri(frame: np.ndarray) -> str:
    """A picture as JPEG, at most `PICTURE_WIDTH` wide."""
    picture = Image.fromarray(frame)
    if picture.width > PICTURE_WIDTH:
        picture = picture.resize((PICTURE_WIDTH, max(1, round(PICTURE_WIDTH * picture.height / picture.width))))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
