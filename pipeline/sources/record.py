"""What a scan finds: records that say where the bytes of an image and of its sidecars lie, and how they will be named again."""

from __future__ import annotations

import hashlib
import marshal
import os
import re
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any, overload

import pyarrow as pa

from pipeline.text import redacted

FILE, RANGE, CELL, ROW_JSON = "file", "range", "cell", "row_json"
"""Kinds of `Part`: a whole file, a byte range of one, a Parquet cell, the other columns of a Parquet row as JSON."""

_SAFE = re.compile(r"(?:[A-Za-z0-9_-][A-Za-z0-9_. -]{0,98}[A-Za-z0-9_-]/|[A-Za-z0-9_-]/)*[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}")
"""Most names, which `safe_name` leaves as they are."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_BLOCK = 4096
_CACHED_BLOCKS = 4


@dataclass(frozen=True, slots=True)
class Part:
    """Where some bytes lie.

    Attributes:
        kind: `file`, `range`, `cell` or `row_json`.
        uri: File or object, as fsspec opens it.
        offset: First byte (`range`), or row within the row group (Parquet kinds).
        length: Bytes as listed (-1: not known before reading).
        group: Row group (Parquet kinds), else 0.
        column: Column (`cell`, and the one that `row_json` leaves out), else empty.
        mtime_us: Modification time in microseconds since 1970, or None where the source does not say.
        container_us: That of the tar or Parquet file which it lies in; None of a whole file, or where the source does not say.
    """

    kind: str
    uri: str
    length: int
    offset: int = 0
    group: int = 0
    column: str = ""
    mtime_us: int | None = None
    container_us: int | None = None


@dataclass(frozen=True, slots=True)
class SourceRecord:
    """One source image (or other file) with its sidecars.

    Attributes:
        index: Position in the scan, 0-based.
        name: Relative original name, with `/`.
        part: The image's bytes.
        sidecars: `(original name, part)` of files that belong to the image.
        restore_name: Name of the decoded picture when restored; unique in the scan and inside the target.
        keep_name: Name of the untouched file when restored; unique likewise.
        keep_sidecars: The same for each sidecar.
        first_key: How many images older generations of the archive have had: its key counts on from there.
    """

    index: int
    name: str
    part: Part
    sidecars: tuple[tuple[str, Part], ...] = ()
    restore_name: str = ""
    keep_name: str = ""
    keep_sidecars: tuple[str, ...] = ()
    first_key: int = 0

    @property
    def key(self) -> str:
        """Dot-free name inside the archive, the same for every run over the same listing."""
        return f"{self.first_key + self.index:09d}"

    @property
    def mtime(self) -> datetime | None:
        """Modification time of the image's file."""
        return utc(self.part.mtime_us)

    @property
    def source_uri(self) -> str:
        """For people and manifests."""
        place = {FILE: "", RANGE: f"#{self.name}", CELL: f"#{self.part.group}/{self.part.offset}"}[self.part.kind]
        return redacted(printable(self.part.uri)) + place


def utc(mtime_us: int | None) -> datetime | None:
    """A time of a listing as the manifest has it; None where it is none or out of range."""
    try:
        return None if mtime_us is None else _EPOCH + timedelta(microseconds=mtime_us)
    except OverflowError:
        return None


