"""Archives of every version ever written are restored, verified and asked questions."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from jobs.cli import main
from pipeline.archive.archive import Archive
from pipeline.read import verify
from pipeline.read.audit import summary
from pipeline.read.restore import restore
from tests.golden.archive import make

HERE = Path(__file__).parent


def copied(version: str, tmp_path: Path) -> Path:
    """An archive made by `archive/make.py`; its model is the golden one."""
    place = Path(shutil.copytree(HERE / "archive" / version, tmp_path / "archive"))
    (place / "model").mkdir(exist_ok=True)
    run = Archive(str(place)).run
    suffix = "safetensors" if run.archive_version < 3 else "compact"
    shutil.copy(HERE / "integer" / f"model.{suffix}", place / "model" / f"{run.model_sha256}.{suffix}")
    return place


@pytest.fixture
def version_1(tmp_path: Path) -> Path:
    return copied("version-1", tmp_path)


@pytest.mark.parametrize("version", ["version-2", "version-3", "version-3-models", "version-4"])
def test_an_archive_restores_and_verifies(version: str, tmp_path: Path) -> None:
    place = copied(version, tmp_path)
    result = restore(str(place), str(tmp_path / "out"))
    assert (result.problems, result.images, result.sidecars, result.failed_at_source) == ([], 12, 1, 1)
    assert verify.fixity(str(place)).problems == []
    assert verify.decode(str(place)).problems == []
    rows = {row["name"]: row for row in Archive(str(place)).manifest().to_pylist()}
    assert [rows[name]["bitstream_version"] for name in ("commented.jpg", "printed.png", "photo000.png")] == [2, 2, 1]
    assert rows["printed.png"]["metadata"] == [{"kind": "PNG pHYs", "bytes": 21}]
    with Image.open(tmp_path / "out" / "commented.png") as image:
        image.load()
        assert image.info["dpi"] == pytest.approx((300, 300), rel=0.01)
    assert os.stat(tmp_path / "out" / "printed.png").st_mtime == 1767323045


def test_an_archive_that_grew_has_both_its_generations(tmp_path: Path) -> None:
    place = str(copied("version-5", tmp_path))
    results = [restore(place, str(tmp_path / f"out{number}"), generation=number) for number in (1, 2)]
    assert [(result.problems, result.images, result.sidecars, result.failed_at_source) for result in results] == [([], 12, 1, 1), ([], 13, 1, 0)]
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / f"out{number}").iterdir()} for number in (1, 2))
    del one["msinn-names.csv"], two["msinn-names.csv"]
    assert set(two) - set(one) == {"added.png", "gone.png"}
    assert set(one) - set(two) == {"photo002.png"}
    assert {name for name in one if name in two and one[name] != two[name]} == {"photo001.png"}
    # Of the same sources and the same model as those of version 4.
    before = restore(str(copied("version-4", tmp_path / "older")), str(tmp_path / "before"))
    assert before.images == 12
    assert {name: (tmp_path / "before" / name).read_bytes() for name in one} == one
    assert (verify.fixity(place).problems, verify.decode(place).problems) == ([], [])
    archive = Archive(place)
    assert (archive.run.archive_version, archive.layers[1].run.archive_version, archive.newest) == (4, 5, 2)
    sealed = archive.seal()
    assert sealed is not None
    assert [sealed[name] for name in ("images", "added", "changed", "vanished", "failed")] == [13, 1, 2, 1, 0]


@pytest.mark.parametrize("version", ["version-1", "version-3-models"])
def test_an_archive_of_an_older_version_grows(version: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    place = copied(version, tmp_path)
    make.main(tmp_path / "in")
    shutil.copy(tmp_path / "in" / "photo003.png", tmp_path / "in" / "zz.png")
    before = {row["name"]: row["payload_sha256"] for row in Archive(str(place)).manifest().to_pylist()}
    command = ["-q", "compress", str(tmp_path / "in"), str(place), "--grow", "--moved", "--executor", "local"]
    assert main(command) == 3  # one of the first could not be read, and cannot now
    rows = {row["name"]: row for row in Archive(str(place)).manifest().to_pylist()}
    assert {name: rows[name]["payload_sha256"] for name in before} == before
    # What is new is coded as what was there, with the same model.
    assert rows["zz.png"]["payload_sha256"] == before["photo003.png"] or version == "version-1"
    assert rows["zz.png"]["model_sha256"] in Archive(str(place)).run.models
    assert verify.decode(str(place)).problems == []
    assert main(command) == 0
    assert "nothing has changed since generation 2" in capfd.readouterr().out


def test_an_archive_of_exact_forms_gives_everything_back(tmp_path: Path) -> None:
    """Every form that needs no model: files by the hash that their row has, samples by theirs; and what a salvage finds by the members alone."""
    pytest.importorskip("lepton_jpeg_python")
    place = copied("version-4-lossless", tmp_path)
    rows = {row["name"]: row for row in Archive(str(place)).manifest().to_pylist()}
    assert {row["codec"] for row in rows.values()} == {"jxl-jpeg", "lepton", "jxl", "zstd", "kept"}
    assert {(row["form"], row["exact"]) for row in rows.values()} == {("jpeg-exact", "bytes"), ("pixels-exact", "pixels"), ("kept", "bytes")}
    result = restore(str(place), str(tmp_path / "out"))
    assert (result.problems, result.images) == ([], 15)
    for row in rows.values():
        if row["exact"] == "bytes":
            assert hashlib.sha256((tmp_path / "out" / row["name"]).read_bytes()).hexdigest() == row["source_sha256"], row["name"]
        else:
            assert row["restore_name"].endswith(".png")
    with Image.open(tmp_path / "out" / "rgb.png") as image:
        image.load()
        assert (image.info["dpi"][0], len(image.info["icc_profile"])) == (pytest.approx(300, rel=0.01), rows["rgb.png"]["icc"])
    again = restore(str(place), str(tmp_path / "out"))
    assert (again.problems, again.images, again.skipped) == ([], 15, 15)
    assert verify.fixity(str(place)).problems == []
    assert verify.decode(str(place)).problems == []
    shutil.rmtree(place / "manifest")
    salvaged = restore(str(place), str(tmp_path / "saved"))
    assert salvaged.images == 15
    for name in (path.name for path in (tmp_path / "out").iterdir()):
        assert (tmp_path / "saved" / name).read_bytes() == (tmp_path / "out" / name).read_bytes() or name == "msinn-names.csv", name


def test_an_archive_within_a_largest_error_gives_the_same_samples(tmp_path: Path) -> None:
    """By the hash of each; what a salvage finds by the members alone too."""
    place = copied("version-6", tmp_path)
    assert Archive(str(place)).run.archive_version == 6
    rows = {row["name"]: row for row in Archive(str(place)).manifest().to_pylist()}
    assert {name: row["codec"] for name, row in rows.items() if name not in ("deep.png", "plain.jpg")} == dict.fromkeys(
        ("rgb.png", "grey.bmp", "alpha.png"), "near"
    )
    assert {rows[name]["exact"] for name in ("deep.png", "plain.jpg")} == {"pixels", "bytes"}
    result = restore(str(place), str(tmp_path / "out"))
    assert (result.problems, result.images) == ([], 5)
    with Image.open(tmp_path / "out" / "rgb.png") as image:
        image.load()
        assert len(image.info["icc_profile"]) == rows["rgb.png"]["icc"]
    assert verify.fixity(str(place)).problems == []
    assert verify.decode(str(place)).problems == []
    shutil.rmtree(place / "manifest")
    assert restore(str(place), str(tmp_path / "saved")).images == 5
    for path in (tmp_path / "out").glob("*.png"):
        assert (tmp_path / "saved" / path.name).read_bytes() == path.read_bytes()


def test_an_archive_of_all_forms_gives_the_same_samples(tmp_path: Path) -> None:
    """What AVIF codes too, by the hash of each; what a salvage finds by the members alone."""
    place = copied("version-7", tmp_path)
    assert Archive(str(place)).run.archive_version == 7
    rows = {row["name"]: row for row in Archive(str(place)).manifest().to_pylist()}
    assert {name: row["form"] for name, row in rows.items()} == {"screen0.png": "avif", "screen1.png": "avif", "photo.png": "pixels-exact"}
    result = restore(str(place), str(tmp_path / "out"))
    assert (result.problems, result.images) == ([], 3)
    with Image.open(tmp_path / "out" / "screen0.png") as image:
        image.load()
        assert image.info["dpi"] == pytest.approx((300, 300), rel=0.01)
    assert verify.fixity(str(place)).problems == []
    assert verify.decode(str(place)).problems == []
    shutil.rmtree(place / "manifest")
    assert restore(str(place), str(tmp_path / "saved")).images == 3
    for path in (tmp_path / "out").glob("*.png"):
        assert (tmp_path / "saved" / path.name).read_bytes() == path.read_bytes()


def test_images_of_an_archive_have_different_models(tmp_path: Path) -> None:
    archive = Archive(str(copied("version-3-models", tmp_path)))
    used = archive.manifest(["model_sha256"]).column("model_sha256").drop_null().to_pylist()
    assert set(used) == set(archive.run.models)
    assert [digest[:12] for digest in archive.run.models] == ["f2af157170ed", "7745c7dcf910"]


def test_an_archive_of_version_1_restores_and_verifies(version_1: Path, tmp_path: Path) -> None:
    result = restore(str(version_1), str(tmp_path / "out"))
    assert (result.problems, result.images, result.sidecars, result.failed_at_source) == ([], 10, 1, 1)
    assert verify.fixity(str(version_1)).problems == []
    assert verify.decode(str(version_1)).problems == []
    assert (tmp_path / "out" / "turned.json").read_bytes() == b'{"label": 1}'
    assert main(["get", str(version_1), "turned.jpg", "-o", str(tmp_path / "one.jpg")]) == 0


def test_an_archive_of_version_1_speaks_the_words_of_today(version_1: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rows = {row["name"]: row for row in Archive(str(version_1)).manifest().to_pylist()}
    words = {name: (row["status"], row["codec"]) for name, row in rows.items()}
    assert {words[name] for name in ("deep.png", "notes.txt", "broken.jpg", "photo001.png")} == {("kept", "kept")}
    assert (words["photo004.png"], words["gone.png"]) == (("coded", "msinn"), ("failed", None))
    assert (rows["deep.png"]["psnr_db"], rows["deep.png"]["lossless"], rows["deep.png"]["pixels"]) == (None, True, 200)
    assert rows["broken.jpg"]["pixels"] is None
    assert rows["turned.jpg"]["mtime"] is None
    totals = summary(Archive(str(version_1))).totals
    assert (totals.images, totals.failed, totals.coded + totals.kept) == (11, 1, 10)
    assert main(["audit", str(version_1), "SELECT count(*) AS n FROM manifest WHERE status = 'kept' AND lossless AND psnr_db IS NULL", "--csv"]) == 0
    assert capfd.readouterr().out.splitlines() == ["n", str(totals.kept)]
