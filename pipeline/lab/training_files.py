"""Files of a training run: replaced whole or not at all; models in parts that are small enough to be sent."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from msinn_core.errors import CheckpointError

STATE, MODEL, LOG, CURVE = "checkpoint.safetensors", "model.safetensors", "log.jsonl", "curve.png"


def publish(path: Path, data: bytes) -> None:
    """Replace a file whole or not at all, also across a power cut; what cannot be written whole does not stay."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


_PART = re.compile(r"(?P<stem>.+)-(?P<sha>[0-9a-f]{12})(?P<suffix>\.safetensors)\.(?P<number>\d{3})-of-(?P<count>\d{3})$")


def write_parts(path: Path, data: bytes, part_bytes: int) -> list[Path]:
    """`model.safetensors` as `model-<sha12>.safetensors.000-of-004` and so on; parts of an earlier model go when the new ones are complete."""
    digest = hashlib.sha256(data).hexdigest()[:12]
    count = -(-len(data) // part_bytes)
    parts = [path.with_name(f"{path.stem}-{digest}{path.suffix}.{i:03d}-of-{count:03d}") for i in range(count)]
    for i, part in enumerate(parts):
        publish(part, data[i * part_bytes : (i + 1) * part_bytes])
    for other in path.parent.glob(f"{path.stem}-*{path.suffix}.*-of-*"):
        if _PART.match(other.name) and other not in parts:
            other.unlink()
    return parts


@contextlib.contextmanager
def joined(path: Path) -> Iterator[Path]:
    """The file itself, or its parts joined in a temporary file and checked against the digest in their names."""
    sets: dict[str, list[Path]] = defaultdict(list)
    for part in sorted(path.parent.glob(f"{path.stem}-*{path.suffix}.*-of-*")) if not path.exists() else []:
        if match := _PART.match(part.name):
            sets[match["sha"]].append(part)
    if not sets:
        yield path
        return
    for sha, parts in sets.items():
        data = b"".join(part.read_bytes() for part in parts)
        if hashlib.sha256(data).hexdigest().startswith(sha):
            break
    else:
        raise CheckpointError(f"the parts of {path} are not all there, or damaged: copy them again")
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / path.name
        whole.write_bytes(data)
        yield whole
