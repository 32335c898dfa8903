"""What an image file holds beside its pixels, and whether all of it can travel with a coded picture.

JPEG segments and PNG chunks are carried verbatim. Of other formats a few things are carried as the PNG chunks that mean the same (resolution,
comments, TIFF tags as EXIF). A file with more than that is kept as it is: a coded picture has lost nothing but what its rate took.
"""

from __future__ import annotations

import io
import re
import struct
from dataclasses import dataclass, field, replace
from typing import Any

from PIL import Image

from pipeline.formats.segments import EXTENDED_XMP, PNG_SIGNATURE, jpeg_end, jpeg_segments, png_chunk, png_chunks, segment_name

MAX_CARRIED_BYTES = 1 << 20
"""Segments or chunks beyond this are no longer beside the point: the file is kept as it is."""

MAX_ITEMS = 1000

MAX_ICC_BYTES = 1_000_000
"""What readers of PNG inflate of a profile."""

_EXIF, _XMP, _ICC = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0", b"ICC_PROFILE\0"
_SECOND_IMAGES = {b"FLIR\0": "a thermal image (FLIR)", b"MPF\0": "an index of further images (MPF)", b"HDR_RI": "a high dynamic range image"}
_EMBEDDED = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"/9j/", b"iVBORw0KGgo")
"""A JPEG or a PNG, as bytes or in base64."""

_OWN_THUMBNAILS = (_EXIF, b"JFXX\0", b"Photoshop 3.0\0", b"JP\0", _ICC)


@dataclass(frozen=True, kw_only=True)
class Carried:
    """Metadata of one file.

    Attributes:
        icc: ICC profile; `exif` (with its `Exif\\0\\0`) and `xmp` likewise: bytes or None.
        segments: JPEG APPn and COM segments that are not in these three, verbatim, one after the other; or None.
        chunks: PNG chunks that are not in these three, verbatim; or None.
        listed: What there is and its size in bytes, for people: `EXIF`, `APP13 Photoshop 3.0`, `PNG tEXt`.
        dropped: What is left behind although the picture is coded (an encoder's signature, the loop count of a single picture); or None.
        second_image: Why the file holds more than one image, or None.
        uncarried: What could not travel with a coded picture, or None.
    """

    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    segments: bytes | None = None
    chunks: bytes | None = None
    listed: list[tuple[str, int]] = field(default_factory=list)
    dropped: str | None = None
    second_image: str | None = None
    uncarried: str | None = None


def carried(image: Image.Image, data: bytes) -> Carried:
    """Metadata of an opened and loaded file.

    Raises:
        ValueError: The container is damaged (what decoders also raise: see `images.load`).
    """
    info: dict[Any, Any] = image.info
    xmp = info.get("xmp") or info.get("XML:com.adobe.xmp")
    icc, exif = info.get("icc_profile") or None, info.get("exif") or None
    if isinstance(xmp, str):
        xmp = xmp.encode("utf-8", "surrogateescape")
    common = Carried(
        icc=bytes(icc) if icc else None,
        exif=exif if isinstance(exif, bytes) else None,
        xmp=xmp or None,
    )
    reader = {
        "JPEG": _jpeg, "MPO": _jpeg, "PNG": _png, "WEBP": _webp, "GIF": _gif, "TIFF": _tiff, "BMP": _bmp, "DIB": _bmp, "JPEG2000": _jpeg2000,
        "AVIF": _avif, "PPM": _ppm,
    }.get(image.format or "")  # fmt: skip
    found = reader(image, data, common) if reader is not None else common
    named = [(name, len(box)) for name, box in (("EXIF", found.exif), ("ICC", found.icc), ("XMP", found.xmp)) if box]
    size = len(found.segments or b"") + len(found.chunks or b"")
    uncarried = found.uncarried
    if uncarried is None and len(found.icc or b"") > MAX_ICC_BYTES:
        uncarried = f"an ICC profile of {len(found.icc or b'')} bytes, over the limit of {MAX_ICC_BYTES}"
    if uncarried is None and size > MAX_CARRIED_BYTES:
        uncarried = f"{size} bytes of metadata beside EXIF, ICC and XMP, over the limit of {MAX_CARRIED_BYTES}"
    if uncarried is None and len(found.listed) > MAX_ITEMS:
        uncarried = f"{len(found.listed)} pieces of metadata, over the limit of {MAX_ITEMS}"
    return replace(found, listed=named + found.listed[:MAX_ITEMS], uncarried=uncarried)


