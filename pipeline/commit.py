"""The archive's layout and its protocol: attempt, publish, commit, seal.

A shard exists when `commits/<id>.json` does, and that object is created by `put_if_absent`: one attempt wins, whatever crashed or ran twice. All else
is content-named, so a lost attempt leaves orphans, never a wrong archive.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa

from pipeline import manifest
from pipeline.errors import CommitConflictError, CommitUnknownError, ManifestError, PipelineError, StorageError
from pipeline.storage import Store

ARCHIVE_VERSION = 2
"""Version 1 called kept files `passthrough` and counted those that looked wrong as failed."""

RUN, SEAL = "run.json", "MANIFEST.json"
STILL = "`msinn restore` still gives back every image that is there"
_COMMIT_NAME = re.compile(r"commits/\d+\.json")


@dataclass(frozen=True, kw_only=True)
class Commit:
    """What `commits/<id>.json` says of one shard.

    Attributes:
        shard_id: Number of the shard.
        attempt: Who wrote it.
        shard: Object name, with its SHA-256 and size; likewise `manifest`.
        counted_bytes: Bytes that count towards the budget.
        predicted_bytes: What the plan expected of the coded images; `coded_bytes` is what they took.
        images: Rows; `coded`, `kept` and `failed` by status.
        words: Archive version whose words its file has.
        troubled: Kept files that somebody should look at: broken, over a limit, or what killed a worker.
        pixels: Of images that decode.
        plan_rev: Plan revision in force.
    """

    shard_id: int
    attempt: str
    shard: str
    shard_sha256: str
    shard_bytes: int
    manifest: str
    manifest_sha256: str
    counted_bytes: int
    predicted_bytes: float
    coded_bytes: int
    images: int
    coded: int
    kept: int
    failed: int
    pixels: int
    source_bytes: int
    squared_error: float
    plan_rev: int
    troubled: int = 0
    words: int = ARCHIVE_VERSION

    def to_bytes(self) -> bytes:
        """JSON with sorted keys; a commit that was read gives the bytes that were read."""
        values = {key: value for key, value in dataclasses.asdict(self).items() if key != "words"}
        if self.words == 1:
            values["passthrough"] = values.pop("kept")
            del values["troubled"]
        return json_bytes(values)

    @classmethod
    def from_bytes(cls, data: bytes, name: str) -> Commit:
        """Parse. Raises `ManifestError` naming the object."""
        try:
            values = json.loads(data)
            if "passthrough" in values:
                values = {**values, "kept": values["passthrough"], "words": 1}
                del values["passthrough"]
            return cls(**values)
        except (ValueError, TypeError, AttributeError) as error:
            raise ManifestError(f"{name} is damaged: {error}") from error


def json_bytes(value: dict[str, Any]) -> bytes:
    """Deterministic JSON object, one final newline."""
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()


def sha256(data: bytes) -> str:
    """Hex digest."""
    return hashlib.sha256(data).hexdigest()


def commit_name(shard_id: int) -> str:
    """Object name of a shard's commit."""
    return f"commits/{shard_id:05d}.json"


def commit(store: Store, record: Commit) -> Commit:
    """Make a published shard part of the archive.

    Returns:
        The commit in force: this one, or another attempt's that was first.

    Raises:
        CommitUnknownError: Which of the two could not be established.
    """
    name = commit_name(record.shard_id)
    try:
        if store.put_if_absent(name, record.to_bytes()):
            return record
        return Commit.from_bytes(store.read(name), name)
    except (StorageError, FileNotFoundError) as error:
        raise CommitUnknownError(f"whether {store.path(name)} was created is unknown: {error}") from error


class Books(NamedTuple):
    """What an archive says of its shards.

    Attributes:
        commits: The sound ones, by shard number.
        lost: A sentence for each shard whose commit is lost or damaged.
        problems: What else is damaged.
    """

    commits: list[Commit]
    lost: dict[int, str]
    problems: list[str]


