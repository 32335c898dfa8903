"""The HTML audit: what it says is what the manifest says, whatever images are called and wherever they are lost; and a real browser shows it."""

from __future__ import annotations

import base64
import html
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from infra.kinds import browser
from jobs.cli import main
from pipeline.archive.archive import Archive
from pipeline.archive.row import Row
from pipeline.formats.records import rows_of
from pipeline.plan.config import Budget, CompressConfig
from pipeline.read import page_html, page_regions
from pipeline.read.originals import Originals
from pipeline.read.restore import restore
from pipeline.run.compress import Run
from pipeline.run.report import JsonReporter
from tests.conftest import make_photos

HOSTILE = '<script>alert("x")&.png'
LONG = "a_name_without_a_space_that_once_ran_over_its_neighbours_" * 3 + ".png"
FLOOR = 20.0

needs_browser = pytest.mark.skipif(browser.browser() is None, reason="no browser: apt-get install chromium")


class Page(HTMLParser):
    """Tags and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self._within = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        self._within = tag

    def handle_data(self, data: str) -> None:
        if self._within not in ("script", "style"):
            self.text += data

    def of(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def pictures(self) -> list[tuple[str, Image.Image]]:
        """Alt text and content of every picture that is embedded without loss."""
        found = [(each["alt"], each["src"].partition("base64,")[2]) for each in self.of("img") if each["src"].startswith("data:image/webp;")]
        return [(alt, Image.open(io.BytesIO(base64.b64decode(data)))) for alt, data in found]


def compress(source: Path, archive: Path, budget: Budget, **options: Any) -> Path:
    Run(str(source), str(archive), CompressConfig(budget=budget, **options), JsonReporter(io.StringIO())).execute()
    return archive


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight photos, one of them a near-copy, one larger than a region; and files that are none."""
    photos = make_photos(tmp_path_factory.mktemp("page") / "in", 8, 64)
    (photos / "photo003.png").rename(photos / HOSTILE)
    (photos / "photo004.png").rename(photos / LONG)
    hard = np.random.default_rng(3).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    image = Image.fromarray(hard).resize((96, 96), Image.Resampling.BICUBIC)
    grain = np.random.default_rng(4).normal(128, 60, (280, 300)).clip(0, 255).astype(np.uint8)
    large = Image.fromarray(grain).convert("RGB")
    large.paste(image, (0, 0))
    large.save(photos / "photo000.png")
    large.save(photos / "photo001.bmp")
    (photos / "photo001.png").unlink()
    for i in range(7):
        (photos / f"broken{i}.png").write_bytes(b"\x89PNG no picture")
    return photos


@pytest.fixture(scope="module")
def made(source: Path) -> Path:
    return compress(source, source.parent / "archive", Budget(kind="bpp", value=3.0), min_psnr_db=FLOOR)


@pytest.fixture
def archive(made: Path, tmp_path: Path) -> Path:
    """One that a test may break."""
    return Path(shutil.copytree(made, tmp_path / "archive"))


@pytest.fixture(scope="module")
def place(made: Path) -> Path:
    """The page of the whole archive, which nobody changes."""
    assert main(["audit", str(made), "--html", str(made.parent / "report.html")]) == 0
    return made.parent / "report.html"


def report(archive: Path, tmp_path: Path, *options: str, code: int = 0) -> Page:
    place = tmp_path / "report.html"
    assert main(["audit", str(archive), "--html", str(place), *options]) == code
    return Page(place.read_text())


