"""Archives of every version ever written are restored, verified and asked questions."""

from __future__ import annotations

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

HERE = Path(__file__).parent


def copied(version: str, tmp_path: Path) -> Path:
    """An archive made by `archive/make.py`; its model is the golden one."""
    place = Path(shutil.copytree(HERE / "archive" / version, tmp_path / "archive"))
    (place / "model").mkdir()
    digest = Archive(str(place)).run.model_sha256
    shutil.copy(HERE / "integer" / "model.safetensors", place / "model" / f"{digest}.safetensors")
    return place


@pytest.fixture
def version_1(tmp_path: Path) -> Path:
    return copied("version-1", tmp_path)


def test_an_archive_of_version_2_restores_and_verifies(tmp_path: Path) -> None:
    place = copied("version-2", tmp_path)
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
