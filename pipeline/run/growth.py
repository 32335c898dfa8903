"""How a sealed archive grows: what of its source is as it was, what is new, what is gone, and at which price the new is stored.

```
listings of all generations --+
                              +-- compare --> same: stay where they are
listing of the source now ----+              doubtful: read, and compared with the manifest's hashes
                                             new and changed: a run of their own in generations/<number>-<digest>, sealed in seals/
                                             gone and changed: a list of keys
```
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from msinn_core import VERSION
from msinn_core.model_file import LoadedModel, load_model
from pipeline.archive.archive import Archive, MissingArchiveError
from pipeline.archive.commits import Commit
from pipeline.archive.layer import Layer
from pipeline.archive.layout import GENERATIONS, GROWN_VERSION, RUN, SEAL, commit_name, generation_folder, seal_name, sha256
from pipeline.archive.removed import UNREAD, Removed, removed_object
from pipeline.archive.row import Row
from pipeline.archive.run_record import RunRecord, needs_model
from pipeline.archive.seal import Growth, mend_first, mend_runs
from pipeline.errors import ManifestError, NotFoundError, UsageError
from pipeline.formats.records import rows_of
from pipeline.limits import MAX_PARQUET_BYTES, MAX_RUN_BYTES
from pipeline.plan.config import SLOPE, VERIFY_SAMPLE, Budget, CompressConfig
from pipeline.plan.findings import Older
from pipeline.plan.preferences import Preferences
from pipeline.run.beginning import created_by, now, publish_listing, publish_preferences, stored_models
from pipeline.run.changes import COUNTED, Changes, read_listing
from pipeline.run.context import Context
from pipeline.run.price import price_of
from pipeline.run.report import Reporter
from pipeline.run.shards import Shards
from pipeline.sources import Scan, Selection, SourceRecord, scan
from pipeline.sources.listing import absolute
from pipeline.sources.record import Listing, walk_table, with_restore_names
from pipeline.sources.scan import ListingDigest
from pipeline.store.base import Store, open_store
from pipeline.text import redacted

_MAX_KEY = 999_999_999


class Growing:
    """A growth before it begins: everything that a run of the new images needs to know.

    Args:
        root: The archive's store.
        source: As the user named it now.
        asked: Options of the command, those that were not given at their defaults; `None` for a budget that was not given.
        moved: The source lies elsewhere than when the archive was made, and the user says that it is the same.
        reporter: Told what is done.

    Attributes:
        config: Of the new generation's run.
        models: The archive's.
        scan: Listing of the new and changed images alone.
        store: Of the generation's folder; `analyses`: where analyses are kept, whatever budget they are for.
        older: What the budget counts beside the new images.
        preferences: Content of the table that `config` names, or None.

    Raises:
        UsageError: There is nothing to grow, it is unfinished, or the command contradicts it.
        ManifestError: The archive's books are damaged.
    """

    def __init__(
        self, root: Store, source: str, asked: CompressConfig, budget: Budget | None, *, moved: bool, preferences: bytes | None, reporter: Reporter
    ) -> None:
        self.root, self._reporter, self._moved = root, reporter, moved
        self.archive = _to_grow(root, reporter)
        newest = self.archive.layers[-1].run
        stored = CompressConfig.from_json(newest.config)
        _same_options(stored, asked, root.url)
        _same_source(self.archive, source, moved=moved)
        _same_model(asked.model, stored.model, self.archive.run.models, root.url)
        # Where all lies exactly there is none, and any will do.
        self.models: Sequence[LoadedModel] = stored_models(root, self.archive.run.models) or [load_model(asked.model)]
        # What is damaged is told before anything is listed or read.
        self._commits = self.archive.commits(unseen=True)
        selection = Selection(include=stored.include, exclude=stored.exclude, all_files=stored.all_files, follow_links=stored.follow_links)
        self._listed = scan(source, image_column=stored.image_column, selection=selection)
        self._changes = changes = Changes(self.archive, [record for record in self._commits if self.archive.sees(record)], self._listed, reporter)
        self.found = changes.found
        self._needed, self._kept = changes.kept()
        self.older = Older(
            counted_bytes=sum(record.counted_bytes for record in self._needed), pixels=self._kept["pixels"], source_bytes=self._kept["source_bytes"]
        )
        self.first_key = max(layer.run.first_key + layer.run.images for layer in self.archive.layers)
        self.scan = self._renamed(changes)
        self.config = self._configured(stored, asked, budget)
        self.preferences = preferences or self._stored_preferences()
        self.parent_sha256 = _parent(root, self.archive)
        self.removed = changes.removed
        self.removed_name, self.removed_bytes = removed_object(self.removed)
        self.folder = generation_folder(self.generation, self._digest())
        self.store, self.analyses = (open_store(f"{root.url.rstrip('/')}/{folder}") for folder in (self.folder, GENERATIONS))
        if not self.found.nothing:
            self._tell_of_others()

    @property
    def generation(self) -> int:
        """Number of the generation that is made."""
        return self.archive.newest + 1

    def settled(self, run: RunRecord, records: Sequence[Commit]) -> tuple[RunRecord, Growth]:
        """What the new generation is, for its seal, and its run as that says it.

        A file that had changed and could not be read when it was to be stored does not replace what the archive has of it: the older generation's
        image stays, and the row that says what failed is not shown. The list of what is removed is another one then, in the seal alone.

        Args:
            run: As the generation was begun.
            records: Its commits.
        """
        own, failed = Layer.read(self.store), []
        for record in records:
            if record.failed:
                rows = [row for row in rows_of(Row, own.part(record, COUNTED)) if row.status == "failed"]
                failed += [(int(row.key) - self.first_key, record, row) for row in rows]
        staying = self._changes.staying((number, row) for number, _, row in failed)
        if not staying:
            return run, self._growth()
        shard = {row.key: record.shard_id for _, record, row in failed}
        for old, _ in staying:
            self._reporter.warn(
                f"{old.name} has changed and could not be read: it stays as generation {old.generation} has it; grow again to have it anew"
            )
        stays = {old.key for old, _ in staying}
        unread = [Removed(key=row.key, name=row.name, generation=self.generation, shard_id=shard[row.key], why=UNREAD) for _, row in staying]
        name, data = removed_object([*(each for each in self.removed if each.key not in stays), *unread])
        self.store.publish_bytes(data, name)
        self.found = replace(
            self.found,
            changed=self.found.changed - len(staying),
            unchanged=self.found.unchanged + len(staying),
            unread=self.found.unread + len(staying),
        )
        self._needed, self._kept = self._changes.kept(staying)
        hidden = Counter(each.shard_id for each in unread)
        return replace(run, removed=name), self._growth(frozenset(record.shard_id for record in records if hidden[record.shard_id] == record.images))

    def _growth(self, hidden: frozenset[int] = frozenset()) -> Growth:
        folders = {str(layer.generation): layer.folder for layer in self.archive.layers[1:]} | {str(self.generation): self.folder}
        return Growth(
            folder=self.folder,
            folders=folders,
            older=self._needed,
            kept=self._kept,
            added=self.found.added,
            changed=self.found.changed,
            vanished=self.found.vanished,
            unread=self.found.unread,
            hidden=hidden,
        )

    def begun(self) -> RunRecord | None:
        """The run of this growth if it was begun before; None otherwise. Raises `ManifestError` if what says so is damaged."""
        try:
            return Layer.read(self.store).run
        except NotFoundError:
            return None

    def create(self, source: str, shards: Shards) -> RunRecord:
        """Begin the generation, invisible until it is sealed; or go on with what another driver began of the same.

        Args:
            source: As the user named it now.
            shards: The new images, divided.
        """
        if not self.root.check_put_if_absent():
            self._reporter.warn(f"{self.root.url} cannot create objects atomically: make sure that only one driver writes there")
        self.store.publish_bytes(self.removed_bytes, self.removed_name)
        publish_preferences(self.store, self.config, self.preferences)
        first, *further = self.models
        record = RunRecord(
            archive_version=max(GROWN_VERSION, self.archive.run.archive_version),
            source=redacted(absolute(source)),
            scan_digest=self.scan.digest,
            config=self.config.to_json(),
            model_sha256=first.sha256,
            further_models=[model.sha256 for model in further],
            model_name=first.name,
            scan=publish_listing(self.store, self.scan.records, shards),
            shards=len(shards),
            images=len(self.scan.records),
            shard_first=shards.first(),
            generation=self.generation,
            first_key=self.first_key,
            parent_sha256=self.parent_sha256,
            removed=self.removed_name,
            listed_us=self.scan.listed_us,
            created_at=now(),
            created_by=created_by(),
            msinn=VERSION,
        )
        if self.store.put_if_absent(RUN, record.to_bytes()):
            return record
        return Layer.read(self.store).run

    def check_whole(self, run: RunRecord, records: Iterable[Commit]) -> None:
        """To be called before the seal: is all of the generation there yet?

        Raises:
            ManifestError: Somebody removed something of it meanwhile, by `gc --unfinished` perhaps.
        """
        present = set(self.store.list(""))
        needed = [RUN, run.scan, run.removed]
        for record in records:
            needed += [commit_name(record.shard_id), record.manifest, record.shard]
        for name in needed:
            if name not in present:
                raise ManifestError(f"{self.store.path(name)} was removed while the archive grew: it is as it was; run the same command again")

    def lost(self) -> Iterator[tuple[Context, dict[int, Commit]]]:
        """For each older generation of which shards are gone that a kept one needs: what making them again takes, and its commits.

        Raises:
            ManifestError: The listing that they were made from is lost.
        """
        whole = Archive(self.root.url, everything=True)
        needed = [record for record in self._commits if whole.sees(record)]
        for layer in whole.layers:
            present = set(self.root.list(f"{layer.prefix}shards"))
            numbers = {record.shard_id for record in needed if record.generation == layer.generation and record.shard not in present}
            if not numbers:
                continue
            store = open_store(f"{self.root.url.rstrip('/')}/{layer.folder}") if layer.folder else self.root
            records = Listing(self._where_now(layer, numbers))
            config = replace(CompressConfig.from_json(layer.run.config), device=self.config.device)
            context = Context(
                config=config,
                store=store,
                analyses=store,
                models=self.models,
                chosen=np.zeros(len(records), np.int8),
                records=records,
                digest=layer.run.scan_digest,
                shards=Shards(records, layer.run.shard_first),
                preferences=Preferences(config),
                reporter=self._reporter,
            )
            own = Layer.read(store)
            yield context, {number: record for number in sorted(numbers) if (record := own.record(number)) is not None}

    def _where_now(self, layer: Layer, shards: set[int]) -> Iterator[SourceRecord]:
        """Records that a generation was made from; those of some shards where the source lies now, if it has moved."""
        there = {}
        if self._moved:
            wanted = {record.name for record, shard in walk_table(read_listing(self.root, layer)) if shard in shards}
            there = {record.name: record for record in self._listed.records if record.name in wanted}
        for record, _ in walk_table(read_listing(self.root, layer), layer.run.first_key):
            now = there.get(record.name)
            same = now is not None and [name for name, _ in now.sidecars] == [name for name, _ in record.sidecars]
            yield replace(record, part=now.part, sidecars=now.sidecars) if now is not None and same else record

    def _digest(self) -> str:
        """Of all that decides what the generation will hold: the same command finishes it, any other begins another."""
        config = replace(self.config, device="cpu", model="")
        parts = (self.parent_sha256, self.scan.digest, self.removed_name, json.dumps(config.to_json(), sort_keys=True))
        return sha256("\n".join(parts).encode())

    def _configured(self, stored: CompressConfig, asked: CompressConfig, budget: Budget | None) -> CompressConfig:
        """What the run of the new images is to do: as the newest generation's, but for what was asked for."""
        if budget is None:
            # Of an archive that is as it was nobody asks for a price.
            as_before = not stored.budget.has_threshold or self.found.nothing
            # Of shards that only older generations use `gc --keep` may have removed the rows.
            seen = [record for record in self._commits if self.archive.sees(record)]
            budget = stored.budget if as_before else Budget(kind=SLOPE, value=price_of(self.archive, seen))
        if budget.max_error != stored.budget.max_error:
            raise UsageError(f"{self.root.url} was made with {stored.budget}, and an archive makes one promise: it grows by that, not by {budget}")
        # A table that was asked for and divides nothing is refused below.
        table = asked.preferences_sha256 or (stored.preferences_sha256 if budget.has_threshold else None)
        sample = asked.verify_sample if asked.verify_sample != VERIFY_SAMPLE else stored.verify_sample
        config = replace(stored, budget=budget, device=asked.device, preferences_sha256=table, verify_sample=sample)
        if needs_model(config.to_json()) and not self.archive.run.needs_model:
            raise UsageError(f"everything in {self.root.url} lies exactly, and it holds no model: it grows so, without {budget}")
        return config

    def _renamed(self, changes: Changes) -> Scan:
        """The listing of what is new, numbered from 0, under names that no image has which the archive keeps."""
        # Files that were written again since a growth was killed are not what it committed, whatever their size.
        digest, total = ListingDigest(times=True), 0
        chosen, listed = changes.new.tolist(), self._listed

        def numbered() -> Iterator[SourceRecord]:
            nonlocal total
            for index, record in enumerate(map(listed.records.__getitem__, chosen)):
                total += max(0, record.part.length)
                digest.add(record.name, record.part, record.sidecars)
                yield replace(record, index=index, first_key=self.first_key, restore_name="", keep_name="", keep_sidecars=())

        if self.first_key + len(chosen) > _MAX_KEY:
            raise UsageError(f"{self.root.url} has had {self.first_key:,} images: {_MAX_KEY:,} are the most that an archive names; begin a new one")
        records = with_restore_names(numbered(), changes.names_given() if chosen else ())
        return replace(listed, records=records, digest=digest.hexdigest(), source_bytes=total)

    def _stored_preferences(self) -> bytes | None:
        """The table of single images' preferences that the archive was begun with."""
        digest = self.config.preferences_sha256
        if digest is None:
            return None
        for layer in reversed(self.archive.layers):
            for name in self.root.list(f"{layer.prefix}plan"):
                if f"per-image-{digest[:12]}." in name:
                    return self.root.read(name, limit=MAX_PARQUET_BYTES)
        raise ManifestError(f"{self.root.path('plan')} has lost the table of --per-image that the archive was made with: give it again")

    def _tell_of_others(self) -> None:
        """Growths that were begun and cannot be finished by this command."""
        prefix = f"{GENERATIONS}/{self.generation:05d}-"
        runs = [name for name in self.root.list(GENERATIONS) if name.startswith(prefix) and name.endswith(f"/{RUN}")]
        others = [name for name in runs if not name.startswith(f"{self.folder}/")]
        if others:
            self._reporter.note(
                f"{len(others)} growths were begun of another listing or budget and not finished ({self.root.path(others[0].rpartition('/')[0])}): "
                "they stay invisible, and `msinn gc --unfinished` removes them"
            )


