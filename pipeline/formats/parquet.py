"""Parquet files of an archive, which anybody may have made: read within bounds on what they inflate to."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

MAX_GROUP_BYTES = 1 << 28
"""Of a row group: its pages inflated, and what it takes as a table. Ours hold 4,096 rows of a manifest or 16,384 of a listing."""

MAX_BYTES = 1 << 32
"""Of a table as a whole."""

_MAX_GROUP_VALUES = 1 << 25
_MAX_FOOTER_BYTES = 1 << 24

MAX_SOURCE_FOOTER = 1 << 29
"""Of files that others wrote: with statistics of long texts in thousands of row groups they are long."""


class TooLargeError(pa.ArrowInvalid):  # type: ignore[misc]
    """A Parquet file holds more than anybody would write."""


@dataclass(frozen=True)
class Chunk:
    """A column of a row group: where its pages lie, as stored, and what they are said to inflate to."""

    column: str
    start: int
    length: int
    inflated: int


@dataclass(frozen=True)
class Group:
    """A row group, as the footer of its file has it."""

    rows: int
    chunks: tuple[Chunk, ...]


def read_bounded(data: bytes, *, columns: list[str] | None = None, holding: tuple[str, int] | None = None) -> pa.Table:
    """The table of a Parquet file, a row group at a time, each first measured by the headers that its reader will follow.

    Args:
        data: The file.
        columns: Those wanted; all if not given.
        holding: Only row groups in which this column has this value somewhere.

    Raises:
        pa.ArrowException: Damaged, without one of these columns, or larger than the limits above.
    """
    try:
        return _read(data, columns, holding)
    except (OSError, KeyError, UnicodeError) as error:  # of a file in memory: not an outage
        raise pa.ArrowInvalid(str(error)) from error


def _read(data: bytes, columns: list[str] | None, holding: tuple[str, int] | None) -> pa.Table:
    import pyarrow.compute as pc  # here: a tenth of a second, and not every command needs it

    found = groups(io.BytesIO(data), len(data))
    limits = {"thrift_string_size_limit": _MAX_FOOTER_BYTES, "thrift_container_size_limit": _MAX_FOOTER_BYTES}
    plain = pq.ParquetFile(io.BytesIO(data), **limits)
    schema = plain.schema_arrow
    if columns is not None:
        schema = pa.schema([schema.field(name) for name in columns], schema.metadata)
    texts = [plain.schema.column(i).path for i in range(len(plain.schema)) if plain.schema.column(i).physical_type == "BYTE_ARRAY"]
    # As dictionaries: a short file may repeat a long string without end.
    file = pq.ParquetFile(io.BytesIO(data), read_dictionary=texts, **limits)
    tables, total = [], 0
    for number, group in enumerate(found):
        _check_group(group, memoryview(data))
        if holding is not None:
            column = file.read_row_group(number, columns=[holding[0]], use_threads=False).column(0)
            if not pc.any(pc.equal(column, holding[1])).as_py():
                continue
        table = file.read_row_group(number, columns=columns, use_threads=False)
        size = sum(_expanded_bytes(chunk) for column in table.columns for chunk in column.chunks)
        total += size
        if size > MAX_GROUP_BYTES or total > MAX_BYTES:
            raise TooLargeError("its table is larger than anything this program writes")
        tables.append(table.select(schema.names).cast(schema))
    return pa.concat_tables(tables) if tables else schema.empty_table()


def column(file: IO[bytes], path: str, number: int, group: Group) -> pa.Array:
    """A column of texts of one row group, of any file; measured first.

    Args:
        file: Can seek.
        path: The column's.
        number: Of the row group.
        group: What the footer says of it.

    Raises:
        pa.ArrowException: Damaged, or larger than the limits above.
    """
    chunk = next((chunk for chunk in group.chunks if chunk.column == path), None)
    if chunk is None or chunk.length > MAX_GROUP_BYTES:
        raise pa.ArrowInvalid(f"column {path} is missing or too long")
    file.seek(chunk.start)
    inflated, values = measure(memoryview(file.read(chunk.length)))
    if inflated > MAX_GROUP_BYTES or values > _MAX_GROUP_VALUES:
        raise TooLargeError(f"column {path} inflates to more than {MAX_GROUP_BYTES:,} bytes")
    array = pq.ParquetFile(file, read_dictionary=[path]).read_row_group(number, columns=[path], use_threads=False).column(0).combine_chunks()
    if _expanded_bytes(array) > MAX_GROUP_BYTES:
        raise TooLargeError(f"column {path} holds more than {MAX_GROUP_BYTES:,} bytes")
    return array


def groups(file: IO[bytes], size: int, *, max_footer_bytes: int = _MAX_FOOTER_BYTES) -> list[Group]:
    """Row groups of a Parquet file by its footer. Not by pyarrow, whose view of a hostile footer ends the process.

    Args:
        file: Can seek.
        size: Its bytes.
        max_footer_bytes: Of its footer.

    Raises:
        pa.ArrowInvalid: No footer, or one that points outside the file.
    """
    file.seek(max(0, size - 8))
    tail = file.read(8)
    length = int.from_bytes(tail[:4], "little")
    if tail[4:] != b"PAR1" or not 0 < length <= size - 12:
        raise pa.ArrowInvalid("no Parquet footer")
    if length > max_footer_bytes:
        raise TooLargeError(f"a footer of {length:,} bytes")
    file.seek(size - 8 - length)
    footer = _Thrift(memoryview(file.read(length)), 0).struct(_FOOTER)
    return [_group(found, size) for found in _values(footer, 4)]


def _group(found: _Struct, size: int) -> Group:
    chunks = []
    for column in _values(found, 1):
        about = column.get(3)
        if not isinstance(about, dict):
            raise pa.ArrowInvalid("a column without a place")
        path = b".".join(part for part in about.get(3, ()) if isinstance(part, bytes)).decode("utf-8", "replace")
        length, start, dictionary = (_number(about, field, default) for field, default in ((7, -1), (9, -1), (11, 0)))
        start = min(start, dictionary) if dictionary > 0 else start
        if not 0 <= start <= size or not 0 <= length <= size - start:
            raise pa.ArrowInvalid(f"column {path} lies outside the file")
        chunks.append(Chunk(path, start, length, _number(about, 6, 0)))
    rows = _number(found, 3, -1)
    if not 0 <= rows < 2**48:
        raise pa.ArrowInvalid(f"a row group of {rows} rows")
    return Group(rows, tuple(chunks))


def _check_group(group: Group, data: memoryview) -> None:
    inflated = values = 0
    for chunk in group.chunks:
        of_chunk = measure(data[chunk.start : chunk.start + chunk.length])
        inflated, values = inflated + of_chunk[0], values + of_chunk[1]
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
        header = reader.struct(_PAGE)
        size, stored = _number(header, 2, -1), _number(header, 3, -1)
        if size < 0 or stored < 0:
            raise pa.ArrowInvalid("a page without a size")
        # Data pages of both versions, and dictionaries, say how many values they hold.
        counts = [_number(page, 1, 0) for field in (5, 7, 8) if isinstance(page := header.get(field), dict)]
        if any(count < 0 for count in counts):
            raise pa.ArrowInvalid("a page of a negative number of values")
        inflated, values = inflated + size, values + max(counts, default=0)
        position = reader.position + stored
    return inflated, values


def _expanded_bytes(array: pa.Array) -> int:
    """Bytes of an array once its dictionaries are written out."""
    import pyarrow.compute as pc  # here: a tenth of a second, and not every command needs it

    if pa.types.is_dictionary(array.type):
        lengths = pc.fill_null(pc.binary_length(array.dictionary), 0).cast(pa.int64())
        return int(pc.sum(lengths.take(array.indices.drop_null())).as_py() or 0) + 8 * len(array)
    if pa.types.is_list(array.type):
        return int(array.nbytes if array.values is None else _expanded_bytes(array.values)) + 4 * len(array)
    if pa.types.is_struct(array.type):
        return sum(_expanded_bytes(array.field(i)) for i in range(array.type.num_fields)) + len(array)
    return int(array.nbytes)


_Struct = dict[int, Any]
"""Fields of a Thrift struct by number: whole numbers, bytes, structs and lists of them."""

_Wanted = dict[int, Any]
"""What to keep of a struct: by field `_NUMBER`, `_BYTES`, the `_Wanted` of a struct, or a list of one of these."""

_NUMBER, _BYTES = "number", "bytes"
_PAGE: _Wanted = {2: _NUMBER, 3: _NUMBER, 5: {1: _NUMBER}, 7: {1: _NUMBER}, 8: {1: _NUMBER}}
_FOOTER: _Wanted = {4: [{1: [{3: {3: [_BYTES], 6: _NUMBER, 7: _NUMBER, 9: _NUMBER, 11: _NUMBER}}], 3: _NUMBER}]}


def _number(found: _Struct, field: int, default: int) -> int:
    value = found.get(field, default)
    return value if isinstance(value, int) else default


def _values(found: _Struct, field: int) -> list[_Struct]:
    values = found.get(field, [])
    return [value for value in values if isinstance(value, dict)] if isinstance(values, list) else []


class _Thrift:
    """Thrift's compact protocol, as far as it takes to find some fields of what Parquet says with it."""

    _MAX_DEPTH = 16

    def __init__(self, data: memoryview, position: int) -> None:
        self._data = data
        self.position = position

    def _byte(self) -> int:
        if self.position >= len(self._data):
            raise pa.ArrowInvalid("what a Parquet file says of itself is cut short")
        self.position += 1
        return self._data[self.position - 1]

    def _varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise pa.ArrowInvalid("a number of a Parquet file is too long")

    def _zigzag(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)

    def struct(self, wanted: _Wanted, depth: int = 0) -> _Struct:
        """Fields of a struct that are wanted; all others are skipped."""
        if depth > self._MAX_DEPTH:
            raise pa.ArrowInvalid("what a Parquet file says of itself is too deep")
        found: _Struct = {}
        field = 0
        while (head := self._byte()) & 15:
            field = field + (head >> 4) if head >> 4 else self._zigzag()
            # Truth is told by the kind itself.
            value = self._value(head & 15, wanted.get(field), depth) if head & 15 > 2 else None
            if value is not None:
                found[field] = value
        return found

    def _value(self, kind: int, wanted: Any, depth: int) -> Any:
        """A value; None if it is not wanted."""
        if kind in (4, 5, 6):
            number = self._zigzag()
            return number if wanted == _NUMBER else None
        if kind in (1, 2, 3):
            self._byte()
        elif kind == 7:
            self.position += 8
        elif kind == 8:
            length = self._varint()
            self.position += length
            if wanted == _BYTES:
                return bytes(self._data[self.position - length : self.position])
        elif kind in (9, 10):
            return self._list(wanted, depth)
        elif kind == 12:
            fields = self.struct(wanted if isinstance(wanted, dict) else {}, depth + 1)
            return fields if isinstance(wanted, dict) else None
        else:
            raise pa.ArrowInvalid("a kind of value that no Parquet file has")
        return None

    def _list(self, wanted: Any, depth: int) -> list[Any] | None:
        head = self._byte()
        size = head >> 4 if head >> 4 < 15 else self._varint()
        if size > len(self._data) - self.position:  # each takes a byte at least
            raise pa.ArrowInvalid("a list of a Parquet file is longer than the file")
        of = wanted[0] if isinstance(wanted, list) else None
        values = [value for _ in range(size) if (value := self._value(head & 15, of, depth + 1)) is not None]
        return values if isinstance(wanted, list) else None
