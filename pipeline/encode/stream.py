"""Images of a shard, coded one after the other: the entropy coder of one overlaps with the network of the next, unless they are large. A GPU has them
in `batches`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from pipeline.encode.batches import encode_batches
from pipeline.encode.coders import Coders
from pipeline.encode.item import Item
from pipeline.encode.load import ItemLoader
from pipeline.encode.search import verify
from pipeline.encode.tasks import ImageTask

OVERLAPPED_PIXELS = 32_000_000
"""Two images that have more pixels together are not held at once: memory for the larger counts more there than what their overlap saves."""


def encode_stream(tasks: Sequence[ImageTask], loader: ItemLoader, coder: Coders, target_psnr_db: float | None) -> Iterator[Item]:
    """Items in the order of their tasks, each coded at its task's q (or what its quality needs), decoded and measured; or kept, or missing.

    Args:
        tasks: What is wanted of each image.
        loader: Fetches and decodes image files, ahead of the network.
        coder: Codes.
        target_psnr_db: See `search.verify`.

    Raises:
        StorageError: The source's store failed.
    """
    if (engine := coder.codec.batches) is not None:
        yield from encode_batches(tasks, loader, coder, engine, target_psnr_db)
        return

    def finish(item: Item, packed: Future[None]) -> Item:
        packed.result()
        if item.coded:
            verify(coder, item, target_psnr_db)
            item.keep_if_larger()
        item.latents = None
        return item

    previous: tuple[Item, Future[None]] | None = None
    with ThreadPoolExecutor(1) as packer:
        for item in loader.ahead(tasks):
            if previous is not None and _pixels(item) + _pixels(previous[0]) > OVERLAPPED_PIXELS:
                yield finish(*previous)
                previous = None
            coder.compress(item, item.task.q)
            current = (item, packer.submit(coder.pack, item))
            if previous is not None:
                yield finish(*previous)
            previous = current
        if previous is not None:
            yield finish(*previous)


def _pixels(item: Item) -> int:
    """Of an image that is to be coded."""
    picture = item.loaded.picture
    return 0 if picture is None else picture.pixels.shape[0] * picture.pixels.shape[1]
