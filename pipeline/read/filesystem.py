"""An archive as a folder that any tool opens: fsspec's file system `msinn://`, read-only.

>>> import fsspec
>>> fs = fsspec.filesystem("msinn", fo="archive")  # or fsspec.open("msinn://one.png::s3://bucket/archive")
>>> len(fs.glob("*.png")) == len(fs.ls("", detail=False))
True
>>> fs.info("one.png")["original"]
'one.png'
>>> small = fsspec.filesystem("msinn", fo="archive", scale=4)  # pictures a quarter of their width and height, quickly
>>> 4 * small.info("one.png")["width"] >= fs.info("one.png")["width"] > 0
True
"""

from __future__ import annotations

import contextlib
import errno
import io
from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime
from typing import Any, NoReturn

import fsspec

from msinn_core.errors import CodecError
from msinn_core.reduction import reduced_side
from pipeline.archive.archive import MissingArchiveError
from pipeline.archive.conversion import checked_scale
from pipeline.errors import ManifestError, NotFoundError, UsageError
from pipeline.limits import DEFAULT, Limits
from pipeline.read.files import CACHE_BYTES, Files, PathError, checked_name
from pipeline.store.options import use_options

_LOCAL = (None, "file", "local")


class BrokenFileError(ManifestError, OSError):
    """A file, or a whole archive, is there and is damaged: as those know it too who catch what folders raise."""


class ReadOnlyError(UsageError, OSError):
    """An archive is not written to through its paths."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence)
        self.errno = errno.EROFS


class NoFileError(UsageError, IsADirectoryError):
    """A folder was opened as a file."""


class NoArchiveError(NotFoundError):
    """No archive is there."""

    exit_code = 2


@contextlib.contextmanager
def _as_folders_do() -> Iterator[None]:
    """Errors are `OSError`s too."""
    try:
        yield
    except MissingArchiveError as error:
        raise NoArchiveError(str(error)) from error
    except BrokenFileError:
        raise
    except (ManifestError, CodecError) as error:
        raise BrokenFileError(str(error)) from error


class ArchiveFile(io.BytesIO):
    """A file of an archive, opened to read.

    Attributes:
        path: Its name; `size`: its bytes; `mode`: `rb`.
    """

    mode = "rb"

    def __init__(self, path: str, data: bytes) -> None:
        super().__init__(data)
        self.path = path
        self.size = len(data)

    def writable(self) -> bool:
        return False

    def write(self, data: Any) -> int:
        raise ReadOnlyError(f"{self.path} lies in an archive, which is not written to")

    writelines = write  # type: ignore[assignment]


class MsinnFileSystem(fsspec.AbstractFileSystem):  # type: ignore[misc]
    """Names and bytes are those that `msinn restore` writes; nothing is restored, and only what is opened is read and decoded.

    The bytes of shards are read by blocks of 1 MiB, the last 64 of which are kept, and so are decoded files while they take no more than
    `cache_bytes`: who opens images in the order of the archive asks the store once for some twenty. `cat` of several asks for neighbours together.

    `info` gives beside `name`, `type` and `size` how the size is known, `size_from`: `manifest` (the file comes back as it was), `decoded` (it was
    opened here before), or None with `size` None: only decoding tells, which `size(path)` does. Of images it gives `original` (their name at the
    source), `key`, `form`, `exact`, `stored` (bytes), `width`, `height`, `psnr_db` and `mtime`.

    Args:
        fo: The archive: a folder or URL. In a chain of URLs what stands after `::`.
        target_protocol: Of the archive, in a chain.
        target_options: Settings of the archive's store that its address and the environment do not say: its `storage_options`.
        max_pixels: See `Limits`; so `max_file_bytes`.
        cache_bytes: See above.
        generation: Which one of the archive; the newest if not given.
        scale: 2, 4, 8 or 16: names and bytes are those that `msinn restore --scale` writes: pictures are PNG so many times smaller each way, by the
            first bytes of coded images alone. As a number or its digits, which is how fsspec has settings out of the environment.

    Raises:
        UsageError: Another scale.
        PathError: A name that can be none, or no archive is named (a `ValueError`).
        NotFoundError: No such file, or no archive (a `FileNotFoundError`).
        BrokenFileError: Damage (an `OSError`).
        ReadOnlyError: Whatever would write (an `OSError`, EROFS).
    """

    protocol = "msinn"
    root_marker = ""
    cachable = True

    def __init__(
        self,
        fo: str = "",
        target_protocol: str | None = None,
        target_options: dict[str, Any] | None = None,
        *,
        max_pixels: int = DEFAULT.max_pixels,
        max_file_bytes: int = DEFAULT.max_file_bytes,
        cache_bytes: int = CACHE_BYTES,
        generation: int | None = None,
        scale: int | str = 1,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.archive = _address(fo, target_protocol, target_options or {})
        use_options(self.archive, target_options)
        self._limits = Limits(max_pixels=max_pixels, max_file_bytes=max_file_bytes)
        self._cache_bytes = cache_bytes
        self._generation = generation
        self._scale = _scale(scale)
        self._files: Files | None = None
        self._children: dict[str, list[str]] = {}

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(one) for one in path]
        return checked_name(str(path).removeprefix("msinn://").strip("/"))

    @property
    def files(self) -> Files:
        """The archive's files, listed when they are first needed."""
        if self._files is None:
            with _as_folders_do():
                files = Files(self.archive, self._limits, cache_bytes=self._cache_bytes, generation=self._generation, scale=self._scale)
                self._children = _folders(files)
            self._files = files
        return self._files

    def invalidate_cache(self, path: str | None = None) -> None:
        """Forget the listing: an archive that has grown is read anew."""
        self._files = None

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        name, files = self._strip_protocol(path), self.files
        if name in self._children:
            return {"name": name, "type": "directory", "size": 0}
        size, known = files.size(name)
        found: dict[str, Any] = {"name": name, "type": "file", "size": size, "size_from": known}
        side = files.sidecar(name)
        if side is not None:
            return found | {"original": side.name, "mtime": side.mtime, "stored": side.length}
        row = files.row(name)
        found |= {
            "original": row.name, "key": row.key, "form": row.form, "exact": row.exact, "stored": row.stored_bytes, "width": row.width,
            "height": row.height, "psnr_db": row.psnr_db, "mtime": row.mtime,
        }  # fmt: skip
        if files.is_smaller(name):
            found |= {"exact": "no", "psnr_db": None}
            found |= {side: None if found[side] is None else reduced_side(found[side], self._scale) for side in ("width", "height")}
        return found

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        name, files = self._strip_protocol(path), self.files
        if name not in self._children and name not in files:
            files.row(name)  # says what is wrong
        names = self._children.get(name, [name])
        return [self.info(one) for one in names] if detail else list(names)

    def size(self, path: str) -> int:
        """Bytes of a file; it is decoded if nothing else tells."""
        info = self.info(path)
        return info["size"] if info["size"] is not None else len(self._read(info["name"]))

    def du(self, path: str, total: bool = True, maxdepth: int | None = None, withdirs: bool = False, **kwargs: Any) -> Any:
        """Bytes that files would take when restored: every one of unknown size is decoded."""
        sizes = {name: self.size(name) for name in self.find(path, maxdepth=maxdepth, withdirs=withdirs)}
        return sum(sizes.values()) if total else sizes

    def modified(self, path: str) -> datetime:
        """Time of the source file. Raises `NotFoundError` where it is not known."""
        when = self.info(path).get("mtime")
        if when is None:
            raise NotFoundError(f"the archive does not know when {path} was modified")
        return when  # type: ignore[no-any-return]

    def ukey(self, path: str) -> str:
        """Equal as long as the file is: the hash of what is stored of it."""
        name = self._strip_protocol(path)
        side = self.files.sidecar(name)
        known = (self.files.row(name).payload_sha256 or "") if side is None else side.sha256
        return f"{known}/{self._scale}" if self.files.is_smaller(name) else known

    def cat(self, path: Any, recursive: bool = False, on_error: str = "raise", **kwargs: Any) -> Any:
        """One file's bytes, or those of several by name: neighbours are read in one request."""
        paths = self.expand_path(path, recursive=recursive)
        if len(paths) == 1 and not isinstance(path, list) and paths[0] == self._strip_protocol(path):
            return self._read(paths[0])
        found: dict[str, Any] = {}
        with _as_folders_do():
            for name, data in self.files.read_many(one for one in paths if one not in self._children):
                if isinstance(data, Exception) and on_error == "raise":
                    raise data
                if isinstance(data, bytes) or on_error == "return":
                    found[name] = data
        return found

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> ArchiveFile:
        if mode != "rb":
            raise ReadOnlyError(f"{path} lies in an archive, which is not written to (mode {mode!r}): `msinn compress` makes archives")
        name = self._strip_protocol(path)
        return ArchiveFile(name, self._read(name))

    def _read(self, name: str) -> bytes:
        if name not in self.files and name in self._children:
            raise NoFileError(f"{name or 'the root'} is a folder of {self.archive}")
        with _as_folders_do():
            return self.files.read(name)

    def _refuse(self, *paths: Any, **kwargs: Any) -> NoReturn:
        raise ReadOnlyError(f"{self.archive} is an archive, which is not written to through its paths: `msinn compress` makes archives")

    # Some of these do nothing in fsspec's base, which would look like success.
    mkdir = makedirs = rmdir = touch = rm = rm_file = _rm = cp_file = copy = mv = pipe_file = put_file = put = pipe = _refuse


