"""Making the compact form of a model file: which way each tensor is told, and at which scales its numbers are coded. What is chosen here changes
how many bytes there are, never what they give back."""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections.abc import Iterator
from itertools import groupby, product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from msinn_core.compact import (
    COPY,
    DIFFERENCES,
    FIXED,
    LITERAL,
    MAGIC,
    MAX_BYTES,
    MAX_EXPONENT,
    MAX_SEGMENTS,
    NUMBERS,
    RECORD,
    VERSION,
    Segment,
    Small,
    Values,
    based_value,
    expand,
)
from msinn_core.entropy import logistic
from msinn_core.errors import CheckpointError

_WIDTHS = {"I16": 2, "I32": 4}
_FLAT_ROW = 128
_FEW_NUMBERS = 1 << 17
"""Tensors up to this size are tried in every way; all larger ones are weights."""

_FEW_BYTES = 1 << 14
_ROUNDS = 3
_EVEN = 80
"""From here on every level is for numbers larger than those of the one below by the same factor."""

_REACH = 40
"""How many levels a column may stand from its row."""


class _Tensor(NamedTuple):
    start: int
    length: int
    dtype: str
    shape: tuple[int, ...]


class _Told(NamedTuple):
    """A segment, the notes about it, its numbers with their levels, and about how many bits that takes."""

    segment: Segment
    notes: bytes
    values: Values | None = None
    levels: logistic.Levels | None = None
    bits: float = 0.0


def compacted(data: bytes, base: bytes | None = None) -> bytes:
    """The compact form of a model file. It was expanded and compared before it is returned.

    Args:
        data: The file; any other bytes are compacted too, if less well.
        base: A model file to tell the differences to.

    Raises:
        CheckpointError: The file is larger than what has a compact form.
    """
    if len(data) > MAX_BYTES:
        raise CheckpointError(f"a model of {len(data):,} bytes has no compact form: it may have {MAX_BYTES:,}")
    told = list(_merged(_told(data, base)))
    if len(told) > MAX_SEGMENTS:
        told = [_literal(data)]
    numbers = [one for one in told if one.values is not None]
    values = np.concatenate([np.empty(0, np.int64), *(one.values for one in numbers if one.values is not None)])
    levels = np.concatenate([np.empty(0, np.uint8), *(one.levels for one in numbers if one.levels is not None)])
    coded = logistic.encode(values, levels)
    records = b"".join(np.array([getattr(one.segment, name) for one in told], kind).tobytes() for name, kind in RECORD)
    notes = records + b"".join(one.notes for one in told)
    deflated = zlib.compress(notes, 9)
    digests = [hashlib.sha256(data).digest(), bytes(32) if base is None else hashlib.sha256(base).digest()]
    fixed = FIXED.pack(MAGIC, VERSION, *digests, len(data), len(told), len(deflated), len(notes), len(coded.planes), len(coded.stream))
    compact = fixed + deflated + coded.planes + coded.stream
    expand(compact, lambda _: base or b"")
    return compact


def _told(data: bytes, base: bytes | None) -> Iterator[_Told]:
    tensors = _tensors(data)
    if tensors is None:
        yield _literal(data)
        return
    others = (base is not None and _tensors(base)) or {}
    head = 8 + int.from_bytes(data[:8], "little")
    yield from _header(data[:head], base[: 8 + int.from_bytes(base[:8], "little")] if base is not None and others else b"")
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].start):
        other = others.get(name)
        fits = base is not None and other is not None and other[1:] == tensor[1:]
        yield _of_tensor(data, tensor, base if fits else None, other.start if other else 0)


def _tensors(data: bytes) -> dict[str, _Tensor] | None:
    """Where the tensors of a safetensors file lie; None if this is none, or they do not fill it without gaps."""
    size = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + size])
        found = {
            name: _Tensor(8 + size + said["data_offsets"][0], said["data_offsets"][1] - said["data_offsets"][0], said["dtype"], tuple(said["shape"]))
            for name, said in header.items()
            if name != "__metadata__"
        }
        at = 8 + size
        for tensor in sorted(found.values(), key=lambda tensor: (tensor.start, tensor.length)):
            numbers = _WIDTHS.get(tensor.dtype)
            if tensor.start != at or (numbers and math.prod(tensor.shape) * numbers != tensor.length):
                return None
            at += tensor.length
    except (ValueError, AttributeError, TypeError, KeyError, IndexError, RecursionError):
        return None
    return found if at == len(data) else None


