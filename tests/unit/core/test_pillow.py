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
