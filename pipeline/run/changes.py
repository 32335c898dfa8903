"""What has changed between an archive and its source: told by names, sizes and times, and where these leave doubt by the content."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.archive.archive import Archive
from pipeline.archive.commits import Commit, Place
from pipeline.archive.layer import Layer
from pipeline.archive.layout import sha256
from pipeline.archive.removed import CHANGED, VANISHED, Removed
from pipeline.archive.row import Row
from pipeline.archive.seal import COUNTS, counts
from pipeline.errors import ManifestError, SourceError, UsageError
from pipeline.formats.outcome import Reason
from pipeline.formats.parquet import read_bounded
from pipeline.formats.records import columns, rows_of
from pipeline.limits import MAX_PARQUET_BYTES
from pipeline.run.report import Reporter
from pipeline.sources import Fetcher, Scan, SourceRecord
from pipeline.sources.compare import Known, compare, joined, known, known_of_table
from pipeline.sources.record import CELL, names_given, printable, walk_table
from pipeline.store.base import Store

_READERS = 8

Numbers = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Grown:
    """What a growth found, for people.

    Attributes:
        generation: That the archive has afterwards.
        unchanged: Images that stay where they are; `added`, `changed` and `vanished` those that are not.
        compared: Files that were read because their size and time left doubt, of `compared_bytes`.
        unread: Files that may have changed and could not be read: they stay as the archive has them.
    """

    generation: int
    unchanged: int
    added: int
    changed: int
    vanished: int
    compared: int
    compared_bytes: int
    unread: int = 0

    @property
    def nothing(self) -> bool:
        """Whether the source is as the archive has it."""
        return not (self.added or self.changed or self.vanished)


def read_listing(root: Store, layer: Layer) -> pa.Table:
    """What a generation was made from. Raises `ManifestError` if that is lost."""
    try:
        return read_bounded(root.read(layer.scan, limit=MAX_PARQUET_BYTES))
    except (pa.ArrowException, FileNotFoundError, KeyError, ValueError) as error:
        raise ManifestError(
            f"{root.path(layer.scan)} is lost or damaged ({error}): what {root.url} was made of is not known, so it cannot grow; "
            "`msinn restore` gives back what is there"
        ) from error


COUNTED = columns(Row, "key", "name", "status", "error_code", "form", "pixels", "source_bytes", "codec")
"""What the totals and the lists of a generation need to know of an image."""
_COMPARED = columns(Row, "key", "name", "source_bytes", "source_sha256", "sidecars", "status")


class Changes:
    """What has changed between an archive and its source.

    Args:
        archive: Its newest generation.
        commits: Of it.
        listed: The source now.
        reporter: Told of files that cannot be read.

    Attributes:
        new: `[N]`, numbers of records that are new or changed, rising.
        removed: What the new generation no longer has.
        found: The same in numbers.
    """

    def __init__(self, archive: Archive, commits: list[Commit], listed: Scan, reporter: Reporter) -> None:
        self._archive, self._listed, self._reporter = archive, listed, reporter
        self._commits = {record.place: record for record in commits}
        before, now = self._before(), known(listed.records)
        found = compare(before, now)
        if not len(found.same) and not len(found.doubtful):
            raise UsageError(
                f"none of the {len(before):,} images of {archive.store.url} is in this source, by name: it is another one; choose another destination"
            )
        gone = self._vanished(before, found.gone)
        self._compared = self._compared_bytes = self._unread = 0
        changed_keys, changed = self._changed(before, found.doubtful, found.same)
        self.new: Numbers = np.sort(np.concatenate((found.new, np.array(changed, np.int64))))
        numbers = dict(zip(self.new.tolist(), range(len(self.new)), strict=True))
        self._replaces = {numbers[number]: key for key, number in zip(changed_keys, changed, strict=True)}
        why = dict.fromkeys(before.key[gone].tolist(), VANISHED) | dict.fromkeys(changed_keys, CHANGED)
        rows = self._rows(why)
        self.removed = [Removed(key=row.key, name=row.name, generation=place[0], shard_id=place[1], why=why[int(row.key)]) for place, row in rows]
        self._lost = dict(zip((row.key for _, row in rows), rows, strict=True))
        self.found = Grown(
            generation=archive.newest + bool(len(self.new) or self.removed),
            unchanged=len(before) - len(self.removed),
            added=len(found.new),
            changed=len(changed),
            vanished=len(gone),
            compared=self._compared,
            compared_bytes=self._compared_bytes,
            unread=self._unread,
        )

    def _before(self) -> Known:
        """Of all that the newest generation has, in the order of keys."""
        parts = []
        for layer in self._archive.layers:
            try:
                parts.append(known_of_table(read_listing(self._archive.store, layer), layer.run.first_key, layer.run.listed_us))
            except (pa.ArrowException, KeyError, TypeError, ValueError, AttributeError) as error:
                raise ManifestError(f"{self._archive.store.path(layer.scan)} is damaged ({error}): the archive cannot grow") from error
        return joined(parts, {int(key) for key in self._archive.all_removed})

    def names_given(self) -> Iterator[str]:
        """Names for restoring of images that the new generation keeps."""
        gone = self._archive.all_removed | {each.key for each in self.removed}
        for layer in self._archive.layers:
            table = read_listing(self._archive.store, layer)
            first = layer.run.first_key
            numbers = pa.array([int(key) - first for key in gone], pa.int64())
            yield from names_given(table.filter(pc.invert(pc.is_in(table.column("index"), value_set=numbers))))

    def _vanished(self, before: Known, gone: Numbers) -> list[int]:
        """Of what is not listed any more, what is gone; not what lies where a container cannot be read to its end."""
        cut = self._listed.cut
        if not len(gone) or not cut:
            return [int(place) for place in gone]
        keys, hidden = set(before.key[gone].tolist()), set()
        for layer in self._archive.layers:
            for record, _ in walk_table(read_listing(self._archive.store, layer), layer.run.first_key):
                if record.first_key + record.index in keys and record.name.startswith(cut):
                    hidden.add(record.first_key + record.index)
        if hidden:
            self._reporter.warn(
                f"{len(hidden)} images lie in tars, Parquet files or folders that cannot be read to their end now: they stay as they are"
            )
        return [place for place in gone.tolist() if int(before.key[place]) not in hidden]

    # Doubt -----------------------------------------------------------------------------------------------------------------------------------------

    def _changed(self, before: Known, doubtful: Numbers, same: Numbers) -> tuple[list[int], list[int]]:
        """Keys and numbers of records whose content is other than the archive's, of those in doubt and of those that it could not read before."""
        pairs: dict[int, int] = dict(zip(before.key[doubtful[:, 0]].tolist(), doubtful[:, 1].tolist(), strict=True))
        failed = self._failed()
        if failed:
            numbers = dict(zip(before.key[same[:, 0]].tolist(), same[:, 1].tolist(), strict=True))
            pairs |= {key: numbers[key] for key in failed if key in numbers}
        shards: dict[Place, list[int]] = defaultdict(list)
        for key in sorted(pairs):
            shards[self._commit_of(key).place].append(key)
        changed: list[int] = []
        with ThreadPoolExecutor(_READERS) as pool:
            fetcher = Fetcher()
            for place, keys in shards.items():
                part = self._archive.manifest_part(self._commits[place], _COMPARED)
                rows = {row.key: row for row in rows_of(Row, part)}
                tasks = [(rows.get(f"{key:09d}"), self._listed.records[pairs[key]]) for key in keys]
                found = list(pool.map(lambda task: _differs(fetcher, *task), tasks))
                for key, (differs, read, sentence) in zip(keys, found, strict=True):
                    self._compared += read > 0
                    self._compared_bytes += read
                    if sentence is not None:
                        self._unread += 1
                        self._reporter.warn(sentence)
                    if differs:
                        changed.append(key)
        return changed, [pairs[key] for key in changed]

    def _failed(self) -> list[int]:
        """Keys of images that could not be read when they were to be archived."""
        found = []
        for record in self._commits.values():
            if record.failed:
                part = self._archive.manifest_part(record, columns(Row, "key", "status"))
                found += [int(row.key) for row in rows_of(Row, part) if row.status == "failed"]
        return found

    # Books -----------------------------------------------------------------------------------------------------------------------------------------

    def _commit_of(self, key: int) -> Commit:
        for layer in reversed(self._archive.layers):
            if layer.run.first_key <= key:
                shard = int(np.searchsorted(layer.run.shard_first, key - layer.run.first_key, side="right")) - 1
                if (record := self._commits.get((layer.generation, shard))) is not None:
                    return record
        raise ManifestError(f"image {key:09d} of {self._archive.store.url} lies in no shard: its listing and its commits contradict each other")

    def _rows(self, keys: Iterable[int]) -> list[tuple[Place, Row]]:
        """Rows of some images by key, with the shards that they lie in."""
        shards: dict[Place, set[str]] = defaultdict(set)
        for key in keys:
            shards[self._commit_of(key).place].add(f"{key:09d}")
        found: list[tuple[Place, Row]] = []
        for place, wanted in shards.items():
            part = self._archive.manifest_part(self._commits[place], COUNTED)
            rows = [row for row in rows_of(Row, part) if row.key in wanted]
            if len(rows) != len(wanted):
                part_name = self._archive.store.path(self._commits[place].manifest)
                raise ManifestError(f"{part_name} lacks images that the listing has: an archive that contradicts itself cannot grow")
            found += [(place, row) for row in rows]
        return sorted(found, key=lambda each: each[1].key)

    def staying(self, failed: Iterable[tuple[int, Row]]) -> list[tuple[Removed, Row]]:
        """Older images that stay after all, since their files could not be read when they were to be stored anew: what is known of each.

        Args:
            failed: Rows of the new generation that lack something, each with its place among `new`.
        """
        found = []
        removed = {each.key: each for each in self.removed}
        for number, row in failed:
            key = self._replaces.get(number)
            old = self._lost[f"{key:09d}"][1] if key is not None else None
            # Where the older one lacks something too, the newer one replaces it unless it has less.
            if old is not None and (old.status != "failed" or (old.codec is not None and row.codec is None)):
                found.append((removed[old.key], row))
        return found

    def kept(self, staying: Iterable[tuple[Removed, Row]] = ()) -> tuple[list[Commit], dict[str, int]]:
        """Commits of older shards that the new generation still uses, and its totals over their images.

        Args:
            staying: Images that are not removed after all, each with the row of the new generation that is not shown in its place.
        """
        archive = self._archive
        sealed = archive.seal() or {}
        # Seals of the first generation, of whichever version, say less than its commits.
        totals = counts(self._commits.values()) if archive.newest == 1 else {name: int(sealed.get(name, 0)) for name in COUNTS}
        stays = {each.key for each, _ in staying}
        for row in [*(row for key, (_, row) in self._lost.items() if key not in stays), *(row for _, row in staying)]:
            for name, value in _counts_of(row).items():
                totals[name] -= value
        gone = Counter((each.generation, each.shard_id) for each in self.removed if each.key not in stays)
        older = [record for place, record in self._commits.items() if gone[place] + len(archive.removed(record)) < record.images]
        return older, totals


