"""What a job on a cluster starts with: whether the machines have the compiled kernels, and code that need not be installed."""

from __future__ import annotations

import subprocess
import sys

import pytest

from msinn_core.integer import ops
from pipeline.execute import kernels, submission
from pipeline.execute.kernels import Machine, complaint
from tests.test_architecture import ROOT

FAST = Machine("a", "Linux x86_64, Python 3.11.7", ())
SLOW = Machine("b", "Linux aarch64, Python 3.12.1", ("msinn_core.integer._int16",))


def test_only_machines_without_kernels_are_complained_of() -> None:
    assert complaint([]) is None
    assert complaint([FAST, FAST]) is None
    said = complaint([FAST, SLOW, FAST])
    assert said is not None
    assert said.startswith("1 of 3 machines of the cluster have no compiled kernels (b, Linux aarch64, Python 3.12.1, cannot load msinn_core.")


def test_a_machine_says_which_kernels_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernels.this_machine().missing == ()
    monkeypatch.setattr(ops, "COMPILED", False)
    assert kernels.this_machine().missing == ("msinn_core.integer._int16",)


def test_a_job_runs_nothing_where_the_check_fails() -> None:
    """The shell's words, run by a shell: `false` stands for a Python that finds no kernels, `echo` for one that does."""
    for python, code, printed in (("false", 1, ""), ("echo", 0, f"-P -c {submission._CHECK}\n-P -m jobs.cli compress a b\n")):
        done = subprocess.run(submission._entrypoint(python, "compress a b", slow=False), shell=True, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (code, printed)
    assert submission._entrypoint("echo", "compress a b", slow=True) == "echo -P -m jobs.cli compress a b"


def test_code_that_travels_need_not_be_installed() -> None:
    """A cluster's image has the dependencies alone: nothing there knows a package called msinn."""
    script = """
import importlib.metadata as metadata
found = metadata.distribution
def distribution(name):
    if name == "msinn":
        raise metadata.PackageNotFoundError(name)
    return found(name)
metadata.distribution = distribution
from jobs.cli import main
main(["--version"])
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("msinn ")
