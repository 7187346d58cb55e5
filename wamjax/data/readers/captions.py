"""Videos with captions and without actions: a table of files and texts, or a folder of MP4 files beside `.txt` files.

A table is a `.jsonl`, `.csv` or `.parquet` file with one row per video: the file, relative to the table or a URL, and
one caption or a list of them.
"""

from __future__ import annotations

import csv
import io
from typing import Any

from wamjax.data.episode import JSON, Episode
from wamjax.data.readers import Listed, Options, Source
from wamjax.data.reshape import reshape
from wamjax.data.storage import Place, brief, read_lines
from wamjax.data.tables import open_table
from wamjax.data.video_files import frame_rate, read_video
from wamjax.errors import UserError

TITLE = "videos with captions: MP4 and .txt, or a table (.jsonl, .csv, .parquet)"
FILES = ("file_name", "video", "video_path", "path", "file", "filename")
TEXTS = ("text", "caption", "captions", "prompt", "description")
_TABLES = (".jsonl", ".csv", ".parquet")

_Entry = tuple[Place, tuple[str, ...]]


def recognises(place: Place) -> bool:
    """Whether it is a table, or a folder with one or with MP4 files."""
    return _table(place) is not None or bool(place.find("*.mp4") or place.find("*/*.mp4"))


def open_dataset(place: Place, options: Options) -> Source:
    """One episode per video: the camera `video`, the captions as language, no steps.

    A store wants videos of one frame rate and size: `options.fps` and `options.size` bring them to it.

    Raises:
        UserError: a table that is damaged, or has no column of one of `FILES` or `TEXTS`.
    """
    options.only_train(place)
    table = _table(place)
    entries = _listed(table) if table is not None else [(file, _beside(file)) for file in place.find("**/*.mp4")]
    if not entries:
        raise UserError(f"{place} lists no videos: give a table, or a folder of MP4 files")
    return Listed(place.stem, entries, lambda entry: _episode(entry[0], entry[1], options))


def _table(place: Place) -> Place | None:
    if place.is_file():
        return place if place.name.endswith(_TABLES) else None
    return next((file for suffix in _TABLES for file in place.find(f"*{suffix}")), None)


def _listed(table: Place) -> list[_Entry]:
    """Videos and captions of a table."""
    if table.name.endswith(".jsonl"):
        rows: list[Any] = read_lines(table)
    elif table.name.endswith(".csv"):
        try:
            rows = list(csv.DictReader(io.StringIO(table.read_bytes().decode("utf-8"))))
        except (OSError, ValueError, csv.Error) as error:
            raise UserError(f"{table} cannot be read ({brief(error)}): write it again") from error
    else:
        rows = open_table(table).to_pylist()
    entries = []
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise UserError(f"row {number} of {table} is no table row: write it again")
        file = next((row[name] for name in FILES if row.get(name)), None)
        texts = next((row[name] for name in TEXTS if name in row), None)
        if not isinstance(file, str) or (texts is None and not set(row) & set(TEXTS)):
            raise UserError(
                f"row {number} of {table} has the columns {', '.join(map(str, row))}: name the video one of "
                f"{', '.join(FILES)} and the caption one of {', '.join(TEXTS)}"
            )
        place = Place.of(file) if "://" in file else table.parent / file
        captions = texts if isinstance(texts, list) else [texts or ""]
        entries.append((place, tuple(" ".join(str(text).split()) for text in captions if str(text).strip())))
    return entries


def _beside(video: Place) -> tuple[str, ...]:
    """The caption in the file of the same name."""
    file = video.parent / f"{video.stem}.txt"
    if not file.is_file():
        return ()
    try:
        text = " ".join(file.read_bytes().decode("utf-8").split())
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({brief(error)}): write it again") from error
    return (text,) if text else ()


def _episode(file: Place, captions: tuple[str, ...], options: Options) -> Episode:
    video = read_video(file)
    fps = options.rate(round(frame_rate(video), 6), file)
    if options.fps is not None:
        video = reshape(video, options.size, fps, options.encode)
    metadata: dict[str, JSON] = {"fps": fps, "source": file.name}
    return Episode({}, {"video": video}, captions, metadata)
