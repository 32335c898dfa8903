"""The seal: written last, it names every commit by its hash. That of an archive is `MANIFEST.json`; each growth has its own in `seals/`.

A growth is visible from the moment its seal is there. `MANIFEST.json` stays the first generation's, for readers that know no other, and points to the
newest, for people.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from pipeline.archive.commits import Commit
from pipeline.archive.layout import (
    GENERATION_FOLDER,
    READ_VERSIONS,
    RUN,
    SEAL,
    SEAL_NAME,
    SEALS,
    commit_name,
    grown_version,
    json_bytes,
    json_object,
    seal_name,
    sha256,
)
from pipeline.archive.run_record import RunRecord
from pipeline.errors import CommitConflictError, ManifestError, NotFoundError
from pipeline.limits import MAX_RUN_BYTES
from pipeline.store.base import Store

COUNTS = ("images", "coded", "kept", "troubled", "failed", "jpeg_exact", "pixels_exact", "pixels", "source_bytes")
"""Totals over images; those over shards are `shard_bytes` and `counted_bytes`."""


def counts(records: Iterable[Commit]) -> dict[str, int]:
    """Totals of `COUNTS` over shards, all images that they ever had."""
    totals = dict.fromkeys(COUNTS, 0)
    for record in records:
        for name in COUNTS:
            totals[name] += getattr(record, name)
    return totals


def seal(store: Store, run: RunRecord, records: list[Commit], extra: dict[str, Any]) -> dict[str, Any]:
    """Write `MANIFEST.json`: totals and the hash of every commit. The archive is complete from here on.

    Raises:
        CommitConflictError: Another, different seal exists.
    """
    content = {
        "archive_version": run.archive_version,
        "model_sha256": run.model_sha256,
        **_totals(counts(records), records),
        "commits": _hashes(records),
        **extra,
    }
    if not store.put_if_absent(SEAL, json_bytes(content)):
        existing = json_object(store.read(SEAL, limit=MAX_RUN_BYTES), store.path(SEAL))
        if existing["commits"] != content["commits"]:
            raise CommitConflictError(f"{store.path(SEAL)} exists and names other commits: another run wrote into this archive")
        return existing
    return content


@dataclass(frozen=True, kw_only=True)
class Growth:
    """What a generation is beside the commits of its own.

    Attributes:
        folder: Where it lies; `folders`: where each later generation lies, this one's too, by its number in words.
        older: Commits of older generations of whose shards it has images.
        kept: Totals of `COUNTS` over the images that it keeps from them, less those of rows of its own that it does not show.
        added: Images whose names are new; `changed`: whose files have changed; `vanished`: whose files are gone; `unread`: whose files may have
            changed and could not be read, so that they stay as they were.
        hidden: Numbers of shards of its own of which it has no image: of nothing but files that could not be read.
    """

    folder: str
    folders: dict[str, str]
    older: list[Commit]
    kept: dict[str, int]
    added: int
    changed: int
    vanished: int
    unread: int = 0
    hidden: frozenset[int] = frozenset()


def seal_growth(root: Store, run: RunRecord, growth: Growth, records: list[Commit], extra: dict[str, Any]) -> dict[str, Any]:
    """Write a generation's seal, and let `MANIFEST.json` point to it. The generation is there from here on.

    Args:
        root: The archive's.
        run: The generation's.
        growth: What it is.
        records: Its own commits.
        extra: What the run says for people.

    Raises:
        CommitConflictError: Another growth was sealed meanwhile.
    """
    own = counts(records)
    seen = [record for record in records if record.shard_id not in growth.hidden]
    content = {
        "archive_version": run.archive_version,
        "model_sha256": run.model_sha256,
        "generation": run.generation,
        "parent_sha256": run.parent_sha256,
        "folder": growth.folder,
        "folders": growth.folders,
        "run": run.to_json(),
        **_totals({name: growth.kept[name] + own[name] for name in COUNTS}, [*growth.older, *seen]),
        "added": growth.added,
        "changed": growth.changed,
        "vanished": growth.vanished,
        **({"unread": growth.unread} if growth.unread else {}),
        "own": _totals(own, records),
        "commits": _hashes(records),
        **extra,
    }
    name = seal_name(run.generation)
    if run.generation == 2:
        # The first generation's seal stays under a name of its own before another takes its place as the newest.
        root.put_if_absent(seal_name(1), root.read(SEAL, limit=MAX_RUN_BYTES))
    if not root.put_if_absent(name, json_bytes(content)):
        existing = json_object(root.read(name, limit=MAX_RUN_BYTES), root.path(name))
        if existing.get("folder") != growth.folder or existing.get("commits") != content["commits"]:
            raise CommitConflictError(
                f"another run grew {root.url} to generation {run.generation} meanwhile, from another listing or budget: the same command again "
                "adds what is still missing"
            )
        content = existing
    point(root)
    return content


def point(root: Store) -> None:
    """Let `MANIFEST.json` name the newest generation, if there is more than one. Harmless to repeat, and whoever comes last is right."""
    while (newest := _newest(root)) > 1:
        first = json_object(root.read(seal_name(1), limit=MAX_RUN_BYTES), root.path(seal_name(1)))
        last = root.read(seal_name(newest), limit=MAX_RUN_BYTES)
        folders = json_object(last, root.path(seal_name(newest))).get("folders")
        newest_is = {"generation": newest, "seal": seal_name(newest), "sha256": sha256(last), "folders": folders}
        about = f"generation 1 of {newest}: what stands here is its seal, and `newest` names that of the newest"
        content = json_bytes({**first, "archive_version": grown_version(first), "about": about, "newest": newest_is})
        if root.exists(SEAL) and root.read(SEAL, limit=MAX_RUN_BYTES) == content:
            return
        root.publish_bytes(content, SEAL)
        # Another driver may have sealed the next one since it was listed, and pointed to it before this.
        if _newest(root) == newest:
            return


def mend_first(root: Store) -> bool:
    """Make the first generation's seal again from `MANIFEST.json`, which says the same and more; only if it is the one that generation 2 names.

    Returns:
        Whether it was lost or damaged, and is there now.

    Raises:
        StorageError: The store failed.
    """
    name = seal_name(1)
    try:
        parent = json_object(root.read(seal_name(2), limit=MAX_RUN_BYTES), root.path(seal_name(2))).get("parent_sha256")
        if root.exists(name) and sha256(root.read(name, limit=MAX_RUN_BYTES)) == parent:
            return False
        content = json_object(root.read(SEAL, limit=MAX_RUN_BYTES), root.path(SEAL))
    except (ManifestError, NotFoundError):
        return False  # whoever reads it says what is lost
    content = {key: value for key, value in content.items() if key not in ("about", "newest")}
    # Which version it was of is all that `MANIFEST.json` no longer says.
    for version in READ_VERSIONS:
        data = json_bytes({**content, "archive_version": version})
        if sha256(data) == parent:
            root.publish_bytes(data, name)
            return True
    return False


def mend_runs(root: Store) -> list[str]:
    """Make `run.json` of later generations again from their seals, which say the same.

    Returns:
        Names of those that were lost or damaged, and are there now.

    Raises:
        StorageError: The store failed.
    """
    mended = []
    for number in range(2, _newest(root) + 1):
        try:
            sealed = json_object(root.read(seal_name(number), limit=MAX_RUN_BYTES), root.path(seal_name(number)))
            folder, run = sealed.get("folder"), RunRecord.from_json(sealed["run"], seal_name(number))
            if not isinstance(folder, str) or not GENERATION_FOLDER.fullmatch(folder):
                continue
        except (ManifestError, NotFoundError, KeyError, AttributeError):
            continue  # whoever reads it says what is lost
        name = f"{folder}/{RUN}"
        # Of two lists of what is removed the seal names the second, and this one the first.
        first = [other for other in root.list(f"{folder}/removed") if other != f"{folder}/{run.removed}"]
        run = replace(run, removed=first[0].removeprefix(f"{folder}/")) if len(first) == 1 else run
        try:
            RunRecord.from_bytes(root.read(name, limit=MAX_RUN_BYTES), name)
        except (ManifestError, NotFoundError):
            root.publish_bytes(run.to_bytes(), name)
            mended.append(name)
    return mended


def _newest(root: Store) -> int:
    return max((int(found[1]) for name in root.list(SEALS) if (found := SEAL_NAME.fullmatch(name))), default=1)


def _totals(over_images: dict[str, int], records: list[Commit]) -> dict[str, int]:
    return {
        "shards": len(records),
        **over_images,
        "shard_bytes": sum(r.shard_bytes for r in records),
        "counted_bytes": sum(r.counted_bytes for r in records),
    }


def _hashes(records: list[Commit]) -> dict[str, str]:
    return {commit_name(r.shard_id): sha256(r.to_bytes()) for r in records}
