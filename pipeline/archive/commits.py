"""The protocol of a shard: attempt, publish, commit.

A shard exists when `commits/<id>.json` does, and that object is created by `put_if_absent`: one attempt wins, whatever crashed or ran twice. All else
is content-named, so a lost attempt leaves orphans, never a wrong archive.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from pipeline.archive.layout import ARCHIVE_VERSION, check, commit_name, fault_of, json_bytes, json_object
from pipeline.errors import CommitUnknownError, ManifestError, StorageError
from pipeline.limits import MAX_COMMIT_BYTES
from pipeline.store.base import Store

Place = tuple[int, int]
"""Of a shard in an archive: its generation, and its number there."""


@dataclass(frozen=True, kw_only=True)
class Commit:
    """What `commits/<id>.json` says of one shard.

    Attributes:
        shard_id: Number of the shard.
        attempt: Who wrote it.
        shard: Object name, with its SHA-256 and size; likewise `manifest`.
        counted_bytes: Bytes that count towards the budget.
        predicted_bytes: What the plan expected of the coded images; `coded_bytes` is what they took.
        images: Rows; `coded`, `kept` and `failed` by status; `jpeg_exact` and `pixels_exact` those in these forms, not said where there are none.
        words: Archive version whose words its file has.
        generation: In which it lies. Not in its file: where that lies says it. Of a later one than the first, `shard` and `manifest` of a commit that
            an `Archive` gives are names from the archive's root.
        troubled: Files that lie exactly and that somebody should look at: broken, over a limit, or what killed a worker.
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
    jpeg_exact: int = 0
    pixels_exact: int = 0
    words: int = ARCHIVE_VERSION
    generation: int = 1

    @property
    def place(self) -> Place:
        """Generation and number: no other shard of the archive has both."""
        return self.generation, self.shard_id

    def to_bytes(self) -> bytes:
        """JSON with sorted keys; a commit that was read gives the bytes that were read."""
        values = {key: value for key, value in dataclasses.asdict(self).items() if key not in ("words", "generation")}
        if not (self.jpeg_exact or self.pixels_exact):
            del values["jpeg_exact"], values["pixels_exact"]
        if self.words == 1:
            values["passthrough"] = values.pop("kept")
            del values["troubled"]
        return json_bytes(values)

    @classmethod
    def from_bytes(cls, data: bytes, name: str) -> Commit:
        """Parse. Raises `ManifestError` naming the object."""
        values = json_object(data, name)
        if "passthrough" in values:
            values = {**values, "kept": values["passthrough"], "words": 1}
            del values["passthrough"]
        values.pop("generation", None)  # where it lies says it
        try:
            record = cls(**values)
        except TypeError as error:
            raise ManifestError(f"{name} is damaged: {error}") from error
        found = dataclasses.asdict(record)
        for field in dataclasses.fields(cls):
            # PSNR and predictions may be anything that a float can be, sizes and counts may not.
            low = -1e300 if field.type == "float" else 0
            check(fault_of(found, field.name, {"int": int, "str": str, "float": float}[str(field.type)], low), name)
        return record


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
    except StorageError as error:
        raise CommitUnknownError(f"whether {store.path(name)} was created is unknown: {error}") from error
