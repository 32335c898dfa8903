"""Ranges of shards, read in few requests: neighbours joined, and blocks kept that the next image will want too.

Images that follow each other lie in one shard one after the other. An object store answers a request of 1 MiB hardly later than one of 20 kB, so what
lies near is read along.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.store.base import Store

BLOCK_BYTES = 1 << 20
MAX_BLOCKS = 64
GAP_BYTES = 1 << 18
"""What may lie unwanted between two ranges that are read as one: less than a request costs."""
SPAN_BYTES = 1 << 23
"""Of one request for several ranges, at most; a single range is as long as it is."""


@dataclass(frozen=True, slots=True)
class Span:
    """Ranges of one object that are read at once.

    Attributes:
        name: Of the object.
        start: First byte.
        length: Bytes, up to the end of the last range.
        parts: Numbers of the ranges, as they were given.
    """

    name: str
    start: int
    length: int
    parts: tuple[int, ...]


def coalesced(ranges: Iterable[tuple[str, int, int]], *, gap: int = GAP_BYTES, most: int = SPAN_BYTES) -> list[Span]:
    """Spans that hold all ranges `(object, first byte, bytes)`, in the order of objects and bytes.

    Args:
        ranges: In any order; they may overlap.
        gap: Unwanted bytes that are read along rather than asked around, at most.
        most: Bytes of a span of several ranges, at most.

    >>> coalesced([("a", 0, 100), ("a", 612, 50), ("b", 0, 9)], gap=1000)
    [Span(name='a', start=0, length=662, parts=(0, 1)), Span(name='b', start=0, length=9, parts=(2,))]
    """
    spans: list[Span] = []
    for part, (name, start, length) in sorted(enumerate(ranges), key=lambda item: item[1]):
        last = spans[-1] if spans and spans[-1].name == name else None
        end, there = start + length, 0 if last is None else last.start + last.length
        if last is not None and (end <= there or (start <= there + gap and end - last.start <= most)):
            spans[-1] = Span(name, last.start, max(last.length, end - last.start), (*last.parts, part))
        else:
            spans.append(Span(name, start, length, (part,)))
    return spans


class Blocks:
    """Reads ranges of a store's objects by blocks, the last of which it keeps. Safe to use from several threads.

    Args:
        store: Of objects that never change, as an archive's shards are.
        block_bytes: Of a block. A range that is longer is read by itself, and not kept.
        max_blocks: Kept, at most.
    """

    def __init__(self, store: Store, block_bytes: int = BLOCK_BYTES, max_blocks: int = MAX_BLOCKS) -> None:
        self._store = store
        self._block_bytes = block_bytes
        self._max_blocks = max_blocks
        self._kept: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._sizes: dict[str, int] = {}
        self._lock = threading.Lock()

    def read_range(self, name: str, start: int, length: int) -> bytes:
        """As `Store.read_range`, of which it raises the errors."""
        if length >= self._block_bytes or start + length > self._size(name):
            return self._store.read_range(name, start, length)
        first, last = start // self._block_bytes, (start + max(length, 1) - 1) // self._block_bytes
        data = b"".join(self._block(name, number) for number in range(first, last + 1))
        offset = start - first * self._block_bytes
        return data[offset : offset + length]

    def _size(self, name: str) -> int:
        if name not in self._sizes:
            self._sizes[name] = self._store.size(name)
        return self._sizes[name]

    def _block(self, name: str, number: int) -> bytes:
        with self._lock:
            if (name, number) in self._kept:
                self._kept.move_to_end((name, number))
                return self._kept[name, number]
        start = number * self._block_bytes
        data = self._store.read_range(name, start, min(self._block_bytes, self._size(name) - start))
        with self._lock:
            self._kept[name, number] = data
            while len(self._kept) > self._max_blocks:
                self._kept.popitem(last=False)
        return data
