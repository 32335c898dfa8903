"""The files that a restore would write, by name, without restoring: what `msinn://` paths, `ls`, `get` of several and `diff` look at.

```
read, read_many --> at full size: payloads by blocks, or neighbours in one request --> Decoder --> the file
                    smaller: of each picture its first bytes (`Reduced`)           --> PNG
```
"""

from __future__ import annotations

import fnmatch
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from msinn_core.errors import CodecError
from msinn_core.flight import ahead
from pipeline.archive.archive import Archive
from pipeline.archive.conversion import Conversion
from pipeline.archive.layout import STILL, sha256
from pipeline.archive.row import Row, Sidecar
from pipeline.errors import DamagedError, ManifestError, NotFoundError, OutageError, PipelineError, UsageError
from pipeline.formats.records import columns, rows_of
from pipeline.limits import DEFAULT, Limits
from pipeline.read.decoder import Decoder, checked_range, read_part
from pipeline.read.names import as_wanted, with_single_names
from pipeline.read.ranges import Blocks, coalesced
from pipeline.read.reduced import Part, Reduced
from pipeline.read.rows import COLUMNS, usable
from pipeline.sources.record import is_safe_name
from pipeline.store.options import options_of, use_options

FILE_COLUMNS = list(dict.fromkeys([*COLUMNS, *columns(Row, "source_bytes", "stored_bytes", "psnr_db")]))
CACHE_BYTES = 1 << 26
_READERS = 4


class PathError(UsageError, ValueError):
    """A name that can be none of a file of an archive."""


class NameLostError(NotFoundError):
    """An archive holds no file of this name."""

    exit_code = 2


@dataclass
class _Opened:
    """What one process reads with: a forked one must not use its parent's connections."""

    archive: Archive
    decoder: Decoder
    blocks: Blocks
    reduced: Reduced
    process: int = field(default_factory=os.getpid)
    # A codec takes one call at a time.
    decoding: threading.Lock = field(default_factory=threading.Lock)
    kept: OrderedDict[str, bytes] = field(default_factory=OrderedDict)


