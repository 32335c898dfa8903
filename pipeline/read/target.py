"""Where a restore writes: a folder that no name and no link in it leads out of, or a place on an object store."""

from __future__ import annotations

from datetime import datetime

from pipeline.errors import ManifestError, OccupiedError
from pipeline.sources.record import is_safe_name
from pipeline.store.base import open_store


class Target:
    """A place for restored files, under the names that an archive gives them.

    Args:
        url: Folder or URL.
    """

    def __init__(self, url: str) -> None:
        self.store = open_store(url)

    def read(self, name: str) -> bytes | None:
        """A file that is there; None if there is none.

        Raises:
            ManifestError: The name, or a link in its place, leads out of the target; or no regular file is there.
            StorageError: It cannot be read.
        """
        self._check(name)
        try:
            return self.store.read_confined(name)
        except OccupiedError as error:
            raise ManifestError(str(error)) from error

    def write(self, name: str, data: bytes, mtime: datetime | None = None) -> None:
        """Write a file, whole or not at all, and set its time.

        Raises:
            ManifestError: The name, or a link in its place, leads out of the target.
            StorageError: It cannot be written.
        """
        self._check(name)
        try:
            self.store.write_confined(name, data, mtime)
        except OccupiedError as error:
            raise ManifestError(str(error)) from error

    def _check(self, name: str) -> None:
        if not is_safe_name(name):
            raise ManifestError(f"{name!r} would be written outside {self.store.url}: the manifest is not to be trusted")
