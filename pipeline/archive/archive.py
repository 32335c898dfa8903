"""An archive as those see it who read it: its generations, their commits, the manifest and the model, each checked.

```
run.json, commits/, manifest/ ...        generation 1, alone in an archive that never grew
generations/00002-<sha12>/ (the same)    what generation 2 added, and its list of images that it no longer has
seals/00001.json, 00002.json             make a generation visible; each names the one before by its hash
generation N = rows of 1..N, less those that a list of 2..N names
```
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

import pyarrow as pa

from msinn_core.errors import CheckpointError
from msinn_core.model_file import retired_models
from pipeline.archive import manifest
from pipeline.archive.chain import Chain, checked_seal, read_chain, read_pointer
from pipeline.archive.commits import Commit, Place
from pipeline.archive.layer import Books, Layer
from pipeline.archive.layout import (
    RUN,
    SEAL,
    SHA256,
    STILL,
    json_object,
    seal_name,
)
from pipeline.archive.lost_run import holds_archive, recovered_run
from pipeline.archive.models import stored_model
from pipeline.archive.removed import read_removed
from pipeline.archive.run_record import RunRecord, UnknownVersionError
from pipeline.errors import ManifestError, NotFoundError, OutageError, PipelineError, StorageError, UsageError
from pipeline.limits import MAX_RUN_BYTES
from pipeline.store.base import open_store
from pipeline.store.errors import from_outside

_READERS = 8
_KEY = re.compile(r"\d{9}")


class Archive:
    """Read access to what is committed at a store.

    Args:
        url: The archive's root.
        generation: Which one to see, 1 or more; the newest if not given. Of an archive that never grew it is 1.
        everything: See also what older generations have and the newest no longer has, of all that are kept: what a verification looks at.
        oldest: With `everything`: as if only generations from this one on were kept.
        without_run: Where `run.json` is lost or damaged, go on with what other books say of it, and name it among the problems: for reading alone.

    Attributes:
        run: Of the first generation.
        lost_run: What is wrong with `run.json`, a sentence, where the archive is read without it; else None.

    Raises:
        ManifestError: There is no archive, or of an unknown version.
        UsageError: There is no such generation, or it is dropped.
    """

    def __init__(
        self, url: str, generation: int | None = None, *, everything: bool = False, oldest: int | None = None, without_run: bool = False
    ) -> None:
        self.store = open_store(url)
        self.lost_run: str | None = None
        try:
            self.run = self._read_run(url)
        except LostRunError as error:
            if not without_run:
                raise
            self.run, self.lost_run = recovered_run(self.store), str(error)
        if self.run.generation != 1:
            raise UsageError(f"{url} is generation {self.run.generation} of an archive, and no archive by itself: name the archive's own folder")
        self._manifest: bytes | None = None
        self._asked, self._everything, self._oldest = generation, everything, oldest
        if generation is not None:
            if generation > self._chain.newest:
                self._follow_pointer()
            newest = self._chain.newest
            if not 1 <= generation <= newest:
                raise UsageError(f"{url} has no generation {generation}; it has {'1 alone' if newest == 1 else f'1 to {newest}'}")
            if generation < self.oldest:
                raise UsageError(f"generation {generation} of {url} was dropped by `msinn gc --keep`: its images are no longer all there")

    def _read_run(self, url: str) -> RunRecord:
        try:
            data = self.store.read(RUN, limit=MAX_RUN_BYTES)
        except NotFoundError as error:
            if not holds_archive(self.store):
                raise MissingArchiveError(f"{url} is not an msinn archive: it has no {RUN}") from error
            try:
                data = self.store.read(RUN, limit=MAX_RUN_BYTES)  # of a run that began meanwhile
            except NotFoundError:
                raise LostRunError(f"{self.store.path(RUN)} is missing, though commits or shards of an archive are there; {STILL}") from error
        try:
            return RunRecord.from_bytes(data, self.store.path(RUN))
        except UnknownVersionError:
            raise
        except ManifestError as error:
            raise LostRunError(f"{error}; {STILL}") from error

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

    # Generations -----------------------------------------------------------------------------------------------------------------------------------

    @cached_property
    def _chain(self) -> Chain:
        """As the store had it when it was first asked for."""
        return read_chain(self.store, self.run, self._asked, self._manifest_bytes)

    def _follow_pointer(self) -> None:
        """Where no seal is left, `MANIFEST.json` may still say that there were some."""
        if self._chain.newest == 1 and read_pointer(self._manifest_bytes, self.store.path(SEAL)):
            self.__dict__["_chain"] = read_chain(self.store, self.run, self._asked, self._manifest_bytes, by_pointer=True)
            self.__dict__.pop("_removals", None)

    def _manifest_bytes(self) -> bytes:
        """`MANIFEST.json`, which may be large, read once when it is there. Raises `NotFoundError`."""
        if self._manifest is None:
            self._manifest = self.store.read(SEAL, limit=MAX_RUN_BYTES)
        return self._manifest

    @property
    def generation(self) -> int:
        """Number of the generation that is seen."""
        return self._asked if self._asked is not None else self._chain.newest

    @property
    def newest(self) -> int:
        """Number of the newest sealed generation, seen or not; 1 of an archive that never grew, sealed or not."""
        return self._chain.newest

    @property
    def oldest(self) -> int:
        """Number of the oldest generation that is kept whole."""
        return max(self._chain.dropped, default=0) + 1

    @property
    def layers(self) -> list[Layer]:
        """What each generation added, the first one's first, up to the one that is seen."""
        return self._chain.layers

    @cached_property
    def _removals(self) -> tuple[dict[Place, set[str]], dict[int, str]]:
        """Keys that are not seen, by shard, and a problem for each generation whose list is lost."""
        found: dict[Place, set[str]] = {}
        problems: dict[int, str] = {}
        last = (self._oldest or self.oldest) if self._everything else self.generation
        for layer in self._chain.layers[1:]:
            if layer.generation > last:
                continue
            try:
                for each in read_removed(self.store, layer.prefix + layer.run.removed):
                    found.setdefault((each.generation, each.shard_id), set()).add(each.key)
            except OutageError:
                raise
            except (ManifestError, StorageError) as error:
                problems[layer.generation] = str(error) + self._forgotten_words(layer.generation)
        return found, problems

    def _forgotten_words(self, generation: int) -> str:
        """What follows from not knowing which images a generation no longer has."""
        sealed = self._chain.seals.get(generation, {})
        counts = [f"{sealed[name]:,} that {what}" for name, what in (("changed", "changed"), ("vanished", "are gone")) if sealed.get(name)]
        return f": older versions of files are among the images that are left ({' and '.join(counts)})" if counts else ""

    @property
    def forgotten(self) -> list[int]:
        """Generations of which it is lost what they no longer have: images of older ones may be seen that are no longer there."""
        return sorted(self._removals[1])

    def removed(self, record: Commit) -> set[str]:
        """Keys of a shard's images that the generation no longer has."""
        return self.removed_keys(record.place)

    def removed_keys(self, place: Place) -> set[str]:
        """As `removed`, of a shard whose commit may be lost."""
        return self._removals[0].get(place, set())

    @property
    def all_removed(self) -> set[str]:
        """Keys of all images that older generations have had and this one no longer has."""
        return set().union(*self._removals[0].values())

    def is_removed(self, place: Place) -> bool:
        """Whether nothing of a shard is seen although it is there."""
        layer = next((layer for layer in self._chain.layers if layer.generation == place[0]), None)
        return layer is not None and len(self.removed_keys(place)) >= layer.size(place[1])

    def sees(self, record: Commit) -> bool:
        """Whether any image of a shard is seen."""
        return len(self.removed(record)) < record.images

    def seals(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Number and seal of every generation that is sealed, up to the one that is seen. Raises `ManifestError` for a damaged one."""
        for number in range(1, self.generation + 1):
            if (found := self._seal(number)) is not None:
                yield number, found

    @property
    def sealed(self) -> bool:
        """Whether the first run finished: `MANIFEST.json` is there, or seals of later generations."""
        return self.newest > 1 or self.store.exists(SEAL)

    def seal(self) -> dict[str, Any] | None:
        """The seal of the generation that is seen, whose totals are those of all that it has; None while the run is unfinished.

        Raises:
            ManifestError: It is damaged, or lost where others name it.
        """
        return self._seal(self.generation)

    def _seal(self, generation: int) -> dict[str, Any] | None:
        if generation in self._chain.seals:
            return self._chain.seals[generation]
        if generation > 1:
            raise ManifestError(f"{self.store.path(seal_name(generation))} is missing or damaged")
        try:
            return checked_seal(json_object(self._manifest_bytes(), self.store.path(SEAL)), self.store.path(SEAL), 1)
        except NotFoundError:
            return None

    def check_pointer(self) -> None:
        """Whether `MANIFEST.json` names the newest generation, for people and tools that look there.

        Raises:
            ManifestError: It does not.
        """
        pointer = read_pointer(self._manifest_bytes, self.store.path(SEAL))
        if self.newest > 1 and pointer.get("generation") != self.newest:
            raise ManifestError(f"{self.store.path(SEAL)} does not point to generation {self.newest}, the newest: the same compress --grow mends it")

    # Books -----------------------------------------------------------------------------------------------------------------------------------------

    def books(self, *, unseen: bool = False) -> Books:
        """All commits that are sound, of shards of which anything is seen, and what is wrong with the others.

        Args:
            unseen: Also those of shards of which nothing is seen.

        Raises:
            OutageError: The store cannot be read; never an error for damage.
        """
        if self._asked is None:
            self._follow_pointer()
        commits: list[Commit] = []
        lost: dict[Place, str] = {}
        problems = [*([self.lost_run] if self.lost_run else []), *self._chain.problems, *self._removals[1].values()]
        unfinished: list[str] = []
        for layer in self._chain.layers:
            expected, sealed = self._expected(layer, problems)
            books = layer.books(expected)
            lost |= {place: sentence for place, sentence in books.lost.items() if unseen or not self.is_removed(place)}
            unfinished += _unfinished(layer, books, sealed=sealed or self.sealed)
            commits += [record for record in books.commits if unseen or self.sees(record)]
        return Books(commits, lost, problems, unfinished)

    def _expected(self, layer: Layer, problems: list[str]) -> tuple[Mapping[str, str] | None, bool]:
        """Hashes of a generation's commits as its seal says them, and whether it has one."""
        if layer.generation > 1:
            sealed = self._chain.seals.get(layer.generation)
        else:
            try:
                sealed = self._seal(1)
            except OutageError:
                raise
            except (ManifestError, StorageError) as error:
                problems.append(str(error))
                sealed = None
        return (sealed["commits"], True) if sealed is not None else (None, layer.generation > 1)

    def commits(self, *, unseen: bool = False) -> list[Commit]:
        """All commits of shards of which anything is seen (or all there are), by generation and shard number.

        Raises:
            ManifestError: One is damaged, or a sealed archive has lost or changed one.
        """
        books = self.books(unseen=unseen)
        for problem in (*books.problems, *books.lost.values()):
            raise ManifestError(f"{problem}; {STILL}")
        return books.commits

    def holding(self, key: str) -> Commit | None:
        """The commit of the shard that an image with this key lies in; None if there is no such image. Raises `ManifestError` if it is damaged."""
        if not _KEY.fullmatch(key):
            return None
        number = int(key)
        for layer in reversed(self._chain.layers):
            if layer.run.first_key <= number:
                firsts = layer.run.shard_first
                shard = max((i for i, first in enumerate(firsts) if first <= number - layer.run.first_key), default=0)
                return layer.record(shard)
        return None

    def layer_of(self, record: Commit) -> Layer:
        """The generation that a commit is of."""
        return next(layer for layer in self._chain.layers if layer.generation == record.generation)

    def manifest_part(self, record: Commit, columns: list[str] | None = None) -> pa.Table:
        """Rows of one shard that are seen, checked against its commit.

        Raises:
            ManifestError: Missing or changed.
        """
        keys, layer = self.removed(record), self.layer_of(record)
        if not keys:
            return layer.part(record, columns)
        rows = without(layer.part(record, columns if columns is None or "key" in columns else [*columns, "key"]), keys)
        return rows if columns is None else rows.select(columns)

    def manifest(self, columns: list[str] | None = None) -> pa.Table:
        """All rows that are seen, in the order of generations and shards. Raises `ManifestError`."""
        records = self.commits()
        if not records:
            return manifest.READ_SCHEMA.empty_table().select(columns or manifest.READ_SCHEMA.names)
        try:
            with ThreadPoolExecutor(_READERS) as pool:
                return pa.concat_tables(pool.map(lambda r: self.manifest_part(r, columns), records))
        except ManifestError as error:
            raise ManifestError(f"{error}; {STILL}") from error

    def model_bytes(self, model_sha256: str | None = None) -> bytes:
        """The archived model's file, checked, in whichever form it is stored.

        Raises:
            ManifestError: Missing or changed; or a model that it is stored as a difference to; or the archive needs none.
        """
        digest = model_sha256 or self.run.model_sha256
        if not SHA256.fullmatch(digest):
            raise ManifestError(f"{digest[:80]!r} is no SHA-256 of a model")
        try:
            data = stored_model(self.store, digest)
        except CheckpointError as error:
            raise ManifestError(f"{self.store.path('model')}: {error}") from error
        if data is None and not self.run.needs_model:
            raise ManifestError(f"{self.store.url} holds no model: every image in it lies exactly, and is decoded without one")
        if data is None:
            where = f"; msinn at git commit {commit} has it, in msinn_core/weights" if (commit := retired_models().get(digest)) else ""
            raise ManifestError(f"{self.store.path('model')}: model {digest[:12]} is missing: without it nothing can be decoded{where}")
        return data


def without(rows: pa.Table, keys: set[str]) -> pa.Table:
    """Rows whose key is none of these."""
    if not keys:
        return rows
    import pyarrow.compute as pc  # here: a tenth of a second, and not every command needs it

    return rows.filter(pc.invert(pc.is_in(rows.column("key"), value_set=pa.array(sorted(keys), pa.string()))))


def _unfinished(layer: Layer, books: Books, *, sealed: bool) -> list[str]:
    """A sentence if a generation does not hold all of its source yet."""
    shards = layer.run.shards
    known = {record.shard_id for record in books.commits if record.shard_id < shards} | {shard for _, shard in books.lost if shard < shards}
    if len(known) < shards:
        first = next(shard for shard in range(shards) if shard not in known)
        return [f"{shards - len(known)} of {shards} shards are not committed, shard {first} among them: run the same compress to finish"]
    return [] if sealed else ["the archive is not sealed: run the same compress to finish"]


class LostRunError(ManifestError):
    """An archive is there, and its `run.json` is lost or damaged."""


class MissingArchiveError(PipelineError):
    """There is no archive at this place."""

    exit_code = 2
