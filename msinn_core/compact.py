"""The compact form of a model file: the same bytes in half of them or less, by themselves or as a difference to another model (MODEL.md).

A model's identity stays the SHA-256 of its file; the compact form names it, and gives back exactly that file or an error. `compacting` makes it.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from msinn_core.entropy import logistic
from msinn_core.errors import BitstreamError, CheckpointError

MAGIC = b"\x89MSC"
VERSION = 1

MAX_BYTES = 1 << 25
"""Of the file that is given back, and of the notes; larger models have no compact form. It bounds the memory that a hostile one takes."""

MAX_SEGMENTS = 4096
MAX_EXPONENT = 12
"""Of a row's or column's power of two between a model and its base."""

LITERAL, COPY, NUMBERS, DIFFERENCES = range(4)
WIDTHS = (2, 4)
FIXED = struct.Struct("<4sB3x32s32sIIIIII")
RECORD = (("kind", "u1"), ("width", "u1"), ("order", "u1"), ("length", "<u4"), ("base_at", "<u4"), ("row", "<u4"), ("columns", "<u4"))
"""What the notes say of each segment, one array after the other."""

_NONE = bytes(32)

Values = NDArray[np.int64]
Small = NDArray[np.int16]


class Head(NamedTuple):
    """What a compact model says of itself.

    Attributes:
        sha256: Of the file that it gives back.
        base: SHA-256 of the model file that is needed for it, or None.
        size: Of the file that it gives back.
    """

    sha256: str
    base: str | None
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Some bytes of the file.

    Attributes:
        kind: `LITERAL` bytes, a `COPY` from the base, `NUMBERS`, or `DIFFERENCES` of numbers to those of the base.
        length: How many bytes of the file.
        base_at: Where they stand in the base.
        width: Bytes of a number.
        order: How often numbers were replaced by their differences to the one before.
        row: Numbers in a row.
        columns: In how many classes the numbers of a row go in turn.
    """

    kind: int
    length: int
    base_at: int = 0
    width: int = 0
    order: int = 0
    row: int = 0
    columns: int = 0

    @property
    def count(self) -> int:
        """How many numbers; none where bytes are not numbers."""
        return self.length // self.width if self.kind >= NUMBERS else 0

    @property
    def rows(self) -> int:
        """How many rows, the last of which may be shorter."""
        return -(-self.count // self.row) if self.count else 0

    def notes_bytes(self) -> int:
        """How many bytes of notes are about it."""
        if self.kind == LITERAL:
            return self.length
        return (self.rows + self.columns) * (self.kind - 1) if self.kind >= NUMBERS else 0

    def fault(self) -> str | None:
        """What is wrong with it, or None."""
        if self.kind > DIFFERENCES:
            return f"a segment is of kind {self.kind}"
        if self.kind < NUMBERS:
            return None
        if self.width not in WIDTHS or self.length % self.width or not self.length:
            return f"{self.length} bytes of numbers of {self.width} bytes"
        if self.order > 2 or not 1 <= self.columns <= self.row <= self.count:
            return f"{self.columns} columns in rows of {self.row} of {self.count} numbers, of order {self.order}"
        return None

    def spread(self, rows: Small, columns: Small) -> Small:
        """The sum of what is said of its row and of its column, for each number."""
        across = np.tile(columns, -(-self.row // self.columns))[: self.row]
        return (rows[:, None] + across).reshape(-1)[: self.count]


def is_compact(data: bytes) -> bool:
    """Whether these bytes begin as a compact model does."""
    return data[: len(MAGIC)] == MAGIC


def head(data: bytes) -> Head:
    """What a compact model says of itself. Raises `CheckpointError`."""
    fixed = _fixed(data)
    return Head(fixed.sha256.hex(), fixed.base.hex() if fixed.base != _NONE else None, fixed.size)


def expand(data: bytes, base_of: Callable[[str], bytes]) -> bytes:
    """The model file of a compact one, checked against the SHA-256 that this names.

    Args:
        data: A compact model.
        base_of: Gives the model file of a SHA-256. It is asked once at most; what it raises is raised.

    Raises:
        CheckpointError: Not a compact model, of an unknown version, damaged, or its base is another file.
    """
    fixed = _fixed(data)
    try:
        segments, levels, sides, coded = _parsed(data, fixed)
        base = b""
        if fixed.base != _NONE:
            base = base_of(fixed.base.hex())
            if hashlib.sha256(base).digest() != fixed.base:
                raise CheckpointError(
                    f"the compact model {fixed.sha256.hex()[:12]} is a difference to {fixed.base.hex()[:12]}, and was given another"
                )
        out = _joined(segments, sides, logistic.decode(coded, levels), base)
    except (BitstreamError, _DamagedError) as error:
        raise CheckpointError(f"the compact model {fixed.sha256.hex()[:12]} is damaged: {error}") from error
    if hashlib.sha256(out).digest() != fixed.sha256:
        raise CheckpointError(f"the compact model {fixed.sha256.hex()[:12]} is damaged: what it gives back has another SHA-256")
    return out


def based_value(base: Values, exponents: Small) -> Values:
    """Numbers of the base times powers of two, halves rounded up."""
    if not exponents.any():
        return base
    right = np.maximum(-exponents, 0).astype(np.int64)
    scaled: Values = (base << np.maximum(exponents, 0)) + (np.int64(1) << right >> 1) >> right
    return scaled


class _DamagedError(Exception):
    """Half a sentence for `CheckpointError`."""


class _Fixed(NamedTuple):
    magic: bytes
    version: int
    sha256: bytes
    base: bytes
    size: int
    segments: int
    deflated: int
    notes: int
    planes: int
    stream: int


class _Side(NamedTuple):
    """Notes about a segment."""

    literal: bytes
    exponents: Small | None


def _fixed(data: bytes) -> _Fixed:
    if len(data) < FIXED.size or not is_compact(data):
        raise CheckpointError("these bytes are no compact model")
    fixed = _Fixed(*FIXED.unpack_from(data))
    if fixed.version != VERSION:
        raise CheckpointError(f"a compact model of version {fixed.version}; this msinn reads version {VERSION}: use a newer msinn")
    if max(fixed.size, fixed.notes) > MAX_BYTES or fixed.segments > MAX_SEGMENTS:
        raise CheckpointError(f"the compact model claims {fixed.size:,} bytes in {fixed.segments:,} segments, which none of ours has")
    if FIXED.size + fixed.deflated + fixed.planes + fixed.stream != len(data):
        raise CheckpointError(f"the compact model {fixed.sha256.hex()[:12]} is damaged: it is not as long as it says")
    return fixed


def _parsed(data: bytes, fixed: _Fixed) -> tuple[list[Segment], logistic.Levels, list[_Side], logistic.Coded]:
    """Segments, the level of every number, what else the notes say of each segment, and the coded numbers."""
    notes = _inflated(data[FIXED.size : FIXED.size + fixed.deflated], fixed.notes)
    segments, at = _segments(notes, fixed)
    if at + sum(segment.notes_bytes() for segment in segments) != len(notes):
        raise _DamagedError("its notes are of another length")
    levels = np.empty(sum(segment.count for segment in segments), np.uint8)
    sides, filled = [], 0
    for segment in segments:
        about = notes[at : at + segment.notes_bytes()]
        at += len(about)
        if segment.kind < NUMBERS:
            sides.append(_Side(about, None))
            continue
        rows, columns, exponents = _scales(segment, about)
        levels[filled : filled + segment.count] = np.clip(segment.spread(rows, columns), 0, logistic.NUM_LEVELS - 1)
        filled += segment.count
        sides.append(_Side(b"", exponents))
    rest = FIXED.size + fixed.deflated
    return segments, levels, sides, logistic.Coded(stream=data[rest + fixed.planes :], planes=data[rest : rest + fixed.planes])


def _scales(segment: Segment, notes: bytes) -> tuple[Small, Small, Small | None]:
    """Levels of rows and columns, and for differences the power of two of each number of the base."""
    said = np.frombuffer(notes, np.uint8)
    rows, columns = said[: segment.rows].astype(np.int16), said[segment.rows :][: segment.columns].view(np.int8).astype(np.int16)
    if segment.kind == NUMBERS:
        return rows, columns, None
    powers = said[segment.rows + segment.columns :].view(np.int8).astype(np.int16)
    if int(np.abs(powers).max()) > MAX_EXPONENT:
        raise _DamagedError("a power of two is out of range")
    return rows, columns, segment.spread(powers[: segment.rows], powers[segment.rows :])


def _inflated(data: bytes, size: int) -> bytes:
    inflater = zlib.decompressobj()
    try:
        notes = inflater.decompress(data, size + 1)
    except zlib.error as error:
        raise _DamagedError(str(error)) from error
    if len(notes) != size or not inflater.eof or inflater.unused_data:
        raise _DamagedError("its notes do not end where they should")
    return notes


def _segments(notes: bytes, fixed: _Fixed) -> tuple[list[Segment], int]:
    """All segments, and where in the notes what is about each begins."""
    count, at, columns = fixed.segments, 0, {}
    if len(notes) < count * sum(np.dtype(kind).itemsize for _, kind in RECORD):
        raise _DamagedError("its notes are too short")
    for name, kind in RECORD:
        columns[name] = np.frombuffer(notes, kind, count, at).tolist()
        at += np.dtype(kind).itemsize * count
    segments = [Segment(**dict(zip(columns, values, strict=True))) for values in zip(*columns.values(), strict=True)]
    if fault := next(filter(None, (segment.fault() for segment in segments)), None):
        raise _DamagedError(fault)
    if sum(segment.length for segment in segments) != fixed.size:
        raise _DamagedError("its segments are not as long as the file")
    if fixed.base == _NONE and any(segment.kind in (COPY, DIFFERENCES) for segment in segments):
        raise _DamagedError("it wants a base and names none")
    return segments, at


def _joined(segments: list[Segment], sides: list[_Side], values: NDArray[np.uint32], base: bytes) -> bytes:
    parts, at = [], 0
    for segment, side in zip(segments, sides, strict=True):
        theirs = base[segment.base_at : segment.base_at + segment.length] if segment.kind in (COPY, DIFFERENCES) else b""
        if segment.kind in (COPY, DIFFERENCES) and len(theirs) != segment.length:
            raise _DamagedError("a segment lies outside its base")
        if segment.kind < NUMBERS:
            parts.append(theirs or side.literal)
            continue
        numbers = values[at : at + segment.count]
        at += segment.count
        for _ in range(segment.order):
            numbers = np.cumsum(numbers, dtype=np.uint32)
        if side.exponents is not None:
            numbers = numbers + based_value(np.frombuffer(theirs, f"<i{segment.width}").astype(np.int64), side.exponents).astype(np.uint32)
        parts.append(numbers.astype(f"<u{segment.width}").tobytes())
    return b"".join(parts)
