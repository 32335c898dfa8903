"""One image by name or key: its picture, its original file or its metadata; or several at once."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from msinn_core import bitstream
from msinn_core.errors import CodecError
from msinn_core.picture import Picture
from pipeline.archive.archive import Archive
from pipeline.archive.commits import Commit
from pipeline.archive.conversion import Conversion, checked_scale
from pipeline.archive.layout import STILL
from pipeline.archive.row import Row
from pipeline.errors import ManifestError, UsageError
from pipeline.formats.records import columns, rows_of
from pipeline.forms import jxl, near, samples
from pipeline.forms.avif import AVIF
from pipeline.forms.base import Refusal
from pipeline.forms.msinn import MSINN
from pipeline.forms.near import NEAR
from pipeline.forms.samples import METADATA, Samples
from pipeline.limits import DEFAULT, Limits
from pipeline.read.decoder import Decoder, check_payload, read_part
from pipeline.read.files import Files
from pipeline.read.names import as_wanted, map_name, names_before, names_joined, names_table, with_single_names
from pipeline.read.reduced import Reduced
from pipeline.read.rows import COLUMNS, usable
from pipeline.read.target import Target
from pipeline.read.worker import RestoreWorker, Result, sentence_of


def metadata_of(url: str, wanted: str, *, generation: int | None = None, limits: Limits = DEFAULT) -> dict[str, bytes]:
    """What a coded or near-lossless image, or one in form `avif` or `pixels-exact`, carries beside its pixels, by file name: `exif.bin`,
    `profile.icc`, `packet.xmp`, `jpeg-segments.bin`, `png-chunks.bin`.

    Raises:
        UsageError: No such image, or the file itself is kept.
        ManifestError: Damaged.
    """
    archive = Archive(url, generation)
    row, payload = _payload(archive, wanted, limits)
    part, codec = payload, row.codec
    try:
        if codec == NEAR.codec:
            member = near.parse(payload)
            part, codec = (member.picture, "jxl") if member.way in near.WITHOUT_NETWORK else (member.bitstream, MSINN.codec)
        if codec == AVIF.codec:
            return {_FILES_OF_SAMPLES[name]: data for name, data in jxl.pieces_of(part).items() if name != jxl.ALPHA}
        if codec == "jxl":
            return {_FILES_OF_SAMPLES[name]: data for name, data in jxl.metadata_of(part).items()}
    except Refusal as error:
        raise ManifestError(f"{row.name}: {error}") from error
    if codec != MSINN.codec:
        raise UsageError(f"{row.name} comes back as the file it was: `msinn get` gives it whole, with all its metadata")
    return {_METADATA_FILES[kind]: data for kind, data in bitstream.parse(part).boxes.items() if kind in _METADATA_FILES}


def _payload(archive: Archive, wanted: str, limits: Limits) -> tuple[Row, bytes]:
    """The row of an image, and its payload, checked."""
    row = _stored(archive, wanted)
    payload = read_part(archive, row, row.offset, row.length, limits)
    check_payload(row, payload)
    return row, payload


def _stored(archive: Archive, wanted: str) -> Row:
    """The row of an image of which something is stored."""
    try:
        row = _find(archive, wanted)
    except ManifestError as error:
        raise error if STILL in str(error) else ManifestError(f"{error}; {STILL}") from error
    if row.codec is None:
        raise UsageError(f"{row.name} could not be read when the archive was made: nothing is stored of it")
    return row


_METADATA_FILES = {
    bitstream.EXIF: "exif.bin",
    bitstream.ICC: "profile.icc",
    bitstream.XMP: "packet.xmp",
    bitstream.JPEG_SEGMENTS: "jpeg-segments.bin",
    bitstream.PNG_CHUNKS: "png-chunks.bin",
}


_FILES_OF_SAMPLES = dict(zip(METADATA, ("profile.icc", "exif.bin", "packet.xmp", "jpeg-segments.bin", "png-chunks.bin"), strict=True))


class Got(NamedTuple):
    """One image as it came back.

    Attributes:
        name: What its file is called.
        data: The file.
        problems: See `Decoder.picture`.
        why_full: Of a smaller picture that was made of the full one: what has no shorter way, as the end of a sentence; None of any other.
    """

    name: str
    data: bytes
    problems: list[str]
    why_full: str | None = None


def get(url: str, wanted: str, *, original: bool = False, scale: int = 1, generation: int | None = None, limits: Limits = DEFAULT) -> Got:
    """One image by key or original name, reading its byte range only.

    Args:
        url: The archive.
        wanted: Key (`000000042`), or original or restored name.
        scale: 2, 4, 8 or 16: a PNG so many times smaller, each way, rounded up; of a coded image only the bytes are read that this takes.
        original: The file itself where its form gives that back, else the payload as stored (`.msn`, `.jxl`), instead of a PNG.
        generation: Which one of the archive; the newest if not given.
        limits: What is decoded at most.

    Raises:
        UsageError: No such image, or nothing was ever stored of it; or no such scale.
        ManifestError: Damaged, or (`NoPictureError`) a scale is asked for of what is no picture.
    """
    archive = Archive(url, generation)
    if checked_scale(scale) > 1:
        return _smaller(archive, wanted, scale, limits)
    row, payload = _payload(archive, wanted, limits)
    if original and row.exact != "bytes":
        return Got(row.member or row.key, payload, [])
    data, problem = Decoder(archive, limits).restored(row, payload)
    return Got(row.restore_name, data, [problem] if problem else [])


def _smaller(archive: Archive, wanted: str, scale: int, limits: Limits) -> Got:
    row, decoder = _stored(archive, wanted), Decoder(archive, limits)
    reduced = Reduced(archive, decoder, scale, limits)
    part = reduced.read(row)
    found, problem = reduced.picture(row, part)
    data = samples.to_png(Samples.of_picture(found) if isinstance(found, Picture) else found)
    return Got(os.path.splitext(row.restore_name)[0] + ".png", data, [problem] if problem else [], None if part.head is not None else _why_full(row))


def _why_full(row: Row) -> str:
    if row.codec == MSINN.codec:
        return "its model has no heads for smaller ones"
    form = row.form or row.codec
    return "it is kept as the file it was" if form == "kept" else f"its form, {form}, has no shorter way"


def get_many(
    url: str,
    wanted: Sequence[str],
    target: str,
    *,
    overwrite: bool = False,
    scale: int = 1,
    generation: int | None = None,
    limits: Limits = DEFAULT,
) -> Result:
    """Several images and sidecars, under their restored names in a folder; what lies near each other in a shard is read in one request.

    Args:
        url: The archive.
        wanted: Keys, original or restored names, or globs over restored names (`photos/*.png`, `**/*.png`).
        target: Folder or URL. A table in it, `msinn-names.csv` (or as `map_name` calls it), says which file holds which original.
        overwrite: Replace files of other content that are there; otherwise they stay, and are a problem.
        scale: 2, 4, 8 or 16: PNGs so many times smaller, as `restore` with a `Conversion` of this scale writes them.
        generation: Which one of the archive; the newest if not given.
        limits: What is decoded at most.

    Raises:
        UsageError: One of `wanted` can be no name, or there is no such scale.
        NotFoundError: The archive holds nothing of the kind.
        ManifestError: The archive's books are damaged.
    """
    conversion = Conversion("png", scale=scale)
    files, out, result = Files(url, limits, generation=generation), Target(target), Result()
    names = files.matching(wanted)
    table = map_name(files.rows)
    before = names_before(out.read(table), out.store.path(table))
    out.store.prepare()
    chosen = files.rows.filter(pc.is_in(files.rows.column("key"), pa.array(list({files.row(name).key for name in names}), pa.string())))
    if scale > 1:
        # Sidecars come below, as they are.
        pictures = [name for name in names if files.sidecar(name) is None]
        chosen, _ = with_single_names(as_wanted(chosen, conversion)[0])
        keys = {files.row(name).key for name in pictures}
        worker = RestoreWorker(url, target, overwrite, limits, conversion=conversion)
        result.add(worker.restore([replace(row, sidecars=()) for row in rows_of(Row, chosen) if row.key in keys]))
        names = [name for name in names if name not in set(pictures)]
    for name, data in files.read_many(names):
        try:
            if isinstance(data, Exception):
                raise data
            there = None if overwrite else out.read(name)
            if there is not None and there != data:
                raise ManifestError(f"{out.store.path(name)} is there with other content and stays as it is: --overwrite replaces it")
            side = files.sidecar(name)
            if there is None:
                out.write(name, data, files.row(name).mtime if side is None else side.mtime)
            result.skipped += there is not None and side is None
            result.images += side is None
            result.sidecars += side is not None
        except (ManifestError, CodecError) as error:
            result.problems.append(sentence_of(name, error))
    out.write(table, names_joined(before, names_table(chosen)))
    return result


def _find(archive: Archive, wanted: str) -> Row:
    found: list[Row] = []

    def rows(record: Commit) -> Iterator[Row]:
        table, _ = usable(archive.manifest_part(record, [*COLUMNS, *columns(Row, "member")]), record.manifest)
        return rows_of(Row, table)

    if wanted.isdigit() and len(wanted) == 9:
        if (record := archive.holding(wanted)) is not None:
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
