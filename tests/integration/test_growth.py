"""Archives that grow: what is as it was stays where it is, what is new comes into another generation, and every generation can be read."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
from fsspec.implementations.local import LocalFileSystem
from PIL import Image

from infra.local.proxy import Fault, FaultProxy
from jobs.cli import main
from msinn_core.model_file import LoadedModel, parse_model, with_card
from pipeline.archive.archive import Archive
from pipeline.errors import BudgetInfeasibleError, CommitConflictError, ManifestError, SourceError, UsageError
from pipeline.execute import processes
from pipeline.execute.placement import Placement
from pipeline.plan.config import Budget, CompressConfig
from pipeline.read import gc, page_facts, verify
from pipeline.read.dataset import ArchiveDataset
from pipeline.read.diff import Comparison
from pipeline.read.export import export
from pipeline.read.filesystem import MsinnFileSystem
from pipeline.read.get import get
from pipeline.read.restore import restore
from pipeline.read.stream import ArchiveStream
from pipeline.run import compress, growth
from pipeline.run.compress import Outcome, Run
from pipeline.run.report import JsonReporter
from pipeline.sources import scan
from pipeline.store.local import LocalStore

TINY = str(Path(__file__).parents[1] / "golden" / "integer" / "model.safetensors")
HERE = Placement(executor="local")
Q = Budget(kind="q", value=4.0)


def photo(seed: int, size: int = 64) -> Image.Image:
    """A picture that the tiny model makes smaller; another one for each seed."""
    rows, columns = np.mgrid[0:size, 0:size]
    phase = np.random.default_rng(seed).uniform(0, 6, 3)
    waves = [128 + 90 * np.sin(phase[i] + rows / (5 + i)) * np.cos(phase[i] * columns / 23) for i in range(3)]
    noise = np.random.default_rng(seed).normal(0, 4, (size, size, 3))
    return Image.fromarray(np.clip(np.stack(waves, axis=2) + noise, 0, 255).astype(np.uint8))


def later(path: Path, seconds: int = 100) -> None:
    """Its modification time is another one."""
    os.utime(path, (os.stat(path).st_atime, os.stat(path).st_mtime + seconds))


def photos(folder: Path, count: int = 10) -> Path:
    folder.mkdir()
    for i in range(count):
        photo(i).save(folder / f"photo{i:02d}.bmp")
    (folder / "photo00.json").write_text('{"label": 0}')
    (folder / "notes.txt").write_text("kept as it is")
    for path in folder.iterdir():
        later(path, -1000)  # what was written just before it is listed is in doubt
    return folder


def made(source: Path | str, archive: Path | str, budget: Budget = Q, **options: Any) -> Outcome:
    return Run(str(source), str(archive), CompressConfig(budget=budget, model=TINY, **options), _quiet(), placement=HERE).execute()


def growing(source: Path | str, archive: Path | str, budget: Budget | None = None, *, moved: bool = False, **options: Any) -> Run:
    config = CompressConfig(budget=budget or Q, **options)
    return Run(str(source), str(archive), config, _quiet(), placement=HERE, grow=True, budget=budget, moved=moved)


def grown(source: Path | str, archive: Path | str, budget: Budget | None = None, **options: Any) -> Outcome:
    return growing(source, archive, budget, **options).execute()


def _quiet() -> JsonReporter:
    return JsonReporter(io.StringIO())


def change(folder: Path) -> None:
    """Two added, one of them where a restored picture would lie; one changed; one of the same content with another time; one gone."""
    photo(100).save(folder / "new.bmp")
    photo(101).save(folder / "photo03.png")
    photo(102).save(folder / "photo01.bmp")
    later(folder / "photo01.bmp")
    later(folder / "photo02.bmp")
    (folder / "photo04.bmp").unlink()


def names(archive: Path, generation: int | None = None) -> list[str]:
    return sorted(Archive(str(archive), generation).manifest(["name"]).column("name").to_pylist())


def contents(folder: Path) -> dict[str, str]:
    """Hash of every file by name."""
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*")) if path.is_file()}


def restored(archive: Path, out: Path, generation: int | None = None) -> dict[str, str]:
    result = restore(str(archive), str(out), generation=generation)
    assert result.problems == []
    return contents(out)


@pytest.fixture(scope="module")
def master(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `in`, its archive `dst`, and `grown`, the archive after `in` became `now`."""
    place = tmp_path_factory.mktemp("growth")
    made(photos(place / "in"), place / "dst")
    shutil.copytree(place / "dst", place / "grown")
    shutil.copytree(place / "in", place / "first")
    change(place / "in")
    grown(place / "in", place / "grown")
    return place


@pytest.fixture
def copy(master: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(master / "grown", tmp_path / "dst"))


@pytest.fixture
def sealed(master: Path, tmp_path: Path) -> Path:
    """The archive of generation 1 alone."""
    return Path(shutil.copytree(master / "dst", tmp_path / "dst"))


# What a growth does -------------------------------------------------------------------------------------------------------------------------------


def test_unchanged_images_stay_and_new_ones_come_into_a_generation(master: Path, tmp_path: Path) -> None:
    archive = Archive(str(master / "grown"))
    assert (archive.generation, archive.newest, archive.oldest) == (2, 2, 1)
    before = [f"photo{i:02d}.bmp" for i in range(10)]
    assert names(master / "grown", 1) == sorted([*before, "notes.txt"])
    assert names(master / "grown") == sorted([*(set(before) - {"photo04.bmp"}), "notes.txt", "new.bmp", "photo03.png"])
    rows = {row["name"]: row for row in archive.manifest().to_pylist()}
    # Unchanged ones, that with another time too, lie where they lay; new and changed ones have keys that no image had.
    added = {name for name, row in rows.items() if row["shard_key"].startswith("generations/00002-")}
    assert added == {"new.bmp", "photo03.png", "photo01.bmp"}
    assert sorted(rows[name]["key"] for name in added) == ["000000011", "000000012", "000000013"]
    sealed = archive.seal()
    assert sealed is not None
    assert [sealed[name] for name in ("images", "added", "changed", "vanished", "coded", "kept")] == [12, 2, 1, 1, 11, 1]
    assert sealed["pixels"] == sum(row["pixels"] or 0 for row in rows.values())
    assert sealed["source_bytes"] == sum(row["source_bytes"] for row in rows.values())
    assert sealed["counted_bytes"] == sum(record.counted_bytes for record in archive.commits())


def test_nothing_of_the_older_generation_changes(master: Path) -> None:
    before, after = contents(master / "dst"), contents(master / "grown")
    others = {name: digest for name, digest in before.items() if name != "MANIFEST.json"}
    assert {name: after.get(name) for name in others} == others
    assert after["seals/00001.json"] == before["MANIFEST.json"]
    # Readers that know no generations see the first one in `MANIFEST.json`, people the newest.
    first, pointer = (json.loads((master / name / "MANIFEST.json").read_bytes()) for name in ("dst", "grown"))
    assert {name: pointer[name] for name in first if name != "archive_version"} == {name: first[name] for name in first if name != "archive_version"}
    newest = (master / "grown" / "seals" / "00002.json").read_bytes()
    assert pointer["newest"]["sha256"] == hashlib.sha256(newest).hexdigest()
    assert (first["archive_version"], pointer["archive_version"], json.loads(newest)["archive_version"]) == (4, 5, 5)


