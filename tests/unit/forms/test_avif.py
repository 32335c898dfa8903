"""AVIF as a form: the same colours by every decoder, sizes by its header, metadata in boxes, hostile files in a sentence each."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, features

from msinn_core.picture import Picture
from pipeline.forms import avif, jxl
from pipeline.forms.base import Bounds, Refusal, TooLargeRefusal
from pipeline.forms.process import Forms
from pipeline.forms.samples import Samples

BOUNDS = Bounds(max_pixels=10**7, max_file_bytes=0)
PIECES = {"icc": b"profile", "exif": b"Exif\0\0II*\0", "xmp": b"<x/>", "png_chunks": bytes(range(99))}


@pytest.fixture(scope="module")
def forms() -> Iterator[Forms]:
    made = Forms(10**6, 1 << 24)
    yield made
    made.close()


def drawn(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Rectangles of plain colours."""
    rng = np.random.default_rng(seed)
    pixels = np.full((height, width, 3), 250, np.uint8)
    for row, column in zip(rng.integers(0, height, 60).tolist(), rng.integers(0, width, 60).tolist(), strict=True):
        pixels[row : row + 5, column : column + 14] = rng.integers(0, 255, 3)
    return pixels


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow was built without AVIF")
@pytest.mark.parametrize("level", [*avif.LEVELS, 40, 70, 99])
def test_every_decoder_gives_the_same_colours(level: int) -> None:
    """Pillow brings a libavif and a dav1d of its own. Noise has every colour."""
    noise = np.random.default_rng(level).integers(0, 256, (131, 97, 3), np.uint8)
    for pixels in (noise, drawn(131, 97, level), np.concatenate((noise, drawn(64, 97)))):
        data = avif.encoded(pixels, level, PIECES)
        ours = avif.AVIF.decode("avif", data, BOUNDS)
        with Image.open(io.BytesIO(data)) as image:
            assert np.array_equal(np.asarray(image.convert("RGB")), ours.pixels)


def test_colours_are_whole_numbers() -> None:
    """Of full range, by YCgCo, in 4:4:4 of 8 bits: libraries may agree on others by chance, and need not."""
    data = avif.encoded(drawn(40, 56), 60, {})
    colours = data.index(b"colrnclx") + 8
    primaries, transfer, matrix, full_range = struct.unpack_from(">HHHB", data, colours)
    assert (primaries, transfer, matrix, full_range >> 7) == (1, 13, 8, 1)
    depth_and_sampling = data[data.index(b"av1C") + 6]
    assert depth_and_sampling & 0b01111100 == 0, "8 bits, three planes, none of them subsampled"
    noise = np.random.default_rng(0).integers(0, 256, (131, 97, 3), np.uint8)
    found = avif.AVIF.decode("avif", avif.encoded(noise, 70, {}), BOUNDS).pixels
    red, green, blue = (found[..., i][((found > 0) & (found < 255)).all(axis=2)].astype(int) for i in range(3))
    assert len(green) > 5000
    assert not ((red - blue) % 2).any(), "R - B is 2 o"


@pytest.mark.parametrize("shape", [(16, 16), (17, 33), (200, 301), (16, 900)])
def test_sizes_and_metadata_come_back(shape: tuple[int, int]) -> None:
    pixels = drawn(*shape)
    data = avif.encoded(pixels, 60, PIECES)
    assert avif.size(data) == shape[::-1]
    found = avif.AVIF.decode("avif", data, BOUNDS)
    assert found.pixels.shape == pixels.shape
    assert found.metadata == PIECES
    assert avif.AVIF.decode("avif", avif.encoded(pixels, 60, {}), BOUNDS).metadata == {}
    assert data == avif.encoded(pixels, 60, PIECES), "the same picture is the same bytes"


def test_alpha_comes_back_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = drawn(90, 120)
    for alpha in (np.full((90, 120), 255, np.uint8), np.random.default_rng(0).integers(0, 256, (90, 120), np.uint8)):
        picture = Picture(pixels=pixels, alpha=alpha, icc=b"profile")
        data = avif.encoded(pixels, 60, avif.carried_with(picture))
        found = avif.AVIF.decode("avif", data, BOUNDS)
        assert found.alpha is not None
        assert np.array_equal(found.alpha, alpha)
        assert found.metadata == {"icc": b"profile"}
    other = jxl.with_metadata(avif.encoded(pixels, 60, {}), {jxl.ALPHA: jxl.encoded(alpha[:89], {})})
    deep = jxl.with_metadata(avif.encoded(pixels, 60, {}), {jxl.ALPHA: jxl.encoded(alpha.astype(np.uint16), {})})
    for broken in (other, deep, jxl.with_metadata(avif.encoded(pixels, 60, {}), {jxl.ALPHA: b"no plane"})):
        with pytest.raises(Refusal):
            avif.AVIF.decode("avif", broken, BOUNDS)
    monkeypatch.setattr(avif, "_MOST_ALPHA_BYTES", 100)
    with pytest.raises(Refusal, match="too large"):
        avif.carried_with(picture)


def test_levels_rise_and_reach_both_ends() -> None:
    assert (avif.level_at(0.0), avif.level_at(1.0)) == avif.LEVELS
    errors = []
    for share in np.linspace(0, 1, 6).tolist():
        pixels = drawn(64, 80)
        found = avif.AVIF.decode("avif", avif.encoded(pixels, avif.level_at(share), {}), BOUNDS).pixels
        errors.append(float(np.square(pixels.astype(float) - found).mean()))
    assert errors == sorted(errors, reverse=True)


def test_what_may_have_been_drawn(photo: NDArray[np.uint8]) -> None:
    screen = drawn(64, 80)
    assert avif.suits(Picture(pixels=screen))
    assert not avif.suits(Picture(pixels=photo[:64, :80].copy()))
    assert not avif.suits(Picture(pixels=screen[:15].copy()))
    assert not avif.suits(Picture(pixels=screen[:, :, 0].copy()))
    assert avif.suits(Picture(pixels=screen, alpha=screen[:, :, 1].copy()))


def test_hostile_files_are_a_sentence_each(forms: Forms) -> None:
    data = avif.encoded(drawn(40, 56), 60, PIECES)
    assert isinstance(forms.decode("avif", data), Samples)
    place = data.index(b"ispe") + 8
    larger = data[:place] + struct.pack(">II", 50_000, 50_000) + data[place + 8 :]
    with pytest.raises(TooLargeRefusal):
        forms.decode("avif", larger)
    twice = data.replace(b"pixi", b"ispe", 1)
    for broken in (b"", b"\0" * 40, data[:30], data[: place + 4], data[: len(data) // 2], twice, data[:-20], jxl.encoded(drawn(9, 9), {})):
        with pytest.raises(Refusal):
            forms.decode("avif", broken)
    assert isinstance(forms.decode("avif", data), Samples)


def test_a_flipped_byte_is_other_samples_or_a_sentence(forms: Forms) -> None:
    data = avif.encoded(drawn(40, 56), 60, {})
    found = 0
    for position in range(0, len(data), 7):
        flipped = bytearray(data)
        flipped[position] ^= 64
        try:
            back = forms.decode("avif", bytes(flipped))
        except Refusal:
            found += 1
        else:
            assert isinstance(back, Samples)
            assert back.pixels.shape[:2] == avif.size(bytes(flipped))[::-1]
    assert found
