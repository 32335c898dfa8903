"""Names of an archive's objects, and the rules of what its books may say.

`run.json` says what was asked, `commits/<id>.json` what is there, `MANIFEST.json` that it is all. Anybody may have written them, so each value is
checked.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from typing import Any

from pipeline.errors import ManifestError

ARCHIVE_VERSION = 2
"""Version 1 called kept files `passthrough` and counted those that looked wrong as failed."""

RUN, SEAL = "run.json", "MANIFEST.json"
STILL = "`msinn restore` still gives back every image that is there"
COMMIT_NAME = re.compile(r"commits/(\d{5}|[1-9]\d{5,8})\.json")
_SHARD_NAME = re.compile(r"shards/\d{5,9}-[0-9a-f]{12}\.tar")
_NAMES = {
    "shard": _SHARD_NAME,
    "manifest": re.compile(r"manifest/\d{5,9}-[0-9a-f]{12}\.parquet"),
    "scan": re.compile(r"scan/\d{5,9}-[0-9a-f]{12}\.parquet"),
}
SHA256 = re.compile(r"[0-9a-f]{64}")


def is_shard_name(name: Any) -> bool:
    """Whether this names a shard of the archive, and nothing else anywhere."""
    return isinstance(name, str) and _SHARD_NAME.fullmatch(name) is not None


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
