"""Lists a source once and turns it into records: which files are images, which are sidecars, which are containers."""

from __future__ import annotations

import hashlib
import os
import tarfile
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import SourceError
from pipeline.formats.images import IMAGE_SUFFIXES
from pipeline.formats.parquet import MAX_SOURCE_FOOTER, Group, column, groups
from pipeline.formats.tars import TarDamageError, members
from pipeline.sources.listing import File, LeftOut, Selection, bare, ending, list_files, modified_us, relative_to
from pipeline.sources.record import CELL, FILE, RANGE, ROW_JSON, Listing, Part, SourceRecord, printable, with_restore_names
from pipeline.store.errors import from_outside, kind, retry
from pipeline.text import redacted

_TAR_READERS = 8
_LABELS = 4096
_ROWS = 100_000

_TAR_BLOCK_BYTES = 1 << 21

_IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "bytes", "content", "data", "picture")
_NAME_COLUMNS = ("__key__", "key", "id", "filename", "file_name", "path", "name", "url")


@dataclass(frozen=True)
class Scan:
    """A listed source.

    Attributes:
        records: In scan order.
        digest: SHA-256 of the listing (names and sizes): equal listings, equal digests.
        source_bytes: Bytes of all images, without sidecars.
        warnings: What could not be listed, one sentence each.
        notes: What was left out on purpose, one sentence each.
        cut: Beginnings of the names of what may be there although it is not listed: of members of damaged tars and Parquet files,
            and of files in folders of a glob that cannot be listed.
        listed_us: When it began to be listed, in microseconds since 1970.
    """

    records: Listing
    digest: str
    source_bytes: int
    warnings: list[str]
    notes: list[str] = field(default_factory=list)
    cut: tuple[str, ...] = ()
    listed_us: int = 0


def scan(source: str, *, image_column: str | None = None, selection: Selection | None = None) -> Scan:
    """List `source`: a folder, a glob, one or more `.tar` or `.parquet`, at any URL that fsspec opens.

    Args:
        source: For example `photos/`, `s3://bucket/shards/*.tar`, `data.parquet`.
        image_column: Parquet column that holds the images; found by name and type if not given.
        selection: Which files are wanted; all but litter if not given.

    Raises:
        SourceError: Nothing there, no right to list it, or no image column.
    """
    warnings: list[str] = []
    began = time.time_ns() // 1000
    left_out = LeftOut(selection or Selection())
    cut: list[str] = []
    fs, root, files = list_files(source, warnings, cut, left_out)
    paths = [path for path, *_ in files]
    found: Iterable[_Found]
    apart: list[str] = []
    if all(bare(path).endswith(".tar") for path in paths):
        found = _tars(fs, files, root, warnings, cut, left_out)
    elif all(bare(path).endswith(".parquet") for path in paths):
        found = _parquets(fs, files, root, image_column, warnings, cut, left_out)
    else:
        found = _folder_records(fs, files, root)
        if packed := [path for path in paths if bare(path).endswith((".tar", ".parquet"))]:
            apart.append(
                f"{len(packed)} tar or Parquet files lie among other files and are stored as they are, not image by image, for example "
                f"{printable(relative_to(packed[0], root, fs))}: a glob that names them alone takes what is in them"
            )
    digest, total = ListingDigest(), 0

    def numbered() -> Iterator[SourceRecord]:
        nonlocal total
        for i, (name, part, sidecars) in enumerate(found):
            total += max(0, part.length)
            digest.add(name, part, sidecars)
            yield SourceRecord(index=i, name=name, part=part, sidecars=tuple(sidecars))

    records = with_restore_names(numbered())
    if not records:
        why = [*warnings, *left_out.notes()]
        raise SourceError(f"{source} holds no files to archive" + (f": {why[0]}" if why else ""))
    return Scan(
        records, digest.hexdigest(), total, list(map(redacted, warnings)), list(map(redacted, [*left_out.notes(), *apart])), tuple(cut), began
    )


