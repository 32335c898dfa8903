"""A tuning that is killed in every phase, or has no room to save: the same command goes on, and nothing is left half-written."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jobs.cli import main
from msinn_core.model_file import load_model
from pipeline.archive.archive import Archive
from pipeline.lab.comparison import Gain
from pipeline.lab.expected import Expected
from tests.conftest import make_photos
from tests.integration.test_several_models import texture
from tests.learning import SMALL_MODEL, learn_small
from tests.test_architecture import ROOT

MINUTES = "0.02"

# Runs commands that kill themselves at a place of a tuning, each in a fork of one process, for to import torch takes longer than such a tuning; what
# takes long and says nothing here is made small. Reads lines of `[place, file for stderr, command]`, writes one with the exit status for each.
# torch imports its compiler when it makes an optimiser: here that is done once.
SERVER = """
import json, os, signal, sys
from pathlib import Path
import torch._dynamo
import msinn_core.assembly as assembly
import msinn_core.training.data, msinn_core.training.loop
import pipeline.lab.tuned_run as tuned_run
import pipeline.lab.tuning as tuning
from jobs.cli import main
from pipeline.lab.comparison import Gain
from pipeline.lab.expected import Expected
from tests.learning import learn_small

learn_small(Path(sys.argv[1]), setattr)
tuning._CHECKPOINT_S, tuning.RATES, tuning._TABLE_IMAGES, tuning._CALIBRATION_IMAGES = 0.0, 2, 2, 2
tuning.gain = lambda general, own, **_: Gain(-20.0, -21.0, -19.0)
tuned_run.gain = lambda general, own, **_: Gain(-60.0, -61.0, -59.0)
tuned_run.expected = lambda *_, **__: Expected((3.0, 5.0), 1e9)

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def into(suffix):
    real = Path.replace
    return lambda self, target: die() if str(target).endswith(suffix) else real(self, target)

def prepare(where):
    if where == "training":
        save = tuning.Tuning._save
        tuning.Tuning._save = lambda self: (save(self), die())
    elif where == "second kind":
        save = tuning.Tuning._save
        tuning.Tuning._save = lambda self: (save(self), die() if self._config.name.endswith("-2") else None)
    elif where == "saving":
        Path.replace = into(".tuning")
    elif where == "packing":
        assembly.integer_model = die
    elif where == "comparing":
        real, measured = tuning.measure, []
        tuning.measure = lambda *args: die() if measured else measured.append(real(*args)) or measured[0]
    elif where == "writing":
        Path.replace = into(".safetensors")
    elif where == "report":
        tuned_run.json_bytes = die

