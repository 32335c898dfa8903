"""A shard's writing: items into a tar on the local disk with their rows, then both into the store, then the commit."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.archive import manifest
from pipeline.archive.commits import Commit, commit
from pipeline.archive.layout import sha256
from pipeline.archive.members import payload_suffix
from pipeline.archive.row import Row, Sidecar, sidecar_of
from pipeline.archive.shard import Member, ShardWriter, stored_bytes, verify_members
from pipeline.encode.describe import Describer
from pipeline.encode.item import Item
from pipeline.encode.tasks import ShardTask
from pipeline.formats.outcome import Reason
from pipeline.forms.avif import AVIF
from pipeline.forms.msinn import MSINN
from pipeline.store.base import Store, content_name


@dataclass(frozen=True, slots=True)
class LocalShard:
    """A finished shard on the local disk.

    Attributes:
        path: Its tar, with its SHA-256 and size.
        rows: Of the manifest, without the shard's name.
        members: Of the tar.
    """

    path: Path
    sha256: str
    size_bytes: int
    rows: list[Row]
    members: list[Member]

    def verify(self) -> None:
        """Raises `ManifestError` if the local disk does not give back what was written."""
        verify_members(self.path, self.members)


@contextlib.contextmanager
def local_shard(items: Iterable[Item], describer: Describer) -> Iterator[LocalShard]:
    """Write items, in their order, to a tar that is there while the context lasts. Equal payloads give equal bytes.

    Raises:
        StorageError: A member does not fit a tar, or what made the items failed.
    """
    with tempfile.TemporaryDirectory(prefix="msinn-") as folder:
        path = Path(folder) / "shard.tar"
        writer = ShardWriter(path)
        rows: list[Row] = []
        members: list[Member] = []
        try:
            for item in items:
                member, sidecars = _add(item, writer, members)
                rows.append(describer.row(item, member, sidecars))
                item.loaded = replace(item.loaded, picture=None)  # the pixels are no longer needed
                item.source = item.stored = None
        except BaseException:
            writer.abandon()
            raise
        digest, size_bytes = writer.finish()
        yield LocalShard(path, digest, size_bytes, rows, members)


def _add(item: Item, writer: ShardWriter, members: list[Member]) -> tuple[Member | None, tuple[Sidecar, ...]]:
    """Write payload and sidecars of one item, and append their members; a sidecar whose name is taken gets a number."""
    record, member = item.task.record, None
    if item.payload is not None:
        member = writer.add(f"{record.key}.{payload_suffix(item.codec or '', record.name)}", item.payload)
        members.append(member)
    sidecars: list[Sidecar] = []
    for number, file in enumerate(item.sidecars):
        taken = {member.name if member else None, *(side.member for side in sidecars)}
        side = writer.add(f"{record.key}.{number}.side" if file.member in taken else file.member, file.data)
        members.append(side)
        sidecars.append(sidecar_of(side, name=file.name, restore_name=file.restore_name, mtime=file.mtime))
    return member, tuple(sidecars)


def publish(store: Store, task: ShardTask, shard: LocalShard, *, count_sidecars: bool) -> Commit:
    """Put a shard and its part of the manifest into the store, and commit them.

    Args:
        store: The archive.
        task: The shard's.
        shard: Verified.
        count_sidecars: Whether sidecars count towards the budget.

    Returns:
        The commit in force (another attempt's, if that was first).

    Raises:
        StorageError: The store failed.
    """
    stem = f"{task.shard_id:05d}"
    name = content_name("shards", stem, shard.sha256, "tar")
    data = manifest.to_bytes(replace(row, shard_key=name) for row in shard.rows)
    record = _commit_of(task, shard, name, data, content_name("manifest", stem, sha256(data), "parquet"), count_sidecars=count_sidecars)
    store.publish(shard.path, record.shard)
    store.publish_bytes(data, record.manifest)
    return commit(store, record)


def _commit_of(task: ShardTask, shard: LocalShard, name: str, data: bytes, manifest_name: str, *, count_sidecars: bool) -> Commit:
    """What is to be committed of a shard of this name, whose part of the manifest is `data`: its rows, summed up."""
    rows = shard.rows
    coded = [row for row in rows if row.codec in (MSINN.codec, AVIF.codec)]
    sidecar_bytes = sum(stored_bytes(side.length) for row in rows for side in row.sidecars)
    return Commit(
        shard_id=task.shard_id,
        attempt=task.attempt,
        shard=name,
        shard_sha256=shard.sha256,
        shard_bytes=shard.size_bytes,
        manifest=manifest_name,
        manifest_sha256=sha256(data),
        counted_bytes=shard.size_bytes - (0 if count_sidecars else sidecar_bytes),
        predicted_bytes=float(sum(row.predicted_bytes or 0 for row in coded)),
        coded_bytes=sum(row.stored_bytes for row in coded),
        images=len(rows),
        coded=sum(row.status == "coded" for row in rows),
        kept=sum(row.status == "kept" for row in rows),
        failed=sum(row.status == "failed" for row in rows),
        jpeg_exact=sum(row.form == "jpeg-exact" for row in rows),
        pixels_exact=sum(row.form == "pixels-exact" for row in rows),
        pixels=sum(row.pixels or 0 for row in rows),
        troubled=sum(row.status != "failed" and Reason.named(row.error_code).undecodable for row in rows),
        source_bytes=sum(row.source_bytes or 0 for row in rows),
        squared_error=float(sum((row.mse or 0) * (row.pixels or 0) for row in rows)),
        plan_rev=task.plan_rev,
    )
