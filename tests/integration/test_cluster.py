"""Several Ray nodes on this machine, started as on any cluster: jobs are submitted, joined and refused; a node is killed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from infra.local.s3 import free_ports
from pipeline import verify
from pipeline.commit import Archive
from tests.conftest import make_photos

ROOT = Path(__file__).parents[2]


@dataclass
class Nodes:
    """A cluster: the head's address, its dashboard, and the processes by node."""

    address: str
    dashboard: str
    processes: list[subprocess.Popen[bytes]]
    env: dict[str, str]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """Three nodes of one CPU each. Never `ray stop`: it would end every Ray on the machine."""
    folder = tmp_path_factory.mktemp("ray")
    env = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    env.pop("RAY_ADDRESS", None)
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"  # as in an activated environment: `python` is ours
    gcs, dashboard, *agents = free_ports(5)
    ray = str(Path(sys.executable).with_name("ray"))
    common = ["--block", "--num-cpus=1", "--object-store-memory=100000000"]
    commands = [[ray, "start", "--head", "--node-ip-address=127.0.0.1", f"--port={gcs}", f"--dashboard-port={dashboard}", *common]]
    commands += [[ray, "start", f"--address=127.0.0.1:{gcs}", f"--node-ip-address=127.0.0.{i}", *common] for i in (2, 3)]
    processes: list[subprocess.Popen[bytes]] = []
    try:
        # One after the other: nodes of one machine share a session folder, and two that start at once take each other's ports.
        for i, command in enumerate(commands):
            port = f"--dashboard-agent-listen-port={agents[i]}"
            with open(folder / f"node{i}.log", "wb") as log:
                processes.append(subprocess.Popen([*command, port], env=env, stdout=log, stderr=log, start_new_session=True))
            _until(lambda: _alive(dashboard) == len(processes))
        yield Nodes(f"127.0.0.1:{gcs}", f"http://127.0.0.1:{dashboard}", processes, env)
    finally:
        for process in processes:
            _kill(process)


def _alive(dashboard: int) -> int:
    try:
        answer = json.load(urllib.request.urlopen(f"http://127.0.0.1:{dashboard}/api/v0/nodes", timeout=5))
    except (OSError, ValueError):
        return 0
    return sum(node["state"] == "ALIVE" for node in answer["data"]["result"]["result"])


def _until(condition: object, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.3)


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def msinn(nodes: Nodes, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "jobs.cli", *arguments]
    return subprocess.Popen(command, env=nodes.env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def complete(archive: Path, photos: Path) -> None:
    names = Archive(str(archive)).manifest(["name"]).column("name").to_pylist()
    assert sorted(names) == sorted(path.name for path in photos.iterdir())
    assert verify.fixity(str(archive)).problems == []


def test_submitted_once_joined_by_the_same_and_refused_to_others(nodes: Nodes, tmp_path: Path) -> None:
    photos, archive = make_photos(tmp_path / "in", 40, 96), tmp_path / "dst"
    command = ["submit", "--address", nodes.dashboard, "--", "compress", str(photos), str(archive), "--bpp", "2.0"]
    first = msinn(nodes, *command)
    _until(lambda: (archive / "run.json").exists())
    second, other = msinn(nodes, *command), msinn(nodes, *command[:-1], "1.5")
    out, err = first.communicate(timeout=240)
    assert first.returncode == 0, err
    job = re.search(r"submitted (msinn-\w+-\w+) on", err)
    assert job is not None
    assert '"event": "commit"' in out
    assert "40 coded" in out
    joined_out, joined_err = second.communicate(timeout=120)
    assert second.returncode == 0, joined_err
    assert f"joined the running job {job[1]}" in joined_err
    assert '"event": "begin"' in joined_out
    _, refused = other.communicate(timeout=120)
    assert other.returncode == 2
    assert "is writing to" in refused
    complete(archive, photos)
    # Done is done: once more, under a new id, changes nothing.
    sealed = (archive / "MANIFEST.json").read_bytes()
    third = msinn(nodes, *command)
    _, err = third.communicate(timeout=120)
    assert third.returncode == 0, err
    assert "submitted" in err
    assert job[1] not in err
    assert (archive / "MANIFEST.json").read_bytes() == sealed


def test_exit_codes_come_back_from_the_cluster(nodes: Nodes, tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "in", 4, 64)
    job = msinn(nodes, "submit", "--address", nodes.dashboard, "--", "compress", str(photos), str(tmp_path / "dst"), "--bytes", "100")
    out, _ = job.communicate(timeout=180)
    assert job.returncode == 4
    assert "least possible" in out
    relative = msinn(nodes, "submit", "--address", nodes.dashboard, "--", "compress", "in", "dst", "--bpp", "1")
    assert relative.wait(60) == 2
    nobody = msinn(nodes, "submit", "--address", "http://127.0.0.1:9", "--", "compress", str(photos), str(tmp_path / "x"), "--bpp", "1")
    _, err = nobody.communicate(timeout=60)
    assert nobody.returncode == 6
    assert "no Ray job server at" in err


def test_a_preempted_node_is_no_fault_of_its_images(nodes: Nodes, tmp_path: Path) -> None:
    """The notice comes, the node goes: its work is done elsewhere, and nobody is suspected of killing workers."""
    photos, archive = make_photos(tmp_path / "in", 96, 320), tmp_path / "dst"
    run = msinn(nodes, "compress", str(photos), str(archive), "--q", "5", "--cluster", nodes.address)
    commits = archive / "commits"
    _until(lambda: commits.exists() and len(list(commits.glob("*.json"))) >= 1, 180)
    listed = json.load(urllib.request.urlopen(f"{nodes.dashboard}/api/v0/nodes", timeout=5))["data"]["result"]["result"]
    node = next(node["node_id"] for node in listed if node["node_ip"] == "127.0.0.2")
    command = [Path(sys.executable).with_name("ray"), "drain-node", f"--address={nodes.address}", f"--node-id={node}"]
    command += ["--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot", "--deadline-remaining-seconds=3"]
    drained = subprocess.run(command, env=nodes.env, capture_output=True, text=True, timeout=60, check=False)
    assert drained.returncode == 0, drained.stderr
    time.sleep(3)
    _kill(nodes.processes[1])  # as the cloud does
    _, err = run.communicate(timeout=300)
    assert run.returncode == 0, err
    assert "kills the worker" not in err
    complete(archive, photos)


def test_a_node_that_is_killed_costs_time_and_nothing_else(nodes: Nodes, tmp_path: Path) -> None:
    """Its actors' successors find no room and must not hold up the run."""
    photos, archive = make_photos(tmp_path / "in", 128, 320), tmp_path / "dst"
    run = msinn(nodes, "compress", str(photos), str(archive), "--bpp", "2.0", "--cluster", nodes.address)
    commits = archive / "commits"
    _until(lambda: commits.exists() and len(list(commits.glob("*.json"))) >= 1, 180)
    _kill(nodes.processes[2])
    _, err = run.communicate(timeout=300)
    assert run.returncode == 0, err
    assert '"event": "trouble"' in err
    complete(archive, photos)
    sealed = Archive(str(archive)).seal()
    assert sealed is not None
    budget = 2.0 * 128 * 320 * 320 / 8
    assert 0.995 * budget < sealed["counted_bytes"] <= budget