def _address(fo: str, protocol: str | None, options: dict[str, Any]) -> str:
    """The archive's URL, of what fsspec makes of a chain."""
    if not fo:
        raise PathError("a msinn:// path says no archive: write msinn://NAME::ARCHIVE, as in msinn://photos/a.png::s3://bucket/archive")
    if "fo" in options:
        raise PathError("a msinn:// path has one '::', between the name and the archive; what stands after it is a folder or URL as it is")
    return fo if protocol in _LOCAL or "://" in fo else f"{protocol}://{fo}"


def _scale(said: int | str) -> int:
    """A scale; what is none raises `UsageError`."""
    try:
        return checked_scale(int(said))
    except ValueError as error:
        raise UsageError(f"scale takes 1, 2, 4, 8 or 16: it is {said!r}") from error


def _folders(files: Files) -> dict[str, list[str]]:
    """What lies in each folder, by its name; the root is "". Raises `ManifestError` where a file is a folder too."""
    children: dict[str, set[str]] = defaultdict(set, {"": set()})
    for name in files:
        while name:
            parent = name.rpartition("/")[0]
            known = name in children[parent]
            children[parent].add(name)
            if known:
                break
            name = parent
    for name in children.keys() - {""}:
        if name in files:
            raise ManifestError(f"{files.url}: {name} is a file and a folder too: the manifest is not to be trusted")
    return {name: sorted(found) for name, found in children.items()}
