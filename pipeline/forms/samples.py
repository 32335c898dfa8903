"""Samples of a picture and what travels with them, from files and back into PNG: 8 and 16 bits, grey or RGB, with or without alpha."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from msinn_core.picture import Picture
from pipeline.formats import images
from pipeline.formats.images import ImageInfo
from pipeline.formats.metadata import carried, insert_chunks, ppm_header, restored_chunks
from pipeline.formats.outcome import Reason
from pipeline.formats.segments import png_chunk
from pipeline.forms.libraries import imagecodecs

METADATA = ("icc", "exif", "xmp", "jpeg_segments", "png_chunks")
"""What travels with the samples, as `Picture` has it."""


@dataclass(frozen=True, kw_only=True)
class Samples:
    """As `Picture`, of 8 or 16 bits.

    Attributes:
        pixels: uint8 or uint16 `[H, W]` (grey) or `[H, W, 3]` (RGB).
        alpha: Of the same type `[H, W]`, or None.
        icc: And the others: see `Picture`.
    """

    pixels: NDArray[np.uint8] | NDArray[np.uint16]
    alpha: NDArray[np.uint8] | NDArray[np.uint16] | None = None
    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    jpeg_segments: bytes | None = None
    png_chunks: bytes | None = None

    @property
    def metadata(self) -> dict[str, bytes]:
        """What there is of it, by name."""
        return {name: data for name in METADATA if (data := getattr(self, name)) is not None}

    @property
    def planes(self) -> NDArray[np.uint8] | NDArray[np.uint16]:
        """`[H, W]` or `[H, W, C]`, alpha last."""
        if self.alpha is None:
            return self.pixels
        colour = self.pixels if self.pixels.ndim == 3 else self.pixels[:, :, None]
        found: NDArray[np.uint8] | NDArray[np.uint16] = np.concatenate([colour, self.alpha[:, :, None]], axis=2)
        return found

    def content(self) -> bytes:
        """Bytes whose SHA-256 names the samples: row by row, little-endian, then alpha if there is any."""
        kind = self.pixels.dtype.newbyteorder("<")
        parts = [self.pixels] if self.alpha is None else [self.pixels, self.alpha]
        return b"".join(np.ascontiguousarray(part).astype(kind, copy=False).tobytes() for part in parts)

    @classmethod
    def of_planes(cls, planes: NDArray[np.uint8] | NDArray[np.uint16], metadata: dict[str, bytes]) -> Samples:
        """The inverse of `planes`. Raises `ValueError` for what is no picture of ours."""
        depth = planes.shape[2] if planes.ndim == 3 else 1
        if planes.dtype not in (np.uint8, np.uint16) or planes.ndim not in (2, 3) or depth not in (1, 2, 3, 4):
            raise ValueError(f"samples are {planes.dtype} {list(planes.shape)}")
        planes = planes[:, :, None] if planes.ndim == 2 else planes
        colour = planes[:, :, : 3 if depth > 2 else 1]
        pixels = np.ascontiguousarray(colour if depth > 2 else colour[:, :, 0])
        return cls(pixels=pixels, alpha=np.ascontiguousarray(planes[:, :, -1]) if depth in (2, 4) else None, **metadata)

    @classmethod
    def of_picture(cls, picture: Picture) -> Samples:
        """Those of a picture of 8 bits."""
        return cls(pixels=picture.pixels, alpha=picture.alpha, **{name: getattr(picture, name) for name in METADATA})

    def picture(self) -> Picture:
        """As a picture. Raises `ConfigError` for 16 bits."""
        return Picture(pixels=self.pixels, alpha=self.alpha, **self.metadata)  # type: ignore[arg-type]


class NotSampledError(Exception):
    """A file's samples cannot be had exactly: a sentence."""


def load(data: bytes, *, max_pixels: int, name: str = "", on_header: Callable[[ImageInfo], None] | None = None) -> Samples:
    """The samples of a file, with everything that it holds beside them.

    Args:
        data: The file.
        max_pixels: Images above are not decoded.
        name: Of the file.
        on_header: Called before the pixels are decoded.

    Raises:
        NotSampledError: It is damaged, animated, of samples that JPEG XL and PNG have not, over a limit, or holds what could not travel along.
    """
    found = images.load(data, max_pixels=max_pixels, name=name, on_header=on_header)
    if found.picture is not None:
        # Pillow spreads grey of fewer bits over 8: the same look, but other samples.
        if (found.info.bit_depth or 8) < 8 and found.picture.pixels.ndim == 2:
            raise NotSampledError(f"{found.info.bit_depth} bits per sample")
        return Samples.of_picture(found.picture)
    if found.reason not in (Reason.DEEP, Reason.PALETTE_ALPHA):
        raise NotSampledError(found.message or str(found.reason))
    try:
        return _beyond(data, found.info, found.reason, on_header)
    except NotSampledError:
        raise
    except Exception as error:  # as in `images.load`: decoders raise every kind for hostile bytes
        raise NotSampledError(f"{type(error).__name__}: {error}"[:300]) from error


