"""An archive is a folder to the tools of others: each test opens one with the real package."""

from __future__ import annotations

import pickle
import shutil
import tomllib
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from PIL import Image, UnidentifiedImageError

from infra.local.s3 import BUCKET
from jobs.cli import main
from pipeline.errors import ManifestError
from pipeline.read.filesystem import MsinnFileSystem
from tests.conftest import PHOTOS
from tests.golden.test_archives import copied
from tests.test_architecture import ROOT

MODEL = str(Path(__file__).parents[1] / "golden" / "integer" / "model.safetensors")


@pytest.fixture(scope="module", autouse=True)
def _registered() -> None:
    """As the entry point does where msinn is installed."""
    fsspec.register_implementation("msinn", MsinnFileSystem, clobber=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two classes, its archive and what a restore writes."""
    folder = tmp_path_factory.mktemp("tools")
    for i, path in enumerate(sorted(PHOTOS.rglob("*.webp"))[:6]):
        place = folder / "in" / ("cat" if i % 2 else "dog")
        place.mkdir(parents=True, exist_ok=True)
        Image.open(path).convert("RGB").crop((0, 0, 64, 64)).save(place / f"photo{i}.bmp")
    (folder / "in" / "cat" / "photo1.txt").write_text("a cat\n")
    (folder / "in" / "broken.jpg").write_bytes(b"no picture at all")
    assert main(["-q", "compress", str(folder / "in"), str(folder / "archive"), "--q", "4", "--executor", "local", "--model", MODEL]) == 3
    assert main(["-q", "restore", str(folder / "archive"), str(folder / "out")]) == 0
    return folder


@pytest.fixture
def fs(made: Path) -> MsinnFileSystem:
    return MsinnFileSystem(f"{made}/archive", skip_instance_cache=True)


CATS = ["cat/photo1.png", "cat/photo3.png", "cat/photo5.png"]
DOGS = ["dog/photo0.png", "dog/photo2.png", "dog/photo4.png"]


def test_the_installed_package_names_the_file_system() -> None:
    said = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["fsspec.specs"]
    assert said == {"msinn": f"{MsinnFileSystem.__module__}:{MsinnFileSystem.__name__}"}


@pytest.mark.parametrize("version", ["version-1", "version-4", "version-4-lossless"])
def test_files_are_what_a_restore_writes(version: str, tmp_path: Path) -> None:
    place = copied(version, tmp_path)
    assert main(["-q", "restore", str(place), str(tmp_path / "out")]) in (0, 3)  # of one nothing may have been stored
    there = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.name != "msinn-names.csv"}
    fs = MsinnFileSystem(str(place))
    assert fs.cat(fs.find("")) == there
    for name, data in there.items():
        with fs.open(name) as file:
            assert (file.read(7), file.seek(-3, 2), file.read(), file.size) == (data[:7], len(data) - 3, data[-3:], len(data))
        assert fs.info(name)["size"] == fs.size(name) == len(data)


def test_folders_globs_and_infos(fs: MsinnFileSystem, made: Path) -> None:
    assert fs.ls("", detail=False) == ["broken.jpg", "cat", "dog"]
    assert fs.ls("msinn://cat/", detail=False) == ["cat/photo1.png", "cat/photo1.txt", *CATS[1:]]
    assert fs.glob("**/*.png") == CATS + DOGS
    assert fs.glob("*/photo[12].*") == ["cat/photo1.png", "cat/photo1.txt", "dog/photo2.png"]
    assert fs.find("dog") == DOGS
    assert (fs.isdir("cat"), fs.isfile("cat"), fs.exists("cat/x"), fs.isfile(CATS[0])) == (True, False, False, True)
    before = fs.info(CATS[0])
    assert (before["size"], before["size_from"], before["original"], before["form"]) == (None, None, "cat/photo1.bmp", "msinn")
    key = fs.ukey(CATS[0])
    assert fs.size(CATS[0]) == (made / "out" / CATS[0]).stat().st_size
    assert fs.info(CATS[0])["size_from"] == "decoded"
    assert fs.ukey(CATS[0]) == key
    assert (fs.info("cat/photo1.txt")["size"], fs.info("broken.jpg")["size_from"]) == (6, "manifest")
    assert fs.du("") == sum(path.stat().st_size for path in (made / "out").rglob("*") if path.is_file() and path.name != "msinn-names.csv")
    assert abs(fs.modified(CATS[0]).timestamp() - (made / "in" / "cat" / "photo1.bmp").stat().st_mtime) < 1e-3


def test_a_chain_of_urls_names_file_and_archive(made: Path) -> None:
    with fsspec.open(f"msinn://{CATS[0]}::{made}/archive") as file:
        assert file.read() == (made / "out" / CATS[0]).read_bytes()
    with fsspec.open(f"msinn://cat/photo1.txt::file://{made}/archive", "rt") as file:
        assert file.read() == "a cat\n"
    copied_fs = pickle.loads(pickle.dumps(fsspec.url_to_fs(f"msinn://::{made}/archive")[0]))
    assert copied_fs.find("cat") == ["cat/photo1.png", "cat/photo1.txt", *CATS[1:]]


@pytest.mark.parametrize(
    ("path", "kind", "said"),
    [
        ("../archive/run.json", ValueError, r"a part '..' or '.'"),
        ("cat/./photo1.png", ValueError, r"a part '..' or '.'"),
        ("cat\\photo1.png", ValueError, "divided by '/'"),
        ("a::b.png", ValueError, "one '::'"),
        ("cat/none.png", FileNotFoundError, "no file 'cat/none.png': `msinn ls`"),
        ("cat/photo1.bmp", FileNotFoundError, "comes back as cat/photo1.png"),
        ("cat", IsADirectoryError, "cat is a folder"),
    ],
)
def test_names_that_are_none(path: str, kind: type[Exception], said: str, made: Path, fs: MsinnFileSystem) -> None:
    with pytest.raises(kind, match=said), fsspec.open(f"msinn://{path}::{made}/archive") as file:
        file.read()
    if "::" in path:  # where no chain is taken apart
        with pytest.raises(ValueError, match="two colons"):
            fs.open(path)


def test_places_that_are_no_archive(made: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="says no archive"):
        fsspec.open("msinn://cat/photo1.png")
    with pytest.raises(FileNotFoundError, match="is not an msinn archive"):
        MsinnFileSystem(str(tmp_path)).ls("")


def test_a_broken_archive_says_what_is_broken(made: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(made / "archive", tmp_path / "archive"))
    fs = MsinnFileSystem(str(place))
    row = fs.files.row(CATS[1])
    shard, at = place / row.shard_key, int(row.offset or 0)
    data = bytearray(shard.read_bytes())
    data[at + 60] ^= 1
    shard.write_bytes(data)
    with pytest.raises(OSError, match=r"cat/photo3.bmp: its bytes in .* are damaged") as caught:
        fs.cat_file(CATS[1])
    assert isinstance(caught.value, ManifestError)
    found = fs.cat([*CATS, *DOGS], on_error="return")
    assert [name for name, value in found.items() if isinstance(value, Exception)] == [CATS[1]]
    shard.write_bytes(data[: at + 100])  # the images before it come back all the same, though they are asked for with it
    fs = MsinnFileSystem(str(place), skip_instance_cache=True)
    before = [name for name in CATS + DOGS if fs.files.row(name).shard_key != row.shard_key or (fs.files.row(name).offset or 0) < at]
    assert CATS[0] in before
    assert fs.cat(CATS + DOGS, on_error="omit") == {name: (made / "out" / name).read_bytes() for name in before}
    next((place / "manifest").iterdir()).write_bytes(b"PAR1")
    with pytest.raises(OSError, match=r"damaged.*`msinn restore` still gives back"):
        MsinnFileSystem(str(place), skip_instance_cache=True).ls("")


def test_nothing_writes(fs: MsinnFileSystem) -> None:
    attempts = [
        lambda: fs.open("x.png", "wb"),
        lambda: fs.pipe_file("x.png", b""),
        lambda: fs.rm(CATS[0]),
        lambda: fs.mkdir("x"),
        lambda: fs.mv(CATS[0], "x"),
        lambda: fs.open(CATS[0]).write(b""),
    ]
    for attempt in attempts:
        with pytest.raises(OSError, match="not written to"):
            attempt()


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """Ranges that are asked of the store, as they come."""
    from pipeline.store.local import LocalStore

    asked: list[tuple[str, int, int]] = []
    right = LocalStore.read_range

    def counted(self: LocalStore, name: str, start: int, length: int) -> bytes:
        asked.append((name, start, length))
        return right(self, name, start, length)

    monkeypatch.setattr(LocalStore, "read_range", counted)
    return asked


def test_neighbours_are_read_together(fs: MsinnFileSystem, requests: list[tuple[str, int, int]]) -> None:
    fs.cat(CATS + DOGS)
    assert len(requests) == len({fs.files.row(name).shard_key for name in CATS + DOGS}) == 2
    requests.clear()
    other = MsinnFileSystem(fs.archive, skip_instance_cache=True)
    for name in CATS + DOGS:
        other.cat_file(name)
        other.cat_file(name)
    assert len(requests) == 2  # each shard has less than a block


def test_pillow_opens_it(fs: MsinnFileSystem, made: Path) -> None:
    with Image.open(fs.open(CATS[0])) as image, Image.open(made / "out" / CATS[0]) as restored:
        assert np.array_equal(np.asarray(image), np.asarray(restored))
    with pytest.raises(UnidentifiedImageError):
        Image.open(fs.open("broken.jpg"))


def test_duckdb_reads_it(fs: MsinnFileSystem, made: Path) -> None:
    import duckdb

    with duckdb.connect() as connection:
        connection.register_filesystem(fs)
        rows = connection.sql("SELECT filename, size, content FROM read_blob('msinn://**/*.png') ORDER BY filename").fetchall()
        ((label,),) = connection.sql("SELECT content FROM read_text('msinn://cat/*.txt')").fetchall()
    assert [name.removeprefix("msinn://") for name, *_ in rows] == CATS + DOGS
    assert all(size == len(content) for _, size, content in rows)
    assert rows[0][2] == (made / "out" / CATS[0]).read_bytes()
    assert label == "a cat\n"


def test_dask_reads_it(made: Path) -> None:
    import dask
    from dask.bag import read_text
    from dask.bytes import read_bytes

    _, blocks, paths = read_bytes(f"msinn://**/*.png::{made}/archive", blocksize=None, include_path=True)
    assert paths == CATS + DOGS
    found = dask.compute(*[pickle.loads(pickle.dumps(block)) for (block,) in blocks], scheduler="threads", num_workers=3)
    assert list(found) == [(made / "out" / name).read_bytes() for name in paths]
    assert read_text(f"msinn://cat/*.txt::{made}/archive").compute(scheduler="sync") == ["a cat\n"]


@pytest.fixture(scope="module")
def torchvision() -> Any:
    """Of two operators a wheel for GPUs misses the library, beside a torch for CPUs: they are declared, and nothing calls them."""
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return pytest.importorskip("torchvision.datasets", reason="torchvision is not installed (extra train)")


@pytest.mark.parametrize("scale", [1, 4])
def test_an_image_folder_of_torchvision_is_an_archive(torchvision: Any, scale: int, made: Path, tmp_path: Path) -> None:
    fs, out = MsinnFileSystem(f"{made}/archive", scale=scale, skip_instance_cache=True), tmp_path / "out"
    assert main(["-q", "restore", str(made / "archive"), str(out), "--scale", str(scale)]) == 0

    class ArchiveFolder(torchvision.ImageFolder):  # type: ignore[misc, name-defined]
        """`ImageFolder` lists folders of the operating system; these two methods list an archive's."""

        def find_classes(self, directory: str) -> tuple[list[str], dict[str, int]]:
            names = [found["name"] for found in fs.ls(directory) if found["type"] == "directory"]
            return names, {name: i for i, name in enumerate(names)}

        @staticmethod
        def make_dataset(directory: str, class_to_idx: dict[str, int], extensions: tuple[str, ...], *_: Any, **__: Any) -> list[tuple[str, int]]:
            return [(name, number) for label, number in class_to_idx.items() for name in fs.find(label) if name.endswith(extensions)]

    ours = ArchiveFolder("", loader=lambda name: Image.open(fs.open(name)).convert("RGB"), transform=np.asarray)
    theirs = torchvision.ImageFolder(out, transform=np.asarray)
    assert (ours.classes, len(ours)) == (theirs.classes, len(theirs)) == (["cat", "dog"], 6)
    for (image, label), (expected, number) in zip(ours, theirs, strict=True):
        assert (label, image.tobytes()) == (number, expected.tobytes())


@pytest.fixture
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Hugging Face's package, with its caches in a folder of this test."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_UPDATE_DOWNLOAD_COUNTS", "0")
    import datasets as found

    monkeypatch.setattr(found.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))
    return found


def test_hugging_face_datasets_read_it(datasets: Any, made: Path) -> None:
    url = f"{made}/archive"
    paths = datasets.Dataset.from_dict({"image": [f"msinn://{name}::{url}" for name in CATS]}).cast_column("image", datasets.Image())
    with Image.open(made / "out" / CATS[0]) as restored:
        assert np.array_equal(np.asarray(paths[0]["image"]), np.asarray(restored))
    streamed = datasets.load_dataset("imagefolder", data_files={"train": f"msinn://**/*.png::{url}"}, split="train", streaming=True)
    assert [(sample["image"].size, sample["label"]) for sample in streamed] == [((64, 64), 0)] * 3 + [((64, 64), 1)] * 3


def test_it_works_on_s3(s3: str, made: Path) -> None:
    from pipeline.store.base import open_store

    target = open_store(f"{s3}/archive")
    for path in (made / "archive").rglob("*"):
        if path.is_file():
            target.publish_bytes(path.read_bytes(), str(path.relative_to(made / "archive")))
    assert s3.startswith(f"s3://{BUCKET}/")
    with fsspec.open(f"msinn://{CATS[0]}::{s3}/archive") as file:
        assert file.read() == (made / "out" / CATS[0]).read_bytes()