def picture_end(image: Image.Image, data: bytes) -> int | None:
    """First byte after the picture; None where this is not known.

    Raises:
        ValueError: The container is damaged.
    """
    if image.format in ("JPEG", "MPO"):
        return jpeg_end(data)
    if image.format == "PNG":
        return len(PNG_SIGNATURE) + sum(len(whole) for _, _, whole in png_chunks(data))
    if image.format in ("BMP", "DIB") and data[:2] == b"BM":
        return int.from_bytes(data[2:6], "little") or None
    if image.format == "PPM" and data[:2] in (b"P5", b"P6"):
        return ppm_header(data, 3)[0] + 1 + image.width * image.height * len(image.getbands())
    return None


def _says_nothing(marker: int, content: bytes) -> bool:
    """Headers that only tell a decoder how to read the samples: JFIF without density or thumbnail, Adobe's transform."""
    if marker == 0xE0 and content[:5] == b"JFIF\0":
        return len(content) == 14 and content[7:14] == b"\0\0\x01\0\x01\0\0"
    return marker == 0xEE and content[:5] == b"Adobe" and len(content) == 12


def _jpeg(image: Image.Image, data: bytes, common: Carried) -> Carried:
    segments = list(jpeg_segments(data))
    exif = [content for marker, content in segments if marker == 0xE1 and content.startswith(_EXIF)]
    xmp = [content for marker, content in segments if marker == 0xE1 and content.startswith(_XMP)]
    icc = [content for marker, content in segments if marker == 0xE2 and content.startswith(_ICC)]
    # What the three boxes give back exactly needs no copy.
    represented: list[bytes] = []
    if len(exif) == 1 and exif[0] == common.exif:
        represented += exif
    if len(xmp) == 1 and xmp[0][len(_XMP) :] == common.xmp:
        represented += xmp
    if common.icc is not None and b"".join(content[14:] for content in sorted(icc, key=lambda content: content[12:13])) == common.icc:
        represented += icc
    rest = [(m, content) for m, content in segments if content not in represented and not _says_nothing(m, content)]
    listed: dict[str, int] = {}
    for marker, content in rest:
        name = segment_name(marker, content)
        listed[name] = listed.get(name, 0) + len(content) + 4
    return replace(
        common,
        segments=b"".join(bytes((0xFF, marker)) + struct.pack(">H", len(content) + 2) + content for marker, content in rest) or None,
        listed=list(listed.items()),
        second_image=_second_image(segments),
    )


def _second_image(segments: list[tuple[int, bytes]]) -> str | None:
    """A segment, or a series of them, that holds another picture: thermal planes, depth maps, gain maps, not the thumbnail of this one."""
    series: dict[bytes, list[bytes]] = {}
    for marker, content in segments:
        for start, what in _SECOND_IMAGES.items():
            if content.startswith(start) and (start != b"MPF\0" or _num_images(content) > 1):
                return f"{segment_name(marker, content)} holds {what}"
        if not content.startswith(_OWN_THUMBNAILS):
            # Extended XMP: 35 bytes of name, 32 of a digest, 8 of size and offset.
            start = content[:67] if content.startswith(EXTENDED_XMP) else content[:8]
            series.setdefault(bytes((marker,)) + start, []).append(content[75:] if content.startswith(EXTENDED_XMP) else content)
    for key, parts in series.items():
        if len(parts) > 1 and any(mark in b"".join(parts) for mark in _EMBEDDED):
            return f"{segment_name(key[0], key[1:])} holds another image"
    return None


def _num_images(content: bytes) -> int:
    """Of a multi-picture index: its tag B001; 2 where it cannot be read."""
    order = "<" if content[4:6] == b"II" else ">"
    try:
        (offset,) = struct.unpack_from(order + "I", content, 8)
        (count,) = struct.unpack_from(order + "H", content, 4 + offset)
        for i in range(min(count, 64)):
            tag, _, _, value = struct.unpack_from(order + "HHII", content, 6 + offset + 12 * i)
            if tag == 0xB001:
                return int(value)
    except struct.error:
        pass
    return 2


