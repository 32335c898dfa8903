"""Symbols to bytes and back: the compiled rANS kernel, or the same arithmetic in Python where no compiler was at hand."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msinn_core.entropy import portable
from msinn_core.entropy.tables import Tables
from msinn_core.errors import BitstreamError, CodecError

kernel: Any
try:
    kernel = importlib.import_module("msinn_core.entropy._rans")
except ImportError:  # installed without a C compiler
    kernel = None

COMPILED = kernel is not None
"""Whether the fast kernel is there; the portable coder writes the same bytes at about 1/100 of the speed."""


def encode(symbols: NDArray[np.signedinteger[Any]], indexes: NDArray[np.uint8], tables: Tables) -> bytes:
    """One symbol stream.

    Args:
        symbols: Whole numbers, any int32, of this type or a smaller one.
        indexes: Table of each symbol, same length.
        tables: The model's tables.

    Returns:
        The stream of FORMAT.md; empty when every symbol is zero.

    Raises:
        CodecError: Lengths differ or an index is out of range.
    """
    if len(symbols) != len(indexes):
        raise CodecError(f"{len(symbols)} symbols but {len(indexes)} table indexes")
    if not symbols.any():
        return b""
    coder = kernel or portable
    try:
        data: bytes = coder.encode(
            np.ascontiguousarray(symbols, np.int32), np.ascontiguousarray(indexes, np.uint8), tables.cdf, tables.starts, tables.offsets
        )
    except ValueError as error:
        raise CodecError(f"cannot code these symbols: {error}") from error
    return data


def decode(data: bytes | memoryview, indexes: NDArray[np.uint8], tables: Tables, out: NDArray[np.int32] | None = None) -> NDArray[np.int32]:
    """Symbols of a stream that `encode` wrote; `len(indexes)` of them.

    Args:
        data: The stream.
        indexes: Table of each symbol.
        tables: The model's tables.
        out: Where to write them, contiguous, of the same length; a new array if None.

    Raises:
        BitstreamError: The stream ends too early, too late, or not in the coder's initial state: data, tables or indexes are not those of
            the encoder.
    """
    symbols = np.empty(len(indexes), np.int32) if out is None else out
    if len(data) == 0:
        symbols[:] = 0
        return symbols
    coder = kernel or portable
    try:
        coder.decode(data, np.ascontiguousarray(indexes, np.uint8), tables.cdf, tables.starts, tables.offsets, tables.lookup, symbols)
    except ValueError as error:
        raise BitstreamError(f"damaged symbol stream: {error}") from error
    return symbols