def _header(mine: bytes, theirs: bytes) -> Iterator[_Told]:
    """The header: what stands at its end in the base too, but for the spaces that fill it up, is a copy. The metadata, which differ, are at its
    beginning."""
    ends = len(mine.rstrip(b" ")), len(theirs.rstrip(b" "))
    shorter = min(ends)
    tails = (np.frombuffer(header, np.uint8)[end - shorter : end] for header, end in zip((mine, theirs), ends, strict=True))
    differ = np.flatnonzero(np.not_equal(*tails))
    same = shorter - (int(differ[-1]) + 1 if len(differ) else 0)
    yield _literal(mine[: ends[0] - same])
    if same:
        yield _Told(Segment(kind=COPY, length=same, base_at=ends[1] - same), b"")
    if len(mine) > ends[0]:
        yield _literal(mine[ends[0] :])


def _literal(data: bytes) -> _Told:
    return _Told(Segment(kind=LITERAL, length=len(data)), data, bits=8.0 * len(zlib.compress(data)) if len(data) <= _FEW_BYTES else math.inf)


def _of_tensor(data: bytes, tensor: _Tensor, base: bytes | None, base_at: int) -> _Told:
    """The shortest way to tell a tensor."""
    mine = data[tensor.start : tensor.start + tensor.length]
    theirs = None if base is None else base[base_at : base_at + tensor.length]
    if mine == theirs and mine:
        return _Told(Segment(kind=COPY, length=tensor.length, base_at=base_at), b"")
    ways = [_literal(mine)]
    width = _WIDTHS.get(tensor.dtype)
    if width and mine:
        values = np.frombuffer(mine, f"<i{width}").astype(np.int64)
        other = None if theirs is None else np.frombuffer(theirs, f"<i{width}").astype(np.int64)
        for segment in _segments(tensor, width, base_at, other is not None):
            ways.append(_coded(segment, values, other))
    return min(ways, key=lambda way: way.bits)


def _segments(tensor: _Tensor, width: int, base_at: int, has_base: bool) -> Iterator[Segment]:
    count = tensor.length // width
    flat = (min(_FLAT_ROW, count), 1)
    layouts = {flat}
    if len(tensor.shape) > 1:
        row = count // tensor.shape[0]
        layouts = {(row, tensor.shape[-1])} if count > _FEW_NUMBERS or len(tensor.shape) > 2 else {(row, tensor.shape[-1]), (row, 1), flat}
    orders = (0, 1, 2) if len(tensor.shape) < 3 and count <= _FEW_NUMBERS else (0,)
    for kind, (row, columns), order in product((NUMBERS, DIFFERENCES) if has_base else (NUMBERS,), sorted(layouts), orders):
        where = base_at if kind == DIFFERENCES else 0
        yield Segment(kind=kind, length=tensor.length, base_at=where, width=width, order=order, row=row, columns=columns)


def _coded(segment: Segment, values: Values, base: Values | None) -> _Told:
    notes = b""
    if segment.kind == DIFFERENCES:
        assert base is not None
        scales = _aligned(segment, values, base)
        values = values - based_value(base, segment.spread(*scales))
        notes = b"".join(scale.astype(np.int8).tobytes() for scale in scales)
    for _ in range(segment.order):
        values = np.diff(values, prepend=0)
    half = 1 << (8 * segment.width - 1)
    values = (values + half) % (2 * half) - half
    rows, columns = _fitted(segment, np.abs(values).astype(np.float64))
    levels = np.clip(segment.spread(rows, columns), 0, logistic.NUM_LEVELS - 1).astype(np.uint8)
    notes = rows.astype(np.uint8).tobytes() + columns.astype(np.int8).tobytes() + notes
    bits = float(np.bincount(levels, minlength=logistic.NUM_LEVELS) @ logistic.level_bits())
    return _Told(segment, notes, values, levels, bits + 8 * len(notes))


