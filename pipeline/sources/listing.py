"""Which files a source has: folders, globs and single files, local or remote; what is left out, and why."""

from __future__ import annotations

import fnmatch
import glob
import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import fsspec
from fsspec.asyn import AsyncFileSystem
from fsspec.spec import AbstractFileSystem
from fsspec.utils import glob_translate

from pipeline.errors import SourceError
from pipeline.sources.record import printable
from pipeline.store.errors import from_outside
from pipeline.store.options import options_of
from pipeline.text import without_secrets


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which files of a source are wanted.

    Attributes:
        include: Globs of relative names or of their last part; empty for all.
        exclude: Likewise, of files to leave out.
        all_files: Also what systems and tools leave behind (`LITTER`).
        follow_links: Also links that lead out of the source.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    all_files: bool = False
    follow_links: bool = False

    def wants(self, *names: str) -> bool:
        """Whether a file is asked for by any of its relative names, litter aside."""
        tried = {*names, *(name.rpartition("/")[2] for name in names)}

        def among(globs: tuple[str, ...]) -> bool:
            return any(fnmatch.fnmatchcase(name, glob) for name in tried for glob in globs)

        return (not self.include or among(self.include)) and not among(self.exclude)


LITTER = frozenset({".git", ".hg", ".svn", "__MACOSX", ".DS_Store", "Thumbs.db", "desktop.ini", "@eaDir", ".Spotlight-V100", ".Trashes"})
"""Names of files, or of folders with all that is in them, that nobody means when they name a folder of images."""


class LeftOut:
    """Applies a selection, and counts what it left out."""

    def __init__(self, selection: Selection) -> None:
        self.selection = selection
        self._counts: Counter[str] = Counter()
        self._examples: dict[str, str] = {}
        self.empty_folders: list[str] = []

    def add(self, why: str, name: str) -> None:
        self._counts[why] += 1
        self._examples.setdefault(why, printable(name))

    def is_litter(self, name: str) -> bool:
        return not self.selection.all_files and not LITTER.isdisjoint(name.split("/"))

    def keeps(self, name: str, *others: str) -> bool:
        if self.is_litter(name):
            self.add("files of systems and tools (.git, .DS_Store and the like; --all-files takes them)", name)
            return False
        if not self.selection.wants(name, *others):
            self.add("files that --include and --exclude do not ask for", name)
            return False
        return True

    def notes(self) -> list[str]:
        said = [f"left out: {count} {why}, for example {self._examples[why]}" for why, count in sorted(self._counts.items())]
        if self.empty_folders:
            shown = ", ".join(printable(folder) for folder in self.empty_folders[:3])
            said.append(f"{len(self.empty_folders)} empty folders are not in an archive of files, for example {shown}")
        return said


File = tuple[str, int, int | None]
"""Path, bytes, modification time in microseconds."""


