"""What the page looks at in pictures: where they lost most, what is lost there, and whether two of them show the same. Pure NumPy and Pillow."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.archive.row import Row

REGION = 256
"""Side of the region that is shown, in pixels."""

GAIN = 8
"""Differences are shown so many times larger: 32 of 255 code values are white."""

_BLOCK = 8
_BAND_BLOCKS = 32
_THUMBNAIL = 9
_NEAR_BITS, _LIKE_VALUES = 6, 48
"""Images are copies of each other, scaled, recompressed or of one series, if so few of the 144 bits of their thumbnails differ, and nowhere one of
the 243 values by more than this: pictures that are flat have bits of noise, and are told by their colours."""

_NEAR_VALUES = 5
"""So are those whose thumbnails differ nowhere by more code values."""

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Region:
    """A part of a picture, in pixels."""

    top: int
    left: int
    height: int
    width: int

    def of(self, pixels: Pixels) -> Pixels:
        """Its pixels, of `[H, W]` or `[H, W, 3]`."""
        return np.asarray(pixels[self.top : self.top + self.height, self.left : self.left + self.width])


def worst_region(original: Pixels, decoded: Pixels, side: int = REGION) -> Region:
    """The square of `side` x `side` pixels with the largest squared error, on a grid of 8 pixels; all of a picture that is smaller.

    Args:
        original: uint8 `[H, W]` or `[H, W, 3]`; and `decoded`, of the same shape.
        decoded: The same picture after the codec.
        side: In pixels, a multiple of 8.
    """
    height, width = original.shape[:2]
    rows, across = math.ceil(height / _BLOCK), math.ceil(width / _BLOCK)
    errors = np.zeros((rows, across))
    # A band at a time: of 100 megapixels the differences alone take 600 MB.
    for band in range(0, rows, _BAND_BLOCKS):
        part = slice(band * _BLOCK, (band + _BAND_BLOCKS) * _BLOCK)
        squares = np.square(original[part].astype(np.int32) - decoded[part])
        squares = squares if squares.ndim == 2 else squares.sum(axis=2)
        sums = np.add.reduceat(np.add.reduceat(squares, np.arange(0, squares.shape[0], _BLOCK), axis=0), np.arange(0, width, _BLOCK), axis=1)
        errors[band : band + len(sums)] = sums
    tall, wide = min(side // _BLOCK, rows), min(side // _BLOCK, across)
    total = np.pad(errors.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    windows = total[tall:, wide:] - total[:-tall, wide:] - total[tall:, :-wide] + total[:-tall, :-wide]
    row, column = np.unravel_index(int(windows.argmax()), windows.shape)
    top, left = min(int(row) * _BLOCK, max(0, height - side)), min(int(column) * _BLOCK, max(0, width - side))
    return Region(top, left, min(side, height), min(side, width))


def centre(pixels: Pixels, side: int = REGION) -> Region:
    """The square in the middle: of a picture without its original nobody knows where it lost most."""
    height, width = pixels.shape[:2]
    return Region(max(0, (height - side) // 2), max(0, (width - side) // 2), min(side, height), min(side, width))


def difference(original: Pixels, decoded: Pixels) -> Pixels:
    """Absolute differences of two pictures of one shape, `GAIN` times: black where nothing was lost."""
    apart = np.abs(original.astype(np.int16) - decoded)
    return np.asarray(np.minimum(apart * GAIN, 255), np.uint8)


@dataclass(frozen=True)
class Signature:
    """What tells copies: a thumbnail and its edges, and the hashes of file and pixels where they are known."""

    bits: NDArray[np.bool_]
    values: NDArray[np.int16]
    source: str | None = None
    pixels: str | None = None

    def is_copy(self, other: Signature) -> bool:
        """Whether both show the same."""
        apart = int(np.abs(self.values - other.values).max())
        return apart <= _NEAR_VALUES or (apart <= _LIKE_VALUES and int((self.bits != other.bits).sum()) <= _NEAR_BITS)


def signature(pixels: Pixels, row: Row | None = None) -> Signature:
    """Of a picture uint8 `[H, W]` or `[H, W, 3]`, and of its row."""
    step = max(1, min(pixels.shape[:2]) // 256)
    image = rgb(pixels[::step, ::step])
    size = (_THUMBNAIL, _THUMBNAIL)
    grey = np.asarray(image.convert("L").resize(size, Image.Resampling.BOX), np.int16)
    bits = np.concatenate(((np.diff(grey, axis=1) > 0).ravel(), (np.diff(grey, axis=0) > 0).ravel()))
    values = np.asarray(image.resize(size, Image.Resampling.BOX), np.int16).ravel()
    return Signature(bits, values, row.source_sha256 if row else None, row.recon_sha256 if row else None)


def rgb(pixels: Pixels) -> Image.Image:
    """A picture uint8 `[H, W]` or `[H, W, 3]` as Pillow has it."""
    return Image.fromarray(np.ascontiguousarray(pixels)).convert("RGB")
