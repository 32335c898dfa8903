"""Workers that are processes of this machine: what one does when it dies, errs or hangs is its own end and nobody else's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from operator import methodcaller
from pathlib import Path
from typing import Any

import pytest

from jobs.cli import main
from pipeline.errors import MachineError, ManifestError, OutageError
from pipeline.execute import pool as pools
from pipeline.execute import processes
from pipeline.execute.base import Job, WorkersError
from pipeline.execute.isolate import isolate
from pipeline.execute.placement import Placement
from pipeline.execute.processes import Processes
from pipeline.execute.ray import Ray

pytestmark = pytest.mark.skipif(not processes.available(), reason="processes are forked on Linux alone")

PLACED: dict[str, Any] = {"jobs": 4, "small": False}


class UnsendableError(Exception):
    """Holds what cannot be pickled."""

    def __init__(self) -> None:
        super().__init__("lambda inside")
        self.inside = lambda: None


class Fake:
    """What a worker holds here."""

    remarks = ("a fake machine",)

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)

    def square(self, number: int) -> int:
        return number * number

    def pid(self) -> int:
        return os.getpid()

    def once(self, number: int) -> int:
        """Dies of it the first time."""
        marker = self._folder / f"died of {number}"
        if not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    def sum_of(self, numbers: list[int]) -> int:
        """Dies of a 5, each time."""
        if 5 in numbers:
            os.kill(os.getpid(), signal.SIGSEGV)
        return sum(numbers)

    def outage(self) -> None:
        raise OutageError("the store is away")

    def damage(self) -> None:
        raise ManifestError("a plain mistake")

    def bug(self) -> None:
        raise ZeroDivisionError("a bug")

    def unsendable(self) -> None:
        raise UnsendableError

    def wrong(self) -> int:
        """The first worker that does it computes wrongly."""
        with (self._folder / "wrong").open("a") as file:
            file.write("x")
            file.flush()
            first = file.tell() == 1
        if first:
            raise MachineError("computes wrongly")
        return 1

    def sleep(self) -> None:
        (self._folder / "asleep").write_text(str(os.getpid()))
        time.sleep(1000)


class Unborn:
    def __init__(self) -> None:
        raise RuntimeError("cannot begin")


class Stillborn:
    def __init__(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class Listening:
    def __init__(self) -> None:
        self.troubles: list[tuple[str, str, str]] = []
        self.warnings: list[str] = []

    def trouble(self, kind: str, job: str, reason: str) -> None:
        self.troubles.append((kind, job, reason))

    def warn(self, message: str) -> None:
        self.warnings.append(message)


def did(pool: Processes[Any], *jobs: Job[Any, Any], tick: Callable[[], None] | None = None) -> list[Any]:
    """Results of jobs, in the order in which they came; the pool is closed afterwards."""
    results: list[Any] = []
    following = iter(jobs)
    try:
        pool.run(lambda: next(following, None), results.append, tick)
    finally:
        pool.close()
    return results


def job(name: str, *args: Any) -> Job[Any, Any]:
    return Job(f"{name} {args}", methodcaller(name, *args))


def gone(number: int) -> bool:
    """Whether a process has ended, within a while."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.02)
    return False


def test_jobs_and_remarks(tmp_path: Path) -> None:
    listener = Listening()
    pool: Processes[Fake] = Processes(2, Fake, str(tmp_path), listener=listener)
    assert sorted(did(pool, *(job("square", i) for i in range(7)))) == [i * i for i in range(7)]
    assert listener.warnings == ["a fake machine"]
    assert listener.troubles == []


def test_one_death_costs_one_retry_and_says_how(tmp_path: Path) -> None:
    listener = Listening()
    pool: Processes[Fake] = Processes(1, Fake, str(tmp_path), listener=listener)
    assert sorted(did(pool, job("square", 2), job("once", 3), job("square", 4))) == [3, 4, 16]
    assert [(kind, key) for kind, key, _ in listener.troubles] == [("death", "once (3,)")]
    assert "ended by signal 9 (Killed)" in listener.troubles[0][2]


def test_what_kills_is_found_and_the_rest_is_done(tmp_path: Path) -> None:
    found: list[int | None] = []
    numbers = list(range(8))

    def split() -> Any:
        found.append((yield from isolate(numbers, lambda some: job("sum_of", list(some)))))
        return job("sum_of", [number for number in numbers if number not in found])

    deadly = job("sum_of", numbers)
    deadly.split = split
    assert sorted(did(Processes(2, Fake, str(tmp_path)), deadly, job("square", 9))) == [23, 81]
    assert found == [5]


def test_what_kills_and_cannot_be_divided_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(WorkersError, match=r"killed 2 workers and cannot be divided further"):
        did(Processes(1, Fake, str(tmp_path)), job("sum_of", [5]))


@pytest.mark.parametrize(
    ("name", "error", "says"),
    [
        ("damage", ManifestError, "^a plain mistake$"),
        ("bug", WorkersError, "^bug .* failed: a bug$"),
        ("unsendable", WorkersError, "UnsendableError: lambda inside"),
    ],
)
def test_errors_are_what_the_work_raised(tmp_path: Path, name: str, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        did(Processes(1, Fake, str(tmp_path)), job(name))


def test_an_outage_is_tried_again_until_it_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools.Pool, "_slow_down", lambda self: None)
    listener = Listening()
    with pytest.raises(OutageError, match="the store is away"):
        did(Processes(1, Fake, str(tmp_path), listener=listener), job("outage"))
    assert [kind for kind, _, _ in listener.troubles] == ["storage"] * 5


