from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.errors import SourceError, StorageError
from pipeline.sources import Fetcher, scan
from pipeline.sources.record import FILE, Listing, Part, SourceRecord, from_table, safe_name, to_table, with_restore_names
from tests.conftest import encoded

PNG = encoded(Image.new("RGB", (4, 4), (1, 2, 3)), "PNG")


def put(root: Path, **files: bytes) -> None:
    for name, data in files.items():
        path = root / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def test_a_folder_with_sidecars_and_same_names(tmp_path: Path) -> None:
    for name in ("a/x.png", "a/x.jpg", "b/x.png", "b/x.json", "b/x.cls", "notes.txt", "sp ace ü.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(PNG)
    found = scan(str(tmp_path))
    by_name = {record.name: record for record in found.records}
    assert set(by_name) == {"a/x.jpg", "a/x.png", "b/x.png", "notes.txt", "sp ace ü.png"}
    assert [name for name, _ in by_name["b/x.png"].sidecars] == ["b/x.cls", "b/x.json"]
    names = [r.restore_name for r in found.records] + [n for r in found.records for n in r.keep_sidecars]
    assert len({name.casefold() for name in names}) == len(names)
    assert by_name["a/x.png"].restore_name == "a/x.png"
    assert by_name["a/x.jpg"].restore_name == "a/x.jpg.png"
    fetcher = Fetcher()
    assert all(fetcher.fetch(record.part) == PNG for record in found.records)
    assert all("." not in record.key for record in found.records)


def test_the_digest_follows_the_listing(tmp_path: Path) -> None:
    put(tmp_path, a_DOT_png=PNG)
    first = scan(str(tmp_path)).digest
    assert scan(str(tmp_path)).digest == first
    put(tmp_path, b_DOT_png=PNG)
    assert scan(str(tmp_path)).digest != first


def test_webdataset_tars(tmp_path: Path) -> None:
    for number in range(2):
        with tarfile.open(tmp_path / f"shard-{number}.tar", "w") as tar:
            for name in ("000.webp", "000.json", "../evil.png", "001.seg.png", "001.jpg", "readme"):
                info = tarfile.TarInfo(name)
                info.size = len(PNG)
                tar.addfile(info, io.BytesIO(PNG))
            link = tarfile.TarInfo("link.png")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(link)
    found = scan(str(tmp_path / "*.tar"))
    names = [record.name for record in found.records]
    assert len(found.records) == 2 * 5
    assert "shard-0/000.webp" in names
    sample = next(record for record in found.records if record.name == "shard-1/000.webp")
    assert [name for name, _ in sample.sidecars] == ["shard-1/000.json"]
    assert all(not record.restore_name.startswith(("/", "..")) and "/../" not in record.restore_name for record in found.records)
    assert Fetcher().fetch(sample.part) == PNG
    assert any("left out" in warning for warning in found.warnings)


def test_a_truncated_tar_gives_what_it_has(tmp_path: Path) -> None:
    path = tmp_path / "cut.tar"
    with tarfile.open(path, "w") as tar:
        for i in range(3):
            info = tarfile.TarInfo(f"{i}.png")
            info.size = 2000
            tar.addfile(info, io.BytesIO(bytes(2000)))
    path.write_bytes(path.read_bytes()[: 2 * 2560 + 700])
    found = scan(str(path))
    assert len(found.records) == 3
    assert any("cut short" in warning for warning in found.warnings)
    assert Fetcher().fetch(found.records[0].part) == bytes(2000)
    with pytest.raises(SourceError, match="before its member"):
        Fetcher().fetch(found.records[2].part)


def test_parquet_with_bytes_and_with_structs(tmp_path: Path) -> None:
    plain = pa.table({"id": ["one", "two/..", None], "image": [PNG, PNG, None], "label": [1, 2, 3]})
    pq.write_table(plain, tmp_path / "plain.parquet", row_group_size=2)
    found = scan(str(tmp_path / "plain.parquet"))
    assert len(found.records) == 3
    fetcher = Fetcher()
    assert fetcher.fetch(found.records[0].part) == PNG
    assert json.loads(fetcher.fetch(found.records[1].sidecars[0][1])) == {"id": "two/..", "label": 2}
    with pytest.raises(SourceError, match="no image bytes"):
        fetcher.fetch(found.records[2].part)
    struct = pa.table({"picture": [{"bytes": PNG, "path": "x.png"}], "other": [b"binary"]})
    pq.write_table(struct, tmp_path / "struct.parquet")
    assert Fetcher().fetch(scan(str(tmp_path / "struct.parquet")).records[0].part) == PNG
    with pytest.raises(SourceError, match="no binary column 'label'"):
        scan(str(tmp_path / "plain.parquet"), image_column="label")


@pytest.mark.parametrize("what", ["missing", "empty", "no_columns"])
def test_nothing_to_archive_is_one_sentence(tmp_path: Path, what: str) -> None:
    source = tmp_path / "source"
    if what == "empty":
        source.mkdir()
    elif what == "no_columns":
        source = tmp_path / "x.parquet"
        pq.write_table(pa.table({"a": [1]}), source)
    with pytest.raises(SourceError) as caught:
        scan(str(source))
    assert "\n" not in str(caught.value)
    assert str(source) in str(caught.value)


def test_links_to_folders_are_reported(tmp_path: Path) -> None:
    put(tmp_path, a_DOT_png=PNG)
    os.symlink(tmp_path, tmp_path / "loop")
    assert any("loop is a link" in warning for warning in scan(str(tmp_path)).warnings)


def test_vanished_and_oversized_files(tmp_path: Path) -> None:
    put(tmp_path, a_DOT_png=PNG, b_DOT_png=PNG)
    records = scan(str(tmp_path)).records
    (tmp_path / "a.png").unlink()
    with pytest.raises(SourceError, match="is gone"):
        Fetcher().fetch(records[0].part)
    with pytest.raises(SourceError, match="over the limit"):
        Fetcher(max_file_bytes=3).fetch(records[1].part)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a/../../b.png", "a/__/__/b.png"),
        ("/etc/passwd", "etc/passwd"),
        ("..", "__"),
        ("C:\\x\\y.png", "C_/x/y.png"),
        ("a\0b\nc.png", "a_b_c.png"),
        ("", "_"),
        ("...", "___"),
    ],
)
def test_restore_names_stay_inside(name: str, expected: str) -> None:
    assert safe_name(name) == expected


