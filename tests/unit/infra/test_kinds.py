"""Datasets of one kind: the same for a seed, both sides apart, and looking as they should; what learning one gains, in a table."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from infra.kinds import browser, charts, documents, measure, screens
from infra.kinds.photographs import tiles
from infra.kinds.scan import LEAST_SKEW, MOST_SKEW, scan
from infra.kinds.words import words
from msinn_core.model_file import WEIGHTS, load_model
from pipeline.lab.evaluation import evaluate
from tests.conftest import make_photos

ROOT = Path(__file__).parents[3]
needs_browser = pytest.mark.skipif(browser.browser() is None, reason="no browser: apt-get install chromium")


def test_both_sides_say_different_things() -> None:
    learned, held = words(False), words(True)
    assert not set(learned.paragraphs) & set(held.paragraphs)
    assert not set(learned.code) & set(held.code)
    assert len(held.paragraphs) > 200
    assert len(learned.paragraphs) > 2 * len(held.paragraphs)


@pytest.mark.parametrize("make", [screens.page, documents.sheet])
def test_pages_depend_on_seed_number_and_side_alone(make: object) -> None:
    assert callable(make)
    module = screens if make is screens.page else documents
    shared = [kind.__name__ for kind in module.SHARED]
    assert [make(number, seed=3)[0] for number in range(len(shared))] == shared
    assert make(5, seed=3) == make(5, seed=3)
    assert len({make(5, seed=3)[1], make(5, seed=4)[1], make(5, seed=3, held=True)[1], make(5 + len(shared), seed=3)[1]}) == 4
    held = {make(number, seed=3, held=True)[0] for number in range(40)}
    assert {kind.__name__ for kind in module.HELD_ALONE} <= held
    assert held & set(shared)
    assert not {kind.__name__ for kind in module.HELD_ALONE} & set(shared)


def test_charts_depend_on_seed_number_and_side_alone() -> None:
    pytest.importorskip("matplotlib", reason="pip install 'msinn[train]'")
    name, picture = charts.chart(1, seed=3)
    assert name == charts.SHARED[1].__name__.replace("_", "-")
    assert picture.tobytes() == charts.chart(1, seed=3)[1].tobytes()
    assert len({charts.chart(1, seed=seed, held=held)[1].tobytes() for seed, held in ((3, False), (4, False), (3, True))}) == 3
    assert min(picture.size) >= 400
    assert len(picture.getcolors(1 << 20) or ()) > 8


def test_a_scan_is_skewed_toned_noisy_and_a_jpeg() -> None:
    sheet = Image.new("RGB", (600, 500), "white")
    sheet.paste((0, 0, 0), (100, 248, 500, 252))
    for seed in range(6):
        with Image.open(io.BytesIO(scan(sheet, np.random.default_rng(seed), sheet))) as image:
            assert image.format == "JPEG"
            found = np.asarray(image.convert("L"), float)
        dark = np.array([250 - 60 + found[190:310, column].argmin() for column in (160, 440)])
        skew = abs(np.degrees(np.arctan2(dark[1] - dark[0], 280)))
        assert LEAST_SKEW - 0.4 < skew < MOST_SKEW + 0.4
        flat = found[60:90, 280:310]
        assert 150 < flat.mean() < 253
        assert 0.2 < flat.std() < 8


@needs_browser
def test_frames_are_the_pages_in_their_order() -> None:
    colours = [(200, 10, 30), (10, 200, 30), (10, 30, 200)]
    pages = [f"<!doctype html><body style='background:rgb{colour}'>&quot;text&quot;</body>" for colour in colours]
    for scale in (1.0, 1.25):
        shown = browser.frames(pages, 160, 96, scale=scale)
        assert [picture.size for picture in shown] == [(160 * scale, 96 * scale)] * 3
        assert [picture.getpixel((100, 80)) for picture in shown] == colours
    text = "<!doctype html><body style='background:#fff;font:20px sans-serif'>" + "Waves of text. " * 20
    grey, stripes = (np.asarray(browser.frames([text], 480, 320, subpixel=subpixel)[0]) for subpixel in (False, True))
    assert grey.min() < 60
    assert (grey == grey[..., :1]).all()
    assert not (stripes == stripes[..., :1]).all()


@needs_browser
@pytest.mark.skipif(shutil.which("pdftoppm") is None, reason="no pdftoppm: apt-get install poppler-utils")
def test_sheets_are_printed_one_to_a_page() -> None:
    made = list(documents.documents(3, seed=2))
    assert [name for name, _ in made] == [kind.__name__ for kind in documents.SHARED[:3]]
    for _, data in made:
        with Image.open(io.BytesIO(data)) as image:
            assert min(image.size) > 480
            assert np.asarray(image.convert("L")).std() > 8


@pytest.fixture
def tars(tmp_path: Path) -> list[str]:
    """Two tars of tiles of sources `a` and `b`."""
    for name, first in (("old", 0), ("new", 500)):
        with tarfile.open(tmp_path / f"{name}.tar", "w") as tar:
            for number in range(first, first + 60):
                data = f"tile {number}".encode()
                member = tarfile.TarInfo(f"{number:05d}_{'ab'[number % 2]}.webp")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return [str(tmp_path / "old.tar"), str(tmp_path / "new.tar")]


def test_tiles_of_a_source_are_on_one_side_and_unseen_ones_come_first(tars: list[str]) -> None:
    old, new = tars
    learned = list(tiles([old], 400, seed=1, held=False, source="a"))
    held = list(tiles([old], 400, seed=1, held=True, source="a"))
    assert {name.split("_")[1] for name, _ in learned + held} == {"a.webp"}
    assert len(held) > 0
    assert len({data for _, data in learned + held}) == len(learned) + len(held) == 30
    with_new = [name for name, _ in tiles([old], 33, seed=1, held=True, source="a", unseen=[new])]
    assert [name.split("-")[0] for name in with_new] == ["new"] * 30 + ["old"] * min(3, len(held))
    assert [name for name, _ in tiles([old], 400, seed=1, held=False, unseen=[new]) if name.startswith("new")] == []
    assert len(list(tiles([old], 10, seed=1, held=False))) == 10


def test_the_command_writes_a_folder(tmp_path: Path, tars: list[str]) -> None:
    command = [sys.executable, "-m", "infra.kinds.make", "mixed", "--count", "5", "--out", str(tmp_path / "mixed")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "chosen among --tiles" in done.stderr
    subprocess.run([*command, "--tiles", *tars], cwd=ROOT, check=True, capture_output=True)
    names = sorted(path.name for path in (tmp_path / "mixed").iterdir())
    assert [name[:11] for name in names] == [f"mixed-{number:04d}-" for number in range(1, 6)]


# The table ----------------------------------------------------------------------------------------------------------------------------------------


class Coarse:
    """A codec whose files hold pixels rounded to steps, padded to a multiple of what another of these takes."""

    version, suffix, settings = "1", ".raw", (32.0, 16.0, 8.0, 4.0)

    def __init__(self, name: str, factor: int) -> None:
        self.name, self.factor = name, factor

    def encode(self, pixels: NDArray[np.uint8], setting: float) -> bytes:
        data = b"%5d%5d" % pixels.shape[:2] + (pixels // int(setting) * int(setting)).astype(np.uint8).tobytes()
        return data.ljust(int(self.factor * 40_000 / setting + 60_000 * self.factor), b"\0")

    def decode(self, data: bytes) -> NDArray[np.uint8]:
        height, width = int(data[:5]), int(data[5:10])
        return np.frombuffer(data[10 : 10 + 3 * height * width], np.uint8).reshape(height, width, 3)


def test_gains_are_those_of_the_files_in_windows_that_both_cover(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.lab.comparison._RESAMPLES", 20)
    rng = np.random.default_rng(0)
    source = [(f"{i}.png", rng.integers(0, 256, (96, 128, 3), dtype=np.uint8)) for i in range(5)]
    peers = [Coarse("msinn-lite", 4), Coarse("own", 2), Coarse("JPEG XL", 1), Coarse("worse", 8)]
    rows = evaluate(source, peers, tmp_path, keep_files=False, said=lambda _: None)
    general = load_model()
    result = measure.compare(rows, general, {"own": general, "worse": general})
    for model, other, percent in (("own", "msinn-lite", -50), ("own", "JPEG XL", 100), ("worse", "msinn-lite", 100)):
        of = result["tuned"][model]["against"][other]
        assert of["whole"] == pytest.approx([percent] * 3, abs=1e-6)
        assert of["32-35 dB"] == pytest.approx([percent] * 3, abs=1e-6)
        assert of["47-50 dB"] is None
    assert result["general"]["against"]["JPEG XL"]["whole"] == pytest.approx([300] * 3, abs=1e-6)
    sizes = result["tuned"]["own"]["bytes"]
    assert sizes["file"] == len(general.data) > sizes["alone"] > 1000 * sizes["difference"]  # from itself it does not differ
    assert result["tuned"]["own"]["pays_above_bytes"] == pytest.approx(2 * sizes["alone"])
    assert result["tuned"]["worse"]["pays_above_bytes"] is None
    text = measure.markdown(result)
    assert "| own | msinn-lite | -50.0 (-50.0 to -50.0) |" in text
    assert "not certain to gain" in text
    assert "47-50 dB" not in text


def test_pictures_are_taken_over_the_whole_folder_and_of_each_its_centre(tmp_path: Path) -> None:
    for i in range(9):
        picture = Image.new("RGB", (80, 70), "white")
        picture.paste((i, 0, 0), (8, 3, 72, 67))
        picture.save(tmp_path / f"{i}.png")
    found = measure.chosen(str(tmp_path), 3, 64)
    assert [Path(name).name for name, _ in found] == ["0.png", "4.png", "8.png"]
    assert [(pixels.shape, sorted(np.unique(pixels[..., 0]))) for _, pixels in found] == [((64, 64, 3), [i]) for i in (0, 4, 8)]


def arguments(tmp_path: Path, **more: object) -> SimpleNamespace:
    given = {"held": str(tmp_path / "in"), "general": "msinn-lite", "tuned": [], "output": tmp_path / "out.json", "count": 2, "side": 96}
    return SimpleNamespace(**given | {"threads": 1, "rows": None, "peers": ["jxl"]} | more)


def test_a_copy_of_the_general_model_gains_nothing_and_is_measured_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pipeline.lab.comparison._RESAMPLES", 20)
    make_photos(tmp_path / "in", 3, 96)
    own = tmp_path / "own.safetensors"
    own.write_bytes((WEIGHTS / "msinn-lite.safetensors").read_bytes())
    result = measure.run(arguments(tmp_path, tuned=[str(own)]))
    said = capsys.readouterr()
    model = result["tuned"]["own"]
    assert model["against"]["msinn-lite"]["whole"] == [0, 0, 0]
    assert model["pays_above_bytes"] is None
    assert model["bytes"]["file"] == own.stat().st_size
    assert json.loads((tmp_path / "out.json").read_text())["tuned"]["own"]["sha256"] == model["sha256"]
    assert "| own | msinn-lite | +0.0 (+0.0 to +0.0) |" in said.out
    if result["absent"]:
        assert "jxl is not measured: neither cjxl" in said.err
    else:
        assert len(model["against"]["JPEG XL"]) == 9
    measure.run(arguments(tmp_path, tuned=[str(own)]))
    assert capsys.readouterr().err.count(", 0 files in") == 2


def test_what_cannot_be_measured_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    for tuned, said in (([], "is empty"), ([str(WEIGHTS / "msinn-lite.safetensors")], "two of the models have one name")):
        words = ["measure", "--held", str(tmp_path / "in"), "-o", str(tmp_path / "o.json"), *(["--tuned", *tuned] if tuned else [])]
        monkeypatch.setattr(sys, "argv", words)
        assert measure.main() == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "o.json").exists()
