"""Two models on the same pictures, in real bytes: BD-rate with an interval over pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from msinn_core import metrics
from msinn_core.codec import Codec
from msinn_core.picture import Picture

_RESAMPLES = 500
_INTERVAL = (2.5, 97.5)

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Measured:
    """A model, or another codec, on some pictures.

    Attributes:
        rates: `[Q]`, rate indexes, or another codec's settings.
        bytes: `[N, Q]`, sizes of bitstreams.
        psnr_db: `[N, Q]`, of the decoded pixels.
        pixels: `[N]`.
    """

    rates: Array
    bytes: Array
    psnr_db: Array
    pixels: Array

    def curve(self, which: NDArray[np.int64] | slice = slice(None)) -> list[tuple[float, float]]:
        """Points of mean bpp and mean PSNR over some of the pictures."""
        bpp = 8 * self.bytes[which] / self.pixels[which, None]
        return list(zip(bpp.mean(axis=0).tolist(), self.psnr_db[which].mean(axis=0).tolist(), strict=True))


@dataclass(frozen=True)
class Gain:
    """BD-rate in percent, negative where fewer bits are needed, and the 95 % interval of it over pictures drawn again and again."""

    percent: float
    low: float
    high: float

    @property
    def certain(self) -> bool:
        """Whether the whole interval is a gain."""
        return self.high < 0

    @property
    def rounded(self) -> list[float]:
        """All three, for records."""
        return [round(value, 2) for value in (self.percent, self.low, self.high)]

    def pays_above(self, model_bytes: int) -> float | None:
        """Bytes of images above which a model's own are paid for, were the other model free; None if it gains nothing for certain."""
        return model_bytes / (-self.high / 100) if self.certain else None

    def __str__(self) -> str:
        return f"{self.percent:+.1f} % ({self.low:+.1f} to {self.high:+.1f})"


def measure(codec: Codec, pictures: Sequence[NDArray[np.uint8]], rates: Sequence[float], tick: Callable[[], None] = lambda: None) -> Measured:
    """Encode and decode every picture at every rate.

    Args:
        codec: With its model.
        pictures: uint8 `[H, W, 3]`.
        rates: Rate indexes.
        tick: Called after each picture.
    """
    sizes, quality = np.zeros((len(pictures), len(rates))), np.zeros((len(pictures), len(rates)))
    for i, pixels in enumerate(pictures):
        latents = codec.transform(Picture(pixels=pixels))
        for j, q in enumerate(rates):
            data = codec.pack(codec.compress(latents, q))
            sizes[i, j] = len(data)
            quality[i, j] = metrics.psnr_db(metrics.mse(codec.decode(data)[0].pixels, pixels))
        tick()
    return Measured(np.array(rates), sizes, quality, np.array([pixels.shape[0] * pixels.shape[1] for pixels in pictures], np.float64))


def gain(general: Measured, own: Measured, *, window: tuple[float, float] | None = None, seed: int = 0) -> Gain | None:
    """What one codec needs against the other at equal quality; None where their curves do not overlap or do not cover a window of PSNR (dB)."""
    whole = metrics.bd_rate(general.curve(), own.curve(), window=window)
    if whole is None:
        return None
    rng, count = np.random.default_rng(seed), len(general.bytes)
    drawn = (rng.integers(count, size=count) for _ in range(_RESAMPLES))
    found = [value for which in drawn if (value := metrics.bd_rate(general.curve(which), own.curve(which), window=window)) is not None]
    if len(found) < _RESAMPLES // 2:
        return None
    low, high = np.percentile(found, _INTERVAL)
    return Gain(whole, float(low), float(high))