def _to_grow(root: Store, reporter: Reporter) -> Archive:
    try:
        archive = Archive(root.url)
        if archive.newest > 1 and mend_first(root):
            reporter.warn(f"{root.path(seal_name(1))} was lost or damaged, and is made again from {root.path(SEAL)}")
            archive = Archive(root.url)
        for name in mend_runs(root) if archive.newest > 1 else ():
            reporter.warn(f"{root.path(name)} was lost or damaged, and is made again from its generation's seal")
    except MissingArchiveError as error:
        raise UsageError(f"there is no archive at {root.url} to grow: without --grow the same command, with a budget, makes one") from error
    if not archive.sealed:
        raise UsageError(f"{root.url} is not finished: finish it first by the same command that began it, without --grow")
    return archive


def _same_options(stored: CompressConfig, asked: CompressConfig, url: str) -> None:
    """Options that decide what an archive holds are the archive's own. Raises `UsageError` for one that was given and differs."""
    plain = CompressConfig(budget=asked.budget)
    free = {"avif", "budget", "device", "model", "preferences_sha256", "verify_sample"}
    theirs, mine, defaults = stored.to_json(), asked.to_json(), plain.to_json()
    changed = [name for name in mine if name not in free and mine[name] != defaults[name] and mine[name] != theirs[name]]
    if changed:
        what = "; ".join(f"{name} was {theirs[name]}, now {mine[name]}" for name in changed)
        raise UsageError(f"{url} grows with the options that it was begun with ({what}): leave these out, or choose another destination")


