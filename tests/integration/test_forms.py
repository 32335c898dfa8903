"""Archives in which images lie exactly: made, resumed, repaired, read in every way, and forged."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.cli import main
from pipeline.archive.archive import Archive
from pipeline.archive.conversion import FORMATS, Conversion
from pipeline.archive.layout import sha256
from pipeline.errors import ManifestError
from pipeline.forms import libraries
from pipeline.forms.libraries import AbsentError
from pipeline.limits import Limits
from pipeline.read.dataset import ArchiveDataset
from pipeline.read.restore import foresee, restore
from tests.conftest import PHOTOS, encoded
from tests.golden.archive.make import lossless

pytest.importorskip("lepton_jpeg_python", reason="lepton-jpeg-python has no wheel for this machine")
MODEL = str(Path(__file__).parents[1] / "golden" / "integer" / "model.safetensors")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    lossless(folder)
    return folder


@pytest.fixture(scope="module")
def made(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("made") / "archive"
    assert main(["-q", "compress", str(source), str(place), "--lossless", "--model", MODEL]) == 3  # cut.jpg is broken, and said
    return place


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "archive"))


def rows_of(place: Path) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in Archive(str(place)).manifest().to_pylist()}


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_everything_comes_back_exactly(made: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-q", "restore", str(made), str(tmp_path / "out")]) == 0
    rows = rows_of(made)
    assert len(rows) == 15
    for name, row in rows.items():
        back = tmp_path / "out" / row["restore_name"]
        if row["exact"] == "bytes":
            assert digest(back) == digest(source / name) == row["source_sha256"], name
        elif name.startswith("deep"):
            decode = imagecodecs.png_decode if name.endswith("png") else imagecodecs.tiff_decode
            np.testing.assert_array_equal(imagecodecs.png_decode(back.read_bytes()), decode((source / name).read_bytes()))
        else:
            with Image.open(back) as found, Image.open(source / name) as expected:
                assert found.mode == expected.mode
                np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))
        assert back.stat().st_mtime == pytest.approx((source / name).stat().st_mtime, abs=1e-3)
    assert main(["-q", "verify", str(made), "--decode"]) == 0
    capsys.readouterr()
    assert main(["audit", str(made)]) == 0
    said = capsys.readouterr().out
    assert "form        jpeg-exact, exact: bytes: 6 images" in said
    assert "form        pixels-exact, exact: pixels: 5 images" in said
    assert main(["audit", str(made), "--html", str(tmp_path / "page.html")]) == 0
    assert "pixels-exact" in (tmp_path / "page.html").read_text()
    capsys.readouterr()
    assert main(["status", str(made), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["jpeg_exact"], facts["pixels_exact"], facts["budget"]) == (6, 5, "--lossless")


@pytest.mark.parametrize(("form", "suffix"), [("jpeg", "jpg"), ("jxl", "jxl")])
def test_pictures_are_restored_in_the_format_asked_for(made: Path, source: Path, tmp_path: Path, form: str, suffix: str) -> None:
    conversion = Conversion(form, 80 if form == "jpeg" else None)
    result = restore(str(made), str(tmp_path / "out"), conversion=conversion)
    assert (result.problems, result.images) == ([], 15)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    deep = "png" if form == "jpeg" else suffix
    assert {
        f"rgb.{suffix}",
        f"alpha.{'png' if form == 'jpeg' else suffix}",
        f"plain.{suffix}",
        "notes.txt",
        "cmyk.jpg",
        "cut.jpg",
        "cmyk.tif",
    } < names
    assert len([name for name in names if name.startswith("deep") and name.endswith(deep)]) == 2
    if form == "jpeg":
        assert digest(tmp_path / "out" / "plain.jpg") == digest(source / "plain.jpg")
        with Image.open(tmp_path / "out" / "rgb.jpg") as image:
            assert (image.size, len(image.info["icc_profile"])) == ((96, 64), rows_of(made)["rgb.png"]["icc"])
    if form == "jxl":
        assert imagecodecs.jpegxl_decode((tmp_path / "out" / "deep.jxl").read_bytes()).dtype == np.uint16
        assert restore(str(made), str(tmp_path / "out"), conversion=conversion).skipped == 15


def test_originals_alone_or_what_a_restore_would_take(made: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-q", "restore", str(made), str(tmp_path / "out"), "--as", "original"]) == 3
    assert "5 images are not stored to the byte and were left out" in capsys.readouterr().err
    back = [path for path in (tmp_path / "out").iterdir() if path.name != "msinn-names.csv"]
    assert len(back) == 10
    assert all(digest(path) == digest(source / path.name) for path in back)
    assert main(["restore", str(made), str(tmp_path / "x"), "--dry-run", "--as", "png"]) == 0
    foreseen = foresee(str(made), conversion=Conversion("png"))
    assert f"{foreseen.same_bytes + foreseen.made_bytes:,} bytes on disk" in capsys.readouterr().out
    result = restore(str(made), str(tmp_path / "png"), conversion=Conversion("png"))
    assert result.file_bytes == pytest.approx(foreseen.same_bytes + foreseen.made_bytes, rel=0.02)
    assert not (tmp_path / "x").exists()
    for extra in (["--quality", "80"], ["--as", "png", "--quality", "80"], ["--as", "jpeg", "--quality", "0"]):
        assert main(["restore", str(made), str(tmp_path / "x"), *extra]) == 2
        assert "--quality" in capsys.readouterr().err


def test_rows_say_who_wrote_what(made: Path) -> None:
    rows = rows_of(made)
    assert rows["described.jpg"]["writer"].startswith("libjxl ")
    assert rows["plain.jpg"]["writer"].startswith("lepton-jpeg-python ")
    assert rows["plain.jpg"]["member"].endswith(".jpg.lep")
    assert rows["cut.jpg"]["error_code"] == "broken_image"
    assert (rows["cut.jpg"]["status"], rows["cut.jpg"]["form"]) == ("kept", "jpeg-exact")
    assert "4 color channels" in rows["cmyk.jpg"]["error"]
    assert (rows["deep.png"]["status"], rows["deep.png"]["mse"], rows["deep.png"]["lossless"]) == ("coded", 0.0, True)
    assert all(row["decode_verified"] == (row["codec"] != "kept") for row in rows.values())


def test_get_and_the_reader_know_the_forms(made: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("plain.jpg", "described.jpg", "cmyk.tif"):
        assert main(["get", str(made), name, "-o", str(tmp_path / name)]) == 0
        assert digest(tmp_path / name) == digest(source / name)
    assert main(["get", str(made), "plain.jpg", "--original", "-o", str(tmp_path / "o.jpg")]) == 0
    assert digest(tmp_path / "o.jpg") == digest(source / "plain.jpg")
    assert main(["get", str(made), "rgb.png", "--original", "-o", str(tmp_path / "o.jxl")]) == 0
    assert main(["get", str(made), "rgb.png", "--metadata", "-o", str(tmp_path / "meta")]) == 0
    assert (tmp_path / "meta" / "profile.icc").stat().st_size == rows_of(made)["rgb.png"]["icc"]
    capsys.readouterr()
    for file, what in (
        (tmp_path / "o.jxl", "96 x 64"),
        (_member(made, "described.jpg", tmp_path), "holds a JPEG file"),
        (_member(made, "plain.jpg", tmp_path), "lepton"),
    ):
        assert main(["inspect", str(file)]) == 0
        assert what in capsys.readouterr().out
    pictures = ArchiveDataset(str(made), where="name in ('plain.jpg', 'rgb.png', 'alpha.png')")
    assert {sample["image"].mode for sample in pictures} == {"RGB", "RGBA"}
    for sample in pictures:
        with Image.open(source / sample["name"]) as expected:
            np.testing.assert_array_equal(np.asarray(sample["image"]), np.asarray(expected))


def _member(place: Path, name: str, tmp_path: Path) -> Path:
    row = rows_of(place)[name]
    data = (place / row["shard_key"]).read_bytes()[row["offset"] : row["offset"] + row["length"]]
    (tmp_path / row["member"]).write_bytes(data)
    return tmp_path / row["member"]


def test_a_lost_shard_is_made_again_to_the_byte(place: Path, source: Path) -> None:
    shards = sorted((place / "shards").iterdir())
    before = {path.name: path.read_bytes() for path in shards}
    for path in shards:
        path.unlink()
    assert main(["-q", "compress", str(source), str(place), "--lossless", "--model", MODEL]) in (0, 3)
    assert {path.name: path.read_bytes() for path in (place / "shards").iterdir()} == before


def test_a_plan_counts_forms(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-q", "plan", str(source), str(tmp_path / "archive"), "--lossless", "--model", MODEL, "--json"]) == 0
    forms = json.loads(capsys.readouterr().out)["forms"]
    assert forms["jpeg-exact"][0] == 6
    assert forms["pixels-exact"][0] >= 4
    assert not (tmp_path / "archive" / "run.json").exists()


def test_what_no_network_coded_needs_no_model(made: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing of it is stored, nobody misses it, and the run goes on with any."""
    assert not (made / "model").exists()
    place = Path(shutil.copytree(made, tmp_path / "archive"))
    for path in (*(place / "commits").iterdir(), place / "MANIFEST.json"):
        path.unlink()
    for path in (place / "shards").iterdir():
        path.unlink()
    assert main(["-q", "compress", str(source), str(place), "--lossless"]) == 3  # cut.jpg, as before: and the shipped model
    assert not (place / "model").exists()
    for verb in (["verify"], ["verify", "--decode"], ["gc"], ["models"]):
        assert main(["-q", verb[0], *(["list"] if verb == ["models"] else []), str(place), *verb[1:]]) == 0, verb
    capsys.readouterr()
    assert main(["status", str(place)]) == 0
    assert "none: every image lies exactly" in capsys.readouterr().out
    assert main(["models", "export", str(place), "-o", str(tmp_path / "x.safetensors")]) != 0
    assert "holds no model: every image in it lies exactly" in capsys.readouterr().err
    # Books that are lost do not bring one back either.
    (next((place / "manifest").iterdir())).unlink()
    assert restore(str(place), str(tmp_path / "out")).images >= 10


