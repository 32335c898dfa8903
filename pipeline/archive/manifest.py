"""The manifest as a file: Parquet of `row.Row`s, in the words and types of the present version whoever wrote it."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.archive.row import Row
from pipeline.errors import ManifestError
from pipeline.formats.parquet import read_bounded
from pipeline.formats.records import schema_of, to_table
from pipeline.forms.family import promise_of

SCHEMA_VERSION = "3"
"""Version 1 had other words (`ok`, `passthrough`), 100 dB for untouched files, and no mtime, pixels, metadata; version 2 had no forms. Both are read
as version 3."""

_SINCE_3 = frozenset(("form", "exact", "writer"))


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
        if version == "2":
            wanted = columns or SCHEMA.names
            there = list(dict.fromkeys([*(name for name in wanted if name not in _SINCE_3), "codec"]))
            return _with_forms(_mended(_cast(read_bounded(data, columns=there)))).select(wanted)
        if version == SCHEMA_VERSION:
            return _mended(_cast(read_bounded(data, columns=columns or SCHEMA.names)))
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise ManifestError(f"not a readable Parquet file: {error}") from error
    raise ManifestError(f"manifest schema version {version[:20]!r}; this msinn reads versions 1 to {SCHEMA_VERSION}: use another version")


def _cast(table: pa.Table) -> pa.Table:
    """In the present types, which the same columns of older versions have too."""
    return table.cast(pa.schema([READ_SCHEMA.field(name) for name in table.column_names], SCHEMA.metadata))


def _with_forms(table: pa.Table) -> pa.Table:
    """A table of version 2 with what version 3 says of forms: there were two."""
    promises = [promise_of(codec) for codec in table.column("codec").to_pylist()]
    columns = {"form": [form for form, _ in promises], "exact": [exact for _, exact in promises], "writer": [None] * len(promises)}
    for name, values in columns.items():
        table = table.append_column(READ_SCHEMA.field(name), pa.array(values, pa.string()))
    return table


_FIRST_US, _LAST_US = -62_135_596_800_000_000, 253_402_300_799_999_999
"""0001-01-01 and 9999-12-31."""


def _mended(table: pa.Table) -> pa.Table:
    """The table, of which every value can be had as Python's: files that others wrote may hold anything in the bytes of a text or a time."""
    import pyarrow.compute as pc  # here: a tenth of a second, and not every command needs it

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
        row["form"], row["exact"] = promise_of(row["codec"])
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
    return "\n".join([*lines, *_GENERATIONS]) + "\n"


_GENERATIONS = """
# Generations: archive version 5
An archive that never grew is of version 4, as before, and generation 1. What is new since then is in archives that have grown:

- `seals/00001.json` is what `MANIFEST.json` was; `seals/0000N.json` is generation N's seal. A generation is there from the moment its seal is. A
  seal says its `folder`, the `folders` of all later generations, its `run` (as `run.json` of the folder), the SHA-256 of the seal before it
  (`parent_sha256`), totals over all that it has (`shards`, `shard_bytes` and `counted_bytes`: of shards of which it has an image), those of what it
  added (`own`), how many images were `added`, `changed` and `vanished`, and the hash of every commit of its own.
- `generations/0000N-<sha12>/` has the objects of an archive for what generation N added: `run.json`, `scan/`, `plan/`, `shards/`, `manifest/`,
  `commits/`. Names in it are from there; models are the archive's. Its `run.json` is of version 5 and says `generation`, `first_key` (keys count on
  from the images that there were), `parent_sha256` and `removed`.
- `removed/00000-<sha12>.parquet` in that folder lists the images that generation N no longer has: `key`, `name`, `generation` and `shard_id` (where
  it lies), `why` (`vanished`; `changed`: it has the file anew; or `unread`: a row of N's own, of a changed file that could not be read, in place of
  which the older image stays; then the seal's `run` names another list than `run.json`, and the seal counts them as `unread`). Rows of generation N
  are those of 1 to N less those that the lists of 2 to N name. No older part of the manifest is written again.
- `MANIFEST.json` stays generation 1's seal, for readers that know no other (they see that generation, whole), and `newest` in it names generation,
  seal, its SHA-256 and all folders.
- `seals/0000N.dropped.json` says that `gc --keep` gave generation N up: shards that it alone used may be gone. `run.json` then says version 5,
  which an earlier msinn refuses.
- Every `run.json` says `listed_us` now, when the source began to be listed (microseconds since 1970), and listings `container_us`, the time of the
  tar or Parquet file that a member lies in. Earlier readers do not ask for them; where they are missing, growth looks at the content.
""".splitlines()
