"""What a scanner makes of a printed sheet: paper, light, skew, blur, noise, JPEG."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Array = NDArray[np.float32]

LEAST_SKEW, MOST_SKEW = 0.5, 3.0
"""Degrees, to either side."""

_PAPERS = ((252, 251, 248), (247, 245, 238), (250, 246, 232), (240, 236, 224), (236, 238, 240), (245, 238, 220))


def scan(sheet: Image.Image, rng: np.random.Generator, behind: Image.Image | None = None) -> bytes:
    """A JPEG of a printed sheet as a scanner sees it.

    Args:
        sheet: RGB, black on white or in colours.
        rng: Decides paper, light, skew, blur, noise and quality.
        behind: What is printed on the back, which shows through now and then.
    """
    tone = np.array(_PAPERS[rng.integers(len(_PAPERS))], np.float32) / 255
    page = _inked(sheet, rng, tone)
    if behind is not None and rng.random() < 0.3:
        back = behind.resize(sheet.size).transpose(Image.Transpose.FLIP_LEFT_RIGHT).filter(ImageFilter.GaussianBlur(1.5))
        page *= 1 - float(rng.uniform(0.03, 0.1)) * (1 - np.asarray(back.convert("L"), np.float32)[..., None] / 255)
    page *= _light(page.shape[0], page.shape[1], rng)
    turned = Image.fromarray((255 * page).round().clip(0, 255).astype(np.uint8))
    angle = float(rng.uniform(LEAST_SKEW, MOST_SKEW) * rng.choice((-1, 1)))
    edge = (255 * tone * rng.uniform(0.75, 1)).astype(int).tolist()
    turned = turned.rotate(angle, Image.Resampling.BICUBIC, fillcolor=tuple(edge), translate=tuple(rng.integers(-6, 7, 2).tolist()))
    turned = turned.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.25, 0.8))))
    noisy = np.asarray(turned, np.float32) + _noise(page.shape[0], page.shape[1], rng)
    seen = Image.fromarray(noisy.round().clip(0, 255).astype(np.uint8))
    buffer = io.BytesIO()
    seen.save(buffer, "JPEG", quality=int(rng.integers(85, 96)), subsampling=str(rng.choice(("4:4:4", "4:2:0"))))
    return buffer.getvalue()


def _inked(sheet: Image.Image, rng: np.random.Generator, tone: Array) -> Array:
    """`[H, W, 3]` in [0, 1]: ink that is not quite black, on paper with a grain of its own."""
    cover = 1 - np.asarray(sheet, np.float32) / 255
    grain = smooth(rng, sheet.height, sheet.width, 2) * rng.uniform(0, 0.012) + smooth(rng, sheet.height, sheet.width, 24) * rng.uniform(0, 0.015)
    return np.asarray((tone + grain[..., None]) * (1 - cover * rng.uniform(0.75, 0.97)), np.float32)


def _light(height: int, width: int, rng: np.random.Generator) -> Array:
    """`[H, W, 1]`: brighter on one side, darker near the spine of a book now and then, hardly even."""
    rows, columns = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)[None]
    light = 1 + rng.uniform(-0.06, 0.06) * rows + rng.uniform(-0.06, 0.06) * columns - rng.uniform(0, 0.05) * (rows**2 + columns**2)
    if rng.random() < 0.35:
        from_spine = (1 + columns) if rng.random() < 0.5 else (1 - columns)
        light = light * (1 - rng.uniform(0.1, 0.4) * np.exp(-from_spine / rng.uniform(0.04, 0.15)))
    return np.asarray(light + 0.01 * smooth(rng, height, width, 60), np.float32)[..., None]


def _noise(height: int, width: int, rng: np.random.Generator) -> Array:
    """`[H, W, 3]` in code values: of the sensor, mostly the same in all channels, lines of some, and specks of dust."""
    shared = rng.normal(0, rng.uniform(0.4, 2.4), (height, width, 1))
    own = rng.normal(0, rng.uniform(0.1, 0.9), (height, width, 3))
    lines = rng.normal(0, rng.uniform(0, 0.6), (1, width, 1))
    noise = np.asarray(shared + own + lines, np.float32)
    for row, column, size in zip(*rng.integers(0, (height - 4, width - 4, 3), (int(rng.integers(0, 25)), 3)).T, strict=True):
        noise[row : row + 1 + size, column : column + 1 + size] -= rng.uniform(40, 120)
    return noise


def smooth(rng: np.random.Generator, height: int, width: int, scale: int) -> Array:
    """`[H, W]`: values of variance about one that change over `scale` pixels."""
    coarse = Image.fromarray(rng.normal(0, 1, (height // scale + 2, width // scale + 2)).astype(np.float32), "F")
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float32)