def unexplained(mine: NDArray[Any], theirs: NDArray[Any]) -> float:
    """What of a tensor another of the same shape does not say: the root mean square of their difference over its own. Integer weights are brought to
    common scales first.

    >>> unexplained(np.full((1, 1, 2), 30), np.full((1, 1, 2), 59))
    0.0
    """
    if not mine.any():
        return float(bool(theirs.any()))
    nearest = theirs.astype(np.float64)
    if mine.ndim > 2 and mine.dtype.kind == "i":
        segment = Segment(kind=DIFFERENCES, length=4 * mine.size, width=4, row=mine.size // len(mine), columns=mine.shape[-1])
        values, base = (array.reshape(-1).astype(np.int64) for array in (mine, theirs))
        nearest = based_value(base, segment.spread(*_aligned(segment, values, base))).reshape(mine.shape).astype(np.float64)
    own = mine.astype(np.float64)
    return float(np.sqrt(((own - nearest) ** 2).mean() / (own**2).mean()))


def _aligned(segment: Segment, values: Values, base: Values) -> tuple[Small, Small]:
    """Powers of two of rows and columns by which the base comes nearest. The scales of integer weights follow what each model has measured."""
    rows, columns = np.zeros(segment.rows, np.int16), np.zeros(segment.columns, np.int16)
    if segment.order or segment.columns == 1:
        return rows, columns
    shape = (segment.rows, segment.row // segment.columns, segment.columns)
    mine, theirs = ((array.astype(np.float64) ** 2).reshape(shape).sum(1) for array in (values, base))
    for _ in range(_ROUNDS):
        rows = _power(mine.sum(1), (theirs * np.exp2(2.0 * columns)).sum(1))
        columns = _power(mine.sum(0), (theirs * np.exp2(2.0 * rows)[:, None]).sum(0))
    return rows, columns


def _power(mine: NDArray[np.float64], theirs: NDArray[np.float64]) -> Small:
    """Half the logarithm of a quotient of sums of squares, to the nearest whole number."""
    quotient = np.where((mine > 0) & (theirs > 0), mine, 1.0) / np.where((mine > 0) & (theirs > 0), theirs, 1.0)
    powers: Small = np.rint(np.log2(quotient) / 2).clip(-MAX_EXPONENT, MAX_EXPONENT).astype(np.int16)
    return powers


def _fitted(segment: Segment, sizes: NDArray[np.float64]) -> tuple[Small, Small]:
    """Levels of rows, and how many above that the columns stand."""
    starts = np.arange(0, segment.count, segment.row)
    if segment.columns == 1:
        counts = np.diff(np.append(starts, segment.count))
        return logistic.level_of(np.add.reduceat(sizes, starts) / counts), np.zeros(1, np.int16)
    means = sizes.reshape(segment.rows, -1, segment.columns).mean(1)
    columns = np.zeros(segment.columns, np.int16)
    for _ in range(_ROUNDS):
        rows = logistic.level_of((means * np.exp2(-columns / 4)).mean(1))
        # As if all rows were of one level, so high that levels rise evenly.
        raised = (means * np.exp2((_EVEN - rows) / 4)[:, None]).mean(0)
        columns = (logistic.level_of(raised) - _EVEN).clip(-_REACH, _REACH)
    return rows, columns


def _merged(told: Iterator[_Told]) -> Iterator[_Told]:
    """Neighbours that are both literal, or copies from one place, become one."""
    for kind, group in groupby(told, key=lambda one: one.segment.kind):
        ones = list(group)
        if kind == LITERAL:
            yield _literal(b"".join(one.notes for one in ones))
        elif kind == COPY:
            yield from _merged_copies([one.segment for one in ones])
        else:
            yield from ones


def _merged_copies(segments: list[Segment]) -> Iterator[_Told]:
    start, length = segments[0].base_at, 0
    for segment in segments:
        if segment.base_at != start + length:
            yield _Told(Segment(kind=COPY, length=length, base_at=start), b"")
            start, length = segment.base_at, 0
        length += segment.length
    yield _Told(Segment(kind=COPY, length=length, base_at=start), b"")