def list_files(source: str, warnings: list[str], cut: list[str], left_out: LeftOut) -> tuple[Any, str, list[File]]:
    """File system, common root, and every file that is wanted, sorted; beginnings of names that may be there unlisted go to `cut`."""
    try:
        fs, path = fsspec.core.url_to_fs(source, **options_of(source))
    except (ValueError, ImportError, TypeError) as error:
        raise SourceError(f"cannot open {source}: {error}") from error
    named = False
    try:
        if fs.isdir(path):
            _check_readable(fs, path, warnings, left_out)
            listing, root = _found(fs, path), path
        elif fs.isfile(path):
            listing, root, named = {path: fs.info(path)}, os.path.dirname(path), True
        elif glob.has_magic(path):
            root = path[: glob.magic_check.search(path).start()].rpartition("/")[0]  # type: ignore[attr-defined]
            found = _globbed(fs, path, root, warnings, cut).items()
            listing = {name: info for name, info in found if info["type"] == "file" or (info.get("islink") and not os.path.isdir(name))}
        else:
            raise SourceError(f"{source} does not exist")
    except PermissionError as error:
        raise SourceError(f"no permission to list {source}: grant read access or choose another source") from error
    except Exception as error:
        if not from_outside(error):
            raise
        raise SourceError(f"cannot list {source}: {getattr(error, 'strerror', None) or error}") from error
    # A link that leads nowhere is listed, and reported as an image that cannot be read.
    odd = [
        name
        for name, info in listing.items()
        if info.get("type") == "other" and not info.get("islink") and not left_out.is_litter(relative_to(name, root, fs))
    ]
    warnings += [f"{printable(name)} is no regular file (a pipe, socket or device) and is left out" for name in odd]
    listing = {name: info for name, info in listing.items() if info.get("type") != "other" or info.get("islink")}
    if not listing:
        raise SourceError(f"{source} is empty: there is nothing to archive")
    containers = all(bare(name).endswith((".tar", ".parquet")) for name in listing if not left_out.is_litter(relative_to(name, root, fs)))
    files, links = [], []
    for name, info in listing.items():
        relative = relative_to(name, root, fs)
        # Of tars and Parquet files the selection is about their members.
        if not (containers and LITTER.isdisjoint(relative.split("/"))) and not left_out.keeps(relative):
            continue
        file = (fs.unstrip_protocol(name) if fs.protocol[0] != "file" else name, int(info["size"] or 0), modified_us(info))
        if info.get("islink") and not named:
            links.append((relative, file))
        else:
            files.append(file)
    _add_links(files, links, root, warnings, left_out)
    if not files:
        raise SourceError(f"{source} holds no files to archive: {'; '.join([*left_out.notes(), *warnings])}")
    return fs, root, sorted(files)


def _add_links(files: list[File], links: list[tuple[str, File]], root: str, warnings: list[str], left_out: LeftOut) -> None:
    """Add links to files, so that each file is stored once; those that lead nowhere too, to be reported."""
    if not links:
        return
    inside = os.path.realpath(root).rstrip(os.sep) + os.sep
    stored = {os.path.realpath(path) for path, *_ in files}
    for relative, file in sorted(links):
        target = os.path.realpath(file[0])
        if not os.path.exists(target):
            files.append(file)
        elif os.path.isdir(target):
            continue  # told where folders are looked through
        elif not os.path.isfile(target):
            # To open a pipe waits for ever, and a device has no end.
            warnings.append(f"{printable(relative)} is a link to what is no regular file (a pipe, socket or device) and is left out")
        elif target in stored:
            left_out.add("links to files of the source, which are stored once", relative)
        elif target.startswith(inside) or left_out.selection.follow_links:
            files.append(file)
            stored.add(target)
        else:
            warnings.append(
                f"{printable(relative)} is a link that leads out of the source, to {printable(target)}, and is not followed: say --follow-links"
            )


def modified_us(info: dict[str, Any]) -> int | None:
    """Modification time of a listed file, as file systems of many kinds say it."""
    value = next((info[key] for key in ("mtime", "LastModified", "last_modified", "updated", "modified") if info.get(key) is not None), None)
    try:
        if isinstance(value, str):
            value = datetime.fromisoformat(value)
        seconds = value.timestamp() if isinstance(value, datetime) else float(value)  # type: ignore[arg-type]
        return round(seconds * 1e6) if abs(seconds) < 1e11 else None
    except (TypeError, ValueError, OverflowError):
        return None


def _check_readable(fs: Any, path: str, warnings: list[str], left_out: LeftOut) -> None:
    # fsspec's local `find` skips folders it may not read, and links to folders, in silence.
    if "file" in (fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,)):
        for folder, names, inside in os.walk(path, onerror=_raise):
            if not left_out.selection.all_files:
                names[:] = [name for name in names if name not in LITTER]
            if not names and not inside and folder != path:
                left_out.empty_folders.append(os.path.relpath(folder, path))
            links = (os.path.join(folder, name) for name in names if os.path.islink(os.path.join(folder, name)))
            warnings += [f"{printable(link)} is a link to a folder and is not followed: name that folder as a source of its own" for link in links]
            if not os.access(folder, os.R_OK | os.X_OK):
                raise SourceError(f"no permission to list {folder}: grant read access or choose another source")


