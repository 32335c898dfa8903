"""Between pictures and what the network sees: padding, the header's words, metadata and alpha in boxes."""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

from msinn_core import bitstream
from msinn_core.bitstream import Bitstream
from msinn_core.config import SIZE_MULTIPLE
from msinn_core.errors import BitstreamError
from msinn_core.picture import Picture
from msinn_core.reduction import area_reduced, reduced_side


def padded_side(side: int) -> int:
    """The least multiple of 32 from `side` up."""
    return -(-side // SIZE_MULTIPLE) * SIZE_MULTIPLE


def padded_size(picture: Picture) -> tuple[int, int]:
    """Height and width with their padding."""
    height, width = picture.pixels.shape[:2]
    return padded_side(height), padded_side(width)


def colour_of(picture: Picture) -> str:
    """As the header says it."""
    return "rgb" if picture.pixels.ndim == 3 else "grey"


def padded_pixels(picture: Picture) -> NDArray[np.uint8]:
    """uint8 `[H, W, 3]`, sides multiples of 32: the last row and column repeated."""
    height, width = picture.pixels.shape[:2]
    pixels = picture.pixels if picture.pixels.ndim == 3 else np.repeat(picture.pixels[:, :, None], 3, axis=2)
    padding = ((0, padded_side(height) - height), (0, padded_side(width) - width), (0, 0))
    return np.pad(pixels, padding, mode="edge") if any(p[1] for p in padding) else np.require(pixels, requirements=["C", "W"])


def finished_picture(stream: Bitstream, padded: NDArray[np.uint8], scale: int = 1) -> Picture:
    """The picture of decoded pixels, which are so many times smaller: cropped, grey where it was, with all that came with it."""
    array = np.ascontiguousarray(padded[: reduced_side(stream.height, scale), : reduced_side(stream.width, scale)])
    if stream.colour == "grey":
        # The nearest whole number to the mean of the three.
        array = ((array.sum(axis=2, dtype=np.uint16) + 1) // 3).astype(np.uint8)
    boxes = stream.boxes
    alpha = area_reduced(_read_alpha(boxes[bitstream.ALPHA], stream), scale) if bitstream.ALPHA in boxes else None
    return Picture(
        pixels=array, alpha=alpha, icc=boxes.get(bitstream.ICC), exif=boxes.get(bitstream.EXIF), xmp=boxes.get(bitstream.XMP),
        jpeg_segments=boxes.get(bitstream.JPEG_SEGMENTS), png_chunks=boxes.get(bitstream.PNG_CHUNKS),
    )  # fmt: skip


def boxes_of(picture: Picture) -> dict[int, bytes]:
    """What travels with the pixels, and the alpha plane, by kind of box."""
    boxes = picture.metadata()
    if picture.alpha is not None:
        boxes[bitstream.ALPHA] = _write_alpha(picture.alpha)
    return boxes


def _write_alpha(alpha: NDArray[np.uint8]) -> bytes:
    # PNG filter "up" on every row, then deflate: masks are flat, and any reader has zlib.
    rows = alpha.astype(np.int16)
    rows[1:] -= alpha[:-1]
    return zlib.compress(rows.astype(np.uint8).tobytes(), 9)


def _read_alpha(data: bytes, stream: Bitstream) -> NDArray[np.uint8]:
    size = stream.width * stream.height
    inflater = zlib.decompressobj()
    try:
        raw = inflater.decompress(data, size + 1)
    except zlib.error as error:
        raise BitstreamError(f"the alpha plane does not inflate: {error}") from error
    if len(raw) != size or not inflater.eof or inflater.unused_data:
        raise BitstreamError(f"the alpha plane does not inflate to {stream.width} x {stream.height} samples")
    rows = np.frombuffer(raw, np.uint8).reshape(stream.height, stream.width)
    return np.cumsum(rows, axis=0, dtype=np.uint8)
