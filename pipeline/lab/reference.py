"""Reference files: curves of codecs that were measured elsewhere, and the digests of the pictures they were measured on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UsageError
from pipeline.lab.peers import Pixels

Curve = list[tuple[float, float]]


def pixels_digest(pixels: Pixels) -> str:
    """SHA-256, in hexadecimal, of `(H, W, 3)` as text and the samples in order: of the picture, whatever file holds it."""
    return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()


@dataclass(frozen=True, slots=True)
class Reference:
    """A reference file.

    Attributes:
        path: Of the file.
        curves: bpp and PSNR (dB, RGB) by codec.
        pictures: `pixels_digest` by file name; empty if the file does not say.
    """

    path: Path
    curves: dict[str, Curve]
    pictures: dict[str, str]

    def check(self, source: str, pictures: Iterable[tuple[str, Pixels]]) -> None:
        """Make sure that a source holds the pictures of the curves, all of them and no others; their names may differ.

        Args:
            source: As the user named it.
            pictures: Its names and pixels.

        Raises:
            UsageError: It holds others.
        """
        wanted = set(self.pictures.values())
        given: set[str] = set()
        others = []
        for name, pixels in pictures:
            digest = pixels_digest(pixels)
            if digest not in wanted or digest in given:
                others.append(name)
            given.add(digest)
        missing = [name for name, digest in self.pictures.items() if digest not in given]
        parts = [
            f"lacks {len(missing)} of the {len(self.pictures)} pictures ({missing[0]} for one)" if missing else "",
            f"holds {len(others)} other{'s' if len(others) > 1 else ''} ({others[0]} for one)" if others else "",
        ]
        if said := " and ".join(part for part in parts if part):
            raise UsageError(
                f"{source} {said}: the curves of {self.path} were measured on other images and say nothing about these; "
                "give that set of images whole, or leave out --reference"
            )


def read_reference(path: Path) -> Reference:
    """A reference file: `{"codecs": {name: {"bpp": [...], "psnr_rgb": [...]}}, "pixels_sha256": {file name: digest}}`; the digests may be absent.

    Raises:
        UsageError: Unreadable, or of another form.
    """
    try:
        content = json.loads(path.read_text())
        curves = {
            name: [(float(b), float(p)) for b, p in zip(curve["bpp"], curve["psnr_rgb"], strict=True)] for name, curve in content["codecs"].items()
        }
        pictures = {str(name): str(digest) for name, digest in content.get("pixels_sha256", {}).items()}
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path} is no file of reference curves: {error}") from error
    return Reference(path, curves, pictures)
