"""Bytes to pixels and metadata, and back. What the codec can keep faithfully is coded; everything else is named with a reason and passed through."""

from __future__ import annotations

import io
import re
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from msinn_core.picture import Picture
from pipeline.formats.metadata import Carried, carried, insert_chunks, picture_end, restored_chunks
from pipeline.formats.outcome import Reason
from pipeline.formats.segments import jpeg_metadata_bytes

IMAGE_SUFFIXES = frozenset(
    (
        *("jpg", "jpeg", "jpe", "jfif", "png", "webp", "avif", "bmp", "dib", "gif", "tif", "tiff", "jp2", "j2k", "jpx"),
        *("ppm", "pgm", "pbm", "pnm", "tga", "heic", "heif", "jxl", "ico", "psd", "dng"),
    )
)

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "BMP", "GIF", "JPEG2000", "PPM", "TIFF")
"""What is decoded at all. Pillow reads many more, but shows only a preview, one layer or one size of some of them."""

_DECODED_SUFFIXES = frozenset(
    ("jpg", "jpeg", "jpe", "jfif", "png", "webp", "avif", "bmp", "dib", "gif", "jp2", "j2k", "jpx", "ppm", "pgm", "pbm", "pnm")
)

MAX_METADATA_BYTES = 1 << 24


@dataclass(frozen=True, kw_only=True)
class ImageInfo:
    """What is known of one file. `width`, `height` and the rest are None where the file does not say."""

    format: str | None = None
    width: int | None = None
    height: int | None = None
    channels: int | None = None
    bit_depth: int | None = None
    orientation: int | None = None

    def __post_init__(self) -> None:
        # A header may claim anything; the columns of analysis and manifest hold 32 and 8 bits.
        for name, most in (("width", 2**31 - 1), ("height", 2**31 - 1), ("channels", 127), ("bit_depth", 127), ("orientation", 8)):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= most:
                object.__setattr__(self, name, None)

    @property
    def pixels(self) -> int | None:
        """Width times height."""
        return None if self.width is None or self.height is None else self.width * self.height


@dataclass(frozen=True, kw_only=True)
class LoadedImage:
    """A file after `load`: either a picture to code, or a reason to pass it through."""

    info: ImageInfo
    picture: Picture | None = None
    reason: Reason | None = None
    message: str | None = None
    carried: Carried = field(default_factory=Carried)


_GUARD = threading.Lock()


def opened(data: bytes, *, formats: tuple[str, ...] = FORMATS) -> Image.Image:
    """An image file of one of these formats, of which only the header has been read. Whoever goes on checks its size first.

    Raises:
        UnidentifiedImageError: It is of no such format.
    """
    # Without this Pillow knows only its five commonest formats when `formats` is given.
    Image.init()
    # Pillow's guard against large pictures is a setting of the whole process, and ours is another: off for as long as a header is read.
    with _GUARD:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(io.BytesIO(data), formats=formats)
        finally:
            Image.MAX_IMAGE_PIXELS = before


