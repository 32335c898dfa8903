"""What a form is: a way to store one image, with a promise of what comes back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from pipeline.formats.images import ImageInfo
from pipeline.forms.samples import Samples


class Exact(StrEnum):
    """What of an image a form gives back exactly."""

    BYTES = "bytes"
    """The file itself, byte for byte."""
    PIXELS = "pixels"
    """Every sample, with colour profile and metadata, in a file of another format."""
    NO = "no"
    """A picture as near as its rate bought, and all metadata."""


class Refusal(Exception):  # noqa: N818  (it is no error: another form is taken)
    """A form does not take this file, or what is stored in it cannot be read: a sentence."""


class TooLargeRefusal(Refusal):
    """A picture over the limit of pixels.

    Attributes:
        pixels: Of it.
    """

    def __init__(self, width: int, height: int, max_pixels: int) -> None:
        super().__init__(f"{width} x {height} pixels are over the limit of {max_pixels}")
        self.pixels = width * height

    def __reduce__(self) -> tuple[object, ...]:
        return _refused, (str(self), self.pixels)


def _refused(text: str, pixels: int) -> TooLargeRefusal:
    made = TooLargeRefusal.__new__(TooLargeRefusal, text)
    made.args, made.pixels = (text,), pixels
    return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What reading may take.

    Attributes:
        max_pixels: Of a picture.
        max_file_bytes: Of what comes back.
        on_header: Told the picture's size before it is decoded: what goes on gets time by it.
    """

    max_pixels: int
    max_file_bytes: int
    on_header: Callable[[ImageInfo], None] | None = None

    def allow(self, width: int, height: int) -> None:
        """A picture of this size is about to be decoded. Raises `TooLargeRefusal`."""
        if width * height > self.max_pixels:
            raise TooLargeRefusal(width, height, self.max_pixels)
        if self.on_header is not None:
            self.on_header(ImageInfo(width=width, height=height))


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """An image in a form.

    Attributes:
        form: Name of the form; `exact`: its promise.
        codec: What decodes `data`: see `family`.
        data: What the shard holds.
        writer: Library and version.
        recon_sha256: Of the samples, where those are what it gives back.
    """

    form: str
    exact: Exact
    codec: str
    data: bytes
    writer: str
    recon_sha256: str | None = None


class Decodes(Protocol):
    """What gives back a payload without a model."""

    def decode(self, codec: str, payload: bytes, bounds: Bounds) -> bytes | Samples:
        """What is stored, given back.

        Raises:
            Refusal: Damaged, or over a bound.
            AbsentError: There is no library.
        """


class Form(Decodes, Protocol):
    """A way to store an image exactly. What the network codes is one too, but needs a model: see `msinn`."""

    name: str
    exact: Exact
    codecs: tuple[str, ...]

    def takes(self, data: bytes, name: str) -> bool:
        """Whether it is for a file like this, by its first bytes and name."""

    def missing(self) -> list[str]:
        """A sentence for each library that it could use and that is not installed here."""

    def encode(self, data: bytes, name: str, bounds: Bounds) -> Stored:
        """The file in this form, decoded again and compared.

        Raises:
            Refusal: It cannot be had of this file, or does not come back exactly.
            AbsentError: There is no library.
        """

    def cost(self, data: bytes, name: str, bounds: Bounds) -> int | None:
        """About as many bytes as `encode` would give, by a quick real encoding that is not compared; None if it is not for this file."""
