"""Objects that lost attempts left behind: no commit names them, and nothing ever will."""

from __future__ import annotations

from pathlib import Path

from pipeline.commit import Archive
from pipeline.errors import UsageError


def orphans(archive: Archive) -> dict[str, int]:
    """Names and bytes of shards, parts of the manifest and unfinished files that do not belong to a sealed archive.

    Raises:
        UsageError: The archive is not sealed, or its books are damaged: then an object that no commit names may be wanted yet.
    """
    if not archive.sealed:
        raise UsageError(f"{archive.store.url} is not sealed: what no commit names yet may be about to be committed; finish it by the same compress")
    books = archive.books()
    for problem in (*books.problems, *books.lost.values()):
        raise UsageError(f"{problem}: objects that no commit names may be all that is left of their images, so nothing is removed")
    named = {name for record in books.commits for name in (record.shard, record.manifest)}
    found = {name: archive.store.size(name) for folder in ("shards", "manifest") for name in archive.store.list(folder) if name not in named}
    if archive.store.local:
        root = Path(archive.store.root)
        found |= {str(path.relative_to(root)): path.stat().st_size for path in root.rglob(".tmp-*")}
    return found


def collect(archive: Archive, names: dict[str, int]) -> None:
    """Remove what `orphans` found. Raises `StorageError`."""
    for name in names:
        archive.store.remove(name)