def test_long_names_fit_a_file_system() -> None:
    assert all(len(part.encode()) <= 255 for part in safe_name("ü" * 400 + ".png").split("/"))


def test_scan_tables_round_trip_even_with_names_that_are_not_utf8(tmp_path: Path) -> None:
    path = os.fsencode(str(tmp_path)) + b"/bad\xff.png"
    Path(os.fsdecode(path)).write_bytes(PNG)
    put(tmp_path, x_DOT_png=PNG, x_DOT_json=b"{}")
    records = scan(str(tmp_path)).records
    back = from_table(pa.concat_tables(to_table(records, [7] * len(records))))
    assert [record for record, _ in back] == list(records)
    assert {shard for _, shard in back} == {7}
    assert all(Fetcher().fetch(record.part) == PNG for record in records)
    assert list(with_restore_names(records)) == list(records)


def test_a_file_and_a_folder_never_share_a_restored_name(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png/x.jpg", "we::ird.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(PNG)
    records = scan(str(tmp_path)).records
    assert {record.name: record.restore_name for record in records}["a.jpg"] == "a.jpg.png"
    assert all(Fetcher().fetch(record.part) == PNG for record in records)


def test_pipes_are_left_out_aloud(tmp_path: Path) -> None:
    put(tmp_path, a_DOT_png=PNG)
    os.mkfifo(tmp_path / "pipe.png")
    found = scan(str(tmp_path))
    assert len(found.records) == 1
    assert any("pipe.png is no regular file" in warning for warning in found.warnings)


def test_what_may_pass_is_not_taken_for_what_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that fails is the run's problem (retry, resume), not a row of the manifest."""
    put(tmp_path, a_DOT_png=PNG)
    part = scan(str(tmp_path)).records[0].part
    calls = []

    def fails(*args: object, **kwargs: object) -> bytes:
        calls.append(args)
        raise TimeoutError("503 Slow Down")

    monkeypatch.setattr("fsspec.implementations.local.LocalFileSystem.cat_file", fails)
    monkeypatch.setattr("pipeline.store.errors.time.sleep", lambda seconds: None)
    with pytest.raises(StorageError, match="503"):
        Fetcher().fetch(part)
    assert len(calls) == 5


def test_a_listing_is_the_sequence_it_was_made_of_and_small() -> None:
    records = [
        SourceRecord(
            i, f"a\udcff/{i}.png", Part(FILE, f"s3://bucket/a/{i}.png", i), ((f"{i}.txt", Part(FILE, f"{i}.txt", 3)),), "r", "k", (f"{i}.txt",)
        )
        for i in range(10_000)
    ]
    listing = Listing(records)
    assert len(listing) == 10_000
    assert list(listing) == records
    for index in (0, 4095, 4096, 9999, -1, -10_000):
        assert listing[index] == records[index]
    for part in (slice(4090, 4100), slice(None, 3), slice(5, None, 3000), slice(9_990, 20_000)):
        assert listing[part] == records[part]
    for index in (10_000, -10_001):
        with pytest.raises(IndexError):
            listing[index]
    assert sum(map(len, listing._blocks)) < 40 * 8192
    assert list(Listing()) == []


def test_a_file_whose_name_is_blank_does_not_take_its_folders_place() -> None:
    names = ["a/b/ ", "a/b/x.jpg", "a/b/.", "c/..", "c/x.png", " "]
    records = list(with_restore_names(SourceRecord(i, name, Part(FILE, name, 1)) for i, name in enumerate(names)))
    files = [name for record in records for name in {record.keep_name, record.restore_name}]
    assert len({name.casefold() for name in files}) == len(files)
    folders = {name.rpartition("/")[0] for name in files}
    assert not folders & set(files)
