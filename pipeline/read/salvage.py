"""What an archive still gives back when some of its books (commits, parts of the manifest, the listing) are lost or damaged.

Shards are plain tars named after their own hash, and say themselves what they hold; names come from the listing of the scan, if that is there.
"""

from __future__ import annotations

import hashlib
import re
from typing import NamedTuple

import pyarrow as pa

from msinn_core import bitstream
from pipeline.archive import manifest
from pipeline.archive.archive import Archive
from pipeline.archive.commits import Commit
from pipeline.archive.layer import Layer
from pipeline.archive.layout import sha256
from pipeline.archive.members import codec_named, member_name, payload_suffix
from pipeline.archive.row import Row, Sidecar, sidecar_of
from pipeline.archive.shard import Member, iterate_damaged, stored_bytes
from pipeline.errors import ManifestError, StorageError
from pipeline.formats.parquet import read_bounded
from pipeline.formats.records import rows_of
from pipeline.forms import near
from pipeline.forms.base import Exact
from pipeline.forms.family import SUFFIXES, WITH_LOSS, promise_of
from pipeline.limits import DEFAULT, MAX_PARQUET_BYTES
from pipeline.sources.record import SourceRecord, from_table, printable, utc

_CHUNK_BYTES = 1 << 22
_KEY = re.compile(r"\d{9}\.")


class _Found(NamedTuple):
    """A member of a tar; if it begins as a coded picture does, or holds one, the first half of its model's SHA-256."""

    member: Member
    model: str | None


def _base(name: str) -> str:
    return name.rpartition("/")[2]