def test_both_generations_are_restored(master: Path, tmp_path: Path) -> None:
    before = restored(master / "dst", tmp_path / "before")
    assert restored(master / "grown", tmp_path / "one", generation=1) == before
    after = restored(master / "grown", tmp_path / "two")
    same = set(before) - {"photo01.png", "photo04.png", "msinn-names.csv"}
    assert {name: after[name] for name in same} == {name: before[name] for name in same}
    assert after["photo01.png"] != before["photo01.png"]
    # `photo03.png` is what `photo03.bmp` is restored as: the new file of that name is called otherwise.
    assert set(after) - set(before) == {"new.png", "photo03~13.png"}
    assert len(after) == 12 + 1 + 1


def test_everything_that_reads_takes_a_generation(master: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    archive = str(master / "grown")
    assert (len(ArchiveDataset(archive)), len(ArchiveDataset(archive, generation=1))) == (11, 10)
    assert {sample["name"] for sample in ArchiveStream(archive, generation=1)} == {f"photo{i:02d}.bmp" for i in range(10)}
    one, two = (MsinnFileSystem(archive, generation=number, skip_instance_cache=True) for number in (1, 2))
    assert ("photo04.png" in one.ls("", detail=False), "photo04.png" in two.ls("", detail=False)) == (True, False)
    assert one.cat("photo01.png") != two.cat("photo01.png")
    assert get(archive, "photo01.bmp", generation=1)[1] == one.cat("photo01.png")
    assert get(archive, "000000002", generation=1)[1] == one.cat("photo01.png")
    with pytest.raises(UsageError, match="no image '000000002'"):
        get(archive, "000000002")
    assert list(Comparison().run(archive, str(master / "first"), generation=1)) == []
    assert list(Comparison().run(archive, str(master / "in"))) == []
    assert len(export(archive, str(tmp_path / "tars"), "webdataset").problems) == 1  # two have the key `photo03`
    assert sorted(path.name for path in (tmp_path / "tars").glob("*.tar"))[-1].startswith("generation-00002-")
    for verb in (
        ["ls"],
        ["audit"],
        ["verify"],
        ["verify", "--decode", "--executor", "local"],
        ["audit", "SELECT count(*) AS n FROM manifest", "--csv"],
    ):
        assert main([verb[0], archive, *verb[1:], "--generation", "1"]) == 0
    assert capfd.readouterr().out.splitlines()[-1] == "11"
    with pytest.raises(UsageError, match="has no generation 3; it has 1 to 2"):
        Archive(archive, 3)
    assert main(["restore", archive, str(tmp_path / "no"), "--generation", "0"]) == 2


def test_status_shows_generations(master: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(master / "grown"), "--json"]) == 0
    facts = json.loads(capfd.readouterr().out)
    found = [[each[name] for name in ("generation", "state", "images", "added", "changed", "vanished")] for each in facts["generations"]]
    assert found == [[1, "sealed", 11, 11, 0, 0], [2, "sealed", 12, 2, 1, 1]]
    assert facts["images"] == "12"
    assert all(each["sealed_at"] and each["own_bytes"] for each in facts["generations"])
    assert main(["status", str(master / "grown")]) == 0
    assert "generation   images" in capfd.readouterr().out


def test_verification_looks_at_every_generation_or_at_one(copy: Path) -> None:
    assert verify.fixity(str(copy)).images == 14
    assert verify.fixity(str(copy), generation=1).images == 11
    assert verify.decode(str(copy)).images == 14
    # What only generation 1 uses is damaged: all and generation 1 say so, generation 2 has nothing of it.
    part = next(record for record in Archive(str(copy), 1).commits() if record.generation == 1)
    row = next(row for row in Archive(str(copy), 1).manifest().to_pylist() if row["name"] == "photo04.bmp")
    data = bytearray((copy / row["shard_key"]).read_bytes())
    data[row["offset"] + 30] ^= 1
    (copy / row["shard_key"]).write_bytes(data)
    assert part.generation == 1
    assert len(verify.fixity(str(copy), generation=1).problems) == 1
    assert "hurt: photo04.bmp" in verify.fixity(str(copy)).problems[0]
    assert verify.decode(str(copy), generation=2).problems == []
    assert len(verify.decode(str(copy)).problems) == 1


