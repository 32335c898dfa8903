"""Objects of a sealed archive are lost or damaged: everything that is still there comes back, and what is wrong is said."""

from __future__ import annotations

import io
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.cli import main
from msinn_core.model_file import WEIGHTS, retired_models, shipped_models
from pipeline.archive import manifest
from pipeline.archive.archive import Archive
from pipeline.archive.layout import sha256
from pipeline.errors import ManifestError
from pipeline.plan.config import Budget, CompressConfig
from pipeline.read import verify
from pipeline.run.compress import Run
from pipeline.run.report import JsonReporter
from pipeline.store.base import content_name
from tests.conftest import make_photos, png16


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """An archive of 3 shards with every kind of member, and what a restore of it gives."""
    folder = tmp_path_factory.mktemp("salvage")
    photos = make_photos(folder / "in", 9, 64)
    (photos / "photo001.txt").write_text("a caption")
    (photos / "photo001.json").write_text("{}")
    (photos / "photo004.msn").write_text("a sidecar that is called as coded pictures are")
    (photos / "photo005.png").write_bytes(png16(8, 8))
    (photos / "photo005.txt").write_text("of a file that is kept")
    (photos / "photo006.png").write_bytes(b"\x89PNG no picture")
    Run(str(photos), str(folder / "archive"), CompressConfig(budget=Budget(kind="q", value=4.0)), JsonReporter(io.StringIO())).execute()
    assert len(list((folder / "archive" / "shards").iterdir())) == 3
    assert main(["restore", str(folder / "archive"), str(folder / "out")]) == 0
    return folder / "archive", tree(folder / "out")


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def images(files: dict[str, bytes]) -> dict[str, bytes]:
    """Without the map of names, which says what was lost."""
    return {name: data for name, data in files.items() if name != "msinn-names.csv"}


def of(archive: Path, folder: str, shard: int = 1) -> Path:
    return next((archive / folder).glob(f"{shard:05d}*"))


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9] + b"\0" * 9)


def another_attempt(archive: Path) -> None:
    """The same shard with its manifest under other names, as an attempt that came second leaves them."""
    path, part = of(archive, "shards"), of(archive, "manifest")
    table = pq.read_table(part)
    data = path.read_bytes() + bytes(10240)
    name = content_name("shards", "00001", sha256(data), "tar")
    (archive / name).write_bytes(data)
    table = table.set_column(table.schema.get_field_index("shard_key"), "shard_key", pa.array([name] * len(table)))
    data = manifest.table_bytes(table)
    (archive / content_name("manifest", "00001", sha256(data), "parquet")).write_bytes(data)
    path.unlink()


def unreadable(archive: Path) -> None:
    """A bad sector: here a folder in the object's place, which cannot be read as a file either."""
    path = of(archive, "commits")
    path.unlink()
    path.mkdir()
    (path / "x").touch()


