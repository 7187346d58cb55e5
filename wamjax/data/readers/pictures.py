"""Pictures in formats of their own: files (JPEG, PNG), which are decoded when they are wanted, and arrays."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Sequence

import numpy as np

from wamjax.data.episode import BadEpisode, Pictures
from wamjax.data.storage import brief

_LIMIT = 64_000_000  # pixels; a header that says more is damaged or hostile

# What Pillow raises for damaged files besides, found by fuzzing.
_DAMAGE = (OSError, ValueError, SyntaxError, TypeError, OverflowError, KeyError, IndexError, EOFError, MemoryError)


def decode_picture(data: bytes, where: str, *, swapped_unless: bytes | None = None) -> np.ndarray:
    """A picture as RGB, uint8 (h, w, 3), decoded by libjpeg-turbo or libpng (through Pillow).

    PNG has checksums. JPEG has none, and its decoder goes on after an impossible code: nearly every flipped bit inside
    it gives another picture. What is cut short is refused. `swapped_unless`, where given, exchanges red and
    blue of a picture that has not this comment.

    Raises:
        BadEpisode: it cannot be decoded; `where` says which it was.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            if image.width * image.height > _LIMIT:
                raise ValueError(f"{image.width}x{image.height} pixels")
            array = np.asarray(image.convert("RGB"))
            swapped = swapped_unless is not None and image.info.get("comment") != swapped_unless
    except (Image.DecompressionBombError, *_DAMAGE) as error:
        raise BadEpisode(f"a picture in {where} cannot be decoded ({brief(error)}): get it again") from error
    return array[..., ::-1] if swapped else array


def picture_files(files: Sequence[bytes], where: str, *, swapped_unless: bytes | None = None) -> Pictures:
    """Pictures, one file each, of the size of the first; `swapped_unless` is that of `decode_picture`.

    Raises:
        BadEpisode: there are none, or the first cannot be decoded; when they are read: any other, or of another size.
    """
    if not files:
        raise BadEpisode(f"{where} has no pictures: get it again")
    decode = functools.partial(decode_picture, where=where, swapped_unless=swapped_unless)
    height, width, _ = decode(files[0]).shape
    return Pictures(b"", len(files), height, width, functools.partial(_decoded, files, decode, (height, width), where))


def _decoded(
    files: Sequence[bytes], decode: Callable[[bytes], np.ndarray], size: tuple[int, int], where: str, wanted: np.ndarray
) -> np.ndarray:
    frames = np.empty((len(wanted), *size, 3), np.uint8)
    for frame, index in zip(frames, wanted.tolist(), strict=True):
        if (picture := decode(files[index])).shape[:2] != size:
            raise BadEpisode(f"pictures in {where} have the sizes {sorted({size, picture.shape[:2]})}: get it again")
        frame[:] = picture
    return frames


def check_pictures(frames: np.ndarray, where: str) -> np.ndarray:
    """Decoded pictures, which must be uint8 (t, h, w, 3) with sides that a video can have.

    Raises:
        BadEpisode: they are not.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise BadEpisode(f"{where} is {frames.dtype} {frames.shape}, not pictures (t, h, w, 3) of uint8")
    return frames
