"""Archives in folders of this machine: files are written beside their place, synced, and renamed or linked into it."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import uuid
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import IO

from pipeline.errors import LocationError, NotFoundError, OccupiedError, OutageError, StorageError
from pipeline.store.base import TEMPORARY, Names, Store, too_large
from pipeline.store.errors import T, failed, refused, retry

_COPY_BYTES = 1 << 22
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


class LocalStore(Store):
    """A folder.

    Args:
        folder: Its path; made by the first write.

    Raises:
        LocationError: It is a file.
    """

    def __init__(self, folder: str) -> None:
        # Workers run in other folders; a relative path would name another place there.
        self.root = self.url = os.path.abspath(folder)
        if os.path.isfile(self.root):
            raise LocationError(f"{folder} is a file; an archive is a folder")

    def list(self, folder: str) -> Names:
        return sorted(path[len(self.path("")) :] for path in self._files(folder))

    def top(self) -> Names:
        def action() -> Names:
            try:
                return sorted(name for name in os.listdir(self.root) if not name.startswith(TEMPORARY))
            except (FileNotFoundError, NotADirectoryError):
                return []

        return self._try(action, f"list {self.url}")

    def ages(self, folder: str) -> dict[str, float]:
        times = {}
        for path in self._files(folder):
            with contextlib.suppress(OSError):  # gone meanwhile
                times[path[len(self.path("")) :]] = os.stat(path).st_mtime
        return times

    def _files(self, folder: str, *, temporary: bool = False) -> Names:
        """Paths of everything under `folder/` that is no folder; links are not followed."""

        def action(place: str) -> Names:
            found = []
            try:
                with os.scandir(place) as entries:
                    for entry in entries:
                        if entry.is_dir(follow_symlinks=False):
                            found += action(entry.path)
                        elif entry.name.startswith(TEMPORARY) == temporary:
                            found.append(entry.path)
            except (FileNotFoundError, NotADirectoryError):
                pass
            return found

        return self._try(lambda: action(self.path(folder).rstrip("/") or "/"), f"list {self.path(folder)}")

    def exists(self, name: str) -> bool:
        return os.path.lexists(self.path(name))

    def size(self, name: str) -> int:
        return self._try(lambda: os.stat(self.path(name)).st_size, f"look up {self.path(name)}")

    def read(self, name: str, *, limit: int | None = None) -> bytes:
        def action() -> bytes:
            with self._regular(name) as file:
                if limit is None:
                    return file.read()
                # Python takes the memory that a read asks for before it reads: a limit of gigabytes is not what is asked.
                size = os.fstat(file.fileno()).st_size
                data = file.read(min(size, limit) + 1)
                while len(data) <= limit and len(data) > size and (more := file.read(_COPY_BYTES)):  # it grows, or said no size
                    data += more
            if len(data) > limit:
                raise too_large(self.path(name), limit)
            return data

        return self._try(action, f"read {self.path(name)}")

    def _range(self, name: str, start: int, length: int) -> bytes:
        def action() -> bytes:
            with self._regular(name) as file:
                file.seek(start)
                return file.read(length)

        return self._try(action, f"read {self.path(name)}")

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        with self._try(lambda: self._regular(name), f"open {self.path(name)}") as file:
            yield file

    def _regular(self, name: str) -> IO[bytes]:
        # What somebody put in the place of an object, a pipe or a device, would be read without end.
        mode = os.stat(self.path(name)).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise LocationError(f"{self.path(name)} is no regular file")
        return open(self.path(name), "rb")

    def unreadable(self, what: str, error: BaseException) -> StorageError:
        failure = failed(what, error)
        # A disk that does not read today will not read tomorrow: what is on it is lost, and the rest need not wait.
        return StorageError(str(failure)) if isinstance(failure, OutageError) else failure

    def _try(self, action: Callable[[], T], what: str) -> T:
        return retry(action, what, self.unreadable)

    def publish(self, source: Path, name: str) -> None:
        self._place(lambda temporary: _copy(source, temporary), name)

    def publish_bytes(self, data: bytes, name: str, *, mtime: datetime | None = None) -> None:
        def write(temporary: Path) -> None:
            temporary.write_bytes(data)
            if mtime is not None:
                _set_time(temporary, mtime)

        self._place(write, name)

    def put_if_absent(self, name: str, data: bytes) -> bool:
        try:
            self._place(lambda temporary: temporary.write_bytes(data), name, os.link)
            return True
        except FileExistsError:
            return self.read(name) == data

    def _place(self, write: Callable[[Path], object], name: str, move: Callable[[Path, Path], object] = os.replace) -> None:
        target = Path(self.path(name))
        temporary = target.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
        try:
            self._make_folders(target.parent, name)
            try:
                write(temporary)
                with open(temporary, "rb") as file:
                    os.fsync(file.fileno())
                move(temporary, target)
                # A rename survives a power cut only once its folder is on disk.
                with _descriptor(target.parent) as folder:
                    os.fsync(folder)
            finally:
                temporary.unlink(missing_ok=True)
        except FileExistsError:
            raise
        except OSError as error:
            raise refused(f"write {target}", error) from error

    def _make_folders(self, folder: Path, name: str) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            raise StorageError(f"cannot write {self.path(name)}: a file is in the place of one of its folders") from error

    def remove(self, name: str) -> None:
        with contextlib.suppress(NotFoundError):
            retry(lambda: os.remove(self.path(name)), f"remove {self.path(name)}")

    def read_confined(self, name: str) -> bytes | None:
        try:
            with self._confined(name, create=False) as (folder, base):
                descriptor = os.open(base, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
                with open(descriptor, "rb") as file:
                    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                        raise OccupiedError(f"{self.path(name)} is no regular file and stays as it is: --overwrite replaces it")
                    return file.read()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise self._failure("read", name, error) from error

    def write_confined(self, name: str, data: bytes, mtime: datetime | None = None) -> None:
        temporary = f"{TEMPORARY}{uuid.uuid4().hex}"
        try:
            with self._confined(name, create=True) as (folder, base):
                try:
                    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
                    with open(os.open(temporary, flags, 0o666, dir_fd=folder), "wb") as file:
                        file.write(data)
                        file.flush()
                        if mtime is not None:
                            _set_time(file.fileno(), mtime)
                        os.fsync(file.fileno())
                    os.rename(temporary, base, src_dir_fd=folder, dst_dir_fd=folder)
                except BaseException:
                    with contextlib.suppress(OSError):
                        os.unlink(temporary, dir_fd=folder)
                    raise
                os.fsync(folder)
        except FileExistsError as error:
            raise StorageError(f"cannot write {self.path(name)}: a file is in the place of one of its folders") from error
        except OSError as error:
            raise self._failure("write", name, error) from error

    def _failure(self, what: str, name: str, error: OSError) -> StorageError:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            return OccupiedError(f"{self.path(name)} is, or lies behind, a link or a file in the place of a folder, and is not touched")
        return self.unreadable(f"{what} {self.path(name)}", error)

    @contextlib.contextmanager
    def _confined(self, name: str, *, create: bool) -> Iterator[tuple[int, str]]:
        """Descriptor of a name's folder, reached step by step without following a link, and the name's last part."""
        *folders, base = name.split("/")
        if create:
            os.makedirs(self.root, exist_ok=True)
        descriptor = os.open(self.root, os.O_RDONLY)
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

    def prepare(self) -> None:
        try:
            os.makedirs(self.root, exist_ok=True)
        except OSError as error:
            raise StorageError(f"cannot create {self.root}: {error.strerror}") from error

    def unfinished(self) -> dict[str, int]:
        found = {}
        for path in self._files("", temporary=True):
            with contextlib.suppress(FileNotFoundError):
                found[path[len(self.path("")) :]] = os.stat(path).st_size
        return found

    def lies_in(self, other: Store) -> bool:
        if not isinstance(other, LocalStore):
            return False
        inner, outer = Path(os.path.realpath(self.root)), Path(os.path.realpath(other.root))
        return inner.is_relative_to(outer)


def _copy(source: Path, target: Path) -> None:
    with open(source, "rb") as reader, open(target, "wb") as writer:
        while chunk := reader.read(_COPY_BYTES):
            writer.write(chunk)


def _set_time(file: Path | int, when: datetime) -> None:
    with contextlib.suppress(OSError, OverflowError):  # a time that this file system does not have
        os.utime(file, (when.timestamp(), when.timestamp()))


@contextlib.contextmanager
def _descriptor(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
