"""Stores that take settings which neither an address nor the environment says: archives, and sources, on two of them at once."""

from __future__ import annotations

import io
from pathlib import Path

import fsspec
import pytest
import s3fs
from PIL import Image
from torch.utils.data import DataLoader

from infra.local.s3 import KEY, SECRET, LocalS3
from jobs.cli import main
from pipeline.execute import connection
from pipeline.execute.placement import Placement
from pipeline.read.dataset import ArchiveDataset
from pipeline.read.stream import ArchiveStream
from pipeline.store import options
from tests.integration.test_growth import TINY, bmp, contents


@pytest.fixture
def store(s3_server: LocalS3, s3: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder on a server that nothing in the environment tells of, with a source `in`."""
    fs = s3fs.S3FileSystem()
    for i in range(3):
        fs.pipe_file(f"{s3}/in/{i}.bmp", bmp(i))
    for name in s3_server.environment():
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(options, "_KNOWN", {})
    s3fs.S3FileSystem.clear_instance_cache()
    return s3


@pytest.fixture
def settings(s3_server: LocalS3) -> dict[str, object]:
    return {"endpoint_url": s3_server.url, "key": KEY, "secret": SECRET}


def words(settings: dict[str, object], option: str) -> list[str]:
    return [word for key, value in settings.items() for word in (option, f"{key}={'env:THE_SECRET' if key == 'secret' else value}")]


def test_an_archive_is_made_and_read_with_settings_that_are_written_nowhere(
    store: str, settings: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("THE_SECRET", SECRET)
    archive, ours, theirs = f"{store}/dst", words(settings, "--storage-option"), words(settings, "--source-option")
    compress = ["compress", f"{store}/in/*.bmp", archive, "--q", "4", "--model", TINY, *ours, *theirs]
    # Workers in other processes know them too.
    assert main([*compress, "--executor", "processes", "--workers", "1"]) == 0
    assert main(["verify", archive, "--decode", "--executor", "processes", *ours]) == 0
    assert main(["restore", archive, str(tmp_path / "out"), *ours]) == 0
    assert len(list((tmp_path / "out").glob("*.png"))) == 3
    monkeypatch.setattr(options, "_KNOWN", {})
    assert main(["ls", archive, *ours]) == 0
    monkeypatch.setattr(options, "_KNOWN", {})
    pictures = ArchiveDataset(archive, storage_options=settings, transform=lambda image: image.size)
    monkeypatch.setattr(options, "_KNOWN", {})
    assert [sample["name"] for sample in DataLoader(pictures, batch_size=None, num_workers=1)] == ["0.bmp", "1.bmp", "2.bmp"]
    monkeypatch.setattr(options, "_KNOWN", {})
    assert len(list(ArchiveStream(archive, storage_options=settings))) == 3
    monkeypatch.setattr(options, "_KNOWN", {})
    with fsspec.open(f"msinn://1.png::{archive}", s3=settings) as file:
        assert Image.open(file).size == (64, 64)
    said = "".join(capfd.readouterr())
    fs = s3fs.S3FileSystem(**settings)
    fs.get(archive, str(tmp_path / "copy"), recursive=True)
    assert SECRET not in said
    for path in contents(tmp_path / "copy"):
        assert SECRET.encode() not in (tmp_path / "copy" / path).read_bytes(), path


def test_settings_are_of_what_lies_below_their_address() -> None:
    options.use_options("s3://one/a/", {"key": "a"})
    options.use_options("s3://one/a/b", {"key": "b"})
    options.use_options("s3://two/x/*.tar", {"key": "x"})
    found = {address: options.options_of(address).get("key") for address in ("s3://one/a", "s3://one/a/b/c", "s3://one/ab", "s3://two/x/1.tar")}
    assert found == {"s3://one/a": "a", "s3://one/a/b/c": "b", "s3://one/ab": None, "s3://two/x/1.tar": "x"}
    for address in ("s3://one/a", "s3://one/a/b", "s3://two/x"):
        options._KNOWN.pop(address)


def test_no_secret_goes_to_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "_KNOWN", {"s3://one": {"endpoint_url": "http://x", "key": "a", "secret": "b", "client_kwargs": {"verify": False}}})
    sent: list[object] = []
    monkeypatch.setattr("pipeline.execute.placement.connection.connect", lambda *_: 1)
    monkeypatch.setattr("pipeline.execute.placement.Ray", lambda size, factory, *args, **_: sent.append(factory.args[0]))
    Placement(cluster="there", executor="ray").open(io.BytesIO, b"", jobs=1, small=False)
    assert sent == [{"s3://one": {"endpoint_url": "http://x", "client_kwargs": {"verify": False}}}]
    assert {"key", "secret"} <= set(connection.withheld())


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        ("secret", "--storage-option takes KEY=VALUE"),
        ("a-b=1", "--storage-option takes KEY=VALUE"),
        ("secret=env:NOT_THERE", "there is no such variable in the environment"),
        ("nonsense_of_ours=1", "cannot open"),
    ],
)
def test_settings_that_are_none_are_refused_in_one_sentence(
    pair: str, said: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(options, "_KNOWN", {})
    assert main(["ls", "memory2://x" if said == "cannot open" else "s3://bucket/archive", "--storage-option", pair]) == 2
    assert said in capfd.readouterr().err


def test_a_folder_takes_none_and_a_submitted_job_no_secret(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", str(tmp_path), "--storage-option", "key=a"]) == 2
    assert "is a folder of this machine" in capfd.readouterr().err
    assert main(["submit", "--", "compress", "s3://a/in", "s3://a/dst", "--q", "4", "--storage-option", "key=SECRET"]) == 2
    said = capfd.readouterr().err
    assert "key is a secret, which Ray would show with the job" in said
    assert "SECRET" not in said
