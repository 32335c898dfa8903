"""The typed row of the manifest, and the tables that are made of dataclasses."""

from __future__ import annotations

import dataclasses
import io
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.archive import manifest
from pipeline.archive.row import Row, Sidecar
from pipeline.errors import ManifestError
from pipeline.formats.records import columns, rows_of, schema_of, to_table
from pipeline.read.rows import COLUMNS

PARTS = sorted((Path(__file__).parents[2] / "golden" / "archive" / "version-4" / "manifest").iterdir())


AMENDED: dict[str, str] = {
    "codec": "what decodes the payload: msinn, jxl-jpeg, lepton, jxl, zstd, or kept (the file itself); null if nothing is stored",
    "form": "msinn, jpeg-exact, pixels-exact or kept: see FORMS.md; null if nothing is stored",
}
"""Sentences of the schema's version that its golden archive has otherwise. Each file says what its own writer meant; names, types and values are the
same, so that it is no new version."""


def as_in_golden_files() -> pa.Schema:
    return pa.schema(
        [field.with_metadata({"about": AMENDED[field.name]}) if field.name in AMENDED else field for field in manifest.SCHEMA],
        manifest.SCHEMA.metadata,
    )


def row(**values: object) -> Row:
    """A row of a file that was kept, but for these values."""
    texts = dict.fromkeys(("key", "name", "restore_name", "source_uri", "shard_key", "attempt"), "x")
    needed = {**texts, "shard_id": 0, "stored_bytes": 1024, "lossless": True, "decode_verified": False, "status": "kept"}
    return Row(**{**needed, **values})  # type: ignore[arg-type]


def test_the_schema_is_the_one_of_the_golden_archive() -> None:
    """Names, order, types, nullability, every sentence: whoever reads archives relies on them."""
    for part in PARTS:
        there = pq.read_schema(part)
        assert (there.names, there.metadata) == (manifest.SCHEMA.names, manifest.SCHEMA.metadata), part
        for field in as_in_golden_files():
            found = there.field(field.name)
            # Parquet calls what is in a list by another name than Arrow.
            assert (found.type, found.nullable, found.metadata) == (field.type, field.nullable, field.metadata), part


def test_the_page_and_the_schema_name_the_same_columns() -> None:
    page = Path(manifest.__file__).with_name("MANIFEST.md").read_text()
    assert re.findall(r"^\| `(\w+)` \|", page, re.M) == manifest.SCHEMA.names
    assert len(manifest.SCHEMA) == len(dataclasses.fields(Row)) == 58


def test_fields_that_every_row_has_are_those_that_cannot_be_null() -> None:
    needed = {field.name for field in dataclasses.fields(Row) if field.default is dataclasses.MISSING}
    assert needed == {field.name for field in manifest.SCHEMA if not field.nullable}


@pytest.mark.parametrize("part", PARTS, ids=lambda path: path.name[:5])
def test_rows_that_are_read_and_written_again_are_the_same_bytes(part: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = part.read_bytes()
    monkeypatch.setattr(manifest, "SCHEMA", as_in_golden_files())
    assert manifest.to_bytes(rows_of(Row, manifest.read(data))) == data


def test_rows_are_what_the_table_says() -> None:
    table = pa.concat_tables(manifest.read(part.read_bytes()) for part in PARTS)
    for made, plain in zip(rows_of(Row, table), table.to_pylist(), strict=True):
        assert made.multiplier == plain.pop("lambda")
        assert [dataclasses.asdict(side) for side in made.sidecars] == plain.pop("sidecars")
        assert [dataclasses.asdict(kind) for kind in made.metadata] == plain.pop("metadata")
        assert {name: getattr(made, name) for name in plain} == plain


def test_columns_are_named_by_fields() -> None:
    assert columns(Row, "key", "multiplier") == ["key", "lambda"]
    assert columns(Sidecar, "sha256") == ["sha256"]
    assert set(COLUMNS) <= set(manifest.SCHEMA.names)
    with pytest.raises(KeyError, match="passthrough"):
        columns(Row, "passthrough")


def test_what_was_not_asked_for_or_left_out_is_none() -> None:
    """Whoever wrote a manifest may have left out anything; a list of sidecars can be walked all the same."""
    side = {"name": "a.json", "restore_name": "a.json", "member": "a", "offset": 0, "length": 1, "sha256": "0", "mtime": None}
    rows = [{"key": "a", "sidecars": [None, side]}, {"key": None, "sidecars": None}]
    table = pa.Table.from_pylist(rows, schema=pa.schema([manifest.READ_SCHEMA.field(name) for name in ("key", "sidecars")]))
    first, second = rows_of(Row, table)
    assert (first.key, first.name, first.codec, [part.name for part in first.sidecars]) == ("a", None, None, ["a.json"])
    assert (second.key, second.sidecars, second.metadata) == (None, (), ())


def test_some_columns_of_rows_are_a_table_too() -> None:
    schema = pa.schema([manifest.READ_SCHEMA.field(name) for name in COLUMNS])
    assert to_table(Row, [], schema).num_rows == 0
    assert to_table(Row, [row(key="7")], schema).select(["key", "sidecars"]).to_pylist() == [{"key": "7", "sidecars": []}]


@pytest.mark.parametrize(("field", "value"), [("width", "wide"), ("width", 2**40), ("sidecars", ("a.json",)), ("mtime", "yesterday")])
def test_a_row_that_does_not_fit_is_an_error(field: str, value: object) -> None:
    with pytest.raises(ManifestError, match="does not fit"):
        manifest.to_bytes([row(**{field: value})])


def test_a_schema_without_sentences_has_no_metadata() -> None:
    assert schema_of(Sidecar).field("mtime").metadata is None
    assert pq.read_schema(io.BytesIO(manifest.to_bytes([row()]))).metadata[b"msinn.manifest"] == b"3"
