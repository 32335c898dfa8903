"""`--forms all` codes what was drawn in AVIF: budgets, books, every way of reading, repair, growth, earlier archives and earlier readers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, features

from jobs.cli import main
from msinn_core import metrics
from msinn_core.reduction import area_reduced
from pipeline.archive import run_record
from pipeline.archive.archive import Archive
from pipeline.errors import ManifestError
from pipeline.forms import avif
from pipeline.read.dataset import ArchiveDataset
from pipeline.read.members import MemberDecoder
from pipeline.read.restore import restore
from tests.conftest import PHOTOS, encoded
from tests.unit.forms.test_avif import drawn

DRAWN = {"screen0.png", "screen1.png", "screen2.bmp", "window.png"}


def noisy(seed: int) -> NDArray[np.uint8]:
    """A screen with a gradient and a textured part: without loss it is dear."""
    pixels = drawn(160, 240, seed)
    pixels[:, 150:] = np.random.default_rng(seed).integers(90, 130, (160, 90, 3), np.uint8)
    return pixels


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    with Image.open(sorted(PHOTOS.rglob("*stunning.webp"))[0]) as photo:
        part = photo.convert("RGB").crop((40, 100, 240, 260))
    for i in range(2):
        (folder / f"screen{i}.png").write_bytes(encoded(Image.fromarray(noisy(i)), "PNG", dpi=(300, 300)))
    alpha = np.full((160, 240), 255, np.uint8)
    alpha[:9, :9] = np.arange(81).reshape(9, 9)
    (folder / "window.png").write_bytes(encoded(Image.fromarray(np.dstack((noisy(3), alpha))), "PNG"))
    (folder / "screen2.bmp").write_bytes(encoded(Image.fromarray(noisy(2)), "BMP"))
    (folder / "photo.png").write_bytes(encoded(part, "PNG"))
    (folder / "camera.jpg").write_bytes(encoded(part, "JPEG", quality=97))
    (folder / "grey.png").write_bytes(encoded(part.convert("L"), "PNG"))
    return folder


def compress(source: Path, place: Path, *options: str) -> int:
    return main(["-q", "compress", str(source), str(place), "--bpp", "2.0", "--forms", "all", "--executor", "local", *options])


@pytest.fixture(scope="module")
def made(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("made") / "archive"
    assert compress(source, place) == 0
    return place


@pytest.fixture(scope="module")
def whole(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "out"
    assert restore(str(made), str(out)).problems == []
    return out


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "archive"))


def rows_of(place: Path) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in Archive(str(place)).manifest().to_pylist()}


def pixels_of(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_what_was_drawn_is_avif_and_the_budget_holds(made: Path, whole: Path, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, archive = rows_of(made), Archive(str(made))
    assert {name for name, row in rows.items() if row["form"] == "avif"} == DRAWN
    assert {rows[name]["form"] for name in ("photo.png", "grey.png")} == {"msinn"}
    assert archive.run.archive_version == 7
    sealed = archive.seal()
    assert sealed is not None
    assert sealed["counted_bytes"] <= sealed["budget_bytes"]
    assert sum(row["stored_bytes"] for row in rows.values()) > 0.8 * sealed["budget_bytes"]
    for name in DRAWN:
        row, back = rows[name], pixels_of(whole / rows[name]["restore_name"])
        assert row["mse"] == pytest.approx(metrics.mse(back, pixels_of(source / name)))
        assert row["mse"] > 0
        assert (row["exact"], row["codec"], row["status"], row["lossless"], row["decode_verified"]) == ("no", "avif", "coded", False, True)
        assert (row["model_sha256"], row["bitstream_version"], row["encoder"]) == (None, None, None)
        assert row["writer"] == avif.writer()
        assert row["member"].endswith(".png.avif")
        assert row["q"] is not None
        assert row["predicted_bytes"] == pytest.approx(row["stored_bytes"], rel=0.3)
    with Image.open(whole / "window.png") as image, Image.open(source / "window.png") as original:
        np.testing.assert_array_equal(np.asarray(image)[..., 3], np.asarray(original)[..., 3])
    with Image.open(whole / "screen0.png") as image:
        image.load()
        assert image.info["dpi"] == pytest.approx((300, 300), rel=0.01)
    assert main(["-q", "verify", str(made)]) == main(["-q", "verify", str(made), "--decode"]) == 0
    capsys.readouterr()
    assert main(["audit", str(made)]) == 0
    said = capsys.readouterr().out
    assert "form        avif, exact: no: 4 images" in said


def test_it_is_better_than_without(made: Path, source: Path, tmp_path: Path) -> None:
    """At the same bytes, against `--forms msinn`."""
    place = tmp_path / "without"
    assert main(["-q", "compress", str(source), str(place), "--bpp", "2.0", "--executor", "local"]) == 0
    assert Archive(str(place)).run.archive_version == 4
    mine, theirs = rows_of(made), rows_of(place)
    assert np.mean([mine[name]["psnr_db"] for name in DRAWN]) > 3 + np.mean([theirs[name]["psnr_db"] for name in DRAWN])


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow was built without AVIF")
def test_members_open_without_us(made: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, members = rows_of(made), MemberDecoder(str(made))
    for name in sorted(DRAWN):
        assert main(["get", str(made), name, "--original", "-o", str(tmp_path / "x.avif")]) == 0
        np.testing.assert_array_equal(pixels_of(tmp_path / "x.avif"), pixels_of(whole / rows[name]["restore_name"]))
        np.testing.assert_array_equal(
            np.asarray(members(".png.avif", (tmp_path / "x.avif").read_bytes()).convert("RGB")), pixels_of(tmp_path / "x.avif")
        )
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "x.avif")]) == 0
    assert "240 x 160" in capsys.readouterr().out


def test_it_is_read_in_every_way(made: Path, whole: Path, source: Path, tmp_path: Path) -> None:
    rows = rows_of(made)
    assert main(["get", str(made), "screen0.png", "-o", str(tmp_path / "one.png")]) == 0
    assert (tmp_path / "one.png").read_bytes() == (whole / "screen0.png").read_bytes()
    assert main(["get", str(made), "screen0.png", "--metadata", "-o", str(tmp_path / "meta")]) == 0
    assert (tmp_path / "meta" / "png-chunks.bin").stat().st_size > 0
    assert main(["get", str(made), "screen0.png", "--scale", "4", "-o", str(tmp_path / "small.png")]) == 0
    np.testing.assert_array_equal(pixels_of(tmp_path / "small.png"), area_reduced(pixels_of(whole / "screen0.png"), 4))
    for sample in ArchiveDataset(str(made), where="form = 'avif'"):
        np.testing.assert_array_equal(np.asarray(sample["image"].convert("RGB")), pixels_of(whole / rows[sample["name"]]["restore_name"]))
    assert restore(str(made), str(whole)).skipped == 7
    assert main(["diff", str(made), str(whole)]) == 0
    assert main(["diff", str(made), str(source)]) == 0
    assert main(["-q", "restore", str(made), str(tmp_path / "tars"), "--to", "webdataset"]) == 0
    assert main(["-q", "restore", str(made), str(tmp_path / "jxl"), "--as", "jxl"]) == 0
    assert main(["audit", str(made), "--html", str(tmp_path / "page.html"), "--source", str(source)]) == 0
    assert "avif" in (tmp_path / "page.html").read_text()


def test_books_that_are_lost_do_not_lose_it(whole: Path, place: Path, tmp_path: Path) -> None:
    shutil.rmtree(place / "manifest")
    assert restore(str(place), str(tmp_path / "saved")).images == 7
    for path in whole.glob("*.png"):
        assert (tmp_path / "saved" / path.name).read_bytes() == path.read_bytes(), path.name


def test_a_run_that_is_gone_on_with_and_shards_that_are_lost(place: Path, source: Path) -> None:
    before = {path.name: path.read_bytes() for path in (place / "shards").iterdir()}
    for path in sorted((place / "shards").iterdir())[:1]:
        path.unlink()
    assert compress(source, place) == 0
    assert {path.name: path.read_bytes() for path in (place / "shards").iterdir()} == before
    (place / "MANIFEST.json").unlink()
    assert compress(source, place) == 0
    assert {path.name: path.read_bytes() for path in (place / "shards").iterdir()} == before


def test_a_flipped_byte_is_found_and_costs_one_image(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = rows_of(place)["screen1.png"]
    path = place / row["shard_key"]
    data = bytearray(path.read_bytes())
    data[row["offset"] + row["length"] // 2] ^= 1
    path.write_bytes(data)
    assert main(["-q", "verify", str(place)]) == 5
    result = restore(str(place), str(tmp_path / "out"))
    assert result.images == 6
    assert len(result.problems) == 1
    assert "screen1.png" in result.problems[0]


def test_an_archive_that_was_begun_without_goes_on_and_grows_without(source: Path, tmp_path: Path) -> None:
    """As an earlier msinn left it: `run.json` of version 4, whose configuration has no word of AVIF."""
    place, begun = tmp_path / "archive", tmp_path / "begun"
    assert compress(source, begun) == 0
    place.mkdir()
    for name in ("run.json", "scan", "model"):
        (shutil.copytree if (begun / name).is_dir() else shutil.copy)(begun / name, place / name)
    record = json.loads((place / "run.json").read_text())
    del record["config"]["avif"]
    record["archive_version"] = 4
    (place / "run.json").write_text(json.dumps(record))
    assert compress(source, place) == 0
    assert "avif" not in {row["form"] for row in rows_of(place).values()}
    more = Path(shutil.copytree(source, tmp_path / "more"))
    (more / "screen9.png").write_bytes(encoded(Image.fromarray(noisy(9)), "PNG"))
    assert main(["-q", "compress", str(more), str(place), "--grow", "--moved", "--executor", "local"]) == 0
    assert rows_of(place)["screen9.png"]["form"] in ("msinn", "pixels-exact")
    # One that was begun with it grows with it.
    assert main(["-q", "compress", str(more), str(begun), "--grow", "--moved", "--executor", "local"]) == 0
    assert rows_of(begun)["screen9.png"]["form"] == "avif"
    assert main(["-q", "verify", str(begun), "--decode"]) == 0


def test_older_readers_say_that_they_are_older(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_record, "READ_VERSIONS", range(1, 7))
    with pytest.raises(ManifestError, match=r"archive version 7; this msinn reads versions 1 to 6.*use a newer msinn"):
        _ = Archive(str(place)).run


def test_a_plan_says_what_it_takes(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-q", "plan", str(source), str(tmp_path / "none"), "--bpp", "2.0", "--forms", "all", "--executor", "local"]) == 0
    assert "avif" in capsys.readouterr().out
    assert not (tmp_path / "none" / "run.json").exists()


def test_a_quality_for_all_images(source: Path, tmp_path: Path) -> None:
    place = tmp_path / "archive"
    assert main(["-q", "compress", str(source), str(place), "--psnr", "38", "--forms", "all", "--executor", "local"]) == 0
    rows = rows_of(place)
    assert any(row["form"] == "avif" for row in rows.values())
    for row in rows.values():
        assert row["lossless"] or 38 <= row["psnr_db"] <= (39.5 if row["form"] == "avif" else 38.05), row["name"]


def test_a_reader_without_the_library_says_which(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.forms import libraries
    from pipeline.forms.process import Forms

    def decode(self: Forms, codec: str, payload: bytes) -> bytes:
        raise libraries.AbsentError("JPEG XL and AVIF need the package imagecodecs: pip install imagecodecs")

    monkeypatch.setattr(Forms, "decode", decode)
    result = restore(str(place), str(tmp_path / "out"))
    assert sum("imagecodecs" in problem for problem in result.problems) >= 4
