"""Small runs need no Ray: the same archive, to the byte, from this process alone."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs.cli import main
from msinn_core import engines
from pipeline.archive.archive import Archive
from pipeline.errors import ManifestError, OutageError
from pipeline.execute import inprocess
from pipeline.execute.base import Job
from pipeline.execute.inprocess import InProcess
from pipeline.execute.placement import Placement
from pipeline.execute.ray import Ray
from pipeline.plan.config import Budget, CompressConfig
from pipeline.read import verify
from pipeline.read.restore import restore
from pipeline.run.compress import Run
from pipeline.run.report import JsonReporter
from tests.conftest import make_photos


def shards(archive: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (archive / "shards").iterdir()}


@pytest.mark.usefixtures("ray_pool")
@pytest.mark.parametrize(("kind", "value", "other"), [("bpp", 2.0, "processes"), ("psnr", 36.0, "ray"), ("q", 4.0, "processes")])
def test_all_executors_write_the_same_shards(tmp_path: Path, kind: str, value: float, other: str) -> None:
    photos = make_photos(tmp_path / "in", 12, 96)
    for name in (other, "local"):
        config = CompressConfig(budget=Budget(kind=kind, value=value))
        outcome = Run(str(photos), str(tmp_path / name), config, JsonReporter(io.StringIO()), placement=Placement(executor=name)).execute()
        assert outcome.sealed is not None
    if kind == "bpp":
        # Revisions of the plan depend on which shards are done when; both end within their budget.
        budgets = [Archive(str(tmp_path / name)).seal() for name in (other, "local")]
        assert all(seal is not None and seal["counted_bytes"] <= seal["budget_bytes"] for seal in budgets)
    else:
        assert shards(tmp_path / other) == shards(tmp_path / "local")
    if other == "ray":
        make_photos(tmp_path / "in", 14, 96)  # the first 12 again, to the byte
        for name in (other, "local"):
            config, placement = CompressConfig(budget=Budget(kind=kind, value=value)), Placement(executor=name)
            grown = Run(str(photos), str(tmp_path / name), config, JsonReporter(io.StringIO()), placement=placement, grow=True).execute().grown
            assert grown is not None
            assert (grown.added, grown.changed, grown.vanished) == (2, 0, 0)
        new = [{path.name: path.read_bytes() for path in (tmp_path / name).glob("generations/0*/shards/*")} for name in (other, "local")]
        assert new[0] == new[1]
        assert len(new[0]) == 1
    result = restore(str(tmp_path / "local"), str(tmp_path / "out"), placement=Placement(executor="local"))
    assert (result.images, result.problems) == (14 if other == "ray" else 12, [])
    assert verify.decode(str(tmp_path / "local"), placement=Placement(executor="local")).problems == []


def test_a_small_command_starts_no_ray(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "in", 5, 64)
    script = f"""
import sys
from jobs.cli import main
photos, dst, out = {str(photos)!r}, {str(tmp_path / "dst")!r}, {str(tmp_path / "out")!r}
for arguments in (["compress", photos, dst, "--bpp", "3"], ["verify", dst, "--decode"], ["restore", dst, out]):
    assert main(arguments) == 0, arguments
assert "ray" not in sys.modules
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert len(list((tmp_path / "out").glob("*.png"))) == 5


def test_a_killed_local_run_goes_on(tmp_path: Path) -> None:
    photos, dst = make_photos(tmp_path / "in", 40, 128), tmp_path / "dst"
    command = [sys.executable, "-m", "jobs.cli", "compress", str(photos), str(dst), "--q", "4", "--executor", "local"]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    until = time.monotonic() + 60
    while not (dst / "commits").exists() and time.monotonic() < until:
        time.sleep(0.02)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    before = {path.name: path.read_bytes() for path in (dst / "commits").iterdir()}
    assert subprocess.run(command, capture_output=True, timeout=120).returncode == 0
    assert before
    assert {name: (dst / "commits" / name).read_bytes() for name in before} == before
    result = restore(str(dst), str(tmp_path / "out"), placement=Placement(executor="local"))
    assert (result.images, result.problems) == (40, [])


def test_options_that_contradict_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for extra in (["--workers", "3"], ["--cluster", "auto"]):
        assert main(["compress", str(tmp_path), str(tmp_path / "d"), "--q", "3", "--executor", "local", *extra]) == 2
        assert "this process alone" in capsys.readouterr().err


class Flaky:
    def __init__(self) -> None:
        self.calls = 0

    remarks = ("a flaky machine",)

    def outage(self) -> int:
        self.calls += 1
        if self.calls < 3:
            raise OutageError("the store is away")
        return self.calls

    def damage(self) -> None:
        raise ManifestError("damaged")


class Listening:
    def __init__(self) -> None:
        self.troubles: list[tuple[str, str, str]] = []
        self.warnings: list[str] = []

    def trouble(self, kind: str, job: str, reason: str) -> None:
        self.troubles.append((kind, job, reason))

    def warn(self, message: str) -> None:
        self.warnings.append(message)


@pytest.mark.usefixtures("ray_pool")
def test_what_workers_remark_is_said_once() -> None:
    listener = Listening()
    pool = Ray(2, Flaky, listener=listener)
    jobs = iter([Job(str(i), lambda held: held.calls) for i in range(6)])
    pool.run(lambda: next(jobs, None), lambda result: None)
    pool.close()
    assert listener.warnings == ["a flaky machine"]


def test_outages_are_tried_again_and_damage_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inprocess, "back_off", lambda attempt: None)
    listener = Listening()
    results: list[object] = []
    pool = InProcess(Flaky, listener=listener)
    jobs = iter([Job("first", lambda held: held.outage()), None, Job("second", lambda held: held.damage())])
    pool.run(lambda: next(jobs), results.append)
    assert results == [3]
    assert listener.troubles == [("storage", "first", "the store is away")] * 2
    assert listener.warnings == ["a flaky machine"]
    with pytest.raises(ManifestError, match="damaged"):
        pool.run(lambda: next(jobs), lambda result: None)
    pool.close()


def test_missing_kernels_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.encode.worker.COMPILED", False)
    log = io.StringIO()
    photos = make_photos(tmp_path / "in", 1, 32)
    Run(
        str(photos),
        str(tmp_path / "dst"),
        CompressConfig(budget=Budget(kind="q", value=4.0)),
        JsonReporter(log),
        placement=Placement(executor="local"),
    ).execute()
    assert log.getvalue().count("has no compiled kernels") == 1


def test_a_gpu_that_was_asked_for_and_is_not_there_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "_on_gpu", lambda *_: None)
    log = io.StringIO()
    photos = make_photos(tmp_path / "in", 5, 64)
    config = CompressConfig(budget=Budget(kind="q", value=4.0), device="cuda")
    Run(str(photos), str(tmp_path / "dst"), config, JsonReporter(log), placement=Placement(executor="local")).execute()
    assert len(list((tmp_path / "dst" / "shards").iterdir())) == 2
    assert log.getvalue().count("a worker computes on its CPU (") == 1
