"""Archives, names, queries and sources of people who mean harm: nothing outside is read or written, nothing is shown as it is, no secret is kept.

The forged archives are the golden one of version 2 with its hashes made right again.
"""

from __future__ import annotations

import base64
import http.server
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.cli import main
from msinn_core import bitstream
from msinn_core.errors import CheckpointError
from msinn_core.model_file import parse_model
from pipeline.archive.archive import Archive
from pipeline.archive.layout import sha256
from pipeline.errors import ManifestError, SourceError, UsageError
from pipeline.execute import connection
from pipeline.formats.parquet import Chunk, Group
from pipeline.limits import Limits
from pipeline.read import verify
from pipeline.read.audit import query
from pipeline.read.dataset import ArchiveDataset
from pipeline.read.page_html import SCRIPT
from pipeline.read.restore import restore
from pipeline.sources import Fetcher, scan
from pipeline.text import redacted
from tests.golden.test_archives import copied

HOSTILE_NAME = "a\x1b]0;owned\x07\x1b]52;c;cm0=\x07[/b]\u202egnp\n.png"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return copied("version-2", tmp_path)


def forge(place: Path, change: Callable[[list[dict[str, Any]]], None]) -> None:
    """Change rows of an archive's manifest and make its hashes right; without a seal, which would name the commits as they were."""
    (place / "MANIFEST.json").unlink(missing_ok=True)
    for path in sorted((place / "commits").iterdir()):
        record = json.loads(path.read_text())
        part = place / record["manifest"]
        table = pq.read_table(part)
        rows = table.to_pylist()
        change(rows)
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), sink)
        part.write_bytes(sink.getvalue())
        path.write_text(json.dumps({**record, "manifest_sha256": sha256(sink.getvalue())}))


