"""Two listings compared: which files are as they were, which are in doubt, which are new or gone. Names, sizes and times alone: nothing is read.

A file is the one of its name; where a listing has a name several times, the first is the first, the second the second. It is as it was if its size
and its time of modification are, and those of its sidecars; of what lies in a tar or a Parquet file, if its place there and the container's time are.
A time that the source does not say, or that is 0, says nothing; nor does one of the last two seconds before the earlier listing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.sources.record import CELL, FILE, RANGE, Part, SourceRecord, part_of, printable

_DIGEST_BYTES = 16
_KIND = f"S{_DIGEST_BYTES}"
_BATCH = 1 << 16
_TICK_US = 2_000_000
"""Clocks of file systems and stores go in steps of up to two seconds."""
_NEVER_US = 1 << 62

Digests = NDArray[np.bytes_]
Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Known:
    """What is known of the files of a listing without reading them, 40 bytes each.

    Attributes:
        key: `[N]`, number of each among all images of the archive.
        name: `[N]`, digest of its name.
        stamp: `[N]`, digest of sizes, places and times; empty where these prove nothing.
    """

    key: Numbers
    name: Digests
    stamp: Digests

    def __len__(self) -> int:
        return len(self.key)


@dataclass(frozen=True)
class Compared:
    """Places in two listings.

    Attributes:
        same: `[S, 2]`, before and now, of files that are as they were.
        doubtful: `[D, 2]`, likewise, of files whose content must be looked at.
        gone: `[G]`, before.
        new: `[N]`, now.
    """

    same: Numbers
    doubtful: Numbers
    gone: Numbers
    new: Numbers


def known(records: Iterable[SourceRecord]) -> Known:
    """What is known of records, in their order."""
    return _collected((record.first_key + record.index, record.name, _stamp(record.part, record.sidecars)) for record in records)


def known_of_table(table: pa.Table, first_key: int = 0, listed_us: int = 0) -> Known:
    """As `known`, of a listing's table; without a record for each, of which there may be millions.

    Args:
        table: See `record.to_table`.
        first_key: Of its first record.
        listed_us: When it began to be listed, in microseconds since 1970, or 0. Times of the last moments before prove nothing: what was modified
            again in the same tick of the clock (a second, on S3) looks the same.

    Raises:
        pa.ArrowException: It is none; or `KeyError`, `TypeError`, `ValueError`.
    """

    before_us = listed_us - _TICK_US if listed_us else _NEVER_US

    def rows() -> Iterator[tuple[int, str, bytes]]:
        for batch in table.to_batches(max_chunksize=_BATCH):
            part = batch.column("part")
            names = batch.schema.field("part").type
            fields = [part.field(name).to_pylist() if names.get_field_index(name) >= 0 else [None] * len(batch) for name in _FIELDS]
            sidecars = batch.column("sidecars")
            few = np.flatnonzero(np.asarray(sidecars.value_lengths()))
            sides = {int(row): [(side["name"], part_of(side)) for side in sidecars[int(row)].as_py()] for row in few}
            columns = zip(batch.column("index").to_pylist(), batch.column("name").to_pylist(), zip(*fields, strict=True), strict=True)
            for row, (index, name, (kind, length, offset, group, mtime_us, container_us)) in enumerate(columns):
                found = Part(kind, "", length, offset, group, mtime_us=mtime_us, container_us=container_us)
                yield first_key + index, name.decode("utf-8", "surrogateescape"), _stamp(found, sides.get(row, ()), before_us)

    return _collected(rows())


def joined(parts: Sequence[Known], without: Collection[int] = ()) -> Known:
    """Several after one another, and those with some keys left out."""
    key, name, stamp = (np.concatenate([getattr(part, field) for part in parts]) for field in ("key", "name", "stamp"))
    kept = ~np.isin(key, np.fromiter(without, np.int64, len(without)))
    return Known(key[kept], name[kept], stamp[kept])


_FIELDS = ("kind", "length", "offset", "group", "mtime_us", "container_us")


def _collected(rows: Iterable[tuple[int, str, bytes]]) -> Known:
    keys: list[Numbers] = []
    names: list[Digests] = []
    stamps: list[Digests] = []
    rows = iter(rows)
    while batch := list(islice(rows, _BATCH)):
        keys.append(np.array([key for key, _, _ in batch], np.int64))
        names.append(np.array([_digest(name.encode("utf-8", "surrogateescape")) for _, name, _ in batch], _KIND))
        stamps.append(np.array([stamp for _, _, stamp in batch], _KIND))
    none: Digests = np.empty(0, _KIND)
    return Known(np.concatenate([np.empty(0, np.int64), *keys]), np.concatenate([none, *names]), np.concatenate([none, *stamps]))


def compare(before: Known, now: Known) -> Compared:
    """What distinguishes a listing from an earlier one. Files of one name are told apart by their order."""
    _, old, new = np.intersect1d(_numbered(before.name), _numbered(now.name), assume_unique=True, return_indices=True)
    pairs = np.stack((old, new), axis=1).astype(np.int64)
    pairs = pairs[np.argsort(pairs[:, 0], kind="stable")]
    stamps = before.stamp[pairs[:, 0]]
    alike = (stamps == now.stamp[pairs[:, 1]]) & (stamps != b"")
    return Compared(pairs[alike], pairs[~alike], _rest(len(before), old), _rest(len(now), new))


def _rest(count: int, chosen: NDArray[np.intp]) -> Numbers:
    left = np.ones(count, bool)
    left[chosen] = False
    return np.flatnonzero(left).astype(np.int64)


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_DIGEST_BYTES).digest()


def _numbered(names: Digests) -> Digests:
    """Names of which none is there twice: the second of a name is called otherwise than the first."""
    names = names.copy()
    order = np.argsort(names, kind="stable")
    ordered = names[order]
    begins = np.concatenate(([True], ordered[1:] != ordered[:-1])) if len(ordered) else np.empty(0, bool)
    starts = np.flatnonzero(begins)
    rank = np.arange(len(ordered)) - np.repeat(starts, np.diff(np.append(starts, len(ordered))))
    for place in np.flatnonzero(rank):
        names[order[place]] = _digest(bytes(ordered[place]) + int(rank[place]).to_bytes(8, "big"))
    return names


def _stamp(image: Part, sidecars: Sequence[tuple[str, Part]], before_us: int = _NEVER_US) -> bytes:
    """Digest of what would be otherwise if a record's files were; empty if that cannot be told."""
    proofs = [_proof(part, before_us) for part in (image, *(part for _, part in sidecars))]
    if None in proofs:
        return b""
    return _digest(repr((proofs, [printable(name) for name, _ in sidecars])).encode())


def _proof(part: Part, before_us: int) -> tuple[object, ...] | None:
    written_us = part.mtime_us if part.kind == FILE else part.container_us
    if not written_us or written_us >= before_us:
        return None
    if part.kind == FILE:
        return part.length, part.mtime_us
    # The length of a cell is no more than a mean.
    place = (part.offset, part.length, part.mtime_us) if part.kind == RANGE else (part.group, part.offset, part.kind == CELL)
    return (*place, part.container_us)
