"""Calls of the compiled kernels written to a file, with what they were given and what they gave, for `replay.c` to do again on another processor.

Only what a decoder needs, and the writing of streams: the rest of the encoder need not give the same bits everywhere.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest

from msinn_core.entropy import rans
from msinn_core.integer import ops

NORMATIVE = (
    "conv",
    "unit",
    "narrow",
    "gather",
    "corrected",
    "place",
    "levels",
    "dequantise",
    "refine",
    "encode",
    "decode",
    "predicted",
    "decode_predicted",
)
WITH_ISA = {"conv": 15, "unit": 9, "narrow": 4, "gather": 5, "corrected": 6, "levels": 8, "dequantise": 6}
"""Which of their arguments is an instruction set."""


class Recorder:
    """In place of a kernel: does the same and writes it down."""

    def __init__(self, kernel: Any, file: BinaryIO) -> None:
        self._kernel, self._file = kernel, file
        self.seen: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._kernel, name)
        return self._recorded(name, function) if name in NORMATIVE else function

    def _recorded(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            before = [bytes(_little(value)) for value in arguments]
            result, error = None, None
            try:
                result = function(*arguments)
            except ValueError as raised:
                error = raised
            parts = [bytes((len(name),)), name.encode(), bytes((WITH_ISA.get(name, 0), len(arguments)))]
            parts += [_written(value, was) for value, was in zip(arguments, before, strict=True)]
            said = f"ValueError: {error}".encode() if error else b""
            given = result if isinstance(result, bytes) else b""
            self._file.write(b"".join((*parts, bytes((len(said),)), said, struct.pack("<Q", len(given)), given)))
            self.seen.add(name)
            if error:
                raise error
            return result

        return call


def _little(value: Any) -> bytes:
    """An array's bytes, in little-endian order; nothing for a number."""
    if isinstance(value, np.ndarray):
        return np.ascontiguousarray(value, value.dtype.newbyteorder("<")).tobytes()
    return bytes(value) if isinstance(value, bytes | memoryview) else b""


def _written(value: Any, before: bytes) -> bytes:
    """An argument: its kind, and of a buffer what it held before and after."""
    if value is None:
        return b"n"
    if isinstance(value, float):
        return struct.pack("<cd", b"d", value)
    if isinstance(value, int | np.integer):
        return struct.pack("<cq", b"i", int(value))
    after = _little(value)
    size = value.itemsize if isinstance(value, np.ndarray) else 1
    return struct.pack("<cBBQ", b"b", size, after != before, len(before)) + before + (after if after != before else b"")


@contextmanager
def recording(path: Path) -> Iterator[list[Recorder]]:
    """Everything that is computed meanwhile in this process is written to the file."""
    with path.open("wb") as file, pytest.MonkeyPatch.context() as patch:
        recorders = [Recorder(module.kernel, file) for module in (ops, rans)]
        for module, recorder in zip((ops, rans), recorders, strict=True):
            patch.setattr(module, "kernel", recorder)
        yield recorders
