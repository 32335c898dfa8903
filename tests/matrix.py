"""The fault matrix: what each fault cost, from the archive and the log that it left behind. Printed at the end of a test run."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.archive.archive import Archive
from pipeline.execute.placement import Placement
from pipeline.read import verify


@dataclass
class Matrix:
    """Rows of the table; see `settle`."""

    rows: list[tuple[str, str, str, float]] = field(default_factory=list)

    def settle(self, fault: str, place: str, redone: str, seconds: float, archive: Path | str, photos: Path) -> None:
        """Check that every photo is in the archive exactly once, every byte as it was committed, every picture as it was measured; add a row.

        Args:
            fault: What was done.
            place: Where and when.
            redone: What had to be done again.
            seconds: From the fault until what it had disturbed was committed.
            archive: URL.
            photos: Folder of all that must be in it.
        """
        there = Counter(Archive(str(archive)).manifest(["name"]).column("name").to_pylist())
        wanted = Counter(path.name for path in photos.iterdir())
        assert wanted - there == Counter(), "lost"
        assert there - wanted == Counter(), "twice"
        assert verify.fixity(str(archive)).problems == []
        # In this process: the test run's own Ray does not know where a test's S3 store is.
        assert verify.decode(str(archive), placement=Placement(executor="local")).problems == []
        self.rows.append((fault, place, redone, seconds))

    def table(self) -> str:
        """Markdown."""
        lines = ["| fault | where | redone | images lost / twice / bytes different | seconds to recover |", "| --- | --- | --- | --- | --- |"]
        lines += [f"| {fault} | {place} | {redone} | 0 / 0 / 0 | {seconds:.1f} |" for fault, place, redone, seconds in self.rows]
        return "\n".join(lines)


MATRIX = Matrix()


def events(log: str) -> list[dict[str, object]]:
    """Of a run's JSON lines."""
    return [json.loads(line) for line in log.splitlines() if line.startswith('{"event"')]


def troubles(log: str) -> tuple[str, float]:
    """What a run had to do again, and the longest time from a trouble until the shard in question was committed (or analysed)."""
    said = events(log)
    jobs, longest = Counter[str](), 0.0
    for i, event in enumerate(said):
        if event["event"] == "trouble":
            job = str(event["job"])
            jobs[job.rstrip("0123456789 ")] += 1
            kind, _, number = job.rpartition(" ")
            ends = (later for later in said[i:] if later["event"] == ("plan" if "analysis" in kind else "commit"))
            end = next((later for later in ends if "analysis" in kind or not number.isdigit() or later["shard"] == int(number)), said[-1])
            longest = max(longest, float(str(end["t"])) - float(str(event["t"])))
    return ", ".join(f"{count} x {job}" for job, count in jobs.items()) or "nothing", longest


def commits(archive: Path) -> int:
    """Shards that a local archive has committed."""
    folder = archive / "commits"
    return len(list(folder.glob("*.json"))) if folder.exists() else 0


def until_committed(archive: Path, count: int, started: float, limit_s: float = 240) -> float:
    """Wait until a local archive has `count` shards committed; seconds since `started` (of `time.monotonic`)."""
    while commits(archive) < count:
        assert time.monotonic() - started < limit_s, "waited too long"
        time.sleep(0.05)
    return time.monotonic() - started