def load(data: bytes, *, max_pixels: int, name: str = "", on_header: Callable[[ImageInfo], None] | None = None) -> LoadedImage:
    """Decode one file. Never raises for what the file holds; nothing is allocated beyond `max_pixels`.

    Args:
        data: The file.
        max_pixels: Images above are not decoded.
        name: A file that is called an image but is none counts as broken, not as something else.
        on_header: Called before the pixels are decoded.
    """
    info = ImageInfo()
    if jpeg_metadata_bytes(data) > MAX_METADATA_BYTES:
        message = f"more than {MAX_METADATA_BYTES} bytes of metadata"
        return LoadedImage(info=replace(info, format="jpeg"), reason=Reason.METADATA_LIMIT, message=message)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd metadata; the result says what matters
            with opened(data) as image:
                # The order matters: limits before pixels, pixels before EXIF (Pillow decodes a PNG to find its EXIF, and hides its errors).
                info = ImageInfo(
                    format=(image.format or "").lower() or None,
                    width=image.width,
                    height=image.height,
                    channels=len(image.getbands()),
                    bit_depth=_bit_depth(image, data),
                )
                reason = _reason(image, info, data, max_pixels)
                if reason is not None:
                    return LoadedImage(info=info, reason=reason[0], message=reason[1])
                if on_header is not None:
                    on_header(info)
                image.load()
                if not ends_cleanly(image, data):
                    return LoadedImage(info=info, reason=Reason.TRAILING, message="the file goes on after the end of the image")
                info = replace(info, orientation=_orientation(image))
                found = carried(image, data)
                if found.second_image is not None:
                    return LoadedImage(info=info, reason=Reason.SECOND_IMAGE, message=found.second_image, carried=found)
                if found.uncarried is not None:
                    return LoadedImage(info=info, reason=Reason.UNCARRIED, message=found.uncarried, carried=found)
                picture = _picture(image, found)
    except UnidentifiedImageError:
        suffix = name.rpartition(".")[2].lower()
        if suffix in _DECODED_SUFFIXES:
            return LoadedImage(info=info, reason=Reason.BROKEN, message=f"called .{suffix}, but no such format is recognised")
        if suffix in IMAGE_SUFFIXES:
            return LoadedImage(info=info, reason=Reason.UNSUPPORTED, message=f".{suffix} files are not decoded")
        return LoadedImage(info=info, reason=Reason.NOT_AN_IMAGE, message="no image format is recognised")
    except MemoryError:
        return LoadedImage(info=info, reason=Reason.DECODE_LIMIT, message="decoding it takes more memory than its size explains")
    except Exception as error:
        # Image decoders raise every kind of exception for hostile bytes; each means that this file is kept as it is.
        return LoadedImage(info=info, reason=Reason.BROKEN, message=f"{type(error).__name__}: {error}"[:300])
    if sum(map(len, picture.metadata().values())) > MAX_METADATA_BYTES:
        return LoadedImage(info=info, reason=Reason.METADATA_LIMIT, message=f"more than {MAX_METADATA_BYTES} bytes of metadata", carried=found)
    return LoadedImage(info=info, picture=picture, carried=found)


def _orientation(image: Image.Image) -> int | None:
    try:
        value = Image.Image.getexif(image).get(0x0112)
    except Exception:  # damaged EXIF is kept byte for byte; only this one number is unknown
        return None
    return value if isinstance(value, int) and 1 <= value <= 8 else None


def _bit_depth(image: Image.Image, data: bytes) -> int:
    """Bits per sample in the file. Pillow narrows 16-bit PNG, TIFF and PPM and 10-bit AVIF to 8 in silence, so the headers are read here."""
    if image.format == "PNG" and len(data) > 24:
        return data[24]
    if image.format == "AVIF" and (at := data.find(b"av1C")) >= 0 and len(data) > at + 6:
        flags = data[at + 6]
        return (12 if flags & 0x20 else 10) if flags & 0x40 else 8
    if image.format == "JPEG2000" and (at := data.find(b"\xff\x51")) >= 0 and len(data) > at + 40:
        return (data[at + 40] & 0x7F) + 1
    if image.format == "TIFF":
        depths = _tiff_tag(image, 258) or (1,)
        return max(depths) if isinstance(depths, tuple) else int(depths)
    if image.format == "PPM" and data[:2] in (b"P2", b"P3", b"P5", b"P6"):
        tokens = re.sub(rb"#[^\n]*", b"", data[:4096]).split(maxsplit=4)
        return 8 if len(tokens) > 3 and tokens[3] == b"255" else 16
    if image.mode.startswith("I;16"):
        return 16
    return {"I": 32, "F": 32, "1": 1}.get(image.mode, 8)


def _tiff_tag(image: Image.Image, tag: int) -> Any:
    return getattr(image, "tag_v2", {}).get(tag)