def test_nothing_changed_is_said_and_adds_no_generation(copy: Path, master: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = contents(copy)
    assert main(["-q", "compress", str(master / "in"), str(copy), "--grow"]) == 0
    assert "nothing has changed since generation 2: 12 images are as they were" in capfd.readouterr().out
    assert contents(copy) == before


def test_without_grow_a_changed_source_is_refused_and_the_way_is_named(sealed: Path, master: Path) -> None:
    with pytest.raises(UsageError, match=r"1 are gone, for example photo04.bmp.*say --grow"):
        made(master / "in", sealed)
    with pytest.raises(UsageError, match="has grown to generation 2: say --grow"):
        made(master / "in", master / "grown")


def test_generations_follow_each_other_and_one_may_only_lose(copy: Path, master: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(master / "in", tmp_path / "in"))
    for path in ("photo07.bmp", "new.bmp", "photo00.json"):
        (source / path).unlink()
    first = grown(source, copy, moved=True)
    assert first.grown is not None
    # An image without its sidecar is another record.
    assert (first.grown.added, first.grown.changed, first.grown.vanished, first.grown.generation) == (0, 1, 2, 3)
    (source / "photo08.bmp").unlink()
    second = grown(source, copy, moved=True)
    assert second.grown is not None
    assert second.sealed is not None
    assert (second.grown.vanished, second.redone, second.sealed["shards"]) == (1, 0, len(Archive(str(copy)).commits()))
    photo(200).save(source / "last.bmp")
    grown(source, copy, moved=True)
    assert Archive(str(copy)).newest == 5
    counts = [len(names(copy, generation)) for generation in range(1, 6)]
    assert counts == [11, 12, 10, 9, 10]
    assert list(Comparison().run(str(copy), str(source))) == []
    assert list(Comparison().run(str(copy), str(master / "in"), generation=2)) == []
    assert verify.fixity(str(copy)).problems == []
    keys = Archive(str(copy), everything=True).manifest(["key"]).column("key").to_pylist()
    assert len(keys) == len(set(keys)) == 16


# Budgets ------------------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def budgeted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `in` and its archive `dst` at 5 bpp; then 12 images are added and 2 changed in `in`."""
    place = tmp_path_factory.mktemp("budget")
    (place / "in").mkdir()
    for i in range(16):
        photo(i, 96).save(place / "in" / f"{i:02d}.bmp")
    made(place / "in", place / "dst", Budget(kind="bpp", value=5.0))
    for i in (3, 5, *range(16, 28)):
        photo(50 + i, 96).save(place / "in" / f"{i:02d}.bmp")
        later(place / "in" / f"{i:02d}.bmp")
    return place


def test_new_images_are_stored_at_the_price_of_the_others(budgeted: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(budgeted / "dst", tmp_path / "dst"))
    outcome = grown(budgeted / "in", place)
    assert outcome.sealed is not None
    assert outcome.budget_bytes is None
    archive = Archive(str(place))
    rows = archive.manifest(["shard_key", "lambda", "psnr_db", "bpp"]).to_pylist()
    old, new = ([row for row in rows if row["shard_key"].startswith("generations") == is_new] for is_new in (False, True))
    (price,) = {row["lambda"] for row in new}
    prices = sorted(row["lambda"] for row in Archive(str(place), 1).manifest(["lambda"]).to_pylist())
    assert prices[0] <= price <= prices[-1]
    assert archive.layers[1].run.config["budget"] == {"kind": "slope", "value": pytest.approx(price)}
    # The page's curve is of all images that there are, from both analyses; of one generation, from its own.
    both, first = (page_facts.curve(Archive(str(place), number)) for number in (2, 1))
    assert isinstance(both, page_facts.Curve)
    assert isinstance(first, page_facts.Curve)
    assert (both.images, both.generations, first.images) == (28, None, 16)
    # They are of one kind, and look alike.
    quality = [float(np.mean([row["psnr_db"] for row in some])) for some in (old, new)]
    assert quality[0] == pytest.approx(quality[1], abs=0.7)
    # A growth of a growth goes on with it.
    photo(400, 96).save(budgeted / "in" / "99.bmp")
    again = grown(budgeted / "in", place)
    (budgeted / "in" / "99.bmp").unlink()
    assert again.sealed is not None
    assert again.sealed["run"]["config"]["budget"]["value"] == pytest.approx(price)


@pytest.mark.parametrize("kind", ["bpp", "bytes", "ratio"])
def test_a_new_total_is_that_of_the_grown_archive(kind: str, budgeted: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(budgeted / "dst", tmp_path / "dst"))
    pixels, source = 28 * 96 * 96, sum(path.stat().st_size for path in (budgeted / "in").iterdir())
    total = int(6.0 * pixels / 8)
    value = {"bpp": 6.0, "bytes": float(total), "ratio": source / total}[kind]
    outcome = grown(budgeted / "in", place, Budget(kind=kind, value=value))
    assert outcome.sealed is not None
    assert outcome.budget_bytes == pytest.approx(total, abs=1)
    assert 0.97 * total < outcome.sealed["counted_bytes"] <= total
    # What is counted is what lies in the store of shards that this generation needs.
    assert outcome.sealed["counted_bytes"] == sum((place / record.shard).stat().st_size for record in Archive(str(place)).commits())


def test_a_total_that_the_older_images_use_up_is_refused(budgeted: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(budgeted / "dst", tmp_path / "dst"))
    with pytest.raises(BudgetInfeasibleError, match=r"for the new images, beside the [\d,]+ of the older ones.*--bpp"):
        grown(budgeted / "in", place, Budget(kind="bpp", value=1.0))
    assert Archive(str(place)).newest == 1
    assert not list(place.glob("generations/00002*"))


def test_a_quality_is_that_of_the_new_images(budgeted: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(budgeted / "dst", tmp_path / "dst"))
    grown(budgeted / "in", place, Budget(kind="psnr", value=30.0))
    rows = Archive(str(place)).manifest(["shard_key", "psnr_db"]).to_pylist()
    new = [row["psnr_db"] for row in rows if row["shard_key"].startswith("generations")]
    assert len(new) == 14
    assert all(quality is None or quality >= 30 for quality in new)  # kept where coding would not shrink it


def test_the_page_says_which_generations_its_curve_is_of(budgeted: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(budgeted / "dst", tmp_path / "dst"))
    grown(budgeted / "in", place, Q)
    curve = page_facts.curve(Archive(str(place)))
    assert isinstance(curve, page_facts.Curve)
    assert (curve.images, curve.generations) == (14, [1])  # 2 of 16 have changed
    assert main(["-q", "audit", str(place), "--html", str(tmp_path / "page.html"), "--no-originals"]) == 0
    assert "predicts it from 14 images, of generation 1 alone: of the others no analysis is stored" in (tmp_path / "page.html").read_text()


# Kills, and two at once ---------------------------------------------------------------------------------------------------------------------------


class KilledError(BaseException):
    """Nothing catches it."""


def test_a_growth_that_is_killed_at_any_write_is_finished_by_the_same_command(
    master: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: LoadedModel
) -> None:
    """Before and after every write: until it is sealed generation 1 is the newest and whole; afterwards nothing that was committed is made again."""
    monkeypatch.setattr(growth, "stored_models", lambda *_: [tiny])  # expanding it takes most of the time
    writes: list[str] = []
    limit = [10**9]

    def counted(right: Callable[..., Any], place: int) -> Callable[..., Any]:
        def write(self: LocalStore, *arguments: Any, **options: Any) -> Any:
            if len(writes) == limit[0]:
                raise KilledError
            result = right(self, *arguments, **options)
            writes.append(str(arguments[place]))
            return result

        return write

    for name, place in (("publish", 1), ("publish_bytes", 1), ("put_if_absent", 0)):
        monkeypatch.setattr(LocalStore, name, counted(getattr(LocalStore, name), place))
    whole = None
    for number in range(1, 100):
        archive = Path(shutil.copytree(master / "dst", tmp_path / f"dst{number}"))
        writes.clear()
        limit[0] = number
        try:
            grown(master / "in", archive)
            break
        except KilledError:
            pass
        limit[0] = 10**9
        sealed = (archive / "seals" / "00002.json").exists()
        assert Archive(str(archive)).newest == (2 if sealed else 1)
        assert len(names(archive)) == (12 if sealed else 11)
        committed = {path: path.read_bytes() for path in archive.glob("generations/*/commits/*")}
        shards = {path: path.stat().st_mtime_ns for path in archive.glob("generations/*/shards/*")}
        writes.clear()
        again = grown(master / "in", archive)
        assert all(path.read_bytes() == data for path, data in committed.items())
        assert again.redone == (0 if sealed else 1 - len(committed))
        if committed:
            assert {path: path.stat().st_mtime_ns for path in archive.glob("generations/*/shards/*")} == shards
        sealed_now = Archive(str(archive)).seal()
        assert sealed_now is not None
        whole = whole or sealed_now["counted_bytes"]
        assert sealed_now["counted_bytes"] == whole
        assert json.loads((archive / "MANIFEST.json").read_bytes())["newest"]["generation"] == 2
        if number % 5 == 0:
            assert verify.fixity(str(archive)).problems == []
        shutil.rmtree(archive)
    assert number > 10


@pytest.mark.skipif(not processes.available(), reason="processes take Linux")
def test_a_growth_whose_processes_are_killed_is_finished_by_the_same_command(tmp_path: Path) -> None:
    source, archive = photos(tmp_path / "in", 2), tmp_path / "dst"
    made(source, archive)
    for i in range(12):
        photo(100 + i).save(source / f"later{i:02d}.bmp")
    command = [sys.executable, "-m", "jobs.cli", "-q", "compress", str(source), str(archive), "--grow", "--executor", "processes", "--workers", "1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    while process.poll() is None and not list(archive.glob("generations/*/commits/*.json")):
        time.sleep(0.005)
    assert process.poll() is None, "the growth ended before it could be killed"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    committed = {path: path.read_bytes() for path in archive.glob("generations/*/commits/*.json")}
    assert Archive(str(archive)).newest == 1
    outcome = grown(source, archive)
    assert outcome.sealed is not None
    assert (outcome.resumed, outcome.redone) == (len(committed), outcome.sealed["own"]["shards"] - len(committed))
    assert all(path.read_bytes() == data for path, data in committed.items())
    assert list(Comparison().run(str(archive), str(source))) == []


def test_two_drivers_make_one_generation(sealed: Path, master: Path) -> None:
    slow, fast = growing(master / "in", sealed), growing(master / "in", sealed)
    done = fast.execute()
    before = contents(sealed)
    late = slow.execute()
    assert done.sealed is not None
    assert late.sealed is not None
    assert (late.redone, late.sealed["commits"]) == (0, done.sealed["commits"])
    assert contents(sealed) == before


def test_of_two_drivers_with_different_listings_one_wins_and_the_other_says_so(sealed: Path, master: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(master / "in", tmp_path / "in"))
    slow = growing(source, sealed, moved=True)
    photo(300).save(source / "meanwhile.bmp")
    grown(source, sealed, moved=True)
    with pytest.raises(CommitConflictError, match=r"grew .* to generation 2 meanwhile"):
        slow.execute()
    assert "meanwhile.bmp" in names(sealed)
    assert verify.fixity(str(sealed)).problems == []
    # What the loser made is nobody's.
    found = gc.orphans(Archive(str(sealed), everything=True))
    assert {name.split("/")[0] for name in found} == {"generations"}
    gc.collect(Archive(str(sealed)), found)
    assert len(list(sealed.glob("generations/00002-*/run.json"))) == 1
    assert restore(str(sealed), str(tmp_path / "out")).problems == []


def test_a_killed_growth_whose_source_changed_again_is_left_behind(sealed: Path, master: Path, tmp_path: Path, capfd: Any) -> None:
    source = Path(shutil.copytree(master / "in", tmp_path / "in"))
    growing(source, sealed, moved=True)._create()  # and killed
    assert main(["status", str(sealed)]) == 0
    assert "unfinished, 0 of 1 shards" in capfd.readouterr().out
    photo(300).save(source / "meanwhile.bmp")
    log = io.StringIO()
    Run(str(source), str(sealed), CompressConfig(budget=Q), JsonReporter(log), placement=HERE, grow=True, moved=True).execute()
    assert "1 growths were begun of another listing" in log.getvalue()
    assert names(sealed, 2).count("meanwhile.bmp") == 1


# Doubt --------------------------------------------------------------------------------------------------------------------------------------------


def test_where_size_and_time_leave_doubt_the_content_decides(sealed: Path, master: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(master / "first", tmp_path / "in"))
    later(source / "photo02.bmp")  # as after a copy: read, and equal
    photo(77).save(source / "photo05.bmp")  # the same size
    later(source / "photo05.bmp")
    found = growing(source, sealed, moved=True)._growing
    assert found is not None
    assert (found.found.added, found.found.changed, found.found.vanished) == (0, 1, 0)
    assert (found.found.compared, [each.name for each in found.removed]) == (2, ["photo05.bmp"])
    # A sidecar's change is its image's.
    (source / "photo00.json").write_text('{"label": 1}')
    later(source / "photo00.json")
    found = growing(source, sealed, moved=True)._growing
    assert found is not None
    assert [each.name for each in found.removed] == ["photo00.bmp", "photo05.bmp"]


def test_what_could_not_be_read_is_tried_again_and_what_cannot_be_read_stays(tmp_path: Path) -> None:
    source, archive = photos(tmp_path / "in", 3), tmp_path / "dst"
    (source / "later.bmp").symlink_to(source / "away.bmp")
    made(source, archive)
    assert Archive(str(archive)).manifest(["name", "status"]).to_pylist()[0] == {"name": "later.bmp", "status": "failed"}
    unchanged = grown(source, archive)
    assert unchanged.grown is not None
    assert unchanged.grown.nothing
    (source / "later.bmp").unlink()
    photo(9).save(source / "later.bmp")
    # A file that is there and cannot be read does not replace what the archive has of it.
    (source / "photo01.bmp").unlink()
    (source / "photo01.bmp").symlink_to(source / "gone.bmp")
    outcome = grown(source, archive)
    assert outcome.grown is not None
    assert outcome.sealed is not None
    assert (outcome.grown.added, outcome.grown.changed, outcome.grown.vanished) == (0, 1, 0)
    assert outcome.sealed["failed"] == 0
    assert restored(archive, tmp_path / "out").keys() >= {"later.png", "photo01.png"}


def test_a_source_that_changes_between_listing_and_reading(sealed: Path, master: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(master / "in", tmp_path / "in"))
    run = growing(source, sealed, moved=True)
    (source / "new.bmp").unlink()  # gone after it was listed
    photo(500).save(source / "photo01.bmp")  # changed
    outcome = run.execute()
    assert outcome.sealed is not None
    assert outcome.sealed["failed"] == 1
    rows = {row["name"]: row for row in Archive(str(sealed)).manifest().to_pylist()}
    assert rows["new.bmp"]["error_code"] == "source_unreadable"
    assert rows["photo01.bmp"]["source_sha256"] == hashlib.sha256((source / "photo01.bmp").read_bytes()).hexdigest()
    # The next growth has it as it is.
    outcome = grown(source, sealed, moved=True)
    assert outcome.grown is not None
    assert (outcome.grown.vanished, outcome.grown.changed) == (1, 0)


def tar_of(path: Path, files: list[tuple[str, bytes]], mtime: int = 1_700_000_000) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), mtime
            tar.addfile(info, io.BytesIO(data))
    later(path, -1000)


def bmp(seed: int) -> bytes:
    out = io.BytesIO()
    photo(seed).save(out, "BMP")
    return out.getvalue()


def test_tars_as_a_source(tmp_path: Path) -> None:
    """A tar that is as it was is not read; of one that was written again the members are compared, though their headers say the same."""
    source, archive = tmp_path / "in", tmp_path / "dst"
    source.mkdir()
    tar_of(source / "a.tar", [(f"{i}.bmp", bmp(i)) for i in range(4)])
    # One name twice: told apart by their order.
    tar_of(source / "b.tar", [("x.bmp", bmp(10)), ("y.bmp", bmp(11)), ("y.bmp", bmp(12))])
    made(source, archive)
    tar_of(source / "c.tar", [("z.bmp", bmp(20))])
    outcome = grown(source, archive)
    assert outcome.grown is not None
    assert (outcome.grown.added, outcome.grown.changed, outcome.grown.vanished, outcome.grown.compared) == (1, 0, 0, 0)
    tar_of(source / "b.tar", [("x.bmp", bmp(10)), ("y.bmp", bmp(13)), ("y.bmp", bmp(12))])
    later(source / "b.tar")
    outcome = grown(source, archive)
    assert outcome.grown is not None
    assert (outcome.grown.added, outcome.grown.changed, outcome.grown.vanished, outcome.grown.compared) == (0, 1, 0, 3)
    assert names(archive).count("b/y.bmp") == 2
    # A tar that cannot be read to its end says nothing of what may lie behind.
    data = (source / "a.tar").read_bytes()
    (source / "a.tar").write_bytes(data[: len(data) // 2])
    outcome = grown(source, archive)
    assert outcome.grown is not None
    assert outcome.grown.vanished == 0


def test_parquet_as_a_source(tmp_path: Path) -> None:
    source, archive = tmp_path / "in", tmp_path / "dst"
    source.mkdir()

    def table(path: Path, seeds: list[int]) -> None:
        columns = {"key": [f"k{i}" for i in range(len(seeds))], "image": [bmp(seed) for seed in seeds], "label": seeds}
        pq.write_table(pa.table(columns), path)
        later(path, -1000)

    table(source / "a.parquet", [0, 1, 2])
    table(source / "b.parquet", [3, 4, 5])
    made(source, archive)
    table(source / "c.parquet", [6])
    outcome = grown(source, archive)
    assert outcome.grown is not None
    assert (outcome.grown.added, outcome.grown.changed, outcome.grown.compared) == (1, 0, 0)
    table(source / "b.parquet", [3, 44, 5])
    later(source / "b.parquet")
    outcome = grown(source, archive)
    assert outcome.grown is not None
    assert (outcome.grown.added, outcome.grown.changed, outcome.grown.vanished, outcome.grown.compared) == (0, 1, 0, 3)
    assert verify.decode(str(archive)).problems == []


# Bad input ----------------------------------------------------------------------------------------------------------------------------------------


def test_what_cannot_grow_is_refused_in_one_sentence(sealed: Path, master: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = str(master / "in")
    half = Path(shutil.copytree(sealed, tmp_path / "half"))
    (half / "MANIFEST.json").unlink()
    other = photos(tmp_path / "other", 2)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    photo(1).save(foreign / "else.bmp")

    def refused(arguments: list[str], sentence: str, code: int = 2) -> None:
        assert main(["compress", *arguments, "--grow", "--executor", "local"]) == code
        said = capfd.readouterr().err.strip().splitlines()[-1]
        assert sentence in said, said

    refused([source, str(tmp_path / "none")], "there is no archive at")
    refused([source, str(half)], "is not finished: finish it first by the same command that began it, without --grow")
    refused([str(other), str(sealed)], "if it is the same source at another address say --moved")
    refused([str(foreign), str(sealed), "--moved"], "none of the 11 images of")
    refused([source, str(sealed), "--model", "msinn-paper"], "grows with its own model")
    refused([source, str(sealed), "--objective", "psnr"], "objective was mse, now psnr")
    refused([source, str(sealed), "--tune", "1m"], "--grow goes on with the archive's own model")
    refused([source, str(sealed), "--q", "99"], "takes 0 to")
    assert main(["compress", source, str(sealed), "--moved", "--q", "4"]) == 2
    assert main(["compress", source, str(sealed)]) == 2
    assert "say a budget: one of --bpp" in capfd.readouterr().err
    assert Archive(str(sealed)).newest == 1
    assert not list(sealed.glob("generations/0*"))
    with pytest.raises(UsageError, match="is generation 2 of an archive"):
        Archive(str(next((master / "grown" / "generations").glob("00002-*"))))
    with pytest.raises(SourceError):
        grown(tmp_path / "nowhere", sealed, moved=True)


@pytest.fixture(scope="module")
def whole(master: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What generation 1 is restored as."""
    return restored(master / "dst", tmp_path_factory.mktemp("whole") / "out")


OWN = "generations/00*"


@pytest.mark.parametrize(
    "lost", ["seals/00002.json", "seals", OWN, *(f"{OWN}/{name}" for name in ("removed", "run.json", "commits", "manifest", "shards"))]
)
def test_lost_parts_of_a_later_generation_leave_the_first_whole(lost: str, copy: Path, whole: dict[str, str], tmp_path: Path) -> None:
    for path in list(copy.glob(lost)):
        (shutil.rmtree if path.is_dir() else os.unlink)(path)
    if lost != "seals":
        assert restored(copy, tmp_path / "one", generation=1) == whole
    result, fixity = restore(str(copy), str(tmp_path / "two")), verify.fixity(str(copy))
    found = contents(tmp_path / "two")
    if lost.endswith("run.json"):
        # The seal says the same; what is lost is told all the same, for the seal may be next.
        assert result.problems == []
        assert [problem.partition(": ")[2] for problem in fixity.problems] == ["compress --grow makes it again from the seal of generation 2"]
    else:
        assert result.problems
        assert fixity.problems
    if lost not in (OWN, f"{OWN}/shards"):
        # The new images come back, by what is left of the books.
        assert "new.png" in found
    assert found.keys() >= {name for name in whole if name not in ("photo01.png", "photo04.png")}
    if lost not in (f"{OWN}/run.json", f"{OWN}/shards"):
        with pytest.raises(ManifestError, match="still gives back every image that is there"):
            Archive(str(copy)).manifest()


def test_damaged_seals_are_named(copy: Path) -> None:
    good = json.loads((copy / "seals" / "00002.json").read_bytes())
    for change, sentence in (
        ({"folder": "../x"}, "names no folder of a generation"),
        ({"run": {**good["run"], "generation": 3}}, "is of generation 3"),
        ({"commits": {"../../etc/passwd": "0"}}, "names no commits"),
        ({"counted_bytes": -1}, "counted_bytes is -1"),
        ({"added": "many"}, "added is no int"),
    ):
        (copy / "seals" / "00002.json").write_text(json.dumps(good | change))
        with pytest.raises(ManifestError, match=sentence):
            Archive(str(copy)).commits()
        assert len(Archive(str(copy), 1).commits()) > 0
    (copy / "seals" / "00002.json").write_text(json.dumps(good))
    # A pointer to generations that nobody made costs one sentence.
    pointer = json.loads((copy / "MANIFEST.json").read_bytes())
    (copy / "MANIFEST.json").write_text(json.dumps(pointer | {"newest": {"generation": 99_999, "folders": {"99999": "../.."}}}))
    assert len(verify.fixity(str(copy)).problems) <= 3
    (copy / "MANIFEST.json").write_text(json.dumps(pointer))
    (copy / "seals" / "00001.json").write_text((copy / "seals" / "00001.json").read_text() + " ")
    with pytest.raises(ManifestError, match=r"00001\.json is changed since generation 2 was sealed"):
        Archive(str(copy)).commits()


# Lost shards, and generations that are given up ---------------------------------------------------------------------------------------------------


def test_lost_shards_of_every_generation_are_made_again(copy: Path, master: Path) -> None:
    before = contents(copy)
    lost = [sorted(copy.glob("shards/*"))[-1], *copy.glob("generations/*/shards/*")]
    for path in lost:
        path.unlink()
    outcome = grown(master / "in", copy)
    assert outcome.grown is not None
    assert outcome.grown.nothing
    assert contents(copy) == before


def test_gc_gives_up_old_generations_and_nothing_else(copy: Path, master: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = Path(shutil.copytree(master / "in", tmp_path / "in"))
    # So that a shard of generation 1 is used by it alone.
    first = Archive(str(copy)).manifest(["name", "shard_key"]).to_pylist()[0]["shard_key"]
    for row in Archive(str(copy)).manifest(["name", "shard_key"]).to_pylist():
        if row["shard_key"] == first:
            (source / row["name"]).unlink()
    grown(source, copy, moved=True)
    want = restored(copy, tmp_path / "want")
    before = contents(copy)
    assert main(["gc", str(copy)]) == 0
    assert main(["gc", str(copy), "--keep", "1"]) == 0
    assert "generations 1 to 2 can no longer be read after that; 1 are kept" in capfd.readouterr().out
    assert contents(copy) == before
    assert main(["gc", str(copy), "--keep", "0", "--delete"]) == 2
    assert main(["gc", str(copy), "--keep", "2", "--delete"]) == 0
    # Generation 2 needs it yet.
    assert (copy / first).exists()
    assert len(names(copy, 2)) == 12
    with pytest.raises(UsageError, match=r"generation 1 .* was dropped"):
        Archive(str(copy), 1)
    assert main(["gc", str(copy), "--keep", "1", "--delete"]) == 0
    assert not (copy / first).exists()
    assert restored(copy, tmp_path / "out") == want
    assert verify.fixity(str(copy)).problems == []
    assert main(["gc", str(copy)]) == 0
    assert "0 objects" in capfd.readouterr().out.splitlines()[-1]
    # Readers that know one generation alone refuse it from here on, and it goes on growing.
    assert json.loads((copy / "run.json").read_bytes())["archive_version"] == 5
    photo(900).save(source / "more.bmp")
    grown(source, copy, moved=True)
    assert list(Comparison().run(str(copy), str(source))) == []
    assert main(["status", str(copy)]) == 0
    assert capfd.readouterr().out.count("(dropped)") == 2


# Stores, models, plans ----------------------------------------------------------------------------------------------------------------------------


def test_an_archive_on_s3_grows_through_a_bad_network(s3: str, s3_proxy: FaultProxy, tmp_path: Path) -> None:
    source = photos(tmp_path / "in", 3)
    fs = s3fs.S3FileSystem()
    fs.put(str(source), f"{s3}/in", recursive=True)
    made(f"{s3}/in", f"{s3}/dst")
    fs.pipe_file(f"{s3}/in/new.bmp", bmp(40))
    fs.pipe_file(f"{s3}/in/photo01.bmp", bmp(41))
    fs.rm_file(f"{s3}/in/photo02.bmp")
    s3_proxy.faults = [
        Fault("lost", method="PUT", path="seals/", times=2),
        Fault("lost", method="PUT", path="commits/", times=1),
        Fault("503", share=0.1),
    ]
    outcome = grown(f"{s3}/in", f"{s3}/dst")
    assert outcome.grown is not None
    assert (outcome.grown.added, outcome.grown.changed, outcome.grown.vanished) == (1, 1, 1)
    assert s3_proxy.faults[0].happened == 2
    s3_proxy.faults = []
    assert verify.fixity(f"{s3}/dst").problems == []
    assert [len(restored_on(s3, tmp_path / str(number), number)) for number in (1, 2)] == [6, 6]
    again = grown(f"{s3}/in", f"{s3}/dst")
    assert again.grown is not None
    assert again.grown.nothing


def restored_on(s3: str, out: Path, generation: int) -> dict[str, str]:
    assert restore(f"{s3}/dst", str(out), generation=generation).problems == []
    return contents(out)


def test_every_model_of_an_archive_is_grown_with(tmp_path: Path, tiny: LoadedModel) -> None:
    source, archive = photos(tmp_path / "in", 6), tmp_path / "dst"
    # As images of two kinds have theirs: this one differs by its card alone, and is taken by none or all.
    both = [tiny, parse_model(with_card(tiny.data, {"name": "other", "note": "a relative"}))]
    config = CompressConfig(budget=Budget(kind="bpp", value=9.0), model=TINY)
    Run(str(source), str(archive), config, _quiet(), placement=HERE, own_models=lambda _: both).execute()
    change(source)
    grown(source, archive)
    runs = [layer.run for layer in Archive(str(archive)).layers]
    assert runs[0].models == runs[1].models == [model.sha256 for model in both]
    assert verify.decode(str(archive)).problems == []
    with pytest.raises(UsageError, match="grows with its own model"):
        grown(source, archive, model="0123456789abcdef")


def test_a_plan_of_a_growth_encodes_nothing(sealed: Path, master: Path, copy_source: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = str(copy_source)
    assert main(["-q", "plan", source, str(sealed), "--grow", "--moved", "--bpp", "12", "--executor", "local", "--json"]) == 0
    facts = json.loads(capfd.readouterr().out)
    assert facts["images"] == 3
    assert facts["predicted_bytes"] <= facts["budget_bytes"]
    assert not list(sealed.glob("generations/0*"))
    assert Archive(str(sealed)).newest == 1
    # The analysis is used again, whatever the budget.
    analyses = contents(sealed / "generations")
    assert main(["-q", "compress", source, str(sealed), "--grow", "--moved", "--bpp", "13", "--executor", "local"]) == 0
    after = contents(sealed / "generations")
    assert {name: after[name] for name in analyses} == analyses
    assert sum(name.startswith("analyse/") for name in after) == len(analyses)
    assert main(["-q", "plan", source, str(sealed), "--grow", "--moved"]) == 0
    assert "nothing has changed since generation 2" in capfd.readouterr().out


@pytest.fixture
def copy_source(master: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(master / "in", tmp_path / "in"))


@pytest.mark.parametrize("how", ["--lossless", "--min-psnr inf"])
def test_what_lies_exactly_grows_exactly_and_needs_no_model(how: str, tmp_path: Path) -> None:
    source, archive = photos(tmp_path / "in", 6), tmp_path / "dst"
    if how == "--lossless":
        made(source, archive, Budget(kind="lossless", value=0.0))
    else:
        made(source, archive, Budget(kind="bytes", value=1e6), min_psnr_db=float("inf"))
    change(source)
    if how == "--lossless":
        with pytest.raises(UsageError, match="lies exactly, and it holds no model: it grows so"):
            grown(source, archive, Budget(kind="bpp", value=2.0))
    outcome = grown(source, archive)
    assert outcome.grown is not None
    assert (outcome.grown.added, outcome.grown.changed, outcome.grown.vanished) == (2, 1, 1)
    assert not (archive / "model").exists()
    assert {row["exact"] for row in Archive(str(archive)).manifest(["exact"]).to_pylist()} <= {"bytes", "pixels"}
    assert (verify.fixity(str(archive)).problems, verify.decode(str(archive)).problems) == ([], [])
    assert list(Comparison().run(str(archive), str(source))) == []


def test_the_page_shows_a_generation(master: Path, tmp_path: Path) -> None:
    for number, images in ((1, 11), (2, 12)):
        assert main(["-q", "audit", str(master / "grown"), "--html", str(tmp_path / "page.html"), "--generation", str(number)]) == 0
        text = (tmp_path / "page.html").read_text()
        assert f"{images} images" in text or f">{images}<" in text or f"{images}: " in text


# What a hostile reading of growth found ------------------------------------------------------------------------------------------------------------


def killed(source: Path, archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A growth that is killed before its seal."""

    def kill(*_: Any) -> None:
        raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr(compress, "seal_growth", kill)
        with pytest.raises(KilledError):
            grown(source, archive)


def aged(folder: Path, count: int, size: int = 64) -> Path:
    folder.mkdir()
    for i in range(count):
        photo(i, size).save(folder / f"{i:02d}.bmp")
        later(folder / f"{i:02d}.bmp", -1000)
    return folder


def test_a_file_written_again_at_its_size_after_a_kill_is_stored_as_it_is_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, archive = aged(tmp_path / "in", 4), tmp_path / "dst"
    made(source, archive)
    photo(50).save(source / "new.bmp")
    later(source / "new.bmp", -500)
    killed(source, archive, monkeypatch)
    assert list(archive.glob("generations/*/commits/*"))
    photo(51).save(source / "new.bmp")
    later(source / "new.bmp", -100)
    grown(source, archive)
    assert list(Comparison().run(str(archive), str(source))) == []
    (digest,) = (row["source_sha256"] for row in Archive(str(archive)).manifest().to_pylist() if row["name"] == "new.bmp")
    assert digest == hashlib.sha256((source / "new.bmp").read_bytes()).hexdigest()


def test_a_price_is_told_without_what_gc_has_removed(tmp_path: Path) -> None:
    source, archive, budget = aged(tmp_path / "in", 12, 96), tmp_path / "dst", Budget(kind="bpp", value=5.0)
    made(source, archive, budget)
    for i in range(4):  # a whole shard
        (source / f"{i:02d}.bmp").unlink()
    grown(source, archive, budget)
    assert main(["gc", str(archive), "--keep", "1", "--delete"]) == 0
    photo(99, 96).save(source / "new.bmp")
    grown(source, archive)
    assert verify.fixity(str(archive)).problems == []
    assert len(restored(archive, tmp_path / "out")) == 9 + 1


def test_gc_of_a_killed_growth_may_be_killed_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, archive = aged(tmp_path / "in", 4), tmp_path / "before"
    made(source, archive)
    photo(50).save(source / "01.bmp")
    (source / "02.bmp").unlink()
    killed(source, archive, monkeypatch)
    found = list(gc.orphans(Archive(str(archive), everything=True), unfinished=True).items())
    assert [name.split("/")[2] for name, _ in found][:2] == ["commits", "run.json"]
    for count in range(len(found) + 1):
        place = Path(shutil.copytree(archive, tmp_path / f"dst{count}"))
        gc.collect(Archive(str(place)), dict(found[:count]))
        grown(source, place)
        assert verify.fixity(str(place)).problems == []
        assert list(Comparison().run(str(place), str(source))) == []


def test_a_growth_that_is_collected_while_it_runs_is_not_sealed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, archive = aged(tmp_path / "in", 4), tmp_path / "dst"
    made(source, archive)
    photo(50).save(source / "01.bmp")
    encode = compress.Encoding.run

    def run(self: compress.Encoding, workers: Any) -> None:
        encode(self, workers)
        assert main(["gc", str(archive), "--unfinished", "--delete"]) == 0

    with monkeypatch.context() as patched:
        patched.setattr(compress.Encoding, "run", run)
        with pytest.raises(ManifestError, match="was removed while the archive grew"):
            grown(source, archive)
    assert Archive(str(archive)).newest == 1
    grown(source, archive)
    assert verify.fixity(str(archive)).problems == []


def test_a_tar_without_an_end_says_nothing_of_what_may_follow(tmp_path: Path) -> None:
    source, archive = tmp_path / "in", tmp_path / "dst"
    source.mkdir()
    tar_of(source / "a.tar", [(f"{i}.bmp", bmp(i)) for i in range(4)])
    made(source, archive)
    with tarfile.open(source / "a.tar") as tar:
        offset = tar.getmembers()[2].offset
    data = (source / "a.tar").read_bytes()
    (source / "a.tar").write_bytes(data[:offset])
    assert grown(source, archive).grown.vanished == 0  # type: ignore[union-attr]
    (source / "a.tar").write_bytes(data[:offset] + bytes(1024))
    assert grown(source, archive).grown.vanished == 2  # type: ignore[union-attr]


def test_a_folder_that_cannot_be_listed_is_not_one_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, archive = tmp_path / "in", tmp_path / "dst"
    for name in ("a", "b"):
        (source / name).mkdir(parents=True)
        photo(1).save(source / name / "x.bmp")
    made(source, archive)
    right = LocalFileSystem.ls

    def ls(self: LocalFileSystem, path: str, *arguments: Any, **options: Any) -> Any:
        if path.rstrip("/").endswith("/in/b"):
            raise OSError(5, "Input/output error")
        return right(self, path, *arguments, **options)

    monkeypatch.setattr(LocalFileSystem, "ls", ls)
    with pytest.raises(SourceError, match="cannot list"):
        grown(source, archive)


def test_a_changed_file_that_cannot_be_read_does_not_replace_the_copy_of_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source, archive = aged(tmp_path / "in", 6), tmp_path / "dst"
    made(source, archive)
    before = restored(archive, tmp_path / "before")
    photo(50, 80).save(source / "01.bmp")
    photo(51, 80).save(source / "02.bmp")
    log = io.StringIO()
    run = Run(str(source), str(archive), CompressConfig(budget=Q), JsonReporter(log), placement=HERE, grow=True)
    (source / "01.bmp").rename(tmp_path / "away.bmp")
    outcome = run.execute()
    assert "01.bmp has changed and could not be read: it stays as generation 1 has it" in log.getvalue()
    sealed, found = outcome.sealed, outcome.grown
    assert sealed is not None
    assert found is not None
    assert (found.added, found.changed, found.vanished, found.unchanged, found.unread) == (0, 1, 0, 5, 1)
    rows = Archive(str(archive)).manifest().to_pylist()
    assert sorted(row["name"] for row in rows) == [f"{i:02d}.bmp" for i in range(6)]
    assert [sealed[name] for name in ("images", "coded", "failed", "unread")] == [6, 6, 0, 1]
    assert sealed["source_bytes"] == sum(row["source_bytes"] for row in rows)
    assert sealed["pixels"] == sum(row["pixels"] for row in rows)
    assert sealed["counted_bytes"] == sum(record.counted_bytes for record in Archive(str(archive)).commits())
    after = restored(archive, tmp_path / "after")
    assert after["01.png"] == before["01.png"]
    assert after["02.png"] != before["02.png"]
    assert main(["gc", str(archive), "--delete"]) == 0
    assert (verify.fixity(str(archive)).problems, verify.decode(str(archive)).problems) == ([], [])
    # Without its seal, which names the list, it is the same.
    seal = (archive / "seals" / "00002.json").read_bytes()
    (archive / "seals" / "00002.json").unlink()
    assert restore(str(archive), str(tmp_path / "unsealed")).problems
    assert contents(tmp_path / "unsealed") == after
    (archive / "seals" / "00002.json").write_bytes(seal)
    # When it can be read it is had anew; one that cannot be even before is told, too, and is no change.
    (tmp_path / "away.bmp").rename(source / "01.bmp")
    again = grown(source, archive)
    assert again.grown is not None
    assert (again.grown.added, again.grown.changed, again.grown.vanished, again.grown.unread) == (0, 1, 0, 0)
    assert list(Comparison().run(str(archive), str(source))) == []
    (source / "03.bmp").unlink()
    (source / "03.bmp").symlink_to(source / "nowhere")
    capfd.readouterr()
    assert main(["-q", "compress", str(source), str(archive), "--grow"]) == 3
    said = capfd.readouterr().out
    assert "nothing has changed since generation 3: 6 images are as they were" in said
    assert "1 of them could not be read now" in said


def test_a_shard_of_nothing_but_unreadable_files_is_not_counted(tmp_path: Path) -> None:
    source, archive = aged(tmp_path / "in", 3), tmp_path / "dst"
    made(source, archive)
    photo(50, 80).save(source / "01.bmp")
    run = growing(source, archive)
    (source / "01.bmp").rename(tmp_path / "away.bmp")
    sealed = run.execute().sealed
    assert sealed is not None
    assert (sealed["images"], sealed["unread"], sealed["shards"]) == (3, 1, len(Archive(str(archive)).commits()))
    assert sealed["counted_bytes"] == sum(record.counted_bytes for record in Archive(str(archive)).commits())
    assert main(["gc", str(archive), "--delete"]) == 0
    assert len(restored(archive, tmp_path / "out")) == 4
    assert main(["verify", str(archive)]) == 0
    (tmp_path / "away.bmp").rename(source / "01.bmp")
    grown(source, archive)
    assert list(Comparison().run(str(archive), str(source))) == []


def test_a_lost_or_damaged_first_seal_is_made_again_by_growing(copy: Path, master: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = contents(copy)
    for data in (None, b"{}", (copy / "seals" / "00001.json").read_bytes() + b" "):
        (copy / "seals" / "00001.json").unlink()
        if data is not None:
            (copy / "seals" / "00001.json").write_bytes(data)
        assert main(["verify", str(copy)]) == 5
        assert main(["-q", "compress", str(master / "in"), str(copy), "--grow"]) == 0
        assert contents(copy) == before
    (copy / "seals" / "00001.json").unlink()
    capfd.readouterr()
    assert main(["ls", str(copy)]) == 5
    assert "00001.json is missing: compress --grow makes it again from MANIFEST.json" in capfd.readouterr().err
    # What is not the seal that generation 2 names is not made.
    pointer = json.loads((copy / "MANIFEST.json").read_bytes())
    (copy / "MANIFEST.json").write_text(json.dumps(pointer | {"counted_bytes": 1}))
    with pytest.raises(ManifestError, match=r"00001\.json is missing"):
        grown(master / "in", copy)


def test_where_a_list_of_removed_images_is_lost_older_versions_are_told_and_called_otherwise(
    copy: Path, master: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    right = restored(copy, tmp_path / "right")
    shutil.rmtree(next(copy.glob("generations/*/removed")))
    assert main(["ls", str(copy)]) == 5
    assert "which images its generation no longer has is not known" in capfd.readouterr().err
    result = restore(str(copy), str(tmp_path / "out"))
    assert "older versions of files are among the images that are left (1 that changed and 1 that are gone)" in result.problems[0]
    assert "1 images are there in a later version too, and are named otherwise, for example photo01~older-000000002.png" in result.problems[1]
    found = contents(tmp_path / "out")
    assert found["photo01.png"] == right["photo01.png"]
    assert {"photo01~older-000000002.png", "photo04.png"} <= found.keys()
    export(str(copy), str(tmp_path / "tars"), "webdataset")
    members: dict[str, str] = {}
    for path in (tmp_path / "tars").glob("*.tar"):
        with tarfile.open(path) as tar:
            members |= dict.fromkeys(tar.getnames(), path.name)
    assert "generation-00002" in members["photo01.png"]
    assert "photo01~older-000000002.png" in members


def test_gc_that_was_killed_after_its_notes_is_finished_by_the_same_command(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def kill(*_: Any, **__: Any) -> None:
        raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr(LocalStore, "publish_bytes", kill)
        with pytest.raises(KilledError):
            main(["gc", str(copy), "--keep", "1", "--delete"])
    assert json.loads((copy / "run.json").read_bytes())["archive_version"] == 4
    assert list(copy.glob("seals/*.dropped.json"))
    assert main(["gc", str(copy), "--keep", "1", "--delete"]) == 0
    # Readers that know one generation alone would miss what is removed.
    assert json.loads((copy / "run.json").read_bytes())["archive_version"] == 5
    assert verify.fixity(str(copy)).problems == []


def test_a_folder_of_a_glob_that_cannot_be_listed_is_told_and_not_taken_for_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    source, archive = tmp_path / "in", tmp_path / "dst"
    for i, name in enumerate(("a", "b", "c", "other/deep")):
        (source / name).mkdir(parents=True)
        photo(i).save(source / name / "x.bmp")
    glob = f"{source}/[a-c]/*.bmp"
    made(glob, archive)
    assert names(archive) == ["a/x.bmp", "b/x.bmp", "c/x.bmp"]
    (source / "c" / "x.bmp").unlink()
    right = LocalFileSystem.ls

    def ls(self: LocalFileSystem, path: str, *arguments: Any, **options: Any) -> Any:
        # What the glob does not look into is nothing to it.
        if path.rstrip("/").endswith(("/in/b", "/in/other")):
            raise PermissionError(13, "Permission denied")
        return right(self, path, *arguments, **options)

    monkeypatch.setattr(LocalFileSystem, "ls", ls)
    assert main(["-q", "compress", glob, str(archive), "--grow", "--executor", "local"]) == 3
    assert "1 vanished" in capfd.readouterr().out
    assert names(archive) == ["a/x.bmp", "b/x.bmp"]
    sealed = Archive(str(archive)).seal()
    assert sealed is not None
    assert len(sealed["scan_warnings"]) == 1
    assert "/in/b cannot be listed (Permission denied)" in sealed["scan_warnings"][0]
    everything = scan(f"{source}/**")
    assert len(everything.cut) == 2
    assert [record.name for record in everything.records] == ["a/x.bmp"]


def test_a_relative_source_is_the_same_folder_wherever_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        aged(tmp_path / place / "in", 3)
    monkeypatch.chdir(tmp_path / "one")
    made("in", "dst")
    archive = tmp_path / "one" / "dst"
    assert json.loads((archive / "run.json").read_bytes())["source"] == str(tmp_path / "one" / "in")
    for before in (None, "in"):  # as an earlier msinn wrote it
        if before is not None:
            (archive / "run.json").write_text(json.dumps(json.loads((archive / "run.json").read_bytes()) | {"source": before}))
        monkeypatch.chdir(tmp_path / "two")
        with pytest.raises(UsageError, match="at another address say --moved"):
            grown("in", archive)
        monkeypatch.chdir(tmp_path / "one")
        assert grown("in", archive).grown.nothing  # type: ignore[union-attr]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="at another address say --moved"):
        grown("one/in", archive)  # where `in` lay is not known; that this is it only the user knows
    photo(9).save(tmp_path / "one" / "in" / "more.bmp")
    monkeypatch.chdir(tmp_path / "one")
    grown("in", archive)
    assert Archive(str(archive)).layers[1].run.source == str(tmp_path / "one" / "in")
