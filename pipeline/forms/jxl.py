"""JPEG XL files: what their headers say, read before a decoder sees them, and metadata that travels in them byte for byte.

A file is a bare codestream, or a container of boxes (ISO/IEC 18181-2): signature, `ftyp`, the codestream in `jxlc` or parts `jxlp`, and others, which
decoders skip. Ours is `msnn`: a version byte, then in zlib, for each piece of metadata, a kind, a length of four bytes and the piece. EXIF and XMP
lie in boxes of their own where any reader finds them.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.formats.images import MAX_METADATA_BYTES
from pipeline.forms.base import Refusal
from pipeline.forms.jxl_profile import with_profile
from pipeline.forms.libraries import imagecodecs
from pipeline.forms.samples import METADATA

CODESTREAM = b"\xff\x0a"
SIGNATURE = b"\0\0\0\x0cJXL \r\n\x87\n"
_OURS, _VERSION = b"msnn", b"\x01"
ALPHA = "alpha"
_PIECES = (*METADATA, ALPHA)
"""What our box may hold, by number: metadata, and in AVIF members the alpha plane as lossless JPEG XL."""

_EXIF_PREFIX = b"Exif\0\0"
_MAX_BOXES = 100_000
_HEADER_BYTES = 4096
_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))


def is_jxl(data: bytes) -> bool:
    """Whether a file begins as JPEG XL does."""
    return data.startswith((CODESTREAM, SIGNATURE))


def boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """`(type, content)` of the boxes of a container.

    Raises:
        Refusal: One is cut short.
    """
    position = 0
    for _ in range(_MAX_BOXES):
        if position >= len(data):
            return
        header = 8
        length = int.from_bytes(data[position : position + 4], "big")
        kind = data[position + 4 : position + 8]
        if length == 1:
            length, header = int.from_bytes(data[position + 8 : position + 16], "big"), 16
        if length == 0:
            length = len(data) - position
        if length < header or position + length > len(data):
            raise Refusal("a box of the file is cut short")
        yield kind, data[position + header : position + length]
        position += length
    raise Refusal(f"the file has more than {_MAX_BOXES:,} boxes")


def size(data: bytes) -> tuple[int, int]:
    """Width and height, from the header alone.

    Raises:
        Refusal: There is no such header.
    """
    stream = b""
    if data.startswith(CODESTREAM):
        stream = data[:_HEADER_BYTES]
    elif data.startswith(SIGNATURE):
        for kind, content in boxes(data):
            if kind == b"jxlc":
                stream = content[:_HEADER_BYTES]
                break
            if kind == b"jxlp":
                stream += content[4:_HEADER_BYTES]
                if len(stream) >= 16:
                    break
    if not stream.startswith(CODESTREAM) or len(stream) < 3:
        raise Refusal("no JPEG XL file")
    return _size(int.from_bytes(stream[2:18], "little"))


def _size(bits: int) -> tuple[int, int]:
    """The codestream's SizeHeader (ISO/IEC 18181-1, D.2), least bit first; beyond the end of a short file bits are 0."""

    def take(count: int) -> int:
        nonlocal bits
        value = bits & ((1 << count) - 1)
        bits >>= count
        return value

    def side(in_eights: bool) -> int:
        return 8 * (take(5) + 1) if in_eights else take((9, 13, 18, 30)[take(2)]) + 1

    in_eights = bool(take(1))
    height = side(in_eights)
    ratio = take(3)
    if ratio == 0:
        return side(in_eights), height
    numerator, denominator = _RATIOS[ratio - 1]
    return height * numerator // denominator, height


def is_jpeg(data: bytes) -> bool:
    """Whether the file holds what gives a JPEG back to the byte."""
    return data.startswith(SIGNATURE) and any(kind == b"jbrd" for kind, _ in boxes(data))


def encoded(planes: NDArray[np.uint8] | NDArray[np.uint16], metadata: dict[str, bytes], quality: int | None = None, effort: int = 7) -> bytes:
    """A JPEG XL file of samples with metadata.

    Args:
        planes: See `Samples.planes`.
        metadata: By names of `samples.METADATA`.
        quality: 1 to 99, as JPEG's; None or 100: without loss.
        effort: libjxl's.

    Raises:
        AbsentError: There is no library; or what that raises.
    """
    options: dict[str, Any] = {"lossless": True}
    if quality is not None and quality < 100:
        # As `JxlEncoderDistanceFromQuality` of libjxl has it.
        options = {"distance": 0.1 + (100 - quality) * 0.09 if quality >= 30 else 53 / 3000 * quality**2 - 23 / 20 * quality + 25.0}
    made = imagecodecs().jpegxl_encode(np.ascontiguousarray(planes), effort=effort, usecontainer=bool(metadata), numthreads=1, **options)
    return with_metadata(bytes(made), metadata) if metadata else bytes(made)


