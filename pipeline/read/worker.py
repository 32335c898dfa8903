"""What a worker of a restore holds and does: rows of one shard, back to files or only checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np

from pipeline.archive.archive import Archive
from pipeline.archive.layout import sha256
from pipeline.archive.row import Row
from pipeline.errors import ManifestError, OutageError
from pipeline.formats import images
from pipeline.limits import DEFAULT, Limits
from pipeline.read.decoder import Decoder, check_payload, read_part
from pipeline.read.target import Target


@dataclass
class Result:
    """What became of a restore or a verification.

    Attributes:
        images: Images written (or checked).
        sidecars: Sidecars written.
        failed_at_source: Rows of which nothing was ever stored.
        skipped: Images among them that were there already, whole and equal.
        problems: One sentence for each image or object that is damaged or differs.
    """

    images: int = 0
    skipped: int = 0
    sidecars: int = 0
    failed_at_source: int = 0
    problems: list[str] = field(default_factory=list)

    def add(self, other: Result) -> None:
        """Sum up."""
        self.images += other.images
        self.skipped += other.skipped
        self.sidecars += other.sidecars
        self.failed_at_source += other.failed_at_source
        self.problems += other.problems


class RestoreWorker:
    """Restores rows of one shard at a time. Lives in an actor or in this process.

    Args:
        url: The archive.
        target: Where files go; None only checks.
        overwrite: Replace files of other content that are there; otherwise they stay, and are a problem.
        limits: What is decoded at most.
        threads: See `Decoder`.
    """

    def __init__(self, url: str, target: str | None, overwrite: bool = False, limits: Limits = DEFAULT, threads: int = 1) -> None:
        self.archive = Archive(url)
        self.limits = limits
        self.decoder = Decoder(self.archive, limits, threads)
        self.target = Target(target) if target is not None else None
        self.overwrite = overwrite

    def restore(self, rows: list[Row]) -> Result:
        """Write the images and sidecars of these rows of one shard; damaged ones are named, the others come back all the same."""
        result = Result()
        for row in rows:
            if row.codec is None:
                result.failed_at_source += 1
                result.add(self._sidecars(row))
                continue
            try:
                # The pixels of a salvaged row are known only once it is decoded.
                known = row.codec != "msinn" or row.recon_sha256 is not None
                if known and self._is_there(row.restore_name, lambda data, row=row: _equals(row, data)):  # type: ignore[misc]
                    result.images += 1
                    result.skipped += 1
                    result.add(self._sidecars(row))
                    continue
                payload = self._read(row, row.offset, row.length)
                if row.codec == "msinn":
                    picture, problem = self.decoder.picture(row, payload)
                    data = images.to_png(picture)
                    result.problems += [problem] if problem else []
                else:
                    check_payload(row, payload)
                    data = payload
                if not known and self._is_there(row.restore_name, lambda there, data=data: bool(there == data)):  # type: ignore[misc]
                    result.skipped += 1
                else:
                    self._write(row.restore_name, data, row.mtime)
                result.images += 1
            except Exception as error:  # whatever one image does, the others come back
                self._raise_outage(error)
                text = str(error) or type(error).__name__
                result.problems.append(text if row.name in text else f"{row.name}: {text}")
            result.add(self._sidecars(row))
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
                text = str(error) or type(error).__name__
                result.problems.append(text if side.name in text else f"{side.name}: {text}")
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


def _equals(row: Row, data: bytes) -> bool:
    """Whether a restored file holds what a row says: the kept file's bytes, or a PNG of the very pixels that were measured."""
    if row.codec != "msinn":
        return bool(sha256(data) == row.payload_sha256)
    if row.recon_sha256 is None:
        return False
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
