"""Everything back: whole archives, or selections by SQL."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

import numpy as np
import pyarrow as pa

from pipeline.archive.archive import Archive
from pipeline.archive.layout import sha256
from pipeline.archive.row import Row
from pipeline.errors import ManifestError, OutageError, UsageError
from pipeline.execute.base import Job, Trials, WorkersError, patience
from pipeline.execute.isolate import isolate
from pipeline.execute.placement import Placement
from pipeline.formats import images
from pipeline.formats.records import columns, rows_of
from pipeline.limits import DEFAULT, Limits
from pipeline.read.decoder import Decoder, check_payload, read_part
from pipeline.read.names import map_name, names_table, with_single_names
from pipeline.read.rows import rows_left
from pipeline.read.target import Target
from pipeline.run.report import Reporter
from pipeline.sources.listing import LITTER
from pipeline.sources.record import printable
from pipeline.store.base import Store, open_store

_UNEXPLAINED_DEATHS = 5
INLINE_IMAGES = 48
"""Selections up to this size are restored in this process: starting Ray would take longer."""


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


def restore(
    url: str,
    target: str,
    *,
    where: str | None = None,
    overwrite: bool = False,
    placement: Placement | None = None,
    reporter: Reporter | None = None,
    limits: Limits = DEFAULT,
) -> Result:
    """Write every image (decoded ones as PNG, the others as they were) and every sidecar under `target`.

    Args:
        url: The archive.
        target: Folder or URL. Files that an earlier, interrupted restore left there, whole, are not written again; other files are never touched.
        where: SQL condition over the manifest, e.g. `psnr_db < 32`.
        overwrite: Replace what is there.
        placement: Who does the work.
        reporter: Told about progress.
        limits: What is decoded at most.

    Raises:
        UsageError: `target` holds files that are not of this restore, or the condition is not SQL.
        ManifestError: There is no archive.
    """
    archive = Archive(url)
    out = open_store(target)
    if out.lies_in(archive.store):
        raise UsageError(f"{target} lies inside the archive: choose a folder outside it")
    rows, problems = rows_left(archive, where)
    rows, twice = with_single_names(rows)
    problems += twice
    names_map = map_name(rows)
    # Where nothing is there yet, nothing need be compared.
    compare = not overwrite and _holds_some(out, rows, {names_map})
    out.prepare()
    result = run_over_shards(url, target, rows, placement, overwrite=not compare, reporter=reporter, limits=limits)
    if len(rows):
        Target(target).write(names_map, names_table(rows))
    result.problems = problems + result.problems
    return result


def _holds_some(out: Store, rows: pa.Table, own: set[str]) -> bool:
    """Whether files are there that an earlier restore wrote. Raises `UsageError` for others: the folder is somebody else's."""
    found = out.list("")
    if not found:
        return False
    for row in rows_of(Row, rows.select(columns(Row, "restore_name", "sidecars"))):
        own |= {row.restore_name, *(side.restore_name for side in row.sidecars)}
    others = [name for name in found if name.lstrip("/") not in own and name.rpartition("/")[2] not in LITTER]
    if others:
        raise UsageError(
            f"{out.url} is not empty and holds other files, {printable(others[0])} for example: choose another folder, or say --overwrite"
        )
    return True


@dataclass(frozen=True)
class _Restore:
    """The work of a job: rows of one shard."""

    rows: Sequence[Row]

    def __call__(self, worker: RestoreWorker) -> Result:
        return worker.restore(list(self.rows))


class _ShardJobs:
    """A job for each shard of a selection; images that kill workers are named in the result and left out.

    Args:
        rows: In archive order.
        result: Where problems go.
    """

    def __init__(self, rows: pa.Table, result: Result) -> None:
        edges = _shard_edges(rows)
        self.count = len(edges) - 1
        self._parts = (list(rows_of(Row, rows.slice(start, end - start))) for start, end in itertools.pairwise(edges))
        self._result = result
        self._unexplained: dict[str, int] = {}

    def following(self) -> Job[RestoreWorker, Result] | None:
        """The next job; None at the end."""
        part = next(self._parts, None)
        return None if part is None else self._job(part)

    def _job(self, part: Sequence[Row]) -> Job[RestoreWorker, Result]:
        shard = part[0].shard_key if part else ""

        def some(rows: Sequence[Row]) -> Job[RestoreWorker, Result]:
            return Job(f"shard {shard}", _Restore(rows), patience_s=patience(len(rows)))

        def split() -> Trials[RestoreWorker, Result]:
            culprit = yield from isolate(part, some)
            if culprit is None:
                self._count_unexplained(shard)
            else:
                self._result.problems.append(
                    f"{culprit.name} kills the worker that decodes it: `msinn get --original` gives its bytes; more memory may be all it takes"
                )
            return self._job([row for row in part if row is not culprit])

        return replace(some(part), split=split)

    def _count_unexplained(self, shard: str) -> None:
        self._unexplained[shard] = self._unexplained.get(shard, 0) + 1
        if self._unexplained[shard] > _UNEXPLAINED_DEATHS:
            raise WorkersError("workers keep dying and no single image explains it: try fewer of them (--workers)")


def run_over_shards(
    url: str,
    target: str | None,
    rows: pa.Table,
    placement: Placement | None = None,
    *,
    overwrite: bool = False,
    reporter: Reporter | None = None,
    limits: Limits = DEFAULT,
) -> Result:
    """Restore or check rows, shard by shard, in this process or on Ray."""
    # Workers run in other folders; a relative path would name another place there.
    url, target = open_store(url).url, open_store(target).url if target is not None else None
    result = Result()
    if reporter is not None:
        reporter.phase("restore" if target is not None else "decode", len(rows))

    def done(part: Result) -> None:
        result.add(part)
        if reporter is not None:
            reporter.advance(images=part.images)

    jobs = _ShardJobs(rows, result)
    small = len(rows) <= INLINE_IMAGES
    workers, _ = (placement or Placement()).open(RestoreWorker, url, target, overwrite, limits, jobs=jobs.count, small=small, listener=reporter)
    try:
        workers.run(jobs.following, done, reporter.tick if reporter is not None else None)
    finally:
        workers.close()
    return result


def _shard_edges(rows: pa.Table) -> list[int]:
    """Where the rows of each shard begin, and the end: rows lie in archive order."""
    if not len(rows):
        return [0]
    shards = rows.column("shard_key").combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)
    return [0, *(np.flatnonzero(np.diff(shards)) + 1).tolist(), len(rows)]
