from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline.formats import images
from pipeline.formats.outcome import Reason
from tests.conftest import encoded, png16

LIMIT = 10_000_000


def load(data: bytes, name: str = "x.png") -> images.LoadedImage:
    return images.load(data, max_pixels=LIMIT, name=name)


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


@pytest.fixture(scope="module")
def small(photo: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(photo[:80, :100])


@pytest.mark.parametrize("fmt", ["PNG", "WEBP", "BMP", "TIFF", "PPM"])
def test_lossless_formats_give_their_pixels(small: Image.Image, fmt: str) -> None:
    options = {"lossless": True} if fmt == "WEBP" else {}
    loaded = load(encoded(small, fmt, **options))
    assert loaded.picture is not None
    assert np.array_equal(loaded.picture.pixels, np.asarray(small))
    assert (loaded.info.width, loaded.info.height, loaded.info.bit_depth) == (100, 80, 8)


@pytest.mark.parametrize("fmt", ["JPEG", "AVIF", "JPEG2000"])
def test_lossy_formats_are_decoded(small: Image.Image, fmt: str) -> None:
    loaded = load(encoded(small, fmt))
    assert loaded.picture is not None
    assert loaded.picture.pixels.shape == (80, 100, 3)


def test_grey_alpha_and_palette(small: Image.Image) -> None:
    grey = load(encoded(small.convert("L"), "PNG"))
    assert grey.picture is not None
    assert grey.picture.pixels.ndim == 2
    transparent = small.convert("RGBA")
    transparent.putalpha(Image.fromarray(np.arange(8000, dtype=np.uint16).reshape(80, 100).astype(np.uint8)))
    loaded = load(encoded(transparent, "PNG"))
    assert loaded.picture is not None
    assert loaded.picture.alpha is not None
    assert np.array_equal(loaded.picture.alpha, np.asarray(transparent)[:, :, 3])
    palette = small.quantize(16)
    loaded = load(encoded(palette, "PNG"))
    assert loaded.picture is not None
    assert np.array_equal(loaded.picture.pixels, np.asarray(palette.convert("RGB")))


def test_what_cannot_be_kept_faithfully_has_a_reason(small: Image.Image) -> None:
    sixteen = Image.fromarray(np.arange(8000, dtype=np.uint16).reshape(80, 100))
    palette = small.quantize(16)
    cases = {
        Reason.DEEP: [encoded(sixteen, "PNG"), png16(20, 10), encoded(sixteen, "TIFF")],
        Reason.MODE: [encoded(small.convert("CMYK"), "JPEG"), encoded(small.convert("1"), "PNG")],
        Reason.ANIMATED: [encoded(small, "GIF", save_all=True, append_images=[small.rotate(90)])],
        Reason.PALETTE_ALPHA: [encoded(palette, "PNG", transparency=3)],
        Reason.BROKEN: [b"", b"garbage" * 100, half(encoded(small, "JPEG")), half(encoded(small, "PNG"))],
    }
    for reason, files in cases.items():
        for data in files:
            loaded = load(data)
            assert (loaded.reason, loaded.picture) == (reason, None), loaded.message
            assert loaded.message
    assert load(b"hello", "notes.txt").reason == Reason.NOT_AN_IMAGE
    assert load(b"hello", "photo.heic").reason == Reason.UNSUPPORTED
    assert Reason.BROKEN.troubles
    assert not Reason.NOT_AN_IMAGE.troubles


def test_a_bomb_is_refused_by_its_header(small: Image.Image) -> None:
    bomb = bytearray(encoded(small, "PNG"))
    bomb[16:24] = (60000).to_bytes(4, "big") * 2
    import zlib

    bomb[29:33] = zlib.crc32(bytes(bomb[12:29])).to_bytes(4, "big")
    loaded = load(bytes(bomb))
    assert loaded.reason == Reason.PIXEL_LIMIT
    assert loaded.info.width == 60000


def test_ten_bit_avif_is_noticed() -> None:
    """Pillow hands out 8 bits in silence; the flag in the file's `av1C` box tells."""
    data = bytearray(encoded(Image.new("RGB", (64, 64), (9, 90, 200)), "AVIF"))
    at = data.find(b"av1C")
    data[at + 6] |= 0x40
    assert load(bytes(data)).reason in (Reason.DEEP, Reason.BROKEN)


def test_metadata_survives_into_png(small: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    xmp = b"<x:xmpmeta>\xc3\xa9</x:xmpmeta>"
    loaded = load(encoded(small, "JPEG", icc_profile=b"profile" * 30, exif=exif, xmp=xmp))
    assert loaded.picture is not None
    assert loaded.info.orientation == 6
    back = Image.open(io.BytesIO(images.to_png(loaded.picture)))
    back.load()
    assert back.info["icc_profile"] == b"profile" * 30
    assert back.getexif()[0x0112] == 6
    assert back.info["xmp"] == xmp
    # Not rotated: the orientation is kept as a tag, the pixels as they lie in the file.
    assert back.size == small.size


def test_png_keeps_alpha_and_grey(tmp_path: Path, small: Image.Image) -> None:
    from msinn_core.picture import Picture

    grey = np.asarray(small.convert("L"))
    for pixels, alpha, mode in ((grey, None, "L"), (grey, grey, "LA"), (np.asarray(small), grey, "RGBA")):
        back = Image.open(io.BytesIO(images.to_png(Picture(pixels=pixels, alpha=alpha))))
        assert back.mode == mode
        assert np.array_equal(np.asarray(back) if mode == "L" else np.asarray(back)[..., -1], grey)


def test_a_damaged_png_is_never_taken_for_a_good_one(small: Image.Image) -> None:
    """Pillow's `getexif` decodes a PNG and hides the error; a second `load` then returns what was decoded so far."""
    good = encoded(small, "PNG")
    for share in (0.2, 0.4, 0.6, 0.8):
        hurt = bytearray(good)
        hurt[int(share * len(good))] ^= 0x55
        assert load(bytes(hurt)).reason == Reason.BROKEN


def test_previews_pages_and_appended_data_are_not_taken_for_the_whole(small: Image.Image) -> None:
    jpeg = encoded(small, "JPEG")
    exif_tiff = Image.Exif()
    exif_tiff[0x0112] = 6
    deep = np.frombuffer(b"P6 4 2 65535\n" + bytes(range(48)), np.uint8).tobytes()
    cases = {
        "motion.jpg": (jpeg + b"....ftypmp42" * 50, Reason.TRAILING),
        "after.png": (encoded(small, "PNG") + b"more", Reason.TRAILING),
        "turned.tif": (encoded(small, "TIFF", exif=exif_tiff), Reason.UNSUPPORTED),
        "deep.ppm": (deep, Reason.DEEP),
        "sizes.ico": (encoded(small, "ICO"), Reason.UNSUPPORTED),
        "x.tga": (encoded(small, "TGA"), Reason.UNSUPPORTED),
        "half.dng": (b"II*\0garbage", Reason.UNSUPPORTED),
    }
    for name, (data, reason) in cases.items():
        assert load(data, name).reason == reason, name
    assert load(jpeg + bytes(20)).picture is not None  # padding is nothing


def test_xmp_that_is_not_utf8_comes_back_byte_for_byte(small: Image.Image) -> None:
    xmp = b"<x:xmpmeta>caf\xe9</x:xmpmeta>"
    loaded = load(encoded(small, "JPEG", xmp=xmp))
    assert loaded.picture is not None
    assert loaded.picture.xmp == xmp
    assert xmp in images.to_png(loaded.picture)