class Files:
    """Images and sidecars under the names that `restore` gives them, each decoded when it is read. Safe to use from several threads and processes.

    Images of which nothing is stored have no file. The list is that of the moment when it was made: an archive that has grown is opened again.

    Args:
        url: The archive.
        limits: What is decoded at most.
        cache_bytes: Of the files that were decoded last, kept at most.
        generation: Which one of the archive; the newest if not given.
        scale: 2, 4, 8 or 16: files as a restore with a `Conversion` of this scale writes them, pictures as PNG so many times smaller each way, by
            the first bytes of coded images alone.

    Attributes:
        rows: Of the manifest, in archive order: `FILE_COLUMNS`.

    Raises:
        UsageError: Another scale.
        ManifestError: There is no archive, or its books are damaged (`restore` gives back what is left).
    """

    def __init__(self, url: str, limits: Limits = DEFAULT, *, cache_bytes: int = CACHE_BYTES, generation: int | None = None, scale: int = 1) -> None:
        self._conversion = Conversion("png", scale=scale)
        archive = Archive(url, generation)
        self._generation = generation
        self.url = archive.store.url
        self._limits = limits
        self._cache_bytes = cache_bytes
        table, problems = usable(archive.manifest(FILE_COLUMNS), self.url)
        for problem in problems:
            raise ManifestError(f"{problem}; {STILL}")
        self.rows: pa.Table = with_single_names(as_wanted(table, self._conversion if scale > 1 else None)[0])[0].combine_chunks()
        self._places = dict(self._named())
        self._sizes: dict[str, int] = {}
        self._opened: _Opened | None = None

    def _named(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """Names, each with the number of its row and that of the sidecar in it (-1: the image)."""
        some = self.rows.select(columns(Row, "restore_name", "sidecars", "codec"))
        for i, row in enumerate(rows_of(Row, some)):
            names = ([(row.restore_name, -1)] if row.codec is not None else []) + [(side.restore_name, j) for j, side in enumerate(row.sidecars)]
            for name, place in names:
                if not is_safe_name(name):
                    raise ManifestError(f"{self.url}: {name!r} is no name inside a folder: the manifest is not to be trusted")
                yield name, (i, place)

    def __reduce__(self) -> tuple[Any, ...]:
        return _files, (self.url, self._limits, self._cache_bytes, self._generation, self._conversion.scale, options_of(self.url))

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        """Names in archive order, an image's before those of its sidecars."""
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def row(self, name: str) -> Row:
        """The row that a file belongs to. Raises `NotFoundError`."""
        return next(rows_of(Row, self.rows.slice(self._place(name)[0], 1)))

    def sidecar(self, name: str) -> Sidecar | None:
        """The sidecar that a file is; None for an image. Raises `NotFoundError`."""
        number = self._place(name)[1]
        return None if number < 0 else self.row(name).sidecars[number]

    def is_smaller(self, name: str) -> bool:
        """Whether a file is a picture that is made smaller. Raises `NotFoundError`."""
        return self._conversion.scale > 1 and self._place(name)[1] < 0 and self._conversion.format_of(self.row(name)) is not None

    def size(self, name: str) -> tuple[int | None, str | None]:
        """Bytes of a file and how they are known: by the `manifest` (files that come back as they were), or because it was `decoded` here before.

        `(None, None)` where only decoding will tell. Raises `NotFoundError`.
        """
        i, number = self._place(name)
        if number >= 0:
            return self.rows.column("sidecars")[i].as_py()[number]["length"], "manifest"
        if name in self._sizes:
            return self._sizes[name], "decoded"
        if self.rows.column("exact")[i].as_py() == "bytes" and not self.is_smaller(name):
            kept = self.rows.column("codec")[i].as_py() == "kept"
            known = self.rows.column("length" if kept else "source_bytes")[i].as_py()
            return (known, "manifest") if known is not None else (None, None)
        return None, None

    def read(self, name: str) -> bytes:
        """A file, as `restore` writes it.

        Raises:
            NotFoundError: There is none.
            ManifestError: Its bytes are lost or damaged, decode to other pixels than were verified, or it is larger than the limits.
            CodecError: It does not decode.
            StorageError: The store cannot be read.
        """
        opened = self._open()
        if (kept := opened.kept.get(name)) is not None:
            return kept
        return self._finished(name, self._stored(name))

    def _stored(self, name: str) -> bytes | Part:
        """What is to be read for a file: the bytes that are stored of it or, for a smaller picture, as many as it takes."""
        opened, row, number = self._open(), self.row(name), self._place(name)[1]
        if self.is_smaller(name):
            return opened.reduced.read(row, via=opened.blocks.read_range)
        part = row if number < 0 else row.sidecars[number]
        return read_part(opened.archive, row, part.offset, part.length, self._limits, via=opened.blocks.read_range)

    def read_many(self, names: Iterable[str]) -> Iterator[tuple[str, bytes | Exception]]:
        """Several files in archive order, what lies near each other in one request, read while others are decoded.

        What one of them costs (`read` says what) is given in its place, and the others come back.

        Raises:
            NotFoundError: There is no file of one of the names.
            OutageError: The store cannot be used at the moment.
        """
        wanted = sorted(dict.fromkeys(names), key=self._place)
        if self._conversion.scale > 1:
            yield from self._read_parts(wanted)
            return
        ranges, sound = [], []
        for name in wanted:
            row, side = self.row(name), self.sidecar(name)
            part = row if side is None else side
            try:
                ranges.append((row.shard_key, *checked_range(name, row.shard_key, part.offset, part.length, self._limits)))
                sound.append(name)
            except ManifestError as error:
                yield name, error
        store = self._open().archive.store
        with ThreadPoolExecutor(_READERS) as pool:

            def fetched(span: Any) -> bytes | None:
                try:
                    return store.read_range(span.name, span.start, span.length)
                except (DamagedError, NotFoundError):
                    return None  # each by itself, to say what is lost

            spans = coalesced(ranges)
            for span, data in zip(spans, ahead(fetched, spans, pool, 2 * _READERS), strict=True):
                for number in span.parts:
                    _, start, length = ranges[number]
                    payload = None if data is None else data[start - span.start : start - span.start + length]
                    yield sound[number], self._tried(sound[number], payload)

    def _read_parts(self, names: list[str]) -> Iterator[tuple[str, bytes | Exception]]:
        """Several files of a smaller archive: between the first bytes of neighbours lies more than they are, so that each is a request."""

        def fetched(name: str) -> bytes | Part | Exception:
            try:
                return self._stored(name)
            except OutageError:
                raise
            except (PipelineError, CodecError) as error:
                return error

        with ThreadPoolExecutor(_READERS) as pool:
            for name, found in zip(names, ahead(fetched, names, pool, 2 * _READERS), strict=True):
                yield name, found if isinstance(found, Exception) else self._tried(name, found)

    def _tried(self, name: str, payload: bytes | Part | None) -> bytes | Exception:
        try:
            return self.read(name) if payload is None else self._finished(name, payload)
        except OutageError:
            raise
        except (PipelineError, CodecError) as error:  # whatever one image does, the others come back
            return error

    def _finished(self, name: str, payload: bytes | Part) -> bytes:
        """The file of what was read for it, checked and decoded, which is remembered."""
        opened, row, side = self._open(), self.row(name), self.sidecar(name)
        if side is not None and isinstance(payload, bytes):
            if sha256(payload) != side.sha256:
                raise ManifestError(f"{side.name}: its bytes in {row.shard_key} are damaged")
            return payload
        with opened.decoding:
            data, problem = self._decoded(opened, row, payload)
            if problem is not None:
                raise ManifestError(problem)
            self._sizes[name] = len(data)
            opened.kept[name] = data
            while len(opened.kept) > 1 and sum(map(len, opened.kept.values())) > self._cache_bytes:
                opened.kept.popitem(last=False)
        return data

    def _decoded(self, opened: _Opened, row: Row, payload: bytes | Part) -> tuple[bytes, str | None]:
        if isinstance(payload, bytes):
            return opened.decoder.restored(row, payload)
        picture, problem = opened.reduced.picture(row, payload)
        return self._conversion.file_of(row, picture, opened.decoder.loader), problem

    def _open(self) -> _Opened:
        if self._opened is None or self._opened.process != os.getpid():
            archive = Archive(self.url, self._generation)
            decoder = Decoder(archive, self._limits)
            self._opened = _Opened(archive, decoder, Blocks(archive.store), Reduced(archive, decoder, self._conversion.scale, self._limits))
        return self._opened

    def _place(self, name: str) -> tuple[int, int]:
        place = self._places.get(name)
        if place is None:
            raise NameLostError(self._missing(name))
        return place

    def _missing(self, name: str) -> str:
        """Why there is no such file."""
        found = self.rows.filter(pc.or_(pc.equal(self.rows.column("name"), name), pc.equal(self.rows.column("restore_name"), name)))
        for row in rows_of(Row, found.slice(0, 1)):
            if row.codec is None:
                return f"{row.name} could not be read when the archive was made: nothing is stored of it"
            return f"{name} comes back as {row.restore_name} from {self.url}: ask for that"
        return f"{self.url} holds no file {name!r}: `msinn ls` lists them"

    def matching(self, patterns: Iterable[str]) -> list[str]:
        """Names that keys, names (original ones too) or globs choose, in archive order.

        In a glob `*` and `?` stay in their folder, `**/` goes through all.

        Raises:
            NotFoundError: One chooses nothing.
            PathError: One leaves its folder.
        """
        chosen: set[str] = set()
        for pattern in [checked_name(pattern) for pattern in patterns]:
            found = self._chosen(pattern)
            if not found:
                raise NameLostError(self._missing(pattern))
            chosen |= found
        return sorted(chosen, key=self._place)

    def _chosen(self, pattern: str) -> set[str]:
        if pattern in self._places:
            return {pattern}
        if any(sign in pattern for sign in "*?["):
            matches = re.compile(glob_expression(pattern)).fullmatch
            return {name for name in self._places if matches(name)}
        some = self.rows.select(columns(Row, "key", "name", "restore_name", "codec"))
        same = pc.or_(pc.equal(some.column("key"), pattern), pc.equal(some.column("name"), pattern))
        return {row.restore_name for row in rows_of(Row, some.filter(same)) if row.codec is not None}


def _files(url: str, limits: Limits, cache_bytes: int, generation: int | None, scale: int, options: dict[str, Any]) -> Files:
    use_options(url, options)
    return Files(url, limits, cache_bytes=cache_bytes, generation=generation, scale=scale)


def glob_expression(pattern: str) -> str:
    """The regular expression of a glob: `**/` stands for any folders or none, `*` and `?` for characters of one name.

    >>> bool(re.fullmatch(glob_expression("a/**/*.png"), "a/b/c/x.png")), bool(re.fullmatch(glob_expression("a/*.png"), "a/b/x.png"))
    (True, False)
    """
    parts = []
    for piece in re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]+\])", pattern):
        if piece == "**/":
            parts.append("(?:.*/)?")
        elif piece in ("**", "*", "?"):
            parts.append({"**": ".*", "*": "[^/]*", "?": "[^/]"}[piece])
        elif piece.startswith("[") and piece.endswith("]"):
            parts.append(fnmatch.translate(piece).removeprefix("(?s:").partition(")")[0])
        else:
            parts.append(re.escape(piece))
    return "".join(parts)


def checked_name(name: str) -> str:
    """A name or glob, as it is. Raises `PathError` for one that leaves its folder or holds what no name of a file of an archive does."""
    if "::" in name:
        raise PathError(f"{name!r} holds two colons, which no name in an archive does: one '::' stands between name and archive")
    if any(part in (".", "..") for part in name.split("/")):
        raise PathError(f"{name!r} has a part '..' or '.': names in an archive are whole, and lead nowhere else")
    if "\\" in name or "\0" in name:
        raise PathError(f"{name!r} holds a backslash or a zero, which no name in an archive does: folders are divided by '/'")
    return name
