"""Defects that a review found, each with a test that failed before: outages and damage told apart, errors in a sentence, nothing quadratic."""

from __future__ import annotations

import dataclasses
import os
import time
import uuid
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from jobs.cli import main
from msinn_core import bitstream
from msinn_core.codec import Codec
from msinn_core.errors import BitstreamError
from msinn_core.model_file import LoadedModel
from msinn_core.picture import Picture
from pipeline.archive.archive import Archive
from pipeline.archive.layout import commit_name
from pipeline.encode.tasks import ImageTask, WorkConfig
from pipeline.encode.trim import encode_within
from pipeline.encode.worker import ShardWorker
from pipeline.errors import DamagedError, ManifestError, StorageError
from pipeline.execute.base import Job, WorkersError
from pipeline.execute.ray import Ray
from pipeline.lab.tiles import TileStream
from pipeline.read.dataset import ArchiveDataset
from pipeline.read.get import get
from pipeline.read.restore import restore
from pipeline.sources import Fetcher, Part, SourceRecord
from pipeline.store import errors
from pipeline.store.base import open_store
from tests.conftest import make_photos
from tests.golden.test_archives import copied
from tests.integration.test_ill_will import forge, set_of


@pytest.fixture
def remote(tmp_path: Path) -> str:
    """The golden archive on a store that is no local disk."""
    place, url = copied("version-2", tmp_path), f"memory://{uuid.uuid4().hex}"
    fsspec.filesystem("memory").put(str(place), url.removeprefix("memory:/"), recursive=True)
    return url


def test_a_truncated_shard_on_a_remote_store_costs_its_images(remote: str, tmp_path: Path) -> None:
    """It was taken for an outage, and ended the whole restore."""
    store = open_store(remote)
    shard = store.list("shards")[1]
    store.publish_bytes(store.read(shard)[:3000], shard)
    result = restore(remote, str(tmp_path / "out"))
    assert result.problems
    assert all("bytes too early" in problem for problem in result.problems), result.problems
    assert result.images + len(result.problems) == 12
    lost = next(problem.partition(":")[0] for problem in result.problems)
    with pytest.raises(DamagedError, match="too early"):
        get(remote, lost)
    assert main(["get", remote, lost, "-o", str(tmp_path / "x.png")]) == 5


