"""Videos brought to one size and frame rate, as a store needs them; encoded anew."""

from __future__ import annotations

import io
from collections.abc import Callable

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from wamjax.data.episode import BadEpisode, Video
from wamjax.data.storage import brief
from wamjax.data.video_files import DAMAGE


def reshape(
    video: Video,
    size: tuple[int, int] | None,
    fps: float | None,
    encode_again: Callable[..., Video],
    always: bool = False,
) -> Video:
    """A video of `size` (height, width) and `fps` Hz; None leaves either as it is, and both the video itself,
    unless it is `always` to be encoded again.

    Pictures are stretched to the size by Pillow's bicubic filter, as DROID's release was made. With a frame rate, each
    new picture is the one shown at its time, so that videos of varying rate come out even.

    Raises:
        BadEpisode: the video is damaged or cut short.
    """
    if not always and fps is None and size in (None, (video.height, video.width)):
        return video
    try:
        times, pictures, rate = _decoded(video, size)
    except DAMAGE as error:
        raise BadEpisode(f"video cannot be decoded ({brief(error)})") from error
    if len(pictures) < video.frames:
        raise BadEpisode(f"video has {len(pictures)} of its {video.frames} frames")
    if fps is None:
        return encode_again(np.stack(pictures), rate)
    end = times[-1] + (times[-1] / (len(times) - 1) if len(times) > 1 else 1 / rate)
    asked = np.arange(max(1, round(end * fps))) / fps
    shown = np.searchsorted(times, asked + 1e-6, side="right") - 1
    return encode_again(np.stack([pictures[i] for i in shown.clip(0)]), fps)


def _decoded(video: Video, size: tuple[int, int] | None) -> tuple[np.ndarray, list[np.ndarray], float]:
    """Times in seconds from the first picture, the first `video.frames` pictures, and the average rate in Hz."""
    from PIL import Image

    times, pictures = [], []
    reformatter = VideoReformatter()
    with av.open(io.BytesIO(video.data), "r", format="mp4") as container:
        stream = container.streams.video[0]
        stream.thread_count = 1
        rate = float(stream.average_rate or 0)
        if rate <= 0:
            raise BadEpisode("video file without a frame rate")
        for frame in container.decode(stream):
            if frame.pts is None or frame.time_base is None or frame.is_corrupt:
                raise BadEpisode("video has a damaged frame")
            picture = reformatter.reformat(frame, format="rgb24").to_ndarray()
            if size is not None:
                picture = np.asarray(Image.fromarray(picture).resize(size[::-1], Image.Resampling.BICUBIC))
            times.append(float(frame.pts * frame.time_base))
            pictures.append(picture)
            if len(pictures) == video.frames:
                break
    return np.array(times) - (times[0] if times else 0), pictures, rate
