"""Segments of JPEG files and chunks of PNG files, one by one."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator

EXTENDED_XMP = b"http://ns.adobe.com/xmp/extension/\0"
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


# JPEG --------------------------------------------------------------------------------------------------------------------------------------------


def jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """`(marker, content)` of every APPn and COM segment, also of those between scans.

    Args:
        data: A JPEG file, or segments one after the other.
    """
    position = 2 if data[:2] == b"\xff\xd8" else 0
    while (match := _MARKER.search(data, position)) is not None:
        marker, at = data[match.start() + 1], match.end()
        if marker in (0x01, 0xD8):
            position = at
            continue
        if marker == 0xD9 or at + 2 > len(data):
            return
        length = int.from_bytes(data[at : at + 2], "big")
        if 0xE0 <= marker <= 0xEF or marker == 0xFE:
            yield marker, data[at + 2 : at + max(length, 2)]
        # After a scan's header come its samples, in which the search finds the next marker.
        position = at + max(length, 2)


def jpeg_metadata_bytes(data: bytes) -> int:
    """Bytes of APPn and COM segments before the first scan of a JPEG file; 0 for other files. Pillow joins them in quadratic time."""
    total, position = 0, 2
    while data[:3] == b"\xff\xd8\xff" and (match := _MARKER.search(data, position)) is not None:
        marker, at = data[match.start() + 1], match.end()
        if marker in (0xD9, 0xDA):
            break
        length = 0 if marker in (0x01, 0xD8) else max(2, int.from_bytes(data[at : at + 2], "big"))
        total += length if 0xE0 <= marker <= 0xEF or marker == 0xFE else 0
        position = at + length
    return total


def jpeg_end(data: bytes) -> int | None:
    """Where the first picture of a JPEG file ends: after its EOI; None if there is none."""
    position = 2
    while (match := _MARKER.search(data, position)) is not None:
        marker, at = data[match.start() + 1], match.end()
        if marker == 0xD9:
            return at
        position = at if marker in (0x01, 0xD8) else at + max(2, int.from_bytes(data[at : at + 2], "big"))
    return None


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of a JPEG file's first picture, or of what is left of its header; None where no frame is found before the samples.

    Where there are several frames the largest counts: a decoder may take any.
    """
    position, found = 2 if data[:2] == b"\xff\xd8" else 0, None
    while (match := _MARKER.search(data, position)) is not None:
        marker, at = data[match.start() + 1], match.end()
        if marker in (0xD9, 0xDA):
            break
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and at + 7 <= len(data):
            height, width = struct.unpack_from(">HH", data, at + 3)
            if found is None or width * height > found[0] * found[1]:
                found = width, height
        position = at if marker in (0x01, 0xD8) else at + max(2, int.from_bytes(data[at : at + 2], "big"))
    return found


def segment_name(marker: int, content: bytes) -> str:
    """`APP13 Photoshop 3.0`, `COM`: what people call a segment."""
    if marker == 0xFE:
        return "COM"
    label = content[:40].split(b"\0")[0]
    text = label.decode("ascii", "replace") if 2 <= len(label) < 40 and all(32 <= byte < 127 for byte in label) else ""
    return f"APP{marker - 0xE0} {text}".strip()


# PNG ---------------------------------------------------------------------------------------------------------------------------------------------


def png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """`(type, content, whole chunk)` of a PNG file, or of chunks one after the other.

    Raises:
        ValueError: A chunk is cut short.
    """
    position = len(PNG_SIGNATURE) if data.startswith(PNG_SIGNATURE) else 0
    while position < len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        end = position + 12 + length
        if end > len(data):
            raise ValueError("a PNG chunk is cut short")
        kind = data[position + 4 : position + 8]
        yield kind, data[position + 8 : end - 4], data[position:end]
        if kind == b"IEND":
            return
        position = end


def png_chunk(kind: bytes, content: bytes) -> bytes:
    """A whole chunk."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
