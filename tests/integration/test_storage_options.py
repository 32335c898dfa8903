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
from tests.conftest import make_photos
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


def test_what_is_written_and_models_have_settings_too(
    store: str, settings: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("THE_SECRET", SECRET)
    archive, ours, theirs = f"{store}/dst", words(settings, "--storage-option"), words(settings, "--target-option")
    small = tmp_path / "in"
    small.mkdir()
    for i in range(12):
        (small / f"{i}.bmp").write_bytes(bmp(i))
    assert main(["-q", "compress", str(small), archive, "--q", "4", "--model", TINY, *ours]) == 0
    fs = s3fs.S3FileSystem(**settings)
    # The archive is at hand; where it goes to is said apart.
    assert main(["-q", "restore", archive, f"{store}/out", *ours, *theirs]) == 0
    assert main(["-q", "get", archive, "1.png", "2.png", "-o", f"{store}/some", *ours, *theirs]) == 0
    assert sum(name.endswith(".png") for name in fs.ls(f"{store}/out", detail=False)) == 12
    assert fs.cat(f"{store}/some/2.png") == fs.cat(f"{store}/out/2.png")

    def alone(*command: str) -> int:
        """A command that knows what it is told alone."""
        monkeypatch.setattr(options, "_KNOWN", {})
        s3fs.S3FileSystem.clear_instance_cache()
        capsys.readouterr()
        return main([*command])

    assert alone("models", "list", archive, *ours) == 0
    assert "golden: " in capsys.readouterr().out
    (model,) = fs.ls(f"{store}/dst/model", detail=False)
    assert alone("models", "compare", TINY, f"s3://{model}", *ours) == 0
    assert "the same file" in capsys.readouterr().out
    assert alone("models", "export", archive, "-o", str(tmp_path / "own.safetensors"), *ours) == 0
    assert (tmp_path / "own.safetensors").read_bytes() == Path(TINY).read_bytes()
    make_photos(small, 12, 64)
    assert alone("tune", str(small), "--check", archive, *ours) == 2
    assert "was not learned from its images" in capsys.readouterr().err
    assert alone("tune", f"{store}/in", "-o", str(tmp_path / "x.safetensors"), *words(settings, "--source-option")) == 2
    assert "3 images of the source can be learned from" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["restore", "s3://bucket/archive", "OUT", "--target-option", "key=a"], "--target-option is about an object store, and OUT is a folder of"),
        (["get", "s3://bucket/archive", "x", "--target-option", "key=a"], "--target-option is about an object store, and none is named"),
        (["tune", "s3://bucket/in", "-o", "x.safetensors", "--storage-option", "key=a"], "--storage-option is about an object store, and none is"),
        (["models", "list", "--storage-option", "key=a"], "--storage-option is about an object store, and none is named"),
        (["models", "compare", "a", "b", "--storage-option", "key=a"], "--storage-option is about an object store, and a is a folder of"),
        (["models", "export", "s3://bucket/archive", "-o", "x.safetensors", "--storage-option", "key"], "--storage-option takes KEY=VALUE"),
    ],
)
def test_settings_of_what_no_store_is_are_refused(command: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command) == 2
    assert said in capsys.readouterr().err


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
