"""Rows of the manifest that can be restored, and a sentence for everything that cannot."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pyarrow as pa

from pipeline.archive import manifest
from pipeline.archive.archive import Archive, without
from pipeline.archive.commits import Commit, Place
from pipeline.archive.layer import Books, with_prefix
from pipeline.archive.row import Row, Sidecar
from pipeline.errors import ManifestError, OutageError, StorageError
from pipeline.formats.records import columns, rows_of, to_array, to_table
from pipeline.read.audit import select
from pipeline.read.salvage import Salvage

COLUMNS = columns(
    Row, "key", "name", "restore_name", "shard_key", "offset", "length", "payload_sha256", "codec", "model_sha256", "recon_sha256", "sidecars",
    "encoder", "width", "height", "mtime", "lossless", "status", "pixels", "form", "exact", "writer", "source_sha256", "error_code",
    "source_format", "channels", "bit_depth", "source_bytes",
)  # fmt: skip
"""What a restore needs to know of an image."""

OLDER = "~older-"
"""In the name of an image that is there in a later version too, where it is lost whether the later took its place; its key follows."""


def rows_left(archive: Archive, where: str | None = None) -> tuple[pa.Table, list[str]]:
    """All rows, or those that fulfil an SQL condition; where the books are damaged, what can be put together otherwise.

    Returns:
        A table of `COLUMNS`, in archive order, and a sentence for everything that is lost, damaged or not finished.

    Raises:
        UsageError: Bad SQL.
    """
    books = archive.books()
    problems = books.unfinished + books.problems
    wanted = COLUMNS if where is None else None
    lost: dict[Place, tuple[Commit | None, str]] = {shard: (None, sentence) for shard, sentence in books.lost.items()}
    tables: dict[Place, pa.Table] = {}

    def read(record: Commit) -> tuple[pa.Table, list[str]] | str:
        try:
            return usable(archive.manifest_part(record, wanted), archive.store.path(record.manifest))
        except OutageError:
            raise
        except (ManifestError, StorageError) as error:
            return str(error)

    with ThreadPoolExecutor(8) as pool:
        for record, part in zip(books.commits, pool.map(read, books.commits), strict=True):
            if isinstance(part, str):
                lost[record.place] = (record, part)
            else:
                tables[record.place] = part[0]
                problems += part[1]
    if where is not None:
        problems += [f"{sentence}: a condition cannot find its images, but a restore of everything can" for _, sentence in lost.values()]
    else:
        found = _salvaged(archive, books, lost)
        problems += [sentence for sentence, _ in found.values()]
        tables |= {shard: table for shard, (_, table) in found.items()}
    schema = _schema(COLUMNS if where is None else manifest.READ_SCHEMA.names)
    problems += _as_older(archive, tables)
    table = pa.concat_tables([tables[shard].replace_schema_metadata(None) for shard in sorted(tables)]) if tables else schema.empty_table()
    return (select(table, where).select(COLUMNS) if where is not None else table), problems


def _as_older(archive: Archive, tables: dict[Place, pa.Table]) -> list[str]:
    """Where it is lost which images a generation no longer has: files that it has anew keep their names, and older versions get others.

    Args:
        archive: Of which the rows are.
        tables: Rows by shard, changed in place.

    Returns:
        A sentence that says so, if there are any.
    """
    if not archive.forgotten:
        return []
    newest: dict[str, int] = {}
    for (generation, _), table in tables.items():
        if generation >= archive.forgotten[0]:
            newest.update((name, max(generation, newest.get(name, 0))) for name in table.column("name").to_pylist())
    renamed = []
    for place, table in tables.items():
        rows = table.select(columns(Row, "key", "name", "restore_name", "sidecars"))
        # Which of two files of one name it was is not known either: both are older than the one that came later.
        older = [newest.get(row.name, 0) > place[0] for row in rows_of(Row, rows)]
        if not any(older):
            continue
        named, sidecars = [], []
        for row, is_older in zip(rows_of(Row, rows), older, strict=True):
            named.append(_older_name(row.restore_name, row.key) if is_older else row.restore_name)
            sides = (replace(side, restore_name=_older_name(side.restore_name, row.key)) for side in row.sidecars)
            sidecars.append(tuple(sides) if is_older else row.sidecars)
            renamed += [named[-1]] if is_older else []
        for name, cells in (("restore_name", named), ("sidecars", sidecars)):
            table = table.set_column(table.column_names.index(name), table.schema.field(name), to_array(Row, name, cells))
        tables[place] = table
    return [f"{len(renamed)} images are there in a later version too, and are named otherwise, for example {renamed[0]}"] if renamed else []


def _older_name(name: str, key: str) -> str:
    stem, suffix = os.path.splitext(name)
    return f"{stem}{OLDER}{key}{suffix}"


_TEXTS = columns(Row, "key", "name", "restore_name", "shard_key")
_OF_SIDECAR = columns(Sidecar, "name", "restore_name", "offset", "length", "sha256")


def usable(table: pa.Table, place: str) -> tuple[pa.Table, list[str]]:
    """Rows that say what every row must, and a sentence for each of the others."""
    texts = [table.column(name) for name in _TEXTS]
    sides = table.column("sidecars").combine_chunks().flatten()
    inner = [sides.field(name) for name in _OF_SIDECAR]
    if not any(column.null_count for column in texts) and not sides.null_count and not any(column.null_count for column in inner):
        return table, []
    good, problems = [], []
    for i, row in enumerate(table.select([*_TEXTS, "sidecars"]).to_pylist()):
        lacking = [name for name in _TEXTS if row[name] is None]
        if any(side is None or any(side[name] is None for name in _OF_SIDECAR) for side in row["sidecars"] or []):
            lacking.append("what a sidecar needs")
        if lacking:
            problems.append(f"{place}: row {i} ({row['name'] or row['key'] or 'without a name'}) lacks {', '.join(lacking)}, and cannot be restored")
        else:
            good.append(i)
    return table.take(pa.array(good, pa.int64())), problems


def _salvaged(archive: Archive, books: Books, lost: dict[Place, tuple[Commit | None, str]]) -> dict[Place, tuple[str, pa.Table]]:
    """For every shard whose books or object are lost a sentence, and the rows that can be had all the same."""
    result = {}
    for layer in archive.layers:
        salvage = Salvage(archive, layer)
        wanted = {place: found for place, found in lost.items() if place[0] == layer.generation}
        for record in books.commits:
            if record.generation == layer.generation and not salvage.present(record.shard):
                # Another attempt at the shard may have left its own.
                wanted.setdefault(record.place, (None, f"{archive.store.path(record.shard)} is missing"))
        committed = {record.shard_id for record in books.commits if record.generation == layer.generation}
        for shard in salvage.numbers():
            # A shard of which all is removed is none that is missed.
            if shard < layer.run.shards and shard not in committed and not archive.is_removed((layer.generation, shard)):
                wanted.setdefault((layer.generation, shard), (None, f"shard {shard} is not committed"))
        for place, (commit, sentence) in wanted.items():
            rows, how = salvage.rows(place[1], commit)
            if rows or place in lost:
                table = with_prefix(to_table(Row, rows, _schema(COLUMNS)), layer.prefix)
                result[place] = (f"{sentence}: {how}", without(table, archive.removed_keys(place)))
    return result


def _schema(names: list[str]) -> pa.Schema:
    return pa.schema([manifest.READ_SCHEMA.field(name) for name in names])