def test_an_outage_is_no_verdict_about_an_archive(remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`verify` and salvage took it for damage."""
    monkeypatch.setattr(errors, "back_off", lambda attempt: None)

    def lost(*args: Any, **keywords: Any) -> Any:
        raise ConnectionResetError("connection reset by peer")

    store = open_store(remote)
    commit = store.list("commits")[0]
    whole = store.read(commit)
    store.remove(commit)
    for method in ("_open", "cat_file"):
        with monkeypatch.context() as patch:
            kept = getattr(MemoryFileSystem, method)
            patch.setattr(
                MemoryFileSystem, method, lambda self, path, *a, kept=kept, **k: lost() if "/shards/" in path else kept(self, path, *a, **k)
            )
            with pytest.raises(StorageError, match="connection reset"):
                restore(remote, str(tmp_path / "out"))  # salvage reads the shard whose commit is gone
            if method == "_open":
                assert main(["verify", remote]) == 6
    store.publish_bytes(whole, commit)
    assert main(["verify", remote]) == 0


def test_nothing_is_read_of_what_is_empty(s3: str, tmp_path: Path) -> None:
    """A range `bytes=N-(N-1)` ended the run over a tar on S3, and the restore of an empty sidecar."""
    store = open_store(s3)
    store.publish_bytes(b"x" * 1024, "a.tar")
    assert store.read_range("a.tar", 512, 0) == b""
    assert Fetcher().fetch(Part("range", f"{s3}/a.tar", 0, 512)) == b""
    with pytest.raises(DamagedError, match="ends at byte 1024, 76 bytes too early"):
        store.read_range("a.tar", 1000, 100)
    with pytest.raises(DamagedError, match="ends at byte 1024, 2976 bytes too early"):
        store.read_range("a.tar", 2000, 2000)
    assert store.read("a.tar", limit=2000) == b"x" * 1024
    store.publish_bytes(b"", "empty")
    assert store.read("empty", limit=2000) == b""
    with pytest.raises(StorageError, match="more than 1,000 bytes"):
        store.read("a.tar", limit=1000)


class Sinner:
    def __init__(self, marker: str = "") -> None:
        self.marker = marker

    def work(self) -> None:
        raise ManifestError("a plain mistake")

    def sleep(self) -> None:
        Path(self.marker).write_text(str(os.getpid()))
        time.sleep(1000)


class Unborn:
    def __init__(self) -> None:
        raise RuntimeError("cannot begin")


@pytest.mark.usefixtures("ray_pool")
def test_an_error_in_a_worker_is_one_sentence() -> None:
    for factory, what in ((Sinner, "a plain mistake"), (Unborn, "cannot begin")):
        pool = Ray(1, factory)
        jobs = iter([Job("a job", lambda held: held.work())])
        with pytest.raises((ManifestError, WorkersError)) as caught:
            pool.run(lambda jobs=jobs: next(jobs, None), lambda result: None)  # type: ignore[misc]
        pool.close()
        said = str(caught.value)
        assert what in said
        assert len(said) < 200
        assert "\x1b" not in said
        assert "\n" not in said


@pytest.mark.usefixtures("ray_pool")
@pytest.mark.timeout(120)
def test_closing_a_pool_ends_actors_that_work(tmp_path: Path) -> None:
    pool = Ray(1, Sinner, str(tmp_path / "pid"))
    jobs = iter([Job("a job", lambda held: held.sleep())])

    def tick() -> None:
        if (tmp_path / "pid").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pool.run(lambda: next(jobs, None), lambda result: None, tick)
    pool.close()
    number = int((tmp_path / "pid").read_text())
    until = time.monotonic() + 30
    while Path(f"/proc/{number}").exists() and time.monotonic() < until:
        time.sleep(0.2)
    assert not Path(f"/proc/{number}").exists()


def test_a_dataset_serves_no_image_that_failed(tmp_path: Path) -> None:
    place = copied("version-2", tmp_path)
    before = len(ArchiveDataset(str(place)))
    forge(place, set_of("photo002.png", status="failed", error_code="sidecar_unreadable"))
    dataset = ArchiveDataset(str(place))
    assert len(dataset) == before - 1
    assert "photo002.png" not in [dataset[i]["name"] for i in range(len(dataset))]


def test_nothing_follows_the_alpha_plane(codec: Codec, tile: Picture) -> None:
    stream = bitstream.parse(codec.encode(Picture(pixels=tile.pixels, alpha=tile.pixels[..., 0].copy()), 2.0))
    longer = dataclasses.replace(stream, boxes={**stream.boxes, bitstream.ALPHA: stream.boxes[bitstream.ALPHA] + b"x"})
    with pytest.raises(BitstreamError, match="alpha plane does not inflate"):
        codec.decode(longer.to_bytes())


def test_commits_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    place = copied("version-2", tmp_path)
    (place / "MANIFEST.json").unlink()
    text = (place / commit_name(0)).read_text()
    for number in (99_999, 100_000, 7):
        (place / commit_name(number)).write_text(text.replace('"shard_id": 0', f'"shard_id": {number}'))
    assert [record.shard_id for record in Archive(str(place)).books().commits] == [0, 1, 2, 3, 7, 99_999, 100_000]


def test_an_epoch_is_shuffled_once(tmp_path: Path) -> None:
    stream = TileStream((str(make_photos(tmp_path / "in", 5, 64)),), 64, seed=0)
    orders = [stream._order(0), stream._order(1), stream._order(0), stream._order(2)]
    assert orders[0] is orders[2]
    assert not np.array_equal(orders[0], orders[1])
    assert len(stream._orders) <= 3
    assert np.array_equal(TileStream((str(tmp_path / "in"),), 64, seed=0)._order(1), orders[1])


def test_a_trimmed_shard_holds_no_pictures(tmp_path: Path, model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """34 Mpx in 1.15 MB of JPEG took 1.3 GB; a shard of 16 MiB of such files would have taken 8."""
    monkeypatch.setattr("pipeline.encode.trim.TRIM_PIXELS", 10_000)
    photos = sorted(make_photos(tmp_path / "in", 8, 128).iterdir())
    records = [SourceRecord(index=i, name=path.name, part=Part("file", str(path), path.stat().st_size)) for i, path in enumerate(photos)]
    worker = ShardWorker(
        [model], open_store(str(tmp_path / "dst")), WorkConfig(target_psnr_db=None, max_pixels=10**6, count_sidecars=False, ms_ssim=False)
    )
    tasks = tuple(ImageTask(record, 4.0, 3000.0, pixels=128 * 128) for record in records)
    items = encode_within(tasks, 40_000, worker.loader, worker.coder, worker.config)
    assert len(items) == 8
    held = [item.loaded.picture.pixels.size for item in items if item.loaded.picture is not None]
    assert sum(held) <= 3 * 8
    assert all(item.symbols is None and item.latents is None for item in items)
    assert all(item.q is not None for item in items if item.coded)


def test_a_submitted_model_is_one_that_the_cluster_can_find(capsys: pytest.CaptureFixture[str]) -> None:
    for model in ("model.safetensors", "models/mine.safetensors"):
        assert main(["submit", "--", "compress", "s3://a/b", "s3://c/d", "--q", "3", "--model", model]) == 2
        assert "is a path of this machine" in capsys.readouterr().err
