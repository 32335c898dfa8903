"""Lists a source once and turns it into records: which files are images, which are sidecars, which are containers."""

from __future__ import annotations

import fnmatch
import glob
import hashlib
import os
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import SourceError, StorageError
from pipeline.formats.images import IMAGE_SUFFIXES
from pipeline.formats.parquet import MAX_SOURCE_FOOTER, Group, column, groups
from pipeline.formats.tars import TarDamageError, members
from pipeline.sources.record import CELL, FILE, RANGE, ROW_JSON, Listing, Part, SourceRecord, printable, with_restore_names
from pipeline.store.storage import from_outside, retry
from pipeline.text import redacted, without_secrets

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
    """

    records: Listing
    digest: str
    source_bytes: int
    warnings: list[str]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which files of a source are wanted.

    Attributes:
        include: Globs of relative names or of their last part; empty for all.
        exclude: Likewise, of files to leave out.
        all_files: Also what systems and tools leave behind (`LITTER`).
        follow_links: Also links that lead out of the source.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    all_files: bool = False
    follow_links: bool = False

    def wants(self, *names: str) -> bool:
        """Whether a file is asked for by any of its relative names, litter aside."""
        tried = {*names, *(name.rpartition("/")[2] for name in names)}

        def among(globs: tuple[str, ...]) -> bool:
            return any(fnmatch.fnmatchcase(name, glob) for name in tried for glob in globs)

        return (not self.include or among(self.include)) and not among(self.exclude)


LITTER = frozenset({".git", ".hg", ".svn", "__MACOSX", ".DS_Store", "Thumbs.db", "desktop.ini", "@eaDir", ".Spotlight-V100", ".Trashes"})
"""Names of files, or of folders with all that is in them, that nobody means when they name a folder of images."""


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
    left_out = _LeftOut(selection or Selection())
    fs, root, files = _list(source, warnings, left_out)
    paths = [path for path, *_ in files]
    found: Iterable[_Found]
    if all(_bare(path).endswith(".tar") for path in paths):
        found = _tars(fs, files, root, warnings, left_out)
    elif all(_bare(path).endswith(".parquet") for path in paths):
        found = _parquets(fs, files, root, image_column, warnings, left_out)
    else:
        found = _folder_records(fs, files, root)
    digest, total = hashlib.sha256(), 0

    def numbered() -> Iterator[SourceRecord]:
        nonlocal total
        for i, (name, part, sidecars) in enumerate(found):
            total += max(0, part.length)
            for label, place in ((name, part), *sidecars):
                # A source that is signed anew is the same source.
                line = f"{label}\0{place.kind}\0{redacted(place.uri)}\0{place.group}\0{place.offset}\0{place.length}\n"
                digest.update(line.encode("utf-8", "surrogateescape"))
            yield SourceRecord(index=i, name=name, part=part, sidecars=tuple(sidecars))

    records = with_restore_names(numbered())
    if not records:
        why = [*warnings, *left_out.notes()]
        raise SourceError(f"{source} holds no files to archive" + (f": {why[0]}" if why else ""))
    return Scan(records, digest.hexdigest(), total, list(map(redacted, warnings)), list(map(redacted, left_out.notes())))


class _LeftOut:
    """Applies a selection, and counts what it left out."""

    def __init__(self, selection: Selection) -> None:
        self.selection = selection
        self._counts: Counter[str] = Counter()
        self._examples: dict[str, str] = {}
        self.empty_folders: list[str] = []

    def add(self, why: str, name: str) -> None:
        self._counts[why] += 1
        self._examples.setdefault(why, printable(name))

    def is_litter(self, name: str) -> bool:
        return not self.selection.all_files and not LITTER.isdisjoint(name.split("/"))

    def keeps(self, name: str, *others: str) -> bool:
        if self.is_litter(name):
            self.add("files of systems and tools (.git, .DS_Store and the like; --all-files takes them)", name)
            return False
        if not self.selection.wants(name, *others):
            self.add("files that --include and --exclude do not ask for", name)
            return False
        return True

    def notes(self) -> list[str]:
        said = [f"left out: {count} {why}, for example {self._examples[why]}" for why, count in sorted(self._counts.items())]
        if self.empty_folders:
            shown = ", ".join(printable(folder) for folder in self.empty_folders[:3])
            said.append(f"{len(self.empty_folders)} empty folders are not in an archive of files, for example {shown}")
        return said


_Found = tuple[str, Part, list[tuple[str, Part]]]


_File = tuple[str, int, int | None]
"""Path, bytes, modification time in microseconds."""


def _list(source: str, warnings: list[str], left_out: _LeftOut) -> tuple[Any, str, list[_File]]:
    """File system, common root, and every file that is wanted, sorted."""
    try:
        fs, path = fsspec.core.url_to_fs(source)
    except (ValueError, ImportError) as error:
        raise SourceError(f"cannot open {source}: {error}") from error
    named = False
    try:
        if fs.isdir(path):
            _check_readable(fs, path, warnings, left_out)
            listing, root = fs.find(path, detail=True), path
        elif fs.isfile(path):
            listing, root, named = {path: fs.info(path)}, os.path.dirname(path), True
        elif glob.has_magic(path):
            found = fs.glob(path, detail=True).items()
            listing = {name: info for name, info in found if info["type"] == "file" or (info.get("islink") and not os.path.isdir(name))}
            root = path[: glob.magic_check.search(path).start()].rpartition("/")[0]  # type: ignore[attr-defined]
        else:
            raise SourceError(f"{source} does not exist")
    except PermissionError as error:
        raise SourceError(f"no permission to list {source}: grant read access or choose another source") from error
    except Exception as error:
        if not from_outside(error):
            raise
        raise SourceError(f"cannot list {source}: {getattr(error, 'strerror', None) or error}") from error
    # A link that leads nowhere is listed, and reported as an image that cannot be read.
    odd = [
        name
        for name, info in listing.items()
        if info.get("type") == "other" and not info.get("islink") and not left_out.is_litter(_relative(name, root, fs))
    ]
    warnings += [f"{printable(name)} is no regular file (a pipe, socket or device) and is left out" for name in odd]
    listing = {name: info for name, info in listing.items() if info.get("type") != "other" or info.get("islink")}
    if not listing:
        raise SourceError(f"{source} is empty: there is nothing to archive")
    containers = all(_bare(name).endswith((".tar", ".parquet")) for name in listing if not left_out.is_litter(_relative(name, root, fs)))
    files, links = [], []
    for name, info in listing.items():
        relative = _relative(name, root, fs)
        # Of tars and Parquet files the selection is about their members.
        if not (containers and LITTER.isdisjoint(relative.split("/"))) and not left_out.keeps(relative):
            continue
        file = (fs.unstrip_protocol(name) if fs.protocol[0] != "file" else name, int(info["size"] or 0), _mtime_us(info))
        if info.get("islink") and not named:
            links.append((relative, file))
        else:
            files.append(file)
    _add_links(files, links, root, warnings, left_out)
    if not files:
        raise SourceError(f"{source} holds no files to archive: {'; '.join([*left_out.notes(), *warnings])}")
    return fs, root, sorted(files)


def _add_links(files: list[_File], links: list[tuple[str, _File]], root: str, warnings: list[str], left_out: _LeftOut) -> None:
    """Add links to files, so that each file is stored once; those that lead nowhere too, to be reported."""
    if not links:
        return
    inside = os.path.realpath(root).rstrip(os.sep) + os.sep
    stored = {os.path.realpath(path) for path, *_ in files}
    for relative, file in sorted(links):
        target = os.path.realpath(file[0])
        if not os.path.exists(target):
            files.append(file)
        elif target in stored:
            left_out.add("links to files of the source, which are stored once", relative)
        elif target.startswith(inside) or left_out.selection.follow_links:
            files.append(file)
            stored.add(target)
        else:
            warnings.append(
                f"{printable(relative)} is a link that leads out of the source, to {printable(target)}, and is not followed: say --follow-links"
            )


def _mtime_us(info: dict[str, Any]) -> int | None:
    """Modification time of a listed file, as file systems of many kinds say it."""
    value = next((info[key] for key in ("mtime", "LastModified", "last_modified", "updated", "modified") if info.get(key) is not None), None)
    try:
        if isinstance(value, str):
            value = datetime.fromisoformat(value)
        seconds = value.timestamp() if isinstance(value, datetime) else float(value)  # type: ignore[arg-type]
        return round(seconds * 1e6) if abs(seconds) < 1e11 else None
    except (TypeError, ValueError, OverflowError):
        return None


def _check_readable(fs: Any, path: str, warnings: list[str], left_out: _LeftOut) -> None:
    # fsspec's local `find` skips folders it may not read, and links to folders, in silence.
    if "file" in (fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,)):
        for folder, names, inside in os.walk(path, onerror=_raise):
            if not left_out.selection.all_files:
                names[:] = [name for name in names if name not in LITTER]
            if not names and not inside and folder != path:
                left_out.empty_folders.append(os.path.relpath(folder, path))
            links = (os.path.join(folder, name) for name in names if os.path.islink(os.path.join(folder, name)))
            warnings += [f"{printable(link)} is a link to a folder and is not followed: name that folder as a source of its own" for link in links]
            if not os.access(folder, os.R_OK | os.X_OK):
                raise SourceError(f"no permission to list {folder}: grant read access or choose another source")


def _raise(error: OSError) -> None:
    raise error


def _bare(path: str) -> str:
    """A path without the query that an address may have."""
    return path.partition("?")[0] if "://" in path else path


def _relative(path: str, root: str, fs: Any) -> str:
    stripped: str = without_secrets(fs._strip_protocol(path))
    prefix = root.rstrip("/") + "/"
    return stripped[len(prefix) :] if stripped.startswith(prefix) else stripped.lstrip("/")


def _suffix(name: str) -> str:
    return name.rpartition(".")[2].lower() if "." in name.rpartition("/")[2] else ""


def _group(named: Iterable[tuple[str, Part]], stem_of: Any) -> Iterator[_Found]:
    """Join files that share a stem: each image is a record, the first takes the other files along; without an image each file stands alone."""
    for _, group in groupby(sorted(named, key=lambda item: (stem_of(item[0]), item[0])), key=lambda item: stem_of(item[0])):
        members = list(group)
        images: list[tuple[str, Part]] = []
        others: list[tuple[str, Part]] = []
        for item in members:
            (images if _suffix(item[0]) in IMAGE_SUFFIXES else others).append(item)
        if not images:
            yield from ((name, part, []) for name, part in others)
            continue
        for i, (name, part) in enumerate(images):
            yield name, part, others if i == 0 else []


def _folder_records(fs: Any, files: list[_File], root: str) -> Iterator[_Found]:
    named = [(_relative(path, root, fs), Part(FILE, path, size, mtime_us=mtime)) for path, size, mtime in files]
    return _group(named, lambda name: os.path.splitext(name)[0])


def _webdataset_stem(name: str) -> str:
    folder, _, base = name.rpartition("/")
    return f"{folder}/{base.partition('.')[0]}"


def _tars(fs: Any, files: list[_File], root: str, warnings: list[str], left_out: _LeftOut) -> Iterator[_Found]:
    """Members of all tars, in order; several are listed at once, since each is a walk from header to header."""
    with ThreadPoolExecutor(_TAR_READERS) as pool:
        waiting: deque[Future[tuple[list[_Found], list[str]]]] = deque()
        for path, size, _ in files:
            waiting.append(pool.submit(_listed_tar, fs, path, size, root, left_out))
            if len(waiting) > _TAR_READERS:
                found, said = waiting.popleft().result()
                warnings += said
                yield from found
        while waiting:
            found, said = waiting.popleft().result()
            warnings += said
            yield from found


def _listed_tar(fs: Any, path: str, size: int, root: str, left_out: _LeftOut) -> tuple[list[_Found], list[str]]:
    """A tar's members. What the store cannot give at the moment is not a damaged tar: it ends the scan, and loses nothing."""
    try:
        found: tuple[list[_Found], list[str]] = retry(lambda: _tar_records(fs, path, size, root, left_out), f"list {printable(path)}")
        return found
    except FileNotFoundError as error:
        raise SourceError(f"{printable(path)} vanished while it was listed") from error


