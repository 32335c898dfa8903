"""Everything a file holds beside its pixels travels with the coded picture, or the file is kept."""

from __future__ import annotations

import io
import struct
from random import Random

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from msinn_core import bitstream
from msinn_core.codec import Codec
from msinn_core.errors import UnsupportedVersionError
from msinn_core.picture import Picture
from pipeline.formats import images
from pipeline.formats.metadata import MAX_CARRIED_BYTES
from pipeline.formats.outcome import Reason
from pipeline.formats.segments import jpeg_segments, png_chunk, png_chunks
from tests.conftest import encoded


def segment(marker: int, content: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(content) + 2) + content


def with_segments(jpeg: bytes, *segments: bytes) -> bytes:
    return jpeg[:2] + b"".join(segments) + jpeg[2:]


def load(data: bytes, name: str = "x.jpg") -> images.LoadedImage:
    return images.load(data, max_pixels=10_000_000, name=name)


@pytest.fixture(scope="module")
def small(photo: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(photo[:64, :96])


EXIF = b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0" + b"maker note" * 40
XMP = b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta/>"
IPTC = b"Photoshop 3.0\x008BIM\x04\x04\0\0\0\0\0\x0c\x1c\x02\x78\0\x07caption"
EXTENDED = b"http://ns.adobe.com/xmp/extension/\0" + b"0" * 32 + struct.pack(">II", 20, 0)


def assembled(jpeg: bytes, random: Random) -> tuple[bytes, list[bytes]]:
    """A JPEG as a camera or an editor writes it, and the segments that were put in."""
    noise = random.randbytes
    kinds = [
        segment(0xE1, EXIF + noise(random.randrange(2000))),
        segment(0xE1, XMP + noise(random.randrange(200)).replace(b"\0", b"x")),
        segment(0xED, IPTC + noise(random.randrange(3000))),
        segment(0xE1, EXTENDED + noise(random.randrange(4000))),
        segment(0xEC, b"Ducky\0" + noise(11)),
        segment(0xFE, b"a comment " + noise(random.randrange(90))),
        segment(0xE2, b"ICC_PROFILE\0\x01\x01" + noise(500)),
        segment(0xE2, b"MPF\0II*\0\x08\0\0\0\x01\0\x01\xb0\x04\0\x01\0\0\0" + struct.pack("<I", random.choice((1, 2)))),
        segment(0xE1, b"FLIR\0\x01\0\0" + noise(5000)),
        segment(0xEB, b"JP\0\x01\0\0\0\x01" + noise(200)),
        segment(0xE5, noise(random.randrange(1, 100))),
    ]
    chosen = [part for part in kinds if random.random() < 0.5]
    random.shuffle(chosen)
    return with_segments(jpeg, *chosen), chosen


def everything(picture: Picture) -> bytes:
    """All metadata of a picture, for searches."""
    return b"|".join(picture.metadata().values())


def test_segments_of_two_hundred_jpegs_come_back_byte_for_byte(small: Image.Image, codec: Codec) -> None:
    random = Random(12)
    plain = encoded(small, "JPEG", quality=90)
    num_coded = num_kept = num_bytes = 0
    for _ in range(200):
        data, put_in = assembled(plain, random)
        loaded = load(data)
        if loaded.picture is None:
            assert loaded.reason == Reason.SECOND_IMAGE or (loaded.reason == Reason.ANIMATED and any(b"MPF\0" in part for part in put_in))
            num_kept += 1
            continue
        num_coded += 1
        back = everything(loaded.picture)
        for part in put_in:
            content = part[4:]
            body = (
                content[14:]
                if content.startswith(b"ICC")
                else content[len(b"http://ns.adobe.com/xap/1.0/\0") :]
                if content == part[4:] and content.startswith(XMP)
                else content
            )
            assert body in back, content[:30]
            num_bytes += len(content)
    assert num_coded > 50
    assert num_kept > 50
    assert num_bytes > 100_000
    # And through the bitstream itself.
    data = with_segments(plain, segment(0xED, IPTC), segment(0xE1, EXTENDED + b"depth"), segment(0xFE, b"hello"))
    loaded = load(data)
    assert loaded.picture is not None
    stream = codec.encode(loaded.picture, 5.0)
    assert stream[4] == 2
    decoded, _ = codec.decode(stream)
    assert decoded.metadata() == loaded.picture.metadata()
    assert [content for _, content in jpeg_segments(decoded.jpeg_segments or b"")] == [IPTC, EXTENDED + b"depth", b"hello"]


def test_a_second_image_or_too_much_keeps_the_file(small: Image.Image) -> None:
    plain = encoded(small, "JPEG")
    thermal = [segment(0xE1, b"FLIR\0\x01" + bytes((i, 2)) + bytes(60000)) for i in range(3)]
    depth = [segment(0xE1, EXTENDED + b'GDepth:Data="iVBORw0KGgo' + b"A" * 50000), segment(0xE1, EXTENDED + b"A" * 50000)]
    much = [segment(0xE4, b"Vendor\0" + np.random.default_rng(i).bytes(60000)) for i in range(MAX_CARRIED_BYTES // 60000 + 2)]
    assert load(with_segments(plain, *thermal)).reason == Reason.SECOND_IMAGE
    assert load(with_segments(plain, *depth)).reason == Reason.SECOND_IMAGE
    assert load(with_segments(plain, *much)).reason == Reason.UNCARRIED
    assert load(with_segments(plain, *much[:3])).picture is not None
    # The thumbnail of the picture itself is no second image.
    assert load(with_segments(plain, segment(0xE1, EXIF + plain[:3] + bytes(99)))).picture is not None


def test_segments_between_scans_and_after_fill_bytes_are_found(small: Image.Image) -> None:
    progressive = encoded(small, "JPEG", progressive=True)
    scan = [match for match in range(len(progressive) - 1) if progressive[match : match + 2] == b"\xff\xda"][2]
    data = progressive[:scan] + segment(0xFE, b"between scans") + progressive[scan:]
    loaded = load(data)
    assert loaded.picture is not None
    assert loaded.picture.jpeg_segments == segment(0xFE, b"between scans")
    assert ("COM", 17) in loaded.carried.listed


def test_plain_files_cost_no_box(small: Image.Image, codec: Codec) -> None:
    """And stay readable for version 1 readers, to the byte what they were."""
    for fmt in ("JPEG", "PNG", "WEBP"):
        loaded = load(encoded(small, fmt), f"x.{fmt.lower()}")
        assert loaded.picture is not None
        assert loaded.picture.metadata() == {}
        assert codec.encode(loaded.picture, 3.0)[4] == 1


def test_a_version_1_bitstream_has_no_new_sections(small: Image.Image, codec: Codec) -> None:
    loaded = load(with_segments(encoded(small, "JPEG"), segment(0xFE, b"x")))
    assert loaded.picture is not None
    stream = bytearray(codec.encode(loaded.picture, 3.0))
    stream[4] = 1
    import google_crc32c

    end = 36 + 5 * int.from_bytes(stream[34:36], "little") + 4
    stream[end : end + 4] = google_crc32c.value(bytes(stream[:end])).to_bytes(4, "little")
    with pytest.raises(UnsupportedVersionError, match="version 1"):
        bitstream.parse(bytes(stream))


def test_png_chunks_come_back_in_the_restored_png(small: Image.Image) -> None:
    info = PngInfo()
    info.add_text("Author", "me")
    info.add_text("Note", "é", zip=True)
    info.add_itxt("Title", "日本", lang="ja")
    png = encoded(small, "PNG", pnginfo=info, dpi=(300, 300))
    extra = png_chunk(b"gAMA", struct.pack(">I", 45455)) + png_chunk(b"caBX", b"signed") + png_chunk(b"bKGD", bytes(6))
    data = png[:33] + extra + png[33:]
    loaded = load(data, "x.png")
    assert loaded.picture is not None
    before = {kind: content for kind, content, _ in png_chunks(data)}
    carried = {kind: content for kind, content, _ in png_chunks(loaded.picture.png_chunks or b"")}
    assert carried.keys() == {b"gAMA", b"caBX", b"bKGD", b"tEXt", b"zTXt", b"iTXt", b"pHYs"}
    assert all(before[kind] == content for kind, content in carried.items())
    restored = images.to_png(loaded.picture)
    back = {kind: content for kind, content, _ in png_chunks(restored)}
    # What describes the source's samples, or was signed for its bytes, stays in the archive.
    assert carried.keys() - back.keys() == {b"caBX", b"bKGD"}
    opened = Image.open(io.BytesIO(restored))
    opened.load()
    assert (opened.info["Author"], opened.info["Note"], opened.info["gamma"]) == ("me", "é", 0.45455)
    assert opened.info["dpi"] == pytest.approx((300, 300), abs=0.01)


def test_a_restored_jpeg_says_in_png_what_png_can_say(small: Image.Image) -> None:
    loaded = load(encoded(small, "JPEG", dpi=(72, 72), comment=b"hello"))
    assert loaded.picture is not None
    restored = images.to_png(loaded.picture)
    opened = Image.open(io.BytesIO(restored))
    opened.load()
    assert opened.info["Comment"] == "hello"
    assert opened.info["dpi"] == pytest.approx((72, 72), abs=0.02)
    assert [content for kind, content, _ in png_chunks(restored) if kind == b"jpSg"] == [loaded.picture.jpeg_segments]


def test_what_other_formats_say_is_carried_or_keeps_the_file(small: Image.Image) -> None:
    grey = small.convert("L")
    gif = encoded(grey, "GIF")
    webp = encoded(small, "WEBP")
    foreign = webp[:4] + struct.pack("<I", len(webp) - 8 + 12) + webp[8:] + b"ABCD" + struct.pack("<I", 4) + b"data"
    assert load(gif, "x.gif").picture is not None
    assert load(encoded(grey, "GIF", comment=b"hi"), "x.gif").reason == Reason.UNCARRIED
    assert load(foreign, "x.webp").reason in (Reason.UNCARRIED, Reason.BROKEN)
    tiff = load(encoded(small, "TIFF", tiffinfo={270: "a description", 305: "a program", 306: "2020:01:01 00:00:00"}, dpi=(300, 300)), "x.tif")
    assert tiff.picture is not None
    exif = Image.Exif()
    exif.load(tiff.picture.exif or b"")
    assert (exif[270], exif[305], float(exif[282])) == ("a description", "a program", 300.0)
    bmp = load(encoded(small, "BMP", dpi=(300, 300)), "x.bmp")
    assert bmp.picture is not None
    assert bmp.carried.listed == [("PNG pHYs", 21)]
    ppm = b"P6\n# made by hand\n96 64\n255\n" + small.tobytes()
    noted = load(ppm, "x.ppm")
    assert noted.picture is not None
    assert b"Comment\0made by hand" in (noted.picture.png_chunks or b"")
    signed = load(encoded(small, "JPEG2000"), "x.jp2")
    assert signed.picture is not None
    assert signed.carried.dropped == "the encoder's signature"


def test_absurd_sizes_are_a_reason_and_no_number() -> None:
    bmp = bytearray(encoded(Image.new("RGB", (8, 8)), "BMP"))
    bmp[18:22] = (4_294_967_169).to_bytes(4, "little")
    loaded = load(bytes(bmp), "x.bmp")
    assert (loaded.reason, loaded.info.width) == (Reason.PIXEL_LIMIT, None)
    assert "4294967169" in (loaded.message or "")
    tiff = bytearray(encoded(Image.new("RGB", (8, 8)), "TIFF"))
    at = max(tiff.find(struct.pack("<HH", 257, kind)) for kind in (3, 4))
    assert at > 0
    tiff[at : at + 12] = struct.pack("<HHII", 257, 4, 1, 3_036_676_696)
    loaded = load(bytes(tiff), "x.tif")
    assert loaded.reason in (Reason.PIXEL_LIMIT, Reason.BROKEN)
    assert loaded.info.height is None or loaded.info.height < 2**31


def test_a_file_that_goes_on_after_its_picture_is_kept(small: Image.Image) -> None:
    """Also where what follows ends as the picture does."""
    for fmt, name in (("JPEG", "x.jpg"), ("PNG", "x.png"), ("PPM", "x.ppm"), ("BMP", "x.bmp")):
        data = encoded(small, fmt)
        assert load(data, name).picture is not None, fmt
        assert load(data + data, name).reason == Reason.TRAILING, fmt
    gif, avif = encoded(small.convert("L"), "GIF"), encoded(small, "AVIF")
    assert load(gif + b"PK zip", "x.gif").reason == Reason.UNCARRIED
    assert load(avif, "x.avif").picture is not None
    assert load(avif + struct.pack(">I", 16) + b"mpvdmotion..", "x.avif").reason == Reason.UNCARRIED


def test_colours_that_are_not_srgbs_travel(small: Image.Image) -> None:
    """An AVIF says them by numbers, which are a PNG's `cICP`; a JPEG 2000 in an enumerated space that no PNG has is kept."""
    avif = encoded(small, "AVIF")
    at = avif.index(b"colrnclx") + 8
    for primaries, transfer, chunks in ((1, 13, None), (2, 2, None), (12, 13, b"cICP\x0c\x0d\0\x01"), (9, 16, b"cICP\x09\x10\0\x01")):
        loaded = load(avif[:at] + struct.pack(">HH", primaries, transfer) + avif[at + 4 :], "x.avif")
        assert loaded.picture is not None
        found = loaded.picture.png_chunks
        assert (found is None) if chunks is None else (found is not None and chunks in found and chunks in images.to_png(loaded.picture))
    jp2 = encoded(small, "JPEG2000")
    space = jp2.index(b"colr") + 7
    assert jp2[space : space + 4] == struct.pack(">I", 16)
    assert load(jp2, "x.jp2").picture is not None
    assert load(jp2[:space] + struct.pack(">I", 20) + jp2[space + 4 :], "x.jp2").reason == Reason.UNCARRIED
