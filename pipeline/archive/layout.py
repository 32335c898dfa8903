"""Names of an archive's objects, and the rules of what its books may say.

`run.json` says what was asked, `commits/<id>.json` what is there, `MANIFEST.json` that it is all. An archive that has grown has these again in a
folder for each later generation, and `seals/<generation>.json` in place of `MANIFEST.json`. Anybody may have written them, so each value is checked.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from typing import Any

from pipeline.errors import ManifestError

ARCHIVE_VERSION = 4
"""Version 1 called kept files `passthrough` and counted those that looked wrong as failed; before version 3 every model was stored as its file, and
before version 4 what was not coded by the network was kept as its file."""

GROWN_VERSION = 5
"""Of generations after the first, and of the seals of archives that have some: an archive that never grew says 4, and older readers read it."""

NEAR_VERSION = 6
"""Of archives that are made within a largest error: no reader of versions 1 to 5 knows their members."""

AVIF_VERSION = 7
"""Of archives in which AVIF may code what was drawn (`--forms all`): no reader of versions 1 to 6 knows those members."""

READ_VERSIONS = range(1, AVIF_VERSION + 1)

RUN, SEAL = "run.json", "MANIFEST.json"
SEALS, GENERATIONS = "seals", "generations"
MAX_GENERATION = 99_999
SEAL_NAME = re.compile(r"seals/(\d{5})\.json")
DROPPED_NAME = re.compile(r"seals/(\d{5})\.dropped\.json")
GENERATION_FOLDER = re.compile(r"generations/(\d{5})-[0-9a-f]{12}")
STILL = "`msinn restore` still gives back every image that is there"
COMMIT_NAME = re.compile(r"commits/(\d{5}|[1-9]\d{5,8})\.json")
_SHARD_NAME = re.compile(r"shards/\d{5,9}-[0-9a-f]{12}\.tar")
_ANY_SHARD_NAME = re.compile(rf"(?:{GENERATION_FOLDER.pattern}/)?{_SHARD_NAME.pattern}")
_NAMES = {
    "shard": _SHARD_NAME,
    "manifest": re.compile(r"manifest/\d{5,9}-[0-9a-f]{12}\.parquet"),
    "scan": re.compile(r"scan/\d{5,9}-[0-9a-f]{12}\.parquet"),
    "removed": re.compile(r"removed/\d{5,9}-[0-9a-f]{12}\.parquet"),
}
SHA256 = re.compile(r"[0-9a-f]{64}")


def is_shard_name(name: Any) -> bool:
    """Whether this names a shard of the archive, of whichever generation, and nothing else anywhere."""
    return isinstance(name, str) and _ANY_SHARD_NAME.fullmatch(name) is not None


def json_object(data: bytes, place: str) -> dict[str, Any]:
    """The JSON object of a book. Raises `ManifestError` naming it."""
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{place} is damaged: {error}") from error
    if not isinstance(values, dict):
        raise ManifestError(f"{place} is damaged: it holds no JSON object")
    return values


def check(fault: str | None, place: str) -> None:
    """Raise `ManifestError` if something is wrong with a book. `fault` is what, or None."""
    if fault is not None:
        raise ManifestError(f"{place} is damaged: {fault}")


def fault_of(values: Mapping[str, Any], name: str, kind: type, low: float = 0, high: float = 2**62) -> str | None:
    """What is wrong with a value of a book; None if it is of its type and, as a number, within bounds."""
    value = values.get(name)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 2**63 else math.inf
    if not isinstance(value, kind) or isinstance(value, bool):
        return f"{name} is no {kind.__name__}"
    if isinstance(value, int | float) and not low <= value <= high:
        return f"{name} is {value}"
    if name in _NAMES and isinstance(value, str) and not _NAMES[name].fullmatch(value):
        return f"{name} is no name of an object of this archive"
    return "it is no SHA-256" if name.endswith("_sha256") and not SHA256.fullmatch(str(value)) else None


def json_bytes(value: dict[str, Any]) -> bytes:
    """Deterministic JSON object, one final newline."""
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()


def sha256(data: bytes) -> str:
    """Hex digest."""
    return hashlib.sha256(data).hexdigest()


def commit_name(shard_id: int) -> str:
    """Object name of a shard's commit."""
    return f"commits/{shard_id:05d}.json"


def seal_name(generation: int) -> str:
    """Object name of a generation's seal, in an archive that has grown."""
    return f"{SEALS}/{generation:05d}.json"


def dropped_name(generation: int) -> str:
    """Object name of the note that a generation's images may be gone: `gc --keep` removed what it alone used."""
    return f"{SEALS}/{generation:05d}.dropped.json"


def grown_version(content: Mapping[str, Any]) -> int:
    """What the books of an archive's first generation say once it has grown: at least `GROWN_VERSION`, and never less than before.

    Args:
        content: Of its `run.json` or seal.
    """
    version = content.get("archive_version")
    return max(GROWN_VERSION, version) if type(version) is int else GROWN_VERSION


def generation_folder(generation: int, digest: str) -> str:
    """Folder of a generation, named after a SHA-256 of what it adds to what.

    >>> generation_folder(2, "0123456789abcdef")
    'generations/00002-0123456789ab'
    """
    return f"{GENERATIONS}/{generation:05d}-{digest[:12]}"