class Archive:
    """Read access to what is committed at a store.

    Args:
        url: The archive's root.

    Raises:
        ManifestError: There is no archive, or of an unknown version.
    """

    def __init__(self, url: str) -> None:
        self.store = Store(url)
        try:
            self.run: dict[str, Any] = json.loads(self.store.read(RUN))
        except FileNotFoundError as error:
            raise MissingArchiveError(f"{url} is not an msinn archive: it has no {RUN}") from error
        except ValueError as error:
            raise ManifestError(f"{self.store.path(RUN)} is damaged: {error}") from error
        version = self.run.get("archive_version") if isinstance(self.run, dict) else None
        if version not in (1, ARCHIVE_VERSION):
            raise ManifestError(f"archive version {version}; this msinn reads versions 1 and {ARCHIVE_VERSION}: use a newer msinn")

    def passes(self, error: StorageError) -> bool:
        """Whether this is an outage and no damage: a local disk that does not read today will not read tomorrow."""
        return error.transient and not self.store.local

    @property
    def sealed(self) -> bool:
        """Whether `MANIFEST.json` is there: the run finished."""
        return self.store.exists(SEAL)

    def seal(self) -> dict[str, Any] | None:
        """`MANIFEST.json`, or None while the run is unfinished. Raises `ManifestError` if damaged."""
        try:
            sealed: dict[str, Any] = json.loads(self.store.read(SEAL))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise ManifestError(f"{self.store.path(SEAL)} is damaged: {error}") from error
        if not isinstance(sealed, dict) or not isinstance(sealed.get("commits"), dict) or not all(map(_COMMIT_NAME.fullmatch, sealed["commits"])):
            raise ManifestError(f"{self.store.path(SEAL)} is damaged: it names no commits")
        if "passthrough" in sealed:
            sealed["kept"] = sealed.pop("passthrough")
        return sealed

    def books(self) -> Books:
        """All commits that are sound, and what is wrong with the others. Raises `StorageError` for what may pass, never for damage."""
        problems: list[str] = []
        lost: dict[int, str] = {}
        names = [name for name in self.store.list("commits") if _COMMIT_NAME.fullmatch(name)]

        def fetch(name: str) -> bytes:
            try:
                return self.store.read(name)
            except FileNotFoundError:
                return b""
            except StorageError as error:
                if self.passes(error):
                    raise
                return b""

        with ThreadPoolExecutor(8) as pool:
            blobs = dict(zip(names, pool.map(fetch, names), strict=True))
        try:
            sealed = self.seal()
            expected: dict[str, str] = sealed["commits"] if sealed is not None else {name: sha256(blob) for name, blob in blobs.items()}
        except (ManifestError, StorageError) as error:
            if isinstance(error, StorageError) and self.passes(error):
                raise
            problems.append(str(error))
            expected = {name: sha256(blob) for name, blob in blobs.items()}
        commits = []
        for name in sorted({*names, *expected}):
            number = int(name[len("commits/") : -len(".json")])
            if name in expected and sha256(blobs.get(name, b"")) != expected[name]:
                lost[number] = f"{self.store.path(name)} is {'changed' if name in blobs else 'missing'} since the archive was sealed"
                continue
            try:
                commits.append(Commit.from_bytes(blobs[name], name))
            except ManifestError as error:
                lost[number] = str(error)
        return Books(commits, lost, problems)

    def commits(self) -> list[Commit]:
        """All commits, by shard number.

        Raises:
            ManifestError: One is damaged, or a sealed archive has lost or changed one.
        """
        books = self.books()
        for problem in (*books.problems, *books.lost.values()):
            raise ManifestError(f"{problem}; {STILL}")
        return books.commits

    def manifest_part(self, record: Commit, columns: list[str] | None = None) -> pa.Table:
        """Rows of one shard, checked against its commit.

        Raises:
            ManifestError: Missing or changed.
        """
        try:
            data = self.store.read(record.manifest)
        except FileNotFoundError as error:
            raise ManifestError(f"{self.store.path(record.manifest)} is missing; commit {record.shard_id} names it") from error
        if sha256(data) != record.manifest_sha256:
            raise ManifestError(f"{self.store.path(record.manifest)} is damaged: its SHA-256 differs from the commit's")
        return manifest.read(data, columns=columns)

    def manifest(self, columns: list[str] | None = None) -> pa.Table:
        """All rows, in the order of shards. Raises `ManifestError`."""
        records = self.commits()
        if not records:
            return manifest.SCHEMA.empty_table().select(columns or manifest.SCHEMA.names)
        try:
            with ThreadPoolExecutor(8) as pool:
                return pa.concat_tables(pool.map(lambda r: self.manifest_part(r, columns), records))
        except ManifestError as error:
            raise ManifestError(f"{error}; {STILL}") from error

    def model_bytes(self, model_sha256: str | None = None) -> bytes:
        """The archived model's file, checked.

        Raises:
            ManifestError: Missing or changed.
        """
        digest = model_sha256 or str(self.run["model_sha256"])
        name = f"model/{digest}.safetensors"
        try:
            data = self.store.read(name)
        except FileNotFoundError as error:
            raise ManifestError(f"{self.store.path(name)} is missing: without it nothing can be decoded") from error
        if sha256(data) != digest:
            raise ManifestError(f"{self.store.path(name)} is damaged: its SHA-256 is not its name")
        return data


class MissingArchiveError(PipelineError):
    """There is no archive at this place."""

    exit_code = 2


def seal(store: Store, run: dict[str, Any], records: list[Commit], extra: dict[str, Any]) -> dict[str, Any]:
    """Write `MANIFEST.json`: totals and the hash of every commit. The archive is complete from here on.

    Raises:
        CommitConflictError: Another, different seal exists.
    """
    content = {
        "archive_version": ARCHIVE_VERSION,
        "model_sha256": run["model_sha256"],
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
        existing: dict[str, Any] = json.loads(store.read(SEAL))
        if existing["commits"] != content["commits"]:
            raise CommitConflictError(f"{store.path(SEAL)} exists and names other commits: another run wrote into this archive")
        return existing
    return content
