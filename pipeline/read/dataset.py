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

from collections.abc import Callable, Mapping
from typing import Any

from PIL import Image
from torch.utils.data import Dataset

from pipeline.archive.archive import Archive
from pipeline.limits import DEFAULT, Limits
from pipeline.read.reader import Reader, pictures
from pipeline.store.options import use_options


class ArchiveDataset(Dataset[dict[str, Any]]):
    """Random access to the images of an archive, in archive order; files that are no readable images, or of which nothing is stored, are left out.

    Works in the processes of a `DataLoader`, forked or spawned: each opens the store and loads the model when it first needs them.

    Args:
        url: The archive.
        generation: Which one of it; the newest if not given.
        where: SQL condition over the manifest, e.g. `psnr_db > 34`.
        transform: Applied to each Pillow image: mode L, LA, RGB or RGBA with EXIF and ICC profile in `info` if it was coded, whatever the file
            holds if it was kept.
        sidecars: Whether to read the images' sidecars too.
        scale: 2, 4, 8 or 16: images so many times smaller, each way, rounded up; of coded ones only the first bytes are read, and only the coarse
            levels of the network run.
        limits: What is decoded at most.
        storage_options: Settings of the archive's store that its address and the environment do not say, as fsspec takes them.

    Raises:
        ManifestError: There is no archive, or its books are damaged (`restore` gives back what is left).
        UsageError: The condition is not SQL, or there is no such scale.
    """

    def __init__(
        self,
        url: str,
        *,
        generation: int | None = None,
        where: str | None = None,
        transform: Callable[[Image.Image], Any] | None = None,
        sidecars: bool = False,
        scale: int = 1,
        limits: Limits = DEFAULT,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        use_options(url, storage_options)
        archive = Archive(url, generation)
        self._rows = pictures(archive, where)
        self._reader = Reader(archive.store.url, transform, sidecars, limits, scale, storage_options)

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
        return self._reader.sample(self._rows, index % len(self))
