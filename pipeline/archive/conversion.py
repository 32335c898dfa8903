"""Images restored in a format that was asked for, in place of what their form gives back.

What a file is called and whether it is converted follows from its row alone, so that a restore that goes on, and the table of names, say the same:

```
--as original:      what comes back to the byte; nothing else is written, and that is said
--as png, jpeg ...: a file that is of this format already, and comes back to the byte: itself
                    a picture, coded or exact:                                          converted
                    one that the format cannot hold (alpha or 16 bits in JPEG ...):     PNG
                    what no picture was ever made of (animations, CMYK, text):          itself
```
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from typing import Any

from PIL import Image

from msinn_core.heads import SCALES
from msinn_core.picture import Picture
from pipeline.archive.row import Row
from pipeline.errors import ManifestError, UsageError
from pipeline.formats import images
from pipeline.formats.decoding import Loader
from pipeline.formats.outcome import Reason
from pipeline.forms import jxl, samples
from pipeline.forms.libraries import AbsentError
from pipeline.forms.samples import Samples

FORMATS = ("png", "jpeg", "webp", "avif", "jxl", "original")

DEFAULT_QUALITY = 95

_SUFFIXES = {"png": ".png", "jpeg": ".jpg", "webp": ".webp", "avif": ".avif", "jxl": ".jxl"}

_LOADED = frozenset((None, Reason.NOT_SMALLER, Reason.LOSSLESS, Reason.PLANNED, Reason.QUALITY_UNREACHABLE, Reason.CODEC_FAILED))
"""Why files are kept that were pictures of 8 bits when the archive was made."""

_DEEP = frozenset(("png", "jxl"))
"""Formats that hold 16 bits per sample."""


@dataclass(frozen=True, slots=True)
class Conversion:
    """What a restore writes.

    Attributes:
        format: One of `FORMATS`.
        quality: 1 to 100, of what loses something; None: `DEFAULT_QUALITY`, and JPEG XL without loss.
        scale: How many times smaller pictures are written, each way, rounded up: 2, 4, 8 or 16; 1: as they are.

    Raises:
        UsageError: Another value, or a quality of what has none.
    """

    format: str
    quality: int | None = None
    scale: int = 1

    def __post_init__(self) -> None:
        checked_scale(self.scale)
        if self.format not in FORMATS:
            raise UsageError(f"no format {self.format!r} to restore in; there are {', '.join(FORMATS)}")
        if self.quality is not None and (self.format in ("png", "original") or not 1 <= self.quality <= 100):
            raise UsageError(f"--quality takes 1 to 100, with --as jpeg, webp, avif or jxl: it is {self.quality}, with {self.format}")

        if self.scale > 1 and self.format == "original":
            raise UsageError("--scale makes smaller pictures, and --as original gives files to the byte: leave one of them out")

    def leaves_out(self, row: Row) -> bool:
        """Whether nothing of it is written."""
        return self.format == "original" and row.codec is not None and row.exact != "bytes"

    def format_of(self, row: Row) -> str | None:
        """In which format a row's picture is written; None: as the file that its form gives back."""
        if self.format == "original" or row.codec is None:
            return None
        if row.exact == "bytes" and ((row.source_format == self.format and self.scale == 1) or not row.pixels or _reason(row) not in _LOADED):
            return None
        deep = (row.bit_depth or 8) > 8
        alpha = row.channels in (2, 4) or _reason(row) == Reason.PALETTE_ALPHA
        return "png" if (deep and self.format not in _DEEP) or (alpha and self.format == "jpeg") else self.format

    def is_lossless(self, row: Row) -> bool:
        """Whether what is written has every sample of the source."""
        wanted = self.format_of(row)
        return (
            bool(row.lossless)
            and (wanted is None or self.scale == 1)
            and (wanted in (None, "png") or (wanted == "jxl" and self.quality in (None, 100)))
        )

    def name_of(self, row: Row) -> str:
        """What it is called: as the source, with the ending of its format."""
        wanted = self.format_of(row)
        return row.restore_name if wanted is None else os.path.splitext(row.restore_name)[0] + _SUFFIXES[wanted]

    def file_of(self, row: Row, found: bytes | Samples | Picture, loader: Loader) -> bytes:
        """The file that is written.

        Args:
            row: Of the manifest.
            found: What its form gives back, or the smaller picture that `scale` asks for.
            loader: Decodes image files.

        Raises:
            ManifestError: It is no picture, or the library for the format is not installed here.
        """
        wanted = self.format_of(row)
        if isinstance(found, bytes):
            if wanted is None:
                return found
            loaded = loader.load(found, name=row.name)
            if loaded.picture is None:
                raise ManifestError(f"{row.name} cannot be converted ({loaded.message or loaded.reason}): --as original gives the file itself")
            found = loaded.picture
        try:
            return encoded(found if isinstance(found, Samples) else Samples.of_picture(found), wanted or "png", self.quality)
        except AbsentError as error:
            raise ManifestError(f"{row.name}: {error}") from error
        except (OSError, ValueError) as error:
            raise ManifestError(f"{row.name} cannot be written as {wanted}: {error}") from error


def checked_scale(scale: int) -> int:
    """A scale, as it is. Raises `UsageError` for one that no picture can be had at."""
    if scale not in (1, *SCALES):
        raise UsageError(f"--scale takes {', '.join(map(str, SCALES[:-1]))} or {SCALES[-1]}, how many times smaller each way: it is {scale}")
    return scale


def _reason(row: Row) -> Reason | None:
    return None if row.error_code is None else Reason.named(row.error_code)


def encoded(found: Samples, wanted: str, quality: int | None) -> bytes:
    """Samples in a format, with colour profile, EXIF and XMP.

    Args:
        found: Of 8 bits, or of 16 where the format has them.
        wanted: `png`, `jpeg`, `webp`, `avif` or `jxl`.
        quality: See `Conversion`.
    """
    if wanted == "png":
        return samples.to_png(found)
    if wanted == "jxl":
        return jxl.for_any_viewer(found.planes, found.metadata, quality)
    options: dict[str, Any] = {"quality": quality or DEFAULT_QUALITY}
    if wanted == "jpeg" and options["quality"] >= 90:
        options["subsampling"] = 0
    options |= {name: data for name, data in (("icc_profile", found.icc), ("exif", found.exif), ("xmp", found.xmp)) if data is not None}
    out = io.BytesIO()
    picture: Image.Image = images.to_image(found.picture())
    if picture.mode == "LA" and wanted in ("webp", "avif"):
        picture = picture.convert("RGBA")
    picture.save(out, wanted.upper(), **options)
    return out.getvalue()
