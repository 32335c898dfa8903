"""In place of safetensors' compiled part, which PyPI has for no big-endian processor: reads, and checks nothing. Only `machine.sh` uses it."""

import json
from typing import Any

__version__ = "0"
TensorSpec = safe_open = _safe_open_handle = serialize = serialize_file = None


class SafetensorError(Exception):
    """What the compiled part raises."""


def deserialize(data: bytes) -> list[tuple[str, dict[str, Any]]]:
    """Each tensor's name, type, shape and bytes, as they are in the file."""
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    return [
        (name, {"dtype": told["dtype"], "shape": told["shape"], "data": data[start + told["data_offsets"][0] : start + told["data_offsets"][1]]})
        for name, told in header.items()
        if name != "__metadata__"
    ]
