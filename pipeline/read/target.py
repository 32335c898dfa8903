"""Where a restore writes: a folder that no name and no link in it leads out of, or a place on an object store."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import uuid
from collections.abc import Iterator
from datetime import datetime

from pipeline.errors import ManifestError, StorageError
from pipeline.sources.record import is_safe_name
from pipeline.store.storage import Store

_FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0)
_BY_DESCRIPTOR = {os.open, os.mkdir, os.unlink, os.rename} <= os.supports_dir_fd


class Target:
    """A place for restored files, under the names that an archive gives them.

    Args:
        url: Folder or URL.
    """

    def __init__(self, url: str) -> None:
        self.store = Store(url)
        self.url, self.local = self.store.url, self.store.local

    def read(self, name: str) -> bytes | None:
        """A file that is there; None if there is none.

        Raises:
            ManifestError: The name, or a link in its place, leads out of the target; or no regular file is there.
            StorageError: It cannot be read.
        """
        self._confine(name)
        if not self.local:
            try:
                return self.store.read(name)
            except FileNotFoundError:
                return None
        try:
            with self._folder(name, create=False) as (folder, base):
                descriptor = os.open(base, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
                with open(descriptor, "rb") as file:
                    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                        raise ManifestError(f"{self.store.path(name)} is no regular file and stays as it is: --overwrite replaces it")
                    return file.read()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise self._failure("read", name, error) from error

    def write(self, name: str, data: bytes, mtime: datetime | None = None) -> None:
        """Write a file, whole or not at all, and set its time.

        Raises:
            ManifestError: The name, or a link in its place, leads out of the target.
            StorageError: It cannot be written.
        """
        self._confine(name)
        if not self.local or not _BY_DESCRIPTOR:
            self.store.publish_bytes(data, name, mtime=mtime)
            return
        temporary = f".tmp-{uuid.uuid4().hex}"
        try:
            with self._folder(name, create=True) as (folder, base):
                try:
                    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666, dir_fd=folder)
                    with open(descriptor, "wb") as file:
                        file.write(data)
                        file.flush()
                        if mtime is not None:
                            with contextlib.suppress(OSError, OverflowError):  # a time that this file system does not have
                                os.utime(descriptor, (mtime.timestamp(), mtime.timestamp()))
                        os.fsync(descriptor)
                    os.rename(temporary, base, src_dir_fd=folder, dst_dir_fd=folder)
                except BaseException:
                    with contextlib.suppress(OSError):
                        os.unlink(temporary, dir_fd=folder)
                    raise
                os.fsync(folder)
        except FileExistsError as error:
            raise StorageError(f"cannot write {self.store.path(name)}: a file is in the place of one of its folders") from error
        except OSError as error:
            raise self._failure("write", name, error) from error

    def _confine(self, name: str) -> None:
        if not is_safe_name(name):
            raise ManifestError(f"{name!r} would be written outside {self.url}: the manifest is not to be trusted")
        if self.local and not _BY_DESCRIPTOR:
            root = os.path.realpath(self.store.root)
            if not os.path.realpath(os.path.join(root, name)).startswith(root.rstrip(os.sep) + os.sep):
                raise ManifestError(f"{name!r} would be written outside {root}: the manifest is not to be trusted")

    def _failure(self, what: str, name: str, error: OSError) -> ManifestError | StorageError:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            return ManifestError(f"{self.store.path(name)} is, or lies behind, a link or a file in the place of a folder, and is not touched")
        failure = StorageError(f"cannot {what} {self.store.path(name)}: {error.strerror or error}")
        failure.transient = error.errno not in (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.EISDIR)
        return failure

    @contextlib.contextmanager
    def _folder(self, name: str, *, create: bool) -> Iterator[tuple[int, str]]:
        """Descriptor of a name's folder, reached step by step without following a link, and the name's last part."""
        *folders, base = name.split("/")
        if create:
            os.makedirs(self.store.root, exist_ok=True)
        descriptor = os.open(self.store.root, os.O_RDONLY)
        try:
            for part in folders:
                if create:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(part, dir_fd=descriptor)
                inner = os.open(part, _FOLDER, dir_fd=descriptor)
                os.close(descriptor)
                descriptor = inner
            yield descriptor, base
        finally:
            os.close(descriptor)
