"""One generation's own books: its run, its commits and its parts of the manifest, at the archive's root or in a folder of its own."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import NamedTuple

import pyarrow as pa

from pipeline.archive import manifest
from pipeline.archive.commits import Commit, Place
from pipeline.archive.layout import COMMIT_NAME, RUN, check, commit_name, sha256
from pipeline.archive.run_record import RunRecord
from pipeline.errors import ManifestError, NotFoundError, OutageError, StorageError
from pipeline.limits import MAX_COMMIT_BYTES, MAX_PARQUET_BYTES, MAX_RUN_BYTES
from pipeline.store.base import Store

_READERS = 8


class Books(NamedTuple):
    """What an archive says of its shards.

    Attributes:
        commits: The sound ones, by generation and shard number.
        lost: A sentence for each shard whose commit is lost or damaged.
        problems: What else is damaged.
        unfinished: A sentence if not all of the source is there yet.
    """

    commits: list[Commit]
    lost: dict[Place, str]
    problems: list[str]
    unfinished: list[str]


class Layer:
    """What one generation added to an archive.

    Args:
        store: The archive's, or that of the generation's folder where a run writes there.
        run: The generation's.
        folder: Of the generation below the store's root; empty for the root itself.
    """

    def __init__(self, store: Store, run: RunRecord, folder: str = "") -> None:
        self.store, self.run, self.folder = store, run, folder
        self.prefix = f"{folder}/" if folder else ""
        self.generation = run.generation

    @classmethod
    def read(cls, store: Store, folder: str = "") -> Layer:
        """That whose `run.json` lies there.

        Raises:
            NotFoundError: None does.
            ManifestError: It is damaged, or of an unknown version.
        """
        name = f"{folder}/{RUN}" if folder else RUN
        return cls(store, RunRecord.from_bytes(store.read(name, limit=MAX_RUN_BYTES), store.path(name)), folder)

    @property
    def scan(self) -> str:
        """Name of the listing from the store's root."""
        return self.prefix + self.run.scan

    def size(self, shard_id: int) -> int:
        """How many images a shard has, by the run's division of its listing; 0 of a shard that is none of it."""
        edges = [*self.run.shard_first, self.run.images]
        return max(0, edges[shard_id + 1] - edges[shard_id]) if 0 <= shard_id < self.run.shards else 0

    def books(self, expected: Mapping[str, str] | None) -> Books:
        """All commits that are sound, and what is wrong with the others.

        Args:
            expected: SHA-256 of every commit by name, as the seal says; None while there is no seal.

        Raises:
            OutageError: The store cannot be read; never an error for damage.
        """
        listed = [name.removeprefix(self.prefix) for name in self.store.list(f"{self.prefix}commits")]
        names = [name for name in listed if COMMIT_NAME.fullmatch(name)]

        def fetch(name: str) -> bytes:
            try:
                return self.store.read(self.prefix + name, limit=MAX_COMMIT_BYTES)
            except OutageError:
                raise
            except StorageError:
                return b""

        with ThreadPoolExecutor(_READERS) as pool:
            blobs = dict(zip(names, pool.map(fetch, names), strict=True))
        expected = {name: sha256(blob) for name, blob in blobs.items()} if expected is None else expected
        commits: list[Commit] = []
        lost: dict[Place, str] = {}
        numbers = {name: int(name[len("commits/") : -len(".json")]) for name in (*names, *expected)}
        for name, number in sorted(numbers.items(), key=lambda item: item[1]):
            place = (self.generation, number)
            if name in expected and sha256(blobs.get(name, b"")) != expected[name]:
                lost[place] = f"{self.store.path(self.prefix + name)} is {'changed' if name in blobs else 'missing'} since the archive was sealed"
                continue
            try:
                record = Commit.from_bytes(blobs[name], self.prefix + name)
                check(None if record.shard_id == number else f"it is of shard {record.shard_id}", self.prefix + name)
                commits.append(self.placed(record))
            except ManifestError as error:
                lost[place] = str(error)
        return Books(commits, lost, [], [])

    def placed(self, record: Commit) -> Commit:
        """A commit of this generation with names from the store's root."""
        return replace(record, shard=self.prefix + record.shard, manifest=self.prefix + record.manifest, generation=self.generation)

    def record(self, shard_id: int) -> Commit | None:
        """The commit of one shard; None if there is none. Raises `ManifestError` if it is damaged."""
        name = self.prefix + commit_name(shard_id)
        try:
            found = Commit.from_bytes(self.store.read(name, limit=MAX_COMMIT_BYTES), name)
        except NotFoundError:
            return None
        check(None if found.shard_id == shard_id else f"it is of shard {found.shard_id}", name)
        return self.placed(found)

    def part(self, record: Commit, columns: list[str] | None = None) -> pa.Table:
        """Rows of one shard, all that it ever had, checked against its commit; shards are named from the store's root.

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
            return with_prefix(manifest.read(data, columns=columns), self.prefix)
        except ManifestError as error:
            raise ManifestError(f"{self.store.path(record.manifest)}: {error}") from error


def with_prefix(rows: pa.Table, prefix: str) -> pa.Table:
    """Rows of a generation's manifest, whose shards are named from the archive's root."""
    if not prefix or "shard_key" not in rows.column_names:
        return rows
    position = rows.column_names.index("shard_key")
    names = [None if name is None else prefix + name for name in rows.column("shard_key").to_pylist()]
    return rows.set_column(position, rows.schema.field(position), pa.array(names, pa.string()))
