"""Objects that lost attempts and learning left behind: no commit names them, and nothing ever will. And generations that are given up."""

from __future__ import annotations

from pipeline.archive.archive import Archive
from pipeline.archive.commits import Commit
from pipeline.archive.layer import Layer
from pipeline.archive.layout import GENERATION_FOLDER, GENERATIONS, RUN, dropped_name, grown_version, json_bytes, json_object
from pipeline.archive.learned import leftovers
from pipeline.archive.removed import CHANGED, read_removed
from pipeline.archive.row import Row
from pipeline.errors import ManifestError, UsageError
from pipeline.formats.records import columns, rows_of
from pipeline.limits import MAX_RUN_BYTES
from pipeline.read.salvage import Salvage
from pipeline.run.beginning import created_by, now


def orphans(archive: Archive, *, unfinished: bool = False) -> dict[str, int]:
    """Names and bytes of shards, parts of the manifest and unfinished files that do not belong to a sealed archive.

    Args:
        archive: Seen with everything that its kept generations have.
        unfinished: Of growths too that were begun and could still be finished.

    Raises:
        UsageError: The archive is not sealed, its books are damaged, or an object is missing or damaged: then what no commit names may be wanted yet.
    """
    if not archive.sealed:
        raise UsageError(f"{archive.store.url} is not sealed: what no commit names yet may be about to be committed; finish it by the same compress")
    books = archive.books()
    for problem in (*books.problems, *books.lost.values()):
        raise UsageError(f"{problem}: objects that no commit names may be all that is left of their images, so nothing is removed")
    names: list[str] = []
    for layer in archive.layers:
        names += _of_layer(archive, layer, [record for record in books.commits if record.generation == layer.generation])
    names += _abandoned(archive, unfinished=unfinished)
    found = {name: archive.store.size(name) for name in [*names, *leftovers(archive.store)]}
    return found | archive.store.unfinished()


def _of_layer(archive: Archive, layer: Layer, records: list[Commit]) -> list[str]:
    """Objects of a generation's folder that none of these commits names; shards first."""
    named = {name: record for record in records for name in (record.shard, record.manifest)}
    present = [name for folder in ("shards", "manifest") for name in archive.store.list(layer.prefix + folder)]
    names = [name for name in present if name not in named]
    salvage = Salvage(archive, layer)
    suspects = {_shard_of(name) for name in names}
    for name, record in named.items():
        if name not in present or (record.shard_id in suspects and not salvage.is_whole(name)):
            raise UsageError(f"{archive.store.path(name)} is missing or damaged: another attempt's may be all that is left, so nothing is removed")
    return names


def _abandoned(archive: Archive, *, unfinished: bool) -> list[str]:
    """Objects of growths that were not sealed."""
    ours = {layer.folder for layer in archive.layers}
    found = []
    for name in archive.store.list(GENERATIONS):
        folder = GENERATION_FOLDER.match(name)
        # That of the next generation may be finished yet.
        if folder and folder[0] not in ours and (unfinished or int(folder[1]) <= archive.newest):
            found.append(name)
    # Commits first, then what begins a growth: when this is killed on its way, nobody goes on with a growth that has lost anything else.
    return sorted(found, key=lambda name: ("/commits/" not in name, not name.endswith(f"/{RUN}")))


def half_grown(archive: Archive) -> list[str]:
    """Folders of growths that were begun and could be finished."""
    prefix = f"{GENERATIONS}/{archive.newest + 1:05d}-"
    return sorted({name.removesuffix(f"/{RUN}") for name in archive.store.list(GENERATIONS) if name.startswith(prefix) and name.endswith(f"/{RUN}")})


def _shard_of(name: str) -> int:
    number = name.rpartition("/")[2].partition("-")[0]
    return int(number) if number.isdigit() else -1


def keeping(url: str, keep: int) -> tuple[Archive, list[int]]:
    """The archive as its newest generations need it, and the numbers of those that would be dropped. Nothing is changed.

    Args:
        url: The archive.
        keep: How many generations, 1 or more.

    Raises:
        UsageError: `keep` is out of range, a shard that would be removed holds an image of a kept generation, by its own rows, or what would be given
            up is all that there is of a file which had changed and could not be read.
        ManifestError: The books are damaged.
    """
    if keep < 1:
        raise UsageError(f"--keep is {keep}; it takes 1 or more generations")
    whole = Archive(url)
    first = max(whole.oldest, whole.newest - keep + 1)
    _refuse_last_copies(whole, first)
    archive = Archive(url, everything=True, oldest=first)
    for layer in archive.layers:
        for record in layer.books(None).commits:
            # Counted out by its generations' lists: but is every image of it on them?
            if archive.is_removed(record.place) and archive.store.exists(record.shard):
                keys = set(layer.part(record, ["key"]).column("key").to_pylist())
                if not keys <= archive.removed_keys(record.place):
                    where = archive.store.path(record.shard)
                    raise ManifestError(f"{where} holds images that no list of removed ones names: the books contradict each other")
    return archive, list(range(whole.oldest, first))


def _refuse_last_copies(whole: Archive, first: int) -> None:
    """What had changed and could not be read then, older generations alone have. Raises `UsageError` if these would be dropped."""
    unread: set[str] = set()
    for record in whole.commits():
        if record.failed:
            rows = rows_of(Row, whole.manifest_part(record, columns(Row, "name", "status", "codec")))
            unread |= {row.name for row in rows if row.status == "failed" and row.codec is None}
    for layer in whole.layers if unread else ():
        if whole.oldest < layer.generation <= first:
            for each in read_removed(whole.store, layer.prefix + layer.run.removed):
                if each.why == CHANGED and each.name in unread:
                    raise UsageError(
                        f"{each.name} changed and could not be read when the archive grew: only generations up to {layer.generation - 1} have it; "
                        "grow again when it can be read, or is gone, before these are given up"
                    )


def drop(archive: Archive, generations: list[int]) -> None:
    """Note that generations are no longer whole, before anything of them is removed: readers refuse them from here on.

    Raises:
        StorageError: The store failed.
    """
    for generation in generations:
        archive.store.put_if_absent(dropped_name(generation), json_bytes({"generation": generation, "dropped_at": now(), "dropped_by": created_by()}))
    if generations or archive.oldest > 1:
        # Also after a kill between the notes and this.
        # Readers that know one generation only would look for all that the first one had: its version has them refuse.
        before = archive.store.read(RUN, limit=MAX_RUN_BYTES)
        content = json_object(before, archive.store.path(RUN))
        data = json_bytes({**content, "archive_version": grown_version(content)})
        if data != before:
            archive.store.publish_bytes(data, RUN)


def collect(archive: Archive, names: dict[str, int]) -> None:
    """Remove what `orphans` found. Raises `StorageError`."""
    for name in names:
        archive.store.remove(name)