def _tar_records(fs: Any, path: str, size: int, root: str, left_out: _LeftOut) -> tuple[list[_Found], list[str]]:
    """Members of one tar, and warnings; a damaged tail costs a warning, not what precedes it."""
    named: list[tuple[str, Part]] = []
    warnings: list[str] = []
    counts: dict[str, int] = defaultdict(int)
    prefix = os.path.splitext(_relative(path, root, fs))[0]
    try:
        with fs.open(path, "rb", block_size=_TAR_BLOCK_BYTES) as file:
            for info in members(file, size):
                if not info.isreg():
                    counts["links, folders and devices left out"] += not info.isdir()
                    continue
                if info.issparse():
                    counts["sparse members left out"] += 1
                    continue
                if left_out.keeps(info.name, f"{prefix}/{info.name}"):
                    part = Part(RANGE, path, info.size, info.offset_data, mtime_us=_mtime_us({"mtime": info.mtime}))
                    named.append((f"{prefix}/{info.name}", part))
    except TarDamageError as error:
        last = f" ({printable(named[-1][0])})" if named else ""
        warnings.append(f"{printable(path)} cannot be read past member {len(named)}{last}: {error}")
    warnings += [f"{printable(path)}: {count} {what}" for what, count in counts.items() if count]
    return list(_group(named, _webdataset_stem)), warnings


def _parquets(fs: Any, files: list[_File], root: str, image_column: str | None, warnings: list[str], left_out: _LeftOut) -> Iterator[_Found]:
    """Rows of all Parquet files, in order; a damaged one costs a warning, and what the store cannot give at the moment ends the scan."""
    for path, size, _ in files:
        try:
            for found in _parquet_records(fs, path, size, root, image_column):
                if left_out.keeps(found[0]):
                    yield found
        except SourceError as error:
            warnings.append(str(error))


def _parquet_records(fs: Any, path: str, size: int, root: str, image_column: str | None) -> Iterator[_Found]:
    prefix = os.path.splitext(_relative(path, root, fs))[0]
    try:
        with retry(lambda: fs.open(path, "rb"), f"list {printable(path)}") as opened:
            found = groups(opened, size, max_footer_bytes=MAX_SOURCE_FOOTER)
            schema = pq.ParquetFile(opened).schema_arrow
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
                    part = Part(CELL, path, held // max(group.rows, 1), row, number, column_name)
                    extra = [(f"{prefix}/{os.path.splitext(label)[0]}.json", Part(ROW_JSON, path, -1, row, number, column_name))] if others else []
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
            raise StorageError(f"cannot list {printable(path)}: {error}") from error
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
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


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
