"""What would cost an image of someone who trusts an archive with the only copy of it: found by trying, each tried again here."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import cli
from jobs.cli import main
from pipeline.archive.archive import Archive
from pipeline.archive.layout import sha256
from pipeline.errors import ManifestError, SourceError, UsageError
from pipeline.read import verify
from pipeline.read.diff import Comparison
from pipeline.read.restore import restore
from pipeline.sources import Fetcher, scan
from pipeline.sources.listing import Selection
from pipeline.sources.record import FILE, Part
from tests.integration.test_growth import change, contents, grown, made, photo, photos


@pytest.fixture(scope="module")
def master(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source, `in`, and an archive of it that has grown once, `dst`."""
    folder = tmp_path_factory.mktemp("only")
    made(photos(folder / "in", 5), folder / "dst")
    change(folder / "in")
    grown(folder / "in", folder / "dst")
    return folder


@pytest.fixture(scope="module")
def whole(master: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What it is restored as."""
    out = tmp_path_factory.mktemp("whole")
    assert restore(str(master / "dst"), str(out)).problems == []
    return contents(out)


@pytest.fixture
def copy(master: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(master / "dst", tmp_path / "dst"))


def test_another_source_is_not_taken_for_the_archive_whose_run_is_lost(master: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its commits would be taken for those of the new images, none of which would be stored."""
    made(photos(tmp_path / "in", 5), tmp_path / "dst")
    (tmp_path / "dst" / "run.json").unlink()
    before = contents(tmp_path / "dst")
    (tmp_path / "other").mkdir()
    for i in range(5):
        photo(50 + i).save(tmp_path / "other" / f"z{i}.bmp")
    for source in ("other", "in"):
        with pytest.raises(ManifestError, match=r"run\.json is missing, though commits or shards of an archive are there"):
            made(tmp_path / source, tmp_path / "dst")
    assert contents(tmp_path / "dst") == before
    assert main(["ls", str(tmp_path / "dst")]) == 5
    assert main(["gc", str(tmp_path / "dst"), "--delete"]) == 5
    assert "`msinn restore` still gives back every image" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("lost", "damaged"),
    [(("run.json", "MANIFEST.json"), False), (("run.json", "scan", "commits"), False), (("run.json",), True)],
)
def test_a_lost_run_costs_no_image(lost: tuple[str, ...], damaged: bool, whole: dict[str, str], copy: Path, tmp_path: Path) -> None:
    for name in lost:
        shutil.rmtree(copy / name) if (copy / name).is_dir() else (copy / name).unlink()
    if damaged:
        (copy / "run.json").write_bytes(b'{"archive_version": 4, "sour')
    found = restore(str(copy), str(tmp_path / "out"))
    assert contents(tmp_path / "out") == whole
    assert f"run.json is {'damaged' if damaged else 'missing'}" in found.problems[0]
    assert any("run.json" in problem for problem in verify.fixity(str(copy)).problems)
    assert verify.decode(str(copy)).images == 9


def test_an_archive_of_a_later_version_is_refused_and_not_guessed_at(copy: Path, tmp_path: Path) -> None:
    run = json.loads((copy / "run.json").read_bytes())
    (copy / "run.json").write_text(json.dumps(run | {"archive_version": 99}))
    with pytest.raises(ManifestError, match="use a newer msinn"):
        restore(str(copy), str(tmp_path / "out"))


def test_the_run_of_a_growth_is_verified_and_made_again(master: Path, copy: Path) -> None:
    before = contents(copy)
    run = next(copy.glob("generations/*/run.json"))
    for data in (None, b'{"archive_version": 4}'):
        run.unlink()
        if data is not None:
            run.write_bytes(data)
        next(copy.glob("generations/*/shards/*")).unlink()
        assert any("run.json" in problem for problem in verify.fixity(str(copy)).problems)
        grown(master / "in", copy)  # without it the shard could not be made again
        assert contents(copy) == before
    assert verify.fixity(str(copy)).problems == []


def test_a_run_that_is_not_the_archives_is_told(copy: Path) -> None:
    run = json.loads((copy / "run.json").read_bytes())
    (copy / "run.json").write_text(json.dumps(run | {"images": run["images"] + 1}))
    assert any("its seal says otherwise" in problem for problem in verify.fixity(str(copy)).problems)