_PIXELS = {b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS"}
_ANIMATION = {b"acTL", b"fcTL", b"fdAT"}


def _png(image: Image.Image, data: bytes, common: Carried) -> Carried:
    kept, listed, animated = [], [], False
    for kind, content, whole in png_chunks(data):
        if kind in _PIXELS:
            continue
        animated |= kind in _ANIMATION
        is_icc = kind == b"iCCP" and common.icc is not None
        is_exif = kind == b"eXIf" and common.exif is not None and common.exif.removeprefix(_EXIF) == content.removeprefix(_EXIF)
        is_xmp = kind == b"iTXt" and common.xmp is not None and content == b"XML:com.adobe.xmp\0\0\0\0\0" + common.xmp
        if not (is_icc or is_exif or is_xmp):
            kept.append(whole)
            listed.append((f"PNG {kind.decode('latin-1')}", len(whole)))
    if common.exif is not None and not any(kind == b"eXIf" for kind, _, _ in png_chunks(data)):
        common = replace(common, exif=None)  # of a text chunk, which is carried itself
    # Chunks of an animation mean nothing beside a picture that was coded.
    return replace(common, chunks=b"".join(kept) or None, listed=listed, second_image="chunks of an animation" if animated else None)


# Others: few files, each with its few things ---------------------------------------------------------------------------------------------------


def _as_chunks(common: Carried, *chunks: tuple[bytes, bytes]) -> Carried:
    whole = [png_chunk(kind, content) for kind, content in chunks]
    listed = [(f"PNG {kind.decode()}", len(chunk)) for (kind, _), chunk in zip(chunks, whole, strict=True)]
    return replace(common, chunks=b"".join(whole) or None, listed=listed)


def _resolution(image: Image.Image) -> list[tuple[bytes, bytes]]:
    """`pHYs` of a file's dots per inch."""
    try:
        x, y = (round(float(value) / 0.0254) for value in image.info["dpi"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return []
    return [(b"pHYs", struct.pack(">IIB", x, y, 1))] if 0 < x < 2**31 and 0 < y < 2**31 else []


def _comment(text: bytes) -> tuple[bytes, bytes]:
    return b"tEXt", b"Comment\0" + text.replace(b"\0", b" ")


def _webp(image: Image.Image, data: bytes, common: Carried) -> Carried:
    known = {b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ICCP", b"EXIF", b"XMP "}
    position, unknown = 12, []
    while position + 8 <= len(data):
        kind = data[position : position + 4]
        if kind not in known:
            unknown.append(kind.decode("latin-1"))
        position += 8 + int.from_bytes(data[position + 4 : position + 8], "little")
        position += position & 1
    return replace(common, uncarried=f"WebP chunks {', '.join(sorted(set(unknown)))[:100]}" if unknown else None)


def _gif(image: Image.Image, data: bytes, common: Carried) -> Carried:
    found, loops = [], False
    position = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    while position < len(data) and data[position] != 0x3B:
        if data[position] == 0x21:
            label, position = data[position + 1], position + 2
            name = data[position + 1 : position + 12] if label == 0xFF else b""
            loops |= name == b"NETSCAPE2.0"
            if label != 0xF9 and name != b"NETSCAPE2.0":
                found.append({0xFE: "a comment", 0x01: "text"}.get(label, f"extension {name.decode('latin-1')}"))
        elif data[position] == 0x2C and position + 10 < len(data):
            flags = data[position + 9]
            position += 11 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
        else:
            break
        while position < len(data) and data[position]:
            position += 1 + data[position]
        position += 1
    if data[position + 1 :].strip(b"\0"):
        found.append("with data after its end")
    return replace(common, uncarried=f"GIF {', '.join(found)[:100]}" if found else None, dropped="GIF loop count" if loops else None)


_TIFF_STRUCTURE = frozenset(
    (*range(254, 260), 262, 263, 266, 273, 274, 277, 278, 279, 280, 281, 284, 292, 293, 297, 317, 320, *range(322, 326), 332, 338, 339, 347)
) | {512, *range(513, 522), 529, 530, 531, 532, 700, 34675}


def _tiff(image: Image.Image, data: bytes, common: Carried) -> Carried:
    """Tags that describe are carried as an EXIF block, whose first directory has the same tags."""
    tags = getattr(image, "tag_v2", {})
    described = {tag: tags[tag] for tag in tags if tag not in _TIFF_STRUCTURE}
    if not described:
        return common
    what = f"TIFF tags {', '.join(map(str, sorted(described)))[:100]}"
    try:
        block = Image.Exif()
        for tag, value in described.items():
            block[tag] = value
        raw = block.tobytes()
        back = Image.Exif()
        back.load(raw)
        same = len(raw) < 1 << 16 and all(_same(back.get(tag), value) for tag, value in described.items())
    except Exception:  # whatever an odd value does: it cannot be carried
        same = False
    return replace(common, exif=raw) if same else replace(common, uncarried=what)


def _same(a: Any, b: Any) -> bool:
    def plain(value: Any) -> Any:
        if isinstance(value, tuple) and len(value) == 1:
            value = value[0]
        return tuple(map(float, value)) if isinstance(value, tuple) else float(value) if not isinstance(value, str | bytes) else value

    return bool(plain(a) == plain(b))


def _bmp(image: Image.Image, data: bytes, common: Carried) -> Carried:
    size = int.from_bytes(data[14:18], "little")
    # Colour spaces: none, sRGB, Windows' default; anything else is calibrated or has a profile.
    space = data[70:74] if size >= 108 else b"BGRs"
    if space not in (b"BGRs", b" niW", b"\0\0\0\0") or (space == b"\0\0\0\0" and any(data[74:122])):
        return replace(common, uncarried="a BMP's colour profile")
    return _as_chunks(common, *_resolution(image))


_JP2_PLAIN = tuple(number.to_bytes(4, "big") for number in (16, 17, 18))
"""Enumerated colour spaces of JPEG 2000 that say no more than the samples: sRGB, grey, and sRGB as YCC."""


def _jpeg2000(image: Image.Image, data: bytes, common: Carried) -> Carried:
    known = {b"jP  ", b"ftyp", b"jp2h", b"jp2c"}
    found, position, dropped = [], 0, None
    if data[4:8] == b"jP  ":
        while position + 8 <= len(data):
            length, kind = struct.unpack_from(">I4s", data, position)
            if kind not in known:
                found.append(f"box {kind.decode('latin-1')}")
            if kind == b"jp2h":
                header = data[position : position + length]
                if (at := header.find(b"colr")) >= 0 and (header[at + 4 : at + 5] != b"\x01" or header[at + 7 : at + 11] not in _JP2_PLAIN):
                    found.append("a colour profile")
            if length == 1 and position + 16 <= len(data):
                length = int.from_bytes(data[position + 8 : position + 16], "big")
            if length < 8:
                break
            position += length
    comment = image.info.get("comment")
    if isinstance(comment, bytes):
        if comment.startswith((b"Created by OpenJPEG", b"Kakadu-")):
            dropped = "the encoder's signature"
        else:
            found.append("a comment")
    return replace(_as_chunks(common, *_resolution(image)), uncarried=f"JPEG 2000: {', '.join(found)[:100]}" if found else None, dropped=dropped)


def _avif(image: Image.Image, data: bytes, common: Carried) -> Carried:
    kinds = {data[at + 12 : at + 16] for at in (match.start() for match in re.finditer(rb"infe\x02", data[: 1 << 16]))}
    kinds |= {data[match.start() + 12 : match.start() + 16] for match in re.finditer(rb"infe\x03", data[: 1 << 16])}
    odd = {kind for kind in kinds if kind not in (b"av01", b"Exif", b"mime", b"grid")}
    position = 0
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        if length == 1:
            length = int.from_bytes(data[position + 8 : position + 16], "big")
        if kind not in (b"ftyp", b"meta", b"mdat", b"free", b"skip"):
            odd.add(kind)
        position += length if length >= 8 else len(data)
    if b"auxid:2" in data[: 1 << 16] or b"auxiliary:depth" in data[: 1 << 16]:
        return replace(common, second_image="a depth map")
    if b"tmap" in odd:
        return replace(common, second_image="a gain map")
    uncarried = f"AVIF items {', '.join(sorted(kind.decode('latin-1') for kind in odd))[:100]}" if odd else None
    return replace(_as_chunks(common, *_colours(data, common)), uncarried=uncarried)


def _colours(data: bytes, common: Carried) -> list[tuple[bytes, bytes]]:
    """`cICP` of an AVIF whose colours are not sRGB's: primaries and transfer, of the full-range RGB that decoders give. A profile says more."""
    at = data.find(b"colrnclx", 0, 1 << 16)
    if at < 0 or at + 15 > len(data) or common.icc is not None:
        return []
    primaries, transfer = struct.unpack_from(">HH", data, at + 8)
    if (primaries in (1, 2) and transfer in (2, 13)) or primaries > 255 or transfer > 255:
        return []
    return [(b"cICP", bytes((primaries, transfer, 0, 1)))]


def _ppm(image: Image.Image, data: bytes, common: Carried) -> Carried:
    """Comments between the numbers of the header."""
    comments = ppm_header(data, 2 if image.mode == "1" else 3)[1]
    return _as_chunks(common, *map(_comment, filter(None, comments)))


def ppm_header(data: bytes, numbers: int) -> tuple[int, list[bytes]]:
    """Where the header's numbers end, and the comments between them."""
    tokens, position, comments = 0, 2, []
    while tokens < numbers and position < min(len(data), 4096):
        if data[position : position + 1] == b"#":
            end = data.find(b"\n", position)
            comments.append(data[position + 1 : end if end >= 0 else None].strip())
            position = end if end >= 0 else len(data)
        elif data[position : position + 1].isspace():
            position += 1
        else:
            while position < len(data) and not data[position : position + 1].isspace():
                position += 1
            tokens += 1
    return position, comments


# Back into a PNG ---------------------------------------------------------------------------------------------------------------------------------

_BEFORE_PIXELS = {
    b"gAMA",
    b"cHRM",
    b"sRGB",
    b"cICP",
    b"mDCV",
    b"cLLI",
    b"pHYs",
    b"tIME",
    b"tEXt",
    b"zTXt",
    b"iTXt",
    b"oFFs",
    b"pCAL",
    b"sCAL",
    b"sTER",
}

SEGMENTS_CHUNK = b"jpSg"
"""Private chunk of restored pictures: the JPEG segments of the source, verbatim, one after the other."""


def restored_chunks(segments: bytes | None, chunks: bytes | None) -> list[bytes]:
    """Whole PNG chunks that a restored picture takes: all carried chunks that stay true, and what a JPEG's segments say.

    Chunks that describe the source's samples (`sBIT`, `bKGD`, `hIST`, `sPLT`) and unknown ones that are marked as unsafe to copy stay in the archive:
    see `get --metadata`.
    """
    out = []
    for kind, _, whole in png_chunks(chunks or b""):
        safe_unknown = kind[3:4].islower() and kind not in (b"hIST", b"sPLT", b"eXIf", b"iCCP")
        if kind in _BEFORE_PIXELS or safe_unknown:
            out.append(whole)
    present = {kind for kind, _, _ in png_chunks(b"".join(out))}
    for marker, content in jpeg_segments(segments or b""):
        if marker == 0xFE:
            out.append(png_chunk(*_comment(content)))
        elif marker == 0xE0 and content[:5] == b"JFIF\0" and len(content) >= 12 and content[7] in (1, 2) and b"pHYs" not in present:
            x, y = struct.unpack_from(">HH", content, 8)
            scale = 100 if content[7] == 2 else 1 / 0.0254
            if x and y:
                out.append(png_chunk(b"pHYs", struct.pack(">IIB", round(x * scale), round(y * scale), 1)))
                present.add(b"pHYs")
    if segments:
        out.append(png_chunk(SEGMENTS_CHUNK, segments))
    return out


def insert_chunks(png: bytes, chunks: list[bytes]) -> bytes:
    """A PNG with further chunks right after its header."""
    if not chunks:
        return png
    end = len(PNG_SIGNATURE) + 25  # IHDR
    buffer = io.BytesIO()
    buffer.write(png[:end])
    for chunk in chunks:
        buffer.write(chunk)
    buffer.write(png[end:])
    return buffer.getvalue()
