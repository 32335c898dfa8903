"""Compact models of every version give back their files, and a reader written from MODEL.md alone agrees."""

from __future__ import annotations

import hashlib
import math
import struct
import zlib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from msinn_core.compact import expand, head
from msinn_core.entropy import logistic, portable
from tests.golden.integer.make_compact import tuned

HERE = Path(__file__).parent / "integer"
MODEL = (HERE / "model.safetensors").read_bytes()


def read_by_the_page(data: bytes, base: bytes) -> bytes:
    """MODEL.md as a program, in Python's own whole numbers."""
    size, count, d, notes_bytes, p, s = struct.unpack_from("<6I", data, 72)
    assert 96 + d + p + s == len(data)
    notes = zlib.decompress(data[96 : 96 + d])
    assert len(notes) == notes_bytes
    columns = [struct.unpack_from(f"<{count}{kind}", notes, count * at) for kind, at in zip("BBBIIII", (0, 1, 2, 3, 7, 11, 15), strict=True)]
    segments, at, levels, sides = list(zip(*columns, strict=True)), 19 * count, [], []
    assert sum(segment[3] for segment in segments) == size
    for kind, width, _, length, _, row, across in segments:
        said: list[list[int]] = []
        if kind == 0:
            sides.append(notes[at : at + length])
            at += length
        elif kind >= 2:
            rows = -(-(length // width) // row)
            for signs in ("B", "b")[: kind - 1]:
                first = struct.unpack_from(f"<{rows}{signs}", notes, at)
                second = struct.unpack_from(f"<{across}b", notes, at + rows)
                said.append([first[i // row] + second[i % row % across] for i in range(length // width)])
                at += rows + across
            levels += [max(0, min(140, level)) for level in said[0]]
            sides.append(said[1] if kind == 3 else None)
        else:
            sides.append(None)
    values = coded_numbers(data[96 + d : 96 + d + p], data[96 + d + p :], levels)
    out = b""
    for (kind, width, order, length, base_at, _, _), side in zip(segments, sides, strict=True):
        theirs = base[base_at : base_at + length]
        if kind < 2:
            out += theirs if kind else side
            continue
        numbers, values = values[: length // width], values[length // width :]
        for _ in range(order):
            numbers = list(np.cumsum(np.array(numbers, object)))
        if kind == 3:
            others = struct.unpack(f"<{len(numbers)}{'h' if width == 2 else 'i'}", theirs)
            numbers = [v + (b << e if e >= 0 else b + (1 << -e - 1) >> -e) for v, b, e in zip(numbers, others, side, strict=True)]
        out += b"".join((v % (1 << 8 * width)).to_bytes(width, "little") for v in numbers)
    return out


def coded_numbers(planes: bytes, stream: bytes, levels: list[int]) -> list[int]:
    shifts = [max(0, (level - 28) // 4) for level in levels]
    low, at = [0] * len(levels), 0
    for bit in range(max(shifts, default=0)):
        where = [i for i, shift in enumerate(shifts) if shift > bit]
        for n, i in enumerate(where):
            low[i] |= (planes[at + n // 8] >> n % 8 & 1) << bit
        at += -(-len(where) // 8)
    assert at == len(planes)
    tables = [page_table(t) for t in range(32)]
    cdf = np.concatenate([np.concatenate(([0], np.cumsum(counts))) for counts in tables]).astype(np.uint32)
    starts = np.cumsum([0, *(len(counts) + 1 for counts in tables)]).astype(np.int32)
    offsets = np.array([-(len(counts) - 2) // 2 for counts in tables], np.int32)
    lookup = np.array([np.searchsorted(cdf[a:b], np.arange(256) * 256, side="right") - 1 for a, b in pairwise(starts)], np.uint16)
    high = np.zeros(len(levels), np.int32)
    if stream:
        indexes = np.array([level - 4 * shift for level, shift in zip(levels, shifts, strict=True)], np.uint8)
        portable.decode(stream, indexes, cdf, starts, offsets, lookup, high)
    return [(h << k) + bits - (1 << k) // 2 for h, k, bits in zip(high.tolist(), shifts, low, strict=True)]


def page_table(t: int) -> list[int]:
    one = 2**60
    u = (576460752303423488, 643672115681792294, 706218985352862728, 763495063678755207)[t % 4]
    for _ in range(abs(t // 4 - 4)):
        u = math.isqrt(u * one) if t >= 16 else u * u >> 60
    e = [0, u]
    while len(e) < 3 or 65536 * e[-1] // (one + e[-1]) >= 8:
        e.append(e[-1] * (u * u >> 60) >> 60)
    m = len(e) - 2
    w = 65536 - (2 * m + 2)
    tail = [w * x // (one + x) for x in e]
    side = [tail[i] - tail[i + 1] + 1 for i in range(1, m + 1)]
    counts = [*side[::-1], w - 2 * tail[1] + 1, *side, 2 * tail[m + 1] + 1]
    assert sum(counts) == 65536
    return counts


def refuse(digest: str) -> bytes:
    raise AssertionError(f"{digest} is not needed")


def test_the_golden_model_comes_back_to_the_byte() -> None:
    data = (HERE / "model.compact").read_bytes()
    assert head(data) == (hashlib.sha256(MODEL).hexdigest(), None, len(MODEL))
    assert expand(data, refuse) == MODEL


def test_a_difference_to_the_golden_model_comes_back_to_the_byte() -> None:
    data = (HERE / "tuned.compact").read_bytes()
    asked: list[str] = []
    give: Callable[[str], bytes] = lambda digest: (asked.append(digest), MODEL)[1]  # noqa: E731
    assert expand(data, give) == tuned(MODEL)
    assert asked == [hashlib.sha256(MODEL).hexdigest()]


@pytest.mark.parametrize("name", ["model", "tuned"])
def test_a_reader_written_from_the_page_agrees(name: str) -> None:
    expected = MODEL if name == "model" else tuned(MODEL)
    assert read_by_the_page((HERE / f"{name}.compact").read_bytes(), MODEL) == expected


def test_tables_are_those_of_the_page_and_never_change() -> None:
    tables = logistic.tables()
    assert [np.diff(tables.table(t)).tolist() for t in range(32)] == [page_table(t) for t in range(32)]
    assert hashlib.sha256(tables.cdf.astype("<u4").tobytes()).hexdigest() == "c0c62d147fdcf0bc65ac08fe601ff24d345ab9dcc7b5e97b996beb48feb4da52"
