"""What benchmarks share."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from msinn_core.picture import Picture
from pipeline.errors import SourceError
from pipeline.formats import images

Result = TypeVar("Result")

MAX_PIXELS = 200_000_000


def loaded(path: str) -> Picture:
    """The picture in a file. Raises `SourceError` if there is none that can be coded."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror}") from error
    loaded = images.load(data, max_pixels=MAX_PIXELS)
    if loaded.picture is None:
        raise SourceError(f"{path} cannot be coded: {loaded.message}")
    return loaded.picture


def best(action: Callable[[], Result], repeat: int) -> tuple[float, Result]:
    """Least seconds of `repeat` calls, and the last result."""
    seconds = []
    for _ in range(repeat):
        started = time.perf_counter()
        result = action()
        seconds.append(time.perf_counter() - started)
    return min(seconds), result