def for_any_viewer(planes: NDArray[np.uint8] | NDArray[np.uint16], metadata: dict[str, bytes], quality: int | None) -> bytes:
    """As `encoded`, with the colour profile where every viewer looks for it, if there is no loss: what goes through XYB has the colours of sRGB, and
    the profile in our box alone.

    Raises:
        AbsentError: There is no library; or what that raises.
    """
    if "icc" in metadata and quality in (None, 100):
        made = bytes(imagecodecs().jpegxl_encode(np.ascontiguousarray(planes), effort=7, usecontainer=True, numthreads=1, lossless=True))
        try:
            parts = [(kind, with_profile(content, metadata["icc"]) if kind == b"jxlc" else content) for kind, content in boxes(made)]
            found = b"".join(_box(kind, content) for kind, content in parts)
            # A profile that libjxl cannot read is none.
            if any(kind == b"jxlc" for kind, _ in parts) and np.array_equal(
                _squeezed(imagecodecs().jpegxl_decode(found, numthreads=1)), _squeezed(planes)
            ):
                return with_metadata(found, {name: data for name, data in metadata.items() if name != "icc"})
        except (Refusal, ValueError, RuntimeError):
            pass
    return encoded(planes, metadata, quality)


def _squeezed(planes: NDArray[Any]) -> NDArray[Any]:
    """Grey without a channel of its own."""
    return planes[:, :, 0] if planes.ndim == 3 and planes.shape[2] == 1 else planes


def with_metadata(container: bytes, metadata: dict[str, bytes]) -> bytes:
    """A container with further boxes at its end.

    Args:
        container: Of a picture.
        metadata: By names of `samples.METADATA`, and perhaps `ALPHA`.
    """
    rest, out = dict(metadata), container
    if (exif := rest.get("exif", b"")).startswith(_EXIF_PREFIX):
        out += _box(b"Exif", b"\0\0\0\0" + exif.removeprefix(_EXIF_PREFIX))
        del rest["exif"]
    if "xmp" in rest:
        out += _box(b"xml ", rest.pop("xmp"))
    if rest:
        pieces = b"".join(struct.pack("<BI", _PIECES.index(name), len(data)) + data for name, data in rest.items())
        out += _box(_OURS, _VERSION + zlib.compress(pieces, 9))
    return out


def _box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", 8 + len(content)) + kind + content


def metadata_of(data: bytes) -> dict[str, bytes]:
    """What `with_metadata` put into a JPEG XL file.

    Raises:
        Refusal: It is damaged, or more than any of ours.
    """
    found = pieces_of(data) if data.startswith(SIGNATURE) else {}
    if ALPHA in found:
        raise Refusal("its metadata is damaged")
    return found


def pieces_of(data: bytes) -> dict[str, bytes]:
    """What `with_metadata` put into a file of boxes.

    Raises:
        Refusal: It is damaged, or more than any of ours.
    """
    found: dict[str, bytes] = {}
    for kind, content in boxes(data):
        if kind == b"Exif":
            found["exif"] = _EXIF_PREFIX + content[4:]
        elif kind == b"xml ":
            found["xmp"] = content
        elif kind == _OURS:
            found |= _pieces(content)
    if sum(map(len, found.values())) > 2 * MAX_METADATA_BYTES:
        raise Refusal(f"more than {2 * MAX_METADATA_BYTES} bytes of metadata")
    return {name: found[name] for name in _PIECES if name in found}


def _pieces(content: bytes) -> dict[str, bytes]:
    if content[:1] != _VERSION:
        raise Refusal("its metadata is of a later version of msinn: use a newer one")
    unpacker = zlib.decompressobj()
    try:
        data = unpacker.decompress(content[1:], MAX_METADATA_BYTES + 1024)
    except zlib.error as error:
        raise Refusal(f"its metadata is damaged: {error}") from error
    if not unpacker.eof:
        raise Refusal("its metadata is damaged, or more than any of ours")
    found, position = {}, 0
    while position < len(data):
        if position + 5 > len(data):
            raise Refusal("its metadata is cut short")
        number, length = struct.unpack_from("<BI", data, position)
        position += 5 + length
        if number >= len(_PIECES) or position > len(data):
            raise Refusal("its metadata is damaged")
        found[_PIECES[number]] = data[position - length : position]
    return found
