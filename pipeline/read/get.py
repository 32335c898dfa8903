"""One image by name or key: its picture, its original file or its metadata."""

from __future__ import annotations

import os
from collections.abc import Iterator

from msinn_core import bitstream
from pipeline.archive.archive import Archive
from pipeline.archive.commits import Commit
from pipeline.archive.layout import STILL
from pipeline.archive.row import Row
from pipeline.errors import ManifestError, UsageError
from pipeline.formats import images
from pipeline.formats.records import columns, rows_of
from pipeline.limits import DEFAULT, Limits
from pipeline.read.decoder import Decoder, check_payload, read_part
from pipeline.read.rows import COLUMNS, usable


def metadata_of(url: str, wanted: str, *, limits: Limits = DEFAULT) -> dict[str, bytes]:
    """What a coded image carries beside its pixels, by file name: `exif.bin`, `profile.icc`, `packet.xmp`, `jpeg-segments.bin`, `png-chunks.bin`.

    Raises:
        UsageError: No such image, or the file itself is kept.
        ManifestError: Damaged.
    """
    archive = Archive(url)
    row, payload = _payload(archive, wanted, limits)
    if row.codec != "msinn":
        raise UsageError(f"{row.name} is kept as the file it was: `msinn get` gives it whole, with all its metadata")
    return {_METADATA_FILES[kind]: data for kind, data in bitstream.parse(payload).boxes.items() if kind in _METADATA_FILES}


def _payload(archive: Archive, wanted: str, limits: Limits) -> tuple[Row, bytes]:
    """The row of an image, and its payload, checked."""
    try:
        row = _find(archive, wanted)
    except ManifestError as error:
        raise error if STILL in str(error) else ManifestError(f"{error}; {STILL}") from error
    if row.codec is None:
        raise UsageError(f"{row.name} could not be read when the archive was made: nothing is stored of it")
    payload = read_part(archive, row, row.offset, row.length, limits)
    check_payload(row, payload)
    return row, payload


_METADATA_FILES = {
    bitstream.EXIF: "exif.bin",
    bitstream.ICC: "profile.icc",
    bitstream.XMP: "packet.xmp",
    bitstream.JPEG_SEGMENTS: "jpeg-segments.bin",
    bitstream.PNG_CHUNKS: "png-chunks.bin",
}


def get(url: str, wanted: str, *, original: bool = False, limits: Limits = DEFAULT) -> tuple[str, bytes, list[str]]:
    """One image by key or original name, reading its byte range only.

    Args:
        url: The archive.
        wanted: Key (`000000042`), or original or restored name.
        original: The payload as stored (`.msn` or the untouched file) instead of a PNG.
        limits: What is decoded at most.

    Returns:
        A file name, the bytes, and problems (see `Decoder.picture`).

    Raises:
        UsageError: No such image, or nothing was ever stored of it.
        ManifestError: Damaged.
    """
    archive = Archive(url)
    row, payload = _payload(archive, wanted, limits)
    if original or row.codec != "msinn":
        return (row.member or row.key if original else row.restore_name), payload, []
    picture, problem = Decoder(archive, limits).picture(row, payload)
    return row.restore_name, images.to_png(picture), [problem] if problem else []


def _find(archive: Archive, wanted: str) -> Row:
    found: list[Row] = []

    def rows(record: Commit) -> Iterator[Row]:
        table, _ = usable(archive.manifest_part(record, [*COLUMNS, *columns(Row, "member")]), record.manifest)
        return rows_of(Row, table)

    if wanted.isdigit() and len(wanted) == 9:
        firsts = archive.run.shard_first
        shard = max((i for i, first in enumerate(firsts) if first <= int(wanted)), default=0)
        if (record := archive.record(shard)) is not None:
            found = [row for row in rows(record) if row.key == wanted]
    else:
        for record in archive.commits():
            found += [row for row in rows(record) if wanted in (row.name, row.restore_name, os.path.basename(row.name))]
        exact = [row for row in found if wanted in (row.name, row.restore_name)]
        found = exact or found
        if len(found) > 1:
            raise UsageError(
                f"{len(found)} images are called {wanted!r}, {found[0].name} and {found[1].name} among them: give the whole name or the key"
            )
    if not found:
        raise UsageError(f'{archive.store.url} holds no image {wanted!r}: msinn audit DST "SELECT key, name FROM manifest" lists them')
    return found[0]