def plain_tiff(image: Image.Image) -> bool:
    """Whether Pillow's view of a TIFF is all there is: one full-size upright picture of unsigned samples, no EXIF, GPS, sub-images, raw data."""
    if any(_tiff_tag(image, tag) is not None for tag in (330, 34665, 34853, 50706)):
        return False
    samples = _tiff_tag(image, 339) or 1
    unsigned = all(value == 1 for value in samples) if isinstance(samples, tuple) else samples == 1
    return unsigned and not _tiff_tag(image, 254) and _tiff_tag(image, 274) in (None, 1)


def _reason(image: Image.Image, info: ImageInfo, data: bytes, max_pixels: int) -> tuple[Reason, str] | None:
    if image.width < 1 or image.height < 1:
        return Reason.BROKEN, "the image has no pixels"
    if image.width * image.height > max_pixels or max(image.size) > 65535:
        return Reason.PIXEL_LIMIT, f"{image.width} x {image.height} pixels are over the limit of {max_pixels}"
    # Not `n_frames`: to count 200,000 of them takes minutes.
    if getattr(image, "is_animated", False):
        return Reason.ANIMATED, "several frames"
    if (info.bit_depth or 8) > 8:
        return Reason.DEEP, f"{info.bit_depth} bits per sample"
    if image.format == "TIFF" and not plain_tiff(image):
        return Reason.UNSUPPORTED, "a TIFF with EXIF, GPS, sub-images, raw data, an orientation or unusual samples"
    if image.mode == "P" and ("transparency" in image.info or (image.palette is not None and image.palette.mode != "RGB")):
        return Reason.PALETTE_ALPHA, "palette with transparency"
    if image.mode in ("RGB", "L") and "transparency" in image.info:
        return Reason.PALETTE_ALPHA, "a colour is marked as transparent"
    if image.mode not in ("RGB", "L", "RGBA", "LA", "P"):
        return Reason.MODE, f"mode {image.mode}"
    return None


def ends_cleanly(image: Image.Image, data: bytes) -> bool:
    """Phones append videos and depth maps to JPEGs; nobody wants those dropped in silence."""
    end = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}.get(image.format or "")
    if end is not None and not data.rstrip(b"\0").endswith(end):
        return False
    # Another file of the same kind may follow, and end as this one does.
    position = picture_end(image, data)
    return position is None or not data[position:].strip(b"\0")


def _picture(image: Image.Image, found: Carried) -> Picture:
    alpha = None
    if image.mode == "P":
        image = image.convert("RGB")
    elif image.mode in ("RGBA", "LA"):
        alpha = np.asarray(image.getchannel("A"))
        image = image.convert("RGB" if image.mode == "RGBA" else "L")
    return Picture(
        pixels=np.asarray(image),
        alpha=alpha,
        icc=found.icc,
        exif=found.exif,
        xmp=found.xmp,
        jpeg_segments=found.segments,
        png_chunks=found.chunks,
    )


def to_image(picture: Picture) -> Image.Image:
    """A decoded picture as Pillow has it: mode L, LA, RGB or RGBA."""
    return Image.fromarray(picture.interleaved())


def to_png(picture: Picture) -> bytes:
    """A decoded picture as PNG: exact pixels and alpha, and all metadata that a PNG can hold (`metadata.restored_chunks`)."""
    options: dict[str, Any] = {"compress_level": 1}
    if picture.icc is not None:
        options["icc_profile"] = picture.icc
    if picture.exif is not None:
        options["exif"] = picture.exif
    if picture.xmp is not None:
        chunks = PngInfo()
        # Raw, because a packet need not be valid UTF-8 and must come back byte for byte: keyword, no compression, no language.
        chunks.add(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + picture.xmp)
        options["pnginfo"] = chunks
    out = io.BytesIO()
    to_image(picture).save(out, "PNG", **options)
    return insert_chunks(out.getvalue(), restored_chunks(picture.jpeg_segments, picture.png_chunks))
