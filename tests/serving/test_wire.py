"""Messages as bytes: what the public client packs, byte for byte, and what is refused."""

import msgpack
import numpy as np
import pytest

from wamjax.errors import UserError
from wamjax.serving import wire

# Packed by openpi-client 0.1.2 with msgpack 1.2.4 and numpy 1.26.4.
GOLDEN = [
    (
        {"a": np.arange(6, dtype=np.float32).reshape(2, 3)},
        "81a16184c40b5f5f6e6461727261795f5fc3c40464617461c418000000000000803f0000004000004040000080400000a040c405647479"
        "7065a33c6634c4057368617065920203",
    ),
    (np.uint8(7), "83c40d5f5f6e7067656e657269635f5fc3c4046461746107c4056474797065a37c7531"),
    (
        np.asfortranarray(np.array([[1, 2], [3, 4]], dtype="<i2")),
        "84c40b5f5f6e6461727261795f5fc3c40464617461c4080100020003000400c4056474797065a33c6932c4057368617065920202",
    ),
    (
        {"t": np.array(["ab"]), "n": [1, 2.5, None, True], "b": np.array(True), "e": np.zeros((0, 3), np.uint8)},
        "84a17484c40b5f5f6e6461727261795f5fc3c40464617461c4086100000062000000c4056474797065a33c5532c40573686170659101a1"
        "6e9401cb4004000000000000c0c3a16284c40b5f5f6e6461727261795f5fc3c40464617461c40101c4056474797065a37c6231c4057368"
        "61706590a16584c40b5f5f6e6461727261795f5fc3c40464617461c400c4056474797065a37c7531c4057368617065920003",
    ),
    (
        np.zeros(2, ">f4"),
        "84c40b5f5f6e6461727261795f5fc3c40464617461c4080000000000000000c4056474797065a33e6634c40573686170659102",
    ),
]


def same(a, b) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, np.ndarray | np.generic):
        return a.dtype == b.dtype and a.shape == b.shape and bool((a == b).all())
    return a == b


@pytest.mark.parametrize(("message", "golden"), GOLDEN)
def test_bytes_are_those_of_the_public_client(message, golden):
    assert wire.pack(message).hex() == golden
    assert same(wire.unpack(bytes.fromhex(golden)), message)


def test_scalars_come_back_as_what_they_were():
    for value in (np.float32(0.1), np.int64(-3), np.bool_(True), np.float16(2)):
        back = wire.unpack(wire.pack(value))
        assert type(back) is type(value)
        assert back == value


@pytest.mark.parametrize(
    "array", [np.zeros(2, complex), np.array([{}], object), np.zeros(2, "f4,i4"), np.zeros(2, "V3")]
)
def test_arrays_that_do_not_travel_are_refused_on_both_sides(array):
    with pytest.raises(UserError, match="do not travel"):
        wire.pack({"x": array})
    smuggled = {b"__ndarray__": True, b"data": b"\0" * array.nbytes, b"dtype": array.dtype.str, b"shape": array.shape}
    with pytest.raises(UserError, match="do not travel"):
        wire.unpack(msgpack.packb(smuggled))


def array_message(**changes) -> bytes:
    fields = {"data": b"\0" * 8, "dtype": "<f4", "shape": [2]} | changes
    return msgpack.packb({b"__ndarray__": True} | {name.encode(): value for name, value in fields.items()})


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"\xc1",
        b"\x81\xa1",  # cut short
        wire.pack({"a": 1}) + b"\0",
        b"\x81\xc0\x01",  # a map whose key is nil
        b"\xa2\xff\xfe",  # text that is not UTF-8
        b"\x91" * 100_000,  # too deep
        b"\xdd\xff\xff\xff\xff",  # an array that claims four billion elements
        array_message(shape=[3]),
        array_message(shape=[1]),
        array_message(shape=[-2]),
        array_message(shape=[2.0]),
        array_message(shape=None),
        array_message(shape=[1 << 40, 1 << 40]),
        array_message(data="text"),
        array_message(dtype=None),
        array_message(dtype="float32"),
        array_message(dtype="i4,i4"),
        array_message(dtype="<f99"),
        array_message(dtype="<U99999999999999999999"),
        msgpack.packb({b"__npgeneric__": True, b"data": "x", b"dtype": "<f4"}),
        msgpack.packb({b"__npgeneric__": True, b"data": 300, b"dtype": "|u1"}),
    ],
)
def test_damaged_messages_are_a_clear_line(damaged):
    with pytest.raises(UserError) as error:
        wire.unpack(damaged)
    assert len(str(error.value)) < 200
    assert "\n" not in str(error.value)