for line in sys.stdin:
    where, said, command = json.loads(line)
    child = os.fork()
    if child == 0:
        descriptor = os.open(said, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        prepare(where)
        code = main(command)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""

Run = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Runs a command that is killed at a place; returns its exit status and what it said."""
    folder = tmp_path_factory.mktemp("server")
    said = folder / "log"
    with subprocess.Popen([sys.executable, "-c", SERVER, str(folder)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None

        def run(where: str, *command: str) -> tuple[int, str]:
            print(json.dumps([where, str(said), command]), file=server.stdin, flush=True)
            status = server.stdout.readline()  # type: ignore[union-attr]
            return int(status), said.read_text()

        yield run
        server.stdin.close()


def test_a_tuning_killed_in_every_phase_goes_on(run: Run, tmp_path: Path) -> None:
    photos, folder = make_photos(tmp_path / "in", 26, 96), tmp_path / "out"
    folder.mkdir()
    own = folder / "own.safetensors"
    command = ["tune", str(photos), "-o", str(own), "--minutes", MINUTES, "--threads", "1", "--model", SMALL_MODEL]
    for where, goes_on in (("training", False), ("saving", True), ("packing", True), ("comparing", True), ("writing", True)):
        status, said = run(where, *command)
        assert status == -signal.SIGKILL, (where, said)
        assert ("going on at step" in said) is goes_on, (where, said)
        assert not own.exists(), where
        assert own.with_suffix(".tuning").exists(), where
    status, said = run("nowhere", *command)
    assert status == 0, said
    model = load_model(str(own))
    assert model.name == "own"
    assert model.sha256 in said
    # What was trained before the first kill counts, and what was not yet renamed does not stay.
    assert "going on at step" in said
    assert [path.name for path in folder.iterdir()] == ["own.safetensors"]


def test_a_run_that_learns_killed_in_every_phase_goes_on(run: Run, tmp_path: Path) -> None:
    photos, archive = make_photos(tmp_path / "in", 26, 96, ".bmp"), tmp_path / "archive"
    command = ["compress", str(photos), str(archive), "--q", "5", "--tune", MINUTES, "--model", SMALL_MODEL]
    for where, goes_on in (("training", False), ("report", True)):
        status, said = run(where, *command)
        assert status == -signal.SIGKILL, (where, said)
        assert ("going on at step" in said) is goes_on, (where, said)
        assert not (archive / "run.json").exists(), where
    status, said = run("nowhere", *command)
    assert status == 0, said
    assert "archived with the dataset's own model" in said
    assert Archive(str(archive)).run.model_name == "golden-tuned"
    assert set(Archive(str(archive)).manifest(["codec"]).column("codec").to_pylist()) == {"msinn"}
    assert [path.name for path in (archive / "tune").iterdir()] == ["report.json"]
    assert main(["-q", "verify", str(archive), "--decode"]) == 0


def test_a_run_that_learns_two_kinds_killed_in_the_second_goes_on(run: Run, tmp_path: Path) -> None:
    images, archive = make_photos(tmp_path / "in", 40, 96, ".bmp"), tmp_path / "archive"
    for i in range(40):
        texture(i).save(images / f"texture{i}.bmp")
    command = ["compress", str(images), str(archive), "--q", "5", "--tune", MINUTES, "--models", "2", "--model", SMALL_MODEL]
    status, said = run("second kind", *command)
    assert status == -signal.SIGKILL, said
    assert not (archive / "run.json").exists()
    status, said = run("nowhere", *command)
    assert status == 0, said
    assert said.count("going on at step") == 3, "what all kinds learned together, and each by itself"
    assert len(Archive(str(archive)).run.models) == 2
    assert [path.name for path in (archive / "tune").iterdir()] == ["report.json"]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A tuning of a small network whose comparison is small and finds a gain."""
    learn_small(tmp_path_factory.mktemp("start"), monkeypatch.setattr)
    for name, value in (("_CHECKPOINT_S", 0.0), ("RATES", 2), ("_TABLE_IMAGES", 2), ("_CALIBRATION_IMAGES", 2)):
        monkeypatch.setattr(f"pipeline.lab.tuning.{name}", value)
    monkeypatch.setattr("pipeline.lab.tuning.gain", lambda general, own, **_: Gain(-20.0, -21.0, -19.0))
    # Of a dataset that is large enough for a model of its own.
    monkeypatch.setattr("pipeline.lab.tuned_run.expected", lambda *_, **__: Expected((3.0, 5.0), 1e9))


def full(name: str) -> object:
    """`os.fsync` on a disk that has no room for files of a name."""
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if name in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    return fsync


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="which file is synced is asked of /proc")
def test_a_full_disk_is_one_sentence_and_nothing_half_written(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, folder = make_photos(tmp_path / "in", 26, 96), tmp_path / "out"
    folder.mkdir()
    own = folder / "own.safetensors"
    command = ["-q", "tune", str(photos), "-o", str(own), "--minutes", MINUTES, "--model", SMALL_MODEL]
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full("own.tuning"))
        assert main(command) == 6
    said = capsys.readouterr().err
    assert said == f"msinn: cannot save the state of training to {own.with_suffix('.tuning')}: No space left on device\n"
    assert list(folder.iterdir()) == []
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full("own.safetensors"))
        assert main(command) == 6
    said = capsys.readouterr().err
    assert said == f"msinn: cannot write {own}: No space left on device\n"
    # What was trained stays, so that with room the same command ends at once.
    assert [path.name for path in folder.iterdir()] == ["own.tuning"]
    assert main(command) == 0
    assert load_model(str(own)).name == "own"
    assert [path.name for path in folder.iterdir()] == ["own.safetensors"]


def test_a_full_store_ends_a_run_that_learns_and_it_goes_on_with_room(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, archive = make_photos(tmp_path / "in", 26, 96, ".bmp"), tmp_path / "archive"
    command = ["-q", "compress", str(photos), str(archive), "--q", "5", "--tune", MINUTES, "--model", SMALL_MODEL]
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", lambda descriptor: (_ for _ in ()).throw(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
        assert main(command) == 6
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "No space left on device" in said
    assert [path for path in archive.rglob("*") if path.is_file()] == []
    assert main(command) == 0
    assert Archive(str(archive)).run.model_name == "golden-tuned"
