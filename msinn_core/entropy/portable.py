"""The rANS of FORMAT.md in plain Python: a second implementation for tests, and the fallback where the C kernel could not be built."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_LOW = 1 << 31
_WORD = (1 << 32) - 1


def encode(
    symbols: NDArray[np.int32], indexes: NDArray[np.uint8], cdf: NDArray[np.uint32], starts: NDArray[np.int32], offsets: NDArray[np.int32]
) -> bytes:
    """As the kernel's `encode`. Raises `ValueError` for an index out of range."""
    if len(indexes) and int(indexes.max()) >= len(offsets):
        raise ValueError("a table index is out of range")
    counts, first, base = cdf.tolist(), starts.tolist(), offsets.tolist()
    x, words = _LOW, []
    for symbol, t in zip(symbols[::-1].tolist(), indexes[::-1].tolist(), strict=True):
        escape = first[t + 1] - first[t] - 2
        s = symbol - base[t]
        steps = []
        if not 0 <= s < escape:
            u = 2 * (-s - 1) + 1 if s < 0 else 2 * (s - escape)
            done = max(0, u.bit_length() - 1)
            while done > 0:
                bits = done % 16 or 16
                done -= bits
                steps.append(((u >> done & (1 << bits) - 1) << 16 - bits, 1 << 16 - bits))
            steps.append((u.bit_length() << 10, 1 << 10))
            s = escape
        start = counts[first[t] + s]
        steps.append((start, counts[first[t] + s + 1] - start))
        for start, freq in steps:
            if x >= freq << 47:
                words.append(x & _WORD)
                x >>= 32
            x = ((x // freq) << 16) + x % freq + start
    return x.to_bytes(8, "little") + np.array(words[::-1], "<u4").tobytes()


def decode(
    data: bytes | memoryview,
    indexes: NDArray[np.uint8],
    cdf: NDArray[np.uint32],
    starts: NDArray[np.int32],
    offsets: NDArray[np.int32],
    lookup: NDArray[np.uint16],
    out: NDArray[np.int32],
) -> None:
    """As the kernel's `decode`. Raises `ValueError` for a stream that does not fit."""
    if len(data) < 8 or len(data) % 4:
        raise ValueError("a symbol stream has at least 8 bytes and whole words")
    if len(indexes) and int(indexes.max()) >= len(offsets):
        raise ValueError("a table index is out of range")
    counts, first, base, buckets = cdf.tolist(), starts.tolist(), offsets.tolist(), lookup.tolist()
    x = int.from_bytes(data[:8], "little")
    words = iter(np.frombuffer(data[8:], "<u4").tolist())
    if not _LOW <= x < 1 << 63:
        raise ValueError("the symbol stream ends too early or does not fit its tables")

    def renormalised(x: int) -> int:
        if x >= _LOW:
            return x
        if (word := next(words, None)) is None:
            raise ValueError("the symbol stream ends too early or does not fit its tables")
        return x << 32 | int(word)

    def raw(x: int, bits: int) -> tuple[int, int]:
        shift = 16 - bits
        return (x & 0xFFFF) >> shift, renormalised((x >> 16 << shift) + (x & (1 << shift) - 1))

    for i, t in enumerate(indexes.tolist()):
        count = x & 0xFFFF
        j = first[t] + buckets[t][count >> 8]
        while counts[j + 1] <= count:
            j += 1
        x = renormalised((counts[j + 1] - counts[j]) * (x >> 16) + count - counts[j])
        if j == first[t + 1] - 2:
            length, x = raw(x, 6)
            if length > 34:
                raise ValueError("the symbol stream ends too early or does not fit its tables")
            tail, done = max(0, length - 1), 0
            u = 1 << tail if length else 0
            while done < tail:
                bits = min(16, tail - done)
                part, x = raw(x, bits)
                u |= part << done
                done += bits
            value = base[t] - 1 - (u >> 1) if u & 1 else base[t] + (j - first[t]) + (u >> 1)
            if not -(1 << 31) <= value < 1 << 31:
                raise ValueError("the symbol stream ends too early or does not fit its tables")
            out[i] = value
        else:
            out[i] = j - first[t] + base[t]
    if x != _LOW or next(words, None) is not None:
        raise ValueError("the symbol stream does not end where its symbols do")
