"""Archives within a largest error: made, resumed, repaired, read in every way, refused by older readers."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from jobs.cli import main
from pipeline.archive import run_record
from pipeline.archive.archive import Archive
from pipeline.encode.near import NearLossless
from pipeline.errors import ManifestError
from pipeline.forms import near
from pipeline.read.dataset import ArchiveDataset
from pipeline.read.members import MemberDecoder
from pipeline.read.restore import restore
from tests.conftest import PHOTOS, encoded

ERROR = 4
EXACT = {"deep.png", "row.png", "palette.png", "flat.png", "small.jpg", "notes.txt", "cmyk.tif"}


def pictures() -> dict[str, bytes]:
    with Image.open(sorted(PHOTOS.rglob("*stunning.webp"))[0]) as photo:
        part = photo.convert("RGB").crop((40, 100, 211, 229))
    samples = np.asarray(part)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    lines = np.full((90, 140, 3), 250, np.uint8)
    rng = np.random.default_rng(0)
    for x, y in rng.integers(0, (130, 80), (60, 2)).tolist():
        lines[y : y + 3, x : x + 9] = rng.integers(0, 255, 3)
    screen = np.clip(lines + rng.integers(-2, 3, lines.shape), 0, 255).astype(np.uint8)
    return {
        "rgb.png": encoded(part, "PNG", dpi=(300, 300), icc_profile=profile),
        "grey.bmp": encoded(part.convert("L"), "BMP"),
        "alpha.png": encoded(Image.fromarray(np.dstack([samples[:101, :67], samples[:101, :67, 1]])), "PNG"),
        "screen.png": encoded(Image.fromarray(screen), "PNG", icc_profile=profile),
        "row.png": encoded(part.crop((0, 0, 171, 1)), "PNG"),
        "large.jpg": encoded(part, "JPEG", quality=100, subsampling=0),
        "small.jpg": encoded(part, "JPEG", quality=40),
        "flat.png": encoded(Image.new("RGB", (60, 50), (1, 2, 3)), "PNG"),
        "deep.png": encoded(Image.fromarray(samples[:, :, 0].astype(np.uint16) * 201), "PNG"),
        "palette.png": encoded(part.quantize(16), "PNG", transparency=3),
        "cmyk.tif": encoded(Image.new("CMYK", (64, 64), (1, 2, 3, 4)), "TIFF"),
        "notes.txt": b"no image",
    }


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    for name, data in pictures().items():
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture(scope="module")
def made(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("made") / "archive"
    assert compress(source, place) == 0
    return place


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "archive"))


def compress(source: Path, place: Path, *options: str) -> int:
    return main(["-q", "compress", str(source), str(place), "--max-error", str(ERROR), "--executor", "local", *options])


def rows_of(place: Path) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in Archive(str(place)).manifest().to_pylist()}


def pixels_of(data: bytes | Path) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(data) if isinstance(data, bytes) else data) as image:
        return np.asarray(image)


def test_no_sample_is_further_off_and_nothing_is_left_out(
    made: Path, whole: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = rows_of(made)
    assert len(rows) == 12
    for name, row in rows.items():
        back = whole / row["restore_name"]
        if name in EXACT:
            assert (row["exact"] != "no", row["mse"] or 0.0, row["lossless"]) == (True, 0.0, True), name
            continue
        assert (row["form"], row["exact"], row["codec"], row["status"]) == ("near", "no", "near", "coded"), name
        found, original = pixels_of(back).astype(int), pixels_of(source / name).astype(int)
        assert found.shape == original.shape
        colours = found[..., :3] - original[..., :3] if found.ndim == 3 else found - original
        assert 0 < np.abs(colours).max() <= ERROR, name
        assert row["mse"] == pytest.approx(float(np.mean(np.square(colours.astype(float))))), name
        assert 0 < row["psnr_db"] < 60
        assert row["writer"].startswith("libjxl ")
        assert row["decode_verified"]
        assert not row["lossless"]
        assert (row["q"] is None) == (row["model_sha256"] is None) == (row["bitstream_version"] is None) == (row["encoder"] is None)
        assert row["member"].endswith(".png.msr")
        assert row["stored_bytes"] < row["source_bytes"] + 1024
    # Photographs by the network, what is drawn by rounded samples; alpha and metadata are the source's.
    assert {name for name, row in rows.items() if row["q"] is not None} >= {"rgb.png", "grey.bmp", "large.jpg"}
    assert rows["screen.png"]["q"] is None
    np.testing.assert_array_equal(pixels_of(whole / "alpha.png")[..., 3], pixels_of(source / "alpha.png")[..., 3])
    for name in ("rgb.png", "screen.png"):
        with Image.open(whole / name) as image, Image.open(source / name) as original_image:
            image.load()
            assert image.info["icc_profile"] == original_image.info["icc_profile"]
            assert image.info.get("dpi") == original_image.info.get("dpi")
    assert main(["-q", "verify", str(made)]) == main(["-q", "verify", str(made), "--decode"]) == 0
    capsys.readouterr()
    assert main(["audit", str(made)]) == 0
    said = capsys.readouterr().out
    assert "form        near, exact: no: 5 images" in said
    assert "PSNR        mean" in said
    assert main(["audit", str(made), "--html", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert all(text in page for text in ("near", "alpha.png", "screen.png", "--max-error 4"))
    capsys.readouterr()
    assert main(["status", str(made), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["budget"] == "--max-error 4"


@pytest.fixture(scope="module")
def whole(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "out"
    assert restore(str(made), str(out)).problems == []
    return out


def test_get_inspect_and_the_readers_know_it(made: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, members = rows_of(made), MemberDecoder(str(made))
    for name in ("rgb.png", "screen.png"):
        assert main(["get", str(made), name, "-o", str(tmp_path / "one.png")]) == 0
        assert (tmp_path / "one.png").read_bytes() == (whole / name).read_bytes()
        assert main(["get", str(made), name, "--original", "-o", str(tmp_path / "x.msr")]) == 0
        assert main(["get", str(made), name, "--metadata", "-o", str(tmp_path / f"meta-{name}")]) == 0
        assert (tmp_path / f"meta-{name}" / "profile.icc").stat().st_size == rows[name]["icc"]
        capsys.readouterr()
        assert main(["inspect", str(tmp_path / "x.msr")]) == 0
        said = capsys.readouterr().out
        assert "no sample of colour off by more than 4" in said
        assert ("residual" in said) == (name == "rgb.png")
        np.testing.assert_array_equal(np.asarray(members(".png.msr", (tmp_path / "x.msr").read_bytes())), pixels_of(whole / name))
        (tmp_path / "x.msr").write_bytes((tmp_path / "x.msr").read_bytes()[:-1])
        assert main(["inspect", str(tmp_path / "x.msr")]) != 0
        assert "near-lossless member" in capsys.readouterr().err
    for sample in ArchiveDataset(str(made), where="form = 'near'"):
        np.testing.assert_array_equal(np.asarray(sample["image"]), pixels_of(whole / rows[sample["name"]]["restore_name"]))


def test_it_is_compared_exported_and_converted(made: Path, whole: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert restore(str(made), str(whole)).skipped == 12  # it is there already
    assert main(["diff", str(made), str(whole)]) == 0
    assert main(["diff", str(made), str(source)]) == 0
    assert main(["-q", "restore", str(made), str(tmp_path / "tars"), "--to", "webdataset"]) == 0
    assert main(["-q", "restore", str(made), str(tmp_path / "jxl"), "--as", "jxl"]) == 0
    assert (tmp_path / "jxl" / "rgb.jxl").exists()
    assert main(["-q", "restore", str(made), str(tmp_path / "originals"), "--as", "original"]) == 3
    lossy = sum(row["exact"] != "bytes" for row in rows_of(made).values())
    assert f"{lossy} images are not stored to the byte" in capsys.readouterr().err


def test_books_that_are_lost_do_not_lose_it(whole: Path, place: Path, tmp_path: Path) -> None:
    shutil.rmtree(place / "manifest")
    assert restore(str(place), str(tmp_path / "saved")).images == 12
    for path in whole.glob("*.png"):
        assert (tmp_path / "saved" / path.name).read_bytes() == path.read_bytes(), path.name


def test_a_run_that_is_gone_on_with_ends_with_the_same_bytes(place: Path, source: Path) -> None:
    before = {path.name: path.read_bytes() for path in (place / "shards").iterdir()}
    (place / "MANIFEST.json").unlink()
    for folder in ("commits", "shards", "manifest"):  # all but one are to be done again
        for path in sorted((place / folder).iterdir())[1:]:
            path.unlink()
    assert compress(source, place) == 0
    assert {path.name: path.read_bytes() for path in (place / "shards").iterdir()} == before
    assert main(["-q", "compress", str(source), str(place), "--max-error", "3", "--executor", "local"]) == 2


def test_lost_shards_are_made_again_to_the_byte(place: Path, source: Path) -> None:
    before = {path.name: path.read_bytes() for path in (place / "shards").iterdir()}
    for path in (place / "shards").iterdir():
        path.unlink()
    assert compress(source, place) == 0
    assert {path.name: path.read_bytes() for path in (place / "shards").iterdir()} == before


@pytest.mark.parametrize("name", ["rgb.png", "screen.png"])
def test_a_flipped_byte_is_found_and_costs_one_image(name: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = rows_of(place)[name]
    path = place / row["shard_key"]
    data = bytearray(path.read_bytes())
    data[row["offset"] + row["length"] // 2] ^= 4
    path.write_bytes(data)
    for options in ([], ["--decode"]):
        capsys.readouterr()
        assert main(["-q", "verify", str(place), *options]) == 5
        said = capsys.readouterr()
        assert name in said.out + said.err
        assert "alpha.png" not in said.out + said.err
    result = restore(str(place), str(tmp_path / "out"))
    assert len(result.problems) == 1
    assert result.images == 11


def test_older_readers_say_that_they_are_older(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert json.loads((place / "run.json").read_text())["archive_version"] == 6
    monkeypatch.setattr(run_record, "READ_VERSIONS", (1, 2, 3, 4))
    with pytest.raises(ManifestError, match=r"archive version 6; this msinn reads versions 1 to 4.*use a newer msinn"):
        Archive(str(place))
    assert main(["-q", "verify", str(place)]) != 0
    assert "use a newer msinn" in capsys.readouterr().err


def test_a_plan_says_what_it_takes(made: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-q", "plan", str(source), str(tmp_path / "x"), "--max-error", str(ERROR), "--json"]) == 0
    foreseen = json.loads(capsys.readouterr().out)
    rows = rows_of(made).values()
    assert foreseen["forms"]["near"][0] == 5
    assert foreseen["predicted_bytes"] == pytest.approx(sum(path.stat().st_size for path in (made / "shards").iterdir()), rel=0.08)
    assert sum(images for images, _ in foreseen["forms"].values()) == len(rows)
    assert foreseen["restored"]["restore"][0] > 0
    assert foreseen["encode_worker_hours"] > 0
    assert not (tmp_path / "x" / "run.json").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--max-error", "0"], "takes a whole number from 1 to 8"),
        (["--max-error", "9"], "takes a whole number from 1 to 8"),
        (["--max-error", "1.5"], "takes a whole number from 1 to 8"),
        (["--max-error", "nan"], "takes a whole number from 1 to 8"),
        (["--max-error", "2", "--q", "3"], "not allowed with"),
        (["--max-error", "2", "--bpp", "1"], "not allowed with"),
        (["--max-error", "2", "--psnr", "40"], "not allowed with"),
        (["--max-error", "2", "--lossless"], "not allowed with"),
        (["--max-error", "2", "--tune", "5m"], "--tune learns for a budget"),
        (["--max-error", "2", "--min-psnr", "40"], "--min-psnr contradicts --max-error 2"),
        (["--max-error", "2", "--min-psnr", "inf"], "--min-psnr contradicts --max-error 2"),
        (["--max-error", "2", "--forms", "all"], "--forms all is for the plan"),
        (["--max-error", "2", "--exact", "bytes"], "--exact belongs to --lossless"),
        (["--max-error", "2", "--device", "auto"], "--device auto contradicts --max-error 2"),
        (["--max-error", "2", "--model", "float"], "computes in floats"),
    ],
)
def test_what_contradicts_it_is_one_sentence(
    options: list[str], says: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if options[-1] == "float":
        from pipeline.run import compress as run

        whole = run.models_for
        monkeypatch.setattr(run, "models_for", lambda name, store: [_Float(*[model.name for model in whole("msinn-lite", store)])])
    try:
        code = main(["-q", "compress", str(source), str(tmp_path / "x"), *options])
    except SystemExit as ended:  # what argparse says itself
        code = int(str(ended.code))
    assert code == 2
    said = capsys.readouterr().err
    assert says in said
    assert not (tmp_path / "x").exists()


class _Float:
    """What is asked of a model before anything is read."""

    profile = "float"

    def __init__(self, name: str) -> None:
        self.name = name


def test_what_does_not_come_back_within_the_bound_lies_exactly(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever goes wrong between the samples and the bytes: the member is compared with the source, not with what it was made from."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("screen.png", "alpha.png"):
        shutil.copy(source / name, folder / name)
    monkeypatch.setattr(near, "numbered", lambda pixels, largest: (pixels // 20).astype(np.uint8))
    monkeypatch.setattr(NearLossless, "_rates", lambda *_: iter(()))
    assert compress(folder, tmp_path / "archive") == 3
    for row in rows_of(tmp_path / "archive").values():
        assert (row["exact"], row["error_code"]) in (("pixels", "codec_failed"), ("bytes", "codec_failed"))
        assert "every sample within 4" in row["error"]
    assert restore(str(tmp_path / "archive"), str(tmp_path / "out")).problems == []


def test_a_machine_that_computes_otherwise_commits_nothing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    shutil.copy(source / "rgb.png", folder / "rgb.png")
    whole = near.restored

    def other(*arguments: Any) -> Any:
        found = whole(*arguments)
        return near.with_pixels(found, found.pixels ^ 1)

    monkeypatch.setattr(near, "restored", other)
    assert compress(folder, tmp_path / "archive") == 6
    assert "computes wrongly: rgb.png" in capsys.readouterr().err
    assert not list((tmp_path / "archive").glob("commits/*"))


def test_it_grows_by_its_own_promise_alone(made: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(shutil.copytree(source, tmp_path / "in"))
    place = tmp_path / "archive"
    for path in folder.iterdir():
        if path.name not in ("rgb.png", "flat.png"):
            path.unlink()
    assert compress(folder, place) == 0
    shutil.copy(source / "screen.png", folder / "screen.png")
    shutil.copy(source / "grey.bmp", folder / "grey.bmp")
    assert main(["-q", "compress", str(folder), str(place), "--grow", "--bpp", "1", "--executor", "local"]) == 2
    assert "an archive makes one promise" in capsys.readouterr().err
    assert main(["-q", "compress", str(folder), str(place), "--grow", "--executor", "local"]) == 0
    rows = rows_of(place)
    assert {rows[name]["form"] for name in ("rgb.png", "screen.png", "grey.bmp")} == {"near"}
    # No reader of version 5 takes it for one that it knows.
    for books in (place / "run.json", place / "MANIFEST.json", *(place / "seals").glob("*.json"), *place.glob("generations/*/run.json")):
        assert json.loads(books.read_text())["archive_version"] == 6, books
    assert restore(str(place), str(tmp_path / "out")).problems == []
    for name in ("screen.png", "grey.bmp"):
        found, original = pixels_of(tmp_path / "out" / rows[name]["restore_name"]).astype(int), pixels_of(source / name).astype(int)
        assert 0 < np.abs(found - original).max() <= ERROR
