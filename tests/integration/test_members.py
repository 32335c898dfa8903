"""Shards as they lie are read by WebDataset and Hugging Face `datasets`, whatever form their members are in."""

from __future__ import annotations

import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.cli import main
from msinn_core.errors import BitstreamError
from pipeline.archive.archive import Archive
from pipeline.errors import ManifestError
from pipeline.read.members import HUGGING_FACE_ENDINGS, MemberDecoder, register_hugging_face
from tests.golden.test_archives import copied


def restored(place: Path) -> dict[str, Path]:
    """Restored files by key."""
    assert main(["-q", "restore", str(place), str(place.parent / "out")]) in (0, 3)  # of one nothing may have been stored
    return {row["key"]: place.parent / "out" / row["restore_name"] for row in Archive(str(place)).manifest().to_pylist()}


def shards(place: Path) -> list[str]:
    return sorted(map(str, (place / "shards").iterdir()))


@pytest.mark.parametrize(("version", "endings"), [("version-4", {"msn"}), ("version-4-lossless", {"jpg.jxl", "jpg.lep", "png.jxl", "tif.zst"})])
def test_webdataset_decodes_every_form(version: str, endings: set[str], tmp_path: Path) -> None:
    import webdataset

    if version == "version-4-lossless":
        pytest.importorskip("lepton_jpeg_python", reason="lepton-jpeg-python has no wheel for this machine")
    place = copied(version, tmp_path)
    files = restored(place)
    decoder = pickle.loads(pickle.dumps(MemberDecoder(str(place))))
    found, raw = set(), members(place)
    for sample in webdataset.WebDataset(shards(place), shardshuffle=False, empty_check=False).decode(decoder):
        for ending in endings & sample.keys():
            found.add(ending)
            image, path = sample[ending], files[sample["__key__"]]
            assert decoder.file(ending, raw[sample["__key__"], ending]) == path.read_bytes()
            if path.name == "cut.jpg":  # whose end is missing, at the source already
                continue
            with Image.open(path) as expected:
                assert (image.mode, image.size) == (expected.mode, expected.size)
                assert np.array_equal(np.asarray(image), np.asarray(expected))
    assert found == endings


def members(place: Path) -> dict[tuple[str, str], bytes]:
    """Bytes by key and ending."""
    found = {}
    for path in shards(place):
        with tarfile.open(path) as tar:
            for member in tar.getmembers():
                key, _, ending = member.name.partition(".")
                found[key, ending] = tar.extractfile(member).read()  # type: ignore[union-attr]
    return found


def test_members_that_do_not_decode_are_named(tmp_path: Path) -> None:
    place = copied("version-4", tmp_path)
    decoder = MemberDecoder(str(place))
    payload = next(data for (_, ending), data in members(place).items() if ending == "msn")
    with pytest.raises(BitstreamError):
        decoder(".msn", payload[:-5])
    with pytest.raises(ManifestError, match=r"a member \.msn is coded with model 00000000"):
        decoder(".msn", payload[:8] + bytes(16) + payload[24:])
    with pytest.raises(ManifestError, match="no sound jxl"):
        decoder(".png.jxl", b"nothing")
    assert decoder(".txt", b"a caption") is None


def test_hugging_face_reads_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    import datasets
    from datasets.packaged_modules.webdataset.webdataset import WebDataset

    before = list(WebDataset.IMAGE_EXTENSIONS), dict(WebDataset.DECODERS)
    place = copied("version-4", tmp_path)
    names = {row["key"]: row["restore_name"] for row in Archive(str(place)).manifest().to_pylist() if (row["member"] or "").endswith(".msn")}
    files = restored(place)
    # `datasets` wants one ending in all samples: of each shard the coded images alone.
    tars = []
    for number, shard in enumerate(shards(place)):
        with tarfile.open(shard) as source, tarfile.open(tmp_path / f"{number}.tar", "w") as target:
            for member in source.getmembers():
                if member.name.endswith(".msn"):
                    target.addfile(member, source.extractfile(member))
            if target.getmembers():
                tars.append(str(tmp_path / f"{number}.tar"))
    register_hugging_face(str(place))
    try:
        found = datasets.load_dataset("webdataset", data_files={"train": tars}, split="train", streaming=True)
        samples = list(found)
    finally:
        WebDataset.IMAGE_EXTENSIONS[:] = before[0]
        WebDataset.DECODERS.clear()
        WebDataset.DECODERS.update(before[1])
    assert len(samples) == len(names)
    for sample in samples:
        with Image.open(files[sample["__key__"]]) as expected:
            assert np.array_equal(np.asarray(sample["msn"]), np.asarray(expected))
    assert set(HUGGING_FACE_ENDINGS) == {"msn", "jxl", "lep", "msr"}
