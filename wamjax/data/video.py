"""Video in memory: H.264 in MP4 through PyAV.

The pictures are stored as yuv444p: with the usual 4:2:0 subsampling, 64x64 pictures of a simulated robot stay
at 26-33 dB PSNR even at crf 10, while 4:4:4 at the defaults below gives 39-41 dB in about 580 bytes per frame
(21 times smaller than raw). GOPs are closed and short, so that a clip in the middle of an episode needs few
pictures in front of it.
"""

import functools
import io
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from wamjax.data.episode import BadEpisode, Pictures, Video

GOP = 15
CRF = 18
_RGB = "rgb24"


def encode(
    frames: np.ndarray | Pictures,
    fps: float,
    *,
    gop: int = GOP,
    crf: int = CRF,
    everywhere: bool = False,
    fast: bool = False,
) -> Video:
    """Compress frames, decoded as uint8 (t, h, w, 3), shown at `fps` Hz; equal input gives equal bytes.

    `gop` is the largest distance between pictures that can be decoded alone, `crf` x264's quality: lower is better,
    0 keeps every pixel as it is. `everywhere` gives up colour resolution (yuv420p, which
    needs even sides) for a file that every player shows; episodes are stored without. `fast` gives it up where it can,
    and x264's smoothing and densest coding, for a third of the time to decode.

    Raises:
        ValueError: frames of another dtype or shape, or none.
    """
    if isinstance(frames, Pictures):
        frames = decode(frames)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or frames.shape[0] == 0:
        raise ValueError(f"frames must be uint8 of shape (t, h, w, 3), not {frames.dtype} {frames.shape}")
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        # tune=psnr drops x264's psycho-visual tricks: a policy wants the pixels, not the look of grain.
        parameters = ":".join(["open-gop=0", "log-level=none", *_instructions()])
        options = {"crf": str(crf), "tune": "fastdecode" if fast else "psnr", "x264-params": parameters}
        lossless = crf == 0 and not everywhere  # then in RGB: the conversion of colours loses, too
        halved = everywhere or (fast and frames.shape[1] % 2 == frames.shape[2] % 2 == 0)
        codec, layout = ("libx264rgb", _RGB) if lossless else ("libx264", "yuv420p" if halved else "yuv444p")
        stream: Any = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001), options=options)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], layout
        stream.gop_size = gop
        stream.thread_count = 1  # small pictures gain nothing from threads, and collectors fill every core
        for picture in np.ascontiguousarray(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format=_RGB)))
        container.mux(stream.encode(None))
    return Video(file.getvalue(), *frames.shape[:3])


def unencoded(frames: np.ndarray | Pictures, fps: float) -> Pictures:
    """In place of `encode`, the pictures as they are, for whoever does not keep them."""
    return frames if isinstance(frames, Pictures) else Pictures.of(frames)


@functools.cache
def _instructions() -> list[str]:
    """x264's AVX-512 code writes other bytes every now and then for the same pictures: keep to AVX2 where it is had."""
    processor = Path("/proc/cpuinfo")
    return ["asm=AVX2"] if processor.exists() and "avx512" in processor.read_text() else []


def decode(video: Video, indices: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
    """Decompress all frames, or those at `indices` (any order, repeats allowed), into uint8 (t, h, w, 3).

    Only what the wanted pictures depend on is decoded: from the key frame before each one on.
    What is cut short is always noticed, a flipped bit that decodes to another picture is not: H.264 has no
    checksums, those of the store guard the bytes.

    Raises:
        BadEpisode: the video is damaged, cut short, or not what its header in the episode says.
        IndexError: an index outside 0 .. video.frames - 1.
    """
    wanted = np.arange(video.frames) if indices is None else np.asarray(indices, np.int64)
    if wanted.size and not 0 <= wanted.min() <= wanted.max() < video.frames:
        raise IndexError(f"frame indices {wanted.min()}..{wanted.max()} of a video of {video.frames} frames")
    if isinstance(video, Pictures):
        return video.read(wanted)
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
    reformatter = VideoReformatter()  # shared by all frames: one for each more than doubles the cost
    with av.open(io.BytesIO(video.data), "r", format="mp4") as container:
        if not container.streams.video:
            raise BadEpisode("video file without a video stream")
        stream = container.streams.video[0]
        decoder, rate, base = stream.codec_context, stream.average_rate, stream.time_base
        if decoder is None or not rate or not base:
            raise BadEpisode("video file without a known codec or frame rate")
        decoder.thread_count = 1
        for run in _runs(_groups(container, stream, base * rate, needed), needed):
            for frame in (frame for packet in (*run, None) for frame in decoder.decode(packet)):
                size, expected = (frame.height, frame.width), (video.height, video.width)
                if frame.pts is None or frame.is_corrupt or size != expected:
                    raise BadEpisode(f"video has a damaged frame of {size} pixels, expected {expected}")
                if (index := round(frame.pts * base * rate)) in needed:
                    found[index] = reformatter.reformat(frame, format=_RGB).to_ndarray()
            decoder.flush_buffers()


_Group = list[tuple[int, av.Packet]]
"""Numbers and packets of a key frame and of what follows it until the next, in the order of decoding."""


def _groups(container: Any, stream: Any, rate: Fraction, needed: set[int]) -> list[_Group]:
    """All groups that hold something of `needed`, those between, and the one before if the first needs it."""
    start = int(min(needed) / rate)
    while True:
        if start > 0:
            container.seek(start, stream=stream, backward=True)
        groups = _read(container.demux(stream), rate, needed)
        if start <= 0 or not groups or not _leading(groups[0], needed):
            return groups
        container.seek(0, stream=stream)  # and from there, where nothing comes before
        start = (groups[0][0][1].dts or 1) - 1


def _read(packets: Iterator[av.Packet], rate: Fraction, needed: set[int]) -> list[_Group]:
    """The groups from here on, until all of `needed` was found."""
    groups: list[_Group] = [[]]
    missing = set(needed)
    for packet in packets:
        if packet.pts is None or not packet.size:
            continue
        if packet.is_keyframe:
            if not missing:
                break
            groups.append([])
        index = round(packet.pts * rate)
        groups[-1].append((index, packet))
        missing.discard(index)
    return [group for group in groups if group]


def _leading(group: _Group, needed: set[int]) -> bool:
    """Whether one of `needed` follows the key frame but is shown before it, and so may need what lies before, too."""
    return any(index < group[0][0] and index in needed for index, _ in group)


def _runs(groups: list[_Group], needed: set[int]) -> list[list[av.Packet]]:
    """What has to be decoded in one go each: of a group all up to the last needed one, of others nothing."""
    runs: list[list[av.Packet]] = []
    after: list[av.Packet] = []
    for group in reversed(groups):
        last = max((place for place, (index, _) in enumerate(group) if index in needed or after), default=-1)
        packets = [packet for _, packet in group[: last + 1]] + after
        leading = _leading(group, needed)
        after = packets if leading else []
        if packets and not leading:
            runs.append(packets)
    return [*([after] if after else []), *reversed(runs)]
