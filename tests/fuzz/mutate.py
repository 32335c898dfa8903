"""Seeded damage for files of any kind: flips, extreme numbers, cuts, insertions, splices."""

from __future__ import annotations

import io
from random import Random

import numpy as np
from numpy.typing import NDArray
from PIL import Image

EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFF81, 0xFFFFFFFF)


def mutated(data: bytes, random: Random) -> bytes:
    """One to four changes, half of them in the first 160 bytes, where headers are."""
    out = bytearray(data)
    for _ in range(random.randint(1, 4)):
        if not out:
            break
        at = random.randrange(min(len(out), 160) if random.random() < 0.5 else len(out))
        kind = random.random()
        if kind < 0.3:
            out[at] ^= 1 << random.randrange(8)
        elif kind < 0.6:
            size = random.choice((1, 2, 4))
            number = random.choice(EXTREMES) & (256**size - 1)
            out[at : at + size] = number.to_bytes(size, random.choice(("big", "little")))
        elif kind < 0.7:
            del out[at:]
        elif kind < 0.8:
            del out[at : at + random.randrange(1, 64)]
        elif kind < 0.9:
            out[at:at] = random.randbytes(random.randrange(1, 64))
        else:
            start = random.randrange(len(out))
            out[at:at] = out[start : start + random.randrange(1, 400)]
    return bytes(out)


def seeds(pixels: NDArray[np.uint8]) -> dict[str, bytes]:
    """A small sound file of every format, mode and kind of metadata that is decoded, by suffix."""
    image = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "described"
    variants: list[tuple[str, str, Image.Image, dict[str, object]]] = [
        ("jpg", "JPEG", image, {"exif": exif, "icc_profile": b"profile" * 20, "comment": b"hi", "xmp": b"<x/>"}),
        ("jpeg", "JPEG", image, {"progressive": True, "quality": 95}),
        ("jpe", "JPEG", image.convert("L"), {}),
        ("cmyk.jpg", "JPEG", image.convert("CMYK"), {}),
        ("png", "PNG", image, {"exif": exif, "dpi": (300, 300)}),
        ("rgba.png", "PNG", image.convert("RGBA"), {}),
        ("palette.png", "PNG", image.quantize(16), {"transparency": 3}),
        ("grey.png", "PNG", image.convert("LA"), {}),
        ("webp", "WEBP", image, {"exif": exif, "lossless": True}),
        ("lossy.webp", "WEBP", image.convert("RGBA"), {}),
        ("avif", "AVIF", image, {"exif": exif}),
        ("bmp", "BMP", image, {"dpi": (72, 72)}),
        ("palette.bmp", "BMP", image.quantize(16), {}),
        ("gif", "GIF", image.convert("L"), {}),
        ("moving.gif", "GIF", image, {"save_all": True, "append_images": [image.rotate(90)]}),
        ("tif", "TIFF", image, {"tiffinfo": {270: "described", 305: "by hand"}, "dpi": (300, 300)}),
        ("lzw.tiff", "TIFF", image, {"compression": "tiff_lzw"}),
        ("jp2", "JPEG2000", image, {}),
        ("j2k", "JPEG2000", image, {}),
        ("ppm", "PPM", image, {}),
        ("pgm", "PPM", image.convert("L"), {}),
    ]
    found = {}
    for suffix, fmt, picture, options in variants:
        out = io.BytesIO()
        picture.save(out, fmt, **options)
        found[suffix] = out.getvalue()
    return found