def test_a_plan_says_what_a_restore_takes(made: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of few and small images it tries all, whole: without loss, what it says is what comes."""
    assert main(["-q", "plan", str(source), str(tmp_path / "archive"), "--lossless", "--model", MODEL]) == 0
    said = dict(re.findall(r"^  (restore.*?)  +([\d,]+ bytes on disk.*)$", capsys.readouterr().out, re.MULTILINE))
    assert set(said) == {"restore", *(f"restore --as {name}" for name in FORMATS)}
    for name in (None, "jpeg", "original"):
        out = tmp_path / f"out-{name}"
        result = restore(str(made), str(out), conversion=Conversion(name) if name else None)
        taken = sum(path.stat().st_size for path in out.iterdir() if path.name != "msinn-names.csv")
        line = said["restore" if name is None else f"restore --as {name}"]
        assert int(line.split()[0].replace(",", "")) == pytest.approx(taken, rel=0.01), name
        assert line.endswith(f"; {result.left_out} images are left out" if result.left_out else "sidecars aside"), name


def test_exact_bytes_leaves_no_file_otherwise(source: Path, tmp_path: Path) -> None:
    place = tmp_path / "archive"
    assert main(["-q", "compress", str(source), str(place), "--lossless", "--exact", "bytes", "--model", MODEL]) == 3
    assert {row["exact"] for row in rows_of(place).values()} == {"bytes"}
    assert restore(str(place), str(tmp_path / "out")).problems == []
    assert {path.name: digest(path) for path in source.iterdir()} == {
        path.name: digest(path) for path in (tmp_path / "out").iterdir() if path.name != "msinn-names.csv"
    }


def test_jpegs_are_exact_and_the_rest_pays(source: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(source, tmp_path / "in"))
    with Image.open(sorted(PHOTOS.rglob("*.webp"))[1]) as photo:
        for i in range(6):
            photo.convert("RGB").crop((8 * i, 0, 128 + 8 * i, 96)).save(folder / f"photo{i}.bmp")
    place, budget = tmp_path / "archive", 175_000
    assert main(["-q", "compress", str(folder), str(place), "--bytes", str(budget), "--lossless-jpeg", "--model", MODEL]) == 3
    rows = rows_of(place)
    assert {row["form"] for name, row in rows.items() if name.endswith(".jpg")} == {"jpeg-exact", "kept"}
    assert {row["form"] for name, row in rows.items() if name.startswith("photo")} == {"msinn"}
    counted = json.loads((place / "MANIFEST.json").read_text())["counted_bytes"]
    assert 0.98 * budget < counted <= budget


def test_a_budget_buys_along_all_forms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A drawn picture costs less exactly than coded well, a JPEG's curve ends in its own exact form, and one image may lose nothing."""
    folder = tmp_path / "in"
    folder.mkdir()
    with Image.open(sorted(PHOTOS.rglob("*.webp"))[0]) as photo:
        parts = [photo.convert("RGB").crop((40 + 16 * i, 100, 200 + 16 * i, 228)) for i in range(6)]
    for i, part in enumerate(parts[:4]):
        part.save(folder / f"photo{i}.png")
    parts[4].save(folder / "j.jpg", quality=60)
    Image.fromarray(np.kron(np.arange(256, dtype=np.uint8).reshape(16, 16), np.ones((9, 9), np.uint8))).save(folder / "drawn.png", compress_level=0)
    parts[5].save(folder / "precious.bmp")
    wishes = tmp_path / "wishes.csv"
    wishes.write_text("name,min_psnr_db\nprecious.bmp,inf\n")
    place, budget = tmp_path / "archive", 75_000
    options = ["--bytes", str(budget), "--forms", "all", "--model", MODEL, "--per-image", str(wishes)]
    assert main(["-q", "plan", str(folder), str(place), *options, "--json"]) == 0
    foreseen = json.loads(capsys.readouterr().out)
    assert main(["-q", "compress", str(folder), str(place), *options]) == 0
    rows = rows_of(place)
    assert (rows["precious.bmp"]["form"], rows["drawn.png"]["lossless"]) == ("pixels-exact", True)
    assert rows["drawn.png"]["error_code"] == "lossless_planned"
    assert rows["photo0.png"]["form"] == "msinn"
    assert foreseen["forms"]["msinn"][0] == sum(row["form"] == "msinn" for row in rows.values()) == 4
    assert foreseen["forms"]["jpeg-exact"][0] == 1
    counted = json.loads((place / "MANIFEST.json").read_text())["counted_bytes"]
    assert 0.97 * budget < counted <= budget
    result = restore(str(place), str(tmp_path / "out"))
    assert result.problems == []
    with Image.open(tmp_path / "out" / "precious.png") as found:
        np.testing.assert_array_equal(np.asarray(found), np.asarray(parts[5]))
    # An image that is to lose nothing takes its smallest exact form whatever the others may take.
    assert main(["-q", "compress", str(folder), str(tmp_path / "one"), "--bytes", str(budget), "--model", MODEL, "--per-image", str(wishes)]) == 0
    one = rows_of(tmp_path / "one")
    assert (one["precious.bmp"]["form"], one["precious.bmp"]["error_code"]) == ("pixels-exact", "lossless_asked_for")
    assert {row["form"] for name, row in one.items() if name.startswith("photo")} == {"msinn"}
    # Without what is new nothing of the kind happens.
    assert main(["-q", "compress", str(folder), str(tmp_path / "plain"), "--bytes", str(budget), "--model", MODEL]) == 0
    assert "pixels-exact" not in {row["form"] for row in rows_of(tmp_path / "plain").values()}


def test_without_all_forms_a_budget_codes_jpeg_files_like_others(tmp_path: Path) -> None:
    """What they would take exactly is no point of their curves there: one would be bought for the bytes of all others."""
    place = tmp_path / "dst"
    assert main(["-q", "compress", str(PHOTOS), str(place), "--bpp", "1.0", "--executor", "local"]) == 0
    rows = rows_of(place)
    assert any(name.endswith(".jpg") for name in rows)
    assert {row["form"] for row in rows.values()} == {"msinn"}


def test_every_image_exactly_within_a_budget_or_a_sentence(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--min-psnr", "inf", "--model", MODEL]
    place = tmp_path / "archive"
    assert main(["-q", "compress", str(source), str(place), "--bytes", "50000", *options]) == 4
    said = capsys.readouterr().err
    assert "the least possible with every image exact is" in said
    assert "15 files, " in said
    assert "are kept as they are or lie exactly and cannot be made smaller: " in said
    assert not (place / "run.json").exists()
    assert main(["-q", "compress", str(source), str(place), "--ratio", "1.01", *options]) == 3  # cut.jpg is broken, and said
    rows = rows_of(place)
    assert {row["form"] for row in rows.values()} == {"jpeg-exact", "pixels-exact", "kept"}
    assert all(row["lossless"] for row in rows.values())
    assert json.loads((place / "run.json").read_text(), parse_constant=pytest.fail)["config"]["min_psnr_db"] == "inf"
    assert main(["-q", "compress", str(source), str(place), "--ratio", "1.01", *options]) == 3  # resumed: the same wish


def test_a_jpeg_that_would_be_kept_becomes_smaller(tmp_path: Path) -> None:
    """Without any new option: what coding would not shrink, and what is broken."""
    (tmp_path / "in").mkdir()
    with Image.open(sorted(PHOTOS.rglob("*.webp"))[0]) as photo:
        data = encoded(photo.convert("RGB").crop((40, 100, 240, 260)), "JPEG", quality=50)
    (tmp_path / "in" / "a.jpg").write_bytes(data)
    (tmp_path / "in" / "cut.jpg").write_bytes(encoded(Image.open(io.BytesIO(data)), "JPEG", quality=90)[:-2000])
    place = tmp_path / "archive"
    assert main(["-q", "compress", str(tmp_path / "in"), str(place), "--q", "11", "--model", MODEL]) == 3
    rows = rows_of(place)
    assert {row["form"] for row in rows.values()} == {"jpeg-exact"}
    assert {name: row["error_code"] for name, row in rows.items()} == {"a.jpg": "not_smaller", "cut.jpg": "broken_image"}
    result = restore(str(place), str(tmp_path / "out"))
    assert result.problems == []
    assert digest(tmp_path / "out" / "a.jpg") == digest(tmp_path / "in" / "a.jpg")


def test_options_that_contradict_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for extra, what in (
        (["--lossless", "--min-psnr", "30"], "--min-psnr contradicts --lossless"),
        (["--bpp", "1", "--exact", "bytes"], "--exact belongs to --lossless"),
        (["--q", "3", "--forms", "all"], "--forms all is for the plan of a budget"),
        (["--lossless", "--tune", "1m"], "--tune contradicts --lossless"),
        (["--bpp", "1", "--min-psnr", "inf", "--tune", "1m"], "--tune contradicts --min-psnr inf"),
        (["--q", "3", "--min-psnr", "inf"], "--min-psnr inf asks for no loss and contradicts --q 3: say --lossless, or a budget"),
        (["--psnr", "40", "--min-psnr", "inf"], "contradicts --psnr 40"),
        (["--lossless", "--min-psnr", "inf"], "--min-psnr contradicts --lossless"),
        (["--bpp", "1", "--min-psnr", "nan"], "--min-psnr is nan; it takes 0 to 90, or inf"),
        (["--bpp", "1", "--min-psnr=-inf"], "it takes 0 to 90, or inf"),
    ):
        assert main(["compress", str(tmp_path), str(tmp_path / "a"), *extra]) == 2
        assert what in capsys.readouterr().err


# ---- whoever made the archive ----


def forged(place: Path, name: str, payload: bytes, **values: Any) -> None:
    """Another payload in place of an image's, and a manifest that agrees."""
    (place / "MANIFEST.json").unlink(missing_ok=True)
    for path in (place / "commits").iterdir():
        record = json.loads(path.read_text())
        table = pq.read_table(place / record["manifest"])
        rows = table.to_pylist()
        for row in rows:
            if row["name"] == name:
                shard = place / row["shard_key"]
                row.update(offset=shard.stat().st_size, length=len(payload), payload_sha256=sha256(payload), **values)
                with open(shard, "ab") as file:
                    file.write(payload)
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), sink)
        (place / record["manifest"]).write_bytes(sink.getvalue())
        path.write_text(json.dumps({**record, "manifest_sha256": sha256(sink.getvalue())}))


