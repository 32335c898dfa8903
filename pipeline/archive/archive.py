"""An archive as those see it who read it: its run, its commits, its manifest and its model, each checked."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pyarrow as pa

from msinn_core.model_file import retired_models
from pipeline.archive import manifest
from pipeline.archive.commits import Commit
from pipeline.archive.layout import (
    COMMIT_NAME,
    RUN,
    SEAL,
    SHA256,
    STILL,
    check,
    commit_name,
    fault_of,
    json_object,
    sha256,
)
from pipeline.archive.run_record import RunRecord
from pipeline.errors import ManifestError, NotFoundError, OutageError, PipelineError, StorageError
from pipeline.limits import MAX_COMMIT_BYTES, MAX_MODEL_BYTES, MAX_PARQUET_BYTES, MAX_RUN_BYTES
from pipeline.store.base import open_store
from pipeline.store.errors import from_outside


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
        self.store = open_store(url)
        try:
            data = self.store.read(RUN, limit=MAX_RUN_BYTES)
        except NotFoundError as error:
            raise MissingArchiveError(f"{url} is not an msinn archive: it has no {RUN}") from error
        self.run = RunRecord.from_bytes(data, self.store.path(RUN))

    def raise_outage(self, error: Exception) -> None:
        """Raise again what says nothing of the archive: an outage, which may pass, or a mistake of ours. What is left is damage.

        Raises:
            OutageError: The store cannot be read at the moment.
        """
        if isinstance(error, OutageError):
            raise error
        if isinstance(error, StorageError | ManifestError):
            return
        if not from_outside(error):
            raise error
        failure = self.store.unreadable(f"read {self.store.url}", error)
        if isinstance(failure, OutageError):
            raise failure from error

    @property
    def sealed(self) -> bool:
        """Whether `MANIFEST.json` is there: the run finished."""
        return self.store.exists(SEAL)

    def seal(self) -> dict[str, Any] | None:
        """`MANIFEST.json`, or None while the run is unfinished. Raises `ManifestError` if damaged."""
        try:
            sealed = json_object(self.store.read(SEAL, limit=MAX_RUN_BYTES), self.store.path(SEAL))
        except NotFoundError:
            return None
        if not isinstance(sealed.get("commits"), dict) or not all(map(COMMIT_NAME.fullmatch, sealed["commits"])):
            raise ManifestError(f"{self.store.path(SEAL)} is damaged: it names no commits")
        if "passthrough" in sealed:
            sealed["kept"] = sealed.pop("passthrough")
        check(next(filter(None, (fault_of(sealed, name, int) for name in ("counted_bytes", "failed"))), None), self.store.path(SEAL))
        if sealed.get("budget_bytes") is not None:
            check(fault_of(sealed, "budget_bytes", float), self.store.path(SEAL))
        return sealed

    def books(self) -> Books:
        """All commits that are sound, and what is wrong with the others. Raises `OutageError`, never an error for damage."""
        problems: list[str] = []
        lost: dict[int, str] = {}
        names = [name for name in self.store.list("commits") if COMMIT_NAME.fullmatch(name)]

        def fetch(name: str) -> bytes:
            try:
                return self.store.read(name, limit=MAX_COMMIT_BYTES)
            except OutageError:
                raise
            except StorageError:
                return b""

        with ThreadPoolExecutor(8) as pool:
            blobs = dict(zip(names, pool.map(fetch, names), strict=True))
        try:
            sealed = self.seal()
            expected: dict[str, str] = sealed["commits"] if sealed is not None else {name: sha256(blob) for name, blob in blobs.items()}
        except OutageError:
            raise
        except (ManifestError, StorageError) as error:
            problems.append(str(error))
            expected = {name: sha256(blob) for name, blob in blobs.items()}
        commits = []
        numbers = {name: int(name[len("commits/") : -len(".json")]) for name in (*names, *expected)}
        for name, number in sorted(numbers.items(), key=lambda item: item[1]):
            if name in expected and sha256(blobs.get(name, b"")) != expected[name]:
                lost[number] = f"{self.store.path(name)} is {'changed' if name in blobs else 'missing'} since the archive was sealed"
                continue
            try:
                record = Commit.from_bytes(blobs[name], name)
                check(None if record.shard_id == number else f"it is of shard {record.shard_id}", name)
                commits.append(record)
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

    def record(self, shard_id: int) -> Commit | None:
        """The commit of one shard; None if there is none. Raises `ManifestError` if it is damaged."""
        name = commit_name(shard_id)
        try:
            found = Commit.from_bytes(self.store.read(name, limit=MAX_COMMIT_BYTES), name)
        except NotFoundError:
            return None
        check(None if found.shard_id == shard_id else f"it is of shard {found.shard_id}", name)
        return found

    def manifest_part(self, record: Commit, columns: list[str] | None = None) -> pa.Table:
        """Rows of one shard, checked against its commit.

        Raises:
            ManifestError: Missing or changed.
        """
        try:
            data = self.store.read(record.manifest, limit=MAX_PARQUET_BYTES)
        except NotFoundError as error:
            raise ManifestError(f"{self.store.path(record.manifest)} is missing; commit {record.shard_id} names it") from error
        if sha256(data) != record.manifest_sha256:
            raise ManifestError(f"{self.store.path(record.manifest)} is damaged: its SHA-256 differs from the commit's")
        try:
            return manifest.read(data, columns=columns)
        except ManifestError as error:
            raise ManifestError(f"{self.store.path(record.manifest)}: {error}") from error

    def manifest(self, columns: list[str] | None = None) -> pa.Table:
        """All rows, in the order of shards. Raises `ManifestError`."""
        records = self.commits()
        if not records:
            return manifest.READ_SCHEMA.empty_table().select(columns or manifest.READ_SCHEMA.names)
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
        digest = model_sha256 or self.run.model_sha256
        if not SHA256.fullmatch(digest):
            raise ManifestError(f"{digest[:80]!r} is no SHA-256 of a model")
        name = f"model/{digest}.safetensors"
        try:
            data = self.store.read(name, limit=MAX_MODEL_BYTES)
        except NotFoundError as error:
            where = f"; msinn at git commit {commit} has it, in msinn_core/weights" if (commit := retired_models().get(digest)) else ""
            raise ManifestError(f"{self.store.path(name)} is missing: without it nothing can be decoded{where}") from error
        if sha256(data) != digest:
            raise ManifestError(f"{self.store.path(name)} is damaged: its SHA-256 is not its name")
        return data


class MissingArchiveError(PipelineError):
    """There is no archive at this place."""

    exit_code = 2
