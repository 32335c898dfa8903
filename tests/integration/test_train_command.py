"""`msinn train` as a user runs it: killed, stopped, resumed, in parts, in two processes, and given nonsense."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jobs import cli
from msinn_core.checkpoint import read_state
from msinn_core.model_file import WEIGHTS, parse_model
from pipeline.lab.training_files import write_parts
from tests.learning import train_small
from tests.test_architecture import ROOT

PHOTOS = Path(__file__).parents[2] / "infra" / "demo" / "photos"

RUN = """
name = "tiny"
preset = "msinn-lite"
steps = 12
warmup_steps = 2
tile = 128
log_every = 1
validate_every = 6
valid_images = 1
[[stages]]
until = 1.0
crop = 32
batch = 2
"""


@pytest.fixture
def run(tmp_path: Path) -> list[str]:
    path = tmp_path / "tiny.toml"
    path.write_text(RUN)
    return ["train", str(path), "--data", str(PHOTOS), "--valid", str(PHOTOS), "--threads", "1"]


def rows(out: Path) -> list[dict[str, Any]]:
    """Log rows, without what a clock decides."""
    found = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in ("minutes", "steps_per_s")} for row in found]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of what surrounds a network, whatever its width."""
    train_small(monkeypatch.setattr)


def started(arguments: list[str]) -> subprocess.Popen[bytes]:
    """The command with a `small` network, in a process of its own."""
    script = "from jobs import cli; from tests.learning import train_small; train_small(setattr); cli.entry()"
    return subprocess.Popen([sys.executable, "-c", script, *arguments], stderr=subprocess.PIPE, cwd=ROOT)


