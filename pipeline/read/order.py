"""In which order a stream goes through an archive: shards in random order, rows through a buffer, everything a function of seed and epoch.

The order is one of rows, not of decoded images: it is known before anything is read, so a stream goes on in the middle of an epoch without decoding
what it has given already.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

_DRAWS = 4096


def of_epoch(edges: Sequence[int], seed: int, epoch: int, *, shuffle: bool) -> NDArray[np.int64]:
    """Rows of all shards: the shards in an order of this epoch's, or their own; the rows of each in theirs.

    Args:
        edges: Where the rows of each shard begin, and the end.
        seed: 0 or more; so `epoch`.
        epoch: Which.
        shuffle: Whether to change the order at all.
    """
    shards = np.arange(len(edges) - 1)
    if shuffle:
        np.random.default_rng([seed, epoch]).shuffle(shards)
    parts = [np.arange(edges[shard], edges[shard + 1], dtype=np.int64) for shard in shards]
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def cut(rows: NDArray[np.int64], part: int, parts: int, *, even: bool = False) -> NDArray[np.int64]:
    """One of several parts, each a piece in the middle of which few shards are divided; lengths differ by one at most.

    Args:
        rows: In order.
        part: Number of the part, from 0.
        parts: How many.
        even: All of one length: what does not divide is left out.
    """
    count = len(rows) - len(rows) % parts if even else len(rows)
    return rows[count * part // parts : count * (part + 1) // parts]


def buffered(rows: NDArray[np.int64], buffer: int, seeds: Sequence[int]) -> Iterator[int]:
    """The rows as a shuffle buffer gives them: each time a random one of the next `buffer` that are left; 1 changes nothing.

    Args:
        rows: In order.
        buffer: How many it holds.
        seeds: What the order depends on.
    """
    rng = np.random.default_rng(list(seeds))
    held = rows[:buffer].tolist()
    for start in range(buffer, len(rows), _DRAWS):
        coming = rows[start : start + _DRAWS].tolist()
        for row, slot in zip(coming, rng.integers(0, len(held), len(coming)).tolist(), strict=True):
            yield held[slot]
            held[slot] = row
    if buffer > 1:
        rng.shuffle(held)
    yield from held


def delivered(lengths: Sequence[int], batches: int, batch_size: int, *, drop_last: bool = False) -> tuple[list[int], int]:
    """What each worker of a PyTorch `DataLoader` has given after a number of batches, and the worker whose turn is next.

    Workers give batches in turn, those that have no more are passed over.

    Args:
        lengths: Samples that each worker has.
        batches: That were taken from the loader.
        batch_size: Samples of a batch.
        drop_last: As of the loader.
    """
    left = [length // batch_size if drop_last else -(-length // batch_size) for length in lengths]
    given, turn = [0] * len(lengths), 0
    for _ in range(min(batches, sum(left))):
        while given[turn] == left[turn]:
            turn = (turn + 1) % len(lengths)
        given[turn] += 1
        turn = (turn + 1) % len(lengths)
    return [min(count * batch_size, length) for count, length in zip(given, lengths, strict=True)], turn
