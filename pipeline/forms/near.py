"""`near`: a picture of which no sample is further off than N, in one member of its own.

```
header --> picture:   lossless JPEG XL of samples that were rounded to multiples of 2 N + 1,
                      or of the numbers of these multiples                                           (drawings, screens, and photos at N = 1)
       --> bitstream: what the network decodes to, and residual: lossless JPEG XL of what is left,
                      in steps of 2 N + 1: clip(decoded + (2 N + 1) k, 0, 255)                       (photos)
```
The second way rests on the network's whole numbers: every machine decodes to the same samples, so what is left is known exactly when it is coded.
Alpha is never rounded; colour profile and metadata travel in the bitstream or in the JPEG XL file, as the forms of these have them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from msinn_core import bitstream
from msinn_core.picture import Picture
from pipeline.forms import jxl
from pipeline.forms.base import Refusal
from pipeline.forms.msinn import LearnedForm
from pipeline.forms.samples import Samples

NEAR = LearnedForm(name="near", codec="near")

MAGIC = b"\x89MSR"
VERSION = 1
LARGEST_ERROR = 127
"""What the header can say: from there on a step is the whole range of a sample."""

ROUNDED, FOLDED, SHIFTED, NUMBERED = 0, 1, 2, 3
"""Ways: samples rounded first, or their numbers, which take up to 15 % less of a screen; the network with a residual whose numbers are 0, -1, 1,
-2 ... as 0, 1, 2, 3, or as k + 128, of which either may be smaller."""

WITHOUT_NETWORK = (ROUNDED, NUMBERED)

_HEADER = struct.Struct("<4sBBBBII")
_CHECK = struct.Struct("<I")

Pixels = NDArray[np.uint8]
Numbers = NDArray[np.int16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """The payload, parsed.

    Attributes:
        way: `ROUNDED`, `NUMBERED`, `FOLDED` or `SHIFTED`.
        largest_error: N, 1 to 127 code values of 8 bits.
        bitstream: Of the network; empty if its way is `WITHOUT_NETWORK`.
        picture: JPEG XL: the picture itself, its numbers, or the residual, of the bitstream's size.
    """

    way: int
    largest_error: int
    bitstream: bytes
    picture: bytes

    def to_bytes(self) -> bytes:
        """Serialise; `parse` of the result gives an equal value."""
        header = _HEADER.pack(MAGIC, VERSION, self.way, self.largest_error, 0, len(self.bitstream), len(self.picture))
        content = self.bitstream + self.picture
        return header + _CHECK.pack(google_crc32c.value(header + content)) + content


def parse(data: bytes) -> Member:
    """Check and take apart a member. Nothing is decoded, and nothing allocated from a field but what is there.

    Raises:
        Refusal: It is cut short or longer than it says, of another version, or damaged; or its parts are none of what they have to be.
    """
    start = _HEADER.size + _CHECK.size
    if data[: len(MAGIC)] != MAGIC or len(data) < start:
        raise Refusal("no near-lossless member, or one that is cut short")
    _, version, way, largest_error, reserved, first, second = _HEADER.unpack_from(data)
    if version != VERSION:
        raise Refusal(f"a near-lossless member of version {version}: use a newer msinn")
    if len(data) != start + first + second:
        raise Refusal(f"a near-lossless member of {len(data):,} bytes that says {start + first + second:,}")
    if _CHECK.unpack_from(data, _HEADER.size)[0] != google_crc32c.value(data[: _HEADER.size] + data[start:]):
        raise Refusal("a near-lossless member that is damaged: its checksum differs")
    if way not in (*WITHOUT_NETWORK, FOLDED, SHIFTED) or not 1 <= largest_error <= LARGEST_ERROR or reserved:
        raise Refusal(f"a near-lossless member of way {way}, largest error {largest_error}: no version of msinn writes such ones")
    member = Member(way=way, largest_error=largest_error, bitstream=data[start : start + first], picture=data[start + first :])
    alone = way in WITHOUT_NETWORK
    if alone != (first == 0) or not jxl.is_jxl(member.picture) or not (alone or model_of(member) is not None):
        raise Refusal("a near-lossless member without the parts that its way needs")
    return member


def model_of(member: Member) -> str | None:
    """The first half of the SHA-256 of the model that decodes it, in hexadecimal; None if it needs none."""
    return bitstream.model_named(member.bitstream)


def model_named(data: bytes) -> str | None:
    """The same of bytes that may be anything: None if they are no member, or need no model."""
    try:
        return model_of(parse(data)) if data.startswith(MAGIC) else None
    except Refusal:
        return None


def size(member: Member) -> tuple[int, int]:
    """Width and height, from headers alone: nothing is decoded.

    Raises:
        Refusal: JPEG XL and bitstream do not say the same.
        BitstreamError: The bitstream is damaged.
    """
    found = jxl.size(member.picture)
    if member.way not in WITHOUT_NETWORK:
        stream = bitstream.parse(member.bitstream)
        if found != (stream.width, stream.height):
            raise Refusal(f"its residual is {found[0]} x {found[1]} and its picture {stream.width} x {stream.height} pixels")
    return found


def restored(member: Member, decode_bitstream: Callable[[bytes], Picture], decode_jxl: Callable[[bytes], bytes | Samples]) -> Picture:
    """The picture of a member: what encoders compare and readers give back.

    Args:
        member: Parsed.
        decode_bitstream: The network's decoder, which keeps the limit of pixels.
        decode_jxl: JPEG XL's, in a process of its own, which keeps it too.

    Raises:
        Refusal: The parts do not fit each other; or what the decoders raise.
    """
    size(member)
    found = decode_jxl(member.picture)
    if not isinstance(found, Samples) or found.pixels.dtype != np.uint8:
        raise Refusal("its JPEG XL file holds no samples of 8 bits")
    picture = found.picture()
    if member.way in WITHOUT_NETWORK:
        return picture if member.way == ROUNDED else with_pixels(picture, valued(picture.pixels, member.largest_error))
    coded = decode_bitstream(member.bitstream)
    if picture.alpha is not None or picture.pixels.shape != coded.pixels.shape:
        raise Refusal(f"its residual is {list(found.planes.shape)} and its picture {list(coded.pixels.shape)} samples")
    return with_pixels(coded, added(coded.pixels, unfolded(picture.pixels, member.way), member.largest_error))


def with_pixels(picture: Picture, pixels: Pixels) -> Picture:
    """A picture of other samples, with the same alpha and metadata."""
    return Picture(
        pixels=pixels, alpha=picture.alpha, icc=picture.icc, exif=picture.exif, xmp=picture.xmp, jpeg_segments=picture.jpeg_segments,
        png_chunks=picture.png_chunks,
    )  # fmt: skip


def largest_error(found: Picture, original: Picture) -> int:
    """Of any sample of colour; 255 where alpha is not the same, or the pictures are not of one shape."""
    shapes = (found.pixels.shape, found.alpha is None) == (original.pixels.shape, original.alpha is None)
    if not shapes or (found.alpha is not None and not np.array_equal(found.alpha, original.alpha)):  # type: ignore[arg-type]
        return 255
    return int(np.abs(found.pixels.astype(np.int16) - original.pixels).max())


def rounded(pixels: Pixels, largest_error: int) -> Pixels:
    """Each sample as the nearest multiple of 2 N + 1, at most 255: never further off than N."""
    return valued(numbered(pixels, largest_error), largest_error)


def numbered(pixels: Pixels, largest_error: int) -> Pixels:
    """The numbers of the multiples that samples are rounded to: 0 to 85."""
    return ((pixels.astype(np.int16) + largest_error) // (2 * largest_error + 1)).astype(np.uint8)


def valued(numbers: Pixels, largest_error: int) -> Pixels:
    """What numbers stand for: 255 itself where a multiple is beyond it, which is nearer still."""
    return np.minimum(numbers.astype(np.int32) * (2 * largest_error + 1), 255).astype(np.uint8)


def residual(pixels: Pixels, coded: Pixels, largest_error: int) -> Numbers:
    """What `added` needs to bring coded samples within N of the pixels: whole numbers, -85 to 85."""
    difference = pixels.astype(np.int16) - coded
    return np.asarray(np.sign(difference) * ((np.abs(difference) + largest_error) // (2 * largest_error + 1)), np.int16)


def added(coded: Pixels, numbers: Numbers, largest_error: int) -> Pixels:
    """Coded samples with a residual in steps of 2 N + 1, within 0 to 255."""
    return np.clip(coded.astype(np.int32) + numbers.astype(np.int32) * (2 * largest_error + 1), 0, 255).astype(np.uint8)


def folded(numbers: Numbers, way: int) -> Pixels:
    """A residual as samples of a picture, as one of the two ways has them."""
    return (np.where(numbers < 0, -2 * numbers - 1, 2 * numbers) if way == FOLDED else numbers + 128).astype(np.uint8)


def unfolded(samples: Pixels, way: int) -> Numbers:
    """The inverse of `folded`, of any samples: -128 to 127."""
    wide = samples.astype(np.int16)
    return np.where(wide % 2 == 1, -(wide + 1) // 2, wide // 2).astype(np.int16) if way == FOLDED else np.asarray(wide - 128, np.int16)
