"""Near-lossless members: the bound holds for every sample that there is, and what is forged is refused in a sentence."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
from numpy.typing import NDArray

from msinn_core.codec import Codec
from msinn_core.errors import CodecError, PixelLimitError
from msinn_core.model_file import load_model
from msinn_core.picture import Picture
from pipeline.archive.layout import sha256
from pipeline.forms import jxl, near
from pipeline.forms.base import Bounds, Refusal, TooLargeRefusal
from pipeline.forms.near import FOLDED, NUMBERED, ROUNDED, SHIFTED, Member
from pipeline.forms.pixels_exact import PixelsExact
from pipeline.forms.process import Forms

GOLDEN = Path(__file__).parents[2] / "golden"
ERRORS = (1, 2, 3, 4, 8, 127)


@pytest.fixture(scope="module")
def small() -> Codec:
    return Codec(load_model(str(GOLDEN / "integer" / "model.safetensors")), max_pixels=20_000)


@pytest.fixture(scope="module")
def forms() -> Iterator[Forms]:
    found = Forms(20_000, 1 << 20)
    yield found
    found.close()


@pytest.fixture(scope="module")
def picture(photo: NDArray[np.uint8]) -> Picture:
    pixels = photo[100:197, 40:171]
    return Picture(pixels=pixels, alpha=pixels[:, :, 1].copy(), icc=b"profile", png_chunks=None)


@pytest.fixture(scope="module")
def member(small: Codec, picture: Picture) -> Member:
    data = small.encode(picture, 4)
    numbers = near.residual(picture.pixels, small.decode(data)[0].pixels, 4)
    return Member(way=FOLDED, largest_error=4, bitstream=data, picture=jxl.encoded(near.folded(numbers, FOLDED), {}))


def restored(data: bytes, codec: Codec, forms: Forms) -> Picture:
    return near.restored(near.parse(data), lambda part: codec.decode(part)[0], lambda part: forms.decode("jxl", part))


@pytest.mark.parametrize("largest", ERRORS)
def test_every_sample_beside_every_other_is_within_the_bound(largest: int) -> None:
    """All 65,536 pairs of a sample and what the network may have made of it."""
    pixels, coded = (np.ascontiguousarray(values, np.uint8) for values in np.mgrid[0:256, 0:256])
    assert np.abs(near.rounded(pixels, largest).astype(int) - pixels).max() <= largest
    assert near.numbered(pixels, largest).max() <= 85
    numbers = near.residual(pixels, coded, largest)
    for way in (FOLDED, SHIFTED):
        np.testing.assert_array_equal(near.unfolded(near.folded(numbers, way), way), numbers)
    back = near.added(coded, numbers, largest)
    assert np.abs(back.astype(int) - pixels).max() == min(largest, 255)
    every = np.arange(256, dtype=np.uint8)
    for way in (FOLDED, SHIFTED):
        np.testing.assert_array_equal(near.folded(near.unfolded(every, way), way), every)


def test_a_member_gives_back_the_picture_within_its_bound(small: Codec, forms: Forms, picture: Picture, member: Member) -> None:
    for way in (FOLDED, SHIFTED):
        numbers = near.unfolded(np.asarray(forms.decode("jxl", member.picture).planes), FOLDED)  # type: ignore[union-attr]
        data = replace(member, way=way, picture=jxl.encoded(near.folded(numbers, way), {})).to_bytes()
        back = restored(data, small, forms)
        assert 0 < near.largest_error(back, picture) <= 4
        assert back.metadata() == picture.metadata()
        assert near.model_named(data) == small.model.sha256[:32]
    rounded = near.with_pixels(picture, near.rounded(picture.pixels, 2))
    planes = np.dstack([rounded.pixels, rounded.alpha])  # type: ignore[list-item]
    data = Member(way=ROUNDED, largest_error=2, bitstream=b"", picture=jxl.encoded(planes, {"icc": b"profile"})).to_bytes()
    back = restored(data, small, forms)
    assert (back.content(), back.icc, near.model_named(data)) == (rounded.content(), b"profile", None)
    assert near.largest_error(back, picture) == 2
    numbers = near.numbered(picture.pixels, 2)
    planes = np.dstack([numbers, picture.alpha])  # type: ignore[list-item]
    data = Member(way=NUMBERED, largest_error=2, bitstream=b"", picture=jxl.encoded(planes, {"icc": b"profile"})).to_bytes()
    assert restored(data, small, forms).content() == rounded.content()
    assert near.largest_error(back, near.with_pixels(replace(picture, alpha=None), picture.pixels)) == 255
    assert near.largest_error(back, replace(picture, alpha=255 - picture.alpha)) == 255  # type: ignore[operator]


@pytest.mark.parametrize("name", ["folded", "shifted"])
def test_members_of_the_first_version_decode_to_the_same_samples(name: str, small: Codec, forms: Forms) -> None:
    data = (GOLDEN / "near" / f"{name}.msr").read_bytes()
    assert near.parse(data).to_bytes() == data
    back = restored(data, small, forms)
    assert sha256(back.content()) == (GOLDEN / "near" / f"{name}.sha256").read_text().strip()
    assert back.icc == b"profile"


def forged(data: bytes, position: int, value: bytes) -> bytes:
    """Other bytes in the header, and the checksum that belongs to them."""
    data = data[:position] + value + data[position + len(value) :]
    return data[:16] + struct.pack("<I", google_crc32c.value(data[:16] + data[20:])) + data[20:]


def test_damage_is_one_refusal(member: Member) -> None:
    data = member.to_bytes()
    for cut in (0, 3, 4, 15, 19, 20, 21, len(data) // 2, len(data) - 1):
        with pytest.raises(Refusal, match="near-lossless member"):
            near.parse(data[:cut])
    with pytest.raises(Refusal, match="that says"):
        near.parse(data + b"x")
    rng = np.random.default_rng(0)
    for position in [*range(20), *rng.integers(20, len(data), 50).tolist()]:
        flipped = data[:position] + bytes([data[position] ^ 1 << int(rng.integers(8))]) + data[position + 1 :]
        with pytest.raises(Refusal):
            near.parse(flipped)
        assert near.model_named(flipped) is None
    for anything in (b"", b"\x89MSR", b"\x89MSN" + bytes(100), bytes(40)):
        with pytest.raises(Refusal):
            near.parse(anything)


@pytest.mark.parametrize(
    ("position", "value", "says"),
    [
        (4, b"\x02", "version 2: use a newer msinn"),
        (5, b"\x04", "way 4"),
        (5, b"\x00", "without the parts"),
        (5, b"\x03", "without the parts"),
        (6, b"\x00", "largest error 0"),
        (6, b"\x80", "largest error 128"),
        (7, b"\x01", "no version of msinn"),
        (8, b"\xff\xff\xff\xff", "that says 4,29"),
        (12, b"\xff\xff\xff\xff", "that says 4,29"),
        (20, b"\x88", "without the parts"),
    ],
)
def test_a_forged_header_with_its_checksum_is_refused(member: Member, position: int, value: bytes, says: str) -> None:
    with pytest.raises(Refusal, match=says):
        near.parse(forged(member.to_bytes(), position, value))


def test_parts_that_do_not_belong_together_are_refused(small: Codec, forms: Forms, picture: Picture, member: Member) -> None:
    other = jxl.encoded(np.zeros((97, 130, 3), np.uint8), {})
    with pytest.raises(Refusal, match="130 x 97 and its picture 131 x 97"):
        restored(replace(member, picture=other).to_bytes(), small, forms)
    for planes, says in (
        (np.zeros((97, 131), np.uint8), "its residual is"),
        (np.zeros((97, 131, 4), np.uint8), "its residual is"),
        (np.zeros((97, 131, 3), np.uint16), "no samples of 8 bits"),
    ):
        with pytest.raises(Refusal, match=says):
            restored(replace(member, picture=jxl.encoded(planes, {})).to_bytes(), small, forms)
    # A residual cut short, with the member's own checksum right; and a bitstream that is damaged.
    with pytest.raises(Refusal):
        restored(replace(member, picture=member.picture[:-40]).to_bytes(), small, forms)
    with pytest.raises(CodecError):
        restored(replace(member, bitstream=member.bitstream[:-9]).to_bytes(), small, forms)
    # The wildest residual is only another picture.
    wild = replace(member, way=SHIFTED, largest_error=127, picture=jxl.encoded(np.full((97, 131, 3), 255, np.uint8), {}))
    assert restored(wild.to_bytes(), small, forms).pixels.min() == 255


def test_a_picture_over_the_limit_is_not_decoded(small: Codec, forms: Forms) -> None:
    """Of a picture of one colour a few bytes say any size."""
    bomb = jxl.encoded(np.zeros((3000, 4000), np.uint8), {})
    assert len(bomb) < 5000
    with pytest.raises(TooLargeRefusal, match="4000 x 3000 pixels"):
        restored(Member(way=ROUNDED, largest_error=1, bitstream=b"", picture=bomb).to_bytes(), small, forms)
    free = Codec(small.model)
    large = Picture(pixels=np.zeros((200, 150), np.uint8))
    member = Member(way=FOLDED, largest_error=1, bitstream=free.encode(large, 0), picture=jxl.encoded(large.pixels, {}))
    with pytest.raises(TooLargeRefusal):
        restored(member.to_bytes(), small, forms)
    wide = PixelsExact()
    with pytest.raises(PixelLimitError):
        near.restored(member, lambda part: small.decode(part)[0], lambda part: wide.decode("jxl", part, Bounds(max_pixels=1 << 20, max_file_bytes=0)))
