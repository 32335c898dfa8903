"""Colour profiles in the header of JPEG XL files: read by libjxl, samples untouched, anything else left alone."""

from __future__ import annotations

import io
import shutil
import subprocess
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from pipeline.forms import jxl
from pipeline.forms.base import Refusal
from pipeline.forms.jxl_profile import colour_space, with_profile

PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
GREY = PROFILE[:16] + b"GRAY" + PROFILE[20:]


@pytest.fixture
def kinds(photo: NDArray[np.uint8]) -> dict[str, tuple[NDArray[np.uint8] | NDArray[np.uint16], bytes]]:
    rgb = photo[:97, :131].copy()
    rgba = np.concatenate([rgb, rgb[:, :, :1]], axis=2)
    return {
        "rgb": (rgb, PROFILE),
        "rgba": (rgba, PROFILE),
        "grey": (rgb[:, :, 0].copy(), GREY),
        "grey with alpha": (rgb[:, :, :2].copy(), GREY),
        "16 bits": (rgb.astype(np.uint16) * 257, PROFILE),
        "16 bits with alpha": (rgba.astype(np.uint16) * 257, PROFILE),
        "16 bits, grey": (rgb[:, :, 0].astype(np.uint16) * 257, GREY),
        "one pixel": (rgb[:1, :1].copy(), PROFILE),
        "wide": (rgb[:16, :32].copy(), PROFILE),
    }


def test_a_profile_goes_into_every_kind_of_samples(kinds: dict[str, tuple[NDArray[np.uint8], bytes]]) -> None:
    for name, (planes, profile) in kinds.items():
        made = jxl.for_any_viewer(planes, {"icc": profile, "exif": b"Exif\0\0MM"}, None)
        np.testing.assert_array_equal(imagecodecs.jpegxl_decode(made), planes, name)
        # It is in the codestream and no longer in our box.
        assert jxl.metadata_of(made) == {"exif": b"Exif\0\0MM"}, name
        assert len(made) > len(jxl.encoded(planes, {}, None)) + len(profile), name


def test_another_decoder_gives_it_back(kinds: dict[str, tuple[NDArray[np.uint8], bytes]], tmp_path: Path) -> None:
    if shutil.which("djxl") is None:
        pytest.skip("no djxl here: apt install libjxl-tools")
    for name, (planes, profile) in kinds.items():
        (tmp_path / "x.jxl").write_bytes(jxl.for_any_viewer(planes, {"icc": profile}, 100))
        subprocess.run(["djxl", "x.jxl", "x.png"], cwd=tmp_path, check=True, capture_output=True)
        with Image.open(io.BytesIO((tmp_path / "x.png").read_bytes())) as image:
            assert image.info["icc_profile"] == profile, name


def test_long_profiles_and_those_of_other_systems(photo: NDArray[np.uint8]) -> None:
    planes = photo[:8, :8].copy()
    for platform in (b"APPL", b"MSFT", b"SGI ", b"SUNW", b"\0\0\0\0"):
        profile = PROFILE[:40] + platform + PROFILE[44:] + bytes(range(256)) * 300
        np.testing.assert_array_equal(imagecodecs.jpegxl_decode(jxl.for_any_viewer(planes, {"icc": profile}, None)), planes)


def test_what_is_no_profile_of_these_colours_stays_in_our_box(photo: NDArray[np.uint8]) -> None:
    planes = photo[:8, :8].copy()
    assert colour_space(b"RGB" * 100) is None
    for odd in (b"p" * 200, GREY, PROFILE[:100], b""):
        made = jxl.for_any_viewer(planes, {"icc": odd}, None)
        assert jxl.metadata_of(made) == {"icc": odd}
        np.testing.assert_array_equal(imagecodecs.jpegxl_decode(made), planes)
    # With loss the colours are XYB's.
    assert jxl.metadata_of(jxl.for_any_viewer(planes, {"icc": PROFILE}, 80)) == {"icc": PROFILE}


def test_headers_that_are_not_ours_are_refused(photo: NDArray[np.uint8]) -> None:
    planes = photo[:64, :64].copy()
    lossy = bytes(imagecodecs.jpegxl_encode(planes, distance=1.0, numthreads=1, usecontainer=False))
    floats = bytes(imagecodecs.jpegxl_encode(planes.astype(np.float32) / 255, lossless=True, numthreads=1, usecontainer=False))
    once = with_profile(bytes(imagecodecs.jpegxl_encode(planes, lossless=True, numthreads=1, usecontainer=False)), PROFILE)
    for data in (lossy, floats, once, b"", b"\xff\x0a", b"\x89PNG" + bytes(100)):
        with pytest.raises(Refusal):
            with_profile(data, PROFILE)
