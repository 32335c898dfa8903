"""Several Ray nodes on this machine, started as on any cluster: jobs are submitted, joined and refused; a node is killed."""

from __future__ import annotations

import json
import os
import re
import shutil
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
from pipeline.archive.archive import Archive
from tests.conftest import make_photos
from tests.matrix import Matrix, troubles, until_committed

ROOT = Path(__file__).parents[2]


@dataclass
class Nodes:
    """A cluster: the head's address, its dashboard, its port for Prometheus, and the processes by node."""

    address: str
    dashboard: str
    metrics: int
    processes: list[subprocess.Popen[bytes]]
    env: dict[str, str]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """Three nodes of one CPU each. Never `ray stop`: it would end every Ray on the machine."""
    folder = tmp_path_factory.mktemp("ray")
    # Without what a local Ray of this process has set.
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    env |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"  # as in an activated environment: `python` is ours
    gcs, dashboard, metrics, *agents = free_ports(6)
    ray = str(Path(sys.executable).with_name("ray"))
    common = ["--block", "--num-cpus=1", "--object-store-memory=100000000"]
    commands = [[ray, "start", "--head", "--node-ip-address=127.0.0.1", f"--port={gcs}", f"--dashboard-port={dashboard}", *common]]
    commands[0] += [f"--metrics-export-port={metrics}"]
    commands += [[ray, "start", f"--address=127.0.0.1:{gcs}", f"--node-ip-address=127.0.0.{i}", f"--labels=zone=z{i}", *common] for i in (2, 3)]
    processes: list[subprocess.Popen[bytes]] = []
    try:
        # One after the other: nodes of one machine share a session folder, and two that start at once take each other's ports.
        for i, command in enumerate(commands):
            port = f"--dashboard-agent-listen-port={agents[i]}"
            with open(folder / f"node{i}.log", "wb") as log:
                processes.append(subprocess.Popen([*command, port], env=env, stdout=log, stderr=log, start_new_session=True))
            _until(lambda: _alive(dashboard) == len(processes))
        yield Nodes(f"127.0.0.1:{gcs}", f"http://127.0.0.1:{dashboard}", metrics, processes, env)
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


def test_submitted_once_joined_by_the_same_and_refused_to_others(nodes: Nodes, tmp_path: Path) -> None:
    photos, archive = make_photos(tmp_path / "in", 40, 96), tmp_path / "dst"
    command = ["submit", "--address", nodes.dashboard, "--", "compress", str(photos), str(archive), "--bpp", "2.0"]
    first = msinn(nodes, *command)
    _until(lambda: (archive / "analyse").exists())
    # The others come while it works: its workers stand still meanwhile.
    held = _actors(nodes)
    for pid in held:
        os.kill(pid, signal.SIGSTOP)
    try:
        second, other = msinn(nodes, *command), msinn(nodes, *command[:-1], "1.5")
        _, refused = other.communicate(timeout=120)
        joined_err = ""
        assert second.stderr is not None
        while "joined the running job" not in joined_err and (line := second.stderr.readline()):
            joined_err += line
    finally:
        for pid in held:
            os.kill(pid, signal.SIGCONT)
    out, err = first.communicate(timeout=240)
    assert first.returncode == 0, err
    job = re.search(r"submitted (msinn-\w+-\w+) on", err)
    assert job is not None
    assert '"event": "commit"' in out
    assert "40 coded" in out
    joined_out, rest = second.communicate(timeout=120)
    joined_err += rest
    assert second.returncode == 0, joined_err
    assert f"joined the running job {job[1]}" in joined_err
    assert '"event": "begin"' in joined_out
    assert other.returncode == 2
    assert "is writing to" in refused
    assert json.loads((archive / "MANIFEST.json").read_text())["images"] == 40
    # Done is done: once more, under a new id, changes nothing.
    sealed = (archive / "MANIFEST.json").read_bytes()
    third = msinn(nodes, *command)
    _, err = third.communicate(timeout=120)
    assert third.returncode == 0, err
    assert "submitted" in err
    assert job[1] not in err
    assert (archive / "MANIFEST.json").read_bytes() == sealed


def test_a_cluster_without_compiled_kernels_is_refused_before_the_work(nodes: Nodes, tmp_path: Path) -> None:
    """What travels from a machine without a compiler hides the kernels of the cluster's own msinn: a hundred times the time."""
    for name in ("msinn_core", "pipeline", "jobs"):
        shutil.copytree(ROOT / name, tmp_path / "bare" / name, ignore=shutil.ignore_patterns("*.so", "__pycache__", "msinn-lite-float.safetensors"))
    photos, archive = make_photos(tmp_path / "in", 4, 64), tmp_path / "dst"
    command = ["submit", "--address", nodes.dashboard, "--", "compress", str(photos), str(archive), "--q", "4"]

    def submit(*arguments: str) -> tuple[int, str]:
        run = [sys.executable, "-m", "jobs.cli", *arguments]
        done = subprocess.run(run, env=nodes.env, cwd=tmp_path / "bare", capture_output=True, text=True, timeout=240, check=False)
        return done.returncode, done.stdout + done.stderr

    code, said = submit(*command)
    assert code == 6, said
    assert "of the cluster have no compiled kernels" in said
    assert "msinn_core.integer._int16 and msinn_core.entropy._rans" in said
    assert not archive.exists()
    code, said = submit("submit", "--installed", "--env", f"PYTHONPATH={ROOT}", *command[1:])
    assert code == 0, said
    assert "compiled kernels" not in said
    assert Archive(str(archive)).seal() is not None


