"""Video in memory: H.264 in MP4 through PyAV.

The pictures are stored as yuv444p: with the usual 4:2:0 subsampling, 64x64 pictures of a simulated robot stay
at 26-33 dB PSNR even at crf 10, while 4:4:4 at the defaults below gives 39-41 dB in about 580 bytes per frame
(21 times smaller than raw). GOPs are closed and short, so that a clip in the middle of an episode needs few
pictures in front of it.
"""

import functools
import io
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from wamjax.data.episode import BadEpisode, Video

GOP = 15
CRF = 18
_RGB = "rgb24"


def encode(frames: np.ndarray, fps: float, *, gop: int = GOP, crf: int = CRF, everywhere: bool = False) -> Video:
    """Compress frames, uint8 (t, h, w, 3), shown at `fps` Hz; equal input gives equal bytes.

    `gop` is the largest distance between pictures that can be decoded alone, `crf` x264's quality: lower is better,
    0 keeps every pixel as it is. `everywhere` gives up colour resolution (yuv420p, which
    needs even sides) for a file that every player shows; episodes are stored without.

    Raises:
        ValueError: frames of another dtype or shape, or none.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or frames.shape[0] == 0:
        raise ValueError(f"frames must be uint8 of shape (t, h, w, 3), not {frames.dtype} {frames.shape}")
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        # tune=psnr drops x264's psycho-visual tricks: a policy wants the pixels, not the look of grain.
        parameters = ":".join(["open-gop=0", "log-level=none", *_instructions()])
        options = {"crf": str(crf), "tune": "psnr", "x264-params": parameters}
        lossless = crf == 0 and not everywhere  # then in RGB: the conversion of colours loses, too
        codec, layout = ("libx264rgb", _RGB) if lossless else ("libx264", "yuv420p" if everywhere else "yuv444p")
        stream: Any = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001), options=options)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], layout
        stream.gop_size = gop
        stream.thread_count = 1  # small pictures gain nothing from threads, and collectors fill every core
        for picture in np.ascontiguousarray(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format=_RGB)))
        container.mux(stream.encode(None))
    return Video(file.getvalue(), *frames.shape[:3])


@functools.cache
def _instructions() -> list[str]:
    """x264's AVX-512 code writes other bytes every now and then for the same pictures: keep to AVX2 where it is had."""
    processor = Path("/proc/cpuinfo")
    return ["asm=AVX2"] if processor.exists() and "avx512" in processor.read_text() else []


def decode(video: Video, indices: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
    """Decompress all frames, or those at `indices` (any order, repeats allowed), into uint8 (t, h, w, 3).

    With indices, decoding starts at the last key frame before the smallest one and ends at the largest one.
    What is cut short is always noticed, a flipped bit that decodes to another picture is not: H.264 has no
    checksums, those of the store guard the bytes.

    Raises:
        BadEpisode: the video is damaged, cut short, or not what its header in the episode says.
        IndexError: an index outside 0 .. video.frames - 1.
    """
    wanted = np.arange(video.frames) if indices is None else np.asarray(indices, np.int64)
    if wanted.size and not 0 <= wanted.min() <= wanted.max() < video.frames:
        raise IndexError(f"frame indices {wanted.min()}..{wanted.max()} of a video of {video.frames} frames")
    found: dict[int, np.ndarray] = {}
    needed = set(wanted.tolist())
    try:
        if needed:
            _collect(video, needed, found)
    except (av.FFmpegError, ValueError, IndexError, OverflowError) as error:
        raise BadEpisode(f"video cannot be decoded ({type(error).__name__}: {error})") from error
    if missing := needed - found.keys():
        raise BadEpisode(f"video lacks {len(missing)} of its {video.frames} frames (first: {min(missing)})")
    frames = np.empty((wanted.size, video.height, video.width, 3), np.uint8)
    for row, index in enumerate(wanted.tolist()):
        frames[row] = found[index]
    return frames


def _collect(video: Video, needed: set[int], found: dict[int, np.ndarray]) -> None:
    """Decode the frames numbered in `needed` into `found`; leaves out the ones the file does not have."""
    first, last = min(needed), max(needed)
    reformatter = VideoReformatter()  # shared by all frames: one for each more than doubles the cost
    with av.open(io.BytesIO(video.data), "r", format="mp4") as container:
        if not container.streams.video:
            raise BadEpisode("video file without a video stream")
        stream = container.streams.video[0]
        stream.thread_count = 1
        rate, base = stream.average_rate, stream.time_base
        if not rate or not base:
            raise BadEpisode("video file without a frame rate")
        if first:
            container.seek(int(first / rate / base), stream=stream, backward=True)
        for frame in container.decode(stream):
            size = (frame.height, frame.width)
            if frame.pts is None or frame.is_corrupt or size != (video.height, video.width):
                raise BadEpisode(
                    f"video has a damaged frame of {size[0]}x{size[1]} pixels, expected {video.height}x{video.width}"
                )
            index = round(frame.pts * base * rate)
            if index in needed:
                found[index] = reformatter.reformat(frame, format=_RGB).to_ndarray()
            if index >= last:
                return
