"""Names under which images are restored: each once, and a table that says which file holds which original."""

from __future__ import annotations

import csv
import io
import itertools
import os
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.archive.conversion import Conversion
from pipeline.archive.row import Row, Sidecar
from pipeline.errors import UsageError
from pipeline.formats.records import columns, rows_of, to_array

NAMES = "msinn-names.csv"
"""What a restore writes beside the images: which file holds which original."""

_HEADER = b"name,restored_as,lossless,status,sidecar_of\n"


def as_wanted(rows: pa.Table, conversion: Conversion | None) -> tuple[pa.Table, int]:
    """Rows with the names that their files get, and how many are not written at all."""
    if conversion is None:
        return rows, 0
    written, names, lossless = [], [], []
    for i, row in enumerate(rows_of(Row, rows)):
        if not conversion.leaves_out(row):
            written.append(i)
            names.append(conversion.name_of(row))
            lossless.append(conversion.is_lossless(row))
    left_out = len(rows) - len(written)
    rows = rows.take(pa.array(written, pa.int64()))
    for name, cells in (("restore_name", names), ("lossless", lossless)):
        position = rows.column_names.index(name)
        rows = rows.set_column(position, rows.schema.field(position), to_array(Row, name, cells))
    return rows, left_out


def with_single_names(rows: pa.Table) -> tuple[pa.Table, list[str]]:
    """Rows of which no two write one file: whoever made such an archive, neither image shall replace the other. And a sentence for each new name."""
    taken: set[str] = set()
    problems: list[str] = []

    def single(name: str, key: str) -> str:
        found = name
        for count in itertools.count(1):
            if found.casefold() not in taken:
                break
            stem, suffix = os.path.splitext(name)
            found = f"{stem}~{key}.{count}{suffix}"
        taken.add(found.casefold())
        if found != name:
            problems.append(f"two files of the archive are to be restored as {name}: the second is restored as {found}")
        return found

    names: list[str] = []
    sidecars: list[tuple[Sidecar, ...]] = []
    for row in rows_of(Row, rows.select(columns(Row, "key", "restore_name", "sidecars"))):
        names.append(single(row.restore_name, row.key))
        sidecars.append(tuple(replace(side, restore_name=single(side.restore_name, row.key)) for side in row.sidecars))
    if not problems:
        return rows, []
    for name, cells in (("restore_name", names), ("sidecars", sidecars)):
        rows = rows.set_column(rows.column_names.index(name), rows.schema.field(name), to_array(Row, name, cells))
    return rows, problems


def map_name(rows: pa.Table) -> str:
    """What the table of names is called: no file of the restore has this name, and none lies in a folder that is called so."""
    sidecars = rows.column("sidecars").combine_chunks().flatten()
    taken: set[str] = set()
    for names in (rows.column("restore_name"), sidecars.field("restore_name")):
        # A target that makes no difference between small and large letters has one place for both.
        alike = names.filter(pc.match_like(names, "msinn-names%", ignore_case=True))
        taken.update(name.partition("/")[0].casefold() for name in alike.to_pylist())
    return next(name for name in (NAMES, *(f"msinn-names~{i}.csv" for i in range(len(taken) + 1))) if name not in taken)


def names_table(rows: pa.Table) -> bytes:
    """CSV of all rows: `name` (original), `restored_as`, `lossless` (the file itself), `status`, `sidecar_of` (empty for images)."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for row in rows_of(Row, rows.select(columns(Row, "name", "restore_name", "codec", "status", "sidecars", "lossless"))):
        writer.writerow((row.name, row.restore_name if row.codec else "", str(bool(row.lossless)).lower(), row.status, ""))
        for side in row.sidecars:
            writer.writerow((side.name, side.restore_name, "true", "kept", row.name))
    return _HEADER + text.getvalue().encode("utf-8", "replace")


def names_before(data: bytes | None, place: str) -> list[bytes]:
    """Lines of a table of names that is there: of files that were fetched before.

    Raises:
        UsageError: Somebody else's file is called so.
    """
    header, *lines = (data or _HEADER).splitlines(keepends=True)
    if header != _HEADER:
        raise UsageError(f"{place} is no table of names of ours, and one would take its place: choose another folder")
    return lines


def names_joined(before: list[bytes], table: bytes) -> bytes:
    """A table of names with those lines of an earlier one that it lacks."""
    return b"".join([_HEADER, *dict.fromkeys([*before, *table.splitlines(keepends=True)[1:]])])
