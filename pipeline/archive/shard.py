"""The shard container: a plain USTAR tar that any tool of the next decades opens, written deterministically, read by byte range."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pipeline.errors import ManifestError, StorageError
from pipeline.formats.tars import TarDamageError, members

BLOCK_BYTES = 512
END_BYTES = 2 * BLOCK_BYTES
MAX_MEMBER_BYTES = 8 * 1024**3 - 1
"""USTAR holds eleven octal digits of size."""


def stored_bytes(payload_bytes: int) -> int:
    """Bytes that a member of this size takes in a shard: its header, itself, padding to 512."""
    return BLOCK_BYTES + -(-payload_bytes // BLOCK_BYTES) * BLOCK_BYTES


@dataclass(frozen=True)
class Member:
    """Where a member's payload lies in its shard."""

    name: str
    offset: int
    length: int
    sha256: str


class ShardWriter:
    """Writes one shard: members in the order of `add`, fixed mtime, owner and mode, so that equal members give equal bytes.

    Args:
        path: Local file to write.
    """

    def __init__(self, path: Path) -> None:
        self._file: IO[bytes] = open(path, "wb")  # noqa: SIM115  (closed by `finish`)
        self._digest = hashlib.sha256()
        self._position = 0

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self._position += len(data)

    def add(self, name: str, data: bytes) -> Member:
        """Append one member.

        Raises:
            StorageError: The name is over 100 bytes or the data over 8 GiB: USTAR cannot hold it.
        """
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(data), 0o644
        if len(data) > MAX_MEMBER_BYTES or len(name.encode()) > 100:
            raise StorageError(f"member {name} with {len(data)} bytes does not fit a USTAR archive")
        self._write(info.tobuf(tarfile.USTAR_FORMAT))
        member = Member(name, self._position, len(data), hashlib.sha256(data).hexdigest())
        self._write(data)
        self._write(bytes(-len(data) % BLOCK_BYTES))
        return member

    def finish(self) -> tuple[str, int]:
        """End the archive and close the file; returns its SHA-256 and size in bytes."""
        self._write(bytes(END_BYTES))
        self._file.close()
        return self._digest.hexdigest(), self._position

    def abandon(self) -> None:
        """Close without finishing."""
        self._file.close()


def verify_members(path: Path, members: list[Member]) -> None:
    """Read a finished local shard back with Python's own tar reader and compare every member.

    Raises:
        ManifestError: Something on disk is not what was written.
    """
    expected = {member.name: member for member in members}
    seen = 0
    with open(path, "rb") as file:
        for name, offset, data in iterate(file):
            member = expected.get(name)
            if member is None or (offset, len(data)) != (member.offset, member.length) or hashlib.sha256(data).hexdigest() != member.sha256:
                raise ManifestError(f"{path}: member {name} is not what was written; the local disk is not to be trusted")
            seen += 1
    if seen != len(members):
        raise ManifestError(f"{path} holds {seen} members after {len(members)} were written")


def iterate(file: IO[bytes]) -> Iterator[tuple[str, int, bytes]]:
    """`(name, offset, data)` of every regular file of a tar stream that can seek.

    Raises:
        ManifestError: Not a tar, or cut short.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    try:
        for info in members(file, size):
            if info.isreg():
                file.seek(info.offset_data)
                data = file.read(info.size) if info.offset_data + info.size <= size else b""
                if len(data) != info.size:
                    raise ManifestError(f"member {info.name} is cut short")
                yield info.name, info.offset_data, data
    except TarDamageError as error:
        raise ManifestError(f"not a readable tar archive: {error}") from error


def iterate_damaged(file: IO[bytes], *, max_bytes: int = MAX_MEMBER_BYTES) -> Iterator[tuple[str, int, bytes]]:
    """As `iterate`, of whatever can be read: after a damaged header it goes on at the next block that is one. Every byte is read once at most.

    Args:
        file: Can seek.
        max_bytes: Of a member; a header that claims more is not believed.
    """
    size = file.seek(0, os.SEEK_END)
    position = 0
    while position + BLOCK_BYTES <= size:
        file.seek(position)
        block = file.read(BLOCK_BYTES)
        position += BLOCK_BYTES
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except (tarfile.HeaderError, ValueError):
            continue
        if info.isreg() and 0 <= info.size <= min(size - position, max_bytes):
            yield info.name, position, file.read(info.size)
            position += -(-info.size // BLOCK_BYTES) * BLOCK_BYTES


def iterate_bytes(data: bytes) -> Iterator[tuple[str, int, bytes]]:
    """As `iterate`, over a shard in memory."""
    return iterate(io.BytesIO(data))
