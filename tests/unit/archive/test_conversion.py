"""What a row is restored as, and pictures in the formats that can be asked for."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline.archive.conversion import FORMATS, Conversion, encoded
from pipeline.archive.row import Row
from pipeline.errors import UsageError
from pipeline.forms.samples import Samples

ROW = Row(
    key="0", name="a/x.jpg", restore_name="a/x.png", source_uri="", shard_id=0, shard_key="", stored_bytes=0, lossless=False, decode_verified=True,
    status="coded", attempt="", codec="msinn", exact="no", source_format="jpeg", channels=3, bit_depth=8, pixels=100,
)  # fmt: skip


@pytest.mark.parametrize("form", ["png", "jpeg", "webp", "avif", "jxl"])
def test_a_picture_in_every_format_has_its_metadata(photo: NDArray[np.uint8], form: str) -> None:
    exif = Image.Exif()
    exif[0x010E] = "described"
    found = Samples(pixels=photo[:64, :96], icc=b"p" * 200, exif=b"Exif\0\0" + exif.tobytes().removeprefix(b"Exif\0\0"))
    data = encoded(found, form, None)
    if form == "jxl":
        assert b"Exif" in data
        return
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        assert (image.format, image.size, image.info["icc_profile"]) == (form.upper(), (96, 64), b"p" * 200)
        assert image.getexif()[0x010E] == "described"
        if form == "png":
            np.testing.assert_array_equal(np.asarray(image), photo[:64, :96])
    if form != "png":
        assert len(encoded(found, form, 40)) < len(data)


def test_grey_with_alpha_goes_into_formats_without_such_a_mode(photo: NDArray[np.uint8]) -> None:
    found = Samples(pixels=photo[:32, :32, 0].copy(), alpha=photo[:32, :32, 1].copy())
    for form in ("webp", "avif"):
        with Image.open(io.BytesIO(encoded(found, form, None))) as image:
            assert image.mode == "RGBA"


@pytest.mark.parametrize(
    ("form", "values", "name"),
    [
        ("jpeg", {}, "a/x.jpg"),
        ("png", {}, "a/x.png"),
        ("avif", {"bit_depth": 16}, "a/x.png"),
        ("jxl", {"bit_depth": 16}, "a/x.jxl"),
        ("jpeg", {"channels": 4}, "a/x.png"),
        ("webp", {"channels": 4}, "a/x.webp"),
        ("jpeg", {"channels": 1, "error_code": "palette_with_transparency"}, "a/x.png"),
        # Files that come back to the byte: of the format that is asked for, of another, and no picture of ours.
        ("jpeg", {"exact": "bytes", "restore_name": "a/x.jpg", "error_code": "lossless_asked_for"}, "a/x.jpg"),
        ("webp", {"exact": "bytes", "restore_name": "a/x.jpg", "error_code": "lossless_asked_for"}, "a/x.webp"),
        ("webp", {"exact": "bytes", "restore_name": "a/x.jpg", "error_code": "unsupported_mode"}, "a/x.jpg"),
        ("webp", {"exact": "bytes", "restore_name": "notes.txt", "error_code": "not_an_image", "pixels": None}, "notes.txt"),
        ("original", {"exact": "bytes", "restore_name": "a/x.jpg"}, "a/x.jpg"),
    ],
)
def test_names_follow_from_rows(form: str, values: dict[str, Any], name: str) -> None:
    assert Conversion(form).name_of(replace(ROW, **values)) == name


def test_what_is_left_out_and_what_loses_nothing() -> None:
    exact = replace(ROW, exact="pixels", lossless=True)
    assert Conversion("original").leaves_out(exact)
    assert not Conversion("original").leaves_out(replace(ROW, codec=None, exact=None))
    assert not Conversion("jxl").leaves_out(exact)
    said = {form: Conversion(form).is_lossless(exact) for form in FORMATS if form != "original"}
    assert said == {"png": True, "jpeg": False, "webp": False, "avif": False, "jxl": True}
    assert not Conversion("jxl", 90).is_lossless(exact)
    for form, quality in (("tiff", None), ("png", 90), ("original", 90), ("jpeg", 0), ("jpeg", 101)):
        with pytest.raises(UsageError):
            Conversion(form, quality)
