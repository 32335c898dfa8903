"""What `run.json` says: the bytes of every version, and what is damage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.archive.run_record import RunRecord
from pipeline.errors import ManifestError

GOLDEN = Path(__file__).parents[2] / "golden" / "archive"


@pytest.mark.parametrize("version", [1, 2, 3])
def test_the_golden_record_is_read_and_written_to_the_byte(version: int) -> None:
    data = (GOLDEN / f"version-{version}" / "run.json").read_bytes()
    record = RunRecord.from_bytes(data, "run.json")
    assert record.archive_version == version
    assert len(record.shard_first) == record.shards
    assert record.to_bytes() == data
    assert record.budget.startswith("--")


def test_what_others_leave_out_or_add_does_not_matter_unless_it_is_needed() -> None:
    values = json.loads((GOLDEN / "version-2" / "run.json").read_bytes())
    for name in ("created_at", "created_by", "msinn"):
        del values[name]
    record = RunRecord.from_bytes(json.dumps({**values, "unknown": [1]}).encode(), "run.json")
    assert (record.created_at, record.images) == ("", values["images"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"archive_version": 8}, "archive version 8; this msinn reads versions 1 to 7"),
        ({"config": None}, "run.json is damaged: it has no config"),
        ({"shards": -1}, "run.json is damaged: shards is -1"),
        ({"images": "5"}, "run.json is damaged: images is no int"),
        ({"shard_first": [0]}, "run.json is damaged: shard_first"),
        ({"model_sha256": "x"}, "run.json is damaged: it is no SHA-256"),
        ({"scan": "../x"}, "run.json is damaged: scan is no name"),
    ],
)
def test_damage_is_named(change: dict[str, Any], message: str) -> None:
    values = json.loads((GOLDEN / "version-2" / "run.json").read_bytes())
    with pytest.raises(ManifestError, match=message):
        RunRecord.from_bytes(json.dumps(values | change).encode(), "run.json")
