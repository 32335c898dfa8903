"""From S3 to S3 and back, as a user runs it, through a store that throttles, loses answers, hangs and is left behind by killed drivers."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import s3fs
from aiohttp import web

from infra.local.proxy import KILLS, Fault, FaultProxy
from pipeline.archive.archive import Archive
from tests.conftest import make_photos
from tests.matrix import Matrix

ROOT = Path(__file__).parents[2]
MINUTES = float(os.environ.get("MSINN_FAULT_MINUTES", "0.4"))
SEED = int(os.environ.get("MSINN_FAULT_SEED", "20261122"))


def msinn(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "jobs.cli", *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def test_an_archive_is_made_through_a_bad_network(
    s3: str, s3_proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, matrix: Matrix
) -> None:
    """And encrypted at rest, as the store's options ask: those of fsspec reach the workers too."""
    monkeypatch.setenv("FSSPEC_S3", '{"s3_additional_kwargs": {"ServerSideEncryption": "AES256"}}')
    photos = make_photos(tmp_path / "in", 24, 96)
    fs = s3fs.S3FileSystem()
    for path in photos.iterdir():
        fs.put_file(str(path), f"{s3}/in/{path.name}")
    s3_proxy.faults = [
        Fault("lost", method="PUT", path="commits/", times=2),
        Fault("delay", method="GET", path="photo003", times=1, seconds=20.0),  # longer than clients wait for an answer
        Fault("cut", method="GET", path="photo00", times=3),
        Fault("503", share=0.15),
        Fault("reset", share=0.03),
    ]
    written: list[tuple[str, str | None]] = []

    def watch(request: web.Request) -> None:
        if request.method in ("PUT", "POST"):
            written.append((request.path, request.headers.get("x-amz-server-side-encryption")))

    s3_proxy.watch = watch
    hits, began = s3_proxy.faults, time.monotonic()
    run = msinn("compress", f"{s3}/in", f"{s3}/dst", "--bpp", "2.5")
    out, err = run.communicate(timeout=400)
    assert run.returncode == 0, err
    assert [fault.happened for fault in s3_proxy.faults[:3]] == [2, 1, 3]
    assert s3_proxy.faults[3].happened > 10
    s3_proxy.faults = []
    sealed = Archive(f"{s3}/dst").seal()
    assert sealed is not None
    budget = 2.5 * 24 * 96 * 96 / 8
    assert 0.99 * budget < sealed["counted_bytes"] <= budget
    hit = ", ".join(f"{fault.happened} x {fault.kind}" for fault in hits)
    matrix.settle(f"a bad network: {hit}", f"{s3_proxy.requests} requests of a run, S3", "requests", time.monotonic() - began, f"{s3}/dst", photos)
    assert "testing" not in out + err  # the keys
    for path in fs.find(f"{s3}/dst"):
        assert b"testing" not in fs.cat_file(path), path
    assert len(written) > 20
    assert [path for path, encryption in written if encryption != "AES256"] == []
    restored = msinn("restore", f"{s3}/dst", str(tmp_path / "out"))
    _, err = restored.communicate(timeout=200)
    assert restored.returncode == 0, err
    assert sorted(path.name for path in (tmp_path / "out").rglob("*.png")) == sorted(path.name for path in photos.iterdir())


def test_a_store_that_never_comes_back_ends_the_run_with_a_sentence(s3: str, s3_proxy: FaultProxy, tmp_path: Path, matrix: Matrix) -> None:
    photos = make_photos(tmp_path / "in", 4, 64)
    s3_proxy.faults = [Fault("reset", method="PUT", path="shards/")]
    run = msinn("compress", str(photos), f"{s3}/dst", "--q", "3", "--workers", "1")
    # Long patience is right for a run of days; here it is enough to see that nothing is lost when somebody gives up while it tries again.
    deadline = time.monotonic() + 60
    while s3_proxy.faults[0].happened < 4 and run.poll() is None:
        assert time.monotonic() < deadline, "no shard was written"
        time.sleep(0.1)
    if run.poll() is None:
        os.killpg(run.pid, signal.SIGINT)
    _, err = run.communicate(timeout=60)
    assert run.returncode in (6, 130), err
    assert "Traceback" not in err
    s3_proxy.faults = []
    began = time.monotonic()
    again = msinn("compress", str(photos), f"{s3}/dst", "--q", "3", "--workers", "1")
    _, err = again.communicate(timeout=120)
    assert again.returncode == 0, err
    took, fault = time.monotonic() - began, "the store is gone for good, the run is given up"
    matrix.settle(fault, "shard writes, S3", "the open shards, once the store is back", took, f"{s3}/dst", photos)


@pytest.mark.timeout(60 * MINUTES + 900)
def test_drivers_killed_at_random_steps_lose_nothing(s3: str, s3_proxy: FaultProxy, tmp_path: Path, matrix: Matrix) -> None:
    """The whole run dies before or after a random write to the store, up to three times in a row; then it is resumed.

    Seeded. `MSINN_FAULT_MINUTES=60 MSINN_FAULT_SEED=1 pytest tests/integration/test_s3.py -k random` goes on for an hour.
    """
    photos = make_photos(tmp_path / "in", 12, 80)
    rng, until, rounds = random.Random(SEED), time.monotonic() + 60 * MINUTES, 0
    while not rounds or time.monotonic() < until:
        rounds += 1
        archive = f"{s3}/random{rounds}"
        command = ("compress", str(photos), archive, *rng.choice([("--bpp", "2.5"), ("--q", "4"), ("--psnr", "38")]), "--workers", "1")
        story = []
        for _ in range(rng.randint(1, 3) if MINUTES > 2 else 1):
            kind, step = rng.choice(KILLS), rng.randint(0, 22)
            story.append(f"{kind} write {step}")
            run = msinn(*command)

            def kill(run: subprocess.Popen[str] = run) -> None:
                os.killpg(run.pid, signal.SIGKILL)

            s3_proxy.faults = [Fault(kind, method="PUT|POST|DELETE", skip=step, times=1, action=kill), Fault("503", share=rng.choice([0, 0.1]))]
            run.communicate(timeout=200)
            assert run.returncode in (0, -signal.SIGKILL), story
        s3_proxy.faults = []
        began = time.monotonic()
        last = msinn(*command)
        _, err = last.communicate(timeout=200)
        took = time.monotonic() - began
        assert last.returncode == 0, (SEED, rounds, command, story, err)
        collected = msinn("gc", archive, "--delete")
        out, err = collected.communicate(timeout=60)
        assert collected.returncode == 0, (SEED, rounds, command, story, err)
        what = f"SIGKILL of driver and workers: {', '.join(story)}"
        matrix.settle(what, f"{' '.join(command[3:5])}, S3", "the open shards", took, archive, photos)
        print(f"round {rounds}: {' '.join(command[3:5])}, {', '.join(story)}: resumed, {out.splitlines()[-1]}, complete")
