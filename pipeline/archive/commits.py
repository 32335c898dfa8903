"""The archive's layout and its protocol: attempt, publish, commit, seal.

A shard exists when `commits/<id>.json` does, and that object is created by `put_if_absent`: one attempt wins, whatever crashed or ran twice. All else
is content-named, so a lost attempt leaves orphans, never a wrong archive.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa

from pipeline.archive import manifest
from pipeline.errors import CommitConflictError, CommitUnknownError, ManifestError, PipelineError, StorageError
from pipeline.limits import MAX_COMMIT_BYTES, MAX_MODEL_BYTES, MAX_PARQUET_BYTES, MAX_RUN_BYTES, MAX_SHARDS
from pipeline.store.storage import Store, from_outside, is_transient

ARCHIVE_VERSION = 2
"""Version 1 called kept files `passthrough` and counted those that looked wrong as failed."""

RUN, SEAL = "run.json", "MANIFEST.json"
STILL = "`msinn restore` still gives back every image that is there"
_COMMIT_NAME = re.compile(r"commits/(\d{5}|[1-9]\d{5,8})\.json")
_SHARD_NAME = re.compile(r"shards/\d{5,9}-[0-9a-f]{12}\.tar")
_NAMES = {
    "shard": _SHARD_NAME,
    "manifest": re.compile(r"manifest/\d{5,9}-[0-9a-f]{12}\.parquet"),
    "scan": re.compile(r"scan/\d{5,9}-[0-9a-f]{12}\.parquet"),
}
_SHA256 = re.compile(r"[0-9a-f]{64}")


def is_shard_name(name: Any) -> bool:
    """Whether this names a shard of the archive, and nothing else anywhere."""
    return isinstance(name, str) and _SHARD_NAME.fullmatch(name) is not None


def _object(data: bytes, place: str) -> dict[str, Any]:
    """The JSON object of a book. Raises `ManifestError` naming it."""
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{place} is damaged: {error}") from error
    if not isinstance(values, dict):
        raise ManifestError(f"{place} is damaged: it holds no JSON object")
    return values


def _check(fault: str | None, place: str) -> None:
    if fault is not None:
        raise ManifestError(f"{place} is damaged: {fault}")


def _fault(values: Mapping[str, Any], name: str, kind: type, low: float = 0, high: float = 2**62) -> str | None:
    """What is wrong with a value of a book; None if it is of its type and, as a number, within bounds."""
    value = values.get(name)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 2**63 else math.inf
    if not isinstance(value, kind) or isinstance(value, bool):
        return f"{name} is no {kind.__name__}"
    if isinstance(value, int | float) and not low <= value <= high:
        return f"{name} is {value}"
    if name in _NAMES and isinstance(value, str) and not _NAMES[name].fullmatch(value):
        return f"{name} is no name of an object of this archive"
    return "it is no SHA-256" if name.endswith("_sha256") and not _SHA256.fullmatch(str(value)) else None


def _run_fault(run: dict[str, Any]) -> str | None:
    """What is wrong with `run.json`: everything that is read of it later is checked here."""
    config = run.get("config")
    budget = config.get("budget") if isinstance(config, dict) else None
    if not isinstance(config, dict) or not isinstance(budget, dict):
        return "it has no config"
    faults = [_fault(run, name, str) for name in ("source", "scan", "model_sha256", "model_name", "scan_digest")]
    faults += [_fault(run, "shards", int, 0, MAX_SHARDS), _fault(run, "images", int)]
    faults += [_fault(budget, "kind", str), _fault(budget, "value", float, -1e300, 1e300)]
    firsts = run.get("shard_first")
    if not isinstance(firsts, list) or len(firsts) != run.get("shards") or not all(type(first) is int and 0 <= first < 2**62 for first in firsts):
        faults.append("shard_first is no list of a number for each shard")
    return next((fault for fault in faults if fault is not None), None)


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
        values = _object(data, name)
        if "passthrough" in values:
            values = {**values, "kept": values["passthrough"], "words": 1}
            del values["passthrough"]
        try:
            record = cls(**values)
        except TypeError as error:
            raise ManifestError(f"{name} is damaged: {error}") from error
        found = dataclasses.asdict(record)
        for field in dataclasses.fields(cls):
            # PSNR and predictions may be anything that a float can be, sizes and counts may not.
            low = -1e300 if field.type == "float" else 0
            _check(_fault(found, field.name, {"int": int, "str": str, "float": float}[str(field.type)], low), name)
        return record


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
        return Commit.from_bytes(store.read(name, limit=MAX_COMMIT_BYTES), name)
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
            self.run = _object(self.store.read(RUN, limit=MAX_RUN_BYTES), self.store.path(RUN))
        except FileNotFoundError as error:
            raise MissingArchiveError(f"{url} is not an msinn archive: it has no {RUN}") from error
        version = self.run.get("archive_version")
        if version not in (1, ARCHIVE_VERSION):
            raise ManifestError(f"archive version {str(version)[:40]}; this msinn reads versions 1 and {ARCHIVE_VERSION}: use a newer msinn")
        _check(_run_fault(self.run), self.store.path(RUN))

    def passes(self, error: StorageError) -> bool:
        """Whether this is an outage and no damage: a local disk that does not read today will not read tomorrow."""
        return error.transient and not self.store.local

    def raise_outage(self, error: Exception) -> None:
        """Raise again what says nothing of the archive: an outage, which may pass, or a mistake of ours. What is left is damage.

        Raises:
            StorageError: The store cannot be read at the moment.
        """
        if isinstance(error, FileNotFoundError | ManifestError):
            return
        if isinstance(error, StorageError):
            if self.passes(error):
                raise error
        elif not from_outside(error):
            raise error
        elif not self.store.local and is_transient(error):
            raise StorageError(f"cannot read {self.store.url}: {error}") from error

    @property
    def sealed(self) -> bool:
        """Whether `MANIFEST.json` is there: the run finished."""
        return self.store.exists(SEAL)

    def seal(self) -> dict[str, Any] | None:
        """`MANIFEST.json`, or None while the run is unfinished. Raises `ManifestError` if damaged."""
        try:
            sealed = _object(self.store.read(SEAL, limit=MAX_RUN_BYTES), self.store.path(SEAL))
        except FileNotFoundError:
            return None
        if not isinstance(sealed.get("commits"), dict) or not all(map(_COMMIT_NAME.fullmatch, sealed["commits"])):
            raise ManifestError(f"{self.store.path(SEAL)} is damaged: it names no commits")
        if "passthrough" in sealed:
            sealed["kept"] = sealed.pop("passthrough")
        _check(next(filter(None, (_fault(sealed, name, int) for name in ("counted_bytes", "failed"))), None), self.store.path(SEAL))
        if sealed.get("budget_bytes") is not None:
            _check(_fault(sealed, "budget_bytes", float), self.store.path(SEAL))
        return sealed

    def books(self) -> Books:
        """All commits that are sound, and what is wrong with the others. Raises `StorageError` for what may pass, never for damage."""
        problems: list[str] = []
        lost: dict[int, str] = {}
        names = [name for name in self.store.list("commits") if _COMMIT_NAME.fullmatch(name)]

        def fetch(name: str) -> bytes:
            try:
                return self.store.read(name, limit=MAX_COMMIT_BYTES)
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
        numbers = {name: int(name[len("commits/") : -len(".json")]) for name in (*names, *expected)}
        for name, number in sorted(numbers.items(), key=lambda item: item[1]):
            if name in expected and sha256(blobs.get(name, b"")) != expected[name]:
                lost[number] = f"{self.store.path(name)} is {'changed' if name in blobs else 'missing'} since the archive was sealed"
                continue
            try:
                record = Commit.from_bytes(blobs[name], name)
                _check(None if record.shard_id == number else f"it is of shard {record.shard_id}", name)
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
        except FileNotFoundError:
            return None
        _check(None if found.shard_id == shard_id else f"it is of shard {found.shard_id}", name)
        return found

    def manifest_part(self, record: Commit, columns: list[str] | None = None) -> pa.Table:
        """Rows of one shard, checked against its commit.

        Raises:
            ManifestError: Missing or changed.
        """
        try:
            data = self.store.read(record.manifest, limit=MAX_PARQUET_BYTES)
        except FileNotFoundError as error:
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
        digest = model_sha256 or str(self.run["model_sha256"])
        if not _SHA256.fullmatch(digest):
            raise ManifestError(f"{digest[:80]!r} is no SHA-256 of a model")
        name = f"model/{digest}.safetensors"
        try:
            data = self.store.read(name, limit=MAX_MODEL_BYTES)
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
        existing = _object(store.read(SEAL, limit=MAX_RUN_BYTES), store.path(SEAL))
        if existing["commits"] != content["commits"]:
            raise CommitConflictError(f"{store.path(SEAL)} exists and names other commits: another run wrote into this archive")
        return existing
    return content
