"""A picture and what travels with it: needs no network, so that decoders of image files can do without."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from msinn_core import bitstream
from msinn_core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Picture:
    """Decoded pixels and what travels with them.

    Attributes:
        pixels: uint8 `[H, W, 3]` (RGB) or `[H, W]` (grey).
        alpha: uint8 `[H, W]`, kept losslessly, or None.
        icc: ICC profile; `exif` and `xmp` likewise: bytes or None.
        jpeg_segments: Further APPn and COM segments of a JPEG source, verbatim, one after the other; or None.
        png_chunks: Further chunks of a PNG source (or of what other formats say in its terms), verbatim; or None.
    """

    pixels: NDArray[np.uint8]
    alpha: NDArray[np.uint8] | None = None
    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    jpeg_segments: bytes | None = None
    png_chunks: bytes | None = None

    def __post_init__(self) -> None:
        shape = self.pixels.shape
        if self.pixels.dtype != np.uint8 or not (len(shape) == 2 or (len(shape) == 3 and shape[2] == 3)) or 0 in shape:
            raise ConfigError(f"pixels are uint8 [H, W] or [H, W, 3], not {self.pixels.dtype} {list(shape)}")
        if self.alpha is not None and (self.alpha.dtype != np.uint8 or self.alpha.shape != shape[:2]):
            raise ConfigError("alpha is uint8 of the picture's height and width")

    def metadata(self) -> dict[int, bytes]:
        """What travels with the pixels, by kind of section."""
        boxes = {
            bitstream.ICC: self.icc,
            bitstream.EXIF: self.exif,
            bitstream.XMP: self.xmp,
            bitstream.JPEG_SEGMENTS: self.jpeg_segments,
            bitstream.PNG_CHUNKS: self.png_chunks,
        }
        return {kind: data for kind, data in boxes.items() if data is not None}

    def interleaved(self) -> NDArray[np.uint8]:
        """Colour and alpha together: `[H, W]` grey, or `[H, W, C]` with C of 2 (grey, alpha), 3 (RGB) or 4 (RGB, alpha)."""
        if self.alpha is None:
            return np.ascontiguousarray(self.pixels)
        return np.ascontiguousarray(np.dstack([self.pixels, self.alpha]))

    def content(self) -> bytes:
        """Bytes whose SHA-256 names the decoded picture: pixels row by row, then alpha if there is any."""
        return self.pixels.tobytes() + (b"" if self.alpha is None else self.alpha.tobytes())
