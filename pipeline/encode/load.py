"""From a task to an item: an image's file and sidecars fetched, the file decoded in a process of its own, a few images ahead of the network."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from msinn_core.flight import ahead
from pipeline.archive.members import member_name
from pipeline.encode.exact import ExactForms
from pipeline.encode.item import Item, SidecarFile, ms_since
from pipeline.encode.tasks import ImageTask
from pipeline.errors import SourceError
from pipeline.formats import images
from pipeline.formats.decoding import Loader
from pipeline.formats.outcome import Coded, Kept, Missing, Reason
from pipeline.sources import Fetcher, SourceRecord
from pipeline.sources.record import printable, utc

_LOOKAHEAD = 3


class _Processes:
    """Decoders of image files, each in a process of its own, as many as are at work at once."""

    def __init__(self, max_pixels: int, number: int) -> None:
        # The last one that was busy is taken first: the others' processes start only where one does not keep up.
        self._idle: queue.LifoQueue[Loader] = queue.LifoQueue()
        for _ in range(number):
            self._idle.put(Loader(max_pixels))

    def load(self, data: bytes, name: str) -> images.LoadedImage:
        """See `Loader.load`."""
        loader = self._idle.get()
        try:
            return loader.load(data, name=name)
        finally:
            self._idle.put(loader)


class ItemLoader:
    """Makes items of tasks.

    Args:
        max_pixels: Pictures above this are kept as their files.
        processes: Files that are decoded at once: one keeps up with a CPU's network, a GPU's wants several.
        exact: Gives files that the network shall not have their exact forms; None leaves them as they are.
    """

    def __init__(self, max_pixels: int, processes: int = 1, exact: ExactForms | None = None) -> None:
        self._processes = _Processes(max_pixels, processes)
        self._lookahead = _LOOKAHEAD if processes == 1 else 2 * processes
        self._fetcher = Fetcher()
        self._exact = exact

    def ahead(self, tasks: Sequence[ImageTask], *, with_sidecars: bool = True, only_cost: bool = False) -> Iterator[Item]:
        """Items in the order of their tasks, some of them made ahead in threads.

        Args:
            tasks: What is wanted of each image.
            with_sidecars: Whether to fetch their sidecars too.
            only_cost: What exact forms would cost suffices.

        Raises:
            StorageError: The source's store failed; what it says of a single file is that item's outcome.
        """
        with ThreadPoolExecutor(self._lookahead) as pool:
            yield from ahead(lambda task: self.load(task, with_sidecars, only_cost), tasks, pool, self._lookahead)

    def load(self, task: ImageTask, with_sidecars: bool, only_cost: bool = False) -> Item:
        """One item, whose outcome is `Coded` if the network shall have it; else it has its exact form."""
        item = self._begun(task, with_sidecars)
        if self._exact is not None:
            self._exact.settle(item, only_cost=only_cost)
        return item

    def _begun(self, task: ImageTask, with_sidecars: bool) -> Item:
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
            loaded = self._processes.load(source, record.name)
        item = Item(task, source, loaded, fetch_ms=(fetched - started) * 1e3, clamp=task.clamp, sidecars=sidecars, lost=lost)
        item.decode_ms = ms_since(fetched)
        item.outcome = Coded() if loaded.reason is None else Kept(loaded.reason, loaded.message)
        if item.coded and self._exact is not None and self._exact.wants(task, source):
            item.outcome = Kept(Reason.LOSSLESS)
        if item.coded and not task.to_code:
            exact = np.isfinite(task.exact_bytes)
            item.outcome = (
                Kept(Reason.PLANNED, "the plan stores it exactly: the best use of its bytes")
                if exact
                else Kept(Reason.NOT_SMALLER, "the plan keeps the original: coding it would not save bytes")
            )
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
