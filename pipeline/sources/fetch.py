"""Reads the bytes of a part, wherever it lies."""

from __future__ import annotations

import base64
import json
import os
import stat
import threading
from collections import OrderedDict
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import SourceError, StorageError
from pipeline.formats.parquet import MAX_SOURCE_FOOTER, groups
from pipeline.sources.record import CELL, FILE, RANGE, Part, printable
from pipeline.store.errors import from_outside, kind, retry
from pipeline.store.options import options_of

DEFAULT_MAX_FILE_BYTES = 2 * 1024**3
_FOOTERS = 8


class Fetcher:
    """Reads parts; safe to use from several threads.

    Args:
        max_file_bytes: Larger files are refused: they would have to fit into memory.
    """

    def __init__(self, *, max_file_bytes: int = DEFAULT_MAX_FILE_BYTES) -> None:
        self.max_file_bytes = max_file_bytes
        self._groups: OrderedDict[tuple[str, int], pa.Table] = OrderedDict()
        self._footers: OrderedDict[str, list[int]] = OrderedDict()
        self._lock = threading.Lock()

    def out_of_reach(self, part: Part) -> bool:
        """Whether a listed file surely cannot be read, without reading it: a link to nowhere, no permission. Only of local files can that be told."""
        return part.kind == FILE and "://" not in part.uri and not os.access(part.uri, os.R_OK)

    def fetch(self, part: Part) -> bytes:
        """The part's bytes.

        Raises:
            SourceError: It is about this part alone: gone, no permission, cut short, null, or over the limit.
            StorageError: It is about the store, and may pass: time-outs, refused credentials, 5xx after all retries.
        """
        if part.length > self.max_file_bytes:
            raise SourceError(f"{printable(part.uri)} has {part.length} bytes, over the limit of {self.max_file_bytes}")
        try:
            if part.kind in (FILE, RANGE):
                return self._bytes(part)
            return self._cell(part) if part.kind == CELL else self._row_json(part)
        except FileNotFoundError as error:
            raise SourceError(f"{printable(part.uri)} is gone since it was listed") from error
        except pa.ArrowException as error:
            raise SourceError(f"cannot read {printable(part.uri)}: {error}") from error
        except StorageError as error:
            if isinstance(error.__cause__, PermissionError | IsADirectoryError | NotADirectoryError) and "://" not in part.uri:
                raise SourceError(str(error)) from error
            raise
        except Exception as error:
            if not from_outside(error):
                raise
            raise kind(error)(f"cannot read {printable(part.uri)}: {error}") from error

    def _bytes(self, part: Part) -> bytes:
        # A range of nothing is one that stores refuse.
        if part.kind == RANGE and not part.length:
            return b""
        fs, path = _open(part.uri)
        if "://" not in part.uri:
            _check_regular(part.uri)
        end = part.offset + part.length if part.kind == RANGE else None
        data: bytes = retry(lambda: fs.cat_file(path, start=part.offset or None, end=end), f"read {printable(part.uri)}")
        if part.kind == RANGE and len(data) != part.length:
            raise SourceError(f"{printable(part.uri)} ends {part.length - len(data)} bytes before its member does")
        if part.kind == FILE and len(data) > self.max_file_bytes:
            raise SourceError(f"{printable(part.uri)} has grown over the limit of {self.max_file_bytes} bytes")
        return data

    def _table(self, part: Part) -> pa.Table:
        key = (part.uri, part.group)
        with self._lock:
            if key not in self._groups:
                fs, path = _open(part.uri)
                with retry(lambda: fs.open(path, "rb"), f"open {printable(part.uri)}") as file:
                    self._check_group(part, file)
                    self._groups[key] = pq.ParquetFile(file).read_row_group(part.group)
                while len(self._groups) > 2:
                    self._groups.popitem(last=False)
            return self._groups[key]

    def _check_group(self, part: Part, file: Any) -> None:
        """Raises `SourceError` for a row group that inflates to more than this machine can hold; its footer is read once."""
        if part.uri not in self._footers:
            self._footers[part.uri] = [
                sum(chunk.inflated for chunk in group.chunks) for group in groups(file, file.seek(0, os.SEEK_END), max_footer_bytes=MAX_SOURCE_FOOTER)
            ]
            while len(self._footers) > _FOOTERS:
                self._footers.popitem(last=False)
        sizes = self._footers[part.uri]
        if part.group >= len(sizes):
            raise SourceError(f"{printable(part.uri)}: row group {part.group} is gone since it was listed")
        if sizes[part.group] > max(2 * self.max_file_bytes, _memory_bytes() // 2):
            raise SourceError(
                f"{printable(part.uri)}: row group {part.group} inflates to {sizes[part.group]:,} bytes, more than this machine can hold: "
                "write it in smaller groups"
            )

    def _cell(self, part: Part) -> bytes:
        cell = self._table(part).column(part.column)[part.offset]
        # What stands beside the bytes is the sidecar's, and may be what Python cannot hold.
        value = (cell["bytes"] if isinstance(cell, pa.StructScalar) and cell.is_valid and "bytes" in cell else cell).as_py()
        if not isinstance(value, bytes):
            raise SourceError(f"{printable(part.uri)} holds no image bytes in row {part.offset} of group {part.group}")
        return value

    def _row_json(self, part: Part) -> bytes:
        table = self._table(part)
        row = {name: _value(table.column(name)[part.offset]) for name in table.column_names if name != part.column}
        image = _value(table.column(part.column)[part.offset])
        if isinstance(image, dict) and (rest := {key: value for key, value in image.items() if key != "bytes" and value is not None}):
            row[part.column] = rest
        return json.dumps(row, default=_jsonable, ensure_ascii=False, sort_keys=True).encode()


def _check_regular(path: str) -> None:
    """Raises `SourceError` for what took a file's place since it was listed: a pipe would be waited for without end, and a device has none."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return  # whoever opens it says so
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise SourceError(f"{printable(path)} is no regular file any more")


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):  # not a Unix
        return 0


def _open(uri: str) -> tuple[Any, str]:
    """File system and path of a listed URI. Not `url_to_fs`, which would take `::` in a file name for a chain of URLs."""
    protocol, separator, _ = uri.partition("://")
    fs = fsspec.filesystem(protocol, **options_of(uri)) if separator else fsspec.filesystem("file")
    return fs, fs._strip_protocol(uri) if separator else uri


def _value(scalar: pa.Scalar) -> Any:
    """A cell as Python has it; what it cannot hold (a year 10000, nanoseconds without pandas) as text, and text that is no UTF-8 as bytes."""
    try:
        return scalar.as_py()
    except (ValueError, OverflowError, ImportError):
        pass
    if isinstance(scalar, pa.StructScalar):
        return {name: _value(scalar[name]) for name in scalar}
    if isinstance(scalar, pa.ListScalar) and scalar.values is not None:  # maps too
        return [_value(element) for element in scalar.values]
    try:
        if isinstance(scalar, pa.StringScalar | pa.LargeStringScalar):
            return scalar.as_buffer().to_pybytes()
        return str(scalar.cast(pa.string()).as_py())
    except (pa.ArrowException, ValueError, OverflowError):
        return str(getattr(scalar, "value", None))


def _jsonable(value: Any) -> Any:
    return {"base64": base64.b64encode(value).decode()} if isinstance(value, bytes) else str(value)
