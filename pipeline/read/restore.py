"""Everything back: whole archives, or selections by SQL."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from pipeline.archive.archive import Archive
from pipeline.archive.conversion import Conversion
from pipeline.archive.row import Row
from pipeline.errors import UsageError
from pipeline.execute.base import Job, Trials, WorkersError, patience
from pipeline.execute.isolate import isolate
from pipeline.execute.placement import Placement, device_workers
from pipeline.formats.records import columns, rows_of
from pipeline.limits import DEFAULT, Limits
from pipeline.read.names import as_wanted, map_name, names_table, with_single_names
from pipeline.read.rows import rows_left
from pipeline.read.target import Target
from pipeline.read.worker import RestoreWorker, Result
from pipeline.run.report import Reporter
from pipeline.sources.listing import LITTER
from pipeline.sources.record import printable
from pipeline.store.base import Store, open_store

_UNEXPLAINED_DEATHS = 5
_DRAWN = 32
"""Images that are restored to nowhere to see what such ones take: those of one dataset differ by ten times."""
INLINE_IMAGES = 48
"""Selections up to this size are restored in this process: starting Ray would take longer."""


@dataclass(frozen=True, slots=True)
class Foreseen:
    """What a restore would write.

    Attributes:
        images: How many; `left_out`: those that are not, because they do not come back to the byte.
        same_bytes: Of files that come back to the byte.
        made_bytes: Of files that are made of pictures, by the bytes per pixel of a few of them.
    """

    images: int
    left_out: int
    same_bytes: int
    made_bytes: int


def restore(
    url: str,
    target: str,
    *,
    generation: int | None = None,
    where: str | None = None,
    overwrite: bool = False,
    placement: Placement | None = None,
    reporter: Reporter | None = None,
    limits: Limits = DEFAULT,
    device: str = "cpu",
    conversion: Conversion | None = None,
) -> Result:
    """Write every image (decoded ones as PNG, the others as they were) and every sidecar under `target`.

    Args:
        url: The archive.
        target: Folder or URL. Files that an earlier, interrupted restore left there, whole, are not written again; other files are never touched.
        generation: Which one of the archive; the newest if not given.
        where: SQL condition over the manifest, e.g. `psnr_db < 32`.
        overwrite: Replace what is there.
        placement: Who does the work.
        reporter: Told about progress.
        limits: What is decoded at most.
        device: `cpu`, `cuda`, or `auto`: a GPU where there is one that passes the self-test.
        conversion: What images are written as, if not what their forms give back.

    Raises:
        UsageError: `target` holds files that are not of this restore, the condition is not SQL, or there is no such generation.
        ManifestError: There is no archive.
    """
    archive = Archive(url, generation, without_run=True)
    out = open_store(target)
    if out.lies_in(archive.store):
        raise UsageError(f"{target} lies inside the archive: choose a folder outside it")
    rows, problems = rows_left(archive, where)
    rows, left_out = as_wanted(rows, conversion)
    rows, twice = with_single_names(rows)
    problems += twice
    names_map = map_name(rows)
    # Where nothing is there yet, nothing need be compared.
    compare = not overwrite and _holds_some(out, rows, {names_map})
    out.prepare()
    result = run_over_shards(
        url,
        target,
        rows,
        placement,
        worker=RestoreWorker,
        overwrite=not compare,
        reporter=reporter,
        limits=limits,
        device=device,
        conversion=conversion,
    )
    result.left_out = left_out
    if len(rows):
        Target(target).write(names_map, names_table(rows))
    result.problems = problems + result.problems
    return result


def foresee(
    url: str, *, generation: int | None = None, where: str | None = None, limits: Limits = DEFAULT, conversion: Conversion | None = None
) -> Foreseen:
    """What `restore` would write, from a few images that are restored to nowhere.

    Raises:
        UsageError: The condition is not SQL.
        ManifestError: There is no archive.
    """
    rows, _ = rows_left(Archive(url, generation, without_run=True), where)
    rows, left_out = as_wanted(rows, conversion)
    same = made_pixels = 0
    sizes: list[tuple[int, Row]] = []
    for row in rows_of(Row, rows):
        if row.codec is None:
            continue
        if row.exact == "bytes" and (conversion is None or conversion.format_of(row) is None):
            same += row.source_bytes or row.length or 0
        else:
            made_pixels += row.pixels or 0
            sizes.append((row.pixels or 0, row))
    drawn = [sizes[i][1] for i in np.random.default_rng(0).permutation(len(sizes))[:_DRAWN].tolist()]
    tried = RestoreWorker(url, None, limits=limits, conversion=conversion).restore([replace(row, sidecars=()) for row in drawn])
    share = tried.file_bytes / max(1, sum(row.pixels or 0 for row in drawn))
    return Foreseen(len(rows), left_out, same, round(made_pixels * share))


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
        edges = shard_edges(rows)
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
    worker: type[RestoreWorker],
    overwrite: bool = False,
    reporter: Reporter | None = None,
    limits: Limits = DEFAULT,
    device: str = "cpu",
    conversion: Conversion | None = None,
) -> Result:
    """Restore or check rows, shard by shard, in this process or on Ray; `worker` says how."""
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
    workers, _ = (
        (placement or Placement())
        .on_device(device)
        .open(
            worker,
            url,
            target,
            overwrite,
            limits,
            device,
            conversion,
            jobs=jobs.count,
            small=small,
            at_once=device_workers(device),
            listener=reporter,
        )
    )
    try:
        workers.run(jobs.following, done, reporter.tick if reporter is not None else None)
    finally:
        workers.close()
    return result


def shard_edges(rows: pa.Table) -> list[int]:
    """Where the rows of each shard begin, and the end: rows lie in archive order."""
    if not len(rows):
        return [0]
    shards = rows.column("shard_key").combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)
    return [0, *(np.flatnonzero(np.diff(shards)) + 1).tolist(), len(rows)]
