"""From a task to an item: an image's file and sidecars fetched, the file decoded in a process of its own, a few images ahead of the network."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from pipeline.archive.members import member_name
from pipeline.encode.item import Item, SidecarFile, ms_since
from pipeline.encode.tasks import ImageTask
from pipeline.errors import SourceError
from pipeline.formats import images
from pipeline.formats.decoding import Loader
from pipeline.formats.outcome import Coded, Kept, Missing, Reason
from pipeline.sources import Fetcher, SourceRecord
from pipeline.sources.record import printable, utc

_LOOKAHEAD = 3


class ItemLoader:
    """Makes items of tasks.

    Args:
        max_pixels: Pictures above this are kept as their files.
    """

    def __init__(self, max_pixels: int) -> None:
        self._loader = Loader(max_pixels)
        self._fetcher = Fetcher()

    def ahead(self, tasks: Sequence[ImageTask], *, with_sidecars: bool = True) -> Iterator[Item]:
        """Items in the order of their tasks, some of them made ahead in threads.

        Args:
            tasks: What is wanted of each image.
            with_sidecars: Whether to fetch their sidecars too.

        Raises:
            StorageError: The source's store failed; what it says of a single file is that item's outcome.
        """
        with ThreadPoolExecutor(_LOOKAHEAD) as pool:
            waiting: deque[Future[Item]] = deque()
            for task in tasks:
                waiting.append(pool.submit(self.load, task, with_sidecars))
                if len(waiting) > _LOOKAHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def load(self, task: ImageTask, with_sidecars: bool) -> Item:
        """One item, whose outcome is `Coded` if the network shall have it."""
        started = time.perf_counter()
        record = task.record
        sidecars, lost = self._sidecars(record) if with_sidecars else ([], [])
        try:
            if task.skip_reason == Reason.UNREADABLE:
                raise SourceError(f"{record.source_uri} is left out, as it was before")
            source = self._fetcher.fetch(record.part)
        except SourceError as error:
            nothing = images.LoadedImage(info=images.ImageInfo())
            outcome = Missing(Reason.UNREADABLE, str(error))
            return Item(task, None, nothing, outcome, fetch_ms=ms_since(started), sidecars=sidecars, lost=[*lost, str(error)])
        fetched = time.perf_counter()
        if task.skip_reason is not None:
            loaded = images.LoadedImage(info=images.ImageInfo(), reason=task.skip_reason, message="kept as it is")
        else:
            loaded = self._loader.load(source, name=record.name)
        item = Item(task, source, loaded, fetch_ms=(fetched - started) * 1e3, clamp=task.clamp, sidecars=sidecars, lost=lost)
        item.decode_ms = ms_since(fetched)
        item.outcome = Coded() if loaded.reason is None else Kept(loaded.reason, loaded.message)
        if item.coded and not task.to_code:
            item.outcome = Kept(Reason.NOT_SMALLER, "the plan keeps the original: coding it would not save bytes")
        return item

    def _sidecars(self, record: SourceRecord) -> tuple[list[SidecarFile], list[str]]:
        """Those that can be read, and a sentence for each of the others."""
        found, lost = [], []
        for (name, part), keep in zip(record.sidecars, record.keep_sidecars, strict=True):
            try:
                found.append(SidecarFile(printable(name), keep, member_name(record.key, name), utc(part.mtime_us), self._fetcher.fetch(part)))
            except SourceError as error:
                lost.append(str(error))
        return found, lost
