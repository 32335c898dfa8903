"""The libraries that forms need, loaded when they are first used. Without one its forms are not offered, and what is stored in them is not read."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from functools import lru_cache
from typing import Any


class AbsentError(Exception):
    """The library that a form needs is not installed: a sentence."""


def _absent(what: str, package: str, error: ImportError) -> AbsentError:
    return AbsentError(f"{what} needs the package {package}, which cannot be loaded here ({error}): pip install {package}")


def missing(*libraries: Callable[[], Any]) -> list[str]:
    """A sentence for each of these that cannot be loaded."""
    sentences = []
    for library in libraries:
        try:
            library()
        except AbsentError as error:
            sentences.append(str(error))
    return sentences


@lru_cache(1)
def imagecodecs() -> Any:
    """JPEG XL by libjxl, and 16-bit PNG and TIFF. Raises `AbsentError`."""
    try:
        import imagecodecs as library
    except ImportError as error:
        raise _absent("JPEG XL", "imagecodecs", error) from error
    return library


@lru_cache(1)
def lepton() -> Any:
    """Lepton. Raises `AbsentError`."""
    try:
        import lepton_jpeg_python as library
    except ImportError as error:
        raise _absent("Lepton", "lepton-jpeg-python", error) from error
    return library


@lru_cache(1)
def jxl_writer() -> str:
    """Library and versions, as the manifest has them."""
    library = imagecodecs()
    return f"{library.jpegxl_version()}, imagecodecs {library.__version__}"


@lru_cache(1)
def lepton_writer() -> str:
    """Library and version, as the manifest has them."""
    lepton()
    return f"lepton-jpeg-python {importlib.metadata.version('lepton-jpeg-python')}"
