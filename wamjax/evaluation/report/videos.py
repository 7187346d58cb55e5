"""Videos of a run as data URIs that every browser plays."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer

# Container, codec and pixel format that all browsers decode; the full colour (yuv444p) of datasets, few do.
PLAYED = ("mp4", "h264", "yuv420p")


def data_uri(folder: Path, relative: str, root: Path) -> str | None:
    """The video at `folder`/`relative` as a data URI, encoded again where browsers would not play it.

    None for a file that is absent, no video, or outside `root`.
    """
    path = (folder / relative).resolve()
    if not (path.is_relative_to(root.resolve()) and path.is_file()):
        return None
    data = path.read_bytes()
    try:
        with av.open(io.BytesIO(data), "r") as container:
            stream = container.streams.video[0]
            if (stream.codec_context.name, stream.pix_fmt) != PLAYED[1:] or PLAYED[0] not in container.format.name:
                data = _convert(container)
    except (av.FFmpegError, IndexError):
        return None
    return "data:video/mp4;base64," + base64.b64encode(data).decode()


def _convert(source: InputContainer) -> bytes:
    """Encodes a video as `PLAYED`, at twice its size, as yuv420p halves the resolution of colour."""
    original = source.streams.video[0]
    file = io.BytesIO()
    with av.open(file, "w", format=PLAYED[0]) as container:
        stream = container.add_stream(
            "libx264", rate=original.average_rate, options={"crf": "18", "preset": "veryfast"}
        )
        stream.width, stream.height, stream.pix_fmt = 2 * original.width, 2 * original.height, PLAYED[2]
        for frame in source.decode(original):
            image = np.repeat(np.repeat(frame.to_ndarray(format="rgb24"), 2, axis=0), 2, axis=1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return file.getvalue()
