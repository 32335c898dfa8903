"""What `run.json` says: of what and with what the archive is made. It is written once, before all else, and every resumed run is compared with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.archive.layout import ARCHIVE_VERSION, check, fault_of, json_bytes, json_object
from pipeline.errors import ManifestError
from pipeline.limits import MAX_SHARDS


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """The content of `run.json`.

    Attributes:
        source: As the user named it, without secrets.
        scan: Object name of the listing, and `scan_digest`, of names and sizes in it.
        config: The run's options, as `plan.config.CompressConfig` writes and reads them.
        model_sha256: Of the model that encodes, with its name.
        shards: How many there will be; `shard_first`: index of the first image of each.
        images: How many the source lists.
        created_at: Time; `created_by`: host and process; `msinn`: version. For people, and empty in what others wrote.
    """

    archive_version: int = ARCHIVE_VERSION
    source: str
    scan: str
    scan_digest: str
    config: dict[str, Any]
    model_sha256: str
    model_name: str
    shards: int
    images: int
    shard_first: list[int]
    created_at: str = ""
    created_by: str = ""
    msinn: str = ""

    @property
    def budget(self) -> str:
        """What was asked for, as an option: `--bpp 1.5`."""
        budget = self.config["budget"]
        return f"--{budget['kind']} {budget['value']:g}"

    def to_bytes(self) -> bytes:
        """JSON with sorted keys."""
        return json_bytes(dataclasses.asdict(self))

    @classmethod
    def from_bytes(cls, data: bytes, place: str) -> RunRecord:
        """Parse; everything that is read of it later is checked here.

        Args:
            data: JSON.
            place: Names it in messages.

        Raises:
            ManifestError: It is damaged, or of an archive version that this msinn does not read.
        """
        values = json_object(data, place)
        version = values.get("archive_version")
        if version not in (1, ARCHIVE_VERSION):
            raise ManifestError(f"archive version {str(version)[:40]}; this msinn reads versions 1 and {ARCHIVE_VERSION}: use a newer msinn")
        check(_fault(values), place)
        return cls(**{field.name: values[field.name] for field in dataclasses.fields(cls) if field.name in values})


def _fault(values: Mapping[str, Any]) -> str | None:
    config = values.get("config")
    budget = config.get("budget") if isinstance(config, dict) else None
    if not isinstance(config, dict) or not isinstance(budget, dict):
        return "it has no config"
    faults = [fault_of(values, name, str) for name in ("source", "scan", "model_sha256", "model_name", "scan_digest")]
    faults += [fault_of(values, "shards", int, 0, MAX_SHARDS), fault_of(values, "images", int)]
    faults += [fault_of(budget, "kind", str), fault_of(budget, "value", float, -1e300, 1e300)]
    firsts = values.get("shard_first")
    shards = values.get("shards")
    if not isinstance(firsts, list) or len(firsts) != shards or not all(type(first) is int and 0 <= first < 2**62 for first in firsts):
        faults.append("shard_first is no list of a number for each shard")
    return next((fault for fault in faults if fault is not None), None)