def printable(text: str) -> str:
    """File names that are not UTF-8 as text that Parquet and terminals can hold."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def safe_name(name: str) -> str:
    """A relative path that cannot leave its folder: no `..`, no absolute or drive part, no control characters, components of at most 200 bytes."""
    if _SAFE.fullmatch(name):
        return name
    parts = []
    components = re.split(r"[/\\]+", printable(name))
    for i, part in enumerate(components):
        clean = re.sub(r"[\x00-\x1f\x7f:]", "_", part).strip()
        if clean in ("", "."):
            if i < len(components) - 1:
                continue
            clean = "_"  # a file is not called as its folder
        if set(clean) == {"."}:
            clean = "_" * len(clean)
        if len(clean.encode()) > 200:
            stem, suffix = os.path.splitext(clean)
            digest = hashlib.sha256(clean.encode()).hexdigest()[:12]
            clean = stem.encode()[:150].decode("utf-8", "ignore") + "~" + digest + suffix[:20]
        parts.append(clean)
    return "/".join(parts) or "_"


def is_safe_name(name: object) -> bool:
    """Whether a name of an archive is a relative path that stays in its folder on every system: as `safe_name` and `with_restore_names` make them."""
    if not isinstance(name, str) or re.search(r"[\x00-\x1f\x7f:\\\ud800-\udfff]", name):
        return False
    return all(part.strip(".") and len(part.encode()) <= 255 for part in name.split("/"))


class Listing(Sequence[SourceRecord]):
    """Records in scan order, compressed in memory by blocks: some 40 bytes each instead of 1.4 kB.

    Loops, slices and single records near each other are cheap; single records at random cost a block each.

    Args:
        records: Numbered from 0, in order.
    """

    def __init__(self, records: Iterable[SourceRecord] = ()) -> None:
        self._blocks: list[bytes] = []
        self._last: list[SourceRecord] = []
        self._cached: OrderedDict[int, list[SourceRecord]] = OrderedDict()
        for record in records:
            self._last.append(record)
            if len(self._last) == _BLOCK:
                self._blocks.append(zlib.compress(marshal.dumps([_flat(record) for record in self._last]), 1))
                self._last = []

    def __len__(self) -> int:
        return len(self._blocks) * _BLOCK + len(self._last)

    def __iter__(self) -> Iterator[SourceRecord]:
        for block in self._blocks:
            yield from map(_unflat, marshal.loads(zlib.decompress(block)))
        yield from self._last

    @overload
    def __getitem__(self, index: int) -> SourceRecord: ...
    @overload
    def __getitem__(self, index: slice) -> list[SourceRecord]: ...
    def __getitem__(self, index: int | slice) -> SourceRecord | list[SourceRecord]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        number, offset = divmod(index % len(self), _BLOCK)
        return self._block(number)[offset]

    def _block(self, number: int) -> list[SourceRecord]:
        if number == len(self._blocks):
            return self._last
        if number not in self._cached:
            self._cached[number] = [_unflat(flat) for flat in marshal.loads(zlib.decompress(self._blocks[number]))]
            if len(self._cached) > _CACHED_BLOCKS:
                self._cached.popitem(last=False)
        self._cached.move_to_end(number)
        return self._cached[number]


def _flat(record: SourceRecord) -> tuple[Any, ...]:
    sidecars = tuple((name, _flat_part(part)) for name, part in record.sidecars)
    return record.index, record.name, _flat_part(record.part), sidecars, record.restore_name, record.keep_name, record.keep_sidecars, record.first_key


def _flat_part(part: Part) -> tuple[Any, ...]:
    return part.kind, part.uri, part.length, part.offset, part.group, part.column, part.mtime_us, part.container_us


def _unflat(flat: tuple[Any, ...]) -> SourceRecord:
    index, name, part, sidecars, *names = flat
    return SourceRecord(index, name, Part(*part), tuple((name, Part(*part)) for name, part in sidecars), *names)


def with_restore_names(records: Iterable[SourceRecord], others: Iterable[str] = ()) -> Listing:
    """Give every record names for restoring that are unique, even where two sources share a name or a file system ignores case.

    Args:
        records: Without such names.
        others: Names that are not to be given again: of older generations of the archive (`names_given`).
    """
    # Hashes of names: where two names share one, which has never been seen, one file is called otherwise than it could be.
    taken: set[int] = set()

    def digest(name: str) -> int:
        return int.from_bytes(hashlib.blake2b(name.casefold().encode("utf-8", "surrogateescape"), digest_size=8).digest())

    folders: set[str] = set()
    for name in others:
        taken.add(digest(name))
        folders.add(name.rpartition("/")[0])
    for folder in folders - {""}:
        parts = folder.split("/")
        taken.update(digest("/".join(parts[: i + 1])) for i in range(len(parts)))

    def listed() -> Iterator[SourceRecord]:
        # A name that is a folder of another cannot be a file.
        known: str | None = None
        for record in records:
            for name in (record.name, *(name for name, _ in record.sidecars)):
                folder = name.rpartition("/")[0]
                if folder != known or "\\" in name:
                    known = folder
                    parts = safe_name(name).split("/")
                    taken.update(digest("/".join(parts[: i + 1])) for i in range(len(parts) - 1))
            yield record

    def unique(name: str, index: int, *alternatives: str) -> str:
        stem, suffix = os.path.splitext(name)
        for candidate in (name, *alternatives, f"{stem}~{index}{suffix}"):
            if (found := digest(candidate)) not in taken:
                taken.add(found)
                return candidate
        count = 1
        while (found := digest(f"{stem}~{index}.{count}{suffix}")) in taken:
            count += 1
        taken.add(found)
        return f"{stem}~{index}.{count}{suffix}"

    def kept(record: SourceRecord) -> SourceRecord:
        number = record.first_key + record.index
        keep = unique(safe_name(record.name), number)
        return replace(record, keep_name=keep, keep_sidecars=tuple(unique(safe_name(name), number) for name, _ in record.sidecars))

    def named(record: SourceRecord) -> SourceRecord:
        png = os.path.splitext(record.keep_name)[0] + ".png"
        same = png.casefold() == record.keep_name.casefold()
        return replace(record, restore_name=record.keep_name if same else unique(png, record.first_key + record.index, record.keep_name + ".png"))

    # All folders are known before the first file is named, and all files before the first picture that was another format.
    return Listing(map(named, Listing(map(kept, Listing(listed())))))


_PART = pa.struct(
    [
        ("name", pa.string()),
        ("kind", pa.string()),
        ("uri", pa.binary()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("group", pa.int32()),
        ("column", pa.string()),
        ("keep_name", pa.string()),
        ("mtime_us", pa.int64()),
        ("container_us", pa.int64()),
    ]
)
SCAN_SCHEMA = pa.schema(
    [
        ("index", pa.int64()),
        ("name", pa.binary()),
        ("restore_name", pa.string()),
        ("part", _PART),
        ("sidecars", pa.list_(_PART)),
        ("shard_id", pa.int32()),
    ]
)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _part_row(name: str, part: Part, keep_name: str) -> dict[str, object]:
    return {
        "name": printable(name), "kind": part.kind, "uri": _bytes(redacted(part.uri)), "offset": part.offset, "length": part.length,
        "group": part.group, "column": part.column, "keep_name": keep_name, "mtime_us": part.mtime_us, "container_us": part.container_us,
    }  # fmt: skip


def to_table(records: Iterable[SourceRecord], shard_ids: Iterable[int]) -> Iterator[pa.Table]:
    """Scan table, a block of rows at a time; `from_table` gives the records back."""
    rows = (
        {
            "index": r.index,
            "name": _bytes(r.name),
            "restore_name": r.restore_name,
            "part": _part_row(r.name, r.part, r.keep_name),
            "sidecars": [_part_row(name, part, keep) for (name, part), keep in zip(r.sidecars, r.keep_sidecars, strict=True)],
            "shard_id": shard,
        }
        for r, shard in zip(records, shard_ids, strict=True)
    )
    while block := list(islice(rows, 4 * _BLOCK)):
        yield pa.Table.from_pylist(block, schema=SCAN_SCHEMA)


def part_of(row: dict[str, object]) -> Part:
    """The part of a listing's row. Raises `TypeError` or `KeyError` for what is none."""
    uri = row["uri"]
    if not isinstance(uri, bytes):
        raise TypeError("a listing without the place of a file")
    return Part(
        kind=str(row["kind"]), uri=uri.decode("utf-8", "surrogateescape"), length=int(row["length"]), offset=int(row["offset"]),  # type: ignore[call-overload]
        group=int(row["group"]), column=str(row["column"]), mtime_us=row.get("mtime_us"),  # type: ignore[call-overload, arg-type]
        container_us=row.get("container_us"),  # type: ignore[arg-type]
    )  # fmt: skip


