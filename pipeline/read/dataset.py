"""An archive as a PyTorch dataset: any picture at any time, reading its bytes only.

>>> from torch.utils.data import DataLoader
>>> pictures = ArchiveDataset("archive", where="width >= 64 AND psnr_db > 30", transform=lambda image: image.size)
>>> sorted(pictures[0])
['image', 'key', 'name']
>>> loader = DataLoader(pictures, batch_size=64, shuffle=True)  # num_workers=8: each opens the archive itself
>>> sum(len(batch["name"]) for batch in loader) == len(pictures)
True
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pyarrow.compute as pc
from PIL import Image
from torch.utils.data import Dataset
from torch.utils.data._utils.collate import default_collate_fn_map

from pipeline.archive.archive import Archive
from pipeline.archive.layout import sha256
from pipeline.archive.row import Row
from pipeline.errors import ManifestError
from pipeline.formats import images
from pipeline.formats.records import rows_of
from pipeline.limits import DEFAULT, Limits
from pipeline.read.audit import select
from pipeline.read.decoder import Decoder, check_payload, read_part
from pipeline.read.rows import COLUMNS, usable


class Sidecars(dict[str, bytes]):
    """Sidecars of one image by name. A `DataLoader` makes a list of them, one for each image of a batch."""


def _collate_sidecars(batch: list[Sidecars], *, collate_fn_map: Any = None) -> list[Sidecars]:
    return batch


default_collate_fn_map[Sidecars] = _collate_sidecars


class ArchiveDataset(Dataset[dict[str, Any]]):
    """Random access to the images of an archive, in archive order; files that are no readable images, or of which nothing is stored, are left out.

    Works in the processes of a `DataLoader`, forked or spawned: each opens the store and loads the model when it first needs them.

    Args:
        url: The archive.
        where: SQL condition over the manifest, e.g. `psnr_db > 34`.
        transform: Applied to each Pillow image: mode L, LA, RGB or RGBA with EXIF and ICC profile in `info` if it was coded, whatever the file
            holds if it was kept.
        sidecars: Whether to read the images' sidecars too.
        limits: What is decoded at most.

    Raises:
        ManifestError: There is no archive, or its books are damaged (`restore` gives back what is left).
        UsageError: The condition is not SQL.
    """

    def __init__(
        self,
        url: str,
        *,
        where: str | None = None,
        transform: Callable[[Image.Image], Any] | None = None,
        sidecars: bool = False,
        limits: Limits = DEFAULT,
    ) -> None:
        archive = Archive(url)
        self.url = archive.store.url
        self.transform = transform
        self.sidecars = sidecars
        self.limits = limits
        table, _ = usable(archive.manifest(COLUMNS) if where is None else select(archive.manifest(), where).select(COLUMNS), url)
        whole = pc.and_(pc.is_valid(table.column("codec")), pc.is_valid(table.column("pixels")))
        self._rows = table.filter(pc.and_(whole, pc.not_equal(table.column("status"), "failed"))).combine_chunks()
        self._opened: tuple[int, Archive, Decoder] | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """`key`, `name`, `image` (transformed), and `sidecars` (name to bytes) if asked for.

        Raises:
            IndexError: Out of range.
            ManifestError: Its bytes are lost or damaged, or it is larger than the limits.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"{index} of {len(self)} images")
        row = next(rows_of(Row, self._rows.slice(index % len(self), 1)))
        archive, decoder = self._open()
        payload = read_part(archive, row, row.offset, row.length, self.limits)
        if row.codec == "msinn":
            picture, problem = decoder.picture(row, payload)
            if problem is not None:
                raise ManifestError(problem)
            image = images.to_image(picture)
            image.info |= {name: value for name, value in (("exif", picture.exif), ("icc_profile", picture.icc)) if value is not None}
        else:
            check_payload(row, payload)
            image = images.opened(payload)
            if image.width * image.height > self.limits.max_pixels:
                raise ManifestError(f"{row.name}: {image.width} x {image.height} pixels are over the limit of {self.limits.max_pixels}")
        sample: dict[str, Any] = {"key": row.key, "name": row.name, "image": image if self.transform is None else self.transform(image)}
        if self.sidecars:
            sample["sidecars"] = Sidecars()
            for side in row.sidecars:
                data = read_part(archive, row, side.offset, side.length, self.limits)
                if sha256(data) != side.sha256:
                    raise ManifestError(f"{side.name}: its bytes in {row.shard_key} are damaged")
                sample["sidecars"][side.name] = data
        return sample

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def _open(self) -> tuple[Archive, Decoder]:
        # A forked process must not use its parent's connections.
        if self._opened is None or self._opened[0] != os.getpid():
            archive = Archive(self.url)
            self._opened = (os.getpid(), archive, Decoder(archive, self.limits))
        return self._opened[1], self._opened[2]
