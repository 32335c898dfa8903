"""How a run begins: on what it may write, with which model, and whether it goes on with a run before it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from msinn_core import VERSION
from msinn_core.errors import CheckpointError
from msinn_core.model_file import LoadedModel, load_model, parse_model
from pipeline.archive import manifest
from pipeline.archive.archive import Archive, MissingArchiveError
from pipeline.archive.layout import RUN, SEAL, sha256
from pipeline.archive.run_record import RunRecord
from pipeline.errors import StorageError, UsageError
from pipeline.formats.parquet import read_bounded
from pipeline.limits import MAX_MODEL_BYTES, MAX_PARQUET_BYTES, MAX_RUN_BYTES
from pipeline.plan.config import CompressConfig
from pipeline.run.report import Reporter
from pipeline.run.shards import Shards
from pipeline.sources import Scan, SourceRecord
from pipeline.sources.listing import LITTER
from pipeline.sources.record import SCAN_SCHEMA, from_table, printable, to_table
from pipeline.store.base import Store, content_name, open_store
from pipeline.text import redacted

_OURS = frozenset({RUN, SEAL, "scan", "analyse", "plan", "shards", "manifest", "commits", "model", "tune", "capabilities"})


def refuse_nested(source: str, store: Store) -> None:
    """An archive inside its own source would be listed as images by the next run.

    Raises:
        UsageError: It would lie there.
    """
    if "://" not in source and os.path.isdir(source) and store.lies_in(open_store(source)):
        raise UsageError(f"{store.url} lies inside {source}: choose a destination outside the source")


def refuse_foreign(store: Store) -> None:
    """A folder full of other files is no place for an archive.

    Raises:
        UsageError: The destination holds something else.
    """
    foreign: list[str] = sorted(set(store.top()) - _OURS - LITTER - {"lost+found"})
    if foreign and not store.exists(RUN):
        raise UsageError(
            f"{store.url} holds other things ({', '.join(map(printable, foreign[:3]))}) and no archive: choose an empty or new destination"
        )


def model_for(which: str, store: Store, own: LoadedModel | None = None) -> LoadedModel:
    """The model asked for; an archive begun with a model of this name keeps the one it was begun with.

    Args:
        which: Name, digest or path.
        store: The archive.
        own: A model of the dataset's own, which a new archive takes in place of it.

    Raises:
        CheckpointError: There is no such model, or it is damaged.
        UsageError: It is of the float profile.
    """
    model = _begun_with(which, store) or own or load_model(which)
    if model.profile != "int":
        raise UsageError(
            f"model {model.name} is of the float profile, whose archives decode on like machines only: pack it with "
            "`msinn models import CKPT -o OUT --calibrate FOLDER`, and name the result with --model"
        )
    return model


def _begun_with(which: str, store: Store) -> LoadedModel | None:
    try:
        run = json.loads(store.read(RUN, limit=MAX_RUN_BYTES))
        begun, asked = str(run["model_sha256"]), run["config"]["model"]
    except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError, StorageError):
        return None
    if asked == which and re.fullmatch("[0-9a-f]{64}", begun):
        try:
            data = store.read(f"model/{begun}.safetensors", limit=MAX_MODEL_BYTES)
            if hashlib.sha256(data).hexdigest() == begun:
                return parse_model(data)
        except (FileNotFoundError, CheckpointError):
            pass
    return None


class Beginning:
    """Creates an archive, or goes on with one that was begun.

    Args:
        store: The archive.
        source: As the user named it.
        config: The run's.
        model: What encodes.
        scan: The listing.
        shards: It, divided.
        preferences: Content of the table whose digest `config` holds, or None.
        reporter: Told where the source has moved.
    """

    def __init__(
        self,
        store: Store,
        *,
        source: str,
        config: CompressConfig,
        model: LoadedModel,
        scan: Scan,
        shards: Shards,
        preferences: bytes | None,
        reporter: Reporter,
    ) -> None:
        self._store, self._source, self._config, self._model = store, source, config, model
        self._records, self._shards, self._preferences, self._reporter = scan.records, shards, preferences, reporter
        self.digest = scan.digest
        """Of the listing; that which the archive was begun with, where the source has only moved since."""

    def begun(self) -> RunRecord | None:
        """The run that began the archive, after a check that this one goes on with it; None if there is none yet.

        Raises:
            UsageError: The archive was made of something else.
        """
        try:
            existing = Archive(self._store.url).run
        except MissingArchiveError:
            return None
        self._compare(existing)
        return existing

    def create(self) -> RunRecord:
        """Create the archive; or go on with that of another driver who was first."""
        while (existing := self.begun()) is None:
            if not self._store.check_put_if_absent():
                self._reporter.warn(f"{self._store.url} cannot create objects atomically: make sure that only one driver writes there")
            created = self._published()
            if self._store.put_if_absent(RUN, created.to_bytes()):
                return created
        return existing

    def _published(self) -> RunRecord:
        """Write what the run rests on; returns the content of `run.json`."""
        table = manifest.blocks_bytes(SCAN_SCHEMA, to_table(self._records, self._shards.ids))
        name = content_name("scan", "00000", sha256(table), "parquet")
        self._store.publish_bytes(table, name)
        if self._preferences is not None and self._config.preferences_sha256 is not None:
            suffix = "parquet" if self._preferences[:4] == b"PAR1" else "csv"
            self._store.publish_bytes(self._preferences, content_name("plan", "per-image", self._config.preferences_sha256, suffix))
        self._store.publish_bytes(self._model.data, f"model/{self._model.sha256}.safetensors")
        return RunRecord(
            source=redacted(self._source),
            scan_digest=self.digest,
            config=self._config.to_json(),
            model_sha256=self._model.sha256,
            scan=name,
            shards=len(self._shards),
            images=len(self._records),
            shard_first=self._shards.first(),
            created_at=now(),
            created_by=f"{socket.gethostname()}:{os.getpid()}",
            model_name=self._model.name,
            msinn=VERSION,
        )

    def _compare(self, existing: RunRecord) -> None:
        url = self._store.url
        theirs, mine = CompressConfig.from_json(existing.config), self._config
        # The model may be named by path or hash: its digest is what counts.
        if replace(theirs, model="") != replace(mine, model=""):
            changed = [name for name in mine.to_json() if name != "model" and getattr(theirs, name) != getattr(mine, name)]
            what = "; ".join(f"{name} was {getattr(theirs, name)}, now {getattr(mine, name)}" for name in changed)
            raise UsageError(f"{url} was begun with other options ({what}): repeat them to resume, or choose another destination")
        if existing.model_sha256 != self._model.sha256:
            raise UsageError(
                f"{url} was begun with model {existing.model_sha256[:12]}, not {self._model.sha256[:12]}: "
                f"resume with --model {self._store.path('model/' + existing.model_sha256 + '.safetensors')}"
            )
        if existing.scan_digest != self.digest:
            self._explain_difference(existing)

    def _explain_difference(self, existing: RunRecord) -> None:
        """The source lists otherwise than when the archive was begun. Where it only lies elsewhere the run goes on with it.

        Raises:
            UsageError: Files were added, removed or changed in size: which.
        """
        advice = "bring them back to resume, or choose another destination"
        try:
            table = read_bounded(self._store.read(existing.scan, limit=MAX_PARQUET_BYTES))
            listed = [record for record, _ in from_table(table)]
        except (pa.ArrowException, FileNotFoundError, KeyError, TypeError, ValueError) as error:
            raise UsageError(
                f"{self._source} lists {len(self._records)} images that are not the {existing.images} which {self._store.url} was begun with "
                f"(its listing is lost: {error}); {advice}"
            ) from error
        before, now = _sizes(listed), _sizes(self._records)
        if before == now:
            self._reporter.note(
                f"the source has moved from {existing.source} to {self._source}: the same names and sizes, so the run goes on with it"
            )
            self.digest = existing.scan_digest
            return
        place = f"; it was listed at {existing.source} then" if existing.source != self._source else ""
        raise UsageError(
            f"{self._source} is not as it was when {self._store.url} was begun with {existing.images} images: "
            f"{_difference(dict(before), dict(now)) or 'the same names are in another order, or some are there more often'}{place}: {advice}"
        )


def now() -> str:
    """The time, for records that people read: ISO 8601, UTC, whole seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _sizes(records: Iterable[SourceRecord]) -> list[tuple[str, Any]]:
    """What tells one listing from another: names, kinds and sizes, sidecars too."""
    return [(r.name, (r.part.kind, r.part.length, [(printable(side), part.length) for side, part in r.sidecars])) for r in records]


def _difference(theirs: dict[str, Any], mine: dict[str, Any]) -> str:
    added, gone = sorted(mine.keys() - theirs.keys()), sorted(theirs.keys() - mine.keys())
    changed = [name for name, size in theirs.items() if name in mine and mine[name] != size]
    return "; ".join(
        f"{len(names)} {what}, for example {printable(names[0])}"
        for what, names in (("were added", added), ("are gone", gone), ("changed in size or in their sidecars", changed))
        if names
    )
