"""Frozen dataclasses as rows of Arrow tables: a field says once how its column is called, of which type it is and what it says.

```
@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    x: Annotated[float, Column(pa.float64(), "abscissa", nullable=False)]
    parts: Annotated[tuple[Part, ...], Column(Part, "what it is made of")] = ()
```
A column of a class is a list of structs of the class's fields.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar, cast, get_type_hints

import pyarrow as pa

_BATCH_ROWS = 4096

Record = TypeVar("Record")


@dataclasses.dataclass(frozen=True, slots=True)
class Column:
    """How a field stands in a table.

    Attributes:
        kind: Arrow type; or a class like this one, of whose records the cell is a list.
        about: What it says, in a sentence; goes into the schema's metadata, as `unit` does.
        nullable: Whether a row that we write may lack it.
        name: Of the column, where no field can be called so (a keyword of Python).
    """

    kind: pa.DataType | type
    about: str = ""
    nullable: bool = True
    name: str = ""
    unit: str = ""

    @property
    def arrow(self) -> pa.DataType:
        """The Arrow type."""
        return pa.list_(pa.struct(list(schema_of(self.kind)))) if isinstance(self.kind, type) else self.kind

    @property
    def metadata(self) -> dict[str, str] | None:
        """Of the schema's field."""
        return {name: text for name, text in (("about", self.about), ("unit", self.unit)) if text} or None


_known: dict[type, dict[str, Column]] = {}


def _columns(cls: type) -> dict[str, Column]:
    """Columns by field, in the order of the fields, each with its name."""
    if cls not in _known:
        hints = get_type_hints(cls, include_extras=True)
        found = {}
        for field in dataclasses.fields(cls):
            column = next(note for note in hints[field.name].__metadata__ if isinstance(note, Column))
            found[field.name] = dataclasses.replace(column, name=column.name or field.name)
        _known[cls] = found
    return _known[cls]


def schema_of(cls: type, metadata: dict[str, str] | None = None) -> pa.Schema:
    """The schema of a class's rows, columns in the order of its fields.

    Args:
        cls: A dataclass, each field annotated with a `Column`.
        metadata: Of the schema.
    """
    fields = [pa.field(c.name, c.arrow, c.nullable, c.metadata) for c in _columns(cls).values()]
    return pa.schema(fields, metadata)


def columns(cls: type, *fields: str) -> list[str]:
    """Names of the columns of some fields. Raises `KeyError` for what is no field: names that a class has no more cannot stay behind in a reader."""
    return [_columns(cls)[field].name for field in fields]


def to_table(cls: type[Record], rows: Iterable[Record], schema: pa.Schema) -> pa.Table:
    """Records as a table.

    Args:
        cls: Their dataclass, each field annotated with a `Column`.
        rows: The records.
        schema: Of the class, or of some of its columns.

    Raises:
        pa.ArrowException: A value does not fit its column's type; or `TypeError`.
    """
    rows = list(rows)
    fields = {column.name: field for field, column in _columns(cls).items()}
    return pa.Table.from_arrays([to_array(cls, fields[name], [getattr(row, fields[name]) for row in rows]) for name in schema.names], schema=schema)


def to_array(cls: type, field: str, cells: Iterable[Any]) -> pa.Array:
    """Values of one field as its column. Raises as `to_table` does."""
    column = _columns(cls)[field]
    return pa.array([[_plain(part) for part in cell] for cell in cells] if isinstance(column.kind, type) else cells, column.arrow)


def _plain(record: Any) -> dict[str, Any]:
    return {column.name: getattr(record, field) for field, column in _columns(type(record)).items()}


def rows_of(cls: type[Record], table: pa.Table) -> Iterator[Record]:
    """The rows of a table.

    Fields whose column the table lacks, and nulls, are None, whatever the field's type says: those who ask for columns know which, and other people
    may have written anything. Lists of records are never None, nor is anything in them.

    Args:
        cls: A dataclass, each field annotated with a `Column`.
        table: Of its columns or some of them.
    """
    named = _columns(cls)
    present = [(field, column.name, column.kind) for field, column in named.items() if column.name in table.column_names]
    needed = {field.name for field in dataclasses.fields(cast("Any", cls)) if field.default is dataclasses.MISSING}
    absent = dict.fromkeys(needed - {field for field, *_ in present})
    for batch in table.to_batches(max_chunksize=_BATCH_ROWS):
        for row in batch.to_pylist():
            values = {field: _records(kind, row[name]) if isinstance(kind, type) else row[name] for field, name, kind in present}
            yield cls(**values, **absent)


def _records(cls: type[Record], cells: list[dict[str, Any] | None] | None) -> tuple[Record, ...]:
    named = _columns(cls)
    return tuple(cls(**{field: cell.get(column.name) for field, column in named.items()}) for cell in cells or () if cell is not None)
