"""Whole numbers of any size, coded as if each were drawn from a logistic distribution whose scale is known (MODEL.md, section 4).

The tables are computed in whole numbers alone: they are the same on every machine, and need not be stored.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from msinn_core.entropy import rans
from msinn_core.entropy.tables import TOTAL, Tables
from msinn_core.errors import BitstreamError

NUM_LEVELS = 141
"""Level l: numbers of mean size `2^((l - 16) / 4)`, from a sixteenth to 2^31."""

_ONE_LEVEL = 16
_NUM_TABLES = 32
_ROOT_BITS = 60
_ROOTS = (576460752303423488, 643672115681792294, 706218985352862728, 763495063678755207)
"""`2^(60 - 1/b)` for mean sizes b = 1, 2^(1/4), 2^(1/2), 2^(3/4), rounded down."""

_LAST_TAIL = 8
"""Tables end where fewer than this many of 65536 lie beyond, on each side."""

_LAST_PLAIN = _NUM_TABLES - 1
_LEVELS = np.arange(NUM_LEVELS)
SHIFTS: NDArray[np.uint8] = np.maximum(0, (_LEVELS - (_NUM_TABLES - 4)) // 4).astype(np.uint8)
"""Of a level: how many low bits of a number are stored as they are."""

_TABLE: NDArray[np.uint8] = (_LEVELS - 4 * SHIFTS).astype(np.uint8)
_HALVES: NDArray[np.uint32] = np.uint32(1) << SHIFTS.astype(np.uint32) >> np.uint32(1)
"""Numbers are rounded to the nearest multiple of their unit, so that tables stay centred."""

Levels = NDArray[np.uint8]


class Coded(NamedTuple):
    """Coded numbers.

    Attributes:
        stream: Symbols, as in FORMAT.md, section 5.
        planes: Low bits as they are.
    """

    stream: bytes
    planes: bytes


@cache
def tables() -> Tables:
    """The 32 tables, for mean sizes from 1/16 to 13.5."""
    parts, offsets = [], []
    for level in range(_NUM_TABLES):
        counts = _counts(_root(level))
        parts.append(np.concatenate(([0], np.cumsum(counts))))
        offsets.append(-((len(counts) - 2) // 2))
    starts = np.cumsum([0, *map(len, parts)])
    return Tables(
        cdf=np.concatenate(parts).astype(np.uint32),
        starts=starts.astype(np.int32),
        offsets=np.array(offsets, np.int32),
        thresholds=np.arange(1, _NUM_TABLES, dtype=np.float32),
    )


def _root(level: int) -> int:
    """`2^(-1/b)` for the level's mean size b, in units of 2^-60."""
    octave, quarter = divmod(level - _ONE_LEVEL, 4)
    root = _ROOTS[quarter]
    for _ in range(abs(octave)):
        root = math.isqrt(root << _ROOT_BITS) if octave > 0 else root * root >> _ROOT_BITS
    return root


def _counts(root: int) -> list[int]:
    """How many of 65536 fall to -m ... m and to the escape."""
    one, square = 1 << _ROOT_BITS, root * root >> _ROOT_BITS
    odds = [root, root * square >> _ROOT_BITS]
    while TOTAL * odds[-1] // (one + odds[-1]) >= _LAST_TAIL:
        odds.append(odds[-1] * square >> _ROOT_BITS)
    half = len(odds) - 1
    shared = TOTAL - (2 * half + 2)
    tails = [shared * odd // (one + odd) for odd in odds]
    side = [nearer - farther + 1 for nearer, farther in pairwise(tails)]
    return [*side[::-1], shared - 2 * tails[0] + 1, *side, 2 * tails[half] + 1]


@cache
def level_means() -> NDArray[np.float64]:
    """Mean size of the numbers that each level is for, `[NUM_LEVELS]`, rising."""
    means = []
    for t in range(_NUM_TABLES):
        widths = np.diff(tables().table(t).astype(np.int64))[:-1]
        means.append(float(widths @ np.abs(np.arange(len(widths)) + tables().offsets[t])) / TOTAL)
    return np.array([means[_TABLE[level]] * 2.0 ** int(SHIFTS[level]) for level in range(NUM_LEVELS)])


@cache
def level_bits() -> NDArray[np.float64]:
    """Bits that a number of each level takes in the mean, `[NUM_LEVELS]`."""
    bits = []
    for t in range(_NUM_TABLES):
        share = np.diff(tables().table(t).astype(np.float64)) / TOTAL
        bits.append(float(-(share * np.log2(share)).sum()) + 12 * float(share[-1]))
    return np.array([bits[_TABLE[level]] + float(SHIFTS[level]) for level in range(NUM_LEVELS)])


def level_of(means: NDArray[np.float64]) -> NDArray[np.int16]:
    """The level that fits numbers of these mean sizes."""
    middles = np.sqrt(level_means()[1:] * level_means()[:-1])
    return np.searchsorted(middles, means).astype(np.int16)


def encode(values: NDArray[np.int64], levels: Levels) -> Coded:
    """Code numbers.

    Args:
        values: Within 32 bits, with sign.
        levels: Below `NUM_LEVELS`, one for each.
    """
    raised = values + _HALVES[levels]
    high = (raised >> SHIFTS[levels]).astype(np.int32)
    planes = []
    for bit, where in _plane_positions(levels):
        planes.append(np.packbits((raised[where] >> bit & 1).astype(np.uint8), bitorder="little").tobytes())
    return Coded(rans.encode(high, _TABLE[levels], tables()), b"".join(planes))


def decode(coded: Coded, levels: Levels) -> NDArray[np.uint32]:
    """The numbers modulo 2^32, as many as there are levels.

    Raises:
        BitstreamError: These are not the bytes of numbers of these levels.
    """
    values: NDArray[np.uint32] = rans.decode(coded.stream, _TABLE[levels], tables()).view(np.uint32)
    np.left_shift(values, SHIFTS[levels], out=values)
    at = 0
    for bit, where in _plane_positions(levels):
        packed = np.frombuffer(coded.planes, np.uint8)[at : at + (len(where) + 7) // 8]
        at += (len(where) + 7) // 8
        if at > len(coded.planes) or (len(where) % 8 and packed[-1] >> len(where) % 8):
            raise BitstreamError("the low bits end too early, or not in zeros")
        values[where] += np.unpackbits(packed, count=len(where), bitorder="little").astype(np.uint32) << np.uint32(bit)
    if at != len(coded.planes):
        raise BitstreamError("there are too many low bits")
    values -= _HALVES[levels]
    return values


def _plane_positions(levels: Levels) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Each bit that is stored as it is, from the lowest, and where numbers have one."""
    where = np.flatnonzero(levels > _LAST_PLAIN)
    bit = 0
    while len(where):
        yield bit, where
        bit += 1
        where = where[SHIFTS[levels[where]] > bit]
