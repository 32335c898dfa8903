"""Is everything there, and is it what was written? Fixity reads every byte; decoding proves every picture."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pyarrow as pa

from pipeline.archive.archive import Archive
from pipeline.archive.commits import Commit
from pipeline.archive.layer import Layer
from pipeline.archive.layout import RUN
from pipeline.archive.removed import read_removed
from pipeline.archive.row import Row
from pipeline.errors import ManifestError, NotFoundError, OutageError, StorageError, UsageError
from pipeline.execute.placement import Placement
from pipeline.formats.records import columns, rows_of
from pipeline.limits import DEFAULT, MAX_PARQUET_BYTES, Limits
from pipeline.read.decoder import checked_range
from pipeline.read.restore import run_over_shards
from pipeline.read.rows import rows_left
from pipeline.read.worker import RestoreWorker, Result
from pipeline.run.report import Reporter

_CHUNK_BYTES = 1 << 22


def fixity(url: str, *, generation: int | None = None, on_shard: Callable[[Commit], None] | None = None) -> Result:
    """Hash every object that the archive names and compare; name the images inside a damaged shard.

    Args:
        url: The archive.
        generation: Look at what this one has; all that any kept generation has if not given.
        on_shard: Called after each shard.

    Raises:
        ManifestError: There is no archive.
        UsageError: There is no such generation.
    """
    archive = _looked_at(url, generation)
    result = Result()
    books = archive.books()
    records = books.commits
    result.problems += [*books.unfinished, *books.problems, *books.lost.values()]
    checks: list[Callable[[], object]] = [*(partial(archive.model_bytes, digest) for digest in archive.run.models)]
    checks += [partial(_check_scan, archive, layer.scan) for layer in archive.layers]
    checks += [partial(_check_run, archive, layer) for layer in archive.layers if layer.generation > 1 or archive.lost_run is None]
    checks += [partial(read_removed, archive.store, layer.prefix + layer.run.removed) for layer in archive.layers if layer.generation > 1]
    checks += [archive.check_pointer] if generation is None else []
    for check in checks:
        try:
            check()
        except OutageError:
            raise
        except (ManifestError, StorageError) as error:
            result.problems += [str(error)] if str(error) not in result.problems else []
    for record in records:
        result.add(_check_shard(archive, record))
        if on_shard is not None:
            on_shard(record)
    return result


def _looked_at(url: str, generation: int | None) -> Archive:
    return Archive(url, generation, everything=generation is None, without_run=True)


def _check_scan(archive: Archive, name: str) -> None:
    try:
        digest = hashlib.sha256(archive.store.read(name, limit=MAX_PARQUET_BYTES)).hexdigest()
    except NotFoundError as error:
        raise ManifestError(f"{archive.store.path(name)} is missing") from error
    if digest[:12] not in name.rpartition("/")[2]:
        raise ManifestError(f"{archive.store.path(name)} is damaged: its SHA-256 is not its name")


def _check_run(archive: Archive, layer: Layer) -> None:
    """What a generation was made with: nothing is decoded by it, but shards are made again and the archive grows by it."""
    place = archive.store.path(f"{layer.prefix}{RUN}")
    if layer.generation == 1:
        sealed = next(iter(archive.seals()), (0, {}))[1]
        said = {"images": layer.run.images, "shards": layer.run.shards, "model_sha256": layer.run.model_sha256}
        if any(sealed.get(name, value) != value for name, value in said.items()):
            raise ManifestError(f"{place} is not that of this archive: its seal says otherwise")
        return
    try:
        found = Layer.read(archive.store, layer.folder).run
    except NotFoundError as error:
        raise ManifestError(f"{place} is missing: compress --grow makes it again from the seal of generation {layer.generation}") from error
    if replace(found, removed=layer.run.removed) != layer.run:
        raise ManifestError(f"{place} is changed since generation {layer.generation} was sealed: compress --grow makes it again")


def _check_shard(archive: Archive, record: Commit) -> Result:
    result = Result()
    seen = record.images - len(archive.removed(record))
    rows: list[Row] | None = None
    try:
        rows = list(rows_of(Row, archive.manifest_part(record, columns(Row, "name", "offset", "length", "payload_sha256", "sidecars", "codec"))))
        if len(rows) != seen:
            result.problems.append(f"{archive.store.path(record.manifest)} has {len(rows)} rows of {seen} images that its commit says")
    except OutageError:
        raise
    except (ManifestError, StorageError) as error:
        result.problems.append(str(error))
    digest = hashlib.sha256()
    size = 0
    try:
        with archive.store.open(record.shard) as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
                size += len(chunk)
    except NotFoundError:
        result.problems.append(f"{archive.store.path(record.shard)} is missing, {seen} images with it")
        return result
    except Exception as error:
        archive.raise_outage(error)
        result.problems.append(f"{archive.store.path(record.shard)} cannot be read: {error}")
        return result
    if digest.hexdigest() == record.shard_sha256:
        result.images += seen
        return result
    what = f"{archive.store.path(record.shard)} is damaged: " + (
        f"{size} bytes instead of {record.shard_bytes}" if size != record.shard_bytes else "its SHA-256 differs"
    )
    hurt = [name for row in rows or [] for name in _hurt(archive, record, row)]
    names = f"; of {seen} images these are hurt: {', '.join(hurt)}" if hurt else "; no image or sidecar in it is hurt"
    result.images += seen - len(hurt)
    result.problems.append(what + (names if rows is not None else ""))
    return result


def _hurt(archive: Archive, record: Commit, row: Row) -> list[str]:
    """Names of the row's payload and sidecars that are not what the manifest says."""
    parts: list[tuple[str, int | None, int | None, str | None]] = [(row.name, row.offset, row.length, row.payload_sha256)] if row.codec else []
    parts += [(side.name, side.offset, side.length, side.sha256) for side in row.sidecars]
    hurt = []
    for name, offset, length, expected in parts:
        try:
            data = archive.store.read_range(record.shard, *checked_range(name, record.shard, offset, length, DEFAULT))
        except (ManifestError, StorageError) as error:
            archive.raise_outage(error)
            data = b""
        if hashlib.sha256(data).hexdigest() != expected:
            hurt.append(str(name))
    return hurt


def decode(
    url: str,
    *,
    generation: int | None = None,
    sample: float = 1.0,
    seed: int = 0,
    placement: Placement | None = None,
    reporter: Reporter | None = None,
    limits: Limits = DEFAULT,
    device: str = "cpu",
) -> Result:
    """Decode every coded image (or a random share) and compare with the hash of the pixels that were measured when it was encoded.

    Args:
        url: The archive.
        generation: Look at what this one has; all that any kept generation has if not given.
        sample: Share of the images, 0 to 1.
        seed: Of the choice.
        placement: Who does the work.
        reporter: Told about progress.
        limits: What is decoded at most.
        device: See `restore.restore`.

    Raises:
        UsageError: `sample` out of range, or no such generation.
        ManifestError: There is no archive.
    """
    if not 0 < sample <= 1:
        raise UsageError(f"--sample is {sample:.6g}; it takes more than 0 and at most 100 %")
    rows, problems = rows_left(_looked_at(url, generation))
    if sample < 1:
        count = min(len(rows), max(1, round(sample * len(rows))))
        rows = rows.take(pa.array(sorted(random.Random(seed).sample(range(len(rows)), count))))
    result = run_over_shards(url, None, rows, placement, worker=RestoreWorker, reporter=reporter, limits=limits, device=device)
    result.problems = problems + result.problems
    return result
