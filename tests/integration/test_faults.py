"""Processes are killed for real; afterwards every image is in the archive exactly once and the budget still holds."""

from __future__ import annotations

import errno
import io
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from msinn_core.model_file import load_model
from pipeline.archive.archive import Archive
from pipeline.archive.commits import Commit
from pipeline.archive.row import Row
from pipeline.encode.coder import ImageCoder
from pipeline.encode.item import Item
from pipeline.encode.load import ItemLoader
from pipeline.encode.tasks import ImageTask, WorkConfig
from pipeline.encode.worker import ShardWorker
from pipeline.errors import ManifestError, StorageError
from pipeline.execute.base import Job, Trials
from pipeline.execute.placement import Placement
from pipeline.execute.ray import Ray
from pipeline.lab.tuned import stored_bytes
from pipeline.plan.config import Budget, CompressConfig
from pipeline.read import restore, verify
from pipeline.read.worker import RestoreWorker, Result
from pipeline.run.compress import Outcome, Run, make_worker
from pipeline.run.report import JsonReporter
from pipeline.store.local import LocalStore
from tests.conftest import make_photos
from tests.matrix import Matrix, commits, troubles, until_committed

POISON = "photo005.png"


def test_a_killed_driver_is_resumed_by_the_same_command(tmp_path: Path, matrix: Matrix) -> None:
    photos = make_photos(tmp_path / "in", 48, 96)
    destination = tmp_path / "dst"
    command = [sys.executable, "-m", "jobs.cli", "compress", str(photos), str(destination), "--bpp", "2.0", "--workers", "1"]
    first = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)
    until_committed(destination, 3, time.monotonic())
    assert first.poll() is None, "the run ended before it could be killed"
    # The driver and every Ray process it started, as when a machine goes away.
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    before = {path: path.read_bytes() for path in (destination / "commits").glob("*.json")}
    assert not (destination / "MANIFEST.json").exists()
    again = time.monotonic()
    second = subprocess.Popen([*command[:-2], "--workers", "2"], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    recovered = until_committed(destination, len(before) + 1, again)
    assert second.wait(200) == 0
    assert all(path.read_bytes() == data for path, data in before.items())
    sealed = Archive(str(destination)).seal()
    assert sealed is not None
    budget = 2.0 * 48 * 96 * 96 / 8
    assert 0.995 * budget < sealed["counted_bytes"] <= budget
    done = f"the open shard; {len(before)} of {commits(destination)} kept, to the byte"
    matrix.settle("SIGKILL of driver and workers", f"after {len(before)} commits, local", done, recovered, destination, photos)


RAY, PROCESSES = Placement(executor="ray"), Placement(executor="processes", workers=2)


class Fragile(ItemLoader):
    """The loader of a real worker whose process dies whenever it meets one image, as a decoder bug or an out-of-memory kill would have it."""

    def load(self, task: ImageTask, with_sidecars: bool, only_cost: bool = False) -> Item:
        if task.record.name == POISON and task.skip_reason is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().load(task, with_sidecars, only_cost)


def fragile_worker(models: Sequence[bytes], url: str, config: WorkConfig, threads: int = 1) -> ShardWorker:
    worker = make_worker(models, url, config)
    worker.loader.__class__ = Fragile
    return worker


@pytest.mark.usefixtures("ray_pool")
@pytest.mark.parametrize(("kind", "value", "placement"), [("bpp", 6.0, PROCESSES), ("q", 4.0, RAY), ("q", 4.0, PROCESSES)])
def test_an_image_that_kills_workers_is_isolated_kept_and_named(
    kind: str, value: float, placement: Placement, tmp_path: Path, matrix: Matrix
) -> None:
    photos = make_photos(tmp_path / "in", 8, 64)
    log = io.StringIO()
    outcome = Run(
        str(photos),
        str(tmp_path / "dst"),
        CompressConfig(budget=Budget(kind=kind, value=value)),
        JsonReporter(log),
        placement=placement,
        worker=fragile_worker,
    ).execute()
    assert outcome.sealed is not None
    rows = {row["name"]: row for row in Archive(str(tmp_path / "dst")).manifest().to_pylist()}
    assert len(rows) == 8
    assert (rows[POISON]["status"], rows[POISON]["error_code"], rows[POISON]["codec"]) == ("kept", "crashed_the_worker", "kept")
    assert (outcome.sealed["failed"], outcome.sealed["troubled"]) == (0, 1)
    assert sum(row["status"] == "coded" for row in rows.values()) >= 6
    assert f"{POISON} kills the worker" in log.getvalue()
    where = f"{placement.executor}, --{kind}"
    matrix.settle("poison image: SIGKILL of each worker that loads it", where, *troubles(log.getvalue()), tmp_path / "dst", photos)


class FragileRestorer(RestoreWorker):
    """A real one whose process dies of one image."""

    def restore(self, rows: list[Row]) -> Result:
        if any(row.name == POISON for row in rows):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().restore(rows)


@pytest.mark.usefixtures("ray_pool")
def test_an_image_that_kills_workers_does_not_end_a_restore(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos, archive = make_photos(tmp_path / "in", 8, 64), str(tmp_path / "dst")
    Run(str(photos), archive, CompressConfig(budget=Budget(kind="q", value=4.0)), JsonReporter(io.StringIO())).execute()
    monkeypatch.setattr("pipeline.read.restore.RestoreWorker", FragileRestorer)
    result = restore.restore(archive, str(tmp_path / "out"), placement=PROCESSES)
    assert len(result.problems) == 1
    assert result.problems[0].startswith(f"{POISON} kills the worker that decodes it")
    assert result.images == 7
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        {path.name for path in photos.iterdir()} - {POISON} | {"msinn-names.csv"}
    )


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
    pool = Ray(2, Mortal, str(tmp_path / "marker"))
    jobs = iter([Job(str(i), lambda held, i=i: held.work(i)) for i in range(5)])
    results: list[int] = []
    pool.run(lambda: next(jobs, None), results.append)
    pool.close()
    assert sorted(results) == [i * i for i in range(5)]


class Squeamish:
    """Dies of one number, each time. Parts without it wait until somebody did other work."""

    def __init__(self, marker: str) -> None:
        self.marker = Path(marker)

    def work(self, numbers: list[int]) -> list[int]:
        if 5 in numbers:
            os.kill(os.getpid(), signal.SIGKILL)
        if numbers[0] >= 100:
            self.marker.touch()
        deadline = time.monotonic() + 60
        while not self.marker.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        return numbers


@pytest.mark.usefixtures("ray_pool")
def test_the_others_work_on_while_what_kills_is_searched_for(tmp_path: Path) -> None:
    pool = Ray(2, Squeamish, str(tmp_path / "marker"))
    found: list[int | None] = []
    searching: list[bool] = []

    def of(key: str, numbers: list[int]) -> Job[Squeamish, list[int]]:
        return Job(key, lambda held: held.work(numbers))

    def split() -> Trials[Squeamish, list[int]]:
        part = list(range(8))
        searching.append(True)
        while len(part) > 1:
            survived = yield of("a part", part[: len(part) // 2])
            part = part[len(part) // 2 :] if survived else part[: len(part) // 2]
        found.extend(part)
        return of("the rest", [number for number in range(8) if number not in part])

    jobs = iter([replace(of("deadly", list(range(8))), split=split), *(of(str(i), [100 + i]) for i in range(9))])
    order: list[list[int]] = []
    given: list[str] = []

    def following() -> Job[Squeamish, list[int]] | None:
        """The deadly one; the others only once the search has begun."""
        if given and not searching:
            return None
        job = next(jobs, None)
        given.append("one")
        return job

    pool.run(following, order.append)
    pool.close()
    assert found == [5]
    rest = [0, 1, 2, 3, 4, 6, 7]
    assert sorted(order) == sorted([*([100 + i] for i in range(9)), rest])
    assert order.index(rest) > 0, "the others waited"


@pytest.mark.usefixtures("ray_pool")
def test_two_attempts_at_one_shard_make_one_commit(tmp_path: Path) -> None:
    """Both finish; the second sees the first's commit and leaves it."""
    photos = make_photos(tmp_path / "in", 4, 64)
    config = CompressConfig(budget=Budget(kind="q", value=3.0))
    Run(str(photos), str(tmp_path / "dst"), config, JsonReporter(io.StringIO())).execute()
    archive = Archive(str(tmp_path / "dst"))
    first = archive.commits()[0]
    from pipeline.archive.commits import commit

    second = Commit.from_bytes(first.to_bytes().replace(first.attempt.encode(), b"another"), "x")
    assert commit(archive.store, second) == first
    assert archive.commits() == [first]


def test_two_drivers_on_one_archive_make_one_archive(tmp_path: Path, matrix: Matrix) -> None:
    photos = make_photos(tmp_path / "in", 32, 96)
    command = [sys.executable, "-m", "jobs.cli", "compress", str(photos), str(tmp_path / "dst"), "--bpp", "2.0", "--workers", "1"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [driver.communicate(timeout=240)[1] for driver in both]
    assert [driver.returncode for driver in both] == [0, 0], said
    matrix.settle("two drivers at once", "one local archive", "shards that both had begun; one commit of each counts", 0.0, tmp_path / "dst", photos)
    sealed = Archive(str(tmp_path / "dst")).seal()
    assert sealed is not None
    assert sealed["counted_bytes"] <= sealed["budget_bytes"]


@pytest.mark.usefixtures("ray_pool")
@pytest.mark.parametrize(("kind", "value"), [("bpp", 3.0), ("psnr", 40.0)])
def test_a_lost_shard_is_found_and_made_again_to_the_byte(kind: str, value: float, tmp_path: Path, matrix: Matrix) -> None:
    photos, destination = make_photos(tmp_path / "in", 12, 64), tmp_path / "dst"
    (photos / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno picture")
    config = CompressConfig(budget=Budget(kind=kind, value=value))

    def run() -> Outcome:
        return Run(str(photos), str(destination), config, JsonReporter(io.StringIO())).execute()

    run()
    shards = sorted((destination / "shards").iterdir())
    before = {path: path.read_bytes() for path in shards}
    seal = (destination / "MANIFEST.json").read_bytes()
    shards[0].unlink()
    shards[-1].unlink()
    assert len(verify.fixity(str(destination)).problems) >= 2
    began = time.monotonic()
    outcome = run()
    took = time.monotonic() - began
    assert outcome.redone == 2
    assert {path: path.read_bytes() for path in sorted((destination / "shards").iterdir())} == before
    assert (destination / "MANIFEST.json").read_bytes() == seal
    matrix.settle(f"2 of {len(shards)} shard objects lost", f"sealed archive, --{kind}", "the 2, to the byte", took, destination, photos)


@pytest.mark.usefixtures("ray_pool")
def test_lost_shards_are_made_again_as_far_as_their_sources_go(tmp_path: Path) -> None:
    """What could not be read at first is left out again though it is back; a changed source is named, and holds up no other shard."""
    photos, destination, gone = make_photos(tmp_path / "in", 12, 64), tmp_path / "dst", tmp_path / "gone"
    gone.mkdir()
    (photos / "photo000.txt").write_text("a caption")
    (photos / "photo001.txt").write_text("another")
    log = io.StringIO()

    def run() -> Outcome:
        log.truncate(0)
        return Run(str(photos), str(destination), CompressConfig(budget=Budget(kind="q", value=4.0)), JsonReporter(log)).execute()

    away = ("photo001.txt", "photo005.png")
    listed = Run(str(photos), str(destination), CompressConfig(budget=Budget(kind="q", value=4.0)), JsonReporter(log))
    for name in away:
        (photos / name).rename(gone / name)
    assert listed.execute().sealed is not None
    for name in away:
        (gone / name).rename(photos / name)
    rows = {row["name"]: row for row in Archive(str(destination)).manifest().to_pylist()}
    assert {name: row["error_code"] for name, row in rows.items() if row["status"] == "failed"} == {
        "photo001.png": "sidecar_unreadable",
        "photo005.png": "source_unreadable",
    }
    shards = sorted((destination / "shards").iterdir())
    before = {path: path.read_bytes() for path in shards}
    assert len(shards) == 3

    def lose() -> None:
        for path in shards:
            path.unlink()

    lose()
    assert run().redone == 3
    assert {path: path.read_bytes() for path in shards} == before

    lose()
    changed = bytearray((photos / "photo002.png").read_bytes())
    changed[-20:-12] = b"\0" * 8
    (photos / "photo002.png").write_bytes(changed)
    next((destination / "manifest").glob("00001-*")).rename(gone / "manifest")
    with pytest.raises(ManifestError, match=r"cannot be made again.*2 shards in all"):
        run()
    assert "photo002.png changed since" in log.getvalue()
    assert "cannot be made again without its rates" in log.getvalue()
    assert [path.exists() for path in shards] == [False, False, True]


@pytest.mark.usefixtures("ray_pool")
def test_a_full_disk_is_a_sentence_and_the_run_resumes(tmp_path: Path, matrix: Matrix) -> None:
    """A real full file system where this machine lets us mount one; otherwise the kernel's own answer is given in its place."""
    photos, destination = make_photos(tmp_path / "in", 24, 96), tmp_path / "dst"
    destination.mkdir()
    config = CompressConfig(budget=Budget(kind="q", value=9.0))
    room = stored_bytes((load_model().data,)) // 1024 + 90
    mount = ["mount", "-t", "tmpfs", "-o", f"size={room}k", "tmpfs", str(destination)]
    mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0

    def run(worker: Callable[..., ShardWorker] = make_worker) -> Outcome:
        return Run(str(photos), str(destination), config, JsonReporter(io.StringIO()), placement=RAY, worker=worker).execute()

    try:
        if mounted:
            with pytest.raises(StorageError, match="No space left"):
                run()
            subprocess.run(["mount", "-o", "remount,size=64m", str(destination)], check=True)
        else:
            with pytest.raises(StorageError, match="No space left"):
                run(full_worker)
        before, again = commits(destination), time.monotonic()
        outcome = run()
        took = time.monotonic() - again
        assert outcome.sealed is not None
        place = "destination, a real 3 MB file system" if mounted else "destination, ENOSPC given by the test"
        matrix.settle("full disk", place, f"{outcome.redone} shards after room was made; {before} kept", took, destination, photos)
        assert not list(destination.rglob(".tmp-*"))
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(destination)], check=False)


class FullStore(LocalStore):
    """Local storage on which every third shard finds no room."""

    def publish(self, source: Path, name: str) -> None:
        if name.endswith(".tar") and int(name.split("/")[1][:5]) % 3 == 2:
            raise StorageError(f"cannot write {name}: {os.strerror(errno.ENOSPC)}")
        super().publish(source, name)


def full_worker(models: Sequence[bytes], url: str, config: WorkConfig, threads: int = 1) -> ShardWorker:
    worker = make_worker(models, url, config)
    worker.store.__class__ = FullStore
    return worker


def test_no_decision_rests_on_a_clock() -> None:
    """Machines whose clocks disagree cannot harm an archive: wall-clock time is written down and never compared."""
    from tests.test_architecture import ROOT

    for path in (ROOT / "pipeline").rglob("*.py"):
        for line in path.read_text().splitlines():
            if "datetime.now" in line:
                assert "isoformat" in line or "encoded_at" in line, (path, line)
            assert "time.time()" not in line, (path, line)


class Starved(ImageCoder):
    """The coder of a real worker that has next to no memory left while it codes one image."""

    def compress(self, item: Item, q: float, *, tentative: bool = False) -> None:
        if item.task.record.name != POISON:
            super().compress(item, q, tentative=tentative)
            return
        before = resource.getrlimit(resource.RLIMIT_AS)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**20, before[1]))
        try:
            super().compress(item, q, tentative=tentative)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)


def starved_worker(models: Sequence[bytes], url: str, config: WorkConfig, threads: int = 1) -> ShardWorker:
    worker = make_worker(models, url, config)
    worker.coder.coders[0].__class__ = Starved
    return worker


@pytest.mark.usefixtures("ray_pool")
def test_an_image_for_which_memory_does_not_suffice_is_kept_and_named(tmp_path: Path, matrix: Matrix) -> None:
    photos = make_photos(tmp_path / "in", 8, 64)
    with Image.open(photos / POISON) as small:
        small.resize((2400, 2400)).save(photos / POISON)
    config = CompressConfig(budget=Budget(kind="q", value=4.0))
    log = io.StringIO()
    outcome = Run(str(photos), str(tmp_path / "dst"), config, JsonReporter(log), placement=RAY, worker=starved_worker).execute()
    assert outcome.sealed is not None
    assert (outcome.sealed["failed"], outcome.sealed["troubled"]) == (0, 1)
    rows = {row["name"]: row for row in Archive(str(tmp_path / "dst")).manifest().to_pylist()}
    assert rows[POISON]["codec"] == "kept"
    assert "emory" in rows[POISON]["error"]
    assert all(row["codec"] == "msinn" for name, row in rows.items() if name != POISON)
    matrix.settle("out of memory (RLIMIT_AS)", "the network, on one image", *troubles(log.getvalue()), tmp_path / "dst", photos)


class Glutton(ImageCoder):
    """The coder of a real worker that takes 4 GiB for one image."""

    def compress(self, item: Item, q: float, *, tentative: bool = False) -> None:
        if item.task.record.name == POISON and item.coded:
            taken = np.ones(2**29)
            time.sleep(60)
            del taken
        super().compress(item, q, tentative=tentative)


def glutton_worker(models: Sequence[bytes], url: str, config: WorkConfig, threads: int = 1) -> ShardWorker:
    worker = make_worker(models, url, config)
    worker.coder.coders[0].__class__ = Glutton
    return worker


GLUTTONY = """
import sys
from pipeline.run import compress
from tests.integration.test_faults import glutton_worker
from jobs.cli import main
compress.make_worker = glutton_worker
sys.exit(main(sys.argv[1:]))
"""


def test_what_ray_kills_for_its_memory_is_isolated(tmp_path: Path, matrix: Matrix) -> None:
    """Ray's own monitor ends the worker before the machine is out of memory."""
    photos = make_photos(tmp_path / "in", 8, 64)
    lines = Path("/proc/meminfo").read_text().splitlines()
    total, free = (int(next(line for line in lines if line.startswith(name)).split()[1]) for name in ("MemTotal", "MemAvailable"))
    if free < 6 * 2**20:
        pytest.fail("this test needs 6 GiB of free memory")
    limit = {"RAY_memory_usage_threshold": f"{(total - free + 3 * 2**20) / total:.4f}", "RAY_memory_monitor_refresh_ms": "100"}
    command = [sys.executable, "-c", GLUTTONY, "compress", str(photos), str(tmp_path / "dst"), "--q", "4", "--workers", "1", "--executor", "ray"]
    root = Path(__file__).parents[2]
    run = subprocess.run(command, env={**os.environ, **limit}, cwd=root, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 3, run.stderr
    rows = {row["name"]: row for row in Archive(str(tmp_path / "dst")).manifest().to_pylist()}
    assert [name for name, row in rows.items() if row["status"] != "coded"] == [POISON]
    assert rows[POISON]["error_code"] == "crashed_the_worker"
    matrix.settle("out of memory (killed by Ray's monitor)", "a worker, on one image", *troubles(run.stderr), tmp_path / "dst", photos)
