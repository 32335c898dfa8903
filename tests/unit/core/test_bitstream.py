"""Each rule of FORMAT.md is an error here."""

from __future__ import annotations

import pickle
import struct
import zlib

import google_crc32c
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msinn_core import bitstream, errors
from msinn_core.bitstream import Bitstream, parse


def sample(**changes: object) -> Bitstream:
    values: dict[str, object] = {
        "profile": "float",
        "colour": "rgb",
        "model_id": bytes(range(16)),
        "width": 640,
        "height": 480,
        "q": 5.25,
        "streams": tuple(bytes([i]) * (8 + 4 * i) for i in range(10)),
        "boxes": {bitstream.ICC: b"profile" * 100, bitstream.EXIF: b"Exif\0\0x"},
    }
    return Bitstream(**(values | changes))  # type: ignore[arg-type]


DATA = sample().to_bytes()


def signed(header: bytearray, payload: bytes) -> bytes:
    """Recompute both checksums, as a hostile writer would."""
    header[-8:-4] = struct.pack("<I", google_crc32c.value(payload))
    header[-4:] = struct.pack("<I", google_crc32c.value(bytes(header[:-4])))
    return bytes(header) + payload


def split(data: bytes) -> tuple[bytearray, bytes]:
    count = struct.unpack_from("<H", data, 34)[0]
    start = 44 + 5 * count
    return bytearray(data[:start]), data[start:]


def test_round_trip() -> None:
    assert parse(DATA) == sample()
    assert DATA[:4] == b"\x89MSN"
    assert parse(sample(boxes={}, streams=(b"",) * 10).to_bytes()).streams == (b"",) * 10


def test_every_truncation_is_an_error() -> None:
    assert isinstance(_error(b""), errors.BadMagicError)
    for size in range(1, len(DATA)):
        assert isinstance(_error(DATA[:size]), errors.TruncatedError | errors.ChecksumError), size


def test_every_flipped_bit_is_an_error() -> None:
    for position in range(len(DATA)):
        for bit in (0, 3, 7):
            hurt = bytearray(DATA)
            hurt[position] ^= 1 << bit
            error = _error(bytes(hurt))
            if position < 4:
                assert isinstance(error, errors.BadMagicError)
            elif position == 4:
                assert isinstance(error, errors.UnsupportedVersionError)
            else:
                assert isinstance(error, errors.ChecksumError | errors.TruncatedError), position


def _error(data: bytes) -> Exception:
    with pytest.raises(errors.BitstreamError) as caught:
        parse(data)
    return caught.value


@pytest.mark.parametrize(
    ("offset", "fmt", "value", "kind"),
    [
        (5, "<B", 1, errors.UnsupportedVersionError),
        (6, "<B", 9, errors.UnsupportedVersionError),
        (7, "<B", 2, errors.UnsupportedVersionError),
        (24, "<I", 0, errors.BitstreamError),
        (28, "<I", 70000, errors.BitstreamError),
        (36, "<B", 0x55, errors.UnsupportedVersionError),
        (41, "<B", 0x01, errors.BitstreamError),
        (37, "<I", 0xFFFFFFF0, errors.TruncatedError),
    ],
)
def test_well_signed_nonsense_is_refused(offset: int, fmt: str, value: int, kind: type[Exception]) -> None:
    header, payload = split(DATA)
    struct.pack_into(fmt, header, offset, value)
    assert type(_error(signed(header, payload))) is kind


def test_bytes_after_the_end_are_refused() -> None:
    assert "follow the end" in str(_error(DATA + b"x"))


def test_a_missing_stream_is_refused() -> None:
    header, payload = split(sample(boxes={}).to_bytes())
    struct.pack_into("<H", header, 34, 9)
    del header[36 + 45 : 36 + 50]
    assert "incomplete" in str(_error(signed(header, payload[:-44])))


def test_boxes_that_lie_about_their_size_are_refused() -> None:
    header, payload = split(DATA)
    length = struct.unpack_from("<I", header, 37)[0]
    assert header[36] == bitstream.ICC | 0x80
    for declared in (699, 701, 2**31):
        hurt = struct.pack("<I", declared) + payload[4:]
        assert isinstance(_error(signed(bytearray(header), hurt)), errors.BitstreamError)
    # A deflate bomb: few bytes that would inflate to far more than they declare.
    bomb = struct.pack("<I", 100) + zlib.compress(bytes(10**7), 9)
    struct.pack_into("<I", header, 37, len(bomb))
    assert "does not inflate to the 100 bytes" in str(_error(signed(header, bomb + payload[length:])))


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=200))
def test_arbitrary_bytes_raise_only_bitstream_errors(data: bytes) -> None:
    for candidate in (data, b"\x89MSN\x01" + data):
        with pytest.raises(errors.BitstreamError):
            parse(candidate)


@pytest.mark.parametrize("change", [{"width": 0}, {"height": 65536}, {"streams": (b"",) * 9}, {"model_id": b"short"}])
def test_what_does_not_fit_is_not_written(change: dict[str, object]) -> None:
    with pytest.raises(errors.BitstreamError):
        sample(**change).to_bytes()


def test_errors_pickle() -> None:
    for name in dir(errors):
        kind = getattr(errors, name)
        if isinstance(kind, type) and issubclass(kind, Exception):
            assert str(pickle.loads(pickle.dumps(kind("what, where")))) == "what, where"
