"""An archive as a stream to learn from: shard by shard, shuffled, divided over ranks and workers, and resumed within an epoch.

>>> from torch.utils.data import DataLoader
>>> stream = ArchiveStream("archive", buffer=100, transform=lambda image: image.size)
>>> loader = DataLoader(stream, batch_size=2)  # num_workers=8: each has its part of the shards
>>> first = next(iter(loader))
>>> stream.load_state_dict(stream.state_after(batches=1, batch_size=2))  # another day: goes on after the first batch
>>> sum(len(batch["name"]) for batch in loader) == len(stream) - 2
True
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np
import torch.distributed
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import IterableDataset, get_worker_info

from msinn_core.flight import ahead
from pipeline.archive.archive import Archive
from pipeline.archive.row import Row
from pipeline.errors import UsageError
from pipeline.formats.records import rows_of
from pipeline.limits import DEFAULT, Limits
from pipeline.read import order
from pipeline.read.reader import Reader, Stored, pictures
from pipeline.read.restore import shard_edges
from pipeline.store.options import use_options

_READERS = 2
_AHEAD = 8


class ArchiveStream(IterableDataset[dict[str, Any]]):
    """Samples as `ArchiveDataset` gives them, in an order that reads shard by shard.

    The order is a function of seed, epoch, rank and worker. `set_epoch` begins each epoch, as with PyTorch's `DistributedSampler`; without it
    every pass over the stream is the same. `state_dict` and `load_state_dict` are what torchdata's `StatefulDataLoader` asks for in each worker; for
    PyTorch's own loader, whose workers tell nothing, `state_after` works the state out.

    Args:
        url: The archive.
        generation: Which one of it; the newest if not given.
        where: SQL condition over the manifest.
        transform: Applied to each Pillow image; see `ArchiveDataset`.
        sidecars: Whether to read the images' sidecars too.
        scale: 2, 4, 8 or 16: images so many times smaller, each way, rounded up; of coded ones only the first bytes are read, and only the coarse
            levels of the network run.
        shuffle: Shards in random order, rows through a buffer; otherwise all in archive order.
        buffer: Rows among which the next is chosen. They are numbers, not images: 100,000 cost nothing but locality of reading.
        seed: Of the order.
        rank: Of this process among `num_ranks` that learn together; by default as `torch.distributed` says, else 0 of 1.
        num_ranks: How many.
        even: Every rank gets as many images as every other: the few that do not divide are left out. Ranks that wait for each other need it.
        limits: What is decoded at most.
        storage_options: Settings of the archive's store that its address and the environment do not say, as fsspec takes them.

    Raises:
        ManifestError: There is no archive, or its books are damaged.
        UsageError: The condition is not SQL, or a number is out of range.
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
        shuffle: bool = True,
        buffer: int = 1000,
        seed: int = 0,
        rank: int | None = None,
        num_ranks: int | None = None,
        even: bool = False,
        limits: Limits = DEFAULT,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        use_options(url, storage_options)
        archive = Archive(url, generation)
        self._rows = pictures(archive, where)
        self._edges = shard_edges(self._rows)
        self._digest = hashlib.sha256("\n".join(self._rows.column("key").to_pylist()).encode()).hexdigest()
        self._reader = Reader(archive.store.url, transform, sidecars, limits, scale, storage_options)
        together = torch.distributed.is_available() and torch.distributed.is_initialized()
        self._rank = rank if rank is not None else torch.distributed.get_rank() if together else 0
        self._num_ranks = num_ranks if num_ranks is not None else torch.distributed.get_world_size() if together else 1
        if buffer < 1 or seed < 0 or not 0 <= self._rank < self._num_ranks:
            raise UsageError(f"a stream takes a buffer of 1 or more, a seed of 0 or more and a rank below {self._num_ranks}, the number of ranks")
        self._shuffle, self._buffer, self._seed, self._even = shuffle, buffer, seed, even
        self._epoch = 0
        self._taken: list[int] | None = None
        self._resume: list[int] | None = None
        self._first = 0

    def __len__(self) -> int:
        """Images of this rank in an epoch."""
        return len(self._of_rank())

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch, 0 or later, from its start."""
        self._epoch, self._taken, self._resume, self._first = epoch, None, None, 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Samples that this worker has left in this epoch.

        Raises:
            ManifestError: An image's bytes are lost or damaged: `where` leaves it out, `load_state_dict` goes on.
            UsageError: The state that was loaded is of another number of workers.
        """
        part, parts = self._part()
        taken, self._resume = self._resume or [0] * parts, None
        if len(taken) != parts:
            raise UsageError(f"the state that was loaded is of {len(taken)} workers, and here are {parts}: resume with as many")
        self._taken = taken = list(taken)
        rows = islice(self._order(part, parts), taken[part], None)
        with ThreadPoolExecutor(_READERS) as pool:
            for stored in ahead(self._read, rows, pool, _AHEAD):
                sample = self._reader.finished(stored)
                # Before it is given: a state that is asked for between two samples counts those that were received.
                taken[part] += 1
                yield sample

    def _read(self, row: int) -> Stored:
        return self._reader.read(next(rows_of(Row, self._rows.slice(row, 1))))

    def _part(self) -> tuple[int, int]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info is not None else (0, 1)
        return (worker + self._first) % workers, workers

    def _of_rank(self) -> NDArray[np.int64]:
        rows = order.of_epoch(self._edges, self._seed, self._epoch, shuffle=self._shuffle)
        return order.cut(rows, self._rank, self._num_ranks, even=self._even)

    def _order(self, part: int, parts: int) -> Iterator[int]:
        rows = order.cut(self._of_rank(), part, parts)
        return order.buffered(rows, self._buffer if self._shuffle else 1, (self._seed, self._epoch, self._rank, part))

    def _identity(self) -> dict[str, Any]:
        """What the order depends on, beside the epoch."""
        return {
            "images": self._digest,
            "shuffle": self._shuffle,
            "buffer": self._buffer,
            "seed": self._seed,
            "rank": self._rank,
            "num_ranks": self._num_ranks,
            "even": self._even,
        }

    def state_dict(self) -> dict[str, Any]:
        """Where this process's pass stands, as JSON can say it: between two samples, those received are counted."""
        info = get_worker_info()
        taken = self._resume or self._taken or [0] * (info.num_workers if info is not None else 1)
        return {"stream": self._identity(), "epoch": self._epoch, "taken": list(taken), "first": self._first}

    def state_after(self, *, batches: int, batch_size: int, num_workers: int = 0, drop_last: bool = False) -> dict[str, Any]:
        """The state of a PyTorch `DataLoader` over this stream after some batches of this epoch, counted from its start.

        Args:
            batches: That were taken from it.
            batch_size: As of the loader; so `num_workers` and `drop_last`.
        """
        parts = max(1, num_workers)
        lengths = [len(order.cut(self._of_rank(), part, parts)) for part in range(parts)]
        taken, turn = order.delivered(lengths, batches, batch_size, drop_last=drop_last)
        # The loader begins with its first worker: that one takes the part whose turn it is.
        return {"stream": self._identity(), "epoch": self._epoch, "taken": taken, "first": turn}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next pass go on where another ended.

        Raises:
            UsageError: It was over other images, or of another order.
        """
        ours, theirs = self._identity(), state.get("stream", {})
        different = sorted(name for name in ours if theirs.get(name) != ours[name])
        if different:
            raise UsageError(f"the state is of another stream ({', '.join(different)} differ): it cannot be gone on with")
        self.set_epoch(int(state["epoch"]))
        self._resume, self._first = [int(count) for count in state["taken"]], int(state.get("first", 0))
