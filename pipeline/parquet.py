"""Parquet files of an archive, which anybody may have made: read within bounds on what they inflate to."""

from __future__ import annotations

import io
from collections.abc import Callable

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

MAX_GROUP_BYTES = 1 << 28
"""Of a row group: its pages inflated, and what it takes as a table. Ours hold 4,096 rows of a manifest or 16,384 of a listing."""

MAX_BYTES = 1 << 32
"""Of a table as a whole."""

_MAX_GROUP_VALUES = 1 << 25
_MAX_FOOTER_BYTES = 1 << 26


class TooLargeError(pa.ArrowInvalid):  # type: ignore[misc]
    """A Parquet file holds more than anybody would write."""


def read_bounded(data: bytes, *, columns: list[str] | None = None, where: Callable[[pq.RowGroupMetaData], bool] | None = None) -> pa.Table:
    """The table of a Parquet file, a row group at a time, each first measured by the headers that its reader will follow.

    Args:
        data: The file.
        columns: Those wanted; all if not given.
        where: Chooses row groups.

    Raises:
        pa.ArrowException: Damaged, or larger than the limits above.
        KeyError: No such column.
    """
    limits = {"thrift_string_size_limit": _MAX_FOOTER_BYTES, "thrift_container_size_limit": _MAX_FOOTER_BYTES}
    plain = pq.ParquetFile(io.BytesIO(data), **limits)
    schema, metadata = plain.schema_arrow, plain.metadata
    if columns is not None:
        schema = pa.schema([schema.field(name) for name in columns], schema.metadata)
    texts = [plain.schema.column(i).path for i in range(len(plain.schema)) if plain.schema.column(i).physical_type == "BYTE_ARRAY"]
    # As dictionaries: a short file may repeat a long string without end.
    file = pq.ParquetFile(io.BytesIO(data), read_dictionary=texts, **limits)
    tables, total = [], 0
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group)
        if where is not None and not where(rows):
            continue
        _check_group(rows, memoryview(data))
        table = file.read_row_group(group, columns=columns, use_threads=False)
        size = sum(_expanded_bytes(chunk) for column in table.columns for chunk in column.chunks)
        total += size
        if size > MAX_GROUP_BYTES or total > MAX_BYTES:
            raise TooLargeError("its table is larger than anything this program writes")
        tables.append(table.select(schema.names).cast(schema))
    return pa.concat_tables(tables) if tables else schema.empty_table()


def _check_group(rows: pq.RowGroupMetaData, data: memoryview) -> None:
    inflated = values = 0
    for i in range(rows.num_columns):
        column = rows.column(i)
        start = column.data_page_offset
        if column.dictionary_page_offset is not None:
            start = min(start, column.dictionary_page_offset)
        if not 0 <= start <= len(data) or not 0 <= column.total_compressed_size <= len(data) - start:
            raise pa.ArrowInvalid(f"column {column.path_in_schema} lies outside the file")
        of_column = measure(data[start : start + column.total_compressed_size])
        inflated, values = inflated + of_column[0], values + of_column[1]
        if inflated > MAX_GROUP_BYTES or values > _MAX_GROUP_VALUES:
            raise TooLargeError("its pages inflate to more than anything this program writes")


def measure(chunk: memoryview) -> tuple[int, int]:
    """Bytes that a column chunk's pages inflate to, and values in them, as their headers say it.

    Raises:
        pa.ArrowInvalid: No such headers.
    """
    position = inflated = values = 0
    while position < len(chunk):
        reader = _Thrift(chunk, position)
        fields = reader.struct()
        size, stored = fields.get((2,), -1), fields.get((3,), -1)
        if size < 0 or stored < 0:
            raise pa.ArrowInvalid("a page without a size")
        # Data pages of both versions, and dictionaries, say how many values they hold.
        count = max(fields.get((field, 1), 0) for field in (5, 7, 8))
        if count < 0:
            raise pa.ArrowInvalid("a page of a negative number of values")
        inflated, values = inflated + size, values + count
        position = reader.position + stored
    return inflated, values


def _expanded_bytes(array: pa.Array) -> int:
    """Bytes of an array once its dictionaries are written out."""
    if pa.types.is_dictionary(array.type):
        lengths = pc.fill_null(pc.binary_length(array.dictionary), 0).cast(pa.int64())
        return int(pc.sum(lengths.take(array.indices.drop_null())).as_py() or 0) + 8 * len(array)
    if pa.types.is_list(array.type):
        return int(array.nbytes if array.values is None else _expanded_bytes(array.values)) + 4 * len(array)
    if pa.types.is_struct(array.type):
        return sum(_expanded_bytes(array.field(i)) for i in range(array.type.num_fields)) + len(array)
    return int(array.nbytes)


class _Thrift:
    """Thrift's compact protocol, as far as it takes to find the whole numbers of a page header."""

    _MAX_DEPTH = 8

    def __init__(self, data: memoryview, position: int) -> None:
        self._data = data
        self.position = position

    def _byte(self) -> int:
        if self.position >= len(self._data):
            raise pa.ArrowInvalid("a page header is cut short")
        self.position += 1
        return self._data[self.position - 1]

    def _varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise pa.ArrowInvalid("a number of a page header is too long")

    def _zigzag(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)

    def struct(self, place: tuple[int, ...] = ()) -> dict[tuple[int, ...], int]:
        """Whole numbers of a struct and of those in it, by their path of fields; all else is skipped."""
        if len(place) > self._MAX_DEPTH:
            raise pa.ArrowInvalid("a page header is too deep")
        found: dict[tuple[int, ...], int] = {}
        field = 0
        while (head := self._byte()) & 15:
            field = field + (head >> 4) if head >> 4 else self._zigzag()
            found |= self._value(head & 15, (*place, field))
        return found

    def _value(self, kind: int, place: tuple[int, ...]) -> dict[tuple[int, ...], int]:
        if kind in (4, 5, 6):
            return {place: self._zigzag()}
        if kind == 3:
            self._byte()
        elif kind == 7:
            self.position += 8
        elif kind == 8:
            length = self._varint()
            self.position += length
        elif kind == 12:
            return self.struct(place)
        elif kind not in (1, 2):  # no page header has lists, sets or maps
            raise pa.ArrowInvalid("a page header of an unknown kind")
        return {}