class ListingDigest:
    """SHA-256 of a listing: names, places and sizes, record by record.

    Args:
        times: Also when files were written: of two listings that differ in them alone the second may be of other content.
    """

    def __init__(self, *, times: bool = False) -> None:
        self._digest = hashlib.sha256()
        self._times = times

    def add(self, name: str, part: Part, sidecars: Iterable[tuple[str, Part]]) -> None:
        """The next record."""
        for label, place in ((name, part), *sidecars):
            # A source that is signed anew is the same source.
            line = f"{label}\0{place.kind}\0{redacted(place.uri)}\0{place.group}\0{place.offset}\0{place.length}\n"
            line += f"{place.mtime_us}\0{place.container_us}\n" if self._times else ""
            self._digest.update(line.encode("utf-8", "surrogateescape"))

    def hexdigest(self) -> str:
        """Of what was added."""
        return self._digest.hexdigest()


_Found = tuple[str, Part, list[tuple[str, Part]]]


def _group(named: Iterable[tuple[str, Part]], stem_of: Any) -> Iterator[_Found]:
    """Join files that share a stem: each image is a record, the first takes the other files along; without an image each file stands alone."""
    for _, group in groupby(sorted(named, key=lambda item: (stem_of(item[0]), item[0])), key=lambda item: stem_of(item[0])):
        members = list(group)
        images: list[tuple[str, Part]] = []
        others: list[tuple[str, Part]] = []
        for item in members:
            (images if ending(item[0]) in IMAGE_SUFFIXES else others).append(item)
        if not images:
            yield from ((name, part, []) for name, part in others)
            continue
        for i, (name, part) in enumerate(images):
            yield name, part, others if i == 0 else []


def _folder_records(fs: Any, files: list[File], root: str) -> Iterator[_Found]:
    named = [(relative_to(path, root, fs), Part(FILE, path, size, mtime_us=mtime)) for path, size, mtime in files]
    return _group(named, lambda name: os.path.splitext(name)[0])


def _webdataset_stem(name: str) -> str:
    folder, _, base = name.rpartition("/")
    return f"{folder}/{base.partition('.')[0]}"


def _tars(fs: Any, files: list[File], root: str, warnings: list[str], cut: list[str], left_out: LeftOut) -> Iterator[_Found]:
    """Members of all tars, in order; several are listed at once, since each is a walk from header to header."""
    with ThreadPoolExecutor(_TAR_READERS) as pool:
        waiting: deque[Future[tuple[list[_Found], list[str]]]] = deque()
        for file in files:
            waiting.append(pool.submit(_listed_tar, fs, file, root, cut, left_out))
            if len(waiting) > _TAR_READERS:
                found, said = waiting.popleft().result()
                warnings += said
                yield from found
        while waiting:
            found, said = waiting.popleft().result()
            warnings += said
            yield from found


def _listed_tar(fs: Any, file: File, root: str, cut: list[str], left_out: LeftOut) -> tuple[list[_Found], list[str]]:
    """A tar's members. What the store cannot give at the moment is not a damaged tar: it ends the scan, and loses nothing."""
    path = file[0]
    try:
        found: tuple[list[_Found], list[str]] = retry(lambda: _tar_records(fs, file, root, cut, left_out), f"list {printable(path)}")
        return found
    except FileNotFoundError as error:
        raise SourceError(f"{printable(path)} vanished while it was listed") from error


def _tar_records(fs: Any, listed: File, root: str, cut: list[str], left_out: LeftOut) -> tuple[list[_Found], list[str]]:
    """Members of one tar, and warnings; a damaged tail costs a warning, not what precedes it."""
    named: list[tuple[str, Part]] = []
    warnings: list[str] = []
    counts: dict[str, int] = defaultdict(int)
    path, size, written_us = listed
    prefix = os.path.splitext(relative_to(path, root, fs))[0]
    end = 0
    try:
        with fs.open(path, "rb", block_size=_TAR_BLOCK_BYTES) as file:
            for info in members(file, size):
                end = info.offset_data + (info.size if info.isreg() and not info.issparse() else 0)
                if not info.isreg():
                    counts["links, folders and devices left out"] += not info.isdir()
                    continue
                if info.issparse():
                    counts["sparse members left out"] += 1
                    continue
                if left_out.keeps(info.name, f"{prefix}/{info.name}"):
                    part = Part(RANGE, path, info.size, info.offset_data, mtime_us=modified_us({"mtime": info.mtime}), container_us=written_us)
                    named.append((f"{prefix}/{info.name}", part))
    except TarDamageError as error:
        last = f" ({printable(named[-1][0])})" if named else ""
        warnings.append(f"{printable(path)} cannot be read past member {len(named)}{last}: {error}")
        cut.append(f"{prefix}/")
    else:
        if end + tarfile.BLOCKSIZE > size:
            # No block of zeros ends it: it may be on its way still, and more may come.
            cut.append(f"{prefix}/")
    warnings += [f"{printable(path)}: {count} {what}" for what, count in counts.items() if count]
    return list(_group(named, _webdataset_stem)), warnings


