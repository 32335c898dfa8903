"""The rANS of FORMAT.md in plain Python: a second implementation for tests, and the fallback where the C kernel could not be built."""

from __future__ import annotations

from bisect import bisect_left

import numpy as np
from numpy.typing import NDArray

_LOW = 1 << 31
_WORD = (1 << 32) - 1
_SHORT = "the symbol stream ends too early or does not fit its tables"

NEIGHBOURS = ((-1, 0, -1, 10), (-1, 1, 0, 10), (0, -1, -1, 10), (-2, 0, 0, 10), (-1, -1, -2, 7), (-1, 2, 1, 7), (0, -2, -2, 7))
"""Of a position of the first stream, coded before it: rows down; packed columns to the right in even rows, and in odd ones; trust in its size."""

PRIOR = 3
"""Trust in the network's scale."""

MAX_PREDICTION = 1 << 20


def encode(
    symbols: NDArray[np.int32], indexes: NDArray[np.uint8], cdf: NDArray[np.uint32], starts: NDArray[np.int32], offsets: NDArray[np.int32]
) -> bytes:
    """As the kernel's `encode`. Raises `ValueError` for an index out of range."""
    _check(indexes, len(offsets))
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


class Decoder:
    """Symbols of a stream, one after the other; each may choose the next one's table.

    Args:
        data: The stream.
        cdf, starts, offsets, lookup: As in `tables.Tables`.

    Raises:
        ValueError: It does not fit, here and in all methods.
    """

    def __init__(
        self, data: bytes | memoryview, cdf: NDArray[np.uint32], starts: NDArray[np.int32], offsets: NDArray[np.int32], lookup: NDArray[np.uint16]
    ) -> None:
        if len(data) < 8 or len(data) % 4:
            raise ValueError("a symbol stream has at least 8 bytes and whole words")
        self._counts, self._first, self._base, self._buckets = cdf.tolist(), starts.tolist(), offsets.tolist(), lookup.tolist()
        self._x = int.from_bytes(data[:8], "little")
        self._words = iter(np.frombuffer(data[8:], "<u4").tolist())
        if not _LOW <= self._x < 1 << 63:
            raise ValueError(_SHORT)

    def next(self, t: int) -> int:
        """The next symbol, of table t; any whole number of 34 bits."""
        counts, first = self._counts, self._first
        count = self._x & 0xFFFF
        j = first[t] + self._buckets[t][count >> 8]
        while counts[j + 1] <= count:
            j += 1
        self._renormalise((counts[j + 1] - counts[j]) * (self._x >> 16) + count - counts[j])
        inside: int = j - first[t]
        base: int = self._base[t]
        if j != first[t + 1] - 2:
            return inside + base
        length = self._raw(6)
        if length > 34:
            raise ValueError(_SHORT)
        tail, done = max(0, length - 1), 0
        u = 1 << tail if length else 0
        while done < tail:
            bits = min(16, tail - done)
            u |= self._raw(bits) << done
            done += bits
        return base - 1 - (u >> 1) if u & 1 else base + inside + (u >> 1)

    def end(self) -> None:
        """After the last symbol."""
        if self._x != _LOW or next(self._words, None) is not None:
            raise ValueError("the symbol stream does not end where its symbols do")

    def _renormalise(self, x: int) -> None:
        if x < _LOW:
            if (word := next(self._words, None)) is None:
                raise ValueError(_SHORT)
            x = x << 32 | int(word)
        self._x = x

    def _raw(self, bits: int) -> int:
        shift = 16 - bits
        value = (self._x & 0xFFFF) >> shift
        self._renormalise((self._x >> 16 << shift) + (self._x & (1 << shift) - 1))
        return value


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
    _check(indexes, len(offsets))
    decoder = Decoder(data, cdf, starts, offsets, lookup)
    for i, t in enumerate(indexes.tolist()):
        out[i] = _int32(decoder.next(t))
    decoder.end()


