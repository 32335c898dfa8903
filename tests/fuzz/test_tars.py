"""One damaged tar costs a warning; the others are listed, and nothing hangs."""

from __future__ import annotations

import io
import shutil
import tarfile
from pathlib import Path
from random import Random

import pytest

from pipeline import images
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


def test_the_file_that_ended_every_run() -> None:
    loaded = images.load((REGRESSIONS / "absurd-width.bmp").read_bytes(), max_pixels=10**7, name="absurd.bmp")
    assert (loaded.reason, loaded.info.width) == (images.PIXEL_LIMIT, None)