def _parquets(
    fs: Any, files: list[File], root: str, image_column: str | None, warnings: list[str], cut: list[str], left_out: LeftOut
) -> Iterator[_Found]:
    """Rows of all Parquet files, in order; a damaged one costs a warning, and what the store cannot give at the moment ends the scan."""
    for file in files:
        try:
            for found in _parquet_records(fs, file, root, image_column):
                if left_out.keeps(found[0]):
                    yield found
        except SourceError as error:
            warnings.append(str(error))
            cut.append(f"{os.path.splitext(relative_to(file[0], root, fs))[0]}/")


def _parquet_records(fs: Any, file: File, root: str, image_column: str | None) -> Iterator[_Found]:
    path, size, written_us = file
    prefix = os.path.splitext(relative_to(path, root, fs))[0]
    try:
        with retry(lambda: fs.open(path, "rb"), f"list {printable(path)}") as opened:
            found = groups(opened, size, max_footer_bytes=MAX_SOURCE_FOOTER)
            schema = pq.ParquetFile(opened).schema_arrow
            if twice := [name for name, count in Counter(schema.names).items() if count > 1]:
                raise SourceError(f"{printable(path)} has several columns called {printable(twice[0])}: write it with each name once")
            column_name = _image_column(schema, image_column, path)
            names = next((n for n in _NAME_COLUMNS if n in schema.names and n != column_name and _is_text(schema.field(n).type)), None)
            others = [name for name in schema.names if name != column_name]
            start = 0
            for number, group in enumerate(found):
                # An image is some bytes: a group of more rows than that is one that lies.
                if group.rows > _ROWS + 8 * sum(chunk.length for chunk in group.chunks):
                    raise pa.ArrowInvalid(f"row group {number} claims {group.rows} rows")
                held = sum(chunk.length for chunk in group.chunks if chunk.column.split(".")[0] == column_name)
                labels = _labels(opened, number, group, names)
                for row in range(group.rows):
                    label = next(labels, None) or f"{start + row:08d}"
                    # The length is the mean of the group: it only serves to divide the work.
                    part = Part(CELL, path, held // max(group.rows, 1), row, number, column_name, container_us=written_us)
                    json = f"{prefix}/{os.path.splitext(label)[0]}.json"
                    extra = [(json, Part(ROW_JSON, path, -1, row, number, column_name, container_us=written_us))] if others else []
                    yield f"{prefix}/{label}", part, extra
                start += group.rows
    except FileNotFoundError as error:
        raise SourceError(f"{printable(path)} vanished while it was listed") from error
    except Exception as error:
        # pyarrow says what is damaged as a plain OSError too, without a number.
        damaged = isinstance(error, pa.ArrowException | UnicodeError) or (type(error) is OSError and error.errno is None)
        if damaged:
            raise SourceError(f"cannot read {printable(path)} as Parquet: {error}") from error
        if from_outside(error):
            raise kind(error)(f"cannot list {printable(path)}: {error}") from error
        raise


def _labels(file: Any, number: int, group: Group, name: str | None) -> Iterator[str | None]:
    """Names of a row group's images, if it has any."""
    if name is not None:
        labels = column(file, name, number, group)
        for start in range(0, len(labels), _LABELS):
            yield from labels.slice(start, _LABELS).to_pylist()


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _holds_images(field.type) for field in kind)
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _image_column(schema: pa.Schema, wanted: str | None, path: str) -> str:
    if wanted is not None:
        if wanted not in schema.names or not _holds_images(schema.field(wanted).type):
            raise SourceError(f"{printable(path)} has no binary column {wanted!r}; its columns are {', '.join(schema.names)}")
        return wanted
    candidates = [name for name in schema.names if _holds_images(schema.field(name).type)]
    named = [name for name in candidates if name.lower() in _IMAGE_COLUMNS]
    for found in (named, candidates):
        if len(found) == 1:
            return str(found[0])
    what = "several columns that could hold images" if candidates else "no binary column"
    raise SourceError(f"{printable(path)} has {what}: name one with --image-column (columns: {', '.join(schema.names)})")
