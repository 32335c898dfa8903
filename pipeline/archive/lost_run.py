"""What an archive's `run.json` said, as far as its other books say it too: a lost one costs no image."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from typing import Any

import pyarrow as pa

from msinn_core.model_folder import MODEL_NAME
from pipeline.archive.commits import Commit
from pipeline.archive.layout import ARCHIVE_VERSION, COMMIT_NAME, READ_VERSIONS, SEAL, SHA256, json_object, sha256
from pipeline.archive.models import FOLDER
from pipeline.archive.run_record import MAX_FURTHER_MODELS, RunRecord
from pipeline.errors import ManifestError, OutageError, StorageError
from pipeline.formats.parquet import read_bounded
from pipeline.limits import MAX_COMMIT_BYTES, MAX_PARQUET_BYTES, MAX_RUN_BYTES
from pipeline.store.base import Store

_MOST_SHARDS = 1 << 20
"""A number in a name takes memory here: a million shards are 100 TB."""

_UNKNOWN = 1 << 20
"""Images of a shard of which no book says how many it has: more than it can have, for no list of removed ones shall seem to name them all."""

_NUMBERED = re.compile(r"shards/(\d{5,9})-[0-9a-f]{12}\.tar")


def holds_archive(store: Store) -> bool:
    """Whether an archive lies there, with or without its `run.json`: nothing else writes commits, shards or a seal."""
    return bool(store.list("commits") or store.list("shards")) or store.exists(SEAL)


def recovered_run(store: Store) -> RunRecord:
    """The first generation's run, put together for reading alone: what was asked for, and of what source, stays unknown.

    Args:
        store: Of an archive whose `run.json` is lost or damaged.

    Raises:
        OutageError: The store cannot be read at the moment.
    """
    sealed = _sealed(store)
    listing, listed = _listing(store)
    images = listed | dict(_images(store))
    shards = [int(found[1]) for name in store.list("shards") if (found := _NUMBERED.fullmatch(name))]
    named = sealed.get("commits")
    count = max([*(shard + 1 for shard in (*images, *shards) if shard < _MOST_SHARDS), len(named) if isinstance(named, dict) else 0], default=0)
    edges = [0, *itertools.accumulate(images.get(shard, _UNKNOWN) for shard in range(count))]
    models = sorted({found[1] for name in store.list(FOLDER) if (found := MODEL_NAME.fullmatch(name.rpartition("/")[2]))})
    first = sealed.get("model_sha256")
    if not (isinstance(first, str) and SHA256.fullmatch(first)):
        first = models[0] if models else "0" * 64
    version = sealed.get("archive_version")
    return RunRecord(
        archive_version=version if version in READ_VERSIONS and type(version) is int else ARCHIVE_VERSION,
        source="unknown",
        scan=listing,
        scan_digest="",
        config={"budget": {"kind": "q" if models else "lossless", "value": 0.0}},
        model_sha256=first,
        model_name="unknown",
        further_models=[digest for digest in models if digest != first][:MAX_FURTHER_MODELS],
        shards=count,
        images=edges[-1],
        shard_first=edges[:-1],
    )


def _sealed(store: Store) -> dict[str, Any]:
    try:
        return dict(json_object(store.read(SEAL, limit=MAX_RUN_BYTES), store.path(SEAL)))
    except OutageError:
        raise
    except (ManifestError, StorageError):
        return {}  # whoever reads it says what is wrong with it


def _images(store: Store) -> list[tuple[int, int]]:
    """Number of each shard whose commit is sound, and how many images it has."""
    found = []
    for name in filter(COMMIT_NAME.fullmatch, store.list("commits")):
        try:
            record = Commit.from_bytes(store.read(name, limit=MAX_COMMIT_BYTES), name)
        except OutageError:
            raise
        except (ManifestError, StorageError):
            continue  # likewise
        found.append((record.shard_id, record.images))
    return found


def _listing(store: Store) -> tuple[str, dict[int, int]]:
    """The listing, by its hash, and how many images it says each shard has. Runs that were given up may have left others: then none is taken."""
    sound = []
    for name in store.list("scan"):
        try:
            data = store.read(name, limit=MAX_PARQUET_BYTES)
            if sha256(data)[:12] in name.rpartition("/")[2]:
                shards = read_bounded(data, columns=["shard_id"]).column("shard_id").drop_null().to_pylist()
                sound.append((name, dict(Counter(shard for shard in shards if shard >= 0))))
        except OutageError:
            raise
        except (StorageError, pa.ArrowException, OSError):
            continue
    return sound[0] if len(sound) == 1 else ("scan/lost.parquet", {})
