"""What a generation no longer has: images of older generations whose files are gone or have changed. The rows stay where they are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

import pyarrow as pa

from pipeline.archive import manifest
from pipeline.archive.layout import sha256
from pipeline.errors import ManifestError, NotFoundError
from pipeline.formats.parquet import read_bounded
from pipeline.formats.records import Column, rows_of, schema_of, to_table
from pipeline.limits import MAX_PARQUET_BYTES
from pipeline.store.base import Store, content_name

VANISHED, CHANGED, UNREAD = "vanished", "changed", "unread"


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed:
    """An image that a generation no longer has.

    Attributes:
        key: In the archive; `name`: of its file.
        generation: Where it lies, with `shard_id`.
        why: `vanished`; `changed`: the generation holds the file anew, under another key; or `unread`: a row of its own, of a file that had changed
            and could not be read, in place of which the older generation's image stays.
    """

    key: Annotated[str, Column(pa.string())]
    name: Annotated[str, Column(pa.string())]
    generation: Annotated[int, Column(pa.int32())]
    shard_id: Annotated[int, Column(pa.int32())]
    why: Annotated[str, Column(pa.string())]


SCHEMA = schema_of(Removed)


def removed_object(found: Iterable[Removed]) -> tuple[str, bytes]:
    """Name, below its generation's folder, and bytes of a list: the same for equal lists."""
    rows = list(found)
    # Without a row there is no group of rows, of which ours hold some.
    data = manifest.blocks_bytes(SCHEMA, [to_table(Removed, rows, SCHEMA)] if rows else [])
    return content_name("removed", "00000", sha256(data), "parquet"), data


def read_removed(store: Store, name: str) -> list[Removed]:
    """A list, checked against its name, from the archive's root.

    Raises:
        ManifestError: It is missing or damaged.
    """
    try:
        data = store.read(name, limit=MAX_PARQUET_BYTES)
    except NotFoundError as error:
        raise ManifestError(f"{store.path(name)} is missing: which images its generation no longer has is not known") from error
    if sha256(data)[:12] not in name.rpartition("/")[2]:
        raise ManifestError(f"{store.path(name)} is damaged: its SHA-256 is not its name")
    try:
        found = list(rows_of(Removed, read_bounded(data).cast(SCHEMA)))
    except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise ManifestError(f"{store.path(name)} is damaged: {error}") from error
    if any(None in (each.key, each.generation, each.shard_id) for each in found):
        raise ManifestError(f"{store.path(name)} is damaged: it does not say where an image lies")
    return found
