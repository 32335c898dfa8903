"""The way of a folder into an archive and back: under budget, complete, exact, resumable, and damage is found."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.cli import main
from msinn_core import metrics
from msinn_core.entropy.tables import gaussian_tables
from msinn_core.model_file import load_model
from pipeline.archive.archive import Archive
from pipeline.errors import BudgetInfeasibleError, ManifestError, UsageError
from pipeline.plan.config import Budget, CompressConfig
from pipeline.read import verify
from pipeline.read.get import get
from pipeline.read.restore import restore
from pipeline.run.compress import Outcome, Run
from pipeline.run.report import JsonReporter
from tests.conftest import encoded, make_photos, png16


def compress(source: Path | str, destination: Path, kind: str, value: float, **options: Any) -> Outcome:
    config = CompressConfig(budget=Budget(kind=kind, value=value), **options)
    return Run(str(source), str(destination), config, JsonReporter(io.StringIO())).execute()


def rows(archive: Path) -> list[dict[str, Any]]:
    return Archive(str(archive)).manifest().to_pylist()  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_photos(tmp_path_factory.mktemp("photos") / "in", 110, 64)


@pytest.fixture(scope="module")
def archive(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """110 images at 3 bpp (small ones, so that a test takes seconds; their headers and padding are a third of it)."""
    destination = tmp_path_factory.mktemp("archive") / "dst"
    outcome = compress(photos, destination, "bpp", 3.0)
    assert outcome.sealed is not None
    budget = 3.0 * 110 * 64 * 64 / 8
    assert outcome.budget_bytes == budget
    assert budget * 0.999 < outcome.sealed["counted_bytes"] <= budget
    return destination


@pytest.fixture
def copy(archive: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(archive, tmp_path / "copy"))


def test_the_manifest_says_what_the_disk_holds(archive: Path, photos: Path) -> None:
    table = rows(archive)
    assert len(table) == 110
    assert {row["name"] for row in table} == {path.name for path in photos.iterdir()}
    assert sum(path.stat().st_size for path in (archive / "shards").iterdir()) == Archive(str(archive)).seal()["counted_bytes"]  # type: ignore[index]
    for row in table:
        assert (row["status"], row["decode_verified"], row["width"], row["height"]) == ("coded", True, 64, 64)
        assert row["bpp"] == pytest.approx(8 * row["length"] / 4096)
    # Any tar tool opens a shard.
    first = sorted((archive / "shards").iterdir())[0]
    with tarfile.open(first) as tar:
        assert all(name.endswith(".msn") for name in tar.getnames())


def test_restore_gives_every_image_at_the_promised_quality(archive: Path, photos: Path, tmp_path: Path) -> None:
    result = restore(str(archive), str(tmp_path / "out"))
    assert (result.images, result.problems) == (110, [])
    for row in rows(archive):
        restored = np.asarray(Image.open(tmp_path / "out" / row["restore_name"]))
        assert metrics.mse(restored, np.asarray(Image.open(photos / row["name"]))) == pytest.approx(row["mse"])


def test_restore_where_and_get(archive: Path, tmp_path: Path) -> None:
    worst = min(rows(archive), key=lambda row: row["psnr_db"])
    result = restore(str(archive), str(tmp_path / "out"), where=f"psnr_db <= {worst['psnr_db']!r}")
    assert result.images == 1
    for wanted in (worst["key"], worst["name"]):
        name, data, problems, _ = get(str(archive), wanted)
        assert (name, problems) == (worst["restore_name"], [])
        assert data == (tmp_path / "out" / name).read_bytes()
    with pytest.raises(UsageError, match="holds no image"):
        get(str(archive), "999999999")
    with pytest.raises(UsageError, match="SQL"):
        restore(str(archive), str(tmp_path / "other"), where="nonsense ===")
    (tmp_path / "out" / "mine.txt").write_bytes(b"x")
    with pytest.raises(UsageError, match="not empty"):
        restore(str(archive), str(tmp_path / "out"))
    with pytest.raises(UsageError, match="inside the archive"):
        restore(str(archive), str(archive / "out"))


def test_verify_is_content_with_a_good_archive(archive: Path) -> None:
    assert verify.fixity(str(archive)).problems == []
    decoded = verify.decode(str(archive), sample=0.1)
    assert (decoded.images, decoded.problems) == (11, [])


def test_one_flipped_bit_is_found_named_and_contained(copy: Path, tmp_path: Path) -> None:
    victim = rows(copy)[57]
    path = copy / victim["shard_key"]
    data = bytearray(path.read_bytes())
    data[victim["offset"] + victim["length"] // 2] ^= 1
    path.write_bytes(data)
    problems = verify.fixity(str(copy)).problems
    assert len(problems) == 1
    assert victim["name"] in problems[0]
    result = restore(str(copy), str(tmp_path / "out"))
    assert result.images == 109
    assert len(result.problems) == 1
    assert victim["name"] in result.problems[0]
    assert not (tmp_path / "out" / victim["restore_name"]).exists()
    with pytest.raises(ManifestError, match="damaged"):
        get(str(copy), victim["key"])
    assert main(["verify", str(copy)]) == 5
    assert main(["restore", str(copy), str(tmp_path / "again")]) == 5


@pytest.mark.parametrize("what", ["shard", "manifest", "commit", "model", "scan", "cut"])
def test_every_missing_or_cut_object_is_found(copy: Path, what: str) -> None:
    if what == "cut":
        path = sorted((copy / "shards").iterdir())[2]
        path.write_bytes(path.read_bytes()[:-700])
    else:
        folder = {"shard": "shards", "commit": "commits"}.get(what, what)
        sorted((copy / folder).iterdir())[0].unlink()
    problems = verify.fixity(str(copy)).problems
    assert len(problems) == 1
    assert "missing" in problems[0] or "instead of" in problems[0]


def test_a_finished_run_again_does_nothing(archive: Path, photos: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in archive.rglob("*") if path.is_file()}
    outcome = compress(photos, archive, "bpp", 3.0)
    assert outcome.redone == 0
    assert {path: path.stat().st_mtime_ns for path in archive.rglob("*") if path.is_file()} == before


def test_an_unfinished_archive_goes_on_and_lands_in_the_same_interval(copy: Path, photos: Path) -> None:
    (copy / "MANIFEST.json").unlink()
    commits = sorted((copy / "commits").iterdir())
    kept = {path: path.read_bytes() for path in commits[:6]}
    for path in commits[6:]:
        path.unlink()
    outcome = compress(photos, copy, "bpp", 3.0)
    assert outcome.sealed is not None
    assert (outcome.resumed, outcome.redone) == (6, len(commits) - 6)
    assert all(path.read_bytes() == data for path, data in kept.items())
    assert outcome.budget_bytes is not None
    assert outcome.budget_bytes - max(512, 0.001 * outcome.budget_bytes) <= outcome.sealed["counted_bytes"] <= outcome.budget_bytes
    assert verify.fixity(str(copy)).problems == []
    assert len({row["key"] for row in rows(copy)}) == 110


def test_an_unfinished_archive_says_so_when_it_is_read(copy: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (copy / "MANIFEST.json").unlink()
    sorted((copy / "commits").iterdir())[3].unlink()
    assert main(["restore", str(copy), str(tmp_path / "out")]) == 5
    assert "1 of 16 shards are not committed" in capfd.readouterr().err
    assert main(["verify", str(copy)]) == 5
    assert main(["status", str(copy)]) == 0
    assert "unfinished" in capfd.readouterr().out


def test_another_request_is_refused_and_says_how_it_differs(copy: Path, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"budget was --bpp 3, now --bpp 2"):
        compress(photos, copy, "bpp", 2.0)
    extended = Path(shutil.copytree(photos, tmp_path / "more"))
    shutil.copy(extended / "photo000.png", extended / "zzz.png")
    with pytest.raises(UsageError, match=r"1 were added, for example zzz\.png"):
        compress(extended, copy, "bpp", 3.0)
    with pytest.raises(UsageError, match="lies inside"):
        compress(photos, photos / "archive", "bpp", 1.0)


def test_quality_targets_are_met_from_just_above(tmp_path: Path) -> None:
    """256 x 256: on flat crops of a few hundred bytes a single symbol moves PSNR by more than the window."""
    make_photos(tmp_path / "some", 6, 256)
    compress(tmp_path / "some", tmp_path / "dst", "psnr", 38.0)
    coded = [row for row in rows(tmp_path / "dst") if row["status"] == "coded"]
    assert len(coded) == 6
    for row in coded:
        assert row["psnr_db"] >= 38.0, row["name"]
        # A flat crop is better than asked for even at the lowest rate there is.
        if row["q"] > 0:
            assert row["psnr_db"] <= 38.06, row["name"]
    assert sum(row["q"] > 0 for row in coded) >= 4


def test_fixed_q_needs_no_analysis_and_keeps_floors(photos: Path, tmp_path: Path) -> None:
    some = Path(tmp_path / "some")
    some.mkdir()
    for path in sorted(photos.iterdir())[:6]:
        shutil.copy(path, some)
    compress(some, tmp_path / "plain", "q", 2.0)
    assert not (tmp_path / "plain" / "analyse").exists()
    assert {row["q"] for row in rows(tmp_path / "plain")} == {2.0}
    worst = min(row["psnr_db"] for row in rows(tmp_path / "plain"))
    compress(some, tmp_path / "floored", "q", 2.0, min_psnr_db=worst + 1.5)
    assert min(row["psnr_db"] for row in rows(tmp_path / "floored")) >= worst + 1.5
    assert "floor" in {row["clamp"] for row in rows(tmp_path / "floored")}


def test_impossible_budgets_stop_before_anything_is_encoded(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(BudgetInfeasibleError, match="least possible"):
        compress(photos, tmp_path / "dst", "bpp", 0.01)
    assert not (tmp_path / "dst" / "shards").exists()
    with pytest.raises(BudgetInfeasibleError, match="at 60 dB or better"):
        compress(photos, tmp_path / "dst2", "bpp", 3.0, min_psnr_db=60.0)


def test_a_folder_of_horrors(tmp_path: Path, photos: Path) -> None:
    """Everything that is not a plain 8-bit picture: archived, kept or reported, and as many files come back as went in."""
    source = tmp_path / "src ünï cøde"
    (source / "a").mkdir(parents=True)
    (source / "b").mkdir()
    photo = Image.open(photos / "photo003.png")
    big = Image.open(sorted(photos.iterdir())[0]).resize((256, 256))
    files = {
        "a/same.png": encoded(photo, "PNG"),
        "b/same.png": encoded(photo.rotate(180), "PNG"),
        "b/same.json": b"{}",
        "truncated.jpg": encoded(big, "JPEG", quality=95)[:3000],
        "deep.png": png16(30, 30),
        "cmyk.jpg": encoded(photo.convert("CMYK"), "JPEG"),
        "moving.gif": encoded(photo, "GIF", save_all=True, append_images=[photo.rotate(90)]),
        "one.png": encoded(photo.crop((0, 0, 1, 1)), "PNG"),
        "strip.png": encoded(Image.fromarray(np.hstack([np.asarray(Image.open(path)) for path in sorted(photos.iterdir())])), "PNG"),
        "bomb.png": encoded(Image.new("RGB", (3000, 1000)), "PNG"),
        "empty.png": b"",
        "notes.txt": b"no image",
        "flat.png": encoded(Image.new("RGB", (200, 100), (1, 200, 30)), "PNG"),
        "alpha.png": encoded(photo.convert("RGBA"), "PNG"),
    }
    for name, data in files.items():
        (source / name).write_bytes(data)
    os.symlink("/nonexistent", source / "dangling.png")
    os.symlink("/nonexistent", source / "a" / "same.json")
    odd = os.fsdecode(b"\xff\xe9")
    for suffix in (".png", ".txt"):
        Path(source, odd + suffix).write_bytes(files["a/same.png"])
    outcome = compress(source, tmp_path / "dst", "q", 4.0, max_pixels=2_000_000)
    assert outcome.sealed is not None
    by_name = {row["name"]: row for row in rows(tmp_path / "dst")}
    assert len(by_name) == len(files) + 1  # one is a sidecar, one can never be read, one has a name that is not UTF-8
    # An image is not lost because its sidecar is.
    assert (by_name["a/same.png"]["error_code"], by_name["a/same.png"]["codec"]) == ("sidecar_unreadable", "msinn")
    expected = {
        "truncated.jpg": ("kept", "broken_image"),
        "deep.png": ("kept", "more_than_8_bits"),
        "cmyk.jpg": ("kept", "unsupported_mode"),
        "moving.gif": ("kept", "animated"),
        "bomb.png": ("kept", "pixel_limit"),
        "empty.png": ("kept", "broken_image"),
        "notes.txt": ("kept", "not_an_image"),
        "dangling.png": ("failed", "source_unreadable"),
        "strip.png": ("coded", None),
    }
    assert {name: (by_name[name]["status"], by_name[name]["error_code"]) for name in expected} == expected
    result = restore(str(tmp_path / "dst"), str(tmp_path / "out"))
    assert result.problems == []
    assert (result.images, result.sidecars, result.failed_at_source) == (len(files), 2, 1)
    restored = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert len(restored) == len(files) + 3  # and the map of names
    for name, row in by_name.items():
        if row["codec"] == "kept" and name in files:
            assert (tmp_path / "out" / row["restore_name"]).read_bytes() == files[name]
    assert (tmp_path / "out" / "b" / "same.json").read_bytes() == b"{}"


def test_tar_shards_and_parquet_as_sources(photos: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        for i, path in enumerate(sorted(photos.iterdir())[:5]):
            for name, data in ((f"{i:04d}.png", path.read_bytes()), (f"{i:04d}.json", json.dumps({"i": i}).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    compress(tmp_path / "set.tar", tmp_path / "a", "ratio", 2.5)
    result = restore(str(tmp_path / "a"), str(tmp_path / "out"))
    assert (result.images, result.sidecars, result.problems) == (5, 5, [])
    assert json.loads((tmp_path / "out" / "set" / "0003.json").read_bytes()) == {"i": 3}
    sealed = Archive(str(tmp_path / "a")).seal()
    assert sealed is not None
    assert sealed["counted_bytes"] <= sealed["source_bytes"] / 2.5
    table = pa.table({"image": [path.read_bytes() for path in sorted(photos.iterdir())[:5]], "label": list(range(5))})
    pq.write_table(table, tmp_path / "set.parquet")
    compress(tmp_path / "set.parquet", tmp_path / "b", "q", 3.0)
    result = restore(str(tmp_path / "b"), str(tmp_path / "out2"))
    assert (result.images, result.sidecars, result.problems) == (5, 5, [])


def test_hostile_names_in_a_manifest_never_leave_the_target(copy: Path, tmp_path: Path) -> None:
    """Whoever can write the archive could also recompute its hashes: restore must not trust names even then."""
    from pipeline.archive import manifest
    from pipeline.archive.commits import Commit
    from pipeline.archive.layout import sha256
    from pipeline.archive.row import Row
    from pipeline.formats.records import rows_of

    (copy / "MANIFEST.json").unlink()
    commit_path = sorted((copy / "commits").iterdir())[0]
    record = Commit.from_bytes(commit_path.read_bytes(), "commit")
    first, second, *others = rows_of(Row, manifest.read((copy / record.manifest).read_bytes()))
    escaped = dataclasses.replace(first, restore_name="../../escaped.png")
    absolute = dataclasses.replace(second, restore_name=str(tmp_path / "absolute.png"))
    data = manifest.to_bytes([escaped, absolute, *others])
    (copy / record.manifest).write_bytes(data)
    commit_path.write_bytes(dataclasses.replace(record, manifest_sha256=sha256(data)).to_bytes())
    result = restore(str(copy), str(tmp_path / "target" / "out"))
    assert len([problem for problem in result.problems if "outside" in problem]) == 2
    assert not list(tmp_path.rglob("escaped.png")) + list(tmp_path.rglob("absolute.png"))
    assert result.images == 108


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["compress", "/nonexistent/folder", "DST", "--q", "3"], 2, "does not exist"),
        (["compress", "SRC", "DST"], 2, "say a budget: one of --bpp, "),
        (["compress", "SRC", "DST", "--bpp", "1", "--q", "2"], 2, "not allowed"),
        (["compress", "SRC", "DST", "--bpp", "0"], 2, "above 0"),
        (["compress", "SRC", "DST", "--bpp", "-1"], 2, "above 0"),
        (["compress", "SRC", "DST", "--bpp", "nan"], 2, "above 0"),
        (["compress", "SRC", "DST", "--q", "12"], 2, "takes 0 to 11"),
        (["compress", "SRC", "DST", "--bytes", "lots"], 2, "no size"),
        (["compress", "SRC", "DST", "--q", "1", "--model", "other"], 2, "no model"),
        (["status", "DST"], 2, "not an msinn archive"),
        (["verify", "DST", "--decode", "--sample", "0%"], 2, "--sample"),
        (["inspect", "SRC/photo000.png"], 2, "no msinn bitstream"),
        (["inspect", "/nonexistent"], 2, "cannot read"),
        (["compress", "SRC", "DST/f", "--q", "3", "--curve", "x.png"], 2, "belong to a plan"),
        (["compress", "SRC", "DST/f", "--bpp", "3", "--dry-run", "--price-per-hour", "-1"], 2, "takes a price"),
        (["models", "import", "SRC/photo000.png", "-o", "DST/x.safetensors", "--profile", "float"], 2, "no checkpoint"),
        (["models", "import", "SRC/photo000.png", "-o", "DST/x.safetensors"], 2, "--calibrate"),
        (["compress", "SRC", "DST/f", "--q", "3", "--model", "msinn-lite-float"], 2, "like machines only"),
    ],
)
def test_usage_errors_are_one_sentence(
    arguments: list[str], code: int, text: str, photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    given = [a.replace("SRC", str(photos)).replace("DST", str(tmp_path / "dst")) for a in arguments]
    try:
        result = main(given)
    except SystemExit as stop:  # argparse
        result = int(stop.code or 0)
    error = capfd.readouterr().err
    assert result == code, error
    assert text in error
    assert "Traceback" not in error
    assert not (tmp_path / "dst" / "shards").exists()


def test_the_verbs_that_read(archive: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(archive)]) == 0
    assert "sealed" in capfd.readouterr().out
    assert main(["audit", str(archive)]) == 0
    assert "110 coded" in capfd.readouterr().out
    assert main(["audit", str(archive), "SELECT count(*) AS n FROM manifest", "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == {"n": 110}
    assert main(["get", str(archive), "000000005", "--original", "-o", str(tmp_path / "x.msn")]) == 0
    assert main(["inspect", str(tmp_path / "x.msn")]) == 0
    assert "64 x 64 rgb" in capfd.readouterr().out
    assert main(["inspect", str(sorted((archive / "model").iterdir())[0])]) == 0
    assert main(["inspect", str(sorted((archive / "shards").iterdir())[0])]) == 0
    assert main(["models"]) == 0
    assert "msinn-lite" in capfd.readouterr().out


def test_dry_run_encodes_nothing(photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command = ["compress", str(photos), str(tmp_path / "dst"), "--bpp", "3", "--dry-run"]
    assert main([*command, "--json", "--price-per-hour", "2", "--curve", str(tmp_path / "curve.png")]) == 0
    plan = json.loads(capfd.readouterr().out)
    assert plan["images"] == 110
    assert plan["predicted_bytes"] <= plan["budget_bytes"]
    assert plan["worker_mpx_per_s"] > 0
    assert plan["encode_cost"] == pytest.approx(2 * plan["encode_worker_hours"], abs=2e-4)
    assert len(plan["outlook"]) == 9
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    analysed = {path: path.stat().st_mtime_ns for path in (tmp_path / "dst" / "analyse").rglob("*.parquet")}
    assert main([*command[:-2], "4", "--dry-run"]) == 0  # another budget, the same analysis
    assert "what other budgets would buy" in capfd.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "dst" / "analyse").rglob("*.parquet")} == analysed
    assert not (tmp_path / "dst" / "run.json").exists()


def test_models_import_from_a_research_checkpoint(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import torch

    from tests.unit.core.test_network import TINY, randomised

    state = randomised(dataclasses.replace(TINY, context_activation="gelu")).state_dict()
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "model.pth.tar")
    command = ["models", "import", str(tmp_path / "model.pth.tar"), "-o", str(tmp_path / "model.safetensors")]
    assert main([*command, "--profile", "float"]) == 0
    assert main(["inspect", str(tmp_path / "model.safetensors")]) == 0
    assert "profile float" in capfd.readouterr().out
    (tmp_path / "photos").mkdir()
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (64, 96, 3), np.uint8)).save(tmp_path / "photos" / "a.png")
    assert main([*command, "--calibrate", str(tmp_path / "photos")]) == 0
    assert main(["inspect", str(tmp_path / "model.safetensors")]) == 0
    assert "profile int" in capfd.readouterr().out
    tables = load_model(str(tmp_path / "model.safetensors")).tables
    assert not np.array_equal(tables.cdf, gaussian_tables().cdf)
    (tmp_path / "others").mkdir()
    Image.fromarray(np.full((64, 96, 3), 100, np.uint8)).save(tmp_path / "others" / "flat.png")
    assert main([*command, "--calibrate", str(tmp_path / "photos"), "--fit-tables", str(tmp_path / "others")]) == 0
    assert not np.array_equal(load_model(str(tmp_path / "model.safetensors")).tables.cdf, tables.cdf)
    assert main([*command, "--profile", "float", "--fit-tables", str(tmp_path / "others")]) == 2
    assert "--calibrate" in capfd.readouterr().err
    torch.save({"state_dict": state, "evil": subprocess.Popen}, tmp_path / "evil.pth.tar")
    assert main(["models", "import", str(tmp_path / "evil.pth.tar"), "-o", str(tmp_path / "x.safetensors"), "--profile", "float"]) == 2
    assert "read safely" in capfd.readouterr().err


def test_a_process_ends_with_its_exit_code(archive: Path) -> None:
    """Not with the abort of some library's thread at the interpreter's end."""
    command = [sys.executable, "-m", "jobs.cli", "get", str(archive), "8", "-o", "-"]
    assert [subprocess.run(command, capture_output=True, check=False).returncode for _ in range(4)] == [2] * 4


def test_questions_cannot_write_files(archive: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", str(archive), f"COPY (SELECT 1) TO '{tmp_path}/x.csv'"]) == 2
    assert "SQL" in capfd.readouterr().err
    assert not (tmp_path / "x.csv").exists()
    assert main(["audit", str(archive), ""]) == 2


def test_the_console_script_starts_without_heavy_imports() -> None:
    code = "import sys, jobs.cli; jobs.cli.parser(); sys.exit(any(name in sys.modules for name in ('torch', 'ray', 'pyarrow', 'duckdb')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
