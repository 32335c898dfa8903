"""What a restore would write of images: each encoded as it was planned, decoded, and a part of it written in every format that can be asked for."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.archive.conversion import FORMATS, Conversion, encoded
from pipeline.archive.layout import sha256
from pipeline.archive.row import Row
from pipeline.archive.shard import Member
from pipeline.encode.coders import Coders
from pipeline.encode.describe import Describer
from pipeline.encode.exact import ExactForms
from pipeline.encode.item import Item
from pipeline.forms.libraries import AbsentError
from pipeline.forms.samples import Samples

AS_STORED = "as stored"
"""Beside `FORMATS`: what a restore writes that is asked for none."""

_SIDE = 512
"""The middle of a picture up to this side is written in every format and taken for the whole: whole pictures would take as long as coding them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What a restore writes of one image.

    Attributes:
        pixels: Of its picture; 0 if it is none.
        source_bytes: Of its file.
        file_bytes: Of the file that is written, by `FORMATS` and `AS_STORED`; None: it is left out. What cannot be written here is not named.
    """

    pixels: int
    source_bytes: int
    file_bytes: dict[str, int | None]


@dataclass(frozen=True, slots=True)
class Sketch:
    """An image that was encoded, without its pixels.

    Attributes:
        row: As the manifest would have it.
        part: The middle of the picture that its form gives back, without metadata; None if that is no picture.
        metadata_bytes: Of the picture.
    """

    row: Row
    part: Samples | None
    metadata_bytes: int

    def written(self) -> Written:
        """By writing the part in every format."""
        files: dict[str, int | None] = {}
        made: dict[str, int] = {}
        for name in (AS_STORED, *FORMATS):
            conversion = None if name == AS_STORED else Conversion(name)
            if conversion is not None and conversion.leaves_out(self.row):
                files[name] = None
                continue
            if conversion is not None:
                wanted = conversion.format_of(self.row)
            else:
                wanted = None if self.row.exact == "bytes" else "png"
            if wanted is None or self.part is None:
                files[name] = self.row.source_bytes or 0
                continue
            try:
                if wanted not in made:
                    made[wanted] = self._size(self.part, wanted)
                files[name] = made[wanted]
            except (AbsentError, OSError, ValueError, KeyError):  # this machine's Pillow cannot write it, or no picture like this
                continue
        return Written(pixels=self.row.pixels or 0, source_bytes=self.row.source_bytes or 0, file_bytes=files)

    def _size(self, part: Samples, wanted: str) -> int:
        share = part.pixels.shape[0] * part.pixels.shape[1] / max(1, self.row.pixels or 0)
        return round(len(encoded(part, wanted, None)) / min(1.0, share)) + self.metadata_bytes


def sketch(item: Item, coders: Coders, exact: ExactForms, describer: Describer) -> Sketch | None:
    """What is to be known of an item that was encoded, not released, and settled; None of one that could not be read.

    Args:
        item: The item.
        coders: That coded it.
        exact: That gave it its exact form, if it has one.
        describer: Of its task.
    """
    payload = item.payload
    if payload is None:
        return None
    row = describer.row(item, Member("", 0, len(payload), sha256(payload)), ())
    found = _given_back(item, coders, exact)
    if found is None:
        return Sketch(row, None, 0)
    height, width = found.pixels.shape[:2]
    top, left = max(0, (height - _SIDE) // 2), max(0, (width - _SIDE) // 2)
    planes = found.planes[top : top + _SIDE, left : left + _SIDE].copy()
    return Sketch(row, Samples.of_planes(planes, {}), sum(map(len, found.metadata.values())))


def _given_back(item: Item, coders: Coders, exact: ExactForms) -> Samples | None:
    """The picture that comes back of an item; None if that is none, or only a file that no decoder makes a picture of."""
    if item.coded and item.data is not None and item.symbols is not None:
        return Samples.of_picture(coders.decoded(item))
    if item.loaded.picture is not None:
        return Samples.of_picture(item.loaded.picture)
    return exact.samples(item)
