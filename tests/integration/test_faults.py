"""Processes are killed for real; afterwards every image is in the archive exactly once and the budget still holds."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline import actors, verify
from pipeline.commit import Archive, Commit
from pipeline.compress import Run, make_worker
from pipeline.config import Budget, CompressConfig
from pipeline.report import JsonReporter
from pipeline.worker import ImageTask, ShardWorker, WorkConfig
from tests.conftest import make_photos

POISON = "photo005.png"


def test_a_killed_driver_is_resumed_by_the_same_command(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "in", 48, 96)
    destination = tmp_path / "dst"
    command = [sys.executable, "-m", "jobs.cli", "compress", str(photos), str(destination), "--bpp", "2.0", "--workers", "1"]
    first = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)
    commits = destination / "commits"
    deadline = time.monotonic() + 240
    while not (commits.exists() and len(list(commits.iterdir())) >= 3):
        assert first.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    # The driver and every Ray process it started, as when a machine goes away.
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    before = {path: path.read_bytes() for path in commits.glob("*.json")}
    assert not (destination / "MANIFEST.json").exists()
    assert subprocess.run([*command[:-2], "--workers", "2"], capture_output=True, check=False).returncode == 0
    assert all(path.read_bytes() == data for path, data in before.items())
    archive = Archive(str(destination))
    sealed = archive.seal()
    assert sealed is not None
    budget = 2.0 * 48 * 96 * 96 / 8
    assert 0.995 * budget < sealed["counted_bytes"] <= budget
    names = archive.manifest(["name"]).column("name").to_pylist()
    assert sorted(names) == sorted(path.name for path in photos.iterdir())
    assert verify.fixity(str(destination)).problems == []


class Fragile(ShardWorker):
    """A real worker whose process dies whenever it meets one image, as a decoder bug or an out-of-memory kill would have it."""

    def _load_one(self, task: ImageTask, with_sidecars: bool) -> Any:
        if task.record.name == POISON and task.skip_reason is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._load_one(task, with_sidecars)


def fragile_worker(model: bytes, url: str, config: WorkConfig) -> ShardWorker:
    sound = make_worker(model, url, config)
    return Fragile(sound.codec.model, sound.store, config)


@pytest.mark.usefixtures("ray_pool")
@pytest.mark.parametrize(("kind", "value"), [("bpp", 6.0), ("q", 4.0)])
def test_an_image_that_kills_workers_is_isolated_kept_and_named(kind: str, value: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = make_photos(tmp_path / "in", 8, 64)
    monkeypatch.setattr("pipeline.compress.make_worker", fragile_worker)
    log = io.StringIO()
    outcome = Run(str(photos), str(tmp_path / "dst"), CompressConfig(budget=Budget(kind=kind, value=value)), JsonReporter(log)).execute()
    assert outcome.sealed is not None
    rows = {row["name"]: row for row in Archive(str(tmp_path / "dst")).manifest().to_pylist()}
    assert len(rows) == 8
    assert (rows[POISON]["status"], rows[POISON]["error_code"], rows[POISON]["codec"]) == ("failed", "crashed_the_worker", "passthrough")
    assert sum(row["status"] == "failed" for row in rows.values()) == 1
    assert sum(row["status"] == "ok" for row in rows.values()) >= 6
    assert f"{POISON} kills the worker" in log.getvalue()
    assert verify.fixity(str(tmp_path / "dst")).problems == []


class Mortal:
    """Dies once, then works."""

    def __init__(self, marker: str) -> None:
        self.marker = Path(marker)

    def work(self, number: int) -> int:
        if number == 2 and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return number * number


@pytest.mark.usefixtures("ray_pool")
def test_one_death_costs_one_retry(tmp_path: Path) -> None:
    pool = actors.Pool(2, Mortal, str(tmp_path / "marker"))
    jobs = iter([actors.Job(str(i), "work", (i,)) for i in range(5)])
    results: dict[str, Any] = {}
    pool.run(lambda: next(jobs, None), lambda job, result: results.update({job.key: result}))
    pool.close()
    assert results == {str(i): i * i for i in range(5)}


@pytest.mark.usefixtures("ray_pool")
def test_two_attempts_at_one_shard_make_one_commit(tmp_path: Path) -> None:
    """Both finish; the second sees the first's commit and leaves it."""
    photos = make_photos(tmp_path / "in", 4, 64)
    config = CompressConfig(budget=Budget(kind="q", value=3.0))
    Run(str(photos), str(tmp_path / "dst"), config, JsonReporter(io.StringIO())).execute()
    archive = Archive(str(tmp_path / "dst"))
    first = archive.commits()[0]
    from pipeline.commit import commit

    second = Commit.from_bytes(first.to_bytes().replace(first.attempt.encode(), b"another"), "x")
    assert commit(archive.store, second) == first
    assert archive.commits() == [first]
