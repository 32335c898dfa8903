"""What a worker of a restore holds and does: rows of one shard, back to files or only checked."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np

from msinn_core.codec import Codec
from msinn_core.errors import CodecError
from msinn_core.flight import ahead
from pipeline.archive.archive import Archive
from pipeline.archive.conversion import Conversion
from pipeline.archive.layout import sha256
from pipeline.archive.row import Row
from pipeline.errors import ManifestError, OutageError, PipelineError
from pipeline.formats import images
from pipeline.forms import samples
from pipeline.limits import DEFAULT, Limits
from pipeline.read.batches import Stored, decode_batches, decode_one
from pipeline.read.decoder import Decoder, check_payload, read_part
from pipeline.read.reduced import Reduced
from pipeline.read.target import Target

_READERS = 4
"""Payloads that are read at once, beside a GPU or for smaller pictures: what is decoded so quickly must not wait for each request."""


@dataclass
class Result:
    """What became of a restore or a verification.

    Attributes:
        images: Images written (or checked); `file_bytes`: of the files that were made of them.
        sidecars: Sidecars written.
        full: Smaller pictures among them that were made of full ones, because their form or their model has no shorter way.
        left_out: Images that were not asked for in the format in which they can be had.
        failed_at_source: Rows of which nothing was ever stored.
        skipped: Images among them that were there already, whole and equal.
        computed_on: What decoded, for people.
        problems: One sentence for each image or object that is damaged or differs.
    """

    images: int = 0
    file_bytes: int = 0
    skipped: int = 0
    sidecars: int = 0
    failed_at_source: int = 0
    left_out: int = 0
    full: int = 0
    problems: list[str] = field(default_factory=list)
    computed_on: set[str] = field(default_factory=set)

    def add(self, other: Result) -> None:
        """Sum up."""
        self.images += other.images
        self.file_bytes += other.file_bytes
        self.skipped += other.skipped
        self.sidecars += other.sidecars
        self.full += other.full
        self.failed_at_source += other.failed_at_source
        self.problems += other.problems
        self.computed_on |= other.computed_on


class RestoreWorker:
    """Restores rows of one shard at a time. Lives in an actor or in this process.

    Args:
        url: The archive.
        target: Where files go; None only checks.
        overwrite: Replace files of other content that are there; otherwise they stay, and are a problem.
        limits: What is decoded at most.
        device: See `Decoder`; so `threads`.
        conversion: What images are written as, if not what their forms give back.
    """

    def __init__(
        self,
        url: str,
        target: str | None,
        overwrite: bool = False,
        limits: Limits = DEFAULT,
        device: str = "cpu",
        conversion: Conversion | None = None,
        threads: int = 1,
    ) -> None:
        self.archive = Archive(url, without_run=True)
        self.limits = limits
        self.device = device
        self.decoder = Decoder(self.archive, limits, threads, device)
        self.target = Target(target) if target is not None else None
        self.overwrite = overwrite
        self.conversion = conversion
        self._reduced = Reduced(self.archive, self.decoder, conversion.scale, limits) if conversion is not None and conversion.scale > 1 else None
        self._instead: str | None = None

    @property
    def remarks(self) -> tuple[str, ...]:
        """What users should know of this machine; see `execute.base.remarks_of`."""
        if self.decoder.lost is not None:
            return (f"a GPU is not used any more ({self.decoder.lost}): its worker goes on with its CPU, to the same pixels",)
        if self.device == "cuda" and self._instead is not None:
            return (f"--device {self.device}: a worker computes on its CPU ({self._instead}), to the same pixels",)
        return ()

    def restore(self, rows: list[Row]) -> Result:
        """Write the images and sidecars of these rows of one shard; damaged ones are named, the others come back all the same."""
        result = Result()
        for image in self._decoded(rows):
            result.add(self._settled(image))
            result.add(self._sidecars(image.row))
        result.computed_on |= self.decoder.used
        return result

    def _decoded(self, rows: list[Row]) -> Iterator[Stored]:
        """The images of rows, in their order, each with the bytes of its file or the error that it costs."""
        coded = next((row for row in rows if row.codec == "msinn"), None)
        codec = None if coded is None or self.device == "cpu" else self._codec_of(coded)
        if codec is not None and codec.batches is not None:
            with ThreadPoolExecutor(_READERS) as readers:
                yield from decode_batches(ahead(self._begun, rows, readers, 4 * _READERS), self.decoder, codec, codec.batches)
            return
        self._instead = None if codec is None else codec.engine.name
        with ThreadPoolExecutor(_READERS) if self._reduced is not None else contextlib.nullcontext() as ahead_of_it:
            for image in map(self._begun, rows) if ahead_of_it is None else ahead(self._begun, rows, ahead_of_it, 4 * _READERS):
                decode_one(image, self.decoder)
                yield image

    def _codec_of(self, row: Row) -> Codec | None:
        try:
            return self.decoder.codec_of(row)
        except (CodecError, PipelineError) as error:  # every row that wants this model says so itself
            self._raise_outage(error)
            return None

    def _begun(self, row: Row) -> Stored:
        """Read what is stored of a row, unless its file is there."""
        image = Stored(row, self.conversion)
        if row.codec is None:
            return image
        try:
            if image.known and self._is_there(row.restore_name, lambda data: holds(data, row)):
                image.there = True
                return image
            if self._reduced is not None and image.converted:
                image.part, image.reduced = self._reduced.read(row), self._reduced
                return image
            payload = self._read(row, row.offset, row.length)
            if (row.codec != "kept" or image.converted) and (row.codec != "msinn" or self.device == "cpu"):
                image.payload = payload  # which the decoder checks
                return image
            check_payload(row, payload)
            image.payload, image.data = (payload, None) if row.codec == "msinn" else (None, payload)
        except Exception as error:  # whatever one image does, the others come back
            self._raise_outage(error)
            image.error = error
        return image

    def _settled(self, image: Stored) -> Result:
        """Write a decoded image, and say what became of it."""
        result, row = Result(), image.row
        if row.codec is None:
            result.failed_at_source += 1
            return result
        result.problems += [image.problem] if image.problem else []
        try:
            if image.error is not None:
                raise image.error
            if not image.there and not image.known and self._is_there(row.restore_name, lambda there: bool(there == image.data)):
                image.there = True
            if image.there:
                result.skipped += 1
            elif image.data is not None:
                self._write(row.restore_name, image.data, row.mtime)
                result.file_bytes += len(image.data)
            result.full += image.full
            result.images += 1
        except Exception as error:  # likewise
            self._raise_outage(error)
            result.problems.append(sentence_of(row.name, error))
        return result

    def _raise_outage(self, error: Exception) -> None:
        # What may pass is for the pool to try again, not a verdict on an image.
        if isinstance(error, OutageError):
            raise error

    def _sidecars(self, row: Row) -> Result:
        result = Result()
        for side in row.sidecars:
            try:
                if self._is_there(side.restore_name, lambda data, side=side: sha256(data) == side.sha256):  # type: ignore[misc]
                    result.sidecars += 1
                    continue
                data = self._read(row, side.offset, side.length)
                if sha256(data) != side.sha256:
                    raise ManifestError(f"{side.name}: its bytes in {row.shard_key} are damaged")
                self._write(side.restore_name, data, side.mtime)
                result.sidecars += 1
            except Exception as error:  # likewise
                self._raise_outage(error)
                result.problems.append(sentence_of(side.name, error))
        return result

    def _read(self, row: Row, offset: int | None, length: int | None) -> bytes:
        return read_part(self.archive, row, offset, length, self.limits)

    def _is_there(self, name: str, equal: Callable[[bytes], bool]) -> bool:
        """Whether an earlier restore wrote this file, whole.

        Raises:
            ManifestError: Something else is there, and was not to be overwritten.
        """
        if self.target is None or self.overwrite:
            return False
        there = self.target.read(name)
        if there is None:
            return False
        if equal(there):
            return True
        raise ManifestError(f"{self.target.store.path(name)} is there with other content and stays as it is: --overwrite replaces it")

    def _write(self, name: str, data: bytes, mtime: datetime | None = None) -> None:
        if self.target is not None:
            self.target.write(name, data, mtime)


def sentence_of(name: str, error: Exception) -> str:
    """What an error says, with the name of what it is of."""
    text = str(error) or type(error).__name__
    return text if name in text else f"{name}: {text}"


def holds(data: bytes, row: Row) -> bool:
    """Whether a restored file holds what a row says: the file's bytes, or a PNG of the very pixels that were measured."""
    if row.exact == "bytes":
        return bool(sha256(data) == (row.payload_sha256 if row.codec == "kept" else row.source_sha256))
    if row.recon_sha256 is None:
        return False
    if row.exact == "pixels":
        return samples.png_holds(data, row.width or 0, row.height or 0, row.recon_sha256, sha256)
    try:
        with images.opened(data, formats=("PNG",)) as image:
            if row.width is None or row.height is None or image.width * image.height != row.width * row.height:
                return False
            array = np.asarray(image)
    except Exception:  # whatever is there, it is not that picture
        return False
    planes = array if image.mode in ("L", "RGB") else array[..., :-1]
    alpha = b"" if image.mode in ("L", "RGB") else np.ascontiguousarray(array[..., -1]).tobytes()
    planes = planes[..., 0] if image.mode == "LA" else planes
    return image.mode in ("L", "LA", "RGB", "RGBA") and bool(sha256(np.ascontiguousarray(planes).tobytes() + alpha) == row.recon_sha256)
