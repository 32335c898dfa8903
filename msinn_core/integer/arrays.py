"""How pictures lie in NumPy, `[H, W, C]`: what the integer network does to arrays beside arithmetic, for the backends that work on them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from msinn_core.integer.bands import PictureBands, in_bands
from msinn_core.integer.composed import Composed

I16 = NDArray[np.int16]
I32 = NDArray[np.int32]

STATE_BITS = 16
"""Fractional bits of pixels and latents on the flow's main path."""


def squeeze(x: NDArray[Any]) -> NDArray[Any]:
    """Space to depth by 2: `[H, W, C]` -> `[H/2, W/2, 4C]`, channel `(2i + j) C + c`."""
    h, w, c = x.shape
    return np.ascontiguousarray(x.reshape(h // 2, 2, w // 2, 2, c).transpose(0, 2, 1, 3, 4)).reshape(h // 2, w // 2, 4 * c)


def unsqueeze(x: NDArray[Any]) -> NDArray[Any]:
    """Inverse of `squeeze`."""
    h, w, c = x.shape
    return np.ascontiguousarray(x.reshape(h, w, 2, 2, c // 4).transpose(0, 2, 1, 3, 4)).reshape(2 * h, 2 * w, c // 4)


def half_of(x: NDArray[Any], parity: int) -> NDArray[Any]:
    """Checkerboard half `[h, w/2, C]`: column j of row r is column `2j + (r + parity) % 2`."""
    out = np.empty((x.shape[0], x.shape[1] // 2, x.shape[2]), x.dtype)
    out[0::2], out[1::2] = x[0::2, parity::2], x[1::2, 1 - parity :: 2]
    return out


def whole_of(half: NDArray[Any], parity: int, other: NDArray[Any]) -> NDArray[Any]:
    """Inverse of `half_of` for a half of `parity` and the other one."""
    h, w, c = half.shape
    out = np.empty((h, 2 * w, c), half.dtype)
    out[0::2, parity::2], out[1::2, 1 - parity :: 2] = half[0::2], half[1::2]
    out[0::2, 1 - parity :: 2], out[1::2, parity::2] = other[0::2], other[1::2]
    return out


def halved(x: I16) -> I16:
    """2x2 maximum."""
    rows = np.maximum(x[0::2], x[1::2])
    return np.maximum(rows[:, 0::2], rows[:, 1::2])


def shuffled(x: NDArray[Any]) -> NDArray[Any]:
    """PyTorch's pixel shuffle by 2: channel `4c + 2i + j` to row phase i, column phase j."""
    h, w, c = x.shape
    return np.ascontiguousarray(x.reshape(h, w, c // 4, 2, 2).transpose(0, 3, 1, 4, 2)).reshape(2 * h, 2 * w, c // 4)


def unshuffled(x: NDArray[Any]) -> NDArray[Any]:
    """Inverse of `shuffled`."""
    h, w, c = x.shape
    return np.ascontiguousarray(x.reshape(h // 2, 2, w // 2, 2, c).transpose(0, 2, 4, 1, 3)).reshape(h // 2, w // 2, 4 * c)


class NumpyArrays(Composed):
    """The part of a backend that moves values about; see `network.Backend`."""

    lead: tuple[int, ...] = ()
    squeeze = staticmethod(squeeze)
    unsqueeze = staticmethod(unsqueeze)
    half = staticmethod(half_of)
    whole = staticmethod(whole_of)
    halved = staticmethod(halved)
    shuffled = staticmethod(shuffled)
    unshuffled = staticmethod(unshuffled)
    in_bands = staticmethod(in_bands)
    pictured = staticmethod(PictureBands.of)

    def settle(self, x: NDArray[Any]) -> None:
        """Nothing: the allocator decides."""

    @staticmethod
    def to_host(x: NDArray[Any]) -> NDArray[Any]:
        return x

    @staticmethod
    def to_device(array: NDArray[Any]) -> NDArray[Any]:
        return array

    @staticmethod
    def joined(*parts: NDArray[Any]) -> NDArray[Any]:
        return np.concatenate(parts, axis=2)

    @staticmethod
    def channels(x: NDArray[Any], start: int, stop: int) -> NDArray[Any]:
        return np.ascontiguousarray(x[..., start:stop])

    @staticmethod
    def constant(values: I16, shape: tuple[int, ...]) -> I16:
        return np.ascontiguousarray(np.broadcast_to(values, (*shape, len(values))))

    @staticmethod
    def looked_up(table: I16, x: I16) -> I16:
        found: I16 = table[x.astype(np.int32) + 32768]
        return found

    @staticmethod
    def positive(x: I16) -> I16:
        out: I16 = np.maximum(x, 0)
        return out

    @staticmethod
    def even(x: I16) -> I16:
        return x if x.shape[2] % 2 == 0 else np.concatenate((x, np.zeros((*x.shape[:2], 1), np.int16)), axis=2)

    @staticmethod
    def mean(x: I16) -> I16:
        count = x.shape[0] * x.shape[1]
        means = (2 * x.sum(axis=(0, 1), dtype=np.int64, keepdims=True) + count) // (2 * count)
        rounded: I16 = means.astype(np.int16)
        return rounded

    @staticmethod
    def gated(x: I16, table: I16, index: I16, add: I16) -> I16:
        gate = table[(index.astype(np.int32) + 32768) >> 4].astype(np.int32)
        out: I16 = np.clip(((x * gate + (1 << 14)) >> 15) + add, -32768, 32767).astype(np.int16)
        return out

    @staticmethod
    def corrected(x: I32 | None, correction: I16 | None, shift: int) -> NDArray[np.uint8]:
        if correction is not None:
            moved = correction.astype(np.int32) * np.int32(1 << shift)
            x = moved if x is None else x + moved
        assert x is not None
        return ((np.clip(x, 0, 1 << STATE_BITS) * np.int32(255) + (1 << (STATE_BITS - 1))) >> STATE_BITS).astype(np.uint8)

    @staticmethod
    def state_of(pixels: NDArray[np.uint8]) -> I32:
        table = np.round(np.arange(256) * (1 << STATE_BITS) / 255).astype(np.int32)
        state: I32 = table[pixels]
        return state
