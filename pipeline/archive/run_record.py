"""What `run.json` says: of what and with what the archive is made. It is written once, before all else, and every resumed run is compared with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.archive.layout import ARCHIVE_VERSION, MAX_GENERATION, READ_VERSIONS, check, fault_of, json_bytes, json_object
from pipeline.errors import ManifestError
from pipeline.limits import MAX_SHARDS

MAX_FURTHER_MODELS = 15
"""Each is held in memory by whoever reads."""


class UnknownVersionError(ManifestError):
    """A newer msinn made the archive: nothing of it is damaged, and nothing of it is read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """The content of `run.json`.

    Attributes:
        source: As the user named it, without secrets.
        scan: Object name of the listing, and `scan_digest`, of names and sizes in it.
        config: The run's options, as `plan.config.CompressConfig` writes and reads them.
        model_sha256: Of the model that encodes, with its name. `further_models`, where images of several kinds have models of their own: the others.
            Of a run that needs none, the one that was named: it is not stored.
        shards: How many there will be; `shard_first`: index of the first image of each.
        images: How many the source lists.
        generation: 1, or that of the growth which it is of. Then `first_key` is the number of its first image among those of all generations,
            `parent_sha256` of the seal that it grows from, and `removed` the object name of its list of images that it no longer has.
        listed_us: When the source began to be listed, in microseconds since 1970; 0 where that is not known. What was modified just before may have
            been modified again in the same tick of its clock.
        created_at: Time; `created_by`: host and process; `msinn`: version. For people, and empty in what others wrote.
    """

    archive_version: int = ARCHIVE_VERSION
    source: str
    scan: str
    scan_digest: str
    config: dict[str, Any]
    model_sha256: str
    model_name: str
    further_models: list[str] = dataclasses.field(default_factory=list)
    shards: int
    images: int
    shard_first: list[int]
    generation: int = 1
    first_key: int = 0
    parent_sha256: str = ""
    removed: str = ""
    listed_us: int = 0
    created_at: str = ""
    created_by: str = ""
    msinn: str = ""

    @property
    def needs_model(self) -> bool:
        """See `needs_model`."""
        return needs_model(self.config)

    @property
    def models(self) -> list[str]:
        """SHA-256 of every model that encodes; none where nothing is coded."""
        return [self.model_sha256, *self.further_models] if self.needs_model else []

    @property
    def model(self) -> str:
        """Name and beginning of the SHA-256, for people."""
        if not self.needs_model:
            return "none: every image lies exactly"
        others = f" and {len(self.further_models)} more" if self.further_models else ""
        return f"{self.model_name} {self.model_sha256[:12]}{others}"

    @property
    def budget(self) -> str:
        """What was asked for, as an option: `--bpp 1.5`."""
        budget = self.config["budget"]
        if budget["kind"] == "slope":
            return f"the price of the generation before ({budget['value']:.4g} of error a byte)"
        return "--lossless" if budget["kind"] == "lossless" else f"--{budget['kind'].replace('_', '-')} {budget['value']:g}"

    def to_bytes(self) -> bytes:
        """JSON with sorted keys, of `to_json`."""
        return json_bytes(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """No word of further models where there are none, nor of generations in the first, as before there could be any."""
        values = dataclasses.asdict(self)
        if not self.further_models:
            del values["further_models"]
        if not self.listed_us:
            del values["listed_us"]
        if self.generation == 1:
            del values["generation"], values["first_key"], values["parent_sha256"], values["removed"]
        return values

    @classmethod
    def from_bytes(cls, data: bytes, place: str) -> RunRecord:
        """Parse; everything that is read of it later is checked here.

        Args:
            data: JSON.
            place: Names it in messages.

        Raises:
            ManifestError: It is damaged, or of an archive version that this msinn does not read.
        """
        return cls.from_json(json_object(data, place), place)

    @classmethod
    def from_json(cls, values: Mapping[str, Any], place: str) -> RunRecord:
        """As `from_bytes`, of what `to_json` gave."""
        version = values.get("archive_version")
        if version not in READ_VERSIONS or type(version) is not int:
            known = f"versions 1 to {READ_VERSIONS[-1]}"
            fault = UnknownVersionError if type(version) is int and version > READ_VERSIONS[-1] else ManifestError
            raise fault(f"archive version {str(version)[:40]}; this msinn reads {known}: use a newer msinn")
        check(_fault(values), place)
        return cls(**{field.name: values[field.name] for field in dataclasses.fields(cls) if field.name in values})


def needs_model(config: Mapping[str, Any]) -> bool:
    """Whether a run of these options may code some image by a network. Where all are to lie exactly none is: nobody would ever decode anything with
    the 3 MB of its weights, and they are not stored."""
    all_exact = config.get("min_psnr_db") == "inf" and config.get("preferences_sha256") is None
    return bool(config["budget"]["kind"] != "lossless" and not all_exact)


def _fault(values: Mapping[str, Any]) -> str | None:
    config = values.get("config")
    budget = config.get("budget") if isinstance(config, dict) else None
    if not isinstance(config, dict) or not isinstance(budget, dict):
        return "it has no config"
    faults = [fault_of(values, name, str) for name in ("source", "scan", "model_sha256", "model_name", "scan_digest")]
    faults += [fault_of(values, "shards", int, 0, MAX_SHARDS), fault_of(values, "images", int)]
    faults += [fault_of(budget, "kind", str), fault_of(budget, "value", float, -1e300, 1e300)]
    further = values.get("further_models", [])
    if not isinstance(further, list) or len(further) > MAX_FURTHER_MODELS or not all(isinstance(digest, str) for digest in further):
        faults.append("further_models is no list of a few digests")
    if "generation" in values:
        faults += [fault_of(values, "generation", int, 2, MAX_GENERATION), fault_of(values, "first_key", int)]
        faults += [fault_of(values, name, str) for name in ("parent_sha256", "removed")]
    if "listed_us" in values:
        faults.append(fault_of(values, "listed_us", int))
    firsts = values.get("shard_first")
    shards = values.get("shards")
    if not isinstance(firsts, list) or len(firsts) != shards or not all(type(first) is int and 0 <= first < 2**62 for first in firsts):
        faults.append("shard_first is no list of a number for each shard")
    return next((fault for fault in faults if fault is not None), None)
