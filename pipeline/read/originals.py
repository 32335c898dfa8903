"""The source files of an archive's images, where they can still be had: each is the very file that was archived, or it is none.

An archive may name any file as the source of an image, so without the word of the user only regular files of this machine are opened; and what is
found counts only if it has the SHA-256 that the manifest has of the source.
"""

from __future__ import annotations

import os
import stat
from dataclasses import replace

import pyarrow as pa

from pipeline.archive.archive import Archive
from pipeline.archive.layout import sha256
from pipeline.archive.row import Row
from pipeline.errors import NotFoundError, PipelineError, SourceError, StorageError
from pipeline.formats.parquet import read_bounded
from pipeline.limits import DEFAULT, MAX_PARQUET_BYTES, Limits
from pipeline.sources import Fetcher
from pipeline.sources.record import FILE, Part, from_table, is_safe_name
from pipeline.store.base import open_store
from pipeline.text import redacted

_MAGIC = "*?["


class Originals:
    """Finds source files.

    Args:
        archive: Whose.
        source: Where the source is now, as `compress` takes it; if not given, it is looked for where the archive was made from, on this machine
            alone.
        limits: What is read at most.
    """

    def __init__(self, archive: Archive, source: str | None = None, limits: Limits = DEFAULT) -> None:
        self._archive, self._source, self._limits = archive, source, limits
        self._fetcher = Fetcher(max_file_bytes=limits.max_file_bytes)
        self._listings: dict[int, bytes] = {}

    def file(self, row: Row) -> bytes | str:
        """The file that an image was made from, or a sentence that says why it is not there. Never raises for what a store or file does.

        Args:
            row: With `key`, `name`, `source_uri`, `source_bytes` and `source_sha256`.
        """
        if not row.source_sha256:
            return "the manifest has no hash to know it by"
        try:
            data = self._found(row)
        except (PipelineError, OSError, ValueError) as error:
            return redacted(str(error)) or type(error).__name__
        if sha256(data) != row.source_sha256:
            return "a file is where it was, and it is another one now: its SHA-256 is not the one of the file that was archived"
        return data

    def _found(self, row: Row) -> bytes:
        if self._source is not None and is_safe_name(row.name):
            try:
                return open_store(self._source).read(row.name, limit=self._limits.max_file_bytes)
            except StorageError as error:
                if error.transient:
                    raise
        return self._fetcher.fetch(self._reachable(self._part(row), row))

    def _reachable(self, part: Part, row: Row) -> Part:
        """The part where it is now.

        Raises:
            SourceError: It is nowhere that may be opened.
        """
        if self._source is None:
            path = part.uri.removeprefix("file://")
            if "://" in path:
                raise SourceError("the source is not on this machine; --source SRC says where it is, and that it may be read")
            self._check_regular(path, part, row)
            return part
        if redacted(self._source) == part.uri:  # with what signs it, which no archive knows
            return replace(part, uri=self._source)
        plain = self._source[: min((at for sign in _MAGIC if (at := self._source.find(sign)) >= 0), default=len(self._source))]
        folder = plain if plain == self._source and not plain.endswith((".tar", ".parquet")) else plain.rpartition("/")[0]
        base = part.uri.rstrip("/").rpartition("/")[2]
        if plain == self._source and plain.endswith((".tar", ".parquet")):
            moved = plain
        else:
            moved = f"{folder.rstrip('/')}/{base}" if folder else base
        if "://" not in moved:
            moved = os.path.abspath(moved)
            self._check_regular(moved, part, row)
        return replace(part, uri=moved)

    def _check_regular(self, path: str, part: Part, row: Row) -> None:
        """Raises `SourceError` for what is no regular file (a pipe would never end), or cannot be the one that was archived."""
        try:
            found = os.stat(path)
        except FileNotFoundError as error:
            raise SourceError("the source file is not there any more") from error
        except OSError as error:
            raise SourceError(f"the source file cannot be read: {error.strerror}") from error
        if not stat.S_ISREG(found.st_mode):
            raise SourceError("what is in the place of the source file is no regular file")
        if part.kind == FILE and found.st_size != row.source_bytes:
            raise SourceError("the source file has changed since it was archived: it has another size")

    def _part(self, row: Row) -> Part:
        """Where the listing says that the file lies; of an image that it does not have, where the manifest says it."""
        if row.key.isdecimal() and len(row.key) < 18 and (found := self._listing_of(int(row.key))) is not None:
            listing, number = found
            try:
                for record, _ in from_table(read_bounded(listing, holding=("index", number))):
                    if record.index == number:
                        return record.part
            except (pa.ArrowException, KeyError, TypeError, ValueError, AttributeError) as error:
                raise SourceError(f"the archive's listing of its source is damaged: {error}") from error
        if not row.source_uri or "#" in row.source_uri:
            raise SourceError("the archive's listing of its source is lost, and does not say where the file lies")
        return Part(FILE, row.source_uri, -1 if row.source_bytes is None else row.source_bytes)

    def _listing_of(self, key: int) -> tuple[bytes, int] | None:
        """The listing of the generation that an image is of, and its number there; None where that is lost."""
        layer = next((layer for layer in reversed(self._archive.layers) if layer.run.first_key <= key), self._archive.layers[0])
        if layer.generation not in self._listings:
            self._listings[layer.generation] = self._read_listing(layer.scan)
        listing = self._listings[layer.generation]
        return (listing, key - layer.run.first_key) if listing else None

    def _read_listing(self, name: str) -> bytes:
        try:
            data = self._archive.store.read(name, limit=MAX_PARQUET_BYTES)
        except NotFoundError:
            return b""
        return data if sha256(data)[:12] in name.rpartition("/")[2] else b""
