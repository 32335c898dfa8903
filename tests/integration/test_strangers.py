"""What new users tripped over: nothing bound too early, nobody locked out, nothing told wrongly."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from jobs.cli import main
from msinn_core.metrics import mse
from pipeline.archive import manifest
from pipeline.archive.archive import Archive
from pipeline.read.dataset import ArchiveDataset
from pipeline.read.restore import restore
from tests.conftest import encoded, make_photos


def rows(archive: Path) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in Archive(str(archive)).manifest().to_pylist()}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_photos(tmp_path_factory.mktemp("photos") / "in", 8, 96)
    image = Image.open(folder / "photo000.png")
    (folder / "sub").mkdir()
    (folder / "sub" / "camera.jpg").write_bytes(encoded(image, "JPEG", quality=95, comment=b"hello", dpi=(72, 72)))
    (folder / "sub" / "camera.txt").write_bytes(b"label")
    for i, path in enumerate(sorted(folder.rglob("*.*"))):
        os.utime(path, (1_500_000_000 + i, 1_500_000_000.25 + i))
    return folder


@pytest.fixture(scope="module")
def archive(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("archive") / "dst"
    assert main(["compress", str(photos), str(place), "--q", "4"]) == 0
    return place


def test_a_header_that_claims_four_billion_pixels_ends_nothing(photos: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(photos, tmp_path / "src"))
    bmp = bytearray(encoded(Image.new("RGB", (16, 16)), "BMP"))
    bmp[18:22] = (4_294_967_169).to_bytes(4, "little")
    (source / "absurd.bmp").write_bytes(bmp)
    tiff = bytearray(encoded(Image.new("RGB", (16, 16)), "TIFF"))
    at = tiff.find(b"\x01\x01\x04\x00")
    tiff[at + 8 : at + 12] = (3_036_676_696).to_bytes(4, "little")
    (source / "absurd.tif").write_bytes(tiff)
    for budget in (["--bpp", "8"], ["--q", "3"]):
        place = tmp_path / budget[0]
        assert main(["compress", str(source), str(place), *budget]) == 3
        found = rows(place)["absurd.bmp"]
        assert (found["status"], found["error_code"], found["width"]) == ("kept", "pixel_limit", None)
        assert restore(str(place), str(tmp_path / f"out{budget[0]}")).problems == []
        assert (tmp_path / f"out{budget[0]}" / "absurd.bmp").read_bytes() == bmp


def test_times_and_names_come_back(archive: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert restore(str(archive), str(out)).problems == []
    with open(out / "msinn-names.csv", newline="") as file:
        names = {row["name"]: row for row in csv.DictReader(file)}
    assert len(names) == 10
    for name, row in names.items():
        assert (out / row["restored_as"]).stat().st_mtime == pytest.approx((photos / name).stat().st_mtime, abs=1e-3)
    assert (names["sub/camera.jpg"]["restored_as"], names["sub/camera.txt"]["sidecar_of"]) == ("sub/camera.png", "sub/camera.jpg")


def test_an_infeasible_budget_binds_nothing_and_names_what_cannot_shrink(photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source, place = Path(shutil.copytree(photos, tmp_path / "src")), tmp_path / "dst"
    (source / "raw.bin").write_bytes(np.random.default_rng(0).bytes(50_000))
    (source / "huge.png").write_bytes(encoded(Image.new("RGB", (8000, 8000)), "PNG"))
    assert main(["compress", str(source), str(place), "--bytes", "20000", "--max-pixels", "32000000"]) == 4
    said = capfd.readouterr().err
    assert "2 files, 0." in said
    assert "cannot be made smaller: " in said
    assert "raw.bin" in said
    assert "the bytes of 1 of them count and their pixels do not" in said
    assert not (place / "run.json").exists()
    analysed = {path: path.stat().st_mtime_ns for path in (place / "analyse").rglob("*.parquet")}
    assert main(["compress", str(source), str(place), "--bytes", "500000", "--max-pixels", "32000000"]) == 3
    assert {path: path.stat().st_mtime_ns for path in (place / "analyse").rglob("*.parquet")} == analysed


def test_an_interrupted_restore_goes_on_and_touches_nothing_of_others(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    restore(str(archive), str(out))
    (out / "photo003.png").unlink()
    (out / "photo004.png").write_bytes((out / "photo004.png").read_bytes()[:500])
    before = (out / "photo001.png").stat().st_mtime_ns
    result = restore(str(archive), str(out))
    assert (result.images, result.skipped) == (8, 7)
    assert len(result.problems) == 1
    assert "photo004.png is there with other content" in result.problems[0]
    assert (out / "photo001.png").stat().st_mtime_ns == before
    assert restore(str(archive), str(out), overwrite=True).problems == []
    (out / "mine.txt").write_bytes(b"x")
    assert main(["restore", str(archive), str(out)]) == 2


def test_workers_never_import_what_lies_in_the_working_folder(photos: Path, tmp_path: Path) -> None:
    trap = tmp_path / "cwd"
    for package in ("pipeline", "msinn_core", "jobs"):
        (trap / package).mkdir(parents=True)
        (trap / package / "__init__.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'a').write({package!r})\nraise SystemExit(9)\n")
    command = [str(Path(sys.executable).parent / "msinn"), "compress", str(photos), str(tmp_path / "dst"), "--q", "3", "--workers", "1"]
    done = subprocess.run(command, cwd=trap, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    assert not (tmp_path / "sprung").exists()


def test_a_moved_source_goes_on_and_a_changed_one_says_how(photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source, moved, place = Path(shutil.copytree(photos, tmp_path / "src")), tmp_path / "moved", tmp_path / "dst"
    assert main(["compress", str(source), str(place), "--q", "4"]) == 0
    (place / "MANIFEST.json").unlink()
    (place / "commits" / "00001.json").unlink()
    source.rename(moved)
    capfd.readouterr()
    assert main(["compress", str(moved), str(place), "--q", "4"]) == 0
    assert "the source has moved from" in capfd.readouterr().err
    (moved / "photo002.png").unlink()
    (moved / "new.png").write_bytes((moved / "photo001.png").read_bytes())
    (moved / "photo005.png").write_bytes((moved / "photo005.png").read_bytes() + b"\0")
    assert main(["compress", str(moved), str(place), "--q", "4"]) == 2
    said = capfd.readouterr().err
    assert "1 were added, for example new.png; 1 are gone, for example photo002.png; 1 changed in size" in said
    assert "it was listed at" in said


def test_a_folder_of_other_files_is_no_destination(photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.doc").write_bytes(b"x")
    assert main(["compress", str(photos), str(tmp_path), "--q", "4"]) == 2
    assert "thesis.doc" in capfd.readouterr().err
    assert os.listdir(tmp_path) == ["thesis.doc"]


def test_states_have_one_word_and_sql_agrees_with_the_audit(archive: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", str(archive), "--json"]) == 0
    facts = json.loads(capfd.readouterr().out)
    assert main(["audit", str(archive), "SELECT avg(psnr_db) AS m, count(*) FILTER (status = 'kept' AND lossless) AS k FROM manifest", "--json"]) == 0
    asked = json.loads(capfd.readouterr().out)
    assert asked["m"] == pytest.approx(facts["totals"]["mean_psnr_db"])
    assert asked["k"] == facts["totals"]["kept"]
    assert facts["totals"]["bpp"] == pytest.approx(8 * facts["totals"]["stored_bytes"] / facts["totals"]["pixels"])
    page = Path(manifest.__file__).with_name("MANIFEST.md")
    assert page.read_text() == manifest.page(), "write it again: manifest.page()"


def test_wide_rows_are_blocks_and_csv_is_csv(archive: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", str(archive), "SELECT * FROM manifest LIMIT 2"]) == 0
    shown = capfd.readouterr().out
    assert "-[ row 1 ]" in shown
    assert "\nname               photo001.png" in shown
    assert main(["audit", str(archive), "SELECT name, metadata FROM manifest WHERE name LIKE '%camera%'", "--csv"]) == 0
    read = list(csv.DictReader(io.StringIO(capfd.readouterr().out)))
    assert [item["kind"] for item in json.loads(read[0]["metadata"])] == ["APP0 JFIF", "COM"]
    assert main(["audit", str(archive), "SELECT key, 'a[/b].png' AS name, psnr_db FROM manifest LIMIT 1"]) == 0
    shown = capfd.readouterr().out
    assert "a[/b].png" in shown
    assert "psnr_db" in shown
    assert main(["audit", str(archive), "SELECT nam FROM manifest"]) == 2
    assert "Candidate bindings" in capfd.readouterr().err


def test_metadata_is_listed_and_written(archive: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["get", str(archive), "sub/camera.jpg", "--metadata", "-o", str(tmp_path / "m")]) == 0
    assert "COM" in capfd.readouterr().out
    assert b"hello" in (tmp_path / "m" / "jpeg-segments.bin").read_bytes()
    assert main(["get", str(archive), "photo001.png", "-o", str(tmp_path / "x.jpg")]) == 2
    assert "name it" in capfd.readouterr().err


def test_exit_codes_and_sentences(archive: Path, photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    foreign = tmp_path / "notes.txt"
    foreign.write_bytes(b"hello world")
    assert main(["inspect", str(foreign)]) == 2
    assert main(["--debug", "inspect", str(foreign)]) == 2
    assert "Traceback" in capfd.readouterr().err
    (tmp_path / "wishes.csv").write_text("name,wieght\nphoto001.png,2\n")
    assert main(["compress", str(photos), str(tmp_path / "d"), "--bpp", "2", "--per-image", str(tmp_path / "wishes.csv")]) == 2
    said = capfd.readouterr().err
    assert "'wieght'" in said
    assert "weight, min_psnr_db" in said
    assert main(["submit", "--address", "http://127.0.0.1:9", "--", "compress", "s3://a/b", "s3://a/c", "--bpp", "1"]) == 6
    said = capfd.readouterr().err
    assert len(said.splitlines()) == 1
    assert "--address" in said
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert main(["completion", "bash"]) == 0
    assert "compress" in capfd.readouterr().out


def test_a_plan_of_a_fixed_q_says_bytes_time_and_cost(archive: Path, photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(photos), str(tmp_path / "plan"), "--q", "4", "--price-per-hour", "2", "--json"]) == 0
    plan = json.loads(capfd.readouterr().out)
    sealed = Archive(str(archive)).seal()
    assert sealed is not None
    # Sidecars are stored and do not count; each shard has an end of 1024 bytes.
    assert plan["predicted_bytes"] == pytest.approx(sealed["counted_bytes"], rel=0.05)
    assert plan["encode_cost"] >= 0
    assert plan["encode_worker_hours"] > 0


def test_a_live_run_shows_its_pace(archive: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    live = Path(shutil.copytree(archive, tmp_path / "live"))
    (live / "MANIFEST.json").unlink()
    commits = sorted((live / "commits").iterdir())
    commits.pop().unlink()
    for i, path in enumerate(commits):
        os.utime(path, (os.path.getmtime(path) - 20 + 10 * i,) * 2)
    assert main(["status", str(live), "--json"]) == 0
    facts = json.loads(capfd.readouterr().out)
    assert facts["activity"].startswith("running, as far as the store can tell")
    assert facts["images_per_s"] > 0
    assert facts["seconds_left"] >= 0
    for path in live.rglob("*.*"):
        os.utime(path, (1_600_000_000, 1_600_000_000))
    assert main(["status", str(live), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["activity"].startswith("stopped")


def test_litter_is_left_out_globs_choose_and_links_are_said(photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = Path(shutil.copytree(photos, tmp_path / "src"))
    (source / ".git").mkdir()
    (source / ".git" / "index").write_bytes(b"x")
    (source / ".DS_Store").write_bytes(b"x")
    (source / "empty").mkdir()
    (source / "again.png").symlink_to(source / "photo001.png")
    assert main(["compress", str(source), str(tmp_path / "a"), "--q", "3", "--exclude", "sub/*"]) == 0
    said = capfd.readouterr().err
    assert "left out: 2 files of systems and tools" in said
    assert "left out: 1 links to files of the source" in said
    assert "1 empty folders" in said
    assert set(rows(tmp_path / "a")) == {path.name for path in photos.glob("*.png")}
    (source / "secret.png").symlink_to("/etc/passwd")
    assert main(["compress", str(source), str(tmp_path / "b"), "--q", "3", "--include", "*.png"]) == 3
    assert "leads out of the source, to /etc/passwd" in capfd.readouterr().err
    assert "secret.png" not in rows(tmp_path / "b")
    assert main(["compress", str(source), str(tmp_path / "c"), "--q", "3", "--include", "secret.png", "--follow-links"]) == 3
    assert rows(tmp_path / "c")["secret.png"]["error_code"] == "broken_image"


def test_sidecars_pass_through_a_default_data_loader(archive: Path, photos: Path) -> None:
    dataset = ArchiveDataset(str(archive), sidecars=True, transform=lambda image: np.asarray(image.convert("RGB")))
    batches = list(DataLoader(dataset, batch_size=3))
    assert sum(len(batch["sidecars"]) for batch in batches) == len(dataset) == 9
    assert {"sub/camera.txt": b"label"} in [side for batch in batches for side in batch["sidecars"]]


def test_the_restored_picture_is_the_measured_one(archive: Path, photos: Path, tmp_path: Path) -> None:
    restore(str(archive), str(tmp_path / "out"))
    row = rows(archive)["sub/camera.jpg"]
    a, b = (np.asarray(Image.open(path).convert("RGB")) for path in (photos / "sub" / "camera.jpg", tmp_path / "out" / "sub" / "camera.png"))
    assert mse(a, b) == pytest.approx(row["mse"])


def test_relative_paths_mean_the_same_to_workers(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More images than are restored in this process, from a folder that is not the workers'."""
    monkeypatch.chdir(tmp_path)
    make_photos(tmp_path / "many", 20, 64)
    assert main(["compress", "many", "dst", "--q", "4"]) == 0
    assert main(["restore", "dst", "out"]) == 0
    assert len(list((tmp_path / "out").glob("*.png"))) == 20
    assert main(["verify", "dst", "--decode"]) == 0


def test_a_link_is_stored_once_or_in_place_of_what_is_not_stored(photos: Path, tmp_path: Path) -> None:
    source = tmp_path / "annex"
    (source / ".git" / "annex").mkdir(parents=True)
    (source / ".git" / "annex" / "key.png").write_bytes((photos / "photo001.png").read_bytes())
    for name in ("a.png", "b.png"):
        (source / name).symlink_to(source / ".git" / "annex" / "key.png")
    assert main(["compress", str(source), str(tmp_path / "d"), "--q", "3"]) == 0
    assert set(rows(tmp_path / "d")) == {"a.png"}
    (tmp_path / "latest.png").symlink_to(photos / "photo002.png")
    assert main(["compress", str(tmp_path / "latest.png"), str(tmp_path / "e"), "--q", "3"]) == 0
    assert set(rows(tmp_path / "e")) == {"latest.png"}


def test_a_store_is_asked_how_far_an_analysis_is(photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(photos), str(tmp_path / "p"), "--bpp", "8"]) == 0
    capfd.readouterr()
    assert main(["status", str(tmp_path / "p"), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["shards_analysed"] > 0
