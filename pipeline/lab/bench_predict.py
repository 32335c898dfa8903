"""`msinn bench predict`: predicted bytes and PSNR against real encodes, and what the analysis costs."""

from __future__ import annotations

import time
from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

from msinn_core import metrics
from msinn_core.codec import Codec
from msinn_core.model_file import load_model
from msinn_core.picture import Picture
from pipeline.formats.images import load
from pipeline.lab.bench_common import MAX_PIXELS
from pipeline.plan.curves import CurveSet
from pipeline.sources import Fetcher, scan

_NUM_RATES = 9

Array = NDArray[np.float64]


def bench_predict(images: str, *, model: str, limit: int | None) -> None:
    """Print errors of predictions at nine rates.

    Args:
        images: Folder, tar or Parquet.
        model: Name or file.
        limit: Only the first so many images.
    """
    import torch

    torch.set_num_threads(1)
    codec, fetcher = Codec(load_model(model)), Fetcher()
    rates = np.linspace(0, codec.q_max, _NUM_RATES)
    real: list[Array] = []
    predicted: dict[str, list[Array]] = defaultdict(list)
    seconds: dict[str, float] = defaultdict(float)
    for record in scan(images).records[:limit]:
        picture = load(fetcher.fetch(record.part), max_pixels=MAX_PIXELS, name=record.name).picture
        if picture is None:
            continue
        real.append(_encoded(codec, picture, rates, seconds))
        for name, sampled in (("full", False), ("sampled", True)):
            predicted[name].append(_predicted(codec, picture, rates, name, sampled, seconds))
    actual = np.array(real)
    print(f"{len(real)} images, one thread; each rate: error of the sum of bytes, of an image's bytes (std), of its PSNR (mean and std)")
    for name, values in predicted.items():
        shares = [seconds[name] / seconds[what] for what in ("encode", "encode and verify")]
        print(f"{name} analysis: {shares[0]:.2f} of encode, {shares[1]:.2f} of encode and verify")
        _print_errors(np.array(values), actual, rates)


def _encoded(codec: Codec, picture: Picture, rates: Array, seconds: dict[str, float]) -> Array:
    """Bytes and MSE `[rates, 2]` of real encodes."""
    found = []
    for q in rates:
        started = time.perf_counter()
        data = codec.encode(picture, float(q))
        encoded = time.perf_counter()
        decoded, _ = codec.decode(data)
        found.append((len(data), metrics.mse(decoded.pixels, picture.pixels)))
        seconds["encode"] += (encoded - started) / len(rates)
        seconds["encode and verify"] += (time.perf_counter() - started) / len(rates)
    return np.array(found)


def _predicted(codec: Codec, picture: Picture, rates: Array, name: str, sampled: bool, seconds: dict[str, float]) -> Array:
    """The same, predicted."""
    started = time.perf_counter()
    curves = codec.analyse(picture, sampled=sampled)
    seconds[name] += time.perf_counter() - started
    grid = np.arange(int(codec.q_max) + 1, dtype=np.float64)
    at = CurveSet.from_anchors(grid, curves.bytes[None], curves.mse[None], np.ones(1), np.full(1, np.inf))
    place = [int(np.abs(at.q - q).argmin()) for q in rates]
    return np.stack((at.stored[0, place], at.mse[0, place]), axis=1)


def _print_errors(guess: Array, actual: Array, rates: Array) -> None:
    total = guess[..., 0].sum(axis=0) / actual[..., 0].sum(axis=0) - 1
    single = np.log(guess[..., 0] / actual[..., 0]).std(axis=0)
    decibels = 10 * np.log10(actual[..., 1] / guess[..., 1])
    for i, q in enumerate(rates):
        print(f"  q {q:5.2f}  {100 * total[i]:+6.2f} %  {100 * single[i]:5.2f} %  {decibels[:, i].mean():+5.2f} dB  {decibels[:, i].std():4.2f} dB")
