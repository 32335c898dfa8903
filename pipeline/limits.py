"""What a reader takes at most from an archive that anybody may have made: its own bounds, which no archive can widen."""

from __future__ import annotations

from dataclasses import dataclass

from msinn_core.config import DEFAULT_MAX_PIXELS


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds that the user may move, by `--max-pixels` and `--max-file-bytes`.

    Attributes:
        max_pixels: Of a picture that is decoded: up to 40 bytes of memory each.
        max_file_bytes: Of a payload or sidecar that is read into memory.
    """

    max_pixels: int = DEFAULT_MAX_PIXELS
    max_file_bytes: int = 2 * 1024**3


DEFAULT = Limits()

MAX_RUN_BYTES = 1 << 28
"""Of `run.json` and `MANIFEST.json`: a number and a hash for each shard."""

MAX_COMMIT_BYTES = 1 << 16

MAX_PARQUET_BYTES = 1 << 31
"""Of a Parquet file as stored; `parquet` bounds what it inflates to."""

MAX_MODEL_BYTES = 1 << 30

MAX_SHARDS = 100_000_000