def set_of(which: str, **values: Any) -> Callable[[list[dict[str, Any]]], None]:
    def change(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            if row["name"] == which:
                row.update(values)

    return change


def peak_mib(*arguments: str) -> tuple[int, float]:
    """Exit code and largest resident memory of a command, or of Python code after `-c`, in a process of its own."""
    command = [sys.executable, *(arguments if arguments[0] == "-c" else ("-m", "jobs.cli", *arguments))]
    # Started by a small process: what is begun from this one counts this one's memory as its own.
    small = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode
print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
    said = subprocess.run([sys.executable, "-c", small, *command], capture_output=True, text=True, check=True).stdout
    code, kib = map(int, said.split())
    return code, kib / 1024


def change_run(place: Path, **values: Any) -> None:
    run = json.loads((place / "run.json").read_text())
    (place / "run.json").write_text(json.dumps({**run, **values}))


# ---- an archive does not set its own limits ----


def test_a_row_reads_no_file_outside_the_archives_shards(place: Path, tmp_path: Path) -> None:
    os.mkfifo(place / "shards" / "00009-000000000000.tar")
    odd = {
        "photo000.png": "../../../../../../etc/passwd", "photo001.png": "/dev/zero", "photo002.png": "shards/00009-000000000000.tar",
        "photo003.png": "simplecache::/etc/passwd", "photo004.png": "run.json", "photo005.png": None,
    }  # fmt: skip

    def change(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            if row["name"] in odd:
                # Not null in the schema: what somebody who writes Parquet by hand can do all the same.
                row["shard_key"] = odd[row["name"]] or ""

    forge(place, change)
    result = restore(str(place), str(tmp_path / "out"))
    for name in odd:
        assert any(name in problem for problem in result.problems), name
    assert len([problem for problem in result.problems if "no shard of the archive: the manifest is not to be trusted" in problem]) == 5
    assert len([problem for problem in result.problems if "is no regular file" in problem]) == 1
    assert result.images == 6
    assert main(["get", str(place), "photo000.png", "-o", str(tmp_path / "x.png")]) == 5
    with pytest.raises(ManifestError, match="no shard of the archive"):
        list(ArchiveDataset(str(place), where="name = 'photo000.png'"))


@pytest.mark.parametrize("target", ["folder", "memory://target"])
def test_a_row_writes_no_file_outside_the_target(place: Path, tmp_path: Path, target: str) -> None:
    names = [
        "../escaped.png",
        str(tmp_path / "absolute.png"),
        "simplecache::memory://elsewhere/x.png",
        "a\\..\\..\\b.png",
        "C:\\x.png",
        "a/../../b.png",
    ]
    for i, name in enumerate(names):
        forge(place, set_of(f"photo00{i}.png", restore_name=name))
    result = restore(str(place), target if "://" in target else str(tmp_path / "inner" / target))
    assert len([problem for problem in result.problems if "would be written outside" in problem]) == len(names)
    assert result.images == 6
    assert not [path for path in tmp_path.rglob("*.png") if not path.is_relative_to(tmp_path / "inner" / target)]


def test_a_link_in_the_target_is_not_followed(place: Path, tmp_path: Path) -> None:
    outside, out = tmp_path / "outside", tmp_path / "out"
    outside.mkdir()
    out.mkdir()
    forge(place, set_of("photo000.png", restore_name="sub/photo000.png"))
    (out / "sub").symlink_to(outside)
    (out / "photo001.png").symlink_to(outside / "victim.png")
    (outside / "victim.png").write_bytes(b"mine")
    result = restore(str(place), str(out), overwrite=True)
    assert any("is, or lies behind, a link" in problem for problem in result.problems)
    assert sorted(path.name for path in outside.iterdir()) == ["victim.png"]
    assert (outside / "victim.png").read_bytes() == b"mine"
    assert not (out / "photo001.png").is_symlink()  # replaced itself, not what it led to


def test_two_rows_with_one_name_are_two_files(place: Path, tmp_path: Path) -> None:
    forge(place, set_of("photo001.png", restore_name="photo000.png"))
    result = restore(str(place), str(tmp_path / "out"))
    assert [problem for problem in result.problems if "are to be restored as photo000.png: the second is restored as photo000~0" in problem]
    assert result.images == 12
    assert len(list((tmp_path / "out").glob("photo000*.png"))) == 2


def test_one_bad_row_costs_that_row(place: Path, tmp_path: Path) -> None:
    def change(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            if row["name"] == "photo000.png":
                row["offset"] = -5
            if row["name"] == "photo001.png":
                row["length"] = 2**61
            if row["sidecars"]:
                row["sidecars"][0]["name"] = None

    forge(place, change)
    # A name that is not UTF-8, and a time that no calendar has.
    path = sorted((place / "commits").iterdir())[2]
    record = json.loads(path.read_text())
    table = pq.read_table(place / record["manifest"])
    names = [value.encode() + (b"\xff" if value == "printed.png" else b"") for value in table.column("name").to_pylist()]
    raw = pa.Array.from_buffers(pa.string(), len(names), pa.array(names, pa.binary()).buffers())
    at = table.column_names.index("name")
    table = table.set_column(at, table.schema.field("name"), raw)
    at = table.column_names.index("mtime")
    table = table.set_column(at, table.schema.field("mtime"), pa.array([2**62] * len(names), pa.int64()).cast(table.schema.field("mtime").type))
    sink = io.BytesIO()
    pq.write_table(table, sink)
    (place / record["manifest"]).write_bytes(sink.getvalue())
    path.write_text(json.dumps({**record, "manifest_sha256": sha256(sink.getvalue())}))
    result = restore(str(place), str(tmp_path / "out"))
    assert (tmp_path / "out" / "printed.png").exists()
    assert result.images == 9
    assert len([problem for problem in result.problems if "not sealed" not in problem]) == 3, result.problems
    assert main(["audit", str(place), "SELECT name, mtime FROM manifest"]) == 0
    assert verify.fixity(str(place)).problems


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"shards": 10**10}, "shards is 10000000000"),
        ({"shards": 1e10}, "shards is no int"),
        ({"shard_first": [0] * 9}, "shard_first"),
        ({"config": None}, "it has no config"),
        ({"scan": "../../etc/passwd"}, "scan is no name of an object of this archive"),
        ({"model_sha256": "../../etc/passwd"}, "it is no SHA-256"),
        ({"source": 5}, "source is no str"),
        ({"archive_version": "\x1b[2J"}, "archive version"),
    ],
)
def test_what_an_archive_says_of_itself_is_checked(place: Path, capsys: pytest.CaptureFixture[str], values: dict[str, Any], what: str) -> None:
    change_run(place, **values)
    for arguments in (["status", str(place)], ["restore", str(place), str(place) + "-out"], ["verify", str(place)]):
        assert main(arguments) == 5
        assert what in (said := capsys.readouterr().err)
        assert "\x1b" not in said


