"""`msinn eval` and `msinn bench` as a user runs them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

from jobs.cli import main
from msinn_core.integer import ops, portable
from pipeline.lab.reference import pixels_digest


@pytest.fixture
def images(photo: NDArray[np.uint8], tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    Image.fromarray(photo[:96, :160]).save(folder / "a.png")
    Image.fromarray(photo[200:264, 100:164]).save(folder / "b.webp", lossless=True)
    Image.fromarray(photo[:64, :64, 0]).save(folder / "grey.png")
    (folder / "notes.txt").write_text("no image")
    return folder


def test_eval_measures_real_files_and_compares(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reference, out = tmp_path / "reference.json", tmp_path / "out"
    reference.write_text(json.dumps({"codecs": {"old codec": {"bpp": [0.5, 1.5, 6.0, 12.0], "psnr_rgb": [24.0, 28.0, 38.0, 48.0]}}}))
    command = ["eval", str(images), "--peers", "jpeg", "vvc", "--q", "1", "6", "11", "--reference", str(reference), "--out", str(out), "--keep-files"]
    assert main(command) == 0
    said = capsys.readouterr()
    assert "vvc is not measured" in said.err
    assert "| old codec |  | -" in said.out
    assert f"**{reference} does not say on which images" in said.out
    assert said.out.strip() == (out / "report.md").read_text().strip()
    rows = pq.read_table(out / "results.parquet").to_pylist()
    assert {row["image"] for row in rows} == {"a.png", "b.webp"}  # colour images only
    for row in rows:
        if row["codec"] == "msinn-lite":
            file = out / "files" / "msinn-lite" / f"{row['setting']:g}" / f"{0 if row['image'] == 'a.png' else 1:05d}.msn"
            assert row["file_bytes"] == file.stat().st_size
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert main(command) == 0
    assert "a.png, 0 files" in capsys.readouterr().err


def test_eval_compares_with_a_reference_on_its_own_images_only(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    curve = {"bpp": [0.5, 1.5, 6.0, 12.0], "psnr_rgb": [24.0, 28.0, 38.0, 48.0]}
    digests = {name: pixels_digest(np.asarray(Image.open(images / name).convert("RGB"))) for name in ("a.png", "b.webp")}
    reference, out = tmp_path / "reference.json", tmp_path / "out"
    reference.write_text(json.dumps({"codecs": {"old codec": curve, "JPEG": curve}, "pixels_sha256": digests}))
    command = ["eval", str(images), "--peers", "jpeg", "--q", "6", "11", "--reference", str(reference), "--out", str(out)]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "| old codec |" in said
    assert "does not say" not in said
    rows = pq.read_table(out / "results.parquet").num_rows
    assert len(re.findall(r"^\| JPEG \| \d+\.\d\d \| [-+]", said, re.MULTILINE)) == 1  # measured, with its time, not the file's
    assert main([*command, "--limit", "1"]) == 2
    assert f"{images} lacks 1 of the 2 pictures (b.webp for one)" in capsys.readouterr().err
    picture = np.array(Image.open(images / "a.png"))
    picture[0, 0] ^= 1
    Image.fromarray(picture).save(images / "a.png")
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "lacks 1 of the 2 pictures (a.png for one) and holds 1 other (a.png for one)" in error
    assert "Traceback" not in error
    assert pq.read_table(out / "results.parquet").num_rows == rows  # refused before anything was measured


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["eval", "NOWHERE"], "does not exist"),
        (["eval", "IMAGES", "--q", "12"], "takes 0 to 11"),
        (["eval", "IMAGES", "--model", "msinn-lite", "msinn-lite"], "one name"),
        (["eval", "IMAGES", "--model", "no-such-model"], "no model"),
        (["eval", "IMAGES", "--reference", "IMAGES/notes.txt"], "no file of reference curves"),
        (["bench", "codec", "NOWHERE"], "cannot read"),
        (["bench", "codec", "IMAGES/notes.txt"], "cannot be coded"),
        (["bench", "exact", "NOWHERE"], "does not exist"),
    ],
)
def test_nonsense_is_one_sentence(arguments: list[str], says: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [word.replace("IMAGES", str(images)).replace("NOWHERE", str(tmp_path / "nowhere")) for word in arguments]
    if arguments[0] == "eval":
        arguments += ["--out", str(tmp_path / "out")]
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert says in said
    assert "Traceback" not in said


def test_bench_shows_both_profiles_and_where_the_time_goes(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "codec", str(images / "a.png"), "--repeat", "1"]) == 0
    said = capsys.readouterr().out
    assert "profile float: 160 x 96" in said
    assert "profile int: 160 x 96" in said
    if ops.kernel is not None:
        # Both tables: each shape's calls, and how near it comes to what the instruction set can do.
        tables = re.split(r"code, shares of CPU time: .*layers \d+ %.*GMAC/s in int16.*can do \d+.*", said)[1:]
        assert len(tables) == 2
        for table in tables:
            rows = re.findall(r"^  (.+?) +(\d+) +[\d.]+ +\d+ % +(\d+) +(\d+) %$", table, re.MULTILINE)
            assert re.match(r"(3x3|1x1), \d+ to \d+ channels", rows[0][0])
            assert rows[-1][0] == "all"
            assert sum(int(calls) for _, calls, *_ in rows[:-1]) == int(rows[-1][1])
    assert main(["bench", "coder", str(images / "a.png"), "--repeat", "1"]) == 0
    said = capsys.readouterr().out
    assert "portable Python" in said
    assert "compressai rANS" in said


def test_bench_shows_other_codecs_at_the_same_quality(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["bench", "peers", str(images / "a.png"), str(images / "b.webp"), "--rounds", "1", "--peers"]
    assert main([*command, "jpeg", "webp"]) == 0
    said = capsys.readouterr().out
    rows = [line.split("|")[1:-1] for line in said.splitlines() if line.startswith("| ") and "---" not in line][1:]
    assert [row[0].split()[0] for row in rows] == ["msinn-lite,", "msinn-lite,", "JPEG", "WebP"]
    psnr_db = [float(row[1]) for row in rows]
    assert psnr_db[0] == psnr_db[1]
    assert all(abs(other - psnr_db[0]) < 1.5 for other in psnr_db[2:])
    # Real files of these pictures: ours are the smallest, and a ratio is that of the bytes.
    assert all(float(row[3]) > 1 for row in rows[2:])
    assert float(rows[2][3]) == pytest.approx(float(rows[2][2]) / float(rows[0][2]), abs=0.02)
    assert main([*command, "vvc"]) == 2
    assert "no wheel or package of vvenc" in capsys.readouterr().err


def test_bench_proves_exactness_and_tells_when_it_fails(images: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["bench", "exact", str(images), "--limit", "1"]) == 0
    said = capsys.readouterr().out
    assert "portable float64" in said
    assert said.count("0 decode to other pixels, 0 do not decode") == said.count("of 1 images")
    right = portable.Portable.dequantise
    calls = []

    def wrong(self: portable.Portable, *arguments: object) -> object:
        calls.append(1)
        # The golden vector's ten halves pass; after it the backend computes something else.
        return right(self, *arguments) + (1 << 12 if len(calls) > 10 else 0)  # type: ignore[arg-type]

    monkeypatch.setattr(portable.Portable, "dequantise", wrong)
    assert main(["bench", "exact", str(images), "--limit", "1"]) == 5


def test_bench_reads_an_archive_in_every_way_beside_jpeg(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = str(tmp_path / "dst")
    assert main(["-q", "compress", str(images), archive, "--q", "3", "--executor", "local"]) in (0, 3)
    capsys.readouterr()
    assert main(["bench", "read", archive, "--workers", "0", "1", "--rounds", "1", "--batch", "2", "--scale", "4"]) == 0
    said = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in said.splitlines() if line.startswith("| ")]
    assert rows[0] == ["images/s", "one process", "", "1 workers", ""]
    ways = [row[0].partition(" ")[0] for row in rows[2:]]
    assert ways == ["JPEG", "restored", "ArchiveDataset,", "ArchiveStream", "msinn://", "JPEG", "ArchiveDataset", "ArchiveStream"]
    assert all(float(cell) > 0 for row in rows[2:] for cell in row[1:])
    assert [rows[2][2], rows[2][4]] == ["1.000", "1.000"]
    assert "restoring these" in said
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "photos" / "a.jpg")
    assert main(["bench", "read", archive, "--jpeg", str(tmp_path / "photos"), "--workers", "0", "--rounds", "1", "--images", "1"]) == 0
    assert "1 images" in capsys.readouterr().out
    for words, sentence in (
        (["--workers", "-1"], "--workers 0"),
        (["--jpeg", str(tmp_path)[:-1]], "no files that end in .jpg"),
        (["--batch", "0"], "1 or more"),
    ):
        assert main(["bench", "read", archive, *words]) == 2
        assert sentence in capsys.readouterr().err