class Salvage:
    """Rows of shards that a manifest does not give any more.

    Args:
        archive: With books that are not whole.
        layer: The generation that the shards are of; the first if not given. Names of objects are from the archive's root, those in rows from the
            generation's folder.
    """

    def __init__(self, archive: Archive, layer: Layer | None = None) -> None:
        self._archive = archive
        self._layer = layer or archive.layers[0]
        self._objects: dict[str, dict[str, list[str]]] = {}
        self._scan: bytes | None = None

    def numbers(self) -> list[int]:
        """Numbers of all shards of which an object is there."""
        found = {stem for folder in ("shards", "manifest") for stem in self._listed(folder) if re.fullmatch(r"\d{5}|[1-9]\d{5,8}", stem)}
        return sorted(map(int, found))

    def present(self, name: str) -> bool:
        """Whether an object of `shards/` or `manifest/` is there."""
        folder, _, base = name.removeprefix(self._layer.prefix).partition("/")
        return name in self._listed(folder).get(base.partition("-")[0], [])

    def rows(self, shard: int, record: Commit | None) -> tuple[list[Row], str]:
        """Rows as `restore` wants them, with what is known of each image, and half a sentence that says where they come from.

        Args:
            shard: Its number.
            record: Its commit, whose part of the manifest is lost; None if the commit is lost.
        """
        names = self._named("shards", shard)
        whole = [name for name in names if self.is_whole(name)]
        if record is not None and record.shard in whole:
            whole = [record.shard]
        else:
            for name in self._named("manifest", shard):
                rows = self._of_manifest(name)
                if rows and f"{self._layer.prefix}{rows[0].shard_key}" in whole:
                    return rows, f"its images are restored by {self._archive.store.path(name)}"
        for name in whole or names:
            rows = self._of_tar(shard, name)
            if rows:
                how = f"its images are restored by what {self._archive.store.path(name)} says itself"
                if name not in whole:
                    how += ", which is damaged: files that are not coded pictures cannot be proven whole"
                if not self._records(shard):
                    how += "; the listing is lost or damaged too, so they are called by their keys"
                return rows, how + self._gaps(shard, {row.key for row in rows if row.codec})
        return [], "nothing is left of its images"

    def _of_manifest(self, name: str) -> list[Row]:
        data = self._read(name)
        if data is None or sha256(data)[:12] not in _base(name):
            return []
        try:
            return list(rows_of(Row, manifest.read(data)))
        except ManifestError:
            return []  # of another version

    def _gaps(self, shard: int, found: set[str]) -> str:
        gone = [printable(record.name) for record in self._records(shard) if record.key not in found]
        return f"; not in it: {', '.join(gone)}" if gone else ""

    def _named(self, folder: str, shard: int) -> list[str]:
        return self._listed(folder).get(f"{shard:05d}", [])

    def _listed(self, folder: str) -> dict[str, list[str]]:
        """Names of a folder's objects by the shard's number, as it is written in them."""
        if folder not in self._objects:
            found: dict[str, list[str]] = {}
            for name in self._archive.store.list(self._layer.prefix + folder):
                found.setdefault(name.rpartition("/")[2].partition("-")[0], []).append(name)
            self._objects[folder] = found
        return self._objects[folder]

    def _read(self, name: str) -> bytes | None:
        try:
            return self._archive.store.read(name, limit=MAX_PARQUET_BYTES)
        except StorageError as error:
            self._archive.raise_outage(error)
            return None

    def is_whole(self, name: str) -> bool:
        """Whether an object has the hash that it is named after."""
        digest = hashlib.sha256()
        try:
            with self._archive.store.open(name) as file:
                while chunk := file.read(_CHUNK_BYTES):
                    digest.update(chunk)
        except Exception as error:
            self._archive.raise_outage(error)
            return False
        return digest.hexdigest()[:12] in _base(name)

    def _of_tar(self, shard: int, name: str) -> list[Row]:
        """One row for each image of which the tar holds anything."""
        members: dict[str, list[_Found]] = {}
        try:
            with self._archive.store.open(name) as file:
                for member, offset, data in iterate_damaged(file, max_bytes=DEFAULT.max_file_bytes):
                    model = bitstream.model_named(data) or near.model_named(data)
                    if _KEY.match(member):
                        members.setdefault(member.partition(".")[0], []).append(_Found(Member(member, offset, len(data), sha256(data)), model))
        except Exception as error:
            # What was read before counts.
            self._archive.raise_outage(error)
        records = {record.key: record for record in self._records(shard)}
        return [self._row(shard, name, key, records.get(key), found) for key, found in members.items()]

    def _row(self, shard: int, name: str, key: str, record: SourceRecord | None, found: list[_Found]) -> Row:
        """What a shard's members say of one image.

        Args:
            shard: The shard's number; `name`: its object.
            key: The image's.
            record: Of the listing, if that is there.
            found: The image's members, in the order of the tar.
        """
        run, (first, model) = self._layer.run, found[0]
        coded = model is not None and first.name == f"{key}.msn"
        codec = "msinn" if coded else codec_named(first.name, key)
        codec = "kept" if codec == "msinn" and not coded else codec
        form, exact = promise_of(codec)
        stored = coded or record is None or first.name == f"{key}.{payload_suffix(codec, record.name)}"
        # Without the listing, a name of its own: another image may be called as this one's key.
        bare = f"{key}.png" if exact != Exact.BYTES else first.name.removesuffix(f".{SUFFIXES.get(codec, '').rpartition('.')[2]}")
        restore_name = (record.keep_name if exact is Exact.BYTES else record.restore_name) if record else f"salvaged/{bare}"
        return Row(
            key=key,
            name=printable(record.name) if record else key,
            restore_name=restore_name,
            source_uri=record.source_uri if record else "",
            member=first.name if stored else None,
            mtime=record.mtime if record else None,
            shard_id=shard,
            shard_key=name.removeprefix(self._layer.prefix),
            offset=first.offset if stored else None,
            length=first.length if stored else None,
            stored_bytes=stored_bytes(first.length) if stored else 0,
            payload_sha256=first.sha256 if stored else None,
            sidecars=_sidecars(record, key, first.name if stored else None, [part.member for part in (found[1:] if stored else found)]),
            codec=codec if stored else None,
            form=form if stored else None,
            exact=exact if stored else None,
            model_sha256=next((digest for digest in run.models if digest[:32] == model), run.model_sha256)
            if model is not None and codec in WITH_LOSS
            else None,
            lossless=stored and codec not in WITH_LOSS,
            decode_verified=False,
            encoder="cpu" if codec in WITH_LOSS and stored else None,
            status="failed" if not stored else "kept" if exact is Exact.BYTES else "coded",
            attempt="",
        )

    def _records(self, shard: int) -> list[SourceRecord]:
        if self._scan is None:
            name = self._layer.scan
            data = self._read(name)
            # A damaged listing would give images the names of others.
            self._scan = data if data is not None and sha256(data)[:12] in _base(name) else b""
        if not self._scan:
            return []
        try:
            table = read_bounded(self._scan, holding=("shard_id", shard))
            return [record for record, number in from_table(table, self._layer.run.first_key) if number == shard]
        except (pa.ArrowException, KeyError, TypeError, ValueError, AttributeError):
            self._scan = b""  # a listing that its maker damaged names nobody either
            return []


def _sidecars(record: SourceRecord | None, key: str, payload: str | None, members: list[Member]) -> tuple[Sidecar, ...]:
    """Members after the payload, in the order in which they were written; one that could not be read then is not among them."""
    named = list(zip(record.sidecars, record.keep_sidecars, strict=True)) if record else []
    found: list[Sidecar] = []
    waiting = iter(members)
    member = next(waiting, None)
    for (name, place), keep in named:
        taken = {payload, *(side.member for side in found)}
        expected = member_name(key, name)
        if member is not None and member.name == (f"{key}.{len(found)}.side" if expected in taken else expected):
            found.append(sidecar_of(member, name=printable(name), restore_name=keep, mtime=utc(place.mtime_us)))
            member = next(waiting, None)
    while member is not None:
        found.append(sidecar_of(member, name=member.name, restore_name=f"salvaged/{member.name}"))
        member = next(waiting, None)
    return tuple(found)