LOSSES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a part of the manifest": (lambda archive: of(archive, "manifest").unlink(), "is missing; commit 1 names it"),
    "a damaged part of the manifest": (lambda archive: damage(of(archive, "manifest")), "is damaged: its SHA-256"),
    "a commit": (lambda archive: of(archive, "commits").unlink(), "is missing since the archive was sealed"),
    "a damaged commit": (lambda archive: of(archive, "commits").write_bytes(b"{"), "is changed since the archive was sealed"),
    "all commits and the manifest": (
        lambda archive: [shutil.rmtree(archive / "commits"), shutil.rmtree(archive / "manifest")],
        "is missing since the archive was sealed",
    ),
    "all books": (
        lambda archive: [shutil.rmtree(archive / "commits"), shutil.rmtree(archive / "manifest"), (archive / "MANIFEST.json").unlink()],
        "3 of 3 shards are not committed",
    ),
    "a shard, of which another attempt left its own": (another_attempt, "is missing"),
    "an unreadable commit": (unreadable, "since the archive was sealed"),
    "the seal": (lambda archive: (archive / "MANIFEST.json").write_bytes(b"?"), "MANIFEST.json is damaged"),
    "the model": (lambda archive: shutil.rmtree(archive / "model"), ""),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_everything_comes_back_without(loss: str, made: tuple[Path, dict[str, bytes]], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive, expected = tmp_path / "archive", made[1]
    shutil.copytree(made[0], archive)
    lose, sentence = LOSSES[loss]
    lose(archive)
    assert main(["restore", str(archive), str(tmp_path / "out")]) == (5 if sentence else 0)
    assert sentence in capsys.readouterr().err
    assert tree(tmp_path / "out") == expected
    problems = verify.fixity(str(archive)).problems
    assert any((sentence or "without it nothing can be decoded") in problem for problem in problems)


@pytest.mark.parametrize("listing", ["lost", "damaged"])
def test_a_shard_whose_names_are_lost_comes_back_under_its_keys(listing: str, made: tuple[Path, dict[str, bytes]], tmp_path: Path) -> None:
    archive, expected = tmp_path / "archive", made[1]
    shutil.copytree(made[0], archive)
    if listing == "lost":
        shutil.rmtree(archive / "scan")
    else:
        scanned = next((archive / "scan").iterdir())
        data = bytearray(scanned.read_bytes())
        data[len(data) // 3] ^= 1
        scanned.write_bytes(data)
    of(archive, "manifest").unlink()
    rows = {row["key"]: row["restore_name"] for row in Archive(str(made[0])).manifest().to_pylist()}
    assert main(["restore", str(archive), str(tmp_path / "out")]) == 5
    found = images(tree(tmp_path / "out"))
    assert sorted(found.values()) == sorted(images(expected).values())
    assert found["salvaged/000000004.png"] == expected[rows["000000004"]]


def test_a_damaged_shard_without_a_manifest_gives_what_is_left(made: tuple[Path, dict[str, bytes]], tmp_path: Path) -> None:
    archive, expected = tmp_path / "archive", made[1]
    shutil.copytree(made[0], archive)
    of(archive, "manifest").unlink()
    shard = of(archive, "shards")
    data = shard.read_bytes()
    shard.write_bytes(data[: len(data) // 2])
    assert main(["restore", str(archive), str(tmp_path / "out")]) == 5
    found = images(tree(tmp_path / "out"))
    assert set(found.items()) < set(expected.items())
    assert len(expected) - 5 <= len(found)


def test_after_a_damaged_header_the_rest_of_a_shard_comes_back(
    made: tuple[Path, dict[str, bytes]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = tmp_path / "archive"
    shutil.copytree(made[0], archive)
    row = next(row for row in Archive(str(archive)).manifest().to_pylist() if row["key"] == "000000004")
    of(archive, "manifest").unlink()
    shard = of(archive, "shards")
    data = bytearray(shard.read_bytes())
    data[row["offset"] - 512] ^= 1
    shard.write_bytes(data)
    assert main(["restore", str(archive), str(tmp_path / "out")]) == 5
    gone = {name: content for name, content in made[1].items() if tree(tmp_path / "out").get(name) != content}
    assert [name for name in gone if name.endswith(".png")] == [row["restore_name"]]
    assert row["name"] in capsys.readouterr().err


def test_a_condition_selects_from_what_has_books(made: tuple[Path, dict[str, bytes]], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = tmp_path / "archive"
    shutil.copytree(made[0], archive)
    of(archive, "manifest").unlink()
    assert main(["restore", str(archive), str(tmp_path / "out"), "--where", "status = 'coded'"]) == 5
    assert "a condition cannot find its images" in capsys.readouterr().err
    assert 0 < len(tree(tmp_path / "out")) < len(made[1])


def test_only_what_nothing_names_is_removed(made: tuple[Path, dict[str, bytes]], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = tmp_path / "archive"
    shutil.copytree(made[0], archive)
    before = tree(archive)
    left = [archive / "shards" / "00001-000000000000.tar", archive / "manifest" / "00002-000000000000.parquet", archive / "shards" / ".tmp-abc"]
    for path in left:
        path.write_bytes(b"12345")
    assert main(["gc", str(archive)]) == 0
    assert "3 objects, 15 bytes could be removed" in capsys.readouterr().out
    assert all(path.exists() for path in left)
    assert main(["gc", str(archive), "--delete"]) == 0
    assert tree(archive) == before
    # Where a named shard is lost, another attempt's may be all there is.
    lost = of(archive, "shards", 0)
    moved = lost.rename(tmp_path / "lost")
    left[0].write_bytes(b"12345")
    assert main(["gc", str(archive), "--delete"]) == 2
    assert left[0].exists()
    moved.rename(lost)
    # Where books are damaged, or not finished, an object without a name may be all there is.
    left[0].write_bytes(b"12345")
    seal = (archive / "MANIFEST.json").read_bytes()
    (archive / "MANIFEST.json").unlink()
    assert main(["gc", str(archive), "--delete"]) == 2
    (archive / "MANIFEST.json").write_bytes(seal)
    of(archive, "commits").unlink()
    assert main(["gc", str(archive), "--delete"]) == 2
    assert "nothing is removed" in capsys.readouterr().err
    assert left[0].exists()


def test_the_named_commits_have_the_models() -> None:
    git = ["git", "-C", str(WEIGHTS)]
    if shutil.which("git") is None or subprocess.run([*git, "rev-parse", "--is-shallow-repository"], capture_output=True).stdout.strip() != b"false":
        pytest.skip("not a git checkout with its history")
    for digest, commit in retired_models().items():
        files = [subprocess.run([*git, "show", f"{commit}:./{name}.safetensors"], capture_output=True).stdout for name in shipped_models()]
        assert digest in [sha256(file) for file in files], commit


def test_a_lost_model_that_came_with_an_earlier_msinn_is_named(made: tuple[Path, dict[str, bytes]]) -> None:
    archive = Archive(str(made[0]))
    for digest, commit in retired_models().items():
        assert digest not in shipped_models().values()
        with pytest.raises(ManifestError, match=f"nothing can be decoded; msinn at git commit {commit} has it"):
            archive.model_bytes(digest)
    with pytest.raises(ManifestError, match=r"nothing can be decoded$"):
        archive.model_bytes("0" * 64)
