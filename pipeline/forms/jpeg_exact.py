"""`jpeg-exact`: a JPEG file as a smaller file that gives back the identical bytes.

JPEG XL keeps a JPEG's coefficients in its own entropy coder and is read by any of its decoders; Lepton is a little smaller, takes files that are cut
short or go on after their end, and is read by the `lepton` programs. The smaller of the two is taken, decoded and compared.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from pipeline.formats.segments import jpeg_size
from pipeline.forms import jxl
from pipeline.forms.base import Bounds, Exact, Refusal, Stored
from pipeline.forms.libraries import AbsentError, imagecodecs, jxl_writer, lepton, lepton_writer, missing

LEPTON_MAGIC = b"\xcf\x84"
_LEPTON_HEADER = 28
_MAX_LEPTON_HEADER = 1 << 26


class JpegExact:
    """See the module."""

    name = "jpeg-exact"
    exact = Exact.BYTES
    codecs: tuple[str, ...] = ("jxl-jpeg", "lepton")

    def takes(self, data: bytes, name: str) -> bool:
        """Whether it begins as a JPEG, whatever it is called."""
        return data.startswith(b"\xff\xd8\xff")

    def missing(self) -> list[str]:
        """See `Form.missing`: without Lepton JPEG XL is taken, and the other way round."""
        return missing(lepton, imagecodecs)

    def encode(self, data: bytes, name: str, bounds: Bounds) -> Stored:
        """See `Form.encode`: the smaller of two ways that gives back the bytes."""
        self._allow(data, bounds)
        refused: list[str] = []
        for stored in sorted(self._ways(data, refused), key=lambda stored: len(stored.data)):
            if len(stored.data) >= len(data):
                refused.append("no smaller so")
                break
            try:
                if self.decode(stored.codec, stored.data, bounds) == data:
                    return stored
                refused.append(f"{stored.codec} does not give the same bytes back")
            except Refusal as error:
                refused.append(f"{stored.codec} cannot be read back: {error}")
        raise Refusal("; ".join(refused))

    def _allow(self, data: bytes, bounds: Bounds) -> None:
        found = jpeg_size(data)
        if found is None:
            raise Refusal("a JPEG without a frame")
        bounds.allow(*found)

    def _ways(self, data: bytes, refused: list[str]) -> Iterator[Stored]:
        absent: list[AbsentError] = []
        for codec in self.codecs:
            try:
                yield self.encode_as(codec, data)
            except Refusal as error:
                refused.append(f"{codec}: {error}")
            except AbsentError as error:
                absent.append(error)
        if len(absent) == len(self.codecs):
            raise absent[0]

    def encode_as(self, codec: str, data: bytes) -> Stored:
        """By one way, not compared. Raises `Refusal` or `AbsentError`."""
        if codec == "lepton":
            packed, writer = _guarded(lepton().compress_bytes, data), lepton_writer()
        else:
            packed, writer = _guarded(imagecodecs().jpegxl_encode_jpeg, data, numthreads=1), jxl_writer()
        return Stored(form=self.name, exact=self.exact, codec=codec, data=packed, writer=writer)

    def decode(self, codec: str, payload: bytes, bounds: Bounds) -> bytes:
        """See `Form.decode`: the JPEG file."""
        if codec == "lepton":
            size = lepton_size(payload)
            if lepton_bytes(payload) > bounds.max_file_bytes:
                raise Refusal(f"the file in it is over the limit of {bounds.max_file_bytes:,} bytes")
            bounds.allow(*size)
            found = _guarded(lepton().decompress_bytes, payload)
        else:
            bounds.allow(*jxl.size(payload))
            if not jxl.is_jpeg(payload):
                raise Refusal("the JPEG XL file holds no JPEG")
            found = _guarded(imagecodecs().jpegxl_decode_jpeg, payload, numthreads=1)
        if len(found) > bounds.max_file_bytes:
            raise Refusal(f"the file in it is over the limit of {bounds.max_file_bytes:,} bytes")
        return found

    def cost(self, data: bytes, name: str, bounds: Bounds) -> int | None:
        """See `Form.cost`: Lepton's, which is quick; without it JPEG XL's."""
        try:
            self._allow(data, bounds)
            return min((len(stored.data) for stored in self._ways_quick(data)), default=None)
        except (Refusal, AbsentError):
            return None

    def _ways_quick(self, data: bytes) -> Iterator[Stored]:
        for codec in reversed(self.codecs):
            try:
                yield self.encode_as(codec, data)
                return
            except (Refusal, AbsentError):
                continue


def lepton_bytes(payload: bytes) -> int:
    """Bytes of the JPEG file that a Lepton file says it holds."""
    return int.from_bytes(payload[20:24], "little")


def lepton_size(payload: bytes) -> tuple[int, int]:
    """Width and height in the JPEG header that a Lepton file holds, before its decoder sees it.

    Raises:
        Refusal: There is none.
    """
    length = int.from_bytes(payload[24:28], "little")
    if not payload.startswith(LEPTON_MAGIC) or length > min(len(payload) - _LEPTON_HEADER, _MAX_LEPTON_HEADER):
        raise Refusal("no Lepton file")
    unpacker = zlib.decompressobj()
    try:
        header = unpacker.decompress(payload[_LEPTON_HEADER : _LEPTON_HEADER + length], _MAX_LEPTON_HEADER)
    except zlib.error as error:
        raise Refusal(f"its header is damaged: {error}") from error
    # `HDR`, four bytes of length, the JPEG's bytes up to its samples, without its first two.
    start = header.find(b"HDR")
    found = jpeg_size(header[start + 7 : start + 7 + int.from_bytes(header[start + 3 : start + 7], "little")]) if start == 0 else None
    if found is None:
        raise Refusal("a Lepton file without a JPEG's frame")
    return found


def _guarded(function: object, data: bytes, **options: object) -> bytes:
    """What a library gives; whatever it raises is a refusal, a panic of Rust among it."""
    try:
        return bytes(function(data, **options))  # type: ignore[operator]
    except MemoryError as error:
        raise Refusal("it takes more memory than its size explains") from error
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise Refusal(text[:200]) from error
