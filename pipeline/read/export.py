"""A restore into the containers that training reads: WebDataset tars and Parquet with Hugging Face's `Image` column.

```
rows_left --> names for the container --> a job for each shard of the archive --> ExportWorker: decode as a restore does --> one tar or Parquet file
```
"""

from __future__ import annotations

import io
import itertools
import json
import os
import re
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.archive.archive import Archive
from pipeline.archive.conversion import Conversion
from pipeline.archive.layout import GENERATION_FOLDER
from pipeline.archive.row import Row, Sidecar
from pipeline.errors import UsageError
from pipeline.execute.placement import Placement
from pipeline.formats.records import columns, rows_of, to_array
from pipeline.limits import DEFAULT, Limits
from pipeline.read.names import NAMES, as_wanted, names_table, with_single_names
from pipeline.read.restore import run_over_shards
from pipeline.read.rows import OLDER, rows_left
from pipeline.read.target import Target
from pipeline.read.worker import RestoreWorker, Result
from pipeline.run.report import Reporter
from pipeline.sources.record import safe_name
from pipeline.store.base import open_store

WEBDATASET, PARQUET = "webdataset", "parquet"
CONTAINERS = (WEBDATASET, PARQUET)
_GROUP_BYTES = 1 << 26
_GROUP_ROWS = 1000


def export(
    url: str,
    target: str,
    container: str,
    *,
    generation: int | None = None,
    where: str | None = None,
    overwrite: bool = False,
    placement: Placement | None = None,
    reporter: Reporter | None = None,
    limits: Limits = DEFAULT,
    device: str = "cpu",
    conversion: Conversion | None = None,
) -> Result:
    """Write every image and sidecar as `restore` does, into one file of `container` for each shard of the archive, and a table of names beside them.

    Args:
        url: The archive.
        target: Folder or URL, with nothing in it unless `overwrite`: what an interrupted export left is not gone on with.
        container: `webdataset`: tars, `__key__` is the original name without its ending (dots in it as `_`). `parquet`: columns `image` (bytes and
            path, Hugging Face's `Image`; null for what is no image), `name`, `key`, `exact` and `files` (sidecars, and files that are no images).
        generation: Which one of the archive; the newest if not given.
        where: SQL condition over the manifest.
        overwrite: Replace what is there.
        placement: Who does the work; `reporter`, `limits`, `device` and `conversion` as of `restore`.

    Raises:
        UsageError: `target` is not empty, lies in the archive, or the condition is not SQL.
        ManifestError: There is no archive.
    """
    archive, out = Archive(url, generation, without_run=True), open_store(target)
    if out.lies_in(archive.store):
        raise UsageError(f"{target} lies inside the archive: choose a folder outside it")
    if not overwrite and (there := out.list("")):
        raise UsageError(f"{target} is not empty, {there[0]} is there for example: an export begins anew: choose another folder, or say --overwrite")
    rows, problems = rows_left(archive, where)
    rows, left_out = as_wanted(rows, conversion)
    rows, twice = with_keys(rows) if container == WEBDATASET else with_single_names(rows)
    out.prepare()
    worker = WebdatasetWorker if container == WEBDATASET else ParquetWorker
    result = run_over_shards(
        url, target, rows, placement, worker=worker, overwrite=True, reporter=reporter, limits=limits, device=device, conversion=conversion
    )
    result.left_out = left_out
    if len(rows):
        Target(target).write(NAMES, names_table(rows))
    result.problems = problems + twice + result.problems
    return result


def with_keys(rows: pa.Table) -> tuple[pa.Table, list[str]]:
    """Rows whose files are called `KEY.ending`, and a sentence for each key that is not the original name: each is there once."""
    taken: set[str] = set()
    problems: list[str] = []
    names: list[str] = []
    sidecars: list[tuple[Sidecar, ...]] = []
    for row in rows_of(Row, rows.select(columns(Row, "key", "name", "restore_name", "sidecars"))):
        stem = os.path.splitext(safe_name(row.name))[0]
        folder, slash, base = stem.rpartition("/")
        # Where it is lost which version is the newest, the older has no plain key either.
        older = f"{OLDER}{row.key}" if f"{OLDER}{row.key}" in row.restore_name else ""
        wanted = key = f"{folder}{slash}{base.replace('.', '_') or '_'}{older}"
        if key.casefold() in taken:
            key = next(name for i in itertools.count() if (name := f"{wanted}~{row.key}{i or ''}").casefold() not in taken)
            problems.append(f"two images of the archive have the key {wanted}: {row.name} is exported as {key}")
        taken.add(key.casefold())
        endings: set[str] = set()
        names.append(f"{key}.{_ending(row.restore_name, os.path.splitext(row.restore_name)[0], endings)}")
        sidecars.append(tuple(replace(side, restore_name=f"{key}.{_ending(side.name, stem, endings)}") for side in row.sidecars))
    for name, cells in (("restore_name", names), ("sidecars", sidecars)):
        rows = rows.set_column(rows.column_names.index(name), rows.schema.field(name), to_array(Row, name, cells))
    return rows, problems


