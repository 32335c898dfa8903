"""An archive against a folder: what is missing, what is different, and how different."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from msinn_core.errors import CodecError
from msinn_core.flight import ahead
from msinn_core.metrics import psnr_db
from pipeline.archive.layout import sha256
from pipeline.archive.row import Row
from pipeline.errors import ManifestError, NotFoundError, OutageError, StorageError, UsageError
from pipeline.formats import images
from pipeline.formats.records import rows_of
from pipeline.limits import DEFAULT, Limits
from pipeline.read.files import Files
from pipeline.read.names import map_name
from pipeline.read.worker import holds, sentence_of
from pipeline.sources.listing import LITTER
from pipeline.sources.record import printable
from pipeline.store.base import Store, open_store

_READERS = 4

ONLY_IN_ARCHIVE, ONLY_IN_FOLDER, DIFFERENT = "only in the archive", "only in the folder", "different"


@dataclass(frozen=True)
class Difference:
    """Something that is not the same on both sides.

    Attributes:
        kind: `only in the archive`, `only in the folder` or `different`.
        name: Of the file in the folder, or its original name.
        how: In words; empty if the kind says all.
    """

    kind: str
    name: str
    how: str = ""


@dataclass(frozen=True)
class _Pair:
    """A file of the archive and what may be the same one in the folder.

    Attributes:
        row: Of the image, or of the one that a sidecar belongs to.
        name: Original name; `there`: in the folder, None if it is not.
        restored: Name in the archive.
        digest: SHA-256 that a sidecar must have; None for images.
    """

    row: Row
    name: str
    there: str | None
    restored: str
    digest: str | None = None


@dataclass
class Comparison:
    """What a comparison finds, as it goes.

    Attributes:
        counts: How many files are `the source`, `as restored`, or of a kind of `Difference`.
    """

    counts: Counter[str] = field(default_factory=Counter)

    def run(self, url: str, folder: str, limits: Limits = DEFAULT, *, generation: int | None = None) -> Iterator[Difference]:
        """Compare, file by file; a file is looked for under its original name, else under the one that a restore gives it.

        Args:
            url: The archive.
            folder: Folder or URL: the source, or what was restored.
            limits: What is read and decoded at most.
            generation: Which one of the archive; the newest if not given.

        Raises:
            UsageError: The folder holds no files.
            ManifestError: The archive's books are damaged.
        """
        files, store = Files(url, limits, generation=generation), open_store(folder)
        names = {name for name in store.list("") if LITTER.isdisjoint(name.split("/"))}
        if not names:
            raise UsageError(f"{folder} holds no files to compare with")
        # The table of names is a restore's own.
        others = names - {map_name(files.rows)}
        # Names that are no UTF-8 stand in the archive as text.
        by_text = {printable(name): name for name in names} | {name: name for name in names}
        with ThreadPoolExecutor(_READERS) as pool:

            def compared(pair: _Pair) -> tuple[_Pair, str | Difference]:
                return pair, _compared(pair, store, files, limits)

            for pair, found in ahead(compared, _pairs(files, by_text), pool, 2 * _READERS):
                others.discard(pair.there or "")
                self.counts[found if isinstance(found, str) else found.kind] += 1
                if isinstance(found, Difference):
                    yield found
        for name in sorted(others):
            self.counts[ONLY_IN_FOLDER] += 1
            yield Difference(ONLY_IN_FOLDER, name)


def _pairs(files: Files, names: dict[str, str]) -> Iterator[_Pair]:
    for row in rows_of(Row, files.rows):
        yield _Pair(row, row.name, next((names[name] for name in (row.name, row.restore_name) if name in names), None), row.restore_name)
        for side in row.sidecars:
            there = next((names[name] for name in (side.name, side.restore_name) if name in names), None)
            yield _Pair(row, side.name, there, side.restore_name, side.sha256)


def _compared(pair: _Pair, store: Store, files: Files, limits: Limits) -> str | Difference:
    row = pair.row
    if pair.there is None:
        lost = pair.digest is None and row.codec is None
        return Difference(ONLY_IN_ARCHIVE, pair.name, "by name: nothing could be stored of it" if lost else "")
    try:
        data = store.read(pair.there, limit=limits.max_file_bytes)
    except NotFoundError:  # gone since it was listed
        return Difference(ONLY_IN_ARCHIVE, pair.name)
    except OutageError:
        raise
    except StorageError as error:  # one that cannot be read says nothing of the others
        return Difference(DIFFERENT, pair.there, str(error))
    if pair.digest is None and row.codec is None:
        return Difference(DIFFERENT, pair.there, "it could not be read when the archive was made: nothing is stored of it")
    if sha256(data) == (pair.digest or row.source_sha256):
        return "the source"
    if pair.digest is not None:
        return Difference(DIFFERENT, pair.there, f"{len(data):,} bytes, of other content than the sidecar in the archive")
    if holds(data, row):
        return "as restored"
    try:
        stored = files.read(pair.restored)
    except (ManifestError, CodecError) as error:
        return Difference(DIFFERENT, pair.there, f"it is not the source, and the archive cannot say more: {sentence_of(row.name, error)}")
    return "as restored" if stored == data else Difference(DIFFERENT, pair.there, how_different(data, stored, row, limits))


def how_different(data: bytes, stored: bytes, row: Row, limits: Limits = DEFAULT) -> str:
    """What distinguishes a file from the one that an archive gives back, in words."""
    ours, theirs = (images.load(file, max_pixels=limits.max_pixels).picture for file in (data, stored))
    if ours is None or theirs is None:
        which = "neither is" if ours is None and theirs is None else "it is no" if ours is None else "the archive's is no"
        return f"{len(data):,} bytes, {len(stored):,} in the archive; {which} picture of 8 bits that can be compared"
    if ours.pixels.shape[:2] != theirs.pixels.shape[:2]:
        sizes = [f"{picture.pixels.shape[1]} x {picture.pixels.shape[0]}" for picture in (ours, theirs)]
        return f"{sizes[0]} pixels, {sizes[1]} in the archive"
    if (ours.pixels.ndim, ours.alpha is None) != (theirs.pixels.ndim, theirs.alpha is None):
        return "other channels than in the archive"
    if ours.content() == theirs.content():
        return "the same pixels in another file"
    difference = np.abs(ours.pixels.astype(np.int16) - theirs.pixels)
    mse = float(np.mean(np.square(difference, dtype=np.float64)))
    text = f"{psnr_db(mse):.2f} dB between them" if mse else "the same colours, another alpha"
    expected = f"; the archive's is {row.psnr_db:.2f} dB from its source" if row.psnr_db is not None else ""
    return f"{text}, {100 * float(np.mean(difference > 0)):.2g} % of samples differ, by {int(difference.max())} of 255 at most{expected}"
