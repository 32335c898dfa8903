"""Near-lossless: what a largest error of N per sample costs by the network with a quantised residual, by JPEG-LS, and by JPEG XL.

python -m infra.forms.near FOLDER [--errors 1 2 4] [--rates 7 8 9 10 11]

All but one column is of real bytes that were decoded and held against N. The one, `context`, is the exact length that an adaptive arithmetic coder
without rounding would need for the residual (the code of Krichevsky and Trofimov, counted in closed form): a bound for what could be written.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from msinn_core.codec import Codec
from msinn_core.model_file import load_model
from msinn_core.picture import Picture

Pixels = NDArray[np.uint8]
Signed = NDArray[np.int32]
DISTANCES = (1.0, 0.5, 0.3, 0.2, 0.1, 0.01)
"""Of lossy JPEG XL, down to the least that libjxl takes: alone, and with a residual as the network gets one."""


def _lossless(planes: Pixels) -> int:
    """Bytes as lossless JPEG XL at effort 7."""
    return len(imagecodecs.jpegxl_encode(np.ascontiguousarray(planes), lossless=True, effort=7, numthreads=1))


def _within(found: NDArray[np.integer], original: Pixels, largest: int) -> bool:
    return int(np.abs(found.astype(np.int32) - original).max()) <= largest


def jpeg_ls(pixels: Pixels, largest: int) -> int:
    """Bytes of JPEG-LS, near-lossless: a file for each channel, as it has no colour transform that keeps the bound."""
    total = 0
    for channel in range(3):
        plane = np.ascontiguousarray(pixels[:, :, channel])
        data = imagecodecs.jpegls_encode(plane, level=largest)
        assert _within(imagecodecs.jpegls_decode(data), plane, largest)
        total += len(data)
    return total


def quantised_first(pixels: Pixels, largest: int) -> int:
    """Bytes of lossless JPEG XL of samples that were quantised first: their numbers, or the values that they stand for, whichever is smaller."""
    step = 2 * largest + 1
    numbers = (pixels.astype(np.int32) + largest) // step
    values = np.minimum(numbers * step, 255).astype(np.uint8)
    assert _within(values, pixels, largest)
    return min(_lossless(numbers.astype(np.uint8)), _lossless(values))


def lossy_jxl(pixels: Pixels) -> dict[float, tuple[int, Pixels]]:
    """Bytes and decoded samples of lossy JPEG XL at each of `DISTANCES`."""
    found = {}
    for distance in DISTANCES:
        data = imagecodecs.jpegxl_encode(pixels, distance=distance, effort=7, numthreads=1)
        found[distance] = len(data), np.asarray(imagecodecs.jpegxl_decode(data))
    return found


def largest_error(found: Pixels, original: Pixels) -> int:
    """Of any sample."""
    return int(np.abs(found.astype(np.int32) - original).max())


def residual(pixels: Pixels, coded: Pixels, largest: int) -> Signed:
    """`[H, W, 3]`, quantised so that no sample is further off than `largest` once it is added again."""
    step = 2 * largest + 1
    difference = pixels.astype(np.int32) - coded
    numbers = np.sign(difference) * ((np.abs(difference) + largest) // step)
    assert _within(np.clip(coded + numbers * step, 0, 255), pixels, largest)
    return np.asarray(numbers, np.int32)


def residual_jxl(numbers: Signed) -> int:
    """Bytes of a residual as lossless JPEG XL: zigzag numbers, in one picture."""
    folded = np.where(numbers < 0, -2 * numbers - 1, 2 * numbers)
    assert folded.max() <= 255
    return _lossless(folded.astype(np.uint8))


def residual_context(numbers: Signed, coded: Pixels) -> float:
    """Bytes of an ideal adaptive arithmetic coder, whose context is how large the residual was around, what it was in the channels before, and how
    lively the decoded picture is there: all of it known to a decoder."""
    grey = coded.astype(np.int32).sum(axis=2)
    lively = np.abs(np.diff(grey, axis=1, append=grey[:, -1:])) + np.abs(np.diff(grey, axis=0, append=grey[-1:]))
    lively = np.digitize(lively, (3, 8, 18, 40, 90))
    bits = 0.0
    before = np.zeros(grey.shape, np.int32)
    for channel in (1, 0, 2):
        plane = numbers[:, :, channel]
        size = np.pad(np.abs(plane), ((2, 0), (2, 2)))
        around = 2 * size[2:, 1:-3] + 2 * size[1:-1, 2:-2] + size[1:-1, 1:-3] + size[1:-1, 3:-1] + size[2:, :-4] + size[:-2, 2:-2]
        around = np.digitize(around, (1, 2, 3, 5, 7, 10, 15, 22, 32, 50))
        context = (around * 6 + lively) * 7 + np.clip(before, -3, 3) + 3
        bits += _adaptive_bits(context.ravel(), plane.ravel())
        before = np.clip(before, -1, 1) + 2 * np.clip(plane, -1, 1) if channel == 0 else plane
    return bits / 8


def _adaptive_bits(context: NDArray[np.integer], symbols: Signed) -> float:
    """Of the symbols, each context with counts of its own that begin at a small share: it depends on the last counts alone."""
    from math import lgamma

    gamma = np.vectorize(lgamma, otypes=[float])
    alphabet, numbered = np.unique(symbols, return_inverse=True)
    start = 0.05
    counts = np.zeros((int(context.max()) + 1, len(alphabet)))
    np.add.at(counts, (context, numbered), 1)
    counts = counts[counts.sum(axis=1) > 0]
    whole = gamma(counts.sum(axis=1) + start * len(alphabet)) - lgamma(start * len(alphabet))
    parts = (gamma(counts + start) - lgamma(start)).sum(axis=1)
    return float((whole - parts).sum() / np.log(2))


def measure(folder: Path, errors: list[int], rates: list[float], model: str) -> None:
    """Print bytes of all pictures of a folder, by largest error and way; of the network by its rate too."""
    codec = Codec(load_model(model))
    totals: dict[int, dict[str, float]] = {largest: defaultdict(float) for largest in errors}
    exact = png = 0
    least_error = 255
    for path in sorted(path for path in folder.iterdir() if path.suffix == ".png"):
        png += path.stat().st_size
        pixels = np.asarray(Image.open(path).convert("RGB"))
        exact += _lossless(pixels)
        coded = {q: codec.encode(Picture(pixels=pixels), q) for q in rates}
        decoded = {q: codec.decode(data)[0].pixels for q, data in coded.items()}
        lossy = lossy_jxl(pixels)
        off = {distance: largest_error(found, pixels) for distance, (_, found) in lossy.items()}
        least_error = min(least_error, *off.values())
        for largest in errors:
            total = totals[largest]
            total["JPEG-LS"] += jpeg_ls(pixels, largest)
            total["quantised, JPEG XL"] += quantised_first(pixels, largest)
            total["lossy JPEG XL"] += min((taken for distance, (taken, _) in lossy.items() if off[distance] <= largest), default=float("nan"))
            with_residual = {d: taken + residual_jxl(residual(pixels, found, largest)) for d, (taken, found) in lossy.items() if d > 0.1}
            for distance, taken in with_residual.items():
                total[f"JPEG XL distance {distance:g} + JPEG XL"] += taken
            total["JPEG XL + JPEG XL, best of each picture"] += min(with_residual.values())
            best: dict[float, int] = {}
            for q in rates:
                numbers = residual(pixels, decoded[q], largest)
                total[f"msinn q {q:g}"] += len(coded[q])
                best[q] = len(coded[q]) + residual_jxl(numbers)
                total[f"msinn q {q:g} + JPEG XL"] += best[q]
                total[f"msinn q {q:g} + context"] += len(coded[q]) + residual_context(numbers, decoded[q])
            total["msinn + JPEG XL, best of each picture"] += min(best.values())
        print(path.name, flush=True)
    print(json.dumps({"PNG": png, "lossless JPEG XL": exact, "least of the largest errors of lossy JPEG XL": least_error}))
    for largest, total in totals.items():
        print(f"largest error {largest}: " + json.dumps({name: round(taken) if taken == taken else None for name, taken in total.items()}, indent=1))


def main() -> None:
    """The command line; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--errors", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rates", type=float, nargs="+", default=[7.0, 8.0, 9.0, 10.0, 11.0])
    parser.add_argument("--model", default="msinn-lite")
    given = parser.parse_args()
    measure(given.folder, given.errors, given.rates, given.model)


if __name__ == "__main__":
    main()