def test_the_table_of_names_takes_no_files_place(tmp_path: Path) -> None:
    """Neither a sidecar's nor, where several are fetched, an image's."""
    source = photos(tmp_path / "in", 1)
    photo(7).save(source / "msinn-names.png")
    (source / "msinn-names.csv").write_text("a sidecar")
    made(source, tmp_path / "dst")
    result = restore(str(tmp_path / "dst"), str(tmp_path / "out"))
    assert result.problems == []
    assert (tmp_path / "out" / "msinn-names.csv").read_text() == "a sidecar"
    assert (tmp_path / "out" / "msinn-names~0.csv").read_text().startswith("name,restored_as")
    for _ in range(2):
        assert main(["get", str(tmp_path / "dst"), "msinn-names*", "photo*", "-o", str(tmp_path / "some")]) == 0
        assert (tmp_path / "some" / "msinn-names.csv").read_text() == "a sidecar"
    comparison = Comparison()
    assert list(comparison.run(str(tmp_path / "dst"), str(tmp_path / "out"))) == []


def test_links_to_pipes_and_devices_hang_nothing(tmp_path: Path) -> None:
    source = photos(tmp_path / "in", 1)
    os.mkfifo(source / "pipe")
    (source / "to-pipe.png").symlink_to("pipe")
    (source / "to-zero.png").symlink_to("/dev/zero")
    (source / "sub").mkdir()
    (source / "to-folder").symlink_to("sub")
    found = scan(str(source), selection=Selection(follow_links=True))
    assert sorted(record.name for record in found.records) == ["notes.txt", "photo00.bmp"]
    for name in ("to-pipe.png", "to-zero.png", "to-folder"):
        assert sum(name in warning for warning in found.warnings) == 1
    # What took a file's place after it was listed:
    with pytest.raises(SourceError, match="no regular file any more"):
        Fetcher().fetch(Part(FILE, str(source / "pipe"), 10))
    made(source, tmp_path / "dst")
    comparison = Comparison()
    names = sorted(difference.name for difference in comparison.run(str(tmp_path / "dst"), str(source)))
    assert names == ["pipe", "to-folder", "to-pipe.png", "to-zero.png"]


