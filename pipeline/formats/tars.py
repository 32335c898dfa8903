"""Walks the headers of a tar that anybody may have made: forwards only, headers of bounded size, and an end that is one."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from typing import IO

from pipeline.store.errors import from_outside

MAX_HEADER_BYTES = 1 << 20
"""Of a long name or a block of attributes before a member."""

_MAX_CHAIN = 16
_MAX_GLOBAL_ATTRIBUTES = 1000
_MAX_PADDING_BYTES = 1 << 21
_EXTENSIONS = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
# Python's search for a character set in attributes takes quadratic time in a row of digits.
_DIGITS = re.compile(rb"[0-9]{257}")


class TarDamageError(Exception):
    """A tar cannot be read any further."""


class _Info(tarfile.TarInfo):
    def _proc_member(self, tar: _Tar) -> tarfile.TarInfo:  # Python's hook for subclasses, called for every header
        if not 0 <= self.size < 2**62:
            raise TarDamageError(f"a header claims {self.size} bytes")
        if self.type in _EXTENSIONS:
            tar.chain += 1
            if tar.chain > _MAX_CHAIN:
                raise TarDamageError(f"more than {_MAX_CHAIN} headers before one member")
            if self.size > MAX_HEADER_BYTES:
                raise TarDamageError(f"a header of {self.size} bytes")
            if len(tar.pax_headers) > _MAX_GLOBAL_ATTRIBUTES:
                raise TarDamageError(f"more than {_MAX_GLOBAL_ATTRIBUTES} attributes for all members")
            assert tar.fileobj is not None
            here = tar.fileobj.tell()
            if _DIGITS.search(tar.fileobj.read(self.size)):
                raise TarDamageError("a header with a number of more than 256 digits")
            tar.fileobj.seek(here)
        return super()._proc_member(tar)  # type: ignore[misc,no-any-return]

    # Python's readers of the maps of sparse members, which hold as much as a tar says. Whoever reads here leaves such members out, so none is kept.

    def _proc_sparse(self, tar: _Tar) -> tarfile.TarInfo:
        assert tar.fileobj is not None
        _, goes_on, original_size = self._sparse_structs  # type: ignore[attr-defined]
        while goes_on:
            block = tar.fileobj.read(tarfile.BLOCKSIZE)
            if len(block) < tarfile.BLOCKSIZE:
                raise TarDamageError("the map of a sparse member is cut short")
            goes_on = bool(block[504])
        self.sparse = []  # type: ignore[assignment]
        self.offset_data = tar.fileobj.tell()
        tar.offset = self.offset_data + -(-self.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        self.size = original_size
        return self

    def _proc_gnusparse_00(self, member: tarfile.TarInfo, *_: object) -> None:
        member.sparse = []  # type: ignore[assignment]

    _proc_gnusparse_01 = _proc_gnusparse_10 = _proc_gnusparse_00


class _Tar(tarfile.TarFile):
    tarinfo = _Info
    chain = 0


def members(file: IO[bytes], size: int) -> Iterator[tarfile.TarInfo]:
    """Every member of a tar, in order. `file` may be moved between two of them.

    Args:
        file: Can seek; at its start.
        size: Bytes of the file.

    Raises:
        TarDamageError: It ends early, or goes on with what is no header; what came before was sound.
    """
    try:
        tar = _Tar(fileobj=file, mode="r")
        position = -1
        while (info := _next(tar)) is not None:
            if not position < info.offset < tar.offset or not 0 <= info.size < 2**62:
                raise TarDamageError("a header points backwards")
            position = info.offset
            yield info
            # The size of a sparse member is that of the file it stands for, holes included.
            if info.isreg() and not info.issparse() and info.offset_data + info.size > size:
                raise TarDamageError("it is cut short there")
            if tar.offset > size:
                raise TarDamageError(f"a header points to byte {tar.offset} of {size}")
        _check_end(file, tar.offset, size)
    except (TarDamageError, GeneratorExit):
        raise
    except Exception as error:  # whatever a damaged header makes of Python's reader: ValueError, IndexError, RecursionError, MemoryError, ...
        if from_outside(error):
            raise
        raise TarDamageError(str(error) or type(error).__name__) from error


def _next(tar: _Tar) -> tarfile.TarInfo | None:
    tar.chain = 0
    info = tar.next()
    tar.members = []  # type: ignore[attr-defined]  # it would remember a million members
    return info


def _check_end(file: IO[bytes], position: int, size: int) -> None:
    """Python's reader takes any block that is no header for the end, and never looks behind it."""
    file.seek(position)
    rest = file.read(min(_MAX_PADDING_BYTES, max(0, size - position)))
    if rest[: tarfile.BLOCKSIZE].strip(b"\0"):
        raise TarDamageError(f"no header at byte {position}")
    if rest.strip(b"\0") or size - position > _MAX_PADDING_BYTES:
        raise TarDamageError(f"{size - position} more bytes after its end, another tar perhaps: store that as a file of its own")
