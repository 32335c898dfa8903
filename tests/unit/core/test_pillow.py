"""Pillow opens coded pictures as it opens any other file."""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

from msinn_core import pillow
from msinn_core.bitstream import parse
from msinn_core.codec import Codec
from msinn_core.model_file import LoadedModel
from msinn_core.picture import Picture


@pytest.fixture(autouse=True)
def _registered(tiny: LoadedModel) -> Iterator[None]:
    pillow.register(tiny)
    yield
    pillow._AT_HAND.max_pixels = pillow.DEFAULT_MAX_PIXELS
    pillow._AT_HAND.models.clear()


@pytest.fixture(scope="module")
def small(tiny: LoadedModel) -> Codec:
    return Codec(tiny)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_every_mode_opens_with_its_pixels_and_metadata(mode: str, small: Codec, tile: Picture, tmp_path: Path) -> None:
    pixels = tile.pixels if mode.startswith("RGB") else tile.pixels[..., 0].copy()
    alpha = tile.pixels[..., 1].copy() if mode.endswith("A") else None
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Picture(pixels=pixels, alpha=alpha, exif=exif.tobytes(), icc=b"profile", xmp=b"<x/>")
    data = small.encode(picture, 4.0)
    path = tmp_path / "x.msn"
    path.write_bytes(data)
    with Image.open(path) as image:
        assert (image.format, image.mode, image.size) == ("MSINN", mode, (128, 96))
        assert (image.info["icc_profile"], image.info["xmp"], image.getexif()[0x0112]) == (b"profile", b"<x/>", 6)
        assert image.get_format_mimetype() == "image/x-msinn"
        assert np.array_equal(np.asarray(image), small.decode(data)[0].interleaved())
        assert np.array_equal(np.asarray(pickle.loads(pickle.dumps(image))), np.asarray(image))
    out = io.BytesIO()
    Image.open(io.BytesIO(data)).save(out, "PNG")
    assert np.array_equal(np.asarray(Image.open(out)), small.decode(data)[0].interleaved())


def test_what_cannot_be_opened_is_said_in_a_sentence(small: Codec, tile: Picture) -> None:
    data = small.encode(tile, 4.0)
    with pytest.raises(OSError, match="the bitstream ends"):
        Image.open(io.BytesIO(data[:60]))
    with pytest.raises(OSError, match="CRC32C differs"):
        Image.open(io.BytesIO(data[:-1] + bytes([data[-1] ^ 1])))
    with pytest.raises(UnidentifiedImageError):
        Image.open(io.BytesIO(b"NSNM" + data[4:]))
    stranger = replace(parse(data), model_id=bytes(16)).to_bytes()
    with pytest.raises(OSError, match=r"coded with model 000000000000, which is not at hand: msinn_core.pillow.register"):
        Image.open(io.BytesIO(stranger)).load()
    pillow.register(max_pixels=100)
    with pytest.raises(OSError, match="over the limit of 100"):
        Image.open(io.BytesIO(data)).load()


@pytest.fixture(scope="module")
def coded(codec: Codec, tile: Picture) -> bytes:
    """128 x 96 with alpha, by the shipped model, which has heads."""
    return codec.encode(Picture(pixels=tile.pixels, alpha=tile.pixels[..., 1].copy(), icc=b"profile"), 4.0)


@pytest.mark.parametrize(
    ("wanted", "scale"),
    [((64, 48), 2), ((65, 48), 1), ((40, 20), 2), ((32, 24), 4), ((16, 1), 8), ((8, 6), 16), ((1, 1), 16), ((0, 0), 16), ((200, 200), 1)],
)
def test_a_draft_is_the_smallest_picture_that_is_no_smaller_than_asked(
    wanted: tuple[int, int], scale: int, codec: Codec, coded: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = (codec.decode(coded)[0] if scale == 1 else codec.decode_reduced(coded, scale)).interleaved()
    monkeypatch.setattr(Codec, "decode_reduced" if scale == 1 else "decode", None)
    with Image.open(io.BytesIO(coded)) as image:
        found = image.draft("L", wanted)
        assert found == (None if scale == 1 else ("RGBA", (0, 0, 128 / scale, 96 / scale)))
        assert image.size == (128 // scale, 96 // scale)
        assert scale == 1 or image.draft("L", (1, 1)) is None
        assert np.array_equal(np.asarray(image), expected)
        assert image.info["icc_profile"] == b"profile"
        assert image.draft("L", (1, 1)) is None


def test_sides_that_no_scale_divides_are_rounded_up(codec: Codec, tile: Picture) -> None:
    data = codec.encode(Picture(pixels=tile.pixels[:77, :101].copy()), 4.0)
    with Image.open(io.BytesIO(data)) as image:
        assert image.draft(None, (25, 19)) == ("RGB", (0, 0, 101 / 4, 77 / 4))
        assert image.size == (26, 20)
        assert np.array_equal(np.asarray(image), codec.decode_reduced(data, 4).interleaved())


def test_a_thumbnail_is_quick_by_itself(codec: Codec, coded: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    with Image.open(io.BytesIO(coded)) as image:
        image.load()
        image.thumbnail((16, 16))
        slow = np.asarray(image.convert("RGB"), np.float64)
    monkeypatch.setattr(Codec, "decode", None)
    with Image.open(io.BytesIO(coded)) as image:
        image.thumbnail((16, 16))
        assert image.size == (16, 12)
        # The same picture: code values of 8 bits, of heads that are near and not equal to the area-downscaled.
        assert np.sqrt(np.mean((np.asarray(image.convert("RGB"), np.float64) - slow) ** 2)) < 6


def test_a_model_without_heads_decodes_in_full(small: Codec, tile: Picture, monkeypatch: pytest.MonkeyPatch) -> None:
    data = small.encode(tile, 4.0)
    monkeypatch.setattr(Codec, "decode_reduced", None)
    with Image.open(io.BytesIO(data)) as image:
        assert (image.draft("RGB", (8, 8)), image.size) == (None, (128, 96))
        image.thumbnail((16, 16))
        assert image.size == (16, 12)
    stranger = replace(parse(data), model_id=bytes(16)).to_bytes()
    with Image.open(io.BytesIO(stranger)) as image, pytest.raises(OSError, match="not at hand"):
        image.thumbnail((16, 16))
