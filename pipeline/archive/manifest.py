"""The manifest as a file: Parquet of `row.Row`s, in the words and types of the present version whoever wrote it."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.archive.row import Row
from pipeline.errors import ManifestError
from pipeline.formats.parquet import read_bounded
from pipeline.formats.records import schema_of, to_table

SCHEMA_VERSION = "2"
"""Version 1 had other words (`ok`, `passthrough`), 100 dB for untouched files, and no mtime, pixels, metadata; it is read as version 2."""


SCHEMA = schema_of(Row, {"msinn.manifest": SCHEMA_VERSION})
"""Of what is written."""

READ_SCHEMA = pa.schema([field.with_nullable(True) for field in SCHEMA], SCHEMA.metadata)
"""Of what is read: whoever wrote it may have left anything out."""


def to_bytes(rows: Iterable[Row]) -> bytes:
    """Parquet file of these rows.

    Raises:
        ManifestError: A row does not fit the schema.
    """
    try:
        table = to_table(Row, rows, SCHEMA)
    except (pa.ArrowException, TypeError) as error:
        raise ManifestError(f"a row does not fit the manifest: {error}") from error
    return table_bytes(table)


def table_bytes(table: pa.Table) -> bytes:
    """A table as a Parquet file."""
    return blocks_bytes(table.schema, [table])


def blocks_bytes(schema: pa.Schema, blocks: Iterable[pa.Table]) -> bytes:
    """Tables of this schema, one after the other, as a Parquet file with a row group for each."""
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
        for block in blocks:
            writer.write_table(block)
    return sink.getvalue()


def read(data: bytes, *, columns: list[str] | None = None) -> pa.Table:
    """A manifest part, in the words and types of the present schema. Texts that are not UTF-8 and times that no calendar has are mended.

    Args:
        data: Parquet.
        columns: Those wanted; all if not given.

    Raises:
        ManifestError: Not Parquet, of other columns or types, larger than any of ours, or of another schema version.
    """
    try:
        metadata = pq.read_schema(io.BytesIO(data)).metadata or {}
        version = metadata.get(b"msinn.manifest", b"?").decode("utf-8", "replace")
        if version == "1":
            table = _of_version_1(_mended(read_bounded(data)))
            return table.select(columns) if columns is not None else table
        if version == SCHEMA_VERSION:
            table = read_bounded(data, columns=columns or SCHEMA.names)
            return _mended(table.cast(pa.schema([READ_SCHEMA.field(name) for name in table.column_names], SCHEMA.metadata)))
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise ManifestError(f"not a readable Parquet file: {error}") from error
    raise ManifestError(f"manifest schema version {version[:20]!r}; this msinn reads versions 1 and {SCHEMA_VERSION}: use another version")


_FIRST_US, _LAST_US = -62_135_596_800_000_000, 253_402_300_799_999_999
"""0001-01-01 and 9999-12-31."""


def _mended(table: pa.Table) -> pa.Table:
    """The table, of which every value can be had as Python's: files that others wrote may hold anything in the bytes of a text or a time."""
    try:
        table.validate(full=True)
        times = [array for column in table.columns for array in _times(column.combine_chunks())]
        ends = [(end["min"].as_py(), end["max"].as_py()) for end in map(pc.min_max, times)]
        if all(least is None or _FIRST_US <= least <= most <= _LAST_US for least, most in ends):
            return table
    except pa.ArrowInvalid:
        pass
    raw = pa.schema([pa.field(field.name, _raw(field.type)) for field in table.schema])
    rows = [{field.name: _value(row[field.name], field.type) for field in table.schema} for row in table.cast(raw).to_pylist()]
    return pa.Table.from_pylist(rows, schema=table.schema)


def _times(array: pa.Array) -> list[pa.Array]:
    """All times in an array, as whole numbers of microseconds."""
    if pa.types.is_list(array.type):
        return _times(array.flatten())
    if pa.types.is_struct(array.type):
        return [found for child in array.flatten() for found in _times(child)]
    if pa.types.is_timestamp(array.type):
        return [array.cast(pa.timestamp("us", array.type.tz)).cast(pa.int64())]
    return []


def _raw(kind: pa.DataType) -> pa.DataType:
    """The type that holds the same bytes and promises nothing of them."""
    if pa.types.is_list(kind):
        return pa.list_(_raw(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(field.name, _raw(field.type)) for field in kind])
    return pa.binary() if pa.types.is_string(kind) else pa.int64() if pa.types.is_timestamp(kind) else kind


def _value(value: Any, kind: pa.DataType) -> Any:
    if value is None:
        return None
    if pa.types.is_list(kind):
        return [_value(item, kind.value_type) for item in value]
    if pa.types.is_struct(kind):
        return {field.name: _value(value[field.name], field.type) for field in kind}
    if pa.types.is_string(kind):
        return value.decode("utf-8", "replace")
    if pa.types.is_timestamp(kind):
        scale = 1000 if kind.unit == "ms" else 1
        return value if _FIRST_US <= value * scale <= _LAST_US else None
    return value


def _of_version_1(table: pa.Table) -> pa.Table:
    rows = table.to_pylist()
    for row in rows:
        kept = row["codec"] == "passthrough"
        missing = row["codec"] is None or row["error_code"] == "sidecar_unreadable"
        decodes = row["status"] != "failed" and row["width"] and row["height"]
        row |= {
            "codec": "kept" if kept else row["codec"],
            "status": "failed" if missing else "kept" if kept else "coded",
            "psnr_db": None if kept else row["psnr_db"],
            "lossless": kept,
            "pixels": row["width"] * row["height"] if decodes else None,
        }
    return pa.Table.from_pylist(rows, schema=READ_SCHEMA)


def page() -> str:
    """The schema as a Markdown page, `MANIFEST.md`."""
    lines = [
        f"# The manifest, schema version {SCHEMA_VERSION}",
        "One row for every source image, whatever became of it: `manifest/*.parquet` in the archive,",
        "the view `manifest` of `msinn audit` and `restore --where`.",
        "",
        "| column | type | what it says |",
        "| --- | --- | --- |",
    ]
    for field in SCHEMA:
        kind = str(field.type).replace("|", "\\|")
        lines.append(f"| `{field.name}` | {kind} | {field.metadata[b'about'].decode()} |")
    return "\n".join(lines) + "\n"