def test_the_page_shows_distributions_reasons_and_the_worst_images(made: Path, place: Path) -> None:
    text = place.read_text()
    page = Page(text)
    assert page.tags[0][0] == "html"
    assert page.of("html") == [{"lang": "en"}]
    assert "width=device-width" in next(each["content"] for each in page.of("meta") if each.get("name") == "viewport")
    assert not {"link", "iframe", "object", "form"} & {tag for tag, _ in page.tags}
    assert HOSTILE in page.text
    assert LONG in page.text
    assert "15: 8 coded, 7 kept to the byte, 0 failed" in page.text
    assert "kept: broken_image, 7 images" in page.text
    assert re.search(r"broken4\.png\s+called \.png, but no such format is recognised", page.text)
    assert "and 2 more" in page.text
    counts = [int(count) for count in re.findall(r"<title>[^<]* to [^<]*: (\d+)</title>", text)]
    outside = [int(count) for count in re.findall(r"(\d+) of 8 lies? outside", text)]
    assert sum(counts) + sum(outside) == 2 * 8
    assert f">floor {FLOOR:g}</text>" in text or f"floor {FLOOR:g} lies outside the axis" in text
    rows = sorted((row["psnr_db"], row["name"]) for row in Archive(str(made)).manifest().to_pylist() if row["status"] == "coded")
    listed = re.findall(r'<td class="n" data-v="([\d.]+)">[\d.]+</td><td class="n" data-v="[\d.]+">[\d.]+</td><td class="n more"', text)
    assert [float(db) for db in listed] == [db for db, _ in rows]
    sealed = Archive(str(made)).seal()
    assert sealed is not None
    share = 100 * sealed["counted_bytes"] / sealed["budget_bytes"]
    assert f"{share:.2f} % of the budget: {sealed['counted_bytes']:,} of {sealed['budget_bytes']:,.0f} bytes" in page.text
    assert text.count("<polyline") == 3
    assert "as the stored analysis predicts it from 15 images" in page.text


