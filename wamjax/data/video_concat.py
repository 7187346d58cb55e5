"""Videos of episodes end to end in few files, without encoding them again."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from wamjax.data.episode import BadEpisode, Video
from wamjax.data.storage import brief
from wamjax.data.video_files import DAMAGE


class VideoFiles:
    """The files of one camera, `pattern` naming them by `chunk_index`, `file_index` and `video_key`.

    A new file begins where one would grow beyond `limit` bytes, and where a video is coded differently. All pictures
    are shown at `fps` Hz, whatever the rate of their own file was.

    Attributes:
        feature: what LeRobot's info.json says about the videos, once there are some.
    """

    def __init__(self, folder: Path, pattern: str, key: str, fps: float, limit: int, chunk_files: int):
        self._folder, self._pattern, self._key = folder, pattern, key
        self._step = 1 / Fraction(fps).limit_denominator(1001)
        self._limit, self._chunk_files = limit, chunk_files
        self._number, self._frames, self._bytes = -1, 0, 0
        self._coding: tuple[Any, ...] | None = None
        self._container: Any = None
        self._stream: Any = None
        self.feature: dict[str, Any] = {}

    def write(self, video: Video) -> dict[str, Any]:
        """Append a video; returns the columns of meta/episodes that say where it is."""
        with av.open(io.BytesIO(video.data), "r", format="mp4") as source:
            stream = source.streams.video[0]
            context = stream.codec_context
            size = (context.width, context.height, context.pix_fmt)
            coding = (context.name, *size, context.extradata)
            if coding != self._coding or self._bytes + len(video.data) > self._limit:
                self._begin(stream)
                self._coding = coding
                self.feature = self.feature or _feature(stream, video)
            start = self._frames
            self._copy(source, stream, video)
        chunk, file = divmod(self._number, self._chunk_files)
        return {
            f"videos/{self._key}/chunk_index": chunk,
            f"videos/{self._key}/file_index": file,
            f"videos/{self._key}/from_timestamp": float(start * self._step),
            f"videos/{self._key}/to_timestamp": float((start + video.frames) * self._step),
        }

    def close(self) -> None:
        """Finish the file."""
        if self._container is not None:
            self._container.close()
            self._container = None

    def _begin(self, stream: Any) -> None:
        self.close()
        self._number, self._frames, self._bytes = self._number + 1, 0, 0
        chunk, file = divmod(self._number, self._chunk_files)
        path = self._folder / self._pattern.format(video_key=self._key, chunk_index=chunk, file_index=file)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._container = av.open(str(path), "w", format="mp4", options={"movflags": "faststart"})
        self._stream = self._container.add_stream_from_template(stream, opaque=True)
        self._stream.time_base = self._step

    def _copy(self, source: Any, stream: Any, video: Video) -> None:
        """All packets of the file, after those that are there, even if it goes on after the episode's last picture."""
        base, shown = stream.time_base * stream.average_rate, 0
        for packet in source.demux(stream):
            if packet.pts is None or not packet.size:
                continue
            shown += 1
            packet.stream = self._stream
            pts, dts = packet.pts, packet.pts if packet.dts is None else packet.dts
            packet.time_base = self._step
            packet.pts, packet.dts = self._frames + round(pts * base), self._frames + round(dts * base)
            packet.duration = 1
            self._container.mux(packet)
        self._frames += max(shown, video.frames)
        self._bytes += len(video.data)


def check_even(video: Video) -> None:
    """Refuse a video whose pictures are not one period of its rate apart, which LeRobot's times could not name.

    Raises:
        BadEpisode: it is one.
    """
    try:
        with av.open(io.BytesIO(video.data), "r", format="mp4") as source:
            stream: Any = source.streams.video[0]
            base = stream.time_base * stream.average_rate
            shown = {
                round(packet.pts * base) for packet in source.demux(stream) if packet.pts is not None and packet.size
            }
    except DAMAGE as error:
        raise BadEpisode(f"video cannot be read ({brief(error)})") from error
    if not shown >= set(range(video.frames)):
        raise BadEpisode("video has pictures at uneven times: convert it with --fps first")


def _feature(stream: Any, video: Video) -> dict[str, Any]:
    """info.json's entry of the camera."""
    return {
        "dtype": "video",
        "shape": [video.height, video.width, 3],
        "names": ["height", "width", "channels"],
        "info": {
            "video.height": video.height,
            "video.width": video.width,
            "video.codec": stream.codec_context.codec.canonical_name,
            "video.pix_fmt": stream.codec_context.pix_fmt,
            "video.is_depth_map": False,
            "video.channels": 3,
            "has_audio": False,
        },
    }