def test_values_that_python_does_not_hold_end_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A year 10680, nanoseconds where there is no pandas, text that is no UTF-8: each in a row beside its image."""
    monkeypatch.setitem(sys.modules, "pandas", None)
    image = io.BytesIO()
    photo(1).save(image, "PNG")
    odd = pa.array([b"a\xff", b"b"]).view(pa.string())
    table = pa.table(
        {
            "image": pa.StructArray.from_arrays([pa.array([image.getvalue()] * 2), odd], ["bytes", "path"]),
            "far": pa.array([2**38, 1], pa.timestamp("s")),
            "fine": pa.array([1700000000123456789, 5], pa.timestamp("ns")),
            "text": odd,
            "list": pa.array([[2**38], None], pa.list_(pa.timestamp("s"))),
        }
    )
    (tmp_path / "in").mkdir()
    pq.write_table(table, tmp_path / "in" / "d.parquet")
    made(tmp_path / "in", tmp_path / "dst")
    assert restore(str(tmp_path / "dst"), str(tmp_path / "out")).problems == []
    first, second = (json.loads((tmp_path / "out" / "d" / f"0000000{i}.json").read_bytes()) for i in range(2))
    assert first == {
        "far": "10680-07-14 06:09:04.000",
        "fine": "2023-11-14 22:13:20.123456789",
        "image": {"path": {"base64": "Yf8="}},
        "list": ["10680-07-14 06:09:04.000"],
        "text": {"base64": "Yf8="},
    }
    assert (second["text"], second["list"]) == ("b", None)


def test_parquet_of_other_types_and_of_columns_that_share_a_name(tmp_path: Path) -> None:
    image = io.BytesIO()
    photo(1).save(image, "PNG")
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"image": pa.array([image.getvalue()] * 3).dictionary_encode()}), tmp_path / "in" / "d.parquet")
    found = scan(str(tmp_path / "in"))
    assert [sha256(Fetcher().fetch(record.part)) for record in found.records] == [sha256(image.getvalue())] * 3
    pq.write_table(pa.table([pa.array([b"x"]), pa.array([1]), pa.array([2])], names=["image", "x", "x"]), tmp_path / "in" / "d.parquet")
    with pytest.raises(SourceError, match="several columns called x"):
        scan(str(tmp_path / "in"))


def test_containers_among_other_files_are_told(tmp_path: Path) -> None:
    source = photos(tmp_path / "in", 1)
    pq.write_table(pa.table({"image": pa.array([b"x"])}), source / "d.parquet")
    assert any("stored as they are, not image by image, for example d.parquet" in note for note in scan(str(source)).notes)
    made(source, tmp_path / "dst")
    assert "stored as they are" in str(json.loads((tmp_path / "dst" / "MANIFEST.json").read_bytes())["scan_notes"])


def test_an_archive_that_its_own_glob_would_take_is_refused(tmp_path: Path) -> None:
    source = photos(tmp_path / "in", 1)
    for pattern in ("in/**", "i*/**"):
        with pytest.raises(UsageError, match="choose a destination outside the source"):
            made(str(tmp_path / pattern), source / "dst")
    made(str(source / "*.bmp"), source / "dst")
    assert Archive(str(source / "dst")).sealed


def test_a_restore_of_what_could_not_be_read_says_so(tmp_path: Path) -> None:
    source = photos(tmp_path / "in", 1)
    (source / "nowhere.png").symlink_to("gone")
    made(source, tmp_path / "dst")
    assert main(["-q", "restore", str(tmp_path / "dst"), str(tmp_path / "out")]) == 3
    assert main(["-q", "restore", str(tmp_path / "dst"), str(tmp_path / "some"), "--where", "status = 'kept' OR status = 'coded'"]) == 0


def test_names_that_are_no_text_are_compared(tmp_path: Path) -> None:
    source = photos(tmp_path / "in", 1)
    shutil.copy(source / "photo00.bmp", os.fsencode(source) + b"/odd\xff.bmp")
    made(source, tmp_path / "dst")
    assert list(Comparison().run(str(tmp_path / "dst"), str(source))) == []


@pytest.mark.parametrize(
    ("how", "code", "says"),
    [
        ("exec {} inspect {} >&-", 0, ""),
        ("exec {} inspect {} <&- >&- 2>&-", 0, ""),
        ("exec {} inspect {} >/dev/full", 6, "cannot write its output: No space left on device"),
        ("mkdir gone; cd gone; rmdir ../gone; exec {} inspect {}", 2, "is gone: call it from another"),
    ],
)
def test_streams_and_folders_that_are_gone(how: str, code: int, says: str, copy: Path, tmp_path: Path) -> None:
    command = how.format(f"'{sys.executable}' -m jobs.cli", f"'{next(copy.glob('shards/*'))}'")
    environment = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parent.parent)}
    ended = subprocess.run(["sh", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert (ended.returncode, "Traceback" in ended.stderr) == (code, False)
    assert says in ended.stderr


def test_a_terminal_that_is_closed_interrupts(monkeypatch: pytest.MonkeyPatch, copy: Path) -> None:
    """As Ctrl-C does, with a sentence and its exit code; what nohup has ignored stays so."""
    before = signal.getsignal(signal.SIGHUP)
    # Where Ray is loaded, by other tests too, an interrupted process ends after some seconds whatever waits: not this one.
    monkeypatch.delitem(sys.modules, "ray", raising=False)

    def hang_up(arguments: object) -> None:
        if (handler := signal.getsignal(signal.SIGHUP)) is not signal.SIG_IGN:
            assert callable(handler)
            handler(signal.SIGHUP, None)

    monkeypatch.setattr("jobs.cli.use_storage", hang_up)
    try:
        for was, code in ((signal.SIG_DFL, 130), (signal.SIG_IGN, 0)):
            signal.signal(signal.SIGHUP, was)
            assert main(["ls", str(copy)]) == code
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_memory_does_not_suffice_for_is_a_sentence(monkeypatch: pytest.MonkeyPatch, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def full(arguments: object) -> None:
        raise MemoryError("Unable to allocate")

    monkeypatch.setattr("jobs.cli.use_storage", full)
    assert main(["ls", str(copy)]) == 6
    assert capsys.readouterr().err == "msinn: memory does not suffice: fewer --workers need less\n"


def test_ls_of_no_archive_is_a_mistake_of_whoever_asks(tmp_path: Path) -> None:
    assert main(["ls", str(tmp_path)]) == 2
