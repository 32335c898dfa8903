"""The archive's store: the only user of fsspec for archives, local folders and object stores alike.

Every object appears whole or not at all: local files are written beside their place and linked into it, object stores publish on completion.
`put_if_absent` has one winner among any number of writers.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import uuid
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import DamagedError, LocationError, StorageError
from pipeline.store import errors
from pipeline.store.errors import failed, from_outside, is_transient, retry

Names = list[str]
_ASK_ABOVE = 1 << 20
_PROBE = "capabilities/put-if-absent.json"


class Store:
    """One archive's root, e.g. `/data/archive` or `s3://bucket/archive`. Names are relative, with `/`.

    Args:
        url: Root; created on first write.

    Raises:
        LocationError: No such protocol, or the root is a file.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/") or "/"
        try:
            self.fs, self.root = fsspec.core.url_to_fs(self.url)
        except (ValueError, ImportError) as error:
            raise LocationError(f"cannot open {url}: {error}") from error
        self.local = isinstance(self.fs, LocalFileSystem)
        if self.local:
            # Workers run in other folders; a relative path would name another place there.
            self.root = self.url = os.path.abspath(self.root)
        if self.local and os.path.isfile(self.root):
            raise LocationError(f"{url} is a file; an archive is a folder")

    def __reduce__(self) -> tuple[type[Store], tuple[str]]:
        return Store, (self.url,)

    def path(self, name: str) -> str:
        """Full path of an object, for messages and libraries that open paths."""
        return f"{self.root.rstrip('/')}/{name}"

    def list(self, folder: str) -> Names:
        """Names of the objects under `folder/`, sorted; empty if there are none."""

        def action() -> Names:
            self.fs.invalidate_cache()
            try:
                found = self.fs.find(self.path(folder))
            except FileNotFoundError:
                return []
            prefix = self.path("").rstrip("/") + "/"
            names = [path[path.index(prefix) + len(prefix) :] if prefix in path else path for path in found]
            return sorted(name for name in names if not name.rsplit("/", 1)[-1].startswith(".tmp-"))

        result: Names = retry(action, f"list {self.path(folder)}")
        return result

    def top(self) -> Names:
        """Names directly under the root, files and folders; empty if there is nothing."""

        def action() -> Names:
            self.fs.invalidate_cache()
            try:
                found = self.fs.ls(self.root, detail=False)
            except (FileNotFoundError, NotADirectoryError):
                return []
            names = [path.rstrip("/").rpartition("/")[2] for path in found]
            return sorted(name for name in names if name and not name.startswith(".tmp-"))

        result: Names = retry(action, f"list {self.url}")
        return result

    def ages(self, folder: str) -> dict[str, float]:
        """Names of the objects under `folder/` and when they were written, in seconds since 1970, where the store says it."""

        def action() -> dict[str, float]:
            self.fs.invalidate_cache()
            try:
                found = self.fs.find(self.path(folder), detail=True)
            except FileNotFoundError:
                return {}
            times = {}
            for path, info in found.items():
                value = next((info[key] for key in ("mtime", "LastModified", "last_modified", "updated") if info.get(key) is not None), None)
                with contextlib.suppress(TypeError, ValueError):
                    when = datetime.fromisoformat(value) if isinstance(value, str) else value
                    times[f"{folder}/{path.rpartition('/')[2]}"] = when.timestamp() if isinstance(when, datetime) else float(when)  # type: ignore[arg-type]
            return times

        result: dict[str, float] = retry(action, f"list {self.path(folder)}")
        return result

    def read(self, name: str, *, limit: int | None = None) -> bytes:
        """Whole object. Raises `FileNotFoundError`, or `StorageError`, also for one of more than `limit` bytes."""
        self._check_regular(name)
        # A byte more than the limit is enough to know of what is small; large objects are asked first, and come by several connections.
        asked = limit is not None and (self.local or limit > _ASK_ABOVE)
        end = None if limit is None or asked else limit + 1

        def action() -> bytes:
            if limit is not None and asked and self.fs.size(self.path(name)) > limit:
                raise _too_large(self.path(name), limit)
            try:
                data: bytes = self.fs.cat_file(self.path(name), end=end)
            except Exception as error:
                # Of an empty object no range can be had.
                if end is None or isinstance(error, FileNotFoundError) or not from_outside(error) or self.fs.size(self.path(name)) != 0:
                    raise
                data = b""
            return data

        found: bytes = retry(action, f"read {self.path(name)}")
        if limit is not None and len(found) > limit:
            raise _too_large(self.path(name), limit)
        return found

    def _check_regular(self, name: str) -> None:
        """What somebody put in the place of an object, a pipe or a device, would be read without end. Raises `StorageError`."""
        if self.local:
            mode = os.stat(self.path(name)).st_mode if os.path.exists(self.path(name)) else stat.S_IFREG
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                raise LocationError(f"{self.path(name)} is no regular file")

    def read_range(self, name: str, start: int, length: int) -> bytes:
        """`length` bytes from `start`, transferring no others.

        Raises:
            FileNotFoundError: No such object.
            DamagedError: It is shorter than that.
            StorageError: It cannot be read.
        """
        self._check_regular(name)
        # A range of nothing is one that stores refuse.
        if not length:
            return b""
        try:
            data: bytes = retry(lambda: self.fs.cat_file(self.path(name), start=start, end=start + length), f"read {self.path(name)}")
        except StorageError:
            # A range behind the end is refused by stores as requests that make no sense are.
            if self.local or self.size(name) > start:
                raise
            data = b""
        if len(data) != length:
            there = start + len(data) if data else min(start, self.size(name))
            raise DamagedError(f"{self.path(name)} ends at byte {there}, {start + length - there} bytes too early")
        return data

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        """Open an object for streaming or random reads. Raises `FileNotFoundError` or `StorageError`."""
        self._check_regular(name)
        with retry(lambda: self.fs.open(self.path(name), "rb"), f"open {self.path(name)}") as file:
            yield file

    def exists(self, name: str) -> bool:
        """Whether the object is there now."""
        return bool(retry(lambda: self.fs.exists(self.path(name)), f"look up {self.path(name)}"))

    def size(self, name: str) -> int:
        """Size in bytes. Raises `FileNotFoundError`."""
        return int(retry(lambda: self.fs.size(self.path(name)), f"look up {self.path(name)}"))

    def publish(self, source: Path, name: str) -> None:
        """Make a finished local file visible under a content name, whole or not at all. Doing it twice is harmless.

        Raises:
            StorageError: The store failed or holds another size afterwards.
        """
        if self.local:
            self._place(lambda temporary: _copy(source, temporary), name, replace=True)
        else:
            retry(lambda: self.fs.put_file(str(source), self.path(name)), f"write {self.path(name)}")
            self.fs.invalidate_cache()
            if self.size(name) != source.stat().st_size:
                raise StorageError(f"{self.path(name)} has {self.size(name)} bytes after writing {source.stat().st_size}")

    def publish_bytes(self, data: bytes, name: str, *, mtime: datetime | None = None) -> None:
        """As `publish`, from memory; for content-named objects and restored files. `mtime` is set where files have one of their own."""
        if self.local:

            def write(temporary: Path) -> None:
                temporary.write_bytes(data)
                if mtime is not None:
                    with contextlib.suppress(OSError, OverflowError):  # a time that this file system does not have
                        os.utime(temporary, (mtime.timestamp(), mtime.timestamp()))

            self._place(write, name, replace=True)
        else:
            retry(lambda: self.fs.pipe_file(self.path(name), data), f"write {self.path(name)}")

    def remove(self, name: str) -> None:
        """Delete an object that nothing names; harmless if it is gone. Raises `StorageError`."""
        with contextlib.suppress(FileNotFoundError):
            retry(lambda: self.fs.rm_file(self.path(name)), f"remove {self.path(name)}")
        self.fs.invalidate_cache()

    def put_if_absent(self, name: str, data: bytes) -> bool:
        """Create an object unless it exists; atomic, one winner.

        Returns:
            True if these bytes are now the object's (also when an earlier try of ours had arrived), False if others' are.

        Raises:
            StorageError: The store failed or cannot do this.
        """
        if self.local:
            try:
                self._place(lambda temporary: temporary.write_bytes(data), name, replace=False)
                return True
            except FileExistsError:
                return self.read(name) == data
        for attempt in range(errors.ATTEMPTS):
            try:
                self.fs.pipe_file(self.path(name), data, mode="create")
                return True
            except Exception as error:
                if not from_outside(error) and not isinstance(error, ValueError):
                    raise
                # SeaweedFS and Ceph answer the lost race as EINVAL, AWS as FileExistsError, a lost connection as anything: the object itself tells.
                self.fs.invalidate_cache()
                try:
                    return self.read(name) == data
                except FileNotFoundError:
                    if attempt == errors.ATTEMPTS - 1 or not is_transient(error):
                        raise failed(f"create {self.path(name)}", error) from error
            errors.back_off(attempt)
        raise AssertionError("unreachable")

    def check_put_if_absent(self) -> bool:
        """Whether the store keeps its promise of `put_if_absent`, tested on a small object that stays."""
        first, second = b'{"probe": "put-if-absent"}\n', b'{"probe": "must not replace"}\n'
        try:
            self.put_if_absent(_PROBE, first)
            return not self.put_if_absent(_PROBE, second) and self.read(_PROBE) == first
        except FileNotFoundError as error:
            raise StorageError(f"{self.path(_PROBE)} vanished after it was written: the store is not consistent") from error

    def _place(self, write: Any, name: str, *, replace: bool) -> None:
        target = Path(self.path(name))
        temporary = target.with_name(f".tmp-{uuid.uuid4().hex}")

        def action() -> None:
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
            except FileExistsError as error:
                raise StorageError(f"cannot write {target}: a file is in the place of one of its folders") from error
            try:
                write(temporary)
                with open(temporary, "rb") as file:
                    os.fsync(file.fileno())
                if replace:
                    os.replace(temporary, target)
                else:
                    os.link(temporary, target)
                _sync_folder(target.parent)
            finally:
                temporary.unlink(missing_ok=True)

        try:
            action()
        except FileExistsError:
            raise
        except OSError as error:
            raise failed(f"write {target}", error) from error


def _too_large(path: str, limit: int) -> LocationError:
    return LocationError(f"{path} has more than {limit:,} bytes, which no archive needs there")


def _copy(source: Path, target: Path) -> None:
    with open(source, "rb") as reader, open(target, "wb") as writer:
        while chunk := reader.read(1 << 22):
            writer.write(chunk)


def _sync_folder(folder: Path) -> None:
    # A rename survives a power cut only once its folder is on disk.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def content_name(folder: str, stem: str, data_sha256: str, suffix: str) -> str:
    """`folder/stem-<sha12>.suffix`."""
    return f"{folder}/{stem}-{data_sha256[:12]}.{suffix}"


def file_sha256(path: Path) -> str:
    """Hex digest of a local file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