def wait_for_step(out: Path, step: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if (out / "log.jsonl").exists() and (out / "checkpoint.safetensors").exists() and len((out / "log.jsonl").read_text().splitlines()) >= step:
            return
        time.sleep(0.05)
    raise AssertionError("the run made no steps")


@pytest.mark.usefixtures("small")
def test_a_killed_and_a_stopped_run_repeat_the_curve_of_one_that_ran_through(
    run: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    through, broken = tmp_path / "through", tmp_path / "broken"
    run += ["--set", "checkpoint_minutes=0.0"]
    assert cli.main([*run, "--out", str(through)]) == 0
    process = started([*run, "--out", str(broken)])
    wait_for_step(broken, 3)
    process.kill()
    process.communicate()
    process = started([*run, "--out", str(broken)])
    wait_for_step(broken, len(rows(broken)) + 2)
    process.send_signal(signal.SIGTERM)
    said = process.communicate()[1].decode()
    assert process.returncode in (130, 0)  # 0: it was done before the signal came
    assert "resumed at step" in said
    assert cli.main([*run, "--out", str(broken)]) == 0
    assert rows(broken) == rows(through)
    assert [row["step"] for row in rows(through) if "loss" in row] == list(range(1, 13))
    assert (broken / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert "min left" in capfd.readouterr().err


@pytest.mark.usefixtures("small")
def test_validation_sets_are_reported_apart(run: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = tmp_path / "plain"
    assert cli.main([*run, "--out", str(plain), "--steps", "6"]) == 0
    drawn = tmp_path / "drawn"
    drawn.mkdir()
    for i in range(2):
        Image.linear_gradient("L").convert("RGB").rotate(90 * i).save(drawn / f"{i}.png")
    at = run.index("--valid")
    run[at + 1 : at + 2] = [str(PHOTOS), f"photo={PHOTOS}", f"drawn={drawn}"]
    named = tmp_path / "named"
    assert cli.main([*run, "--out", str(named), "--steps", "6"]) == 0
    found = [row for row in rows(named) if "valid" in row]
    assert [(row["step"], row.get("set")) for row in found] == [(6, None), (6, "photo"), (6, "drawn")]
    (before,) = [row for row in rows(plain) if "valid" in row]
    assert found[0] == before  # a set without a name is reported as ever
    assert found[1]["valid"] == before["valid"]
    assert found[2]["valid"] != before["valid"]
    assert [row for row in rows(named) if "loss" in row] == [row for row in rows(plain) if "loss" in row]
    said = capsys.readouterr().err
    assert "step 6  valid  q1" in said
    assert "step 6  valid drawn  q1" in said


def test_its_model_archives_and_begins_another_run(run: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, model = tmp_path / "out", tmp_path / "tiny.safetensors"
    assert cli.main([*run, "--out", str(out), "--steps", "3", "--split-mib", "4"]) == 0
    parts = sorted(out.glob("model-*.safetensors.*-of-*"))
    assert len(parts) == 3
    assert b"".join(part.read_bytes() for part in parts) == (out / "model.safetensors").read_bytes()
    assert cli.main(["models", "import", str(out / "model.safetensors"), "-o", str(model), "--profile", "float", "--half"]) == 0
    assert parse_model(model.read_bytes()).name == "tiny"
    assert read_state(out / "checkpoint.safetensors")[0].keys() == read_state(out / "model.safetensors")[0].keys()
    (out / "model.safetensors").unlink()
    again = tmp_path / "again"
    start = ["--start", str(out / "model.safetensors")]
    assert cli.main([*run, *start, "--out", str(again), "--steps", "1"]) == 0
    parts[1].write_bytes(parts[1].read_bytes()[:-1])
    assert cli.main([*run, *start, "--out", str(tmp_path / "third"), "--steps", "1"]) == 2
    assert "not all there, or damaged" in capsys.readouterr().err


def test_new_parts_replace_the_old_ones(tmp_path: Path) -> None:
    write_parts(tmp_path / "m.safetensors", bytes(25), 10)
    parts = write_parts(tmp_path / "m.safetensors", bytes(15), 10)
    assert sorted(tmp_path.iterdir()) == parts
    assert [part.stat().st_size for part in parts] == [10, 5]


@pytest.mark.usefixtures("small")
def test_a_set_that_does_not_fit_streams_and_resumes_exactly(run: list[str], tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    rng = np.random.default_rng(1)
    for i in range(30):
        Image.fromarray(rng.integers(0, 255, (20, 20, 3), np.uint8)).resize((256, 256)).save(photos / f"{i:02d}.png")
    run[run.index("--data") + 1] = str(photos)
    run += ["--set", "resident_mib=1", "tile=256", "log_every=2", "stages=[{until=1.0, crop=32, batch=24}]"]
    assert cli.main([*run, "--out", str(tmp_path / "a"), "--steps", "4"]) == 0
    assert cli.main([*run, "--out", str(tmp_path / "b"), "--steps", "4", "--max-minutes", "0.0001"]) == 0
    assert not (tmp_path / "b" / "log.jsonl").exists()  # stopped within the first row's steps
    assert (tmp_path / "b" / "checkpoint.safetensors").exists()
    assert cli.main([*run, "--out", str(tmp_path / "b"), "--steps", "4"]) == 0
    assert [row["loss"] for row in rows(tmp_path / "b") if "loss" in row] == [row["loss"] for row in rows(tmp_path / "a") if "loss" in row]


def test_two_processes_share_a_run(run: list[str], tmp_path: Path) -> None:
    out = tmp_path / "two"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29571", "-m", "jobs.cli"]
    result = subprocess.run(
        [*command, *run, "--out", str(out), "--steps", "3"], capture_output=True, text=True, timeout=240, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("done at step 3") == 1
    assert [row["step"] for row in rows(out) if "loss" in row] == [1, 2, 3]
    alone = tmp_path / "alone"
    assert cli.main([*run, "--out", str(alone), "--steps", "3"]) == 0
    assert rows(alone)[0] != rows(out)[0]  # other crops: the sources are shared out


def test_profile_says_where_the_time_goes(run: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*run, "--out", str(tmp_path / "p"), "--profile", "2"]) == 0
    said = capsys.readouterr().out
    assert "steps/s; data " in said
    assert "outside the network" in said


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        (["--data", "NOWHERE"], 2, "does not exist"),
        (["--data", "EMPTY"], 2, "is empty"),
        (["--data", "TEXT"], 2, "not one colour image of at least 128 x 128"),
        (["--valid", "TEXT"], 2, "to validate on"),
        (["--set", "no_such=1"], 2, "KEY=VALUE"),
        (["--set", "tile=many"], 2, "tile is 'many'"),
        (["--steps", "0"], 2, "steps is 0"),
        (["--start", "NOWHERE"], 2, "cannot read"),
        (["--start", "TEXT/a.txt"], 2, "no checkpoint"),
        (["--device", "abacus"], 2, "--device abacus"),
    ],
)
def test_nonsense_is_one_sentence(
    change: list[str], code: int, says: str, run: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "TEXT").mkdir()
    (tmp_path / "TEXT" / "a.txt").write_text("no image")
    change = [str(tmp_path / word) if word[0].isupper() else word for word in change]
    assert cli.main([*run, "--out", str(tmp_path / "o"), *change]) == code
    said = capsys.readouterr().err
    assert says in said
    assert "Traceback" not in said


def test_a_file_that_is_no_checkpoint_is_not_overwritten(run: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "checkpoint.safetensors").write_bytes(b"not a checkpoint")
    assert cli.main([*run, "--out", str(tmp_path)]) == 2
    assert "not a readable safetensors file" in capsys.readouterr().err
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == b"not a checkpoint"


def test_the_gpu_script_trains_from_a_bare_copy_of_the_tree(tmp_path: Path) -> None:
    """The layout of a lent machine: the tree as it is, nothing installed of ours, PYTHONPATH alone, results in parts."""
    root = Path(__file__).parents[2]
    copy = tmp_path / "tree"
    for part in ("msinn_core", "pipeline", "jobs", "infra"):
        shutil.copytree(root / part, copy / part, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    environment = {**os.environ, "PYTHON": sys.executable, "OUT": str(tmp_path / "out"), "OMP_NUM_THREADS": "1"}
    script = str(copy / "infra" / "gpu" / "train.sh")
    valid = ["--valid", str(PHOTOS), f"other={PHOTOS}"]
    packing = [script, "pack", "--data", str(PHOTOS), *valid, "--start", str(WEIGHTS / "msinn-lite-float.safetensors"), "--wheels"]
    packed = subprocess.run(packing, env=environment, capture_output=True, text=True, timeout=120)
    assert packed.returncode == 0, packed.stderr
    sizes = re.search(r"(\d+) of (\d+) training images; ([\d.]+) MiB", packed.stdout)
    assert sizes is not None
    assert int(sizes[1]) > 0
    assert float(sizes[3]) < 64
    stages = "stages=[{until=1.0,crop=32,batch=2}]"
    command = [script, "run", "lite-gpu", "0.05", "--device", "cpu", "--set", stages, "precision=float32", "validate_every=1000", "log_every=1"]
    command += ["valid_images=1"]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert "outside the network" in ran.stdout
    parts = sorted((tmp_path / "out").glob("model-*.safetensors.*-of-*"))
    assert parts
    assert all(part.stat().st_size <= 15 << 20 for part in parts)
    log = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert sorted(row.get("set", "") for row in log if "valid" in row) == ["", "other"]  # once each, at the end of the schedule
