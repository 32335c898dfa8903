"""How a listing is divided into the shards of an archive."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.sources import SourceRecord

SHARD_SOURCE_BYTES = 16 * 2**20
"""Source bytes of one shard: a few minutes of work on one core, whether they are lossless files or JPEGs of many pixels."""

SHARD_IMAGES = 4096
SMALL_SET_SHARDS = 16
SMALL_SHARD_IMAGES = 4
"""Small sets are divided into up to 16 shards of at least 4 images, so that workers share them and the closed loop has something to learn from; each
shard costs the 1024 bytes of its tar's end."""


def shard_plan(records: Sequence[SourceRecord]) -> NDArray[np.int32]:
    """Shard number of each record: consecutive records, bounded in source bytes and images. Depends on the listing alone."""
    per_shard = min(SHARD_IMAGES, max(SMALL_SHARD_IMAGES, -(-len(records) // SMALL_SET_SHARDS)))
    out = np.empty(len(records), np.int32)
    shard = count = size = 0
    for i, record in enumerate(records):
        length = max(0, record.part.length)
        if count and (count >= per_shard or size + length > SHARD_SOURCE_BYTES):
            shard, count, size = shard + 1, 0, 0
        out[i] = shard
        count, size = count + 1, size + length
    return out


class Shards:
    """The records of a listing, by shard.

    Args:
        records: All of them, in archive order.
        firsts: Number of the first record of each shard, where they were divided before.
    """

    def __init__(self, records: Sequence[SourceRecord], firsts: Sequence[int] | None = None) -> None:
        self._records = records
        if firsts is None:
            self.ids = shard_plan(records)
        else:
            self.ids = (np.searchsorted(firsts, np.arange(len(records)), side="right") - 1).astype(np.int32)
        count = int(self.ids[-1]) + 1 if len(records) else 0
        self._first = np.searchsorted(self.ids, np.arange(count + 1))

    def __len__(self) -> int:
        return len(self._first) - 1

    def first(self) -> list[int]:
        """Number of the first record of each shard."""
        return [int(number) for number in self._first[:-1]]

    def numbers(self, shard: int) -> range:
        """Numbers of a shard's records."""
        return range(int(self._first[shard]), int(self._first[shard + 1]))

    def size(self, shard: int) -> int:
        """How many records a shard has."""
        return len(self.numbers(shard))

    def records(self, shard: int) -> Sequence[SourceRecord]:
        """A shard's records, in archive order."""
        return self._records[self._first[shard] : self._first[shard + 1]]
