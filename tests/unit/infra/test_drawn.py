"""Drawn tiles: the same for a seed, of every kind, and training and validation apart."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from infra.drawn import held_out, kinds, page
from infra.drawn.make import tile, write

pytest.importorskip("matplotlib", reason="the fonts come with matplotlib")

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def photos() -> list[Image.Image]:
    ramp = np.indices((420, 460)).sum(0) % 256
    return [Image.fromarray(np.stack((ramp, ramp.T[:420, :420].repeat(2, 1)[:, :460], 255 - ramp), -1).astype(np.uint8))]


def pixels(number: int, **options: object) -> NDArray[np.uint8]:
    return np.asarray(tile(number, **{"seed": 7, **options})[1])  # type: ignore[arg-type]


@pytest.mark.parametrize("valid", [False, True])
def test_a_round_holds_every_kind_once_and_no_two_tiles_are_alike(photos: list[Image.Image], valid: bool) -> None:
    source = held_out if valid else kinds
    names = {kind.__name__ for kind in (*source.PLAIN, *source.WITH_PHOTO)}
    drawn = [tile(i, seed=7, valid=valid, photos=photos) for i in range(2 * len(names))]
    assert Counter(name for name, _ in drawn) == Counter(dict.fromkeys(names, 2))
    assert {(picture.mode, picture.size) for _, picture in drawn} == {("RGB", (page.SIDE, page.SIDE))}
    assert len({picture.tobytes() for _, picture in drawn}) == len(drawn)
    assert [name for name, picture in drawn if len(picture.getcolors(1 << 18) or ()) < 2] == []


def test_a_seed_and_a_number_decide_a_tile(photos: list[Image.Image]) -> None:
    for number in (3, 20):
        assert np.array_equal(pixels(number, photos=photos), pixels(number, photos=photos))
        assert not np.array_equal(pixels(number, photos=photos), pixels(number, seed=8, photos=photos))


def test_validation_shares_no_kind_and_no_font_with_training(photos: list[Image.Image], monkeypatch: pytest.MonkeyPatch) -> None:
    assert not {k.__name__ for k in (*kinds.PLAIN, *kinds.WITH_PHOTO)} & {k.__name__ for k in (*held_out.PLAIN, *held_out.WITH_PHOTO)}
    used: set[str] = set()
    real = page.font
    monkeypatch.setattr(page, "font", lambda name, size: (used.add(name), real(name, size))[1])
    for number in range(30):
        tile(number, seed=1, photos=photos)
    training = set(used)
    used.clear()
    for number in range(18):
        tile(number, seed=1, valid=True, photos=photos)
    assert training == set(page.TRAIN_FONTS)
    assert used == set(page.VALID_FONTS)


def test_without_photographs_the_kinds_that_need_one_are_left_out() -> None:
    assert {tile(i, seed=1)[0] for i in range(len(kinds.PLAIN))} == {kind.__name__ for kind in kinds.PLAIN}


@pytest.mark.parametrize("text", ["hard", "grey", "subpixel"])
def test_text_is_shown_as_screens_show_it(text: str) -> None:
    import random

    look = page.Style(paper=(255, 255, 255), ink=(0, 0, 0), accents=((1, 2, 3),) * 5, text=text, smooth=True, fonts=("DejaVuSans",))
    sheet = page.Page(random.Random(1), look)
    sheet.text(20, 20, "wave", page.font("DejaVuSans", 20))
    found = np.asarray(sheet.image)
    grey = (found == found[..., :1]).all()
    levels = len(np.unique(found))
    assert (grey, levels > 2) == {"hard": (True, False), "grey": (True, True), "subpixel": (False, True)}[text]
    rows, columns = np.nonzero((found < 255).any(-1))
    assert 18 <= rows.min() < rows.max() < 50
    assert 18 <= columns.min() < columns.max() < 90


def test_smooth_shapes_have_shades_at_their_edges_and_lie_where_hard_ones_do() -> None:
    import random

    found = {}
    for smooth in (False, True):
        look = page.Style(paper=(0, 0, 0), ink=(255, 255, 255), accents=((9, 9, 9),) * 5, text="grey", smooth=smooth, fonts=(page.DEFAULT,))
        sheet = page.Page(random.Random(1), look)
        sheet.ellipse(100, 100, 40, 25, (255, 255, 255))
        sheet.line([(200, 30), (400, 90)], (255, 255, 255), 3)
        sheet.pie(300, 300, 60, 20, 150, (255, 255, 255))
        found[smooth] = np.asarray(sheet.image)[..., 0].astype(int)
    assert len(np.unique(found[False])) == 2
    assert len(np.unique(found[True])) > 4
    assert abs(found[True] - found[False]).mean() < 0.03 * found[False].mean() + 0.5


def test_a_tar_is_the_same_bytes_again_and_holds_png_tiles(tmp_path: Path, photos: list[Image.Image]) -> None:
    for name in ("a.tar", "b.tar"):
        write(tmp_path / name, 4, seed=5, valid=False, photos=photos)
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    with tarfile.open(tmp_path / "a.tar") as tar:
        members = [(member.name, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
    for number, (name, data) in enumerate(members):
        kind, picture = tile(number, seed=5, photos=photos)
        assert name == f"{number:05d}_{kind}.png"
        with Image.open(io.BytesIO(data)) as stored:
            assert stored.tobytes() == picture.tobytes()


def test_the_command_writes_what_training_reads(tmp_path: Path) -> None:
    from pipeline.lab.tiles import validation_pictures

    out = tmp_path / "drawn.tar"
    command = [sys.executable, "-m", "infra.drawn.make", "--valid", "--count", "3", "--photos", str(ROOT / "infra/demo/photos"), "--photo-count", "2"]
    subprocess.run([*command, "--out", str(out)], cwd=ROOT, check=True, capture_output=True)
    assert validation_pictures((str(out),), 3).shape == (3, 3, 256, 256)
