"""Images of a shard, coded one after the other: the entropy coder of one overlaps with the network of the next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from pipeline.encode.coder import ImageCoder
from pipeline.encode.item import Item
from pipeline.encode.load import ItemLoader
from pipeline.encode.search import verify
from pipeline.encode.tasks import ImageTask


def encode_stream(tasks: Sequence[ImageTask], loader: ItemLoader, coder: ImageCoder, target_psnr_db: float | None) -> Iterator[Item]:
    """Items in the order of their tasks, each coded at its task's q (or what its quality needs), decoded and measured; or kept, or missing.

    Args:
        tasks: What is wanted of each image.
        loader: Fetches and decodes image files, ahead of the network.
        coder: Codes.
        target_psnr_db: See `search.verify`.

    Raises:
        StorageError: The source's store failed.
    """

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
            coder.compress(item, item.task.q)
            current = (item, packer.submit(coder.pack, item))
            if previous is not None:
                yield finish(*previous)
            previous = current
        if previous is not None:
            yield finish(*previous)
