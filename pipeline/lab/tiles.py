"""Training tiles from any source the product reads: decoded by threads, in a seeded order, into the ring on the device."""

from __future__ import annotations

import itertools
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray

from msinn_core.training.data import Tiles, cut
from pipeline.errors import SourceError
from pipeline.formats import images
from pipeline.sources import Fetcher, SourceRecord, scan

CROPS_PER_TILE = 16
"""Crops cut, on average, for each tile that streams in: enough that decoding keeps pace, few enough that no tile is seen much."""

_MAX_PIXELS = 200_000_000
_LOOKAHEAD = 64

_Pixels = NDArray[np.uint8]


class TileStream:
    """Tiles of some sources, epoch after epoch, each epoch in an order of its own.

    Args:
        sources: Folders, tars, Parquet files or globs.
        side: Of the tiles, in pixels.
        seed: Decides the order.
        rank: Of this process; it takes every `world_size`-th image.
        world_size: Processes that share the sources.
        num_threads: Threads that fetch and decode.

    Raises:
        SourceError: A source cannot be listed.
    """

    def __init__(self, sources: tuple[str, ...], side: int, *, seed: int, rank: int = 0, world_size: int = 1, num_threads: int = 2) -> None:
        self.side = side
        self.seed = seed
        self.unusable: Counter[str] = Counter()
        self._sources = sources
        records = [record for source in sources for record in scan(source).records]
        self._records = records[rank::world_size] if len(records) >= world_size else records
        self._fetcher = Fetcher()
        self._orders: dict[int, NDArray[np.int64]] = {}
        self._num_threads = num_threads
        self._origins: deque[tuple[int, int]] = deque()
        self._tiles: Iterator[tuple[tuple[int, int], _Pixels]] = iter(())
        self.streaming = False

    def _order(self, epoch: int) -> NDArray[np.int64]:
        # Of the present epoch and the next, into which reading ahead goes: to shuffle a million images for each of them takes 95 ms.
        orders = self._orders
        if epoch not in orders:
            found = np.random.default_rng((self.seed, epoch)).permutation(len(self._records))
            self._orders = orders = {**{known: orders[known] for known in orders if known >= epoch - 1}, epoch: found}
        return orders[epoch]

    def _load(self, position: int) -> list[_Pixels]:
        epoch, index = divmod(position, len(self._records))
        record: SourceRecord = self._records[self._order(epoch)[index]]
        try:
            loaded = images.load(self._fetcher.fetch(record.part), max_pixels=_MAX_PIXELS, name=record.name)
        except SourceError:
            self.unusable["unreadable"] += 1
            return []
        if loaded.picture is None or loaded.picture.pixels.ndim != 3:
            self.unusable[loaded.reason or "grey"] += 1
            return []
        found = list(cut(loaded.picture.pixels, self.side))
        self.unusable["smaller than a tile"] += not found
        return found

    def _from(self, position: int, tile: int, end: int | None = None) -> Iterator[tuple[tuple[int, int], _Pixels]]:
        """Tiles in order, from tile number `tile` of the record at `position`, decoded ahead; `end` bounds the positions."""
        positions = itertools.count(position) if end is None else iter(range(position, end))
        with ThreadPoolExecutor(self._num_threads) as threads:
            ahead: deque[tuple[int, Future[list[_Pixels]]]] = deque()
            ahead.extend((p, threads.submit(self._load, p)) for p in itertools.islice(positions, _LOOKAHEAD))
            try:
                barren = 0
                while ahead:
                    at, future = ahead.popleft()
                    barren += 1
                    if end is None and barren > len(self._records) + _LOOKAHEAD:
                        raise SourceError(f"{', '.join(self._sources)}: not one usable image left of those that training began with")
                    for p in itertools.islice(positions, 1):
                        ahead.append((p, threads.submit(self._load, p)))
                    for number, pixels in enumerate(future.result()):
                        if at > position or number >= tile:
                            barren = 0
                            yield (at, number), pixels
            finally:
                for _, future in ahead:
                    future.cancel()

    def fill(self, resident_bytes: int, device: torch.device, resume: dict[str, int]) -> Tiles:
        """The ring of tiles: the whole set if it fits, else its first part, with the rest to stream.

        Args:
            resident_bytes: Room on the device.
            device: Where tiles live.
            resume: What `position` said when a run was stopped; empty for a new run.

        Raises:
            SourceError: Not one tile in all sources.
        """
        capacity = resident_bytes // (3 * self.side**2)
        tiles = Tiles(capacity, self.side, device)
        if resume.get("seen", 0) > capacity or resume.get("streaming"):
            self.streaming = True
            tiles.restart(resume["seen"] - capacity)
            self._tiles = self._from(resume["record"], resume["tile"])
            self.advance(tiles, resume["seen"])
            return tiles
        first = self._from(0, 0, len(self._records))
        for chunk in iter(lambda: list(itertools.islice(first, min(64, capacity - tiles.num_seen))), []):
            tiles.extend([pixels for _, pixels in chunk])
            self._origins.extend(origin for origin, _ in chunk)
        left = next(first, None)
        first.close()  # type: ignore[attr-defined]
        if not len(tiles):
            reasons = ", ".join(f"{count} {reason}" for reason, count in self.unusable.items() if count)
            raise SourceError(
                f"{', '.join(self._sources)}: not one colour image of at least {self.side} x {self.side} pixels to train on ({reasons})"
            )
        if left is not None:
            self.streaming = True
            self._tiles = self._from(*left[0])
        return tiles

    def advance(self, tiles: Tiles, num_seen: int) -> None:
        """Stream tiles in until `num_seen` have gone through the ring."""
        while self.streaming and tiles.num_seen < num_seen:
            chunk = list(itertools.islice(self._tiles, min(64, num_seen - tiles.num_seen)))
            tiles.extend([pixels for _, pixels in chunk])
            self._origins.extend(origin for origin, _ in chunk)
            while len(self._origins) > tiles.capacity:
                self._origins.popleft()

    def position(self, tiles: Tiles) -> dict[str, int]:
        """Where the ring stands, for a continuation."""
        record, tile = self._origins[0]
        return {"seen": tiles.num_seen, "record": record, "tile": tile, "streaming": int(self.streaming)}


def validation_pictures(sources: tuple[str, ...], count: int, side: int = 256) -> torch.Tensor:
    """The centre of `count` pictures spread evenly over the sources: uint8 `[N, 3, side, side]`.

    Raises:
        SourceError: Not one picture is large enough.
    """
    fetcher, found = Fetcher(), []
    records = [record for source in sources for record in scan(source).records]
    for record in records[:: max(1, len(records) // count)][:count]:
        loaded = images.load(fetcher.fetch(record.part), max_pixels=_MAX_PIXELS, name=record.name)
        if loaded.picture is None or loaded.picture.pixels.ndim != 3 or min(loaded.picture.pixels.shape[:2]) < side:
            continue
        row, column = ((length - side) // 2 for length in loaded.picture.pixels.shape[:2])
        found.append(loaded.picture.pixels[row : row + side, column : column + side])
    if not found:
        raise SourceError(f"{', '.join(sources)}: not one colour image of at least {side} x {side} pixels to validate on")
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).contiguous()
