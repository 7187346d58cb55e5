"""Encoded pictures (JPEG, PNG) as arrays."""

from __future__ import annotations

import io
from collections.abc import Iterable

import numpy as np

from wamjax.data.episode import BadEpisode
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


def stack(pictures: Iterable[np.ndarray], where: str) -> np.ndarray:
    """Pictures of one size as uint8 (t, h, w, 3).

    Raises:
        BadEpisode: none, or of several sizes.
    """
    found = list(pictures)
    sizes = {picture.shape for picture in found}
    if len(sizes) != 1:
        raise BadEpisode(f"pictures in {where} have the sizes {sorted(sizes)}: get it again")
    return np.stack(found)


def check_pictures(frames: np.ndarray, where: str) -> np.ndarray:
    """Decoded pictures, which must be uint8 (t, h, w, 3) with sides that a video can have.

    Raises:
        BadEpisode: they are not.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise BadEpisode(f"{where} is {frames.dtype} {frames.shape}, not pictures (t, h, w, 3) of uint8")
    return frames
