"""The codecs we are measured against, each behind the same two calls, with its version; what is not installed is said, not skipped."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, features

Pixels = NDArray[np.uint8]

_DISTANCES = (10, 6, 3.5, 2, 1.2, 0.7, 0.4, 0.2, 0.1)
"""Of JPEG XL, in its own unit: 1 is where differences begin to be seen."""


class Peer(Protocol):
    """An image codec that takes a quality setting."""

    @property
    def name(self) -> str:
        """As tables show it."""

    @property
    def version(self) -> str:
        """Of the library or tool, with the options that matter."""

    @property
    def suffix(self) -> str:
        """Of its files."""

    @property
    def settings(self) -> tuple[float, ...]:
        """From poor to good."""

    def encode(self, pixels: Pixels, setting: float) -> bytes:
        """A file of uint8 `[H, W, 3]` pixels."""

    def decode(self, data: bytes) -> Pixels:
        """Its pixels."""


@dataclass(frozen=True)
class _PillowPeer:
    name: str
    version: str
    suffix: str
    settings: tuple[float, ...]
    format: str
    options: dict[str, Any]

    def encode(self, pixels: Pixels, setting: float) -> bytes:
        buffer = io.BytesIO()
        options = dict(self.options)
        if self.format == "JPEG":
            # What each half of the range is best at, in RGB PSNR.
            options["subsampling"] = "4:4:4" if setting >= 85 else "4:2:0"
        Image.fromarray(pixels).save(buffer, self.format, quality=int(setting), **options)
        return buffer.getvalue()

    def decode(self, data: bytes) -> Pixels:
        with Image.open(io.BytesIO(data)) as image:
            return np.array(image.convert("RGB"))


@dataclass(frozen=True)
class _Cjxl:
    """`cjxl` and `djxl`, by distance. Their times include starting a process and a PNG in and out."""

    name: str
    version: str
    suffix: str
    settings: tuple[float, ...]

    def encode(self, pixels: Pixels, setting: float) -> bytes:
        return _through(["cjxl", "IN", "OUT", "-d", f"{setting:g}", "-e", "7", "--num_threads=0", "--quiet"], ".png", ".jxl", _png(pixels))

    def decode(self, data: bytes) -> Pixels:
        with Image.open(io.BytesIO(_through(["djxl", "IN", "OUT", "--num_threads=0", "--quiet"], ".jxl", ".png", data))) as image:
            return np.array(image.convert("RGB"))


@dataclass(frozen=True)
class _Libjxl:
    """libjxl in this process, by distance: what `cjxl` of the same version does, without starting it."""

    name: str
    version: str
    suffix: str
    settings: tuple[float, ...]

    def encode(self, pixels: Pixels, setting: float) -> bytes:
        import imagecodecs

        return bytes(imagecodecs.jpegxl_encode(pixels, distance=setting, effort=7, numthreads=1))

    def decode(self, data: bytes) -> Pixels:
        import imagecodecs

        return np.asarray(imagecodecs.jpegxl_decode(data, numthreads=1))


def _png(pixels: Pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _through(command: list[str], suffix_in: str, suffix_out: str, data: bytes) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        paths = {"IN": Path(folder) / f"in{suffix_in}", "OUT": Path(folder) / f"out{suffix_out}"}
        paths["IN"].write_bytes(data)
        subprocess.run([str(paths.get(word, word)) for word in command], check=True, capture_output=True, timeout=600)
        return paths["OUT"].read_bytes()


def available() -> tuple[dict[str, Peer], dict[str, str]]:
    """Peers by short name, and for those that are not here, why and how to get them."""
    peers: dict[str, Peer] = {}
    absent: dict[str, str] = {}
    kind = next((kind for kind in ("mozjpeg", "libjpeg_turbo") if features.check_feature(kind)), None)
    jpeg = f"{kind} {features.version_feature('libjpeg_turbo') or ''}" if kind else f"libjpeg {features.version_codec('jpg')}"
    pillow = f"Pillow {version_of('pillow')}"
    peers["jpeg"] = _PillowPeer(
        "JPEG", f"{jpeg} ({pillow}), optimised, progressive", ".jpg",
        (10, 20, 35, 50, 70, 84, 90, 95, 98), "JPEG", {"optimize": True, "progressive": True},
    )  # fmt: skip
    avif = {"subsampling": "4:4:4", "max_threads": 1}
    avif_settings = (20, 35, 50, 60, 70, 80, 87, 92, 96, 99)
    for key, name, settings, options, detail in (
        ("webp", "WebP", (1, 10, 30, 50, 70, 85, 95, 100), {"method": 6}, "method 6"),
        ("avif", "AVIF", avif_settings, {"speed": 4, **avif}, "speed 4, 4:4:4"),
        ("avif-6", "AVIF speed 6", avif_settings, {"speed": 6, **avif}, "speed 6, 4:4:4"),
    ):
        module, form = key.partition("-")[0], name.partition(" ")[0].upper()
        if features.check_module(module):
            version = features.version_module(module)
            peers[key] = _PillowPeer(name, f"{version} ({pillow}), {detail}", f".{module}", settings, form, options)
        else:
            absent[key] = f"this Pillow is built without {form}: install Pillow's own wheel"
    if (cjxl := shutil.which("cjxl")) and shutil.which("djxl"):
        said = subprocess.run([cjxl, "--version"], capture_output=True, text=True, timeout=60).stdout
        version = match[0] if (match := re.search(r"v[\d.]+", said)) else "unknown"
        peers["jxl"] = _Cjxl("JPEG XL", f"cjxl {version}, effort 7", ".jxl", _DISTANCES)
    else:
        try:
            import imagecodecs

            version = f"{imagecodecs.jpegxl_version()} (imagecodecs {version_of('imagecodecs')}), effort 7"
            peers["jxl"] = _Libjxl("JPEG XL", version, ".jxl", _DISTANCES)
        except ImportError:
            absent["jxl"] = "neither cjxl (apt install libjxl-tools) nor imagecodecs is installed"
    absent["vvc"] = "no wheel or package of vvenc is to be had; --reference files hold the curves of VTM"
    return peers, absent