def _raise(error: OSError) -> None:
    raise error


def _found(fs: Any, path: str) -> dict[str, dict[str, Any]]:
    """Every file below a folder. fsspec's own walk leaves out in silence what it cannot list, and its files would look gone."""
    if not _walks(fs):
        found: dict[str, dict[str, Any]] = fs.find(path, detail=True)
        return found
    found, waiting, seen = {}, [path], {path.rstrip("/"), ""}
    while waiting:
        folder = waiting.pop()
        try:
            listed = fs.ls(folder, detail=True)
        except (FileNotFoundError, NotADirectoryError):
            continue  # gone since its parent was listed
        for info in listed:
            name = info["name"].rstrip("/")
            if info["type"] != "directory":
                found[info["name"]] = info
            elif name not in seen:
                seen.add(name)
                waiting.append(name)
    return found


def _walks(fs: Any) -> bool:
    """Whether a file system lists what is below a folder by fsspec's own walk, and not in one request."""
    return type(fs)._find is AsyncFileSystem._find if isinstance(fs, AsyncFileSystem) else type(fs).find is AbstractFileSystem.find


def _globbed(fs: Any, path: str, root: str, warnings: list[str], cut: list[str]) -> dict[str, dict[str, Any]]:
    """What a glob names. A folder that it looks into and that cannot be listed is told, and its files are not taken for gone: see `_found`."""
    own = type(fs)._glob is AsyncFileSystem._glob if isinstance(fs, AsyncFileSystem) else type(fs).glob is AbstractFileSystem.glob
    if not own or not _walks(fs):
        found: dict[str, dict[str, Any]] = fs.glob(path, detail=True)
        return found
    parts = path[len(root) :].lstrip("/").split("/")
    wanted = re.compile(glob_translate(path))
    found, waiting = {}, [(root or "/", 0)]
    while waiting:
        folder, depth = waiting.pop()
        try:
            listed = fs.ls(folder, detail=True)
        except (FileNotFoundError, NotADirectoryError):
            continue  # gone since its parent was listed
        except OSError as error:
            relative = relative_to(folder, root, fs)
            warnings.append(f"{printable(folder)} cannot be listed ({error.strerror or error}): what the glob would find in it is left out")
            cut.append(f"{relative}/" if relative else "")
            continue
        for info in listed:
            name = info["name"].rstrip("/")
            if info["type"] != "directory":
                if wanted.match(info["name"]):
                    found[info["name"]] = info
            elif name != folder.rstrip("/") and ("**" in parts[: depth + 1] or _fits(name, parts, depth)):
                waiting.append((name, depth + 1))
    return found


def _fits(folder: str, parts: list[str], depth: int) -> bool:
    """Whether a glob goes on below a folder of this depth below its root."""
    return depth + 1 < len(parts) and re.match(glob_translate(parts[depth]), folder.rpartition("/")[2]) is not None


def absolute(source: str) -> str:
    """A source as it is found from any folder: paths of this machine from its root, addresses as they are."""
    return source if "://" in source or "::" in source else os.path.abspath(source)


def would_take(source: str, paths: Iterable[str]) -> bool:
    """Whether a source of this machine is a glob that names one of these paths."""
    if os.path.exists(source) or not glob.has_magic(source):
        return False
    wanted = re.compile(glob_translate(absolute(source)))
    return any(wanted.match(path) for path in paths)


def bare(path: str) -> str:
    """A path without the query that an address may have."""
    return path.partition("?")[0] if "://" in path else path


def relative_to(path: str, root: str, fs: Any) -> str:
    """A file's path below the source's root."""
    stripped: str = without_secrets(fs._strip_protocol(path))
    prefix = root.rstrip("/") + "/"
    return stripped[len(prefix) :] if stripped.startswith(prefix) else stripped.lstrip("/")


def ending(name: str) -> str:
    """What the name ends with after its last dot, in small letters."""
    return name.rpartition(".")[2].lower() if "." in name.rpartition("/")[2] else ""
