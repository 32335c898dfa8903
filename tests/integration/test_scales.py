"""Smaller pictures out of an archive: by every way in, of every form, from the first bytes of coded images alone."""

from __future__ import annotations

import io
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import fsspec
import imagecodecs
import numpy as np
import pytest
from fsspec.config import set_conf_env
from PIL import Image
from torch.utils.data import DataLoader

from jobs.cli import main
from msinn_core import bitstream
from msinn_core.codec import Codec
from msinn_core.model_file import heads_of, load_model
from msinn_core.reduction import area_reduced, reduced_side
from pipeline.archive.archive import Archive
from pipeline.archive.conversion import Conversion
from pipeline.errors import ManifestError, UsageError
from pipeline.read import get as getting
from pipeline.read.dataset import ArchiveDataset
from pipeline.read.filesystem import BrokenFileError, MsinnFileSystem
from pipeline.read.get import get
from pipeline.read.restore import restore
from pipeline.read.stream import ArchiveStream
from pipeline.store.local import LocalStore
from tests.conftest import make_photos, png16
from tests.golden.test_archives import copied


@dataclass
class Asked:
    """Ranges that were read of shards."""

    ranges: list[tuple[int, int]]

    @property
    def num_bytes(self) -> int:
        return sum(length for _, length in self.ranges)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    seen = Asked([])
    right = LocalStore.read_range

    def read_range(self: LocalStore, name: str, start: int, length: int) -> bytes:
        if name.endswith(".tar"):
            seen.ranges.append((start, length))
        return right(self, name, start, length)

    monkeypatch.setattr(LocalStore, "read_range", read_range)
    return seen


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive by the shipped model: colour, grey, alpha, a caption; and what it keeps: 16 bits, CMYK, an animation, no picture at all."""
    folder = tmp_path_factory.mktemp("scales")
    photos = make_photos(folder / "in", 4, 200)
    with Image.open(photos / "photo000.png") as image:
        colour = image.convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    colour.crop((0, 0, 101, 77)).save(photos / "turned.png", exif=exif.tobytes(), icc_profile=b"p" * 200)
    colour.convert("L").save(photos / "grey.png")
    colour.putalpha(Image.linear_gradient("L").resize(colour.size))
    colour.save(photos / "alpha.png")
    (photos / "photo001.txt").write_text("a caption")
    (photos / "deep.png").write_bytes(png16(20, 9))
    Image.new("CMYK", (21, 30), (10, 20, 30, 40)).save(photos / "print.tif")
    frames = [Image.new("RGB", (12, 8), (40 * i, 0, 0)) for i in range(3)]
    frames[0].save(photos / "moving.gif", save_all=True, append_images=frames[1:])
    (photos / "broken.jpg").write_bytes(b"broken, and kept as it is")
    assert main(["-q", "compress", str(photos), str(folder / "archive"), "--q", "5"]) in (0, 3)
    return folder


def rows_of(archive: Path) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in Archive(str(archive)).manifest().to_pylist()}


def largest(archive: Path) -> tuple[str, dict[str, Any]]:
    """The photo of most bytes: of a kilobyte not much can be left unread, or damaged."""
    return max(rows_of(archive).items(), key=lambda item: item[1]["length"] if item[0].startswith("photo") else 0)


def pixels(data: bytes) -> np.ndarray[tuple[int, ...], np.dtype[Any]]:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)


@pytest.mark.parametrize("scale", [2, 4, 8, 16])
def test_every_way_in_gives_the_same_pictures(made: Path, tmp_path: Path, scale: int) -> None:
    place, out = str(made / "archive"), tmp_path / "out"
    assert main(["-q", "restore", place, str(out), "--scale", str(scale)]) in (0, 3)
    samples = {sample["name"]: sample["image"] for sample in ArchiveDataset(place, scale=scale)}  # type: ignore[attr-defined]
    streamed = {sample["name"]: sample["image"] for sample in ArchiveStream(place, scale=scale)}
    coded = {name: row for name, row in rows_of(made / "archive").items() if row["codec"] == "msinn"}
    assert {"photo000.png", "grey.png", "alpha.png", "turned.png"} <= coded.keys()
    assert main(["-q", "get", place, "*.png", "-o", str(tmp_path / "some"), "--scale", str(scale)]) == 0
    for name, row in coded.items():
        _, data, problems, why_full = get(place, name, scale=scale)
        assert (problems, why_full) == ([], None)
        expected = pixels(data)
        assert expected.shape[:2] == (reduced_side(row["height"], scale), reduced_side(row["width"], scale))
        assert (out / name).read_bytes() == data == (tmp_path / "some" / name).read_bytes()
        assert np.array_equal(np.asarray(samples[name]), expected)
        assert np.array_equal(np.asarray(streamed[name]), expected)
    assert {np.asarray(samples[name]).ndim for name in ("grey.png",)} == {2}
    with Image.open(out / "turned.png") as turned:
        assert turned.getexif()[0x0112] == 6
        assert turned.info["icc_profile"] == b"p" * 200
    # What no picture was ever made of comes back as it was.
    for name in ("moving.gif", "print.tif", "broken.jpg", "deep.png"):
        assert (out / name).read_bytes() == (made / "in" / name).read_bytes()


def test_a_dataset_has_what_is_kept_too(made: Path) -> None:
    """As at full size: whatever Pillow makes of it."""
    found = {sample["name"]: sample["image"] for sample in ArchiveDataset(str(made / "archive"), scale=4)}  # type: ignore[attr-defined]
    assert (found["print.tif"].mode, found["print.tif"].size) == ("CMYK", (6, 8))
    assert found["moving.gif"].size == (3, 2)
    assert found["deep.png"].size == (5, 3)


def test_only_the_first_bytes_are_read(made: Path, asked: Asked) -> None:
    place = str(made / "archive")
    name, row = largest(made / "archive")
    heads = heads_of(load_model())
    whole = get(place, name, original=True).data
    last = 0
    for scale in (16, 8, 4, 2):
        asked.ranges.clear()
        get(place, name, scale=scale)
        wanted = bitstream.prefix_of(whole, heads[scale].num_streams).size
        (first, *more) = asked.ranges
        assert first[0] == row["offset"]
        assert all(start == row["offset"] + first[1] and start + length == row["offset"] + wanted for start, length in more)
        assert wanted <= asked.num_bytes < 1.6 * wanted
        assert asked.num_bytes < row["length"]
        assert asked.num_bytes >= last
        last = asked.num_bytes
    asked.ranges.clear()
    assert len(list(ArchiveDataset(place, where=f"name = '{name}'", scale=16))) == 1  # type: ignore[call-overload]
    assert asked.num_bytes < row["length"] / 2


def test_an_alpha_plane_is_read_by_itself(made: Path, asked: Asked) -> None:
    place, row = str(made / "archive"), rows_of(made / "archive")["alpha.png"]
    data = get(place, "alpha.png", scale=8).data
    assert asked.ranges[-1][0] + asked.ranges[-1][1] == row["offset"] + row["length"]
    full = pixels(get(place, "alpha.png")[1])
    assert np.array_equal(pixels(data)[..., 3], area_reduced(np.ascontiguousarray(full[..., 3]), 8))


@pytest.fixture
def hurt(made: Path, tmp_path: Path) -> Callable[[str, int], str]:
    """Damages a byte of an image of a copy of the archive, so far from its first; gives the copy."""
    place = Path(shutil.copytree(made / "archive", tmp_path / "archive"))

    def damage(name: str, position: int) -> str:
        row = rows_of(place)[name]
        shard = place / row["shard_key"]
        data = bytearray(shard.read_bytes())
        data[row["offset"] + position] ^= 0x55
        shard.chmod(0o644)
        shard.write_bytes(data)
        return str(place)

    return damage


def test_damage_behind_the_first_bytes_does_not_matter(made: Path, tmp_path: Path, hurt: Callable[[str, int], str]) -> None:
    name, row = largest(made / "archive")
    sound = get(str(made / "archive"), name, scale=4)[1]
    place = hurt(name, row["length"] - 9)
    assert get(place, name, scale=4)[1] == sound
    assert main(["-q", "get", place, name, "-o", str(tmp_path / "x.png")]) == 5


@pytest.mark.parametrize("position", [30, 100, 150])
def test_damage_in_them_is_reported(position: int, tmp_path: Path, hurt: Callable[[str, int], str], capsys: pytest.CaptureFixture[str]) -> None:
    place = hurt("photo001.png", position)
    assert main(["-q", "get", place, "photo001.png", "-o", str(tmp_path / "x.png"), "--scale", "4"]) == 5
    said = capsys.readouterr().err
    assert "photo001.png: its bytes in" in said
    assert "are damaged" in said
    assert said.count("\n") == 1
    with pytest.raises(ManifestError, match="are damaged"):
        list(ArchiveDataset(place, where="name = 'photo001.png'", scale=4))  # type: ignore[call-overload]
    assert main(["-q", "restore", place, str(tmp_path / "out"), "--scale", "4"]) == 5
    assert "photo001.png: its bytes in" in capsys.readouterr().err
    assert not (tmp_path / "out" / "photo001.png").exists()
    assert (tmp_path / "out" / "photo002.png").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["get", "{archive}", "photo000.png", "--scale", "3", "-o", "x.png"], "--scale takes 2, 4, 8 or 16"),
        (["get", "{archive}", "photo*", "--scale", "32", "-o", "x"], "--scale takes 2, 4, 8 or 16"),
        (["get", "{archive}", "photo000.png", "--scale", "4", "--original"], "leave out --metadata and --original"),
        (["get", "{archive}", "photo000.png", "--scale", "4", "--metadata"], "leave out --metadata and --original"),
        (["get", "{archive}", "moving.gif", "--scale", "4"], "is no picture to be made smaller"),
        (["restore", "{archive}", "out", "--scale", "0"], "--scale takes 2, 4, 8 or 16"),
        (["restore", "{archive}", "out", "--scale", "-4"], "--scale takes 2, 4, 8 or 16"),
        (["restore", "{archive}", "out", "--scale", "4", "--as", "original"], "leave one of them out"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said(
    words: list[str], said: str, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["-q", *(word.format(archive=made / "archive") for word in words)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", ["made", "version-4", "version-6"])
def test_paths_of_other_tools_are_of_the_files_that_a_restore_at_this_scale_writes(place: str, made: Path, tmp_path: Path) -> None:
    """Heads, none, and forms that have none; what is no picture, and a sidecar, as they are."""
    archive, out = made / "archive" if place == "made" else copied(place, tmp_path), tmp_path / "out"
    assert main(["-q", "restore", str(archive), str(out), "--scale", "4"]) in (0, 3)
    fs = MsinnFileSystem(str(archive), scale=4, skip_instance_cache=True)
    there = {path.name: path.read_bytes() for path in out.iterdir() if path.name != "msinn-names.csv"}
    assert fs.cat(fs.find("")) == there
    again, whole = pickle.loads(pickle.dumps(fs)), MsinnFileSystem(str(archive), skip_instance_cache=True)
    for name, data in there.items():
        info = again.info(name)
        assert again.cat_file(name) == data
        if whole.exists(name) and whole.cat_file(name) == data:
            assert (info["size"], again.ukey(name)) == (len(data), whole.ukey(name))
            continue
        with Image.open(io.BytesIO(data)) as image:
            assert (info["width"], info["height"]) == image.size
        assert (info["exact"], info["psnr_db"], info["size"], again.size(name)) == ("no", None, None, len(data))
        assert not whole.exists(name) or again.ukey(name) != whole.ukey(name)
    assert any(fs.info(name).get("exact") == "no" for name in there)


def test_a_path_at_a_scale_reads_and_decodes_the_beginning_alone(made: Path, asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tools that hand on nothing have the scale out of fsspec's own settings, and their code stays as it is."""
    place, (name, row) = made / "archive", largest(made / "archive")
    expected = get(str(place), name, scale=8).data
    monkeypatch.setattr(Codec, "decode", None)
    asked.ranges.clear()
    with fsspec.open(f"msinn://{name}::{place}", msinn={"scale": 8}) as file:
        assert file.read() == expected
    assert 0 < asked.num_bytes < row["length"]
    settings: dict[str, Any] = {}
    set_conf_env(settings, {"FSSPEC_MSINN_SCALE": "8"})
    monkeypatch.setattr("fsspec.config.conf", settings)
    with fsspec.open(f"msinn://{name}::{place}") as file, Image.open(file) as image:
        assert np.array_equal(np.asarray(image), pixels(expected))


