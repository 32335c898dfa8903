"""An archive is read as a dataset, in this process and in those of a loader."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from jobs.cli import main
from pipeline.errors import ManifestError, UsageError
from pipeline.plan.config import Budget, CompressConfig
from pipeline.read.dataset import ArchiveDataset
from pipeline.run.compress import Run
from pipeline.run.report import JsonReporter
from tests.conftest import make_photos, png16


def archive_of(photos: Path, url: str) -> None:
    Run(str(photos), url, CompressConfig(budget=Budget(kind="q", value=4.0)), JsonReporter(io.StringIO())).execute()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reader")
    photos = make_photos(folder / "in", 6, 64)
    (photos / "photo001.txt").write_text("a caption")
    (photos / "photo002.png").write_bytes(png16(8, 8))
    (photos / "photo003.jpg").write_bytes(b"broken, and kept as it is")
    archive_of(photos, str(folder / "archive"))
    assert main(["restore", str(folder / "archive"), str(folder / "out")]) == 0
    return folder


def test_items_are_what_a_restore_writes(made: Path) -> None:
    dataset = ArchiveDataset(str(made / "archive"), sidecars=True)
    assert len(dataset) == 6
    for i in range(len(dataset)):
        sample = dataset[i]
        with Image.open(made / "out" / sample["name"]) as restored:
            assert np.array_equal(np.asarray(sample["image"]), np.asarray(restored))
        assert sample["sidecars"] == ({"photo001.txt": b"a caption"} if sample["name"] == "photo001.png" else {})
    assert dataset[-1]["name"] == dataset[5]["name"]
    with pytest.raises(IndexError):
        dataset[6]
    with pytest.raises(UsageError):
        ArchiveDataset(str(made / "archive"), where="no such thing")


def shape(image: Image.Image) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.asarray(image)


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_loaders_read_in_their_own_processes(start: str, made: Path) -> None:
    dataset = ArchiveDataset(str(made / "archive"), where="codec = 'msinn'", transform=shape)
    expected = [dataset[i] for i in range(len(dataset))]  # opened here first, as a careless user does
    loader = DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context=start)
    found = list(loader)
    assert [sample["key"] for sample in found] == [sample["key"] for sample in expected]
    assert all(np.array_equal(a["image"], b["image"]) for a, b in zip(found, expected, strict=True))


def test_a_loader_reads_from_s3(s3: str, made: Path) -> None:
    from pipeline.store.base import open_store

    source, target = made / "archive", open_store(f"{s3}/archive")
    for path in source.rglob("*"):
        if path.is_file():
            target.publish_bytes(path.read_bytes(), str(path.relative_to(source)))
    dataset = ArchiveDataset(f"{s3}/archive", where="codec = 'msinn'", transform=shape)
    first = dataset[0]
    found = list(DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=100))
    assert len(found) == len(dataset)
    assert np.array_equal(found[0]["image"], first["image"])


def test_lost_bytes_are_an_error_of_that_image(made: Path) -> None:
    import shutil

    shutil.copytree(made / "archive", made / "copy")
    dataset = pickle.loads(pickle.dumps(ArchiveDataset(str(made / "copy"))))
    for path in (made / "copy" / "shards").iterdir():
        path.unlink()
    with pytest.raises(ManifestError, match="is missing"):
        dataset[0]
