"""How a run begins: on what it may write, with which model, and whether it goes on with a run before it."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from msinn_core import VERSION
from msinn_core.errors import CheckpointError
from msinn_core.model_file import LoadedModel, load_model, parse_model, shipped_model_bytes
from pipeline.archive import manifest
from pipeline.archive.archive import Archive, MissingArchiveError
from pipeline.archive.layout import ARCHIVE_VERSION, AVIF_VERSION, GENERATIONS, NEAR_VERSION, RUN, SEAL, SEAL_NAME, SEALS, SHA256, sha256
from pipeline.archive.models import publish_models, shipped_bases, stored_model
from pipeline.archive.run_record import RunRecord, needs_model
from pipeline.errors import ManifestError, StorageError, UsageError
from pipeline.formats.parquet import read_bounded
from pipeline.limits import MAX_PARQUET_BYTES, MAX_RUN_BYTES
from pipeline.plan.config import CompressConfig
from pipeline.run.report import Reporter
from pipeline.run.shards import Shards
from pipeline.sources import Scan, SourceRecord
from pipeline.sources.listing import LITTER, absolute, would_take
from pipeline.sources.record import SCAN_SCHEMA, from_table, printable, to_table
from pipeline.store.base import Store, content_name, open_store
from pipeline.text import redacted

_OURS = frozenset({RUN, SEAL, "scan", "analyse", "plan", "shards", "manifest", "commits", "model", "tune", "capabilities", SEALS, GENERATIONS})


def refuse_nested(source: str, store: Store) -> None:
    """An archive inside its own source would be listed as images by the next run.

    Raises:
        UsageError: It would lie there.
    """
    if "://" in source:
        return
    inside = os.path.isdir(source) and store.lies_in(open_store(source))
    if inside or would_take(source, [store.path(name) for name in (RUN, "commits/0.json", "shards/0.tar", "manifest/0.parquet")]):
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


def refuse_grown(store: Store) -> None:
    """An archive that has grown is of more than one listing: which of them a source should be as, only a growth can tell.

    Raises:
        UsageError: It has grown.
    """
    newest = max((int(found[1]) for name in store.list(SEALS) if (found := SEAL_NAME.fullmatch(name))), default=1)
    if newest > 1:
        raise UsageError(f"{store.url} has grown to generation {newest}: say --grow, which adds what has changed, or says that nothing has")


def models_for(which: str, store: Store) -> Sequence[LoadedModel]:
    """The model asked for; an archive begun with a model of this name, SHA-256 or file name keeps those that it was begun with.

    Args:
        which: Name, digest or path.
        store: The archive.

    Raises:
        CheckpointError: There is no such model, or it is damaged.
        ManifestError: The archive has lost one of its own.
        UsageError: It is of the float profile.
    """
    return _integer(_begun_with(which, store) or [load_model(which)])


def stored_models(store: Store, digests: Iterable[str]) -> Sequence[LoadedModel]:
    """An archive's own models. Raises as `models_for` does."""
    return _integer([_stored(store, digest) for digest in digests])


def _integer(models: Sequence[LoadedModel]) -> Sequence[LoadedModel]:
    if any((model := each).profile != "int" for each in models):
        raise UsageError(
            f"model {model.name} is of the float profile, whose archives decode on like machines only: pack it with "
            "`msinn models import CKPT -o OUT --calibrate FOLDER`, and name the result with --model"
        )
    return models


def _begun_with(which: str, store: Store) -> Sequence[LoadedModel]:
    try:
        run = json.loads(store.read(RUN, limit=MAX_RUN_BYTES))
        begun, asked = [str(run["model_sha256"]), *map(str, run.get("further_models", []))], run["config"]["model"]
        none_needed = not needs_model(run["config"])
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError, RecursionError, StorageError):
        return []
    if none_needed:
        return []  # it holds none, and goes on with any
    first = begun[0]
    if not (asked == which or Path(which).name.partition(".")[0] == first or (len(which) >= 8 and first.startswith(which))):
        return []
    return [_stored(store, digest) for digest in begun]