@pytest.mark.parametrize("scale", [3, "x", "", 0, -4, "4.0"])
def test_paths_refuse_a_scale_that_does_not_exist(scale: object, made: Path) -> None:
    with pytest.raises(UsageError, match=r"takes.* 2, 4, 8 or 16"):
        MsinnFileSystem(str(made / "archive"), scale=scale)  # type: ignore[arg-type]


def test_damage_is_found_by_paths_at_a_scale_too(hurt: Callable[[str, int], str]) -> None:
    fs = MsinnFileSystem(hurt("photo001.png", 100), scale=4)
    found = fs.cat(["photo000.png", "photo001.png", "photo002.png"], on_error="return")
    assert [name for name, value in found.items() if isinstance(value, Exception)] == ["photo001.png"]
    with pytest.raises(BrokenFileError, match="are damaged"):
        fs.cat_file("photo001.png")


@pytest.mark.parametrize("reader", [ArchiveDataset, ArchiveStream])
def test_datasets_refuse_a_scale_that_does_not_exist(made: Path, reader: type[ArchiveDataset] | type[ArchiveStream]) -> None:
    with pytest.raises(UsageError, match="it is 5"):
        reader(str(made / "archive"), scale=5)


@pytest.mark.parametrize("version", ["version-1", "version-4", "version-5", "version-6"])
def test_archives_whose_models_have_no_heads_are_decoded_in_full(version: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = str(copied(version, tmp_path))
    main(["-q", "restore", place, str(tmp_path / "full")])
    capsys.readouterr()
    main(["-q", "restore", place, str(tmp_path / "out"), "--scale", "4"])
    assert "were decoded in full and made smaller" in capsys.readouterr().err
    smaller = 0
    for name, row in rows_of(Path(place)).items():
        if row["codec"] not in ("msinn", "near"):
            continue
        full, found = (pixels((tmp_path / folder / row["restore_name"]).read_bytes()) for folder in ("full", "out"))
        assert np.array_equal(found, area_reduced(full, 4)), name
        smaller += 1
    assert smaller


@pytest.mark.parametrize(
    ("version", "name", "said"),
    [
        ("version-4", "photo000.png", "its model has no heads for smaller ones"),
        ("version-6", "rgb.png", "its form, near, has no shorter way"),
        ("version-6", "plain.jpg", "it is kept as the file it was"),
        (None, "photo000.png", None),
    ],
)
def test_one_picture_that_was_decoded_in_full_is_said(
    version: str | None, name: str, said: str | None, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = made / "archive" if version is None else copied(version, tmp_path)
    assert main(["get", str(place), name, "--scale", "2", "-o", str(tmp_path / "x.png")]) == 0
    sentences = capsys.readouterr().err.splitlines()[1:]
    assert sentences == ([] if said is None else [f"the picture was decoded in full and made smaller: {said}"])


def test_exact_forms_are_decoded_in_full(tmp_path: Path) -> None:
    """JPEG to the byte, samples of 8 and 16 bits, lepton: the mean of every sample that they have."""
    pytest.importorskip("lepton_jpeg_python", reason="lepton-jpeg-python has no wheel for this machine")
    place, out = copied("version-4-lossless", tmp_path), tmp_path / "out"
    assert main(["-q", "restore", str(place), str(tmp_path / "full")]) in (0, 3)
    assert main(["-q", "restore", str(place), str(out), "--scale", "2"]) in (0, 3)
    forms = set()
    for name, row in rows_of(place).items():
        there, conversion = tmp_path / "full" / row["restore_name"], Conversion("png", scale=2)
        if row["codec"] is None or not row["pixels"]:
            continue
        found = out / (Path(row["restore_name"]).stem + ".png")
        if not found.exists():  # kept, and never a picture
            assert (out / row["restore_name"]).read_bytes() == there.read_bytes()
            continue
        if (row["bit_depth"] or 8) > 8 and row["exact"] == "pixels":
            full, smaller = imagecodecs.png_decode(there.read_bytes()), imagecodecs.png_decode(found.read_bytes())
            assert smaller.dtype == np.uint16
        elif row["channels"] in (1, 3) and row["error_code"] is None:
            full, smaller = pixels(there.read_bytes()), pixels(found.read_bytes())
        else:
            continue
        assert np.array_equal(smaller, area_reduced(full, 2)), name
        forms.add(row["codec"])
        assert conversion.scale == 2
    assert {"jxl"} <= forms


def test_what_is_written_is_called_by_its_format(made: Path, tmp_path: Path) -> None:
    result = restore(str(made / "archive"), str(tmp_path / "out"), conversion=Conversion("jpeg", 80, 8))
    assert result.problems == []
    with Image.open(tmp_path / "out" / "photo003.jpg") as image:
        assert (image.format, image.size) == ("JPEG", (25, 25))
    with Image.open(tmp_path / "out" / "alpha.png") as image:
        assert (image.mode, image.size) == ("RGBA", (25, 25))
    # The same again finds what is there; at another scale it is other content.
    assert restore(str(made / "archive"), str(tmp_path / "out"), conversion=Conversion("jpeg", 80, 8)).skipped > 0
    assert restore(str(made / "archive"), str(tmp_path / "out"), conversion=Conversion("jpeg", 80, 4)).problems


def test_containers_take_smaller_pictures(made: Path, tmp_path: Path) -> None:
    assert main(["-q", "restore", str(made / "archive"), str(tmp_path / "tars"), "--to", "webdataset", "--scale", "4"]) in (0, 3)
    assert list((tmp_path / "tars").glob("*.tar"))
    assert main(["restore", str(made / "archive"), str(tmp_path / "none"), "--scale", "4", "--dry-run"]) == 0


def size_of(image: Image.Image) -> tuple[int, int]:
    return image.size


def test_loaders_read_smaller_pictures_in_their_own_processes(made: Path) -> None:
    dataset = ArchiveDataset(str(made / "archive"), where="codec = 'msinn'", transform=size_of, scale=16)
    loader = DataLoader(dataset, batch_size=None, num_workers=2)
    assert sorted(sample["image"] for sample in loader)[-1] == [13, 13]


def test_a_prefix_of_another_picture_is_refused(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its header is sound, and its SHA-256 cannot be compared: its size can."""
    right = getting._stored

    def stored(archive: Archive, wanted: str) -> Any:
        other = right(archive, "photo000.png")
        return replace(right(archive, wanted), shard_key=other.shard_key, offset=other.offset, length=other.length)

    monkeypatch.setattr(getting, "_stored", stored)
    with pytest.raises(ManifestError, match="of another size"):
        get(str(made / "archive"), "turned.png", scale=4)
