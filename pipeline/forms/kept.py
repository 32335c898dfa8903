"""`kept`: the file itself; where it pays, in Zstandard."""

from __future__ import annotations

import pyarrow as pa

from pipeline.forms.base import Bounds, Exact, Refusal, Stored

_LEVEL = 12
_PAYS = 0.97
"""Of the file's size: a frame that saves less is not worth a file that needs a tool to open."""
_COST_LEVEL = 3
MAGIC = b"\x28\xb5\x2f\xfd"


class Kept:
    """See the module. Its file in Zstandard is a frame that says its size, as `zstd -d` reads it."""

    name = "kept"
    exact = Exact.BYTES
    codecs: tuple[str, ...] = ("kept", "zstd")

    def takes(self, data: bytes, name: str) -> bool:
        """Any file."""
        return True

    def missing(self) -> list[str]:
        """See `Form.missing`: Zstandard comes with pyarrow."""
        return []

    def encode(self, data: bytes, name: str, bounds: Bounds) -> Stored:
        """See `Form.encode`: in Zstandard. Raises `Refusal` where that does not pay: the file is stored as it is."""
        packed = _compressed(data, _LEVEL)
        if len(packed) > _PAYS * len(data):
            raise Refusal("hardly smaller so")
        if self.decode("zstd", packed, bounds) != data:
            raise Refusal("zstd does not give the same bytes back")
        return Stored(form=self.name, exact=self.exact, codec="zstd", data=packed, writer=f"Zstandard, pyarrow {pa.__version__}")

    def decode(self, codec: str, payload: bytes, bounds: Bounds) -> bytes:
        """See `Form.decode`: the file."""
        if codec == "kept":
            return payload
        size = frame_bytes(payload)
        if size > bounds.max_file_bytes:
            raise Refusal(f"the file in it has {size:,} bytes, over the limit of {bounds.max_file_bytes:,}")
        try:
            found = bytes(pa.Codec("zstd").decompress(payload, decompressed_size=size, asbytes=True))
        except (pa.ArrowException, OSError, ValueError) as error:
            raise Refusal(f"its Zstandard frame is damaged: {error}"[:200]) from error
        if len(found) != size:
            raise Refusal(f"its Zstandard frame holds {len(found):,} bytes, and says {size:,}")
        return found

    def cost(self, data: bytes, name: str, bounds: Bounds) -> int | None:
        """See `Form.cost`."""
        return min(len(data), len(_compressed(data, _COST_LEVEL)))


def _compressed(data: bytes, level: int) -> bytes:
    return bytes(pa.Codec("zstd", level).compress(data, asbytes=True))


def frame_bytes(payload: bytes) -> int:
    """Bytes that a Zstandard frame says it holds (RFC 8878, 3.1.1.1). Raises `Refusal` for one that does not say."""
    if not payload.startswith(MAGIC) or len(payload) < 6:
        raise Refusal("no Zstandard frame")
    flags = payload[4]
    single, dictionary = bool(flags & 0x20), (0, 1, 2, 4)[flags & 3]
    width = (1 if single else 0, 2, 4, 8)[flags >> 6]
    start = 5 + (0 if single else 1) + dictionary
    if not width or start + width > len(payload):
        raise Refusal("a Zstandard frame that does not say its size")
    return int.from_bytes(payload[start : start + width], "little") + (256 if width == 2 else 0)