def test_a_machine_that_computes_wrongly_is_retired(tmp_path: Path) -> None:
    listener = Listening()
    assert did(Processes(2, Fake, str(tmp_path), listener=listener), job("wrong"), job("wrong")) == [1, 1]
    assert [kind for kind, _, _ in listener.troubles] == ["machine"]


@pytest.mark.parametrize(("factory", "says"), [(Unborn, "cannot load the model: cannot begin"), (Stillborn, "do not start any more: .* signal 9")])
def test_workers_that_do_not_start_are_a_sentence(factory: type, says: str) -> None:
    with pytest.raises(WorkersError, match=says):
        did(Processes(1, factory), job("square", 1))


def test_a_worker_that_hangs_is_killed(tmp_path: Path) -> None:
    listener = Listening()
    hung = job("sleep")
    hung.patience_s = 0.5
    with pytest.raises(WorkersError, match="killed 2 workers"):
        did(Processes(1, Fake, str(tmp_path), listener=listener), hung)
    assert [kind for kind, _, _ in listener.troubles] == ["stall", "stall"]
    assert gone(int((tmp_path / "asleep").read_text()))


def test_closing_ends_workers_that_work(tmp_path: Path) -> None:
    def tick() -> None:
        if (tmp_path / "asleep").exists() and (tmp_path / "asleep").read_text():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        did(Processes(1, Fake, str(tmp_path)), job("sleep"), tick=tick)
    assert gone(int((tmp_path / "asleep").read_text()))


def test_two_pools_at_once_end_one_without_the_other(tmp_path: Path) -> None:
    """The later one holds copies of what the earlier one is ended by."""
    first: Processes[Fake] = Processes(1, Fake, str(tmp_path))
    second: Processes[Fake] = Processes(1, Fake, str(tmp_path))
    assert did(first, job("square", 3)) == [9]
    assert did(second, job("square", 4)) == [16]


FORKING = """
import os, sys
from operator import methodcaller
import pipeline.run.compress  # and with it whatever threads its libraries start
from pipeline.execute import processes
from pipeline.execute.base import Job
from tests.unit.execute.test_processes import Fake

secret = object()
class Local(Fake):
    def same(self, number):
        return id(secret) == number
pools = [processes.Processes(2, Local, sys.argv[1]) for _ in range(2)]
print("this must be said once", end=" ")
for pool in pools:
    jobs = iter([Job("same", methodcaller("same", id(secret))), Job("once", methodcaller("once", 3))])
    found = []
    pool.run(lambda: next(jobs, None), found.append)  # whichever worker is first
    pool.close()
    print(*sorted(map(str, found)), end=" ")
"""


def test_a_process_of_one_thread_forks_and_its_workers_share_what_it_holds(tmp_path: Path) -> None:
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    script = FORKING.replace("from tests.unit.execute.test_processes import Fake", FAKE)
    ran = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=120, env=environment, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == "this must be said once 3 True 3 True "


FAKE = """
class Fake:
    def __init__(self, folder):
        self.marker = os.path.join(folder, "died")
    def once(self, number):
        if not os.path.exists(self.marker):
            open(self.marker, "w").close()
            os.kill(os.getpid(), 9)
        return number
"""

DYING = """
import os, sys, time
sys.path.insert(0, sys.argv[2])
from operator import methodcaller
from pipeline.execute.base import Job
from pipeline.execute.processes import Processes
from asleep import Sleeper

pool = Processes(1, Sleeper, sys.argv[1])
jobs = iter([Job("sleep", methodcaller("sleep"))])
pool.run(lambda: next(jobs, None), print)
"""


def test_no_worker_outlives_a_driver_that_is_killed(tmp_path: Path) -> None:
    (tmp_path / "asleep.py").write_text(
        "import os, time\nclass Sleeper:\n    def __init__(self, marker):\n        self.marker = marker\n"
        "    def sleep(self):\n        open(self.marker, 'w').write(str(os.getpid()))\n        time.sleep(1000)\n"
    )
    marker = tmp_path / "pid"
    driver = subprocess.Popen([sys.executable, "-c", DYING, str(marker), str(tmp_path)])
    until = time.monotonic() + 60
    while not (marker.exists() and marker.read_text()) and time.monotonic() < until:
        time.sleep(0.02)
    driver.kill()
    driver.wait()
    assert gone(int(marker.read_text()))


def test_who_does_the_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Ray what only Ray does; processes the rest, and small work too where they cost nothing."""
    from pipeline.execute.connection import Resources

    plain, several = Placement(), Placement(workers=3)
    monkeypatch.setattr(processes, "forks_at_once", lambda: False)
    assert (plain.in_process(small=True), plain.in_process(small=False), several.in_process(small=True)) == (True, False, False)
    assert plain.in_processes()
    assert several.in_processes()
    asking = (Placement(cluster="auto"), Placement(resources=Resources(gpus=1.0)), Placement(resources=Resources(memory_bytes=2**30)))
    assert not any(placement.in_processes() for placement in asking)
    monkeypatch.setattr(processes, "forks_at_once", lambda: True)
    assert not plain.in_process(small=True)
    assert Placement(resources=Resources(gpus=1.0)).in_process(small=True)
    monkeypatch.setattr(processes, "available", lambda: False)
    assert not plain.in_processes()
    opened, count = Placement(executor="processes", workers=9).open(Unborn, **PLACED)
    opened.close()
    assert (isinstance(opened, Processes), isinstance(opened, Ray), count) == (True, False, 4)


def test_options_that_contradict_processes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for extra in (["--cluster", "auto"], ["--memory-per-worker", "1G"], ["--device", "cuda"]):
        assert main(["compress", str(tmp_path), str(tmp_path / "d"), "--q", "3", "--executor", "processes", *extra]) == 2
        assert "this machine's CPU" in capsys.readouterr().err
