"""A colour profile put into the header of a JPEG XL codestream, where every decoder looks for it: libjxl would write it there, but the wheel that we
use does not ask it to. Only for samples that are stored as they are; those that went through XYB have their colours from there.

```
codestream = 0xFF0A, SizeHeader, ImageMetadata, transform data, [profile], zeros to the next byte, frames      (ISO/IEC 18181-1, annexes D and E)
in ImageMetadata: colour encoding, `sRGB` or grey as libjxl wrote it  -->  want_icc = 1
```

The profile is written without prediction, a byte for a byte, by a prefix code in which all 256 values have 8 bits. A header that is not as libjxl
writes it for samples of ours is refused.
"""

from __future__ import annotations

from pipeline.forms.base import Refusal

_MAGIC = b"\xff\x0a"
_SPLIT_EXPONENT = 15
_HEADER_BYTES = 128
_SPACES = {b"RGB ": 0, b"GRAY": 1}


def colour_space(profile: bytes) -> int | None:
    """The number that JPEG XL has for the colours of a profile: 0 RGB, 1 grey; None for another, or for what is too short to be a profile."""
    return _SPACES.get(profile[16:20]) if len(profile) > _HEADER_BYTES and profile[36:40] == b"acsp" else None


def with_profile(codestream: bytes, profile: bytes) -> bytes:
    """The codestream with a profile in place of its colour encoding; the samples stay as they are.

    Args:
        codestream: Of one picture, not in XYB.
        profile: An ICC profile of its colours.

    Raises:
        Refusal: The header is none of those that are understood here, or the profile is of other colours.
    """
    reader = _Reader(codestream)
    if not codestream.startswith(_MAGIC):
        raise Refusal("no JPEG XL codestream")
    reader.take(16)
    _skip_size(reader)
    _skip_metadata(reader)
    start = reader.position
    space = _skip_colours(reader)
    if space != colour_space(profile):
        raise Refusal("the colour profile is of other colours than the picture")
    after = reader.position
    # Extensions (none) and transform data (as usual).
    if reader.take(2) != 0 or reader.take(1) != 1:
        raise Refusal("a JPEG XL header with more than samples need")
    frames = -(-reader.position // 8)
    writer = _Writer(reader.before(start), start)
    writer.put(0, 1)  # not the usual colours
    writer.put(1, 1)  # want_icc
    writer.put(space, 2)
    writer.put(reader.between(after, reader.position), reader.position - after)
    _put_profile(writer, profile)
    return writer.bytes() + codestream[frames:]


class _Reader:
    """Bits of the header, least first."""

    def __init__(self, data: bytes) -> None:
        self._bits = int.from_bytes(data[:256], "little")
        self.position = 0

    def take(self, count: int) -> int:
        value = self.between(self.position, self.position + count)
        self.position += count
        return value

    def before(self, end: int) -> int:
        return self.between(0, end)

    def between(self, start: int, end: int) -> int:
        return (self._bits >> start) & ((1 << (end - start)) - 1)

    def number(self, *choices: tuple[int, int]) -> int:
        """A `U32`: two bits that say which of four `(bits, offset)` follows."""
        bits, offset = choices[self.take(2)]
        return offset + self.take(bits)

    def word(self) -> int:
        """An `Enum`."""
        return self.number((0, 0), (0, 1), (4, 2), (6, 18))


class _Writer:
    """Bits, least first.

    Args:
        value: Those that are there, `count` of them.
    """

    def __init__(self, value: int, count: int) -> None:
        self._value, self._count = value, count

    def put(self, value: int, count: int) -> None:
        self._value |= value << self._count
        self._count += count

    def put_bytes(self, data: bytes) -> None:
        self.put(int.from_bytes(data, "little"), 8 * len(data))

    def bytes(self) -> bytes:
        """All of it, with zeros to the next byte."""
        return self._value.to_bytes(-(-self._count // 8), "little")


def _skip_size(reader: _Reader) -> None:
    def side(in_eights: bool) -> None:
        reader.take(5 if in_eights else (9, 13, 18, 30)[reader.take(2)])

    in_eights = bool(reader.take(1))
    side(in_eights)
    if reader.take(3) == 0:
        side(in_eights)


def _skip_metadata(reader: _Reader) -> None:
    """Up to the colour encoding."""
    if reader.take(1) or reader.take(1):  # all as usual; further fields
        raise Refusal("a JPEG XL picture in XYB, or with more than samples")
    _skip_depth(reader)
    reader.take(1)  # 16-bit buffers suffice
    for _ in range(reader.number((0, 0), (0, 1), (4, 2), (12, 1))):
        if reader.take(1):  # alpha of 8 bits
            continue
        kind = reader.word()
        _skip_depth(reader)
        reader.number((0, 0), (0, 3), (0, 4), (3, 1))
        if reader.number((0, 0), (4, 0), (5, 16), (10, 48)) or kind != 0:
            raise Refusal("a JPEG XL picture with channels of other kinds than alpha")
        reader.take(1)  # premultiplied
    if reader.take(1):
        raise Refusal("a JPEG XL picture in XYB")


def _skip_depth(reader: _Reader) -> None:
    if reader.take(1):
        raise Refusal("a JPEG XL picture of floats")
    reader.number((0, 8), (0, 10), (0, 12), (6, 1))


def _skip_colours(reader: _Reader) -> int:
    """The colour encoding; gives its colour space."""
    if reader.take(1):
        return 0
    if reader.take(1):
        raise Refusal("a JPEG XL picture that has a colour profile")
    space = reader.word()
    if space not in (0, 1) or reader.word() == 2 or (space == 0 and reader.word() == 2):
        raise Refusal("a JPEG XL picture of colours of its own")
    if reader.take(1):
        reader.take(24)
    else:
        reader.word()
    reader.word()
    return space


def _put_profile(writer: _Writer, profile: bytes) -> None:
    """The profile's entropy-coded stream, in which all that could be predicted is not."""
    header = _expected_header(profile)
    first = bytes((value - header[i]) & 255 for i, value in enumerate(profile[:_HEADER_BYTES]))
    rest = profile[_HEADER_BYTES:]
    commands = b"\0" + b"\1" + _varint(len(rest))  # no list of tags; insert all of the rest
    content = _varint(len(profile)) + _varint(len(commands)) + commands + first + rest
    _put_u64(writer, len(content))
    writer.put(0, 1)  # no LZ77
    writer.put(0b001, 3)  # a simple map of contexts, of no bits: all are one
    writer.put(1, 1)  # prefix codes
    writer.put(_SPLIT_EXPONENT, 4)  # numbers are their own tokens
    writer.put(1 | 7 << 1 | 127 << 5, 12)  # 256 of them
    writer.put(0, 2)  # no simple code; lengths of the code of lengths follow, in the order 1 2 3 4 0 5 17 6 16 7 8 9 ...
    for length in (1, 2, 3, 4, 0, 5, 17, 6, 16, 7, 8, 9, 10, 11, 12, 13, 14, 15):
        writer.put(0b10 if length == 8 else 0b00, 2)  # the only one: it takes no bits, and says 8 for every value
    writer.put_bytes(bytes(int(f"{value:08b}"[::-1], 2) for value in content))


def _expected_header(profile: bytes) -> bytes:
    """What a decoder expects of the first 128 bytes; some of it by those before."""
    header = bytearray(_HEADER_BYTES)
    header[0:4] = len(profile).to_bytes(4, "big")
    header[8] = 4
    header[12:24] = b"mntrRGB XYZ "
    header[36:40] = b"acsp"
    header[68:80] = bytes((0, 0, 246, 214, 0, 1, 0, 0, 0, 0, 211, 45))
    header[80:84] = profile[4:8]
    platform = profile[40:42]
    if platform[:1] == b"A":
        header[41:44] = b"PPL"
    elif platform[:1] == b"M":
        header[41:44] = b"SFT"
    elif platform == b"SG":
        header[42:44] = b"I "
    elif platform == b"SU":
        header[42:44] = b"NW"
    return bytes(header)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 128:
        out.append(128 | (value & 127))
        value >>= 7
    return bytes([*out, value])


def _put_u64(writer: _Writer, value: int) -> None:
    """A `U64` of more than 272."""
    writer.put(3, 2)
    writer.put(value & 0xFFF, 12)
    value >>= 12
    while value:
        writer.put(1, 1)
        writer.put(value & 0xFF, 8)
        value >>= 8
    writer.put(0, 1)
