"""Archives on object stores, through fsspec: objects appear on completion, and conditional puts have one winner."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import LocationError, NotFoundError, OutageError, StorageError
from pipeline.store import errors
from pipeline.store.base import TEMPORARY, Names, Store, too_large
from pipeline.store.errors import from_outside, kind, refused, retry
from pipeline.store.options import options_of

_ASK_ABOVE = 1 << 20
_TIMES = ("mtime", "LastModified", "last_modified", "updated")


def _opened(url: str) -> tuple[Any, str]:
    try:
        fs, root = fsspec.core.url_to_fs(url, **options_of(url))
    except (ValueError, ImportError, TypeError) as error:
        raise LocationError(f"cannot open {url}: {error}") from error
    return fs, str(root)


def local_folder(url: str) -> str | None:
    """The folder of this machine that a path or a `file://` URL names; None for what lies on an object store.

    Raises:
        LocationError: No such protocol.
    """
    fs, root = _opened(url)
    return root if isinstance(fs, LocalFileSystem) else None


class ObjectStore(Store):
    """An archive's root on anything that fsspec opens.

    Args:
        url: The root, e.g. `s3://bucket/archive`.

    Attributes:
        fs: fsspec's file system.

    Raises:
        LocationError: No such protocol.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.fs, self.root = _opened(self.url)

    def list(self, folder: str) -> Names:
        def action() -> Names:
            prefix = self.path("").rstrip("/") + "/"
            names = [path[path.index(prefix) + len(prefix) :] if prefix in path else path for path in self._found(folder)]
            return sorted(name for name in names if not name.rsplit("/", 1)[-1].startswith(TEMPORARY))

        return retry(action, f"list {self.path(folder)}")

    def top(self) -> Names:
        def action() -> Names:
            self.fs.invalidate_cache()
            try:
                found = self.fs.ls(self.root, detail=False)
            except (FileNotFoundError, NotADirectoryError):
                return []
            names = [path.rstrip("/").rpartition("/")[2] for path in found]
            return sorted(name for name in names if name and not name.startswith(TEMPORARY))

        return retry(action, f"list {self.url}")

    def ages(self, folder: str) -> dict[str, float]:
        def action() -> dict[str, float]:
            times = {}
            for path, info in self._found(folder).items():
                value = next((info[key] for key in _TIMES if info.get(key) is not None), None)
                with contextlib.suppress(TypeError, ValueError):
                    when = datetime.fromisoformat(value) if isinstance(value, str) else value
                    times[f"{folder}/{path.rpartition('/')[2]}"] = when.timestamp() if isinstance(when, datetime) else float(when)  # type: ignore[arg-type]
            return times

        return retry(action, f"list {self.path(folder)}")

    def _found(self, folder: str) -> dict[str, dict[str, Any]]:
        self.fs.invalidate_cache()
        try:
            found: dict[str, dict[str, Any]] = self.fs.find(self.path(folder), detail=True)
        except FileNotFoundError:
            return {}
        return found

    def exists(self, name: str) -> bool:
        return bool(retry(lambda: self.fs.exists(self.path(name)), f"look up {self.path(name)}"))

    def size(self, name: str) -> int:
        return int(retry(lambda: self.fs.size(self.path(name)), f"look up {self.path(name)}"))

    def read(self, name: str, *, limit: int | None = None) -> bytes:
        # A byte more than the limit is enough to know of what is small; large objects are asked first, and come by several connections.
        asked = limit is not None and limit > _ASK_ABOVE
        end = None if limit is None or asked else limit + 1

        def action() -> bytes:
            if limit is not None and asked and self.fs.size(self.path(name)) > limit:
                raise too_large(self.path(name), limit)
            try:
                data: bytes = self.fs.cat_file(self.path(name), end=end)
            except Exception as error:
                # Of an empty object no range can be had.
                if end is None or isinstance(error, FileNotFoundError) or not from_outside(error) or self.fs.size(self.path(name)) != 0:
                    raise
                data = b""
            return data

        found = retry(action, f"read {self.path(name)}")
        if limit is not None and len(found) > limit:
            raise too_large(self.path(name), limit)
        return found

    def _range(self, name: str, start: int, length: int) -> bytes:
        try:
            data: bytes = retry(lambda: self.fs.cat_file(self.path(name), start=start, end=start + length), f"read {self.path(name)}")
            return data
        except NotFoundError:
            raise
        except StorageError:
            # A range behind the end is refused by stores as requests that make no sense are.
            if self.size(name) > start:
                raise
            return b""

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        with retry(lambda: self.fs.open(self.path(name), "rb"), f"open {self.path(name)}") as file:
            yield file

    def publish(self, source: Path, name: str) -> None:
        self._write(lambda: self.fs.put_file(str(source), self.path(name)), name)
        self.fs.invalidate_cache()
        if self.size(name) != source.stat().st_size:
            raise OutageError(f"{self.path(name)} has {self.size(name)} bytes after writing {source.stat().st_size}")

    def publish_bytes(self, data: bytes, name: str, *, mtime: datetime | None = None) -> None:
        self._write(lambda: self.fs.pipe_file(self.path(name), data), name)

    def _write(self, action: Callable[[], object], name: str) -> None:
        retry(action, f"write {self.path(name)}", refused)

    def put_if_absent(self, name: str, data: bytes) -> bool:
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
                except NotFoundError:
                    if attempt == errors.ATTEMPTS - 1 or kind(error) is not OutageError:
                        raise refused(f"create {self.path(name)}", error) from error
            errors.back_off(attempt)
        raise AssertionError("unreachable")

    def remove(self, name: str) -> None:
        with contextlib.suppress(NotFoundError):
            retry(lambda: self.fs.rm_file(self.path(name)), f"remove {self.path(name)}")
        self.fs.invalidate_cache()

    def read_confined(self, name: str) -> bytes | None:
        try:
            return self.read(name)
        except NotFoundError:
            return None

    def write_confined(self, name: str, data: bytes, mtime: datetime | None = None) -> None:
        self.publish_bytes(data, name)

    def prepare(self) -> None:
        """Nothing: prefixes need not be made."""

    def unfinished(self) -> dict[str, int]:
        # Uploads in parts that never ended are no objects; infra/aws/lifecycle.json has the store remove them.
        return {}

    def lies_in(self, other: Store) -> bool:
        return isinstance(other, ObjectStore) and f"{self.url}/".startswith(f"{other.url}/")
