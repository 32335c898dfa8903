"""Forms that give images back exactly: what they take and refuse, and that hostile payloads cost no more than a sentence."""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from pipeline.forms import jxl, libraries, samples
from pipeline.forms.avif import AVIF
from pipeline.forms.base import Bounds, Refusal, TooLargeRefusal
from pipeline.forms.family import EXACT_FORMS, NAMES, SUFFIXES, decoder_of, form_named, form_of, promise_of
from pipeline.forms.jpeg_exact import JpegExact, lepton_size
from pipeline.forms.kept import Kept, frame_bytes
from pipeline.forms.libraries import AbsentError
from pipeline.forms.pixels_exact import PixelsExact
from pipeline.forms.process import Forms
from pipeline.forms.samples import NotSampledError, Samples
from tests.conftest import encoded

BOUNDS = Bounds(max_pixels=10**6, max_file_bytes=10**8)
ARITHMETIC = Path(__file__).with_name("arithmetic.jpg")
"""Made by `jpegtran -arithmetic` of libjpeg-turbo 2.1.5, of a part of a demo photo."""


@pytest.fixture(scope="module")
def forms() -> Iterator[Forms]:
    made = Forms(10**6, 10**8)
    yield made
    made.close()


@pytest.fixture(scope="module")
def part() -> Image.Image:
    photos = Path(__file__).parents[3] / "infra" / "demo" / "photos"
    with Image.open(sorted(photos.rglob("*.webp"))[0]) as photo:
        return photo.convert("RGB").crop((40, 100, 200, 228))


def lepton_or_skip() -> None:
    pytest.importorskip("lepton_jpeg_python", reason="lepton-jpeg-python has no wheel for this machine")


# ---- JPEG to the byte ----


