"""TFRecord files and the `tf.train.Example` messages in them, without TensorFlow.

A record is its length (8 bytes), the CRC of that, the payload and the CRC of it, everything little-endian.
Source: `tensorflow/core/lib/io/record_writer.h` and `core/example/{example,feature}.proto`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import google_crc32c
import numpy as np

from wamjax.data.episode import BadEpisode
from wamjax.data.storage import Place, brief

_HEADER, _FOOTER = 12, 4
_VARINT, _FIXED_64, _BYTES, _FIXED_32 = 0, 1, 2, 5  # wire types of Protocol Buffers

Values = list[bytes] | np.ndarray
"""A feature: bytes strings, float32 (n,) or int64 (n,)."""


def record_offsets(file: Place) -> list[tuple[int, int]]:
    """Offset and length of the payloads, up to the first header that is damaged or cut short.

    Raises:
        BadEpisode: the file is missing.
    """
    found = []
    try:
        with file.open(ahead=False) as stream:  # headers lie megabytes apart
            position = 0
            while len(header := stream.read(_HEADER)) == _HEADER:
                length, crc = struct.unpack("<QI", header)
                if crc != masked_crc(header[:8]):
                    break
                found.append((position + _HEADER, length))
                position += _HEADER + length + _FOOTER
                stream.seek(position)
    except (OSError, ValueError) as error:
        raise BadEpisode(f"{file} cannot be read ({brief(error)}): get it again") from error
    return found


def read_record(file: Place, offset: int, length: int) -> bytes:
    """The payload at an offset.

    Raises:
        BadEpisode: it is cut short, or its checksum is wrong.
    """
    with file.open(ahead=False) as stream:
        stream.seek(offset)
        found = stream.read(length + _FOOTER)
    payload, footer = found[:length], found[length:]
    if len(footer) != _FOOTER or struct.unpack("<I", footer)[0] != masked_crc(payload):
        raise BadEpisode(f"the record at byte {offset} of {file} is damaged (its checksum is wrong): get it again")
    return payload


def masked_crc(data: bytes) -> int:
    """CRC-32C, rotated and shifted as TFRecord does."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def parse_example(data: bytes) -> dict[str, Values]:
    """The features of a `tf.train.Example`.

    Raises:
        BadEpisode: it is none.
    """
    try:
        features = {}
        for _, message in _messages(memoryview(data), 1):
            for _, entry in _messages(message, 1):
                parts = dict(_messages(entry, 1, 2))
                features[bytes(parts[1]).decode()] = _values(parts.get(2, memoryview(b"")))
        return features
    except (ValueError, KeyError, IndexError, struct.error) as error:
        raise BadEpisode(f"a record is no tf.train.Example ({brief(error)}): write it again") from error


def _values(feature: memoryview) -> Values:
    """The values of a `Feature`, whichever kind they are of."""
    for kind, values in _messages(feature, 1, 2, 3):
        if kind == 1:
            return [bytes(value) for _, value in _messages(values, 1)]
        parts = [value for number, value in _fields(values) if number == 1]
        if kind == 2:  # packed, or one at a time as older writers did; the bytes are the same
            return np.frombuffer(b"".join(bytes(part) for part in parts), "<f4")
        return np.concatenate([np.empty(0, np.int64), *map(_varints, parts)])
    return []


def _messages(data: memoryview, *numbers: int) -> Iterator[tuple[int, memoryview]]:
    """The fields of some numbers, all of which hold bytes."""
    for number, value in _fields(data):
        if number in numbers:
            yield number, value


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Numbers and bytes of a message's fields (of varints: their bytes)."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        kind = tag & 7
        if kind == _BYTES:
            size, position = _varint(data, position)
        elif kind == _VARINT:
            size = _varint(data, position)[1] - position
        else:
            size = {_FIXED_64: 8, _FIXED_32: 4}[kind]
        if position + size > len(data):
            raise ValueError("a field is cut short")
        yield tag >> 3, data[position : position + size]
        position += size


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    """A number in groups of seven bits, and the position after it."""
    value = 0
    for place in range(10):
        byte = data[position + place]
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return value, position + place + 1
    raise ValueError("a number of more than ten bytes")


def _varints(data: memoryview) -> np.ndarray:
    """Many such numbers, one after another, as int64."""
    groups = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(groups < 0x80)
    if not len(groups) or ends[-1:] != len(groups) - 1:
        raise ValueError("a number is cut short")
    starts = np.concatenate([[0], ends[:-1] + 1])
    places = np.arange(len(groups)) - np.repeat(starts, ends + 1 - starts)
    if places.max() > 9:
        raise ValueError("a number of more than ten bytes")
    parts = (groups & 0x7F).astype(np.uint64) << (7 * places).astype(np.uint64)
    return np.add.reduceat(parts, starts).view(np.int64)