def _stored(store: Store, digest: str) -> LoadedModel:
    """A model of the archive; the same file, by its hash, may have come with this msinn.

    Raises:
        ManifestError: It is lost.
    """
    fault = "is missing"
    try:
        data = stored_model(store, digest) if SHA256.fullmatch(digest) else None
    except CheckpointError as error:
        data, fault = None, f"is damaged ({error})"
    data = data or shipped_model_bytes(digest)
    if data is None:
        raise ManifestError(f"{store.url} was begun with model {digest[:12]}, which {fault}: nothing of it can be decoded or gone on with without it")
    return parse_model(data)


class Beginning:
    """Creates an archive, or goes on with one that was begun.

    Args:
        store: The archive.
        source: As the user named it.
        config: The run's.
        models: What encodes.
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
        models: Sequence[LoadedModel],
        scan: Scan,
        shards: Shards,
        preferences: bytes | None,
        reporter: Reporter,
    ) -> None:
        self._store, self._source, self._config, self._models = store, source, config, models
        self._records, self._shards, self._preferences, self._reporter = scan.records, shards, preferences, reporter
        self._listed_us = scan.listed_us
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
        name = publish_listing(self._store, self._records, self._shards)
        publish_preferences(self._store, self._config, self._preferences)
        first, *further = self._models
        version = NEAR_VERSION if self._config.budget.kind == "max_error" else AVIF_VERSION if self._config.avif else ARCHIVE_VERSION
        record = RunRecord(
            archive_version=version,
            source=redacted(absolute(self._source)),
            scan_digest=self.digest,
            config=self._config.to_json(),
            model_sha256=first.sha256,
            further_models=[model.sha256 for model in further],
            scan=name,
            shards=len(self._shards),
            images=len(self._records),
            shard_first=self._shards.first(),
            listed_us=self._listed_us,
            created_at=now(),
            created_by=created_by(),
            model_name=first.name,
            msinn=VERSION,
        )
        if record.needs_model:
            publish_models(self._store, [model.data for model in self._models], shipped_bases(self._models))
        return record

    def _compare(self, existing: RunRecord) -> None:
        url = self._store.url
        theirs, mine = CompressConfig.from_json(existing.config), self._config
        # The model may be named by path or hash: its digest is what counts. Bytes are the same on every device: without its GPU a run goes on.
        free = {"model", "device", "avif"}
        if changed := [name for name in mine.to_json() if name not in free and getattr(theirs, name) != getattr(mine, name)]:
            what = "; ".join(f"{name} was {getattr(theirs, name)}, now {getattr(mine, name)}" for name in changed)
            raise UsageError(f"{url} was begun with other options ({what}): repeat them to resume, or choose another destination")
        digests = [model.sha256 for model in self._models]
        if existing.needs_model and existing.models != digests:
            begun, asked = (" and ".join(digest[:12] for digest in models) for models in (existing.models, digests))
            raise UsageError(f"{url} was begun with model {begun}, not {asked}: resume with --model {existing.model_sha256[:12]}, which is in it")
        if existing.scan_digest != self.digest:
            self._explain_difference(existing)

    def _explain_difference(self, existing: RunRecord) -> None:
        """The source lists otherwise than when the archive was begun. Where it only lies elsewhere the run goes on with it.

        Raises:
            UsageError: Files were added, removed or changed in size: which.
        """
        sealed = self._store.exists(SEAL)
        advice = "say --grow to add what has changed" if sealed else "bring them back to resume, or choose another destination"
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


def publish_listing(store: Store, records: Iterable[SourceRecord], shards: Shards) -> str:
    """Write a listing; returns the object's name."""
    table = manifest.blocks_bytes(SCAN_SCHEMA, to_table(records, shards.ids))
    name = content_name("scan", "00000", sha256(table), "parquet")
    store.publish_bytes(table, name)
    return name


def publish_preferences(store: Store, config: CompressConfig, preferences: bytes | None) -> None:
    """Write the table whose digest `config` holds, if there is one."""
    if preferences is not None and config.preferences_sha256 is not None:
        suffix = "parquet" if preferences[:4] == b"PAR1" else "csv"
        store.publish_bytes(preferences, content_name("plan", "per-image", config.preferences_sha256, suffix))


def created_by() -> str:
    """This host and process, for people."""
    return f"{socket.gethostname()}:{os.getpid()}"


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
