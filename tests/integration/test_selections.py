"""Parts of an archive: listed, fetched together, compared with a folder, and exported to the containers of training."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.cli import main
from pipeline.archive.archive import Archive
from pipeline.read.export import export, with_keys
from pipeline.read.get import get_many
from pipeline.read.rows import rows_left
from tests.golden.test_archives import copied


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an `archive` of version 4, whose one image of which nothing is stored is called `gone.png`, and all of it restored in `out`."""
    folder = tmp_path_factory.mktemp("selections")
    copied("version-4", folder)
    assert main(["-q", "restore", str(folder / "archive"), str(folder / "out")]) == 3  # of one nothing was ever stored
    return folder


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_ls_names_what_restore_writes(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", str(made / "archive")]) == 0
    there = sorted(path.name for path in (made / "out").iterdir() if path.name != "msinn-names.csv")
    assert sorted(lines(capsys)) == there
    assert main(["ls", str(made / "archive"), "photo*.png", "commented.jpg", "--long"]) == 0
    (first, *others) = lines(capsys)
    assert len(others) == 6
    assert first.endswith("commented.png  (was commented.jpg)")
    assert " dB " in first
    assert main(["ls", "--json", str(made / "archive"), "turned.*"]) == 0
    found = {row["name"]: row for row in map(json.loads, lines(capsys))}
    assert found["turned.jpg"]["size_from"] == "manifest"
    assert found["turned.json"]["original"] == "turned.json"


@pytest.mark.parametrize(
    ("verb", "code", "said"),
    [
        (["ls", "{archive}", "none*"], 2, "holds no file 'none*'"),
        (["get", "{archive}", "a", "../b", "-o", "x"], 2, "a part '..' or '.'"),
        (["get", "{archive}", "photo*"], 2, "name it with -o"),
        (["get", "{archive}", "photo*", "-o", "x", "--original"], 2, "are of one image"),
        (["diff", "{archive}", "nowhere"], 2, "nowhere holds no files"),
        (["diff", "{out}", "{out}"], 2, "is not an msinn archive"),
        (["restore", "{archive}", "{out}", "--to", "parquet"], 2, "an export begins anew"),
        (["restore", "{archive}", "{archive}/x", "--to", "webdataset"], 2, "lies inside the archive"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said(
    verb: list[str], code: int, said: str, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["-q", *(word.format(archive=made / "archive", out=made / "out") for word in verb)]) == code
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_several_are_fetched_in_few_requests(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.store.local import LocalStore

    asked: list[str] = []
    right = LocalStore.read_range
    monkeypatch.setattr(LocalStore, "read_range", lambda self, name, *range_: (asked.append(name), right(self, name, *range_))[1])
    assert main(["-q", "get", str(made / "archive"), "photo00?.png", "commented.jpg", "000000004", "turned.json", "-o", str(tmp_path / "some")]) == 0
    assert len(asked) == len(set(asked)) <= len(Archive(str(made / "archive")).commits())
    names = {path.name for path in (tmp_path / "some").iterdir()}
    assert {"photo000.png", "photo005.png", "commented.png", "turned.json", "msinn-names.csv"} <= names
    for name in names - {"msinn-names.csv"}:
        assert (tmp_path / "some" / name).read_bytes() == (made / "out" / name).read_bytes()
        assert (tmp_path / "some" / name).stat().st_mtime == (made / "out" / name).stat().st_mtime
    table = (tmp_path / "some" / "msinn-names.csv").read_text()
    assert "commented.jpg,commented.png,false,coded," in table.splitlines()
    again = get_many(str(made / "archive"), ["printed.png", "photo000.png"], str(tmp_path / "some"))
    assert (again.images, again.skipped, again.problems) == (2, 1, [])
    assert set(table.splitlines()) < set((tmp_path / "some" / "msinn-names.csv").read_text().splitlines())


def test_others_files_stay_as_they_are(made: Path, tmp_path: Path) -> None:
    (tmp_path / "photo000.png").write_bytes(b"mine")
    result = get_many(str(made / "archive"), ["photo000.png", "photo001.png"], str(tmp_path))
    assert result.images == 1
    assert ["--overwrite replaces it" in problem for problem in result.problems] == [True]
    assert get_many(str(made / "archive"), ["photo000.png"], str(tmp_path), overwrite=True).problems == []
    (tmp_path / "msinn-names.csv").write_text("my,own\n")
    assert main(["get", str(made / "archive"), "photo*", "-o", str(tmp_path)]) == 2
    assert (tmp_path / "msinn-names.csv").read_text() == "my,own\n"


def test_a_damaged_image_costs_itself_alone(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = Path(shutil.copytree(made / "archive", tmp_path / "archive"))
    row = next(row for row in Archive(str(place)).manifest().to_pylist() if row["name"] == "photo002.png")
    shard = place / row["shard_key"]
    data = bytearray(shard.read_bytes())
    data[row["offset"] + row["length"] // 2] ^= 1
    shard.write_bytes(data)
    assert main(["get", str(place), "photo*.png", "-o", str(tmp_path / "some")]) == 5
    assert "photo002.png: its bytes in shards/" in capsys.readouterr().err
    assert len(list((tmp_path / "some").glob("photo*.png"))) == 5
    result = export(str(place), str(tmp_path / "tars"), "webdataset")
    assert ["photo002.png" in problem for problem in result.problems] == [True]


def test_diff_says_what_is_different_and_how(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(shutil.copytree(made / "out", tmp_path / "out"))
    assert main(["diff", str(made / "archive"), str(folder)]) == 3  # of one image nothing is stored
    *found, summary = lines(capsys)
    assert [line.partition("  ")[0] for line in found] == ["only in the archive"]
    assert "nothing could be stored of it" in found[0]
    assert "0 different, 1 only in the archive, 0 only in the folder" in summary
    with Image.open(folder / "photo001.png") as image:
        array = np.array(image)
        array[0, 0] = 255 - array[0, 0]
        Image.fromarray(array).save(folder / "photo001.png")
        Image.fromarray(array).resize((32, 16)).save(folder / "photo002.png")
    with Image.open(folder / "photo003.png") as image:
        image.save(folder / "photo003.png", compress_level=9)
    (folder / "turned.json").write_text("{}")
    (folder / "photo004.png").write_bytes(b"nothing")
    (folder / "photo005.png").unlink()
    (folder / "more.txt").write_text("new")
    (folder / ".DS_Store").write_text("litter")
    assert main(["diff", str(made / "archive"), str(folder), "--json"]) == 3
    by_name = {row["name"]: (row["kind"], row["how"]) for row in map(json.loads, lines(capsys))}
    assert by_name["photo001.png"][0] == "different"
    assert "dB between them" in by_name["photo001.png"][1]
    assert by_name["photo002.png"][1].startswith("32 x 16 pixels, ")
    assert "it is no picture" in by_name["photo004.png"][1]
    assert by_name["turned.json"][1].startswith("2 bytes, of other content")
    assert by_name["photo005.png"] == ("only in the archive", "")
    assert by_name["more.txt"] == ("only in the folder", "")
    assert not {"photo000.png", "photo003.png", ".DS_Store", "msinn-names.csv"} & by_name.keys()  # photo003 holds the pixels that were measured


def test_webdataset_reads_the_tars(made: Path, tmp_path: Path) -> None:
    import webdataset

    assert main(["-q", "restore", str(made / "archive"), str(tmp_path / "tars"), "--to", "webdataset"]) == 3
    tars = sorted(map(str, (tmp_path / "tars").glob("*.tar")))
    samples = list(webdataset.WebDataset(tars, shardshuffle=False, empty_check=False))
    by_key = {sample["__key__"]: sample for sample in samples}
    assert len(by_key) == len(samples) == 12
    assert by_key["turned"]["json"] == (made / "out" / "turned.json").read_bytes()
    assert by_key["turned"]["jpg"] == (made / "out" / "turned.jpg").read_bytes()
    assert by_key["commented"]["png"] == (made / "out" / "commented.png").read_bytes()
    table = (tmp_path / "tars" / "msinn-names.csv").read_text()
    assert "commented.jpg,commented.png,false,coded," in table
    again = export(str(made / "archive"), str(tmp_path / "again"), "webdataset")
    assert again.problems == []
    assert [Path(tar).read_bytes() for tar in tars] == [path.read_bytes() for path in sorted((tmp_path / "again").glob("*.tar"))]
    with tarfile.open(tars[0]) as tar:
        assert {member.name.partition(".")[0] for member in tar.getmembers()} <= by_key.keys()


def test_an_export_converts_as_a_restore_does(made: Path, tmp_path: Path) -> None:
    assert main(["-q", "restore", str(made / "archive"), str(tmp_path / "out"), "--to", "webdataset", "--as", "jpeg", "--quality", "80"]) == 3
    files = {}
    for path in (tmp_path / "out").glob("*.tar"):
        with tarfile.open(path) as tar:
            files |= {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    written = [name for name in files if name.startswith("photo") and name.endswith(".jpg")]
    assert written, sorted(files)
    assert all(files[name][:2] == b"\xff\xd8" for name in written)


def test_keys_are_original_names_and_each_is_there_once(made: Path) -> None:
    rows = rows_left(Archive(str(made / "archive")))[0].slice(0, 4)
    for column, cells in (
        ("name", ["a/b.c.jpg", "a/b_c.png", "A/B_C.tif", "../no name"]),
        ("restore_name", ["a/b.c.png", "a/b_c.png", "x.TIF", "no name"]),
    ):
        rows = rows.set_column(rows.column_names.index(column), column, [cells])
    found, problems = with_keys(rows)
    assert found.column("restore_name").to_pylist() == ["a/b_c.png", "a/b_c~000000001.png", "A/B_C~000000002.tif", "__/no name.bin"]
    assert len(problems) == 2


def test_hugging_face_reads_the_parquet(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    import datasets

    result = export(str(made / "archive"), str(tmp_path / "parquet"), "parquet", where="name NOT LIKE 'photo%'")
    assert (result.problems, result.sidecars) == ([], 1)
    files = sorted(map(str, (tmp_path / "parquet").glob("*.parquet")))
    rows: list[dict[str, Any]] = [row for path in files for row in pq.read_table(path).to_pylist()]
    by_name = {row["name"]: row for row in rows}
    assert by_name["notes.txt"]["image"] is None
    assert by_name["notes.txt"]["files"] == [{"name": "notes.txt", "data": (made / "out" / "notes.txt").read_bytes()}]
    assert by_name["turned.jpg"]["files"] == [{"name": "turned.json", "data": (made / "out" / "turned.json").read_bytes()}]
    found = datasets.Dataset.from_parquet(files, cache_dir=str(tmp_path / "hf"))
    assert isinstance(found.features["image"], datasets.Image)
    pictures = {sample["name"]: sample["image"] for sample in found}
    with Image.open(io.BytesIO((made / "out" / "commented.png").read_bytes())) as restored:
        assert np.array_equal(np.asarray(pictures["commented.jpg"]), np.asarray(restored))
    assert pictures["notes.txt"] is None