def test_nothing_is_loaded_and_only_our_own_script_runs(place: Path) -> None:
    text = place.read_text()
    page = Page(text)
    policy = next(each["content"] for each in page.of("meta") if each.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'; img-src data:;" in policy
    assert "unsafe" not in policy
    assert re.findall(r"<script[^>]*>(.*?)</script>", text, re.DOTALL) == [page_html.SCRIPT]
    assert all(each["src"].startswith("data:image/") for each in page.of("img"))
    assert all(each["href"].startswith("#worst-") for each in page.of("a"))
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on") or name == "style"]
    assert all(len(each["alt"]) > 20 for each in page.of("img"))


def test_the_worst_stand_beside_their_originals_to_the_pixel(made: Path, place: Path, source: Path, tmp_path: Path) -> None:
    page = Page(place.read_text())
    assert len(page.of("article")) == 7
    assert "1 near-copy of these is left out here" in page.text
    assert len(page.pictures) == 3 * 7
    restore(str(made), str(tmp_path / "out"))
    # Of a picture and its copy whichever lost more.
    alt, original = next((alt, image) for alt, image in page.pictures if alt.startswith(("Original of photo000.png", "Original of photo001.bmp")))
    assert original.size == (256, 256)
    decoded, apart = (page.pictures[[alt for alt, _ in page.pictures].index(alt) + i][1] for i in (1, 2))
    name = "photo000" if "photo000" in alt else "photo001"
    before, after = (np.asarray(Image.open(next(folder.glob(f"{name}.*")))).astype(int) for folder in (source, tmp_path / "out"))
    found = page_regions.worst_region(before.astype(np.uint8), after.astype(np.uint8))
    assert np.array_equal(np.asarray(original), found.of(before))
    assert np.array_equal(np.asarray(decoded), found.of(after))
    assert np.array_equal(np.asarray(apart), np.minimum(8 * np.abs(found.of(before) - found.of(after)), 255))


def test_originals_are_shown_only_if_they_are_the_very_files(archive: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    moved = Path(shutil.copytree(source, tmp_path / "moved"))
    changed = moved / "photo000.png"
    data = bytearray(changed.read_bytes())
    data[-20] ^= 1
    changed.write_bytes(data)
    (moved / "photo002.png").unlink()
    os.mkfifo(moved / "photo002.png")
    page = report(archive, tmp_path, "--source", str(moved))
    shown = [alt for alt, _ in page.pictures if alt.startswith("Original of")]
    assert len(shown) == 7 - 2
    assert "photo005.png" in " ".join(shown)
    assert not any("photo000" in alt or "photo002" in alt for alt in shown)
    assert "its SHA-256 is not the one of the file that was archived" in page.text
    assert "2 of them without an original" in page.text
    alone = report(archive, tmp_path, "--no-originals")
    assert [alt for alt, _ in alone.pictures if "Original" in alt] == []
    assert "without originals" in alone.text
    assert main(["audit", str(archive), "--source", "x"]) == 2
    assert main(["audit", str(archive), "--no-originals"]) == 2
    assert "say --html FILE" in capsys.readouterr().err
    assert report(archive, tmp_path, "--source", str(tmp_path / "nowhere")).text.count("Decoded alone") == 7
    assert "no original of the worst images is in" in capsys.readouterr().err


def test_originals_are_found_in_a_tar_that_moved(source: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        for name in ("photo005.png", "photo006.png"):
            tar.add(source / name, name)
    archive = compress(tmp_path / "set.tar", tmp_path / "archive", Budget(kind="q", value=3.0))
    page = report(archive, tmp_path)
    assert sum(alt.startswith("Original of") for alt, _ in page.pictures) == 2
    assert "a run with --q 3 predicts nothing, so that no analysis is stored" in page.text
    assert "no budget of bytes was set" in page.text
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "set.tar").rename(tmp_path / "elsewhere" / "set.tar")
    rows = list(rows_of(Row, Archive(str(archive)).manifest()))
    assert [Originals(Archive(str(archive))).file(row) for row in rows] == ["the source file is not there any more"] * 2
    for place in ("elsewhere/set.tar", "elsewhere", "elsewhere/*.tar"):
        found = Originals(Archive(str(archive)), str(tmp_path / place))
        assert [found.file(row) for row in rows] == [(source / Path(row.name).name).read_bytes() for row in rows]


def test_what_is_lost_is_said_on_the_page(archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (archive / "MANIFEST.json").unlink()
    page = report(archive, tmp_path)
    assert "Unfinished" in page.text
    assert "Damaged" not in page.text
    assert "Sealed" not in page.text
    for path in (archive / "shards").iterdir():
        path.unlink()
    page = report(archive, tmp_path, code=5)
    assert "Unfinished" in page.text
    assert page.text.index("Damaged: something of this archive is lost") < page.text.index("asked for")
    assert page.of("img") == []
    assert "the archive is damaged" in capsys.readouterr().err
    assert main(["audit", str(archive), "SELECT 1", "--html", str(tmp_path / "x.html")]) == 2
    assert main(["audit", str(archive), "--html", str(tmp_path / "no" / "x.html")]) == 6
    assert "cannot write" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["shards", "commits", "manifest", "MANIFEST.json"])
def test_a_damaged_archive_says_so_and_shows_the_rest(archive: Path, tmp_path: Path, what: str) -> None:
    """Exit code 5, and whatever is still readable."""
    place = archive / what
    victim = place if place.is_file() else sorted(place.iterdir())[0]
    if what == "shards":
        data = bytearray(victim.read_bytes())
        data[:] = bytes(len(data))
        victim.write_bytes(data)
    else:
        victim.write_bytes(b"{}")
    page = report(archive, tmp_path, "--no-originals", code=5)
    assert page.text.index("Damaged") < page.text.index("asked for")
    assert "Sealed" not in page.text
    if what == "MANIFEST.json":
        assert len(page.of("article")) == 7


def test_what_a_reader_does_not_take_is_no_damage(made: Path, tmp_path: Path) -> None:
    page = report(made, tmp_path, "--max-pixels", "5000")
    assert "--max-pixels 84000 decodes it" in page.text
    assert "Sealed" in page.text


def test_a_damaged_analysis_costs_its_curve_alone(archive: Path, tmp_path: Path) -> None:
    for path in (archive / "analyse").rglob("*.parquet"):
        path.write_bytes(b"PAR1 no more")
    assert "the stored analysis is damaged" in report(archive, tmp_path, "--no-originals").text
    shutil.rmtree(archive / "analyse")
    assert "the archive holds no analysis of its run" in report(archive, tmp_path, "--no-originals").text


def test_an_archive_without_coded_images_has_a_page(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "notes.bin").write_bytes(b"no picture")
    page = report(compress(tmp_path / "in", tmp_path / "dst", Budget(kind="q", value=4.0)), tmp_path)
    assert "notes.bin" in page.text
    assert page.of("script") == []


# ---- in a real browser ----

_HARNESS = """<!doctype html><meta charset=utf-8><body><script>
const found = {};
const done = () => { document.body.textContent = "MEASURED" + JSON.stringify(found) + "END"; };
const look = (name, frame) => {
  const page = frame.contentDocument, root = page.documentElement;
  const loose = [...page.querySelectorAll("body *")].filter(e => !e.closest(".wide") && e.getBoundingClientRect().right > frame.width + 0.5);
  found[name] = { width: root.scrollWidth, loose: loose.slice(0, 5).map(e => e.tagName + ":" + e.textContent.slice(0, 60)),
    pictures: [...page.images].filter(e => e.complete && e.naturalWidth > 0).length, broken: [...page.images].filter(e => !e.naturalWidth).length,
    colour: page.defaultView.getComputedStyle(page.body).backgroundColor, rows: page.querySelectorAll("#worst tbody tr").length,
    tools: page.getElementById("tools").offsetHeight, owned: page.defaultView.owned === true };
  return page;
};
const use = page => {
  const box = page.getElementById("search"), rows = () => [...page.querySelectorAll("#worst tbody tr")].filter(row => !row.hidden);
  box.value = "SCRIPT alert"; box.dispatchEvent(new Event("input"));
  found.searched = rows().map(row => row.cells[6].textContent); found.count = page.getElementById("count").textContent;
  box.value = ""; box.dispatchEvent(new Event("input"));
  page.querySelectorAll("#worst th button")[2].click(); found.rising = rows().map(row => Number(row.cells[2].textContent));
  page.querySelectorAll("#worst th button")[2].click(); found.falling = rows().map(row => Number(row.cells[2].textContent));
};
window.addEventListener("load", () => {
  look("wide", document.getElementById("wide")); look("plain", document.getElementById("plain"));
  use(look("phone", document.getElementById("phone"))); done();
});
</script>FRAMES"""


def browsed(text: str, folder: Path, *options: str) -> tuple[dict[str, Any], list[str]]:
    """What a browser makes of a page 390 and 1280 pixels wide, and without scripts; and what its console says."""
    inner = html.escape(text)
    frames = "".join(
        f'<iframe id="{name}" width="{width}" height="900" frameborder="0" srcdoc="{inner}"{more}></iframe>'
        for name, width, more in (("phone", 390, ""), ("wide", 1280, ""), ("plain", 390, ' sandbox="allow-same-origin"'))
    )
    harness = folder / "harness.html"
    harness.write_text(_HARNESS.replace("FRAMES", frames))
    command = [
        browser.browser() or "", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}",
        "--enable-logging=stderr", "--v=0", "--virtual-time-budget=20000", "--dump-dom", *options, harness.as_uri(),
    ]  # fmt: skip
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r"MEASURED(.*)END", ran.stdout)
    assert found is not None, ran.stderr[-2000:]
    console = [line for line in ran.stderr.splitlines() if "CONSOLE" in line and "sandboxed" not in line]
    return json.loads(html.unescape(found[1])), console


