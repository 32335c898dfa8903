"""`msinn tune` and `msinn compress --tune`, as users call them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.cli import main
from msinn_core.model_file import load_model
from pipeline.archive.archive import Archive
from pipeline.lab.comparison import Gain
from tests.conftest import make_photos

MINUTES = "0.03"


def certain(percent: float) -> object:
    """A comparison that always finds this gain: what such few steps are worth is not the question here."""
    return lambda general, own, **_: Gain(percent, percent - 1, percent + 1)


def test_a_model_is_written_where_it_gains_and_archives_are_made_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, own = make_photos(tmp_path / "in", 26, 96), tmp_path / "own.safetensors"
    monkeypatch.setattr("pipeline.lab.tuning.gain", certain(-20.0))
    assert main(["-q", "tune", str(photos), "-o", str(own), "--minutes", MINUTES]) == 0
    said = capsys.readouterr().out
    assert "BD-rate -20.0 % (-21.0 to -19.0) against msinn-lite; pays for its" in said
    assert not own.with_suffix(".tuning").exists()
    model = load_model(str(own))
    assert model.sha256 in said
    assert main(["-q", "compress", str(photos), str(tmp_path / "dst"), "--q", "5", "--model", str(own)]) == 0
    assert Archive(str(tmp_path / "dst")).run.model_sha256 == model.sha256
    assert main(["-q", "verify", str(tmp_path / "dst"), "--decode"]) == 0


def test_a_model_that_is_not_certain_to_gain_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, own = make_photos(tmp_path / "in", 26, 96), tmp_path / "own.safetensors"
    monkeypatch.setattr("pipeline.lab.tuning.gain", certain(-0.5))
    assert main(["-q", "tune", str(photos), "-o", str(own), "--minutes", MINUTES]) == 3
    out, err = capsys.readouterr()
    assert "not certain to gain" in out
    assert "msinn-lite stays the better choice" in err
    assert not own.exists()
    assert main(["-q", "tune", str(photos), "-o", str(own), "--minutes", MINUTES, "--keep"]) == 0
    assert own.exists()


def test_a_run_learns_first_and_resumes_with_what_it_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos, dst = make_photos(tmp_path / "in", 26, 96), tmp_path / "dst"
    monkeypatch.setattr("pipeline.lab.tuning.gain", certain(-20.0))
    command = ["-q", "compress", str(photos), str(dst), "--bpp", "3", "--tune", MINUTES]
    # Stopped between learning and the run's beginning: nothing is learned twice.
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.run.compress.Run.execute", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        assert main(command) == 130
    assert not (dst / "run.json").exists()
    report = json.loads((dst / "tune" / "report.json").read_text())
    assert report["chosen"] in ("tables", "network")
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.lab.tuning.Tuning.train", lambda *_: pytest.fail("learned again"))
        assert main(command) == 0
        assert main(command) == 0
    archive = Archive(str(dst))
    assert archive.run.model_name == "msinn-lite-tuned"
    assert archive.run.model_sha256 != load_model().sha256
    assert not (dst / "tune" / "model.safetensors").exists()
    assert main(["-q", "restore", str(dst), str(tmp_path / "out")]) == 0
    # Without the option, too, the archive goes on with the model that it has.
    sorted((dst / "shards").iterdir())[0].unlink()
    assert main(command[:-2]) == 0
    assert main(["-q", "verify", str(dst), "--decode"]) == 0


def test_a_run_of_few_images_says_why_it_does_not_learn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = make_photos(tmp_path / "in", 5, 96)
    assert main(["compress", str(photos), str(tmp_path / "dst"), "--q", "5", "--tune", MINUTES]) == 0
    assert "5 images of the source can be learned from: a model of its own needs 24 or more: msinn-lite is used" in capsys.readouterr().err
    assert main(["plan", str(photos), str(tmp_path / "p"), "--q", "5", "--tune", "1"]) == 2
    assert main(["tune", str(photos), "-o", str(tmp_path / "x.safetensors")]) == 2
    assert main(["tune", str(photos), "-o", str(tmp_path / "x.bin")]) == 2
