"""What turns pixels into symbols and symbols into pixels, as `codec` sees it. Which there is for a model, `engines` says."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from msinn_core.heads import Head
from msinn_core.integer.backend import Backend
from msinn_core.walk import HasPicture

FlatSymbols = NDArray[np.signedinteger[Any]]
"""A stream's symbols, in whatever whole numbers hold them."""

Flat8 = NDArray[np.uint8]


def narrowed(symbols: NDArray[np.int32]) -> FlatSymbols:
    """The same numbers, flat, in the least type that holds them all: mostly a quarter of the memory."""
    flat = symbols.reshape(-1)
    low, high = (int(flat.min()), int(flat.max())) if flat.size else (0, 0)
    for kind in (np.int8, np.int16):
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return flat.astype(kind)
    return flat


class Compressed(NamedTuple):
    """What an encoder's walk gives.

    Attributes:
        symbols: Of the ten streams, flat; `indexes`: their table indexes, uint8.
        walked: The walk itself, whose picture is a decoder's to the bit; None where nothing promises that, or nothing holds it.
    """

    symbols: list[FlatSymbols]
    indexes: list[Flat8]
    walked: HasPicture | None = None


class Engine(Protocol):
    """A network with its tables. Pictures are uint8 `[H, W, 3]`, sides multiples of 32; latents are whatever `transform` makes."""

    name: str
    """What computes, for people: an instruction set, a library's version, a device."""

    device: str
    """`cpu`, `cuda`, ..."""

    @property
    def backend(self) -> Backend | None:
        """Of an integer network; the float network has none."""

    def transform(self, pixels: NDArray[np.uint8]) -> list[Any]:
        """Latents of a picture, y5..y1."""

    def compress(self, latents: list[Any], q: float, shape: tuple[int, int], *, last: bool = False) -> Compressed:
        """Symbols and table indexes of the ten streams; `shape` is `(h, w)` of y5. The latents may be emptied if it is the `last` time."""

    def decode(self, streams: Sequence[bytes], q: float, shape: tuple[int, int]) -> tuple[NDArray[np.uint8], list[FlatSymbols]]:
        """The picture `[16h, 16w, 3]` and the symbols of the ten streams. Raises `BitstreamError` for streams that do not fit."""

    def tally(self, latents: list[Any], rates: list[float], shape: tuple[int, int], *, last: bool = False) -> Tally:
        """What the rates would cost and lose, from one context pass at the last of them; `last` as in `compress`."""


@runtime_checkable
class ReducingEngine(Engine, Protocol):
    """An engine that gives pictures of less than full size by a part of its network: one of an integer network."""

    def decode_reduced(self, streams: Sequence[bytes], q: float, shape: tuple[int, int], head: Head) -> NDArray[np.uint8]:
        """The picture of a head's scale, `[16h / scale, 16w / scale, 3]`.

        Args:
            streams: Ten; those that the head does not read are not looked at.
            q: Rate index.
            shape: `(h, w)` of y5.
            head: Of the network's model.

        Raises:
            BitstreamError: Streams that do not fit.
        """


@runtime_checkable
class BatchEngine(Engine, Protocol):
    """An engine that is quick with many pictures of one padded size at once: a GPU's. Safe to use from several threads.

    All raise `DeviceMemoryError` where the device has too little memory for so many, and `DeviceLostError` where it fails.
    """

    threads: ThreadPoolExecutor
    """Of the host, for entropy coding."""

    flights: ThreadPoolExecutor
    """One thread for each batch that may be under way at once."""

    most_pixels: int
    """Of all pictures of a batch together, padded: what the device's memory bears."""

    def transform_many(self, pixels: NDArray[np.uint8]) -> list[list[Any]]:
        """Per picture of uint8 `[N, H, W, 3]` its latents y5..y1."""

    def compress_many(self, latents: Sequence[list[Any]], rates: Sequence[float], shape: tuple[int, int]) -> list[Compressed]:
        """Per picture the symbols and table indexes of the ten streams; `rates` has a q for each."""

    def tally_many(self, latents: Sequence[list[Any]], rates: list[float], shape: tuple[int, int]) -> list[Tally]:
        """`tally` of each picture, all at the same rates."""

    def decode_many(
        self, streams: Sequence[Sequence[bytes]], rates: Sequence[float], shape: tuple[int, int]
    ) -> tuple[NDArray[np.uint8], list[list[FlatSymbols]]]:
        """Pictures uint8 `[N, 16h, 16w, 3]`, and per picture its ten arrays of symbols. Raises `BitstreamError` if any streams do not fit."""

    def decode_reduced_many(
        self, streams: Sequence[Sequence[bytes]], rates: Sequence[float], shape: tuple[int, int], head: Head
    ) -> NDArray[np.uint8]:
        """Pictures of a head's scale; see `ReducingEngine`."""


@dataclass(frozen=True)
class Tally:
    """Sums over a picture at R rates.

    Attributes:
        bits: `[R]`, bits of the symbols by their tables.
        squares: `[R, 5]`, squared error of y5..y1.
    """

    bits: NDArray[np.float64]
    squares: NDArray[np.float64]

    @classmethod
    def of_samples(cls, exact: NDArray[np.float64], sampled: NDArray[np.float64]) -> Tally:
        """Sums over all positions at the last rate, `exact` `[5, 2]` (bits, squares), stretched to the others by `sampled` `[R, 5, 2]`."""
        whole = exact * sampled / np.maximum(sampled[-1], 1e-9)
        return cls(whole[..., 0].sum(axis=1), whole[..., 1])


def stride(k: int, h: int, w: int) -> int:
    """A sixteenth of the positions of the two finest latents says as much: they are nine tenths of all symbols."""
    return min(4 if k >= 3 else 2 if k == 2 else 1, max(1, min(h, w) // 16))