def test_hostile_members_cost_a_sentence_each(place: Path, tmp_path: Path) -> None:
    huge = imagecodecs.jpegxl_encode(np.zeros((4000, 4000), np.uint8), lossless=True, effort=1, numthreads=1)
    forged(place, "rgb.png", huge, recon_sha256="0" * 64)
    forged(place, "plain.jpg", b"\xcf\x84\x01Z" + bytes(400))
    forged(place, "described.jpg", huge)
    forged(place, "cmyk.tif", b"\x28\xb5\x2f\xfd\xe0" + (2**40).to_bytes(8, "little") + bytes(20))
    forged(place, "deep.png", b"any", codec="unheard-of\x1b[2J")
    result = restore(str(place), str(tmp_path / "out"), limits=Limits(max_pixels=10**6))
    problems = [problem for problem in result.problems if "not sealed" not in problem]
    assert len(problems) == 5, problems
    for name, what in (
        ("rgb.png", "4000 x 4000 pixels are over the limit of 1000000: --max-pixels 16000000 decodes it"),
        ("plain.jpg", "are no sound lepton"),
        ("described.jpg", "over the limit"),
        ("cmyk.tif", "1,099,511,627,776 bytes, over the limit"),
        ("deep.png", "no codec of this msinn"),
    ):
        assert any(name in problem and what in problem for problem in problems), (name, problems)
    assert result.images == 10
    with pytest.raises(ManifestError, match="over the limit"):
        list(ArchiveDataset(str(place), where="name = 'rgb.png'", limits=Limits(max_pixels=10**6)))


def test_a_payload_of_another_file_is_not_taken_for_this_one(place: Path, tmp_path: Path) -> None:
    row = rows_of(place)["progressive.jpg"]
    other = (place / row["shard_key"]).read_bytes()[row["offset"] : row["offset"] + row["length"]]
    forged(place, "plain.jpg", other)
    result = restore(str(place), str(tmp_path / "out"))
    assert any("plain.jpg" in problem and "decode to another file" in problem for problem in result.problems)
    assert not (tmp_path / "out" / "plain.jpg").exists()


def test_a_reader_without_the_library_says_which(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipeline.forms import process

    def absent(self: object, codec: str, payload: bytes) -> bytes:
        raise AbsentError(f"{codec} needs the package lepton-jpeg-python: pip install lepton-jpeg-python")

    monkeypatch.setattr(process.Forms, "decode", absent)
    assert main(["get", str(place), "plain.jpg", "-o", str(tmp_path / "x.jpg")]) == 5
    said = capsys.readouterr().err
    assert "plain.jpg is stored as lepton (lepton-jpeg-python" in said
    assert "pip install" in said
    assert libraries.lepton() is not None