def _node_of(pid: int) -> str:
    """Address of the Ray node that a process was started by."""
    while pid > 1:
        command = Path(f"/proc/{pid}/cmdline").read_text()
        if "raylet" in command and (found := re.search(r"--node_ip_address=([\d.]+)", command)):
            return found[1]
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return ""


def _actors(nodes: Nodes) -> list[int]:
    """Processes of living actors."""
    listed = json.load(urllib.request.urlopen(f"{nodes.dashboard}/api/v0/actors?detail=true", timeout=5))
    return [actor["pid"] for actor in listed["data"]["result"]["result"] if actor["state"] == "ALIVE"]


def test_workers_run_where_their_label_is_and_are_counted_for_prometheus(nodes: Nodes, tmp_path: Path) -> None:
    photos, archive = make_photos(tmp_path / "in", 40, 320), tmp_path / "dst"
    command = ["compress", str(photos), str(archive), "--q", "5", "--cluster", nodes.address, "--label", "zone=z3", "--memory-per-worker", "200Mi"]
    run = msinn(nodes, *command)
    until_committed(archive, 1, time.monotonic())
    assert {_node_of(pid) for pid in _actors(nodes)} == {"127.0.0.3"}
    status = msinn(nodes, "status", str(archive), "--json")  # from the store alone, while it runs
    out, _ = status.communicate(timeout=60)
    assert status.returncode == 0
    assert int(json.loads(out)["images"].partition(" of ")[0]) >= 1
    scraped: dict[str, float] = {}

    def counted() -> bool:
        page = urllib.request.urlopen(f"http://127.0.0.1:{nodes.metrics}/metrics", timeout=5).read().decode()
        for name, tags, value in re.findall(r"^ray_(msinn_\w+)\{(.*)\} ([\d.e+]+)$", page, re.MULTILINE):
            scraped[name + "".join(re.findall(r',?((?:status|kind)="\w+")', tags))] = float(value)
        return 'msinn_images_totalstatus="coded"' in scraped

    _until(counted)
    _, err = run.communicate(timeout=300)
    assert run.returncode == 0, err
    assert 0 < scraped['msinn_images_totalstatus="coded"'] <= 40
    assert scraped["msinn_shards_total"] >= 1
    assert 0 < scraped["msinn_stored_bytes_total"] < scraped["msinn_source_bytes_total"]
    nowhere = msinn(nodes, *command[:2], str(tmp_path / "other"), *command[3:-1], "900G")
    _, err = nowhere.communicate(timeout=60)
    assert nowhere.returncode == 6
    assert "has no memory to offer" in err


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


def test_a_preempted_node_is_no_fault_of_its_images(nodes: Nodes, tmp_path: Path, matrix: Matrix) -> None:
    """The notice comes, the node goes: its work is done elsewhere, and nobody is suspected of killing workers."""
    photos, archive = make_photos(tmp_path / "in", 60, 320), tmp_path / "dst"
    run = msinn(nodes, "compress", str(photos), str(archive), "--q", "5", "--cluster", nodes.address)
    until_committed(archive, 1, time.monotonic())
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
    matrix.settle("preemption: drain notice, then the kill", "one of 3 nodes, half way", *troubles(err), archive, photos)


def test_a_node_that_is_killed_costs_time_and_nothing_else(nodes: Nodes, tmp_path: Path, matrix: Matrix) -> None:
    """Its actors' successors find no room and must not hold up the run."""
    photos, archive = make_photos(tmp_path / "in", 72, 320), tmp_path / "dst"
    run = msinn(nodes, "compress", str(photos), str(archive), "--bpp", "2.0", "--cluster", nodes.address)
    until_committed(archive, 1, time.monotonic())
    _kill(nodes.processes[2])
    _, err = run.communicate(timeout=300)
    assert run.returncode == 0, err
    assert '"event": "trouble"' in err
    matrix.settle("SIGKILL of a Ray node", "one of 2 left, half way", *troubles(err), archive, photos)
    sealed = Archive(str(archive)).seal()
    assert sealed is not None
    budget = 2.0 * 72 * 320 * 320 / 8
    assert 0.995 * budget < sealed["counted_bytes"] <= budget
