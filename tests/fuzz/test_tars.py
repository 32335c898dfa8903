"""One damaged tar costs a warning; the others are listed, and nothing hangs."""

from __future__ import annotations

import io
import shutil
import tarfile
from pathlib import Path
from random import Random

import pytest

from pipeline.archive.shard import MAX_MEMBER_BYTES, iterate_damaged
from pipeline.formats import images
from pipeline.formats.outcome import Reason
from pipeline.sources import scan
from tests.fuzz.mutate import mutated

REGRESSIONS = Path(__file__).parent / "regressions"


def tar(names: list[str]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as file:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = 700, 1_600_000_000
            file.addfile(info, io.BytesIO(bytes(700)))
    return out.getvalue()


@pytest.mark.timeout(60)
def test_tars_that_hung_or_ended_a_scan(tmp_path: Path) -> None:
    """CVE-2025-8194 (a member of size -512) and a header that makes Python's reader raise ValueError."""
    for path in REGRESSIONS.glob("*.tar"):
        shutil.copy(path, tmp_path)
    (tmp_path / "sound.tar").write_bytes(tar(["a.png", "b.png"]))
    found = scan(str(tmp_path))
    assert [record.name for record in found.records if record.name.startswith("sound/")] == ["sound/a.png", "sound/b.png"]
    assert len([warning for warning in found.warnings if "cannot be read past member" in warning]) == 2


@pytest.mark.timeout(120)
def test_mutated_tars_cost_a_warning_at_most(tmp_path: Path) -> None:
    random = Random(3)
    sound = tar(["a.png", "ä" * 120 + ".png", "c/d.jpg"])
    for number in range(400):
        (tmp_path / f"{number:03d}.tar").write_bytes(mutated(sound, random))
    (tmp_path / "sound.tar").write_bytes(sound)
    found = scan(str(tmp_path))
    assert len([record for record in found.records if record.name.startswith("sound/")]) == 3
    assert found.warnings


def header(**fields: object) -> bytes:
    info = tarfile.TarInfo(str(fields.pop("name", "x")))
    for name, value in fields.items():
        setattr(info, name, value)
    return info.tobuf(tarfile.GNU_FORMAT)


def block(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def extended_sparse() -> bytes:
    """A sparse member whose map goes on in a block that is not there."""
    data = bytearray(header(type=tarfile.GNUTYPE_SPARSE, size=4))
    data[482] = 1
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data)
    return bytes(data)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("hostile", "what"),
    [
        (header(name="a", size=2**63), "claims 9223372036854775808 bytes"),
        (header(type=tarfile.GNUTYPE_LONGNAME, size=100) + block(b"n" * 99 + b"\0"), "empty header"),
        (b"".join(header(type=tarfile.GNUTYPE_LONGNAME, size=5) + block(b"name\0") for _ in range(2000)), "more than 16 headers before one member"),
        (header(type=tarfile.XHDTYPE, size=2 * 2**30), "a header of 2147483648 bytes"),
        (header(type=tarfile.XHDTYPE, size=2**20) + b"1" * 2**20, "a number of more than 256 digits"),
        (block(b"no header"), "no header at byte"),
        (bytes(1024) + header(name="another/tar.png"), "more bytes after its end, another tar perhaps"),
        (extended_sparse(), "the map of a sparse member is cut short"),
    ],
)
def test_a_tar_is_read_up_to_what_is_hostile_in_it(tmp_path: Path, hostile: bytes, what: str) -> None:
    first = header(name="first.png", size=3) + block(b"abc")
    (tmp_path / "x.tar").write_bytes(first + hostile)
    found = scan(str(tmp_path))
    assert found.records[0].name == "x/first.png"
    assert any(what in warning and "x.tar cannot be read past member 1 (x/first.png)" in warning for warning in found.warnings), found.warnings


def test_salvage_reads_each_byte_once() -> None:
    """16 MB of headers that claim 8 GiB each took 134 s: the rest of the file was read for each."""

    class Counting(io.BytesIO):
        total = 0

        def read(self, size: int | None = -1, /) -> bytes:
            data = super().read(size)
            self.total += len(data)
            return data

    claims = header(name="000000001.msn", size=MAX_MEMBER_BYTES)
    file = Counting(claims * 20_000 + header(name="000000002.msn", size=3) + block(b"abc") + header(size=-512) + bytes(1024))
    assert [(name, data) for name, _, data in iterate_damaged(file)] == [("000000002.msn", b"abc")]
    assert file.total <= len(file.getvalue())


def test_the_file_that_ended_every_run() -> None:
    loaded = images.load((REGRESSIONS / "absurd-width.bmp").read_bytes(), max_pixels=10**7, name="absurd.bmp")
    assert (loaded.reason, loaded.info.width) == (Reason.PIXEL_LIMIT, None)
