"""Rows of an archive as samples to learn from: what random access and streams share."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image
from torch.utils.data._utils.collate import default_collate_fn_map

from msinn_core.picture import Picture
from pipeline.archive.archive import Archive
from pipeline.archive.conversion import checked_scale
from pipeline.archive.layout import sha256
from pipeline.archive.row import Row
from pipeline.errors import ManifestError
from pipeline.formats import images
from pipeline.formats.records import rows_of
from pipeline.forms import samples
from pipeline.forms.family import WITH_LOSS
from pipeline.forms.samples import Samples
from pipeline.limits import DEFAULT, Limits
from pipeline.read.audit import select
from pipeline.read.decoder import Decoder, read_part
from pipeline.read.ranges import Blocks
from pipeline.read.reduced import NoPictureError, Part, Reduced
from pipeline.read.rows import COLUMNS, usable
from pipeline.store.options import use_options


class Sidecars(dict[str, bytes]):
    """Sidecars of one image by name. A `DataLoader` makes a list of them, one for each image of a batch."""


def _collate_sidecars(batch: list[Sidecars], *, collate_fn_map: Any = None) -> list[Sidecars]:
    return batch


default_collate_fn_map[Sidecars] = _collate_sidecars


class Stored(NamedTuple):
    """What is stored of an image (for a smaller picture, the part that this takes), and of its sidecars if they are wanted."""

    row: Row
    payload: bytes | Part
    sidecars: Sidecars | None


def pictures(archive: Archive, where: str | None) -> pa.Table:
    """Rows of `COLUMNS` of all images that can be decoded, in archive order; files that are none, or of which nothing is stored, are left out.

    Raises:
        ManifestError: The archive's books are damaged.
        UsageError: The condition is not SQL.
    """
    found = archive.manifest(COLUMNS) if where is None else select(archive.manifest(), where).select(COLUMNS)
    table, _ = usable(found, archive.store.url)
    whole = pc.and_(pc.is_valid(table.column("codec")), pc.is_valid(table.column("pixels")))
    return table.filter(pc.and_(whole, pc.not_equal(table.column("status"), "failed"))).combine_chunks()


@dataclass
class _Opened:
    process: int
    archive: Archive
    decoder: Decoder
    blocks: Blocks
    reduced: Reduced


class Reader:
    """Makes samples of rows. May travel to other processes: each opens the store and loads the model when it first needs them.

    Args:
        url: The archive.
        transform: Applied to each Pillow image.
        sidecars: Whether to read the images' sidecars too.
        limits: What is decoded at most.
        scale: How many times smaller images are given: 1, 2, 4, 8 or 16.
        storage_options: Of the archive's store, for the processes that it travels to.

    Raises:
        UsageError: Another scale.
    """

    def __init__(
        self,
        url: str,
        transform: Callable[[Image.Image], Any] | None,
        sidecars: bool,
        limits: Limits = DEFAULT,
        scale: int = 1,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.url = url
        self.scale = checked_scale(scale)
        self.transform = transform
        self.sidecars = sidecars
        self.limits = limits
        self.storage_options = storage_options
        self._opened: _Opened | None = None

    def sample(self, table: pa.Table, index: int) -> dict[str, Any]:
        """`key`, `name`, `image` (transformed), and `sidecars` (name to bytes) if asked for, of a row. Raises as `read` and `finished`."""
        return self.finished(self.read(next(rows_of(Row, table.slice(index, 1)))))

    def read(self, row: Row) -> Stored:
        """The bytes of a row, by blocks of its shard. Safe to call from several threads.

        Raises:
            ManifestError: They are lost, or a sidecar is damaged.
            StorageError: The store cannot be read.
        """
        opened = self.open()
        payload: bytes | Part
        if self.scale > 1:
            payload = opened.reduced.read(row, via=opened.blocks.read_range)
        else:
            payload = read_part(opened.archive, row, row.offset, row.length, self.limits, via=opened.blocks.read_range)
        if not self.sidecars:
            return Stored(row, payload, None)
        found = Sidecars()
        for side in row.sidecars:
            data = read_part(opened.archive, row, side.offset, side.length, self.limits, via=opened.blocks.read_range)
            if sha256(data) != side.sha256:
                raise ManifestError(f"{side.name}: its bytes in {row.shard_key} are damaged")
            found[side.name] = data
        return Stored(row, payload, found)

    def finished(self, stored: Stored) -> dict[str, Any]:
        """The sample of what was read.

        Raises:
            ManifestError: Its bytes are damaged, or it is larger than the limits.
            CodecError: It does not decode.
        """
        image, row = self._image(stored.row, stored.payload), stored.row
        sample: dict[str, Any] = {"key": row.key, "name": row.name, "image": image if self.transform is None else self.transform(image)}
        return sample if stored.sidecars is None else sample | {"sidecars": stored.sidecars}

    def _image(self, row: Row, payload: bytes | Part) -> Image.Image:
        if isinstance(payload, Part):
            return self._smaller(row, payload)
        decoder = self.open().decoder
        if row.codec in WITH_LOSS:
            picture, problem = decoder.picture(row, payload)
            if problem is not None:
                raise ManifestError(problem)
            return _imaged(picture)
        return self._opened_file(row, decoder.exact(row, payload))

    def _smaller(self, row: Row, part: Part) -> Image.Image:
        try:
            found, problem = self.open().reduced.picture(row, part)
        except NoPictureError:
            # What the archive never made a picture of Pillow may know all the same: as at full size it is given as Pillow has it.
            kept = self._opened_file(row, part.data)
            return (kept.convert("RGBA" if "transparency" in kept.info else "RGB") if kept.mode in ("1", "P", "PA") else kept).reduce(self.scale)
        if problem is not None:
            raise ManifestError(problem)
        return _imaged(found) if isinstance(found, Picture) else self._opened_file(row, found)

    def _opened_file(self, row: Row, found: bytes | Samples) -> Image.Image:
        # As Pillow has files of 16 bits: of colours it keeps the upper 8.
        kept: Image.Image = images.opened(found if isinstance(found, bytes) else samples.to_png(found))
        if kept.width * kept.height > self.limits.max_pixels:
            raise ManifestError(f"{row.name}: {kept.width} x {kept.height} pixels are over the limit of {self.limits.max_pixels}")
        return kept

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def open(self) -> _Opened:
        """Archive and decoder of this process: a forked one must not use its parent's connections."""
        if self._opened is None or self._opened.process != os.getpid():
            use_options(self.url, self.storage_options)
            archive = Archive(self.url)
            decoder = Decoder(archive, self.limits)
            self._opened = _Opened(os.getpid(), archive, decoder, Blocks(archive.store), Reduced(archive, decoder, self.scale, self.limits))
        return self._opened


def _imaged(picture: Picture) -> Image.Image:
    image = images.to_image(picture)
    image.info |= {name: value for name, value in (("exif", picture.exif), ("icc_profile", picture.icc)) if value is not None}
    return image
