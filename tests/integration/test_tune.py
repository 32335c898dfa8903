"""`msinn tune` and `msinn compress --tune`, as users call them."""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path

import pytest

from jobs.arguments import minutes
from jobs.cli import main
from msinn_core.model_file import load_model, parse_model
from pipeline.archive.archive import Archive
from pipeline.archive.models import publish_models
from pipeline.execute.placement import Placement
from pipeline.lab.comparison import Gain
from pipeline.lab.expected import Expected
from pipeline.lab.learning import learned
from pipeline.lab.sample import candidates
from pipeline.lab.tuned_run import Learning, own_models
from pipeline.lab.tuning import TuneConfig, Tuning
from pipeline.plan.config import Budget
from pipeline.run.report import JsonReporter
from pipeline.sources import scan
from pipeline.store.base import open_store
from tests.conftest import make_photos
from tests.integration.test_several_models import texture
from tests.learning import SMALL_MODEL, learn_small

MINUTES = "0.03"


@pytest.fixture(autouse=True)
def _small_comparisons(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two rates and few images: what such few steps are worth is not the question here."""
    for name in ("tuning.RATES", "tuning._TABLE_IMAGES", "tuning._CALIBRATION_IMAGES", "fit.RATES"):
        monkeypatch.setattr(f"pipeline.lab.{name}", 2)


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
    learn_small(tmp_path, monkeypatch.setattr)
    monkeypatch.setattr("pipeline.lab.tuning.gain", certain(-0.5))
    command = ["-q", "tune", str(photos), "-o", str(own), "--minutes", MINUTES, "--model", SMALL_MODEL]
    assert main(command) == 3
    out, err = capsys.readouterr()
    assert "not certain to gain" in out
    assert "golden stays the better choice" in err
    assert not own.exists()
    assert main([*command, "--keep"]) == 0
    assert own.exists()


def test_a_run_learns_first_and_resumes_with_what_it_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos, dst = make_photos(tmp_path / "in", 26, 96), tmp_path / "dst"
    monkeypatch.setattr("pipeline.lab.tuning.gain", certain(-20.0))
    monkeypatch.setattr("pipeline.lab.tuned_run.expected", lambda *_, **__: Expected((3.0, 5.0), 1e9))  # large enough for a model of its own
    command = ["-q", "compress", str(photos), str(dst), "--bpp", "3", "--tune", MINUTES]
    # Stopped between learning and the run's beginning: nothing is learned twice.
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.run.compress.Run.execute", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        assert main(command) == 130
    assert not (dst / "run.json").exists()
    report = json.loads((dst / "tune" / "report.json").read_text())
    assert report["chosen"] in ("tables", "network")
    assert len(report["models"]) == 1
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.lab.tuning.Tuning.train", lambda *_: pytest.fail("learned again"))
        assert main(command) == 0
        assert main(command) == 0
    archive = Archive(str(dst))
    assert archive.run.model_name == "msinn-lite-tuned"
    assert archive.run.model_sha256 != load_model().sha256
    assert [path.name for path in (dst / "tune").iterdir()] == ["report.json"]
    assert main(["-q", "restore", str(dst), str(tmp_path / "out")]) == 0
    # Without the option, too, the archive goes on with the model that it has.
    sorted((dst / "shards").iterdir())[0].unlink()
    assert main(command[:-2]) == 0
    assert main(["-q", "verify", str(dst), "--decode"]) == 0


def test_a_run_of_few_images_says_why_it_does_not_learn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = make_photos(tmp_path / "in", 5, 96)
    assert main(["compress", str(photos), str(tmp_path / "dst"), "--q", "5", "--tune", MINUTES]) == 0
    assert "5 images of the source can be learned from: a model of its own needs 24 or more: msinn-lite is used" in capsys.readouterr().err
    assert main(["compress", str(photos), str(tmp_path / "p"), "--q", "5", "--models", "2"]) == 2
    assert main(["tune", str(photos), "-o", str(tmp_path / "x.safetensors")]) == 2
    assert main(["tune", str(photos), "-o", str(tmp_path / "x.bin")]) == 2


def test_images_of_two_kinds_have_two_models_and_the_archive_says_whether_they_fit_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Of each kind more than the 24 that a kind has at least, when a fifth of all are held out.
    images, dst = make_photos(tmp_path / "in", 40, 96, ".bmp"), tmp_path / "dst"
    for i in range(40):
        texture(i).save(images / f"texture{i}.bmp")
    learn_small(tmp_path, monkeypatch.setattr)
    general = load_model(SMALL_MODEL)
    monkeypatch.setattr("pipeline.lab.fit.shipped_models", lambda: {"golden": general.sha256})
    monkeypatch.setattr("pipeline.lab.fit.load_model", lambda digest: general)
    monkeypatch.setattr("pipeline.lab.tuning.gain", certain(-20.0))
    monkeypatch.setattr("pipeline.lab.tuned_run.gain", certain(-60.0))
    # What is counted beside the gain is the models' own bytes: make the dataset large enough for two.
    monkeypatch.setattr("pipeline.lab.tuned_run.expected", lambda *_, **__: Expected((3.0, 5.0), 1e9))
    command = ["compress", str(images), str(dst), "--q", "4", "--tune", "3s", "--models", "2", "--model", SMALL_MODEL]
    assert main(command) == 0
    said = capsys.readouterr().err
    assert "2 kinds of images: " in said
    assert "archived with 2 models of the dataset's own (kinds)" in said
    archive = Archive(str(dst))
    names = [parse_model(archive.model_bytes(digest)).name for digest in archive.run.models]
    assert names == ["golden-tuned-1", "golden-tuned-2"]
    used = archive.manifest(["model_sha256"]).column("model_sha256").to_pylist()
    assert {*used} - {None} <= {*archive.run.models}
    assert sorted(path.name for path in (dst / "tune").iterdir()) == ["report.json"]
    assert main(["-q", "verify", str(dst), "--decode"]) == 0
    # Other images: the gain is what it is found to be there.
    for percent, code, verdict in ((-40.0, 0, "they fit"), (-20.0, 3, "learn these images anew")):
        monkeypatch.setattr("pipeline.lab.fit.gain", certain(percent))
        assert main(["-q", "tune", str(images), "--check", str(dst)]) == code
        out = capsys.readouterr().out
        assert f"BD-rate {percent:+.1f} %" in out
        assert "when they were learned: -60.0 %" in out
        assert verdict in out


def test_a_plan_learns_too_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    photos, dst = make_photos(tmp_path / "in", 26, 96), tmp_path / "dst"
    learn_small(tmp_path, monkeypatch.setattr)
    monkeypatch.setattr("pipeline.lab.tuning.gain", certain(-20.0))
    monkeypatch.setattr("pipeline.lab.tuned_run.expected", lambda *_, **__: Expected((3.0, 5.0), 1e9))  # large enough for a model of its own
    assert main(["plan", str(photos), str(dst), "--bpp", "3", "--tune", MINUTES, "--model", SMALL_MODEL]) == 0
    assert "archived with the dataset's own model" in capsys.readouterr().err
    assert not dst.exists() or not list(dst.rglob("*.safetensors"))


def test_an_archive_without_a_model_of_its_own_has_none_to_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos, dst = make_photos(tmp_path / "in", 26, 96), tmp_path / "dst"
    assert main(["-q", "compress", str(photos), str(dst), "--q", "4"]) == 0
    assert main(["-q", "tune", str(photos), "--check", str(dst)]) == 2
    assert "was not learned from its images" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["0", "-3", "m", "soon", "1e9h"])
def test_times_to_learn_are_read_or_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert (minutes("30"), minutes("90s"), minutes("2h"), minutes("1.5m")) == (30.0, 1.5, 120.0, 1.5)
    with pytest.raises(argparse.ArgumentTypeError, match="no time to learn"):
        minutes(text)


def learning_of(photos: Path, dst: Path, general: str = "msinn-lite") -> Learning:
    return Learning(
        candidates=candidates(scan(str(photos)).records, 1),
        images=26,
        source_bytes=10**6,
        destination=str(dst),
        general=load_model(general).data,
        budget=Budget(kind="q", value=4.0),
        config=TuneConfig(name="own", minutes=0.05),
    )


@pytest.mark.parametrize("phase", ["train", "compare"])
def test_two_drivers_that_learn_at_once_go_on_with_the_models_of_one(phase: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learn_small(tmp_path, monkeypatch.setattr)
    learning = learning_of(make_photos(tmp_path / "in", 26, 96), tmp_path / "dst", SMALL_MODEL)
    monkeypatch.setattr("pipeline.lab.tuning.gain", certain(-20.0))
    monkeypatch.setattr("pipeline.lab.tuned_run.expected", lambda *_, **__: Expected((3.0, 5.0), 1e9))
    monkeypatch.setattr("pipeline.lab.tuned_run._LOOK_S", 0.0)
    step, first, said = getattr(Tuning, phase), [], []

    def meanwhile(tuning: Tuning, *arguments: object) -> object:
        """In this phase of the second driver the first comes to its end, and in one case has even begun the archive."""
        monkeypatch.setattr(Tuning, phase, step)
        first.extend(own_models(learning, lambda _: None))
        if phase == "compare":
            store = open_store(str(tmp_path / "dst"))
            publish_models(store, [first[0].data])
            store.remove(f"tune/model-{first[0].sha256}.safetensors")
        return step(tuning, *arguments)

    monkeypatch.setattr(Tuning, phase, meanwhile)
    second = own_models(learning, said.append)
    assert len(first) == 1
    assert [model.sha256 for model in second] == [first[0].sha256]
    assert said[-1] == "another run has learned the same images meanwhile: its models are used"
    assert not list((tmp_path / "dst" / "tune").glob("state-*"))


@pytest.mark.usefixtures("ray_pool")
def test_a_cluster_learns_on_one_of_its_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with `--cluster`, in the pool of these tests: what is learned comes back, and what it said."""
    photos, dst = make_photos(tmp_path / "in", 26, 96), tmp_path / "dst"
    learning, said = learning_of(photos, dst), io.StringIO()
    monkeypatch.setattr("pipeline.execute.connection.connect", lambda *_: 1)
    found = learned(learning, Placement(executor="ray", cluster="the tests' own"), JsonReporter(said))
    report = json.loads((dst / "tune" / "report.json").read_text())
    assert [model.sha256 for model in found] == report["models"]
    assert report["candidates"][0]["kind"] == "network"
    assert "images to learn from" in said.getvalue()
    # The same again is not learned again, here or there.
    assert [model.sha256 for model in own_models(learning, lambda _: None)] == [model.sha256 for model in found]


def test_what_can_be_refused_is_refused_before_anything_is_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = make_photos(tmp_path / "in", 26, 96)
    monkeypatch.setattr("pipeline.lab.tuned_run.draw", lambda *_, **__: pytest.fail("learned"))
    (tmp_path / "wishes.csv").write_text("name,weight\nnobody.png,-1\n")
    for wrong in (["--q", "12"], ["--q", "5", "--per-image", str(tmp_path / "wishes.csv")]):
        assert main(["-q", "compress", str(photos), str(tmp_path / "dst"), *wrong, "--tune", "30m"]) == 2


def test_what_a_killed_learning_left_is_removed_by_whichever_run_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos, dst = make_photos(tmp_path / "in", 5, 96), tmp_path / "dst"
    left = dst / "tune" / "state-all.safetensors"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"what a killed training left")
    assert main(["-q", "compress", str(photos), str(dst), "--q", "5"]) == 0
    assert not left.exists()
    left.write_bytes(b"and again, where a run must not delete")
    capsys.readouterr()
    assert main(["-q", "gc", str(dst), "--delete"]) == 0
    assert "tune/state-all.safetensors" in "".join(capsys.readouterr())
    assert not left.exists()