def _same_model(asked: str, stored: str, digests: list[str], url: str) -> None:
    """Raises `UsageError` if a model was named that is not the archive's."""
    if not digests or asked in (CompressConfig(budget=Budget(kind="q", value=0)).model, stored):
        return
    named = os.path.basename(asked).partition(".")[0]
    if named not in digests and not (len(asked) >= 8 and any(digest.startswith(asked) for digest in digests)):
        raise UsageError(f"{url} grows with its own model {' and '.join(digest[:12] for digest in digests)}, not {asked}: leave --model out")


def _same_source(archive: Archive, source: str, *, moved: bool) -> None:
    """Raises `UsageError` if the source is at another address, unless the user says that it has moved."""
    layer, now = archive.layers[-1], redacted(absolute(source))
    before, url = layer.run.source, archive.store.url
    if moved or _address(before) == _address(now):
        return
    if absolute(before) != before:
        # As an earlier msinn wrote it, from the folder where it was called: where that was, the listing knows.
        if _address(absolute(before)) != _address(now):
            raise _elsewhere(url, before, now)
        part = next((record.part.uri for record, _ in walk_table(read_listing(archive.store, layer))), None)
        if part is None or part.startswith(_address(now).partition("*")[0].partition("?")[0].partition("[")[0]):
            return
        before = f"{before} in another folder, with {part}"
    raise _elsewhere(url, before, now)


def _elsewhere(url: str, before: str, now: str) -> UsageError:
    return UsageError(
        f"{url} was made of {before}, and this is {now}: if it is the same source at another address say --moved; "
        "files that it does not have would be left out of the new generation"
    )


def _address(source: str) -> str:
    return source.rstrip("/") or "/"


def _parent(root: Store, archive: Archive) -> str:
    """SHA-256 of the seal that is grown from."""
    name = seal_name(archive.newest)
    if archive.newest == 1 and not root.exists(name):
        name = SEAL
    return sha256(root.read(name, limit=MAX_RUN_BYTES))
