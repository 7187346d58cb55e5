"""The episode contract: what every reader yields and every writer takes, whatever the format on disk.

An episode is per-step arrays, one video per camera, the instructions and metadata. Cameras, states and
actions have DROID's names where DROID has them (`observation/cartesian_position`, `action`, ...).
`pack` turns an episode into one self-describing record (msgpack, raw little-endian arrays), `unpack` back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgpack
import numpy as np

from wamjax.errors import UserError

RECORD_FORMAT = 1
ANNOTATION = "annotation"  # step field (T,): which of the metadata's ANNOTATIONS is the instruction at each step
ANNOTATIONS = "annotations"
_KINDS = "biuf"  # boolean, signed, unsigned, floating: everything else has no fixed byte layout

# What reading a record of arbitrary bytes can raise, found by fuzzing.
_DAMAGE = (ValueError, TypeError, KeyError, AttributeError, OverflowError, msgpack.UnpackException)

JSON = None | bool | int | float | str | list["JSON"] | dict[str, "JSON"]


class BadEpisode(UserError):
    """An episode that cannot be used: a damaged record or video, or parts that contradict each other."""


@dataclass(frozen=True)
class Video:
    """One camera's recording, a whole MP4 file in memory: `frames` pictures of `height` x `width` pixels."""

    data: bytes
    frames: int
    height: int
    width: int


@dataclass(frozen=True)
class Pictures(Video):
    """One camera's pictures in a format of their own, which are no file: `data` is empty, and no record has them.

    Attributes:
        read: indices (n,) -> uint8 (n, height, width, 3), or `BadEpisode` where one is damaged.
    """

    read: Callable[[np.ndarray], np.ndarray]

    @classmethod
    def of(cls, frames: np.ndarray) -> Pictures:
        """Of decoded ones, uint8 (t, h, w, 3)."""
        count, height, width, _ = frames.shape
        return cls(b"", count, height, width, frames.__getitem__)


@dataclass(frozen=True)
class Episode:
    """One recording of a robot (or, without `steps`, a captioned video).

    Attributes:
        steps: arrays whose leading axis is time, e.g. `action` (T, a); units are those of the source.
        videos: camera name -> video with exactly T frames.
        language: instructions that describe the episode; any of them is valid. May be empty. Instructions that
            change with the steps are the metadata `annotations`, a list of texts, and the step field `annotation`,
            which says by its index which of them holds at each step.
        metadata: JSON values: `fps` (steps per second, Hz), `embodiment`, `success`, `source`, ...

    Raises:
        BadEpisode: the parts disagree about the number of steps, or an array has no fixed byte layout.
    """

    steps: Mapping[str, np.ndarray]
    videos: Mapping[str, Video] = field(default_factory=dict)
    language: tuple[str, ...] = ()
    metadata: Mapping[str, JSON] = field(default_factory=dict)

    def __post_init__(self) -> None:
        lengths = {name: video.frames for name, video in self.videos.items()}
        for name, array in self.steps.items():
            if array.ndim == 0 or array.dtype.kind not in _KINDS:
                raise BadEpisode(
                    f"step field '{name}' must be numbers with a leading time axis, "
                    f"not {array.dtype} of shape {array.shape}"
                )
            lengths[name] = array.shape[0]
        if len(set(lengths.values())) != 1 or 0 in lengths.values():
            raise BadEpisode(f"an episode has equally many steps (at least 1) everywhere, not {lengths}")

    def __len__(self) -> int:
        """Number of steps T."""
        for array in self.steps.values():
            return len(array)
        return next(iter(self.videos.values())).frames


def pack(episode: Episode) -> bytes:
    """Serialise an episode into one record; equal episodes give equal bytes. `Pictures` are to be encoded before."""
    if any(isinstance(video, Pictures) for video in episode.videos.values()):
        raise TypeError("pictures that are not encoded cannot be kept in a record")
    return msgpack.packb(
        {
            "format": RECORD_FORMAT,
            "steps": {name: _pack_array(array) for name, array in sorted(episode.steps.items())},
            "videos": {name: [v.frames, v.height, v.width, v.data] for name, v in sorted(episode.videos.items())},
            "language": list(episode.language),
            "metadata": dict(episode.metadata),
        }
    )


def unpack(record: bytes) -> Episode:
    """Read the record written by `pack`; its arrays are read-only views of `record`'s decoded bytes.

    Raises:
        BadEpisode: the record is damaged, or of a newer format.
    """
    try:
        fields = msgpack.unpackb(record)
        version = fields["format"]
        if version != RECORD_FORMAT:
            raise BadEpisode(f"episode record of format {version!r}, this wamjax reads {RECORD_FORMAT}")
        return Episode(
            steps={name: _unpack_array(*parts) for name, parts in fields["steps"].items()},
            videos={name: _unpack_video(*parts) for name, parts in fields["videos"].items()},
            language=tuple(_checked(text, str) for text in fields["language"]),
            metadata=_checked(fields["metadata"], dict),
        )
    except BadEpisode:
        raise
    except _DAMAGE as error:
        raise BadEpisode(f"damaged episode record ({type(error).__name__}: {error})") from error


def _pack_array(array: np.ndarray) -> list[Any]:
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return [little.dtype.str, list(array.shape), little.tobytes()]


def _unpack_array(dtype: str, shape: list[int], data: bytes) -> np.ndarray:
    flat = np.frombuffer(_checked(data, bytes), np.dtype(_checked(dtype, str)))
    return flat.reshape([_count(size) for size in shape])


def _unpack_video(frames: int, height: int, width: int, data: bytes) -> Video:
    return Video(_checked(data, bytes), _count(frames), _count(height), _count(width))


def _count(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is not a count")
    return value


def _checked(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"expected {kind.__name__}, found {type(value).__name__}")
    return value