@pytest.mark.parametrize("text", ["[" * 100_000, "{}", "[]", "null", '{"archive_version": 2}', "{" * 9 + "\0"])
def test_books_that_are_no_books(place: Path, text: str) -> None:
    for name in ("run.json", "MANIFEST.json"):
        before = (place / name).read_text()
        (place / name).write_text(text)
        assert main(["restore", str(place), str(place) + f"-{name}"]) == 5
        (place / name).write_text(before)
    path = sorted((place / "commits").iterdir())[0]
    path.write_text(text)
    assert main(["restore", str(place), str(place) + "-commits"]) == 5


def test_the_pixel_limit_is_the_readers(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """94 bytes of 12,000 x 12,000 pixels would take 5 GB and minutes, because run.json allows it."""
    digest = Archive(str(place)).run.model_sha256
    bomb = bitstream.Bitstream(
        profile="int", colour="rgb", model_id=bytes.fromhex(digest)[:16], width=12_000, height=12_000, q=1.0, streams=(b"",) * 10
    ).to_bytes()
    assert len(bomb) < 200
    run = json.loads((place / "run.json").read_text())
    change_run(place, config={**run["config"], "max_pixels": 10**12})

    def change(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            if row["name"] == "photo000.png":
                shard = place / row["shard_key"]
                row.update(offset=shard.stat().st_size, length=len(bomb), payload_sha256=sha256(bomb), recon_sha256="0" * 64)
                with open(shard, "ab") as file:
                    file.write(bomb)

    forge(place, change)
    code, peak = peak_mib("restore", str(place), str(tmp_path / "out-a"))
    assert (code, peak < 1500) == (5, True), peak
    result = restore(str(place), str(tmp_path / "out"))
    assert any("over the limit of 100000000 pixels: --max-pixels 144000000 decodes it" in problem for problem in result.problems)
    with pytest.raises(ManifestError, match="over the limit"):
        list(ArchiveDataset(str(place), where="name = 'photo000.png'"))
    assert main(["get", str(place), "photo002.png", "-o", str(tmp_path / "x.png"), "--max-pixels", "1000"]) == 5
    assert "--max-pixels" in capsys.readouterr().err


def test_a_kept_picture_is_opened_within_the_readers_limit(place: Path) -> None:
    assert Image.MAX_IMAGE_PIXELS is not None
    with pytest.raises(ManifestError, match="pixels are over the limit of 100"):
        list(ArchiveDataset(str(place), where="name = 'turned.jpg'", limits=Limits(max_pixels=100)))
    # Ghostscript and other formats with programs in them are not reached.
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n"

    def change(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            if row["name"] == "turned.jpg":
                shard = place / row["shard_key"]
                row.update(offset=shard.stat().st_size, length=len(eps), payload_sha256=sha256(eps))
                with open(shard, "ab") as file:
                    file.write(eps)

    forge(place, change)
    with pytest.raises(Image.UnidentifiedImageError):
        list(ArchiveDataset(str(place), where="name = 'turned.jpg'"))


def test_parquet_that_inflates_is_refused(place: Path, tmp_path: Path) -> None:
    """6 MB that inflate to 7 GB: bounded by headers and dictionaries, and the images come back by what the shards say."""
    path = sorted((place / "commits").iterdir())[0]
    record = json.loads(path.read_text())
    table = pq.read_table(place / record["manifest"])
    long = pa.array(["x" * 40_000_000]).take(pa.array([0] * len(table)))
    bomb = pa.concat_tables([table.set_column(table.column_names.index("error"), table.schema.field("error"), long)] * 40)
    (place / "MANIFEST.json").unlink()
    sink = io.BytesIO()
    pq.write_table(bomb, sink, compression="zstd")
    assert len(sink.getvalue()) < 1_000_000
    (place / record["manifest"]).write_bytes(sink.getvalue())
    path.write_text(json.dumps({**record, "manifest_sha256": sha256(sink.getvalue())}))
    code, peak = peak_mib("restore", str(place), str(tmp_path / "out-a"))
    assert (code, peak < 1500) == (5, True), peak
    result = restore(str(place), str(tmp_path / "out"))
    assert any("than anything this program writes" in problem for problem in result.problems), result.problems
    assert result.images == 12


def test_a_commit_of_gigabytes_is_not_read(place: Path) -> None:
    with open(place / "commits" / "00000.json", "r+b") as file:
        file.truncate(3 * 2**30)
    for arguments in (
        ("get", str(place), "000000000", "-o", str(place / "x.png")),
        ("status", str(place)),
        ("restore", str(place), str(place) + "-o"),
    ):
        code, peak = peak_mib(*arguments)
        assert code in (5, 6, 2)
        assert peak < 1500


def test_a_row_without_an_encoder_costs_nothing(place: Path, tmp_path: Path) -> None:
    forge(place, set_of("photo000.png", encoder=None, psnr_db=None, bpp=None))
    assert main(["audit", str(place), "--html", str(tmp_path / "page.html")]) == 0
    assert main(["get", str(place), "photo000.png", "-o", str(tmp_path / "x.png")]) == 0
    assert restore(str(place), str(tmp_path / "out")).images == 12


def test_a_condition_may_order_and_end(place: Path, tmp_path: Path) -> None:
    result = restore(str(place), str(tmp_path / "out"), where="psnr_db > 1 ORDER BY psnr_db LIMIT 3 -- the worst")
    assert (result.images, result.problems) == (3, [])


# ---- sources ----


def test_names_with_question_marks_stay_whole(tmp_path: Path) -> None:
    source = tmp_path / "src"
    source.mkdir()
    names = ["a.jpg?key=1", "a.jpg?key=2", "img.php?code=7.jpg", "what?token=.jpg", "what?token=.txt", "b@c:d.png"]
    for name in names:
        (source / name).write_bytes(name.encode())
    found = scan(str(source))
    assert sorted([record.name for record in found.records] + [name for record in found.records for name, _ in record.sidecars]) == sorted(names)
    (source / "a.jpg?key=1").rename(source / "a.jpg?key=9")
    assert scan(str(source)).digest != found.digest


@pytest.mark.parametrize("style", ["gnu", "pax"])
def test_a_sparse_member_costs_itself(tmp_path: Path, style: str) -> None:
    """Made by `tar -S --format=STYLE` of three small files and, second, one of 200 MB that is a hole but for one byte."""
    shutil.copy(Path(__file__).parents[1] / "fuzz" / "sparse" / f"{style}.tar", tmp_path / "set.tar")
    found = scan(str(tmp_path / "set.tar"))
    assert [record.name for record in found.records] == ["set/a.jpg", "set/c.jpg", "set/d.jpg"]
    assert [Fetcher().fetch(record.part) for record in found.records] == [b"a.jpg", b"c.jpg", b"d.jpg"]
    assert [warning.rpartition(": ")[2] for warning in found.warnings] == ["1 sparse members left out"]


def test_parquet_sources_that_lie(tmp_path: Path) -> None:
    """One damaged file costs a warning; rows, names and footers are bounded by what is stored."""
    source = tmp_path / "src"
    source.mkdir()
    images = [b"\xff\xd8 %d" % i for i in range(4)]
    pq.write_table(pa.table({"image": images, "caption": list("abcd")}), source / "a.parquet")
    whole = (source / "a.parquet").read_bytes()
    (source / "cut.parquet").write_bytes(whole[:-30])
    (source / "b.parquet").write_bytes(whole)
    found = scan(str(source))
    assert len(found.records) == 8
    assert any("cut.parquet as Parquet" in warning for warning in found.warnings)
    # A name of a gigabyte.
    sink = io.BytesIO()
    pq.write_table(pa.table({"image": [b"x"], "name": ["n" * 400_000_000]}), sink, compression="zstd")
    (source / "name.parquet").write_bytes(sink.getvalue())
    code, peak = peak_mib("-c", f"from pipeline.sources import scan; assert len(scan({str(source)!r}).records) == 8")
    assert (code, peak < 700) == (0, True), peak
    (source / "name.parquet").unlink()
    # A footer of many megabytes is an honest one.
    with pq.ParquetWriter(source / "long.parquet", pa.schema([("image", pa.binary()), ("caption", pa.string())])) as writer:
        for i in range(300):
            writer.write_table(pa.table({"image": [b"\xff\xd8"], "caption": [chr(97 + i % 26) * 60_000]}))
    assert len(scan(str(source)).records) == 308


def test_a_group_of_more_rows_than_bytes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(pa.table({"image": [b"x"]}), tmp_path / "a.parquet")
    monkeypatch.setattr(sys.modules["pipeline.sources.scan"], "groups", lambda *_, **__: [Group(2**40, (Chunk("image", 4, 20, 20),))])
    with pytest.raises(SourceError, match="claims 1099511627776 rows"):
        scan(str(tmp_path / "a.parquet"))


# ---- models ----


def test_a_float_model_is_measured_before_it_is_built(tmp_path: Path) -> None:
    """324 kB that ask for a network of 8 GB."""
    from safetensors import safe_open
    from safetensors.numpy import save_file

    shipped = Path(__file__).parents[2] / "msinn_core" / "weights" / "msinn-lite-float.safetensors"
    with safe_open(shipped, "numpy") as model:
        metadata = dict(model.metadata())
        tensors = {name: model.get_tensor(name) for name in model.keys() if name.startswith(("tables.", "calibration."))}  # noqa: SIM118
    config = json.loads(metadata["config"]) | {"hidden": [2048] * 4, "depths": [8] * 4}
    save_file(tensors, tmp_path / "bomb.safetensors", {**metadata, "config": json.dumps(config)})
    with pytest.raises(CheckpointError, match="parameters are missing"):
        parse_model((tmp_path / "bomb.safetensors").read_bytes())
    code, peak = peak_mib("inspect", str(tmp_path / "bomb.safetensors"))
    assert (code, peak < 1200) == (2, True), peak


# ---- what people see ----


def test_names_reach_the_terminal_and_the_page_as_text(place: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    forge(place, set_of("photo000.png", name=HOSTILE_NAME, key="<script>alert(1)</script>"))
    forge(place, set_of("notes.txt", name=HOSTILE_NAME + "<img src=x onerror=alert(2)>"))
    change_run(place, source=HOSTILE_NAME, model_name="\x1b[31m<b>")
    (place / "shards" / "00000-000000000000.tar").write_bytes(b"")
    for arguments in (
        ["audit", str(place)],
        ["audit", str(place), "SELECT name FROM manifest"],
        ["audit", str(place), "SELECT * FROM manifest"],
        ["audit", str(place), f"SELECT '{HOSTILE_NAME}' AS \"{HOSTILE_NAME}\""],
        ["status", str(place)],
        ["verify", str(place)],
        ["restore", str(place), str(tmp_path / "out")],
        ["get", str(place), HOSTILE_NAME + "none"],
        ["inspect", str(next((place / "shards").glob("00001*")))],
    ):
        main(arguments)
        said = "".join(capfd.readouterr())
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", said), (arguments, said)
    assert main(["audit", str(place), "SELECT name FROM manifest WHERE name LIKE 'a%'"]) == 0
    assert "a\\x1b]0;owned\\x07" in capfd.readouterr().out
    assert main(["audit", str(place), "--html", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert page.count("<script") == page.count(f"<script>{SCRIPT}</script>") == 1  # our own
    assert not re.search(r"<img src=x|<b>|\x1b|\u202e", page)
    assert "&lt;script&gt;" in page


def test_a_page_has_an_end_whatever_the_manifest_says(place: Path, tmp_path: Path) -> None:
    """Texts of a megabyte, values that no chart holds, a reason for each row."""

    def change(rows: list[dict[str, Any]]) -> None:
        for i, row in enumerate(rows):
            row.update(name="n" * 10**6 + str(i), psnr_db=[1e308, float("nan"), float("-inf"), -5.0][i % 4], bpp=[1e300, -1.0][i % 2])
            row.update(error_code="e" * 10**6, error="w" * 10**6, source_format="f" * 10**6, pixels=2**62, stored_bytes=-(2**62))
            row.update(source_bytes=2**62, width=-1, height=2**31 - 1, mse=float("nan"), q=float("inf"), clamp="c" * 10**6)

    forge(place, change)
    change_run(place, source="s" * 10**6, model_name="m" * 10**6)
    assert main(["audit", str(place), "--html", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert len(page) < 10**6
    assert not re.search(r'="(nan|inf|-inf)"', page)


def test_a_page_opens_no_source_that_an_archive_names_elsewhere(web: str, place: Path, tmp_path: Path) -> None:
    """The listing may name an address that tells somebody who looks, or a pipe that never ends."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for address, said in ((web, "is not on this machine"), (str(pipe), "is no regular file"), ("\0", "cannot be read|null byte")):
        table = pq.read_table(place / json.loads((place / "run.json").read_text())["scan"])
        rows = table.to_pylist()
        for row in rows:
            row["part"]["uri"] = address.encode()
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), sink)
        name = f"scan/00000-{sha256(sink.getvalue())[:12]}.parquet"
        (place / name).write_bytes(sink.getvalue())
        change_run(place, scan=name)
        assert main(["audit", str(place), "--html", str(tmp_path / "page.html")]) == 0
        page = (tmp_path / "page.html").read_text()
        assert re.search(said, page)
        assert "Original of" not in page


# ---- secrets ----

SECRET, SIGNATURE = "s3cr3tpassw0rd", "51gnatur3"


@pytest.fixture
def web(tmp_path: Path, archive_tar: bytes) -> Iterator[str]:
    """A server that wants a user and a password."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            wanted = "Basic " + base64.b64encode(f"user:{SECRET}".encode()).decode()
            granted = self.headers.get("Authorization") == wanted and SIGNATURE in self.path
            data, code = (archive_tar, 200) if granted else (b"no", 403)
            if granted and (found := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))):
                start, end = int(found[1]), int(found[2]) if found[2] else len(data) - 1
                code, total, data = 206, len(data), data[start : end + 1]
            self.send_response(code)
            if code == 206:
                self.send_header("Content-Range", f"bytes {start}-{start + len(data) - 1}/{total}")
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Accept-Ranges", "bytes")
            self.end_headers()
            if body:
                self.wfile.write(data)

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://user:{SECRET}@127.0.0.1:{server.server_address[1]}/set.tar?X-Amz-Signature={SIGNATURE}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def archive_tar(tmp_path: Path) -> bytes:
    import tarfile

    from tests.conftest import make_photos

    photos = make_photos(tmp_path / "photos", 3, 64)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as file:
        for path in sorted(photos.iterdir()):
            file.add(path, arcname=path.name)
    return out.getvalue()


def test_a_secret_in_a_sources_address_is_written_nowhere(web: str, tmp_path: Path) -> None:
    """One planted as password and one as signature: every byte of archive, restore, page, output and Ray's own files is searched."""
    dst, session = tmp_path / "dst", Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))  # Ray's sockets want a short path
    environment = {**os.environ, "FSSPEC_S3_SECRET": SECRET, "FSSPEC_S3": json.dumps({"secret": SECRET, "endpoint_url": "http://x"})}
    environment |= {"RAY_TMPDIR": str(session), "TMPDIR": str(tmp_path)}
    said = b""

    def run(*arguments: str, code: int = 0) -> None:
        nonlocal said
        ran = subprocess.run([sys.executable, "-m", "jobs.cli", *arguments], env=environment, capture_output=True, timeout=300)
        assert ran.returncode == code, ran.stderr.decode()
        said += ran.stdout + ran.stderr

    run("compress", web, str(dst), "--q", "3", "--workers", "1")
    run("compress", web, str(dst), "--q", "4", code=2)
    # Signed anew, it is the same source.
    run("compress", web.replace("Signature=", "Date=1&X-Amz-Signature="), str(dst), "--q", "3")
    run(
        "compress",
        web.replace("set.tar", "gone.tar").replace(SIGNATURE, "other" + SIGNATURE[:4] + SECRET),
        str(tmp_path / "dst2"),
        "--q",
        "3",
        code=2,
    )
    run("status", str(dst))
    run("audit", str(dst), "SELECT * FROM manifest")
    run("audit", str(dst), "--html", str(tmp_path / "page.html"))
    run("verify", str(dst))
    run("restore", str(dst), str(tmp_path / "out"))
    run("submit", "--", "compress", web, "s3://bucket/dst", "--q", "3", code=2)
    searched = 0
    for path in [*tmp_path.rglob("*"), *session.rglob("*")]:
        if not path.is_file() or path.is_symlink():
            continue
        texts = [path.read_bytes()]
        if path.suffix == ".parquet":
            texts.append(json.dumps(pq.read_table(path).to_pylist(), default=str).encode())
        for text in texts:
            searched += len(text)
            for secret in (SECRET, SIGNATURE, base64.b64encode(f"user:{SECRET}".encode()).decode()):
                assert secret.encode() not in text, path
    for secret in (SECRET, SIGNATURE):
        assert secret.encode() not in said
    assert b"***" in said
    assert searched > 100_000
    shutil.rmtree(session)
    assert json.loads((dst / "run.json").read_text())["source"] == re.sub(r"user:\w+@", "***@", web).partition("?")[0] + "?***"


def test_settings_that_are_secret_stay_here(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("FSSPEC_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("FSSPEC_S3_SECRET", SECRET)
    monkeypatch.setenv("FSSPEC_S3_KEY", SECRET)
    monkeypatch.setenv("FSSPEC_S3_ENDPOINT_URL", "http://localhost:9")
    monkeypatch.setenv("FSSPEC_GCS", json.dumps({"token": SECRET, "project": "p", "inner": {"password": SECRET, "timeout": 3}}))
    monkeypatch.setenv("FSSPEC_HTTPS", json.dumps({"client_kwargs": {"headers": {"Authorization": f"Bearer {SECRET}"}, "trust_env": True}}))
    monkeypatch.setenv("FSSPEC_ADL_CONNECTION_STRING", f"AccountName=a;AccountKey={SECRET}")
    monkeypatch.setenv("FSSPEC_SFTP_PASSPHRASE", SECRET)
    monkeypatch.setenv("FSSPEC_OSS", json.dumps([{"accessKeyId": SECRET, "x": [{"secretAccessKey": SECRET, "region": "r"}]}]))
    monkeypatch.setenv("FSSPEC_HTTP_PROXY", f"http://me:{SECRET}@proxy")
    monkeypatch.setenv("FSSPEC_ABFS", json.dumps({"s3_additional_kwargs": {"SSEKMSKeyId": "arn:kms"}}))
    sent = connection.forwarded()
    assert SECRET not in json.dumps(sent)
    assert sent["FSSPEC_S3_ENDPOINT_URL"] == "http://localhost:9"
    assert json.loads(sent["FSSPEC_GCS"]) == {"project": "p", "inner": {"timeout": 3}}
    assert "arn:kms" in sent["FSSPEC_ABFS"]
    assert json.loads(sent["FSSPEC_HTTPS"]) == {"client_kwargs": {"headers": {}, "trust_env": True}}
    assert json.loads(sent["FSSPEC_OSS"]) == [{"x": [{"region": "r"}]}]
    names = ("ADL_CONNECTION_STRING", "GCS", "HTTPS", "HTTP_PROXY", "OSS", "S3_KEY", "S3_SECRET", "SFTP_PASSPHRASE")
    assert connection.withheld() == [f"FSSPEC_{name}" for name in names]


@pytest.mark.parametrize(
    "address",
    [
        "https://u:PASS@h/x", "https://h/x?apikey=PASS", "https://h/x?a=1&authkey=PASS", "https://h/x?accessToken=PASS", "https://h/x?AWSAccessKeyId=PASS",
        "https://h/x?sv=1&SIG=PASS", "https://h/x?%73ig=PASS", "https://h/x#access_token=PASS", "https://h/x?jwt=PASS", "s3://AK:S/PASS@bucket/x",
        "sftp://me:PASS@h/y", "https://h/x?Policy=PASS&Key-Pair-Id=1", "see (https://h/x?X-Amz-Signature=PASS) and more",
    ],
)  # fmt: skip
def test_secrets_in_addresses_are_masked(address: str) -> None:
    assert "PASS" not in redacted(address)


@pytest.mark.parametrize(
    "text",
    ["s3://bucket/a?key=1.jpg", "what?token=.jpg", "https://h/x?id=3&keyword=cat", "http://h:8080/a@b.jpg", "file:///a@b/c", "why? https://h/x"],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redacted(text) == text


# ---- SQL ----

TABLE = pa.table({"key": ["a", "b"], "x": [1.0, 2.0]})


@pytest.mark.parametrize(
    "sql",
    [
        "CALL enable_logging()", "SELECT * FROM enable_logging()", "SET threads = 3", "CREATE TABLE t AS SELECT 1", "SELECT 1; SELECT 2",
        "PRAGMA version", "COPY manifest TO '/tmp/msinn-no.csv'", "SELECT * FROM read_text('/etc/passwd')", "INSTALL httpfs",
        "ATTACH '/tmp/msinn-no.db'",
        "SELECT * FROM glob('/etc/*')", "SELECT * FROM TABLE_OF_THE_CALLER", "EXPORT DATABASE '/tmp/msinn-no'", "",
    ],
)  # fmt: skip
def test_a_query_only_asks(sql: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    TABLE_OF_THE_CALLER = TABLE  # noqa: F841  (not to be found by its name)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError):
        query(TABLE, sql)
    assert not list(tmp_path.iterdir())
    assert not list(Path("/tmp").glob("msinn-no*"))


def test_a_query_is_bounded_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    with pytest.raises(UsageError, match=r"took more than 0\.5 s"):
        query(TABLE, "SELECT count(*) FROM range(1000000000000000)", max_seconds=0.5)
    with pytest.raises(UsageError, match="Out of Memory"):
        query(TABLE, "SELECT list(range) FROM range(2000000000)")
    monkeypatch.setattr("pipeline.read.audit.MAX_RESULT_BYTES", 1 << 20)
    with pytest.raises(UsageError, match="ask for less of it"):
        query(TABLE, "SELECT * FROM range(1000000)")
    assert query(TABLE, "SELECT max(x) AS m FROM manifest").to_pylist() == [{"m": 2.0}]
    assert query(TABLE, "DESCRIBE manifest").num_rows == 2
    assert not list(tmp_path.iterdir())


def test_a_query_can_be_interrupted(place: Path) -> None:
    """Ctrl-C during a long query ended nothing."""
    command = [sys.executable, "-m", "jobs.cli", "audit", str(place), "SELECT count(*) FROM range(1000000000000000)"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(8)
    process.send_signal(2)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 130
    assert said.startswith(b"interrupted")


# ---- Ray ----


@pytest.mark.skipif(shutil.which("ss") is None and not Path("/proc/net/tcp").exists(), reason="needs /proc")
def test_a_local_ray_listens_on_loopback_with_a_token_of_its_own() -> None:
    script = """
import os, re
from pathlib import Path
from pipeline.execute import connection
connection.connect(None, 1)

def ours(number):
    # Other Rays of this machine are none of our business.
    while number > 1:
        if number == os.getpid():
            return True
        number = int(Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[1])
    return False

inodes = set()
for process in Path("/proc").glob("[0-9]*"):
    try:
        if ours(int(process.name)):
            inodes |= {os.readlink(file) for file in (process / "fd").iterdir()}
    except OSError:
        pass
session = os.environ["RAY_AUTH_TOKEN"]
for name in ("tcp", "tcp6"):
    for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
            print("LISTEN", fields[1].partition(":")[0])
print("TOKEN", os.environ["RAY_AUTH_MODE"], len(session))
connection.disconnect()
"""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    ran = subprocess.run(
        [sys.executable, "-P", "-c", script], env={**clean, "PYTHONPATH": str(Path(__file__).parents[2])}, capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    addresses = {line.split()[1] for line in ran.stdout.splitlines() if line.startswith("LISTEN")}
    loopback = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}
    assert ran.stdout.count("LISTEN") > 5
    assert addresses <= loopback, addresses
    assert "TOKEN token 64" in ran.stdout


def test_importing_changes_no_guard_of_pillow() -> None:
    script = """
from PIL import Image
before = Image.MAX_IMAGE_PIXELS
import pipeline.formats.images, pipeline.read.dataset, pipeline.encode.worker
assert Image.MAX_IMAGE_PIXELS == before is not None
"""
    assert subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[2], timeout=120).returncode == 0