def _ending(name: str, stem: str, taken: set[str]) -> str:
    """What follows the key: all after the stem of the image, or after the first dot; each once in a sample, whatever the case."""
    rest = name[len(stem) + 1 :] if name.startswith(f"{stem}.") else name.rpartition("/")[2].partition(".")[2]
    ending = re.sub(r"[^a-z0-9._-]", "_", rest.lower()).strip(".") or "bin"
    found = next(text for i in itertools.count() if (text := f"{i}.{ending}" if i else ending) not in taken)
    taken.add(found)
    return found


class _Part(Protocol):
    """A file under way."""

    def add(self, name: str, data: bytes, mtime: datetime | None) -> None:
        """A file of the present row."""

    def end(self, row: Row) -> None:
        """The row is complete."""

    def close(self) -> None:
        """All rows are there."""


class _Tar:
    """A tar in which names have any length; equal files give equal bytes."""

    def __init__(self, path: Path) -> None:
        self._tar = tarfile.open(path, "w", format=tarfile.PAX_FORMAT)  # noqa: SIM115  (closed by `close`)

    def add(self, name: str, data: bytes, mtime: datetime | None) -> None:
        info = tarfile.TarInfo(name)
        # Whole seconds: a fraction would take a header of its own for every file.
        info.size, info.mode, info.mtime = len(data), 0o644, max(0, int(mtime.timestamp())) if mtime is not None else 0
        self._tar.addfile(info, io.BytesIO(data))

    def end(self, row: Row) -> None:
        """Nothing: its files stand one after the other."""

    def close(self) -> None:
        self._tar.close()


_FILE = pa.struct([("name", pa.string()), ("data", pa.binary())])
_SCHEMA = pa.schema(
    [
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("name", pa.string()),
        ("key", pa.string()),
        ("exact", pa.string()),
        ("files", pa.list_(_FILE)),
    ],
    # Columns that it does not name are of their Arrow types, in every version of `datasets`.
    {"huggingface": json.dumps({"info": {"features": {"image": {"_type": "Image"}}}})},
)


class _Parquet:
    """A Parquet file of `_SCHEMA`, in groups of some 64 MiB."""

    def __init__(self, path: Path) -> None:
        self._writer = pq.ParquetWriter(path, _SCHEMA, compression="none")  # images do not become smaller
        self._files: list[tuple[str, bytes]] = []
        self._rows: list[dict[str, object]] = []
        self._bytes = 0

    def add(self, name: str, data: bytes, mtime: datetime | None) -> None:
        self._files.append((name, data))
        self._bytes += len(data)

    def end(self, row: Row) -> None:
        files, self._files = self._files, []
        is_image = row.codec is not None and row.pixels is not None
        image = next(({"bytes": data, "path": name} for name, data in files if is_image and name == row.restore_name), None)
        others = [{"name": name, "data": data} for name, data in files if image is None or name != row.restore_name]
        if files:
            self._rows.append({"image": image, "name": row.name, "key": row.key, "exact": row.exact, "files": others})
        if self._bytes >= _GROUP_BYTES or len(self._rows) >= _GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=_SCHEMA))
        self._rows, self._bytes = [], 0

    def close(self) -> None:
        self._flush()
        self._writer.close()


def _stem(shard: str) -> str:
    """What the file of a shard is called: its number, after that of its generation where that is not the first.

    >>> _stem("shards/00003-0123456789ab.tar"), _stem("generations/00002-0123456789ab/shards/00003-0123456789ab.tar")
    ('00003', 'generation-00002-00003')
    """
    folder, _, base = shard.rpartition("/")
    number = base.partition("-")[0]
    later = GENERATION_FOLDER.match(folder)
    return f"generation-{later[1]}-{number}" if later else number


class ExportWorker(RestoreWorker):
    """Decodes as a restore does, and writes the files of a shard into one container."""

    begin: Callable[[Path], _Part]
    suffix: str
    _part: _Part

    def restore(self, rows: list[Row]) -> Result:
        """Write the images and sidecars of these rows of one shard; damaged ones are named, the others are written all the same."""
        if not rows or self.target is None:
            return Result()
        with tempfile.TemporaryDirectory(prefix="msinn-export-") as private:
            path = Path(private, "part")
            self._part = self.begin(path)
            try:
                result = super().restore(rows)
            finally:
                self._part.close()
            # Parts of a shard are tried alone where an image kills workers; the last try, which holds all the others, replaces them.
            self.target.store.publish(path, _stem(rows[0].shard_key) + self.suffix)
        return result

    def _write(self, name: str, data: bytes, mtime: datetime | None = None) -> None:
        self._part.add(name, data, mtime)

    def _sidecars(self, row: Row) -> Result:
        result = super()._sidecars(row)
        self._part.end(row)
        return result


class WebdatasetWorker(ExportWorker):
    """A tar for each shard."""

    begin = staticmethod(_Tar)
    suffix = ".tar"


class ParquetWorker(ExportWorker):
    """A Parquet file for each shard."""

    begin = staticmethod(_Parquet)
    suffix = ".parquet"
