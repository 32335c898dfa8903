"""What every store promises: objects by name, each whole or not there, and one winner for each name that is put if absent."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import IO

from pipeline.errors import DamagedError, LocationError, NotFoundError, StorageError
from pipeline.store import errors

Names = list[str]
"""`list` is a method of stores."""

TEMPORARY = ".tmp-"
"""How the names of files begin that are being written. They are never listed."""

_PROBE = "capabilities/put-if-absent.json"


class Store(ABC):
    """One archive's root, e.g. `/data/archive` or `s3://bucket/archive`; `open_store` makes one. It may travel to other processes.

    Names are relative to the root, with `/`. Whatever fails is a `StorageError`: `NotFoundError`, `OutageError` (it may pass, and has been tried five
    times), `DamagedError`, `LocationError`, or one that says why the store refuses.

    Attributes:
        url: Names the root from any process on any machine that reaches it.
        root: The root as the library behind it writes it.
    """

    url: str
    root: str

    def __reduce__(self) -> tuple[Callable[[str], Store], tuple[str]]:
        return open_store, (self.url,)

    def path(self, name: str) -> str:
        """Full path of an object, for messages and libraries that open paths."""
        return f"{self.root.rstrip('/')}/{name}"

    @abstractmethod
    def list(self, folder: str) -> Names:
        """Names of the objects under `folder/`, however deep, sorted; empty if there are none."""

    @abstractmethod
    def top(self) -> Names:
        """Names directly under the root, files and folders, sorted; empty if there is nothing."""

    @abstractmethod
    def ages(self, folder: str) -> dict[str, float]:
        """Names of the objects under `folder/` and when they were written, in seconds since 1970, where the store says it."""

    @abstractmethod
    def exists(self, name: str) -> bool:
        """Whether the object is there now."""

    @abstractmethod
    def size(self, name: str) -> int:
        """Size in bytes. Raises `NotFoundError`."""

    @abstractmethod
    def read(self, name: str, *, limit: int | None = None) -> bytes:
        """Whole object. Raises `NotFoundError`, and `LocationError` for one of more than `limit` bytes."""

    @abstractmethod
    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        """Open an object for streaming or random reads. What fails later, while it is read, is the library's error: `unreadable` makes it ours.

        Raises:
            NotFoundError: No such object.
        """
        yield from ()

    def read_range(self, name: str, start: int, length: int) -> bytes:
        """`length` bytes from `start`, transferring no others.

        Raises:
            NotFoundError: No such object.
            DamagedError: It is shorter than that.
        """
        # A range of nothing is one that stores refuse.
        data = self._range(name, start, length) if length else b""
        if len(data) != length:
            there = start + len(data) if data else min(start, self.size(name))
            raise DamagedError(f"{self.path(name)} ends at byte {there}, {start + length - there} bytes too early")
        return data

    @abstractmethod
    def _range(self, name: str, start: int, length: int) -> bytes:
        """As `read_range`; less where the object ends earlier."""

    def unreadable(self, what: str, error: BaseException) -> StorageError:
        """Our error for one from outside that came while an object was read; an `OutageError` only if the object may be whole all the same."""
        return errors.failed(what, error)

    @abstractmethod
    def publish(self, source: Path, name: str) -> None:
        """Make a finished local file visible under a content name, whole or not at all. Doing it twice is harmless."""

    @abstractmethod
    def publish_bytes(self, data: bytes, name: str, *, mtime: datetime | None = None) -> None:
        """As `publish`, from memory; for content-named objects and restored files. `mtime` is set where files have one of their own."""

    @abstractmethod
    def put_if_absent(self, name: str, data: bytes) -> bool:
        """Create an object unless it exists; atomic, one winner.

        Returns:
            True if these bytes are now the object's (also when an earlier try of ours had arrived), False if others' are.
        """

    @abstractmethod
    def remove(self, name: str) -> None:
        """Delete an object that nothing names; harmless if it is gone."""

    @abstractmethod
    def read_confined(self, name: str) -> bytes | None:
        """As `read`, for a name that somebody else chose: no link is followed below the root. None if nothing is there.

        Raises:
            OccupiedError: A link, or no regular file, is there.
        """

    @abstractmethod
    def write_confined(self, name: str, data: bytes, mtime: datetime | None = None) -> None:
        """As `publish_bytes`, for a name that somebody else chose: no link is followed below the root.

        Raises:
            OccupiedError: A link, or a file, is in the place of one of its folders.
        """

    @abstractmethod
    def prepare(self) -> None:
        """Make the root where roots have to be made, so that what cannot be written to fails before the work."""

    @abstractmethod
    def unfinished(self) -> dict[str, int]:
        """Names and sizes of what killed writers left half written, which no other method lists."""

    @abstractmethod
    def lies_in(self, other: Store) -> bool:
        """Whether this root is the other's, or lies under it."""

    def check_put_if_absent(self) -> bool:
        """Whether the store keeps its promise of `put_if_absent`, tested on a small object that stays."""
        first, second = b'{"probe": "put-if-absent"}\n', b'{"probe": "must not replace"}\n'
        try:
            self.put_if_absent(_PROBE, first)
            return not self.put_if_absent(_PROBE, second) and self.read(_PROBE) == first
        except NotFoundError as error:
            raise StorageError(f"{self.path(_PROBE)} vanished after it was written: the store is not consistent") from error


def open_store(url: str) -> Store:
    """The store at a folder or URL, e.g. `archive`, `s3://bucket/archive`; its root is made by the first write.

    Raises:
        LocationError: No such protocol, or the root is a file.
    """
    # Here, since both build on this module, and 70 ms of fsspec are no matter of those who only want a type.
    from pipeline.store.local import LocalStore
    from pipeline.store.objects import ObjectStore, local_folder

    folder = local_folder(url)
    return ObjectStore(url) if folder is None else LocalStore(folder)


def too_large(path: str, limit: int) -> LocationError:
    """For an object of more than `limit` bytes."""
    return LocationError(f"{path} has more than {limit:,} bytes, which no archive needs there")


def content_name(folder: str, stem: str, data_sha256: str, suffix: str) -> str:
    """`folder/stem-<sha12>.suffix`, after a hash in hex.

    >>> content_name("shards", "00042", "0123456789abcdef", "tar")
    'shards/00042-0123456789ab.tar'
    """
    return f"{folder}/{stem}-{data_sha256[:12]}.{suffix}"