def odd_jpegs(part: Image.Image) -> dict[str, bytes]:
    plain = encoded(part, "JPEG", quality=85)
    progressive = encoded(part, "JPEG", progressive=True)
    scans = [i for i in range(len(progressive) - 1) if progressive[i : i + 2] == b"\xff\xda"]
    both = io.BytesIO()
    part.save(both, "MPO", save_all=True, append_images=[part.rotate(90)])
    return {
        "plain": plain,
        "progressive": progressive,
        "grey": encoded(part.convert("L"), "JPEG"),
        "4:4:4, restarts": encoded(part, "JPEG", subsampling=0, restart_marker_rows=1),
        "large metadata": encoded(part, "JPEG", exif=b"Exif\0\0" + bytes(60_000)),
        "cut": plain[: len(plain) * 2 // 3],
        "missing scans": progressive[: scans[-2]] + b"\xff\xd9",
        "tail": plain + b"\0\0\0\x18ftypmp42" + np.random.default_rng(0).bytes(20_000),
        "two of them": plain + plain,
        "MPO": both.getvalue(),
        "zeros after the end": plain + bytes(5000),
    }


def test_odd_jpegs_come_back_to_the_byte(part: Image.Image, forms: Forms) -> None:
    lepton_or_skip()
    for name, data in odd_jpegs(part).items():
        tried = forms.smallest(data, "x.jpg", ["jpeg-exact"])
        assert tried.stored is not None, (name, tried.refused)
        assert len(tried.stored.data) < len(data), name
        assert forms.decode(tried.stored.codec, tried.stored.data) == data, name


def test_jpegs_that_no_library_takes_are_refused_in_words(part: Image.Image, forms: Forms) -> None:
    lepton_or_skip()
    twelve = imagecodecs.jpeg8_encode(np.asarray(part).astype(np.uint16) * 16, bitspersample=12)
    for data, what in (
        (encoded(part.convert("CMYK"), "JPEG"), "4 color channels"),
        (ARITHMETIC.read_bytes(), "arithm"),
        (twelve, "12 bit"),
        # Lepton takes a file without its end marker and gives it back otherwise than it was: found by comparing.
        (encoded(part, "JPEG", quality=85)[:-2], "does not give the same bytes back"),
        (b"\xff\xd8\xff\xe0", "without a frame"),
        (encoded(part, "JPEG")[:100], "without a frame"),
    ):
        tried = forms.smallest(data, "x.jpg", ["jpeg-exact"])
        assert tried.stored is None
        assert what in tried.refused[0]


def test_a_five_megabyte_tail_is_carried(part: Image.Image, forms: Forms) -> None:
    lepton_or_skip()
    data = encoded(part.resize((640, 512)), "JPEG", quality=95) + np.random.default_rng(0).bytes(5 << 20)
    stored = forms.smallest(data, "x.jpg", ["jpeg-exact"]).stored
    assert stored is not None
    assert forms.decode(stored.codec, stored.data) == data


def test_both_ways_of_a_jpeg_are_exact_and_say_its_size(part: Image.Image) -> None:
    data = encoded(part, "JPEG", quality=70)
    form = JpegExact()
    packed = form.encode_as("jxl-jpeg", data)
    assert jxl.is_jpeg(packed.data)
    assert jxl.size(packed.data) == part.size
    assert form.decode("jxl-jpeg", packed.data, BOUNDS) == data
    lepton_or_skip()
    packed = form.encode_as("lepton", data)
    assert lepton_size(packed.data) == part.size
    assert form.decode("lepton", packed.data, BOUNDS) == data
    assert form.cost(data, "x.jpg", BOUNDS) == len(packed.data)


def test_a_form_that_errs_is_not_taken(part: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is stored is what was decoded and compared, not what a library promises."""
    data = encoded(part, "JPEG")
    monkeypatch.setattr(JpegExact, "decode", lambda self, codec, payload, bounds: data[:-1])
    with pytest.raises(Refusal, match="does not give the same bytes back"):
        JpegExact().encode(data, "x.jpg", BOUNDS)
    wrong = Samples(pixels=np.zeros((128, 160, 3), np.uint8))
    monkeypatch.setattr(PixelsExact, "decode", lambda self, codec, payload, bounds: wrong)
    with pytest.raises(Refusal, match="same samples"):
        PixelsExact().encode(encoded(part, "PNG"), "x.png", BOUNDS)


# ---- samples ----


def deep(part: Image.Image) -> NDArray[np.uint16]:
    return np.asarray(part).astype(np.uint16) * 257 + 3


def chunked(png: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    made = b"".join(struct.pack(">I", len(c)) + kind + c + struct.pack(">I", zlib.crc32(kind + c)) for kind, c in chunks)
    return png[:33] + made + png[33:]


def test_samples_of_every_kind_come_back(part: Image.Image, forms: Forms) -> None:
    rgb, wide = np.asarray(part), deep(part)
    grey = wide[:, :, 1].copy()
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    files: dict[str, tuple[bytes, NDArray[Any]]] = {
        "rgb.png": (encoded(part, "PNG", icc_profile=profile, dpi=(300, 300), exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0"), rgb),
        "grey.bmp": (encoded(part.convert("L"), "BMP"), np.asarray(part.convert("L"))),
        "alpha.png": (encoded(Image.fromarray(np.dstack([rgb, rgb[:, :, 0] // 200])), "PNG"), np.dstack([rgb, rgb[:, :, 0] // 200])),
        "grey-alpha.png": (encoded(part.convert("LA"), "PNG", compress_level=0), np.asarray(part.convert("LA"))),
        "palette.png": (encoded(part.quantize(64), "PNG", transparency=5, compress_level=0), np.asarray(_transparent(part))),
        "deep.png": (chunked(imagecodecs.png_encode(wide), (b"gAMA", struct.pack(">I", 45455)), (b"sBIT", b"\x0c\x0c\x0c")), wide),
        "deep-alpha.png": (imagecodecs.png_encode(np.dstack([wide, grey])), np.dstack([wide, grey])),
        "deep-grey.png": (imagecodecs.png_encode(grey), grey),
        "deep.tif": (encoded(Image.fromarray(grey), "TIFF"), grey),
        "deep-rgb.tif": (imagecodecs.tiff_encode(wide, photometric="rgb") if hasattr(imagecodecs, "tiff_encode") else b"", wide),
        "deep.ppm": (b"P6\n160 128\n65535\n" + wide.astype(">u2").tobytes(), wide),
        "lossless.webp": (encoded(part, "WEBP", lossless=True), rgb),
    }
    for name, (data, expected) in files.items():
        if not data:
            continue
        tried = forms.smallest(data, name, ["pixels-exact"])
        assert tried.stored is not None, (name, tried)
        assert tried.stored.codec == "jxl"
        back = forms.decode("jxl", tried.stored.data)
        assert isinstance(back, Samples)
        np.testing.assert_array_equal(back.planes, expected, err_msg=name)
        assert (back.pixels.dtype, jxl.size(tried.stored.data)) == (expected.dtype, part.size)
        png = samples.to_png(back)
        np.testing.assert_array_equal(imagecodecs.png_decode(png), expected, err_msg=name)
        assert tried.stored.recon_sha256 is not None
        assert samples.png_holds(png, *part.size, tried.stored.recon_sha256, lambda data: hashlib.sha256(data).hexdigest())
        # A stranger's decoder sees the same samples.
        np.testing.assert_array_equal(imagecodecs.jpegxl_decode(tried.stored.data), expected, err_msg=name)
        if name == "rgb.png":
            assert (back.icc, set(back.metadata)) == (profile, {"icc", "exif", "png_chunks"})
            with Image.open(io.BytesIO(png)) as image:
                image.load()
                assert image.info["icc_profile"] == profile
        if name == "deep.png":
            assert b"gAMA" in png
            assert b"sBIT" in (back.png_chunks or b"")


def _transparent(part: Image.Image) -> Image.Image:
    with Image.open(io.BytesIO(encoded(part.quantize(64), "PNG", transparency=5))) as image:
        return image.convert("RGBA")


def test_what_has_no_exact_samples_is_refused(part: Image.Image, forms: Forms) -> None:
    files = {
        "bits.png": (encoded(part.convert("1"), "PNG"), "mode 1"),
        "cmyk.tif": (encoded(part.convert("CMYK"), "TIFF"), "CMYK"),
        "moving.gif": (encoded(part, "GIF", save_all=True, append_images=[part.rotate(90)]), "several frames"),
        "float.tif": (encoded(Image.fromarray(np.zeros((8, 8), np.float32)), "TIFF"), "32 bits"),
        "tailed.png": (encoded(part, "PNG") + b"more", "goes on after the end"),
        "cut.png": (encoded(part, "PNG")[:3000], ""),
        "odd.ppm": (b"P6\n4 4\n1023\n" + bytes(96), "neither 8 nor 16 bits"),
        "text.txt": (b"no image", "no image format"),
        "large.png": (encoded(Image.new("L", (1100, 1000)), "PNG"), "over the limit of 1000000"),
    }
    for name, (data, what) in files.items():
        tried = forms.smallest(data, name, ["pixels-exact"])
        assert tried.stored is None, name
        assert what in tried.refused[0], (name, tried.refused)
    with pytest.raises(NotSampledError, match="2 bits"):
        samples.load(_grey_of_two_bits(), max_pixels=100)


def _grey_of_two_bits() -> bytes:
    header = struct.pack(">IIBBBBB", 4, 1, 2, 0, 0, 0, 0)
    return chunked(b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(k, c) for k, c in ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0\x1b")), (b"IEND", b""))))


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def test_lossy_files_are_not_tried(part: Image.Image) -> None:
    form = PixelsExact()
    assert not any(form.takes(encoded(part, fmt), "x") for fmt in ("JPEG", "WEBP", "AVIF", "JPEG2000"))
    assert form.takes(encoded(part, "WEBP", lossless=True), "x")


# ---- headers, before any decoder ----


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (256, 256), (64, 48), (513, 7), (1920, 1080), (9000, 3), (5, 70_000)])
@pytest.mark.parametrize("container", [False, True])
def test_the_size_in_a_header_is_the_decoders(size: tuple[int, int], container: bool) -> None:
    width, height = size
    data = imagecodecs.jpegxl_encode(np.zeros((height, width), np.uint8), lossless=True, effort=1, usecontainer=container)
    assert jxl.size(data) == size
    deep_data = imagecodecs.jpegxl_encode(np.zeros((height, width), np.uint16), lossless=True, effort=1)
    assert jxl.size(deep_data) == size


def test_hostile_jpeg_xl_is_a_sentence(part: Image.Image, forms: Forms) -> None:
    # A header that says 2^30 x 2^30 pixels, with nothing behind it.
    bits = (0 | 3 << 1 | (2**30 - 1) << 3 | 0 << 33 | 3 << 36 | (2**30 - 1) << 38).to_bytes(20, "little")
    bomb = b"\xff\x0a" + bits
    assert jxl.size(bomb) == (2**30, 2**30)
    with pytest.raises(TooLargeRefusal, match="1073741824 x 1073741824 pixels are over the limit") as caught:
        forms.decode("jxl", bomb)
    assert caught.value.pixels == 2**60
    sound = JpegExact().encode_as("jxl-jpeg", encoded(part, "JPEG")).data
    picture = PixelsExact().encode(encoded(part, "PNG", dpi=(9, 9)), "x.png", BOUNDS).data
    for codec, payload in (
        ("jxl", b""), ("jxl", b"\xff\x0a"), ("jxl", picture[:300]), ("jxl", picture[:-9]), ("jxl", sound[:40]),
        ("jxl-jpeg", picture), ("jxl-jpeg", sound[: len(sound) // 2]), ("jxl-jpeg", b"x" * 100), ("jxl-jpeg", jxl.SIGNATURE + bytes(50)),
        ("lepton", sound), ("zstd", sound), ("unheard of", sound),
        ("jxl", picture + _box(b"msnn", b"\x02later")), ("jxl", picture + _box(b"msnn", b"\x01" + zlib.compress(bytes(200 << 20)))),
        ("jxl", picture + _box(b"msnn", b"\x01" + zlib.compress(b"\x09\xff\xff\xff\xff"))), ("jxl", picture + _box(b"msnn", b"\x01no zlib")),
    ):  # fmt: skip
        with pytest.raises(Refusal):
            forms.decode(codec, payload)
    assert forms.decode("jxl-jpeg", sound) == encoded(part, "JPEG")


def _box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", 8 + len(content)) + kind + content


def test_hostile_lepton_is_a_sentence(part: Image.Image, forms: Forms) -> None:
    lepton_or_skip()
    data = JpegExact().encode_as("lepton", encoded(part, "JPEG")).data
    length = int.from_bytes(data[24:28], "little")
    header = bytearray(zlib.decompress(data[28 : 28 + length]))
    at = header.find(b"\xff\xc0")
    header[at + 5 : at + 9] = b"\xff\xff\xff\xff"
    packed = zlib.compress(bytes(header))
    bomb = data[:24] + len(packed).to_bytes(4, "little") + packed + data[28 + length :]
    with pytest.raises(TooLargeRefusal, match="65535 x 65535"):
        forms.decode("lepton", bomb)
    swollen = data[:20] + b"\xff\xff\xff\xff" + data[24:]
    with pytest.raises(Refusal, match="over the limit of 100,000,000 bytes"):
        forms.decode("lepton", swollen)
    inflated = zlib.compress(b"HDR" + bytes(300 << 20))
    for payload in (b"", data[:20], data[:-200], data[:28] + b"x" * 500, data[:24] + len(inflated).to_bytes(4, "little") + inflated):
        with pytest.raises(Refusal):
            forms.decode("lepton", payload)
    rng = np.random.default_rng(1)
    for _ in range(40):  # damaged anywhere: an error or other bytes, never an end of ours
        broken = bytearray(data)
        broken[int(rng.integers(len(data)))] ^= int(rng.integers(1, 256))
        try:
            forms.decode("lepton", bytes(broken))
        except Refusal:
            continue
    assert forms.decode("lepton", data) == encoded(part, "JPEG")


def test_metadata_travels_in_boxes_that_others_skip() -> None:
    plain = imagecodecs.jpegxl_encode(np.zeros((8, 8), np.uint8), lossless=True, usecontainer=True)
    metadata = {"icc": b"profile", "exif": b"Exif\0\0MM", "xmp": b"<x/>", "jpeg_segments": b"\xff\xfe\0\4ab", "png_chunks": bytes(5000)}
    assert jxl.metadata_of(jxl.with_metadata(plain, metadata)) == metadata
    assert jxl.metadata_of(jxl.with_metadata(plain, {"exif": b"odd"})) == {"exif": b"odd"}
    assert [kind for kind, _ in jxl.boxes(jxl.with_metadata(plain, metadata))][-3:] == [b"Exif", b"xml ", b"msnn"]


# ---- Zstandard, the family ----


def test_a_file_in_zstandard(forms: Forms) -> None:
    for size in (300, 70_000, 300_000):
        data = bytes(range(100)) * (size // 100)
        stored = forms.smallest(data, "scan.tif", ["kept"]).stored
        assert stored is not None
        assert (stored.codec, frame_bytes(stored.data)) == ("zstd", len(data))
        assert forms.decode("zstd", stored.data) == data
        with pytest.raises(Refusal):
            forms.decode("zstd", stored.data[:-3])
        with pytest.raises(Refusal, match="over the limit"):
            Kept().decode("zstd", stored.data, Bounds(max_pixels=1, max_file_bytes=10))
    assert forms.smallest(np.random.default_rng(0).bytes(5000), "x.bin", ["kept"]).stored is None


def test_the_family_is_closed_and_named() -> None:
    assert NAMES == ("msinn", "near", "avif", "jpeg-exact", "pixels-exact", "kept")
    assert [form_named(form.name) for form in EXACT_FORMS] == list(EXACT_FORMS)
    codecs = [codec for form in EXACT_FORMS for codec in form.codecs]
    assert {"msinn", "near", "avif", *codecs} == {*SUFFIXES, "kept"}
    assert [promise_of(codec) for codec in ("msinn", "lepton", "jxl", "zstd", None, "?")] == [
        ("msinn", "no"), ("jpeg-exact", "bytes"), ("pixels-exact", "pixels"), ("kept", "bytes"), (None, None), (None, None),
    ]  # fmt: skip
    assert form_of("msinn") is form_of("avif") is None
    assert decoder_of("msinn") is None
    assert decoder_of("avif") is AVIF
    assert promise_of("avif") == ("avif", "no")


def test_a_missing_library_is_one_sentence(part: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(part, "JPEG")

    def absent() -> Any:
        raise AbsentError("Lepton needs the package lepton-jpeg-python: pip install lepton-jpeg-python")

    from pipeline.forms import jpeg_exact

    monkeypatch.setattr(jpeg_exact, "lepton", absent)
    assert JpegExact().encode(data, "x.jpg", BOUNDS).codec == "jxl-jpeg"
    assert JpegExact().cost(data, "x.jpg", BOUNDS) is not None
    monkeypatch.setattr(jpeg_exact, "imagecodecs", absent)
    with pytest.raises(AbsentError, match="pip install"):
        JpegExact().encode(data, "x.jpg", BOUNDS)
    libraries.lepton.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "lepton_jpeg_python", None)
    with pytest.raises(AbsentError, match="Lepton needs the package lepton-jpeg-python, which cannot be loaded here"):
        libraries.lepton()
    libraries.lepton.cache_clear()
