"""What a scan finds: records that say where the bytes of an image and of its sidecars lie, and how they will be named again."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

FILE, RANGE, CELL, ROW_JSON = "file", "range", "cell", "row_json"
"""Kinds of `Part`: a whole file, a byte range of one, a Parquet cell, the other columns of a Parquet row as JSON."""


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
    """

    kind: str
    uri: str
    length: int
    offset: int = 0
    group: int = 0
    column: str = ""


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
    """

    index: int
    name: str
    part: Part
    sidecars: tuple[tuple[str, Part], ...] = ()
    restore_name: str = ""
    keep_name: str = ""
    keep_sidecars: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Dot-free name inside the archive, the same for every run over the same listing."""
        return f"{self.index:09d}"

    @property
    def source_uri(self) -> str:
        """For people and manifests."""
        place = {FILE: "", RANGE: f"#{self.name}", CELL: f"#{self.part.group}/{self.part.offset}"}[self.part.kind]
        return printable(self.part.uri) + place


def printable(text: str) -> str:
    """File names that are not UTF-8 as text that Parquet and terminals can hold."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def safe_name(name: str) -> str:
    """A relative path that cannot leave its folder: no `..`, no absolute or drive part, no control characters, components of at most 200 bytes."""
    parts = []
    for part in re.split(r"[/\\]+", printable(name)):
        clean = re.sub(r"[\x00-\x1f\x7f:]", "_", part).strip()
        if clean in ("", "."):
            continue
        if set(clean) == {"."}:
            clean = "_" * len(clean)
        if len(clean.encode()) > 200:
            stem, suffix = os.path.splitext(clean)
            digest = hashlib.sha256(clean.encode()).hexdigest()[:12]
            clean = stem.encode()[:150].decode("utf-8", "ignore") + "~" + digest + suffix[:20]
        parts.append(clean)
    return "/".join(parts) or "_"


def with_restore_names(records: Sequence[SourceRecord]) -> list[SourceRecord]:
    """Give every record names for restoring that are unique, even where two sources share a name or a file system ignores case."""
    # A name that is a folder of another cannot be a file.
    taken: set[str] = set()
    for record in records:
        for name in (record.name, *(name for name, _ in record.sidecars)):
            parents = safe_name(name).casefold().split("/")[:-1]
            taken.update("/".join(parents[: i + 1]) for i in range(len(parents)))

    def unique(name: str, index: int, *alternatives: str) -> str:
        stem, suffix = os.path.splitext(name)
        for candidate in (name, *alternatives, f"{stem}~{index}{suffix}"):
            if candidate.casefold() not in taken:
                taken.add(candidate.casefold())
                return candidate
        count = 1
        while (candidate := f"{stem}~{index}.{count}{suffix}").casefold() in taken:
            count += 1
        taken.add(candidate.casefold())
        return candidate

    kept = []
    for record in records:
        keep = unique(safe_name(record.name), record.index)
        kept.append(replace(record, keep_name=keep, keep_sidecars=tuple(unique(safe_name(name), record.index) for name, _ in record.sidecars)))
    done = []
    for record in kept:
        png = os.path.splitext(record.keep_name)[0] + ".png"
        if png.casefold() == record.keep_name.casefold():
            name = record.keep_name
        else:
            name = unique(png, record.index, record.keep_name + ".png")
        done.append(replace(record, restore_name=name))
    return done


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
        "name": printable(name), "kind": part.kind, "uri": _bytes(part.uri), "offset": part.offset, "length": part.length,
        "group": part.group, "column": part.column, "keep_name": keep_name,
    }  # fmt: skip


def to_table(records: Iterable[SourceRecord], shard_ids: Iterable[int]) -> pa.Table:
    """Scan table; `from_table` gives the records back."""
    rows = [
        {
            "index": r.index,
            "name": _bytes(r.name),
            "restore_name": r.restore_name,
            "part": _part_row(r.name, r.part, r.keep_name),
            "sidecars": [_part_row(name, part, keep) for (name, part), keep in zip(r.sidecars, r.keep_sidecars, strict=True)],
            "shard_id": shard,
        }
        for r, shard in zip(records, shard_ids, strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=SCAN_SCHEMA)


def _part(row: dict[str, object]) -> Part:
    uri = row["uri"]
    assert isinstance(uri, bytes)
    return Part(
        kind=str(row["kind"]), uri=uri.decode("utf-8", "surrogateescape"), length=int(row["length"]), offset=int(row["offset"]),  # type: ignore[call-overload]
        group=int(row["group"]), column=str(row["column"]),  # type: ignore[call-overload]
    )  # fmt: skip


def from_table(table: pa.Table) -> list[tuple[SourceRecord, int]]:
    """Records and their shard numbers."""
    return [
        (
            SourceRecord(
                index=row["index"],
                name=row["name"].decode("utf-8", "surrogateescape"),
                part=_part(row["part"]),
                sidecars=tuple((side["name"], _part(side)) for side in row["sidecars"]),
                restore_name=row["restore_name"],
                keep_name=row["part"]["keep_name"],
                keep_sidecars=tuple(side["keep_name"] for side in row["sidecars"]),
            ),
            row["shard_id"],
        )
        for row in table.to_pylist()
    ]
