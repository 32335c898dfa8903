"""The worst images to look at, at 1:1: the region that lost most, as it was, as it decodes, and the difference; copies of one another once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from markupsafe import Markup
from PIL import Image

from msinn_core.errors import CodecError, DeviceError, PixelLimitError
from msinn_core.metrics import psnr_db
from pipeline.archive.archive import Archive
from pipeline.archive.commits import Commit
from pipeline.archive.row import Row
from pipeline.errors import DamagedError, ManifestError
from pipeline.formats.records import columns, rows_of
from pipeline.limits import DEFAULT, Limits
from pipeline.read.decoder import Decoder, read_part
from pipeline.read.originals import Originals
from pipeline.read.page_html import clipped, data_uri, html, join, measured
from pipeline.read.page_regions import GAIN, Pixels, Region, Signature, centre, difference, rgb, signature, worst_region
from pipeline.read.rows import COLUMNS
from pipeline.run.report import Reporter

SHOWN = 12
LOOKED_AT = 48
"""So many are decoded at most to find `SHOWN` that are no copies of each other."""

MAX_EMBEDDED_BYTES = 12_000_000
"""Characters of all embedded pictures. Twelve regions of noise, three pictures each without loss, take 9.4 million."""

_WHOLE = 160
"""Longest side of the picture in small."""


@dataclass
class Looks:
    """The worst images as they were looked at.

    Attributes:
        figures: One for each that is shown.
        shown: Rank, from 1, to what it is the how-manieth in the list of the worst, from 0.
        looked: How many were decoded, or could not be.
        alike: How many were left out as copies of one that is shown.
        with_original: How many are shown beside their originals.
        problems: A sentence for each that is damaged.
    """

    figures: list[Markup] = field(default_factory=list)
    shown: dict[int, int] = field(default_factory=dict)
    looked: int = 0
    alike: int = 0
    with_original: int = 0
    problems: list[str] = field(default_factory=list)


class Worst:
    """Decodes the worst images and shows them beside their originals.

    Args:
        archive: Where they are.
        commits: Of their shards, by the shard's object name.
        originals: Where their files are found, or None where nobody should look.
        limits: What is decoded at most.
    """

    def __init__(self, archive: Archive, commits: dict[str, Commit], originals: Originals | None, limits: Limits = DEFAULT) -> None:
        self._archive, self._commits, self._originals, self._limits = archive, commits, originals, limits
        self._decoder = Decoder(archive, limits)
        self._seen: list[Signature] = []
        self._embedded = 0
        # Copies lie beside one another: of an object store each shard's rows are read once.
        self._part = lru_cache(8)(lambda record: archive.manifest_part(record, [*COLUMNS, *columns(Row, "source_uri")]))

    def look(self, candidates: Sequence[Row], reporter: Reporter | None = None) -> Looks:
        """Look at images until enough are shown.

        Args:
            candidates: The worst first: `key`, `name`, `shard_key`, `psnr_db`, `bpp`, `source_sha256`, `recon_sha256`.
            reporter: Told about progress.
        """
        looks = Looks()
        if reporter is not None:
            reporter.phase("worst", min(SHOWN, len(candidates)))
        try:
            for number, candidate in enumerate(candidates):
                if len(looks.figures) == SHOWN or looks.looked == LOOKED_AT or self._embedded > MAX_EMBEDDED_BYTES:
                    break
                if self._is_known(candidate):
                    looks.alike += 1
                    continue
                looks.looked += 1
                figure = self._figure(candidate, looks)
                if figure is None:
                    looks.alike += 1
                    continue
                looks.shown[number] = len(looks.figures) + 1
                looks.figures.append(html('<article class="card" id="worst-{}">{}{}</article>', looks.shown[number], _head(candidate, looks), figure))
                if reporter is not None:
                    reporter.advance(images=1)
        finally:
            self._decoder.loader.close()
        return looks

    def _is_known(self, row: Row) -> bool:
        """Whether the same file, or the same pixels, are shown already: no need to decode it."""
        return any(
            (row.source_sha256 is not None and row.source_sha256 == seen.source) or (row.recon_sha256 is not None and row.recon_sha256 == seen.pixels)
            for seen in self._seen
        )

    def _figure(self, candidate: Row, looks: Looks) -> Markup | None:
        """Pictures of one image, or a sentence why there are none; None for a near-copy of one that is shown."""
        try:
            row = self._row(candidate)
            picture, problem = self._decoder.picture(row, read_part(self._archive, row, row.offset, row.length, self._limits))
        except Exception as error:  # whatever one image does, the page shows the others
            if _is_damage(error, candidate, self._limits):
                looks.problems.append(clipped(error, 600))
            return html('<p class="bad">It could not be decoded: {}</p>', clipped(error))
        if problem:
            looks.problems.append(problem)
        mine = signature(picture.pixels, candidate)
        if any(mine.is_copy(seen) for seen in self._seen):
            return None
        self._seen.append(mine)
        original, why = self._original(row, picture.pixels)
        warning = html('<p class="bad">{}</p>', problem) if problem else Markup("")
        return warning + self._pictures(row, original, picture.pixels, why, looks)

    def _row(self, candidate: Row) -> Row:
        """All that a decoder and a search for the original need of an image.

        Raises:
            ManifestError: Its shard's books are damaged.
        """
        record = self._commits.get(candidate.shard_key)
        if record is None:
            raise ManifestError(f"no commit names {candidate.shard_key}")
        found = next((row for row in _with_key(self._part(record), candidate.key)), None)
        if found is None:
            raise ManifestError(f"{record.manifest} no longer has {candidate.key}")
        return found

    def _original(self, row: Row, decoded: Pixels) -> tuple[Pixels | None, str]:
        if self._originals is None:
            return None, "--no-originals"
        data = self._originals.file(row)
        if isinstance(data, str):
            return None, data
        loaded = self._decoder.loader.load(data, name=row.name)
        if loaded.picture is None:
            return None, f"the original does not decode here: {loaded.message or loaded.reason}"
        if loaded.picture.pixels.shape != decoded.shape:
            return None, "the original has other dimensions than what was decoded"
        return loaded.picture.pixels, ""

    def _pictures(self, row: Row, original: Pixels | None, decoded: Pixels, why: str, looks: Looks) -> Markup:
        name = clipped(row.name, 120)
        region = centre(decoded) if original is None else worst_region(original, decoded)
        crop = region.of(decoded)
        parts = []
        if original is not None:
            looks.with_original += 1
            was = region.of(original)
            error = float(np.mean(np.square(was.astype(np.float64) - crop)))
            here = f"{psnr_db(error):.2f} dB in this region" if error else "nothing lost in this region"
            parts = [
                self._shot(was, f"Original of {name}, the region that lost most", "original"),
                self._shot(crop, f"The same region as it decodes from the archive, {here}", f"decoded: {here}"),
                self._shot(difference(was, crop), f"Difference of the two, {GAIN} times: black where nothing was lost", f"difference x {GAIN}"),
            ]
        else:
            parts = [self._shot(crop, f"The middle of {name} as it decodes from the archive", "decoded, the middle; no original")]
        if decoded.shape[:2] != crop.shape[:2]:
            parts.append(self._whole(decoded, region))
        said = html('<p class="small soft">Decoded alone: {}.</p>', clipped(why)) if original is None else Markup("")
        return html('<div class="shots">{}</div>{}', join(parts), said)

    def _shot(self, pixels: Pixels, alt: str, caption: str) -> Markup:
        height, width = pixels.shape[:2]
        return html(
            '<figure><img src="{}" width="{}" height="{}" alt="{}"><figcaption>{}</figcaption></figure>',
            self._embed(rgb(pixels), lossless=True), width, height, alt, caption,
        )  # fmt: skip

    def _whole(self, decoded: Pixels, region: Region) -> Markup:
        """The picture in small, with a frame around the region."""
        height, width = decoded.shape[:2]
        scale = _WHOLE / max(height, width)
        step = max(1, int(1 / scale) // 2)  # of a hundred megapixels, four for each that is shown are enough
        small = rgb(np.ascontiguousarray(decoded[::step, ::step])).resize(
            (max(1, round(width * scale)), max(1, round(height * scale))), Image.Resampling.BOX
        )
        frame = np.asarray(small).copy()
        top, left = int(region.top * scale), int(region.left * scale)
        bottom, right = min(frame.shape[0], top + round(region.height * scale)), min(frame.shape[1], left + round(region.width * scale))
        for inset, value in ((0, (255, 255, 255)), (1, (200, 30, 30))):
            rows, across = slice(top + inset, bottom - inset), slice(left + inset, right - inset)
            edge = frame[rows, across]
            if edge.size:
                edge[0], edge[-1], edge[:, 0], edge[:, -1] = value, value, value, value
        return html(
            '<figure class="whole"><img src="{}" width="{}" height="{}" alt="{}"><figcaption>{} x {}, the frame is the region</figcaption></figure>',
            self._embed(Image.fromarray(frame), lossless=False), frame.shape[1], frame.shape[0],
            f"The whole picture in small; a frame shows the region at row {region.top}, column {region.left}", width, height,
        )  # fmt: skip

    def _embed(self, image: Image.Image, *, lossless: bool) -> str:
        address = data_uri(image, lossless=lossless)
        self._embedded += len(address)
        return address


def _is_damage(error: Exception, row: Row, limits: Limits) -> bool:
    """Whether an error says that an image is lost, and not that it is more than its reader takes, or that the store is away."""
    if isinstance(error.__cause__, PixelLimitError) or (row.stored_bytes or 0) > limits.max_file_bytes:
        return False
    return isinstance(error, ManifestError | DamagedError | CodecError) and not isinstance(error, DeviceError)


def _with_key(table: pa.Table, key: str) -> Iterator[Row]:
    yield from rows_of(Row, table.filter(pc.equal(table.column("key"), key)))


def _head(row: Row, looks: Looks) -> Markup:
    return html(
        "<h3>{}. {}, {} bpp</h3><p>{} <span class=soft>{}</span></p>",
        len(looks.figures) + 1,
        decibels(row),
        measured(row.bpp, 3),
        clipped(row.name),
        clipped(row.key, 40),
    )


def decibels(row: Row) -> str:
    """PSNR of an image, for people."""
    return "lossless" if row.psnr_db is None else f"{measured(row.psnr_db, 2)} dB"
