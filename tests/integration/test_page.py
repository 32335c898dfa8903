"""The HTML audit: what it says is what the manifest says, whatever images are called and wherever they are lost."""

from __future__ import annotations

import base64
import io
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from jobs.cli import main
from pipeline.archive.archive import Archive
from pipeline.plan.config import Budget, CompressConfig
from pipeline.run.compress import Run
from pipeline.run.report import JsonReporter
from tests.conftest import make_photos

HOSTILE = '<script>alert("x")&.png'


class Page(HTMLParser):
    """Tags and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def made(ray_pool: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    photos = make_photos(folder / "in", 8, 64)
    (photos / "photo003.png").rename(photos / HOSTILE)
    (photos / "broken.png").write_bytes(b"\x89PNG no picture")
    Run(str(photos), str(folder / "archive"), CompressConfig(budget=Budget(kind="bpp", value=4.0)), JsonReporter(io.StringIO())).execute()
    return folder / "archive"


def test_the_page_shows_distributions_reasons_and_the_worst_images(made: Path, tmp_path: Path) -> None:
    assert main(["audit", str(made), "--html", str(tmp_path / "report.html")]) == 0
    text = (tmp_path / "report.html").read_text()
    page = Page(text)
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert HOSTILE in page.text
    assert "9: 8 coded, 1 kept as they are, 0 failed" in page.text
    assert "broken.png" in page.text
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert len(page.sources) == 8
    shown = Image.open(io.BytesIO(base64.b64decode(page.sources[0].partition(",")[2])))
    assert shown.size == (64, 64)
    rows = sorted((row["psnr_db"], row["key"]) for row in Archive(str(made)).manifest().to_pylist() if row["status"] == "coded")
    order = [(float(db), key) for db, key in re.findall(r"([\d.]+) dB, [\d.]+ bpp<br>(\d{9})", text)]
    assert order == [(round(db, 2), key) for db, key in rows]
    counts = [int(count) for count in re.findall(r"<title>[^<]* to [^<]*: (\d+)</title>", text)]
    assert sum(counts) == 2 * 8


def test_what_is_lost_is_said_on_the_page(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = tmp_path / "archive"
    shutil.copytree(made, archive)
    (archive / "MANIFEST.json").unlink()
    for path in (archive / "shards").iterdir():
        path.unlink()
    assert main(["audit", str(archive), "--html", str(tmp_path / "report.html")]) == 0
    page = Page((tmp_path / "report.html").read_text())
    assert "unfinished" in page.text
    assert page.sources == []
    assert main(["audit", str(archive), "SELECT 1", "--html", str(tmp_path / "x.html")]) == 2
    assert main(["audit", str(archive), "--html", str(tmp_path / "no" / "x.html")]) == 6
    assert "cannot write" in capsys.readouterr().err


def test_an_archive_without_coded_images_has_a_page(ray_pool: None, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "notes.bin").write_bytes(b"no picture")
    Run(str(tmp_path / "in"), str(tmp_path / "dst"), CompressConfig(budget=Budget(kind="q", value=4.0)), JsonReporter(io.StringIO())).execute()
    assert main(["audit", str(tmp_path / "dst"), "--html", str(tmp_path / "report.html")]) == 0
    assert "notes.bin" in (tmp_path / "report.html").read_text()