def from_table(table: pa.Table, first_key: int = 0) -> list[tuple[SourceRecord, int]]:
    """Records and their shard numbers; `first_key`: see `SourceRecord`."""
    return [(_record(row, first_key), row["shard_id"]) for row in table.to_pylist()]


def walk_table(table: pa.Table, first_key: int = 0) -> Iterator[tuple[SourceRecord, int]]:
    """As `from_table`, a block of rows at a time: listings of millions do not fit in memory as records."""
    for start in range(0, len(table), _BLOCK):
        yield from from_table(table.slice(start, _BLOCK), first_key)


def names_given(table: pa.Table) -> Iterator[str]:
    """The names for restoring in a listing's table, of images, files and sidecars; some are there twice."""
    for batch in table.select(["restore_name", "part", "sidecars"]).to_batches(max_chunksize=_BLOCK):
        yield from batch.column("restore_name").to_pylist()
        yield from batch.column("part").field("keep_name").to_pylist()
        yield from batch.column("sidecars").flatten().field("keep_name").to_pylist()


def _record(row: dict[str, Any], first_key: int) -> SourceRecord:
    return SourceRecord(
        index=row["index"],
        name=row["name"].decode("utf-8", "surrogateescape"),
        part=part_of(row["part"]),
        sidecars=tuple((side["name"], part_of(side)) for side in row["sidecars"]),
        restore_name=row["restore_name"],
        keep_name=row["part"]["keep_name"],
        keep_sidecars=tuple(side["keep_name"] for side in row["sidecars"]),
        first_key=first_key,
    )
