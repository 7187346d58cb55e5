"""Video files of datasets as the videos of episodes: taken over whole, or cut out, where possible without decoding."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from typing import Any

import av
import numpy as np

from wamjax.data.episode import BadEpisode, Video
from wamjax.data.storage import Place, brief
from wamjax.data.video import decode, encode

Encode = Callable[[np.ndarray, float], Video]
"""Pictures, uint8 (t, h, w, 3), and their rate in Hz -> video."""

# What PyAV raises for damaged files, found by fuzzing.
DAMAGE = (OSError, ValueError, IndexError, OverflowError, AttributeError, ZeroDivisionError, av.FFmpegError)


def read_video(file: Place, frames: int | None = None, fps: float | None = None) -> Video:
    """A video file, whose first `frames` pictures (all, where it is None) are an episode's.

    Raises:
        BadEpisode: it is missing, no video, has fewer pictures, or another rate than `fps`, where that is given.
    """
    with _flagged(file):
        data = file.read_bytes()
        with av.open(io.BytesIO(data), "r", format="mp4") as container:
            stream = container.streams.video[0]
            count, height, width = stream.frames, stream.height, stream.width
            rate = float(stream.average_rate or 0)
    if not count or count < (frames or 1):
        raise BadEpisode(f"{file} has {count} pictures for {frames or 'some'} steps: get it again")
    if fps is not None:
        _check_rate(file, rate, fps, frames or count)
    return Video(data, frames or count, height, width)


def frame_rate(video: Video) -> float:
    """Pictures per second, Hz."""
    with _flagged("a video"), av.open(io.BytesIO(video.data), "r", format="mp4") as container:
        rate = container.streams.video[0].average_rate
        return float(rate) if rate else 0.0


def cut(file: Place, start: int, frames: int, fps: float, encode_again: Encode = encode) -> Video:
    """Pictures `start` .. `start + frames - 1` of a file of `fps` Hz that holds several episodes.

    The packets are copied as they are if the first is a key frame and whatever follows the last begins with one (as in
    files that LeRobot wrote); otherwise the pictures are decoded and encoded again.

    Raises:
        BadEpisode: the file is missing, damaged, too short, or of another rate.
    """
    with _flagged(file), file.open() as opened, av.open(opened, "r", format="mp4") as container:
        stream = container.streams.video[0]
        if not stream.average_rate or not stream.time_base:
            raise BadEpisode(f"{file} has no frame rate: get it again")
        _check_rate(file, float(stream.average_rate), fps, frames)
        packets, whole = _packets(container, stream, start, frames)
        if len({packet.pts for packet in packets}) != frames:
            raise BadEpisode(f"{file} has {len(packets)} of the pictures {start} to {start + frames - 1}: get it again")
        if whole:
            return _remuxed(stream, packets)
        size = stream.height, stream.width, float(stream.average_rate)
    height, width, rate = size
    pictures = decode(Video(file.read_bytes(), start + frames, height, width), np.arange(start, start + frames))
    return encode_again(pictures, rate)


def _check_rate(file: Place, rate: float, fps: float, frames: int) -> None:
    """Refuses a video of which the last picture would be shown at another step."""
    if abs(rate - fps) * (frames - 1) > 0.5 * rate:
        raise BadEpisode(f"{file} has {rate:g} pictures per second for {fps:g} steps: convert it again")


@contextlib.contextmanager
def _flagged(file: object) -> Iterator[None]:
    try:
        yield
    except DAMAGE as error:
        raise BadEpisode(f"{file} is no video that can be read ({brief(error)}): get it again") from error


def _packets(container: Any, stream: Any, start: int, frames: int) -> tuple[list[Any], bool]:
    """The packets of the pictures, in the order of decoding, and whether they can stand alone."""
    rate, base = stream.average_rate, stream.time_base
    if start:
        container.seek(int(start / rate / base), stream=stream, backward=True)
    found: list[Any] = []
    whole = True
    for packet in container.demux(stream):
        if packet.pts is None or not packet.size:
            continue
        index = round(packet.pts * base * rate)
        if packet.is_keyframe and index >= start + frames:
            break
        if start <= index < start + frames:
            whole = whole and (bool(found) or (packet.is_keyframe and index == start))
            found.append(packet)
        elif found or index >= start + frames:
            whole = False
            if index > start + frames + 64:  # far beyond any reordering: nothing of ours can follow
                break
    return found, whole


def _remuxed(stream: Any, packets: list[Any]) -> Video:
    """The packets as a file of their own that begins at time 0."""
    file, first = io.BytesIO(), min(packet.pts for packet in packets)
    with av.open(file, "w", format="mp4") as container:
        copy = container.add_stream_from_template(stream, opaque=True)
        for packet in packets:
            packet.stream = copy
            packet.pts -= first
            packet.dts = (packet.dts if packet.dts is not None else packet.pts + first) - first
            container.mux(packet)
    return Video(file.getvalue(), len(packets), stream.height, stream.width)
