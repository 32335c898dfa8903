"""The first stream of a picture, told by its own past: FORMAT.md, chapter "The first stream".

The network has nothing to go by for the anchors of the coarsest latents: one scale a channel, for the whole picture. They are an eighth of a
photograph's bytes. Predicted from seven neighbours, with scales that follow how large residuals were there and in the channels before, they take a
quarter less.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msinn_core.config import LATENT_CHANNELS
from msinn_core.entropy import portable, rans
from msinn_core.entropy.tables import Tables
from msinn_core.errors import BitstreamError, CheckpointError, CodecError

CHANNELS = LATENT_CHANNELS[0]
NUM_NEIGHBOURS = len(portable.NEIGHBOURS)
ONE = 4096
"""Weights are in so many parts of one."""

_MAX_AMPLITUDE = 1 << 30


@dataclass(frozen=True)
class Prediction:
    """Codes the first stream.

    Attributes:
        tables: The model's.
        weights: int16 `[48, 7]`, of the neighbours of each channel's symbols in 4096ths; as in the model file.
        amplitudes: int64 `[T]`, mean size of each table's symbols in 65536ths, rising; derived, exact.
        limits: int64 `[T - 1]`, geometric means of neighbouring amplitudes; derived, exact.

    Raises:
        CheckpointError: The weights have another shape or type.
    """

    tables: Tables
    weights: NDArray[np.int16]
    amplitudes: NDArray[np.int64] = field(init=False, repr=False)
    limits: NDArray[np.int64] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.weights.shape != (CHANNELS, NUM_NEIGHBOURS) or self.weights.dtype != np.int16:
            raise CheckpointError(f"the weights of the first stream are no {CHANNELS} x {NUM_NEIGHBOURS} numbers of 16 bits")
        tables = self.tables
        means = [_mean_size(tables.table(t), int(tables.offsets[t])) for t in range(len(tables.offsets))]
        amplitudes = np.maximum.accumulate(np.array(means, np.int64).clip(1, _MAX_AMPLITUDE))
        limits = [math.isqrt(a * b) for a, b in zip(amplitudes[:-1].tolist(), amplitudes[1:].tolist(), strict=True)]
        object.__setattr__(self, "amplitudes", amplitudes)
        object.__setattr__(self, "limits", np.array(limits, np.int64))

    def residuals(self, symbols: NDArray[np.int32], indexes: NDArray[np.uint8], columns: int) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
        """What is coded in place of symbols, and by which tables.

        Args:
            symbols: Flat, in the order row, column, channel.
            indexes: The network's tables for them.
            columns: Positions of a row.

        Raises:
            CodecError: A symbol is 2^31 or further from its prediction.
        """
        residuals, chosen = np.empty(len(symbols), np.int32), np.empty(len(symbols), np.uint8)
        arrays = np.ascontiguousarray(symbols, np.int32), np.ascontiguousarray(indexes, np.uint8)
        try:
            self._coder.predicted(*arrays, *self._parameters, columns, CHANNELS, residuals, chosen)
        except ValueError as error:
            raise CodecError(f"cannot code these symbols: {error}") from error
        return residuals, chosen

    def decode(self, data: bytes | memoryview, indexes: NDArray[np.uint8], columns: int, out: NDArray[np.int32] | None = None) -> NDArray[np.int32]:
        """The symbols of a stream of residuals; arguments as of `residuals` and `rans.decode`.

        Raises:
            BitstreamError: The stream does not fit.
        """
        symbols = np.empty(len(indexes), np.int32) if out is None else out
        tables = self.tables.cdf, self.tables.starts, self.tables.offsets, self.tables.lookup
        try:
            self._coder.decode_predicted(data, np.ascontiguousarray(indexes, np.uint8), *tables, *self._parameters, columns, CHANNELS, symbols)
        except ValueError as error:
            raise BitstreamError(f"damaged symbol stream: {error}") from error
        return symbols

    @property
    def _parameters(self) -> tuple[NDArray[np.int16], NDArray[np.int64], NDArray[np.int64]]:
        return self.weights, self.amplitudes, self.limits

    @property
    def _coder(self) -> Any:
        return rans.kernel or portable


def _mean_size(table: NDArray[np.uint32], offset: int) -> int:
    """Of a table's symbols, escapes aside, in 65536ths, rounded down."""
    counts = np.diff(table.astype(np.int64))[:-1]
    sizes = np.abs(np.arange(len(counts), dtype=np.int64) + offset)
    return (int((sizes * counts).sum()) << 16) // int(counts.sum())


class StreamCoder:
    """Codes the ten streams of a picture: the first by prediction where the model has weights for it, the others by the network's tables.

    Args:
        tables: The model's.
        weights: See `Prediction`; None for models without.
    """

    def __init__(self, tables: Tables, weights: NDArray[np.int16] | None = None) -> None:
        self.tables = tables
        self._first = None if weights is None else Prediction(tables, weights)

    def coded(self, number: int, symbols: NDArray[np.int32], indexes: NDArray[np.uint8], columns: int) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
        """What is coded of a stream, and by which tables.

        Args:
            number: Of the stream, from 0.
            symbols: Flat.
            indexes: The network's tables for them.
            columns: Positions of a row of the first stream.
        """
        if number or self._first is None or not symbols.any():
            return symbols, indexes
        return self._first.residuals(symbols, indexes, columns)

    def encode(self, number: int, symbols: NDArray[np.int32], indexes: NDArray[np.uint8], columns: int) -> bytes:
        """A stream; empty when every symbol is zero. Arguments as of `coded`. Raises `CodecError`, see there and in `rans.encode`."""
        return rans.encode(*self.coded(number, symbols, indexes, columns), self.tables) if symbols.any() else b""

    def decode(
        self, number: int, data: bytes | memoryview, indexes: NDArray[np.uint8], columns: int, out: NDArray[np.int32] | None = None
    ) -> NDArray[np.int32]:
        """The symbols of a stream; other arguments as of `coded`. Raises `BitstreamError`, see `rans.decode`."""
        if number or self._first is None or len(data) == 0:
            return rans.decode(data, indexes, self.tables, out)
        return self._first.decode(data, indexes, columns, out)

    def first_share(self, symbols: NDArray[np.int32], indexes: NDArray[np.uint8], columns: int) -> float:
        """Bits that the first stream takes, over those by the network's tables; for predictions of rate."""
        if self._first is None or not symbols.any():
            return 1.0
        return self._bits(*self._first.residuals(symbols, indexes, columns)) / max(1.0, self._bits(symbols, indexes))

    def _bits(self, symbols: NDArray[np.int32], indexes: NDArray[np.uint8]) -> float:
        bits, base, size = self.tables.symbol_bits()
        position = symbols - self.tables.offsets[indexes].astype(np.int64)
        inside = (position >= 0) & (position < size[indexes])
        return float(bits[base[indexes] + np.where(inside, position, size[indexes])].sum(dtype=np.float64))
