"""Bytes of one coded picture: header, section table, checksums. `FORMAT.md` is the specification; each rule there is one error here."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import NamedTuple

import google_crc32c

from msinn_core.errors import (
    BadMagicError,
    BitstreamError,
    ChecksumError,
    ModelMismatchError,
    TruncatedError,
    UnsupportedVersionError,
)

MAGIC = b"\x89MSN"
VERSION = 2
"""Newest version. A bitstream without the sections that it added is written as version 1, which older readers know."""

PROFILES = {0: "float", 1: "int"}
COLOUR_MODES = {1: "grey", 3: "rgb"}
Q_STEPS = 1024
"""q is stored in steps of 1/1024."""

ICC, EXIF, XMP = 0x01, 0x02, 0x03
JPEG_SEGMENTS, PNG_CHUNKS = 0x04, 0x05
_SINCE_2 = {JPEG_SEGMENTS, PNG_CHUNKS}
STREAM_BASE, NUM_STREAMS = 0x10, 10
ALPHA = 0x20
_KNOWN = {ICC, EXIF, XMP, JPEG_SEGMENTS, PNG_CHUNKS, ALPHA, *range(STREAM_BASE, STREAM_BASE + NUM_STREAMS)}
_DEFLATED = 0x80
MAX_BOX_BYTES = 1 << 26
MAX_SIDE = 65535

_FIXED = struct.Struct("<4sBBBB16sIIHH")
_ENTRY = struct.Struct("<BI")
_CHECKS = struct.Struct("<II")

MAX_HEADER_BYTES = _FIXED.size + len(_KNOWN) * _ENTRY.size + _CHECKS.size
"""Of everything before the payload: a bitstream has each kind of section once."""


@dataclass(frozen=True, kw_only=True)
class Bitstream:
    """One coded picture, parsed and checked.

    Attributes:
        profile: `float` or `int`.
        colour: `grey` or `rgb`.
        model_id: First 16 bytes of the SHA-256 of the model file.
        width: Pixels, 1 to 65535; so is `height`.
        q: Rate index, a multiple of 1/1024.
        streams: Ten symbol streams: steps k = 0..4, anchors then the rest.
        boxes: Metadata and alpha by kind (`ICC`, `EXIF`, `XMP`, `JPEG_SEGMENTS`, `PNG_CHUNKS`, `ALPHA`), as given to the encoder.
    """

    profile: str
    colour: str
    model_id: bytes
    width: int
    height: int
    q: float
    streams: tuple[bytes, ...]
    boxes: Mapping[int, bytes] = field(default_factory=dict)

    @property
    def version(self) -> int:
        """Version that it is written as: the oldest that has all its sections."""
        return 2 if _SINCE_2 & self.boxes.keys() else 1

    def to_bytes(self) -> bytes:
        """Serialise; `parse` of the result gives an equal value.

        Raises:
            BitstreamError: A value does not fit the format.
        """
        if not (1 <= self.width <= MAX_SIDE and 1 <= self.height <= MAX_SIDE):
            raise BitstreamError(f"{self.width} x {self.height} pixels do not fit a bitstream: sides are 1 to {MAX_SIDE}")
        if len(self.streams) != NUM_STREAMS or len(self.model_id) != 16:
            raise BitstreamError("a bitstream has 10 symbol streams and a model id of 16 bytes")
        sections: list[tuple[int, bytes]] = []
        for kind, raw in self.boxes.items():
            if len(raw) > MAX_BOX_BYTES:
                raise BitstreamError(f"a metadata box of {len(raw)} bytes is over the limit of {MAX_BOX_BYTES}")
            deflated = struct.pack("<I", len(raw)) + zlib.compress(raw, 9)
            sections.append((kind | _DEFLATED, deflated) if len(deflated) < len(raw) else (kind, raw))
        sections += [(STREAM_BASE + i, stream) for i, stream in enumerate(self.streams)]
        sections.sort(key=lambda section: section[0] & ~_DEFLATED)
        payload = b"".join(data for _, data in sections)
        profile = next(number for number, name in PROFILES.items() if name == self.profile)
        colour = next(number for number, name in COLOUR_MODES.items() if name == self.colour)
        header = _FIXED.pack(MAGIC, self.version, 0, profile, colour, self.model_id, self.width, self.height, round(self.q * Q_STEPS), len(sections))
        header += b"".join(_ENTRY.pack(kind, len(data)) for kind, data in sections)
        header += struct.pack("<I", google_crc32c.value(payload))
        return header + struct.pack("<I", google_crc32c.value(header)) + payload


def model_named(data: bytes) -> str | None:
    """The first half of the SHA-256 of the model that bytes name, in hexadecimal; None if they do not begin as a bitstream does. Checks nothing."""
    if len(data) < _FIXED.size or data[: len(MAGIC)] != MAGIC:
        return None
    return bytes(_FIXED.unpack_from(data)[5]).hex()


def _need(data: memoryview, size: int) -> None:
    if len(data) < size:
        raise TruncatedError(f"the bitstream ends after {len(data)} bytes; at least {size} are needed")


def _inflate(kind: int, data: memoryview) -> bytes:
    if len(data) < 4:
        raise BitstreamError(f"deflated box {kind:#x} is too short to hold its size")
    (size,) = struct.unpack_from("<I", data)
    if size > MAX_BOX_BYTES:
        raise BitstreamError(f"box {kind:#x} declares {size} bytes, over the limit of {MAX_BOX_BYTES}")
    inflater = zlib.decompressobj()
    try:
        raw = inflater.decompress(data[4:], size + 1)
    except zlib.error as error:
        raise BitstreamError(f"box {kind:#x} does not inflate: {error}") from error
    if len(raw) != size or not inflater.eof or inflater.unused_data:
        raise BitstreamError(f"box {kind:#x} does not inflate to the {size} bytes it declares")
    return raw


class _Header(NamedTuple):
    """All before the payload, checked: `sections` has kind (without the mark), whether it is deflated, first byte and length of each."""

    profile: str
    colour: str
    model_id: bytes
    width: int
    height: int
    q: float
    sections: list[tuple[int, bool, int, int]]
    start: int
    end: int
    payload_crc: int


def _header(data: memoryview) -> _Header:
    """Raises as `parse`, for what the header says."""
    if len(data) < len(MAGIC):
        if data != MAGIC[: len(data)] or not len(data):
            raise BadMagicError("these bytes are not an msinn bitstream")
        raise TruncatedError(f"the bitstream ends after {len(data)} bytes")
    if data[:4] != MAGIC:
        raise BadMagicError("these bytes are not an msinn bitstream")
    _need(data, 5)
    version = data[4]
    if not 1 <= version <= VERSION:
        raise UnsupportedVersionError(f"bitstream version {version}; this reader knows versions 1 to {VERSION}: use a newer msinn")
    _need(data, _FIXED.size)
    _, _, flags, profile, colour, model_id, width, height, q_steps, count = _FIXED.unpack_from(data)
    table_end = _FIXED.size + count * _ENTRY.size
    start = table_end + _CHECKS.size
    _need(data, start)
    payload_crc, header_crc = _CHECKS.unpack_from(data, table_end)
    if google_crc32c.value(bytes(data[: table_end + 4])) != header_crc:
        raise ChecksumError("the bitstream's header is damaged: its CRC32C differs")
    if flags or profile not in PROFILES or colour not in COLOUR_MODES:
        raise UnsupportedVersionError(f"flags {flags:#x}, profile {profile}, colour mode {colour}: not all known to this reader")
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
        raise BitstreamError(f"the bitstream declares {width} x {height} pixels; sides are 1 to {MAX_SIDE}")
    entries = [_ENTRY.unpack_from(data, _FIXED.size + i * _ENTRY.size) for i in range(count)]
    kinds = [kind & ~_DEFLATED for kind, _ in entries]
    known = _KNOWN if version >= 2 else _KNOWN - _SINCE_2
    if unknown := [kind for kind in kinds if kind not in known]:
        raise UnsupportedVersionError(f"section kind {unknown[0]:#x} is unknown to this reader in version {version}")
    if kinds != sorted(set(kinds)) or sum(STREAM_BASE <= kind < ALPHA for kind in kinds) != NUM_STREAMS:
        raise BitstreamError("the section table is out of order or incomplete")
    ends = [start + total for total in accumulate(length for _, length in entries)]
    sections = [(plain, kind != plain, end - length, length) for (kind, length), plain, end in zip(entries, kinds, ends, strict=True)]
    return _Header(PROFILES[profile], COLOUR_MODES[colour], model_id, width, height, q_steps / Q_STEPS, sections, start, ends[-1], payload_crc)


def parse(data: bytes | memoryview) -> Bitstream:
    """Check and take apart one bitstream. Nothing is allocated from a field before header and payload checksums agree.

    Raises:
        BadMagicError: Not an msinn bitstream.
        UnsupportedVersionError: Version, flag, profile, colour mode or section kind unknown to this reader.
        TruncatedError: The data end too early.
        ChecksumError: Header or payload are damaged.
        BitstreamError: Any other rule of FORMAT.md is broken.
    """
    data = memoryview(data)
    header = _header(data)
    _need(data, header.end)
    if len(data) > header.end:
        raise BitstreamError(f"{len(data) - header.end} bytes follow the end of the bitstream")
    if google_crc32c.value(bytes(data[header.start :])) != header.payload_crc:
        raise ChecksumError("the bitstream's payload is damaged: its CRC32C differs")
    return _taken_apart(header, {kind: data[first : first + length] for kind, _, first, length in header.sections})


def _taken_apart(header: _Header, found: Mapping[int, memoryview]) -> Bitstream:
    """Of the sections that were found, by kind; streams that were not are empty."""
    streams, boxes = [b""] * NUM_STREAMS, {}
    for kind, deflated, _, _ in header.sections:
        if STREAM_BASE <= kind < ALPHA and deflated:
            raise BitstreamError("a symbol stream is marked as deflated")
        if kind not in found:
            continue
        if STREAM_BASE <= kind < ALPHA:
            streams[kind - STREAM_BASE] = bytes(found[kind])
        else:
            boxes[kind] = _inflate(kind, found[kind]) if deflated else bytes(found[kind])
    return Bitstream(
        profile=header.profile, colour=header.colour, model_id=header.model_id, width=header.width, height=header.height, q=header.q,
        streams=tuple(streams), boxes=boxes,
    )  # fmt: skip


class Prefix(NamedTuple):
    """What a reader of some streams needs of a bitstream.

    Attributes:
        size: Bytes from the first to the end of the last of these streams.
        alpha: First byte and length of the alpha plane, which lies at the end; None if there is none.
    """

    size: int
    alpha: tuple[int, int] | None


def prefix_of(data: bytes | memoryview, num_streams: int) -> Prefix:
    """Where the first `num_streams` (1 to 10) of the ten streams end, from the header alone: `MAX_HEADER_BYTES` of data are enough.

    Raises:
        BitstreamError: As `parse`, for what the header says.
    """
    header = _header(memoryview(data))
    last, alpha = STREAM_BASE + num_streams - 1, None
    size = next(first + length for kind, _, first, length in header.sections if kind == last)
    for kind, _, first, length in header.sections:
        if kind == ALPHA:
            alpha = first, length
    return Prefix(size, alpha)


def parse_prefix(data: bytes | memoryview, num_streams: int, alpha: bytes | None = None) -> Bitstream:
    """Check and take apart the beginning of a bitstream: metadata and the first `num_streams` streams; the others are empty.

    The header's checksum is compared. That of the payload cannot be: whoever decodes the streams finds damage by their ends (FORMAT.md, section 8).

    Args:
        data: At least `prefix_of(...).size` bytes; what follows is not looked at, but for an alpha plane that is not given by itself.
        num_streams: 1 to 10.
        alpha: The bytes of the alpha plane's section, if there is one.

    Raises:
        BitstreamError: As `parse`.
    """
    data = memoryview(data)
    header, prefix = _header(data), prefix_of(data, num_streams)
    _need(data, prefix.size)
    found = {kind: data[first : first + length] for kind, _, first, length in header.sections if first + length <= prefix.size and kind != ALPHA}
    if prefix.alpha is not None:
        first, length = prefix.alpha
        found[ALPHA] = data[first : first + length] if alpha is None else memoryview(alpha)
        if len(found[ALPHA]) != length:
            raise TruncatedError(f"the alpha plane has {len(found[ALPHA])} bytes where the table says {length}")
    # An empty stream after the prefix ends where it does: it is none of its.
    return _taken_apart(header, {kind: part for kind, part in found.items() if not STREAM_BASE + num_streams <= kind < ALPHA})


def check_model(stream: Bitstream, model_sha256: str, profile: str) -> None:
    """Raises `ModelMismatchError` unless `stream` was written with the model of this SHA-256 (hex) and profile."""
    if stream.model_id.hex() != model_sha256[:32]:
        raise ModelMismatchError(
            f"the bitstream needs model {stream.model_id.hex()[:12]}..., this is {model_sha256[:12]}...: the archive's model/ folder holds it"
        )
    if stream.profile != profile:
        raise ModelMismatchError(f"the bitstream is of profile {stream.profile}, the model at hand of {profile}")