def _counts_of(row: Row) -> dict[str, int]:
    """What a row adds to the totals of `COUNTS`."""
    return {
        "images": 1,
        "coded": int(row.status == "coded"),
        "kept": int(row.status == "kept"),
        "failed": int(row.status == "failed"),
        "troubled": int(row.status == "kept" and Reason.named(row.error_code).undecodable),
        "jpeg_exact": int(row.form == "jpeg-exact"),
        "pixels_exact": int(row.form == "pixels-exact"),
        "pixels": row.pixels or 0,
        "source_bytes": row.source_bytes or 0,
    }


def _differs(fetcher: Fetcher, row: Row | None, record: SourceRecord) -> tuple[bool, int, str | None]:
    """Whether a record's files are others than those that a row is of; how many bytes were read to know, and a sentence if they cannot be.

    Raises:
        StorageError: The source cannot be read at the moment.
    """
    if row is None:
        return True, 0, None
    sides = {side.name: side.sha256 for side in row.sidecars}
    names = [printable(name) for name, _ in record.sidecars]
    whole = row.source_sha256 is not None and row.status != "failed"
    parts = [record.part, *(part for _, part in record.sidecars)]
    unlike = sorted(sides) != sorted(names) or (record.part.kind != CELL and record.part.length != row.source_bytes)
    if whole and unlike and not any(map(fetcher.out_of_reach, parts)):
        return True, 0, None
    read = 0
    try:
        data = fetcher.fetch(record.part)
        read += len(data)
        differs = sha256(data) != row.source_sha256
        for name, part in record.sidecars:
            if differs and whole:
                break
            data = fetcher.fetch(part)
            read += len(data)
            differs |= sha256(data) != sides.get(printable(name))
    except SourceError as error:
        # What the archive has is more than what could be stored anew.
        sentence = None if not whole else f"{printable(record.name)} may have changed and cannot be read ({error}): it stays as the archive has it"
        return False, read, sentence
    return differs or not whole, read, None