def _beyond(data: bytes, info: ImageInfo, reason: Reason, on_header: Callable[[ImageInfo], None] | None) -> Samples:
    """Of a file that the network cannot code; its size was found to be allowed before its kind was looked at."""
    if reason == Reason.DEEP and info.bit_depth != 16:
        raise NotSampledError(f"{info.bit_depth} bits per sample")
    if on_header is not None:
        on_header(info)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of odd metadata
        with images.opened(data) as image:
            if reason == Reason.DEEP and image.format == "TIFF" and not images.plain_tiff(image):
                raise NotSampledError("a TIFF with EXIF, GPS, sub-images, raw data, an orientation or unusual samples")
            image.load()
            # Of a PPM, whose end is known by samples of one byte, `_deep` looks itself.
            if image.format != "PPM" and not images.ends_cleanly(image, data):
                raise NotSampledError("the file goes on after the end of the image")
            found = carried(image, data)
            if found.second_image is not None or found.uncarried is not None:
                raise NotSampledError(found.second_image or found.uncarried or "")
            planes = np.asarray(image.convert("RGBA")) if reason == Reason.PALETTE_ALPHA else _deep(image, data)
    metadata = {
        "icc": found.icc, "exif": found.exif, "xmp": found.xmp, "jpeg_segments": found.segments, "png_chunks": found.chunks,
    }  # fmt: skip
    if sum(len(part) for part in metadata.values() if part is not None) > images.MAX_METADATA_BYTES:
        raise NotSampledError(f"more than {images.MAX_METADATA_BYTES} bytes of metadata")
    return Samples.of_planes(planes, {name: part for name, part in metadata.items() if part is not None})


def _deep(image: Image.Image, data: bytes) -> NDArray[np.uint16]:
    """Samples of 16 bits, which Pillow narrows to 8 in silence in all but grey pictures."""
    if image.format == "PNG":
        if b"tRNS" in data[: data.find(b"IDAT") + 1]:
            raise NotSampledError("a colour of 16 bits is marked as transparent")
        planes = imagecodecs().png_decode(data)
    elif image.format == "TIFF":
        if image.tag_v2.get(262) not in (1, 2):  # type: ignore[attr-defined]
            raise NotSampledError("a TIFF that is neither grey (black is zero) nor RGB")
        planes = imagecodecs().tiff_decode(data)
        if planes.ndim == 3 and planes.shape[2] not in (1, 3):
            raise NotSampledError("a TIFF of 16 bits with more than grey or RGB")
    elif image.format == "PPM" and data[:2] in (b"P5", b"P6"):
        bands = 1 if data[:2] == b"P5" else 3
        start = ppm_header(data, 3)[0] + 1
        if data[:start].split()[-1:] != [b"65535"] or len(data) - start != 2 * image.width * image.height * bands:
            raise NotSampledError("a PPM of neither 8 nor 16 bits per sample, or that goes on after its end")
        planes = np.frombuffer(data[start:], ">u2").astype(np.uint16).reshape(image.height, image.width, bands)
    else:
        raise NotSampledError(f"{image.format} with 16 bits per sample")
    if planes.dtype != np.uint16 or planes.shape[:2] != (image.height, image.width):
        raise NotSampledError(f"{image.format} of another shape than its header says")
    return np.asarray(planes, np.uint16)


def to_png(samples: Samples) -> bytes:
    """A PNG of exactly these samples, and all metadata that a PNG can hold."""
    if samples.pixels.dtype == np.uint8:
        return images.to_png(samples.picture())
    chunks = []
    if samples.icc is not None:
        chunks.append(png_chunk(b"iCCP", b"ICC Profile\0\0" + zlib.compress(samples.icc)))
    if samples.exif is not None:
        chunks.append(png_chunk(b"eXIf", samples.exif.removeprefix(b"Exif\0\0")))
    if samples.xmp is not None:
        chunks.append(png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + samples.xmp))
    return insert_chunks(_deep_png(samples.planes), [*chunks, *restored_chunks(samples.jpeg_segments, samples.png_chunks)])


def _deep_png(planes: NDArray[np.uint8] | NDArray[np.uint16]) -> bytes:
    """A PNG of 16 bits per sample: each row as its difference to the one above, in zlib. Pillow writes grey of 16 bits only."""
    height, width = planes.shape[:2]
    depth = planes.shape[2] if planes.ndim == 3 else 1
    rows = np.ascontiguousarray(planes).astype(">u2").view(np.uint8).reshape(height, -1)
    filtered = np.full((height, rows.shape[1] + 1), 2, np.uint8)
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[depth], 0, 0, 0)
    out = io.BytesIO()
    out.write(b"\x89PNG\r\n\x1a\n")
    for kind, content in ((b"IHDR", header), (b"IDAT", zlib.compress(filtered.tobytes(), 1)), (b"IEND", b"")):
        out.write(png_chunk(kind, content))
    return out.getvalue()


def png_holds(png: bytes, width: int, height: int, content_sha256: str, sha256: Callable[[bytes], str]) -> bool:
    """Whether a PNG that a restore left holds samples of this size and hash.

    Args:
        png: The file.
        width: Of the picture, `height` likewise: nothing of another size is decoded.
        content_sha256: Of `Samples.content`.
        sha256: Hashes.
    """
    try:
        with images.opened(png, formats=("PNG",)) as image:
            if (image.width, image.height) != (width, height):
                return False
        return sha256(load(png, max_pixels=width * height).content()) == content_sha256
    except Exception:  # whatever is there, it is not that picture
        return False
