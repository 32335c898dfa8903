"""The seal: `MANIFEST.json`, written last, which names every commit by its hash."""

from __future__ import annotations

from typing import Any

from pipeline.archive.commits import Commit
from pipeline.archive.layout import ARCHIVE_VERSION, SEAL, commit_name, json_bytes, json_object, sha256
from pipeline.archive.run_record import RunRecord
from pipeline.errors import CommitConflictError
from pipeline.limits import MAX_RUN_BYTES
from pipeline.store.base import Store


def seal(store: Store, run: RunRecord, records: list[Commit], extra: dict[str, Any]) -> dict[str, Any]:
    """Write `MANIFEST.json`: totals and the hash of every commit. The archive is complete from here on.

    Raises:
        CommitConflictError: Another, different seal exists.
    """
    content = {
        "archive_version": ARCHIVE_VERSION,
        "model_sha256": run.model_sha256,
        "shards": len(records),
        "images": sum(r.images for r in records),
        "coded": sum(r.coded for r in records),
        "kept": sum(r.kept for r in records),
        "troubled": sum(r.troubled for r in records),
        "failed": sum(r.failed for r in records),
        "pixels": sum(r.pixels for r in records),
        "source_bytes": sum(r.source_bytes for r in records),
        "shard_bytes": sum(r.shard_bytes for r in records),
        "counted_bytes": sum(r.counted_bytes for r in records),
        "commits": {commit_name(r.shard_id): sha256(r.to_bytes()) for r in records},
        **extra,
    }
    if not store.put_if_absent(SEAL, json_bytes(content)):
        existing = json_object(store.read(SEAL, limit=MAX_RUN_BYTES), store.path(SEAL))
        if existing["commits"] != content["commits"]:
            raise CommitConflictError(f"{store.path(SEAL)} exists and names other commits: another run wrote into this archive")
        return existing
    return content
