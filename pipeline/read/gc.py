"""Objects that lost attempts left behind: no commit names them, and nothing ever will."""

from __future__ import annotations

from pipeline.archive.archive import Archive
from pipeline.errors import UsageError
from pipeline.read.salvage import Salvage


def orphans(archive: Archive) -> dict[str, int]:
    """Names and bytes of shards, parts of the manifest and unfinished files that do not belong to a sealed archive.

    Raises:
        UsageError: The archive is not sealed, its books are damaged, or an object is missing or damaged: then what no commit names may be wanted yet.
    """
    if not archive.sealed:
        raise UsageError(f"{archive.store.url} is not sealed: what no commit names yet may be about to be committed; finish it by the same compress")
    books = archive.books()
    for problem in (*books.problems, *books.lost.values()):
        raise UsageError(f"{problem}: objects that no commit names may be all that is left of their images, so nothing is removed")
    named = {name: record for record in books.commits for name in (record.shard, record.manifest)}
    present = {name for folder in ("shards", "manifest") for name in archive.store.list(folder)}
    names = sorted(present - named.keys())
    salvage = Salvage(archive)
    suspects = {_shard_of(name) for name in names}
    for name, record in named.items():
        if name not in present or (record.shard_id in suspects and not salvage.is_whole(name)):
            raise UsageError(f"{archive.store.path(name)} is missing or damaged: another attempt's may be all that is left, so nothing is removed")
    found = {name: archive.store.size(name) for name in names}
    return found | archive.store.unfinished()


def _shard_of(name: str) -> int:
    number = name.rpartition("/")[2].partition("-")[0]
    return int(number) if number.isdigit() else -1


def collect(archive: Archive, names: dict[str, int]) -> None:
    """Remove what `orphans` found. Raises `StorageError`."""
    for name in names:
        archive.store.remove(name)