@needs_browser
def test_a_browser_shows_the_page(place: Path, tmp_path: Path) -> None:
    """On a phone and on a desk nothing runs over, without scripts all is there, with the page's own one it can be searched and sorted; no errors."""
    found, console = browsed(place.read_text(), tmp_path, "--blink-settings=preferredColorScheme=1")
    assert console == []
    for name, width in (("phone", 390), ("wide", 1280), ("plain", 390)):
        assert found[name]["width"] <= width, name
        assert found[name]["loose"] == [], name
        assert (found[name]["broken"], found[name]["rows"]) == (0, 8)
        assert found[name]["pictures"] >= 21
        assert found[name]["colour"] == "rgb(255, 255, 255)"
    assert found["phone"]["tools"] > 0 == found["plain"]["tools"]
    assert found["searched"] == [HOSTILE]
    assert found["count"] == "1 of 8 shown"
    assert found["rising"] == sorted(found["rising"]) == found["falling"][::-1]


@needs_browser
def test_a_browser_runs_nothing_that_is_not_ours(place: Path, tmp_path: Path) -> None:
    """Had a name come through as HTML, the policy would still forbid it; and the console, which has to be silent, would say so."""
    planted = '<main><script>window.owned = true</script><img src="https://example.com/x.png" onerror="window.owned = true" alt="">'
    found, console = browsed(place.read_text().replace("<main>", planted), tmp_path, "--blink-settings=preferredColorScheme=0")
    assert not any(found[name]["owned"] for name in ("phone", "wide", "plain"))
    assert found["phone"]["broken"] == 1
    assert found["phone"]["colour"] == "rgb(20, 23, 27)"
    assert any("Content Security Policy" in line for line in console)
