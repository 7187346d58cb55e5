"""Episodes for the Rerun viewer, a tab each: pictures, curves and instructions over time. Needs the extra `rerun`."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from wamjax.data.episode import BadEpisode, Episode
from wamjax.data.readers import Source
from wamjax.data.video import decode
from wamjax.errors import UserError

EPISODES = 10


def show(source: Source, path: str | Path | None = None, *, episodes: int = EPISODES) -> int:
    """Sends evenly spread episodes to the viewer; returns how many could be read.

    Args:
        source: the dataset.
        path: an .rrd file to write; None opens the viewer.
        episodes: the most.

    Raises:
        UserError: rerun-sdk is not installed.
    """
    try:
        import rerun
        from rerun import blueprint
    except ImportError as error:
        raise UserError("the Rerun viewer is not installed: pip install 'wamjax[rerun]'") from error
    stream = rerun.RecordingStream(f"wamjax: {source.name}")
    if path is None:
        stream.spawn()
    else:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        stream.save(str(path))
    shown, tabs = 0, []
    for number in np.unique(np.linspace(0, len(source) - 1, min(episodes, len(source))).round().astype(int)).tolist():
        where = f"episode_{number}"
        try:
            episode = source[number]
            pictures = {camera: decode(video) for camera, video in episode.videos.items()}
        except BadEpisode as error:
            stream.log(f"{where}/damage", rerun.TextDocument(str(error)), static=True)
            tabs.append(blueprint.TextDocumentView(origin=f"{where}/damage", name=f"episode {number}"))
            continue
        _send(stream, where, episode, pictures)
        tabs.append(_tab(where, episode))
        shown += 1
    stream.send_blueprint(blueprint.Blueprint(blueprint.Tabs(*tabs), collapse_panels=True))
    stream.flush()
    return shown


def _send(stream: Any, where: str, episode: Episode, pictures: dict[str, np.ndarray]) -> None:
    """One episode under a path of its own, over steps and seconds."""
    import rerun

    rate: Any = episode.metadata["fps"]
    steps = np.arange(len(episode))
    times = [rerun.TimeColumn("step", sequence=steps), rerun.TimeColumn("time", duration=steps / float(rate))]
    text = "\n".join(f"- {line}" for line in episode.language) or "no instruction"
    stream.log(f"{where}/language", rerun.TextDocument(text, media_type="text/markdown"), static=True)
    for name, values in episode.steps.items():
        scalars = rerun.Scalars.columns(scalars=values.reshape(len(values), -1).astype(np.float64))
        stream.send_columns(f"{where}/{name}", indexes=times, columns=scalars)
    for camera, frames in pictures.items():
        found = rerun.EncodedImage.columns(
            blob=[_jpeg(frame) for frame in frames], media_type=["image/jpeg"] * len(steps)
        )
        stream.send_columns(f"{where}/cameras/{camera}", indexes=times, columns=found)


def _tab(where: str, episode: Episode) -> Any:
    """One episode on a screen: the instruction beside the cameras, and a plot per field below."""
    from rerun import blueprint

    cameras = [blueprint.Spatial2DView(origin=f"{where}/cameras/{name}", name=name) for name in episode.videos]
    fields = [blueprint.TimeSeriesView(origin=f"{where}/{name}", name=name) for name in episode.steps]
    language = blueprint.TextDocumentView(origin=f"{where}/language", name="language")
    above = blueprint.Horizontal(language, *cameras, column_shares=[1] + [2] * len(cameras))
    return blueprint.Vertical(above, blueprint.Grid(*fields), name=where.replace("_", " "))


def _jpeg(frame: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "JPEG", quality=90)
    return file.getvalue()