class _Predictor:
    """FORMAT.md, chapter "The first stream": what its symbols say of the next. `columns` positions a row, `channels` symbols a position."""

    def __init__(
        self,
        indexes: NDArray[np.uint8],
        weights: NDArray[np.int16],
        amplitudes: NDArray[np.int64],
        limits: NDArray[np.int64],
        columns: int,
        channels: int,
    ) -> None:
        _check(indexes, len(amplitudes))
        self._weights, self._limits, self._columns, self._channels = weights.tolist(), limits.tolist(), columns, channels
        self._base = amplitudes[indexes].tolist()
        self.symbols = [0] * len(indexes)
        self._sizes = [0] * len(indexes)
        self._activity = 0

    def foresee(self, i: int) -> tuple[int, int]:
        """Prediction and table of symbol i, which is the next."""
        position, c = divmod(i, self._channels)
        row, column = divmod(position, self._columns)
        total, trusted, trust = 2048, 0, PRIOR + c
        for n, (up, even, odd, weight) in enumerate(NEIGHBOURS):
            there = column + (odd if row % 2 else even)
            if row + up < 0 or not 0 <= there < self._columns:
                continue
            at = ((row + up) * self._columns + there) * self._channels + c
            total += self._weights[c][n] * self.symbols[at]
            trusted += weight * self._sizes[at]
            trust += weight
        if c == 0:
            self._activity = 0
        wanted = ((trusted << 16) + PRIOR * self._base[i] + (self._activity * self._base[i] >> 8)) // trust
        return min(max(total >> 12, -MAX_PREDICTION), MAX_PREDICTION), bisect_left(self._limits, wanted)

    def seen(self, i: int, symbol: int, residual: int) -> None:
        """Symbol i is known now."""
        self.symbols[i], self._sizes[i] = symbol, abs(residual)
        self._activity += min((abs(residual) << 24) // self._base[i], 1 << 24)


def predicted(
    symbols: NDArray[np.int32],
    indexes: NDArray[np.uint8],
    weights: NDArray[np.int16],
    amplitudes: NDArray[np.int64],
    limits: NDArray[np.int64],
    columns: int,
    channels: int,
    residuals: NDArray[np.int32],
    tables: NDArray[np.uint8],
) -> None:
    """As the kernel's `predicted`. Raises `ValueError` for a residual of more than 32 bits."""
    predictor = _Predictor(indexes, weights, amplitudes, limits, columns, channels)
    for i, symbol in enumerate(symbols.tolist()):
        prediction, tables[i] = predictor.foresee(i)
        residual = symbol - prediction
        if not -(1 << 31) <= residual < 1 << 31:
            raise ValueError("a symbol is too far from its prediction")
        residuals[i] = residual
        predictor.seen(i, symbol, residual)


def decode_predicted(
    data: bytes | memoryview,
    indexes: NDArray[np.uint8],
    cdf: NDArray[np.uint32],
    starts: NDArray[np.int32],
    offsets: NDArray[np.int32],
    lookup: NDArray[np.uint16],
    weights: NDArray[np.int16],
    amplitudes: NDArray[np.int64],
    limits: NDArray[np.int64],
    columns: int,
    channels: int,
    out: NDArray[np.int32],
) -> None:
    """As the kernel's `decode_predicted`. Raises `ValueError` for a stream that does not fit."""
    predictor = _Predictor(indexes, weights, amplitudes, limits, columns, channels)
    decoder = Decoder(data, cdf, starts, offsets, lookup)
    for i in range(len(indexes)):
        prediction, table = predictor.foresee(i)
        residual = _int32(decoder.next(table))
        out[i] = _int32(residual + prediction)
        predictor.seen(i, residual + prediction, residual)
    decoder.end()


def _check(indexes: NDArray[np.uint8], num_tables: int) -> None:
    if len(indexes) and int(indexes.max()) >= num_tables:
        raise ValueError("a table index is out of range")


def _int32(value: int) -> int:
    if not -(1 << 31) <= value < 1 << 31:
        raise ValueError(_SHORT)
    return value
