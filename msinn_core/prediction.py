"""What a picture would cost and lose at every rate: from sums of one context pass to curves, by constants that were measured for the model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from msinn_core import bitstream
from msinn_core.bitstream import Bitstream
from msinn_core.engine import Tally
from msinn_core.framing import boxes_of, padded_side
from msinn_core.model_file import LoadedModel
from msinn_core.picture import Picture

BAND_ROWS, ROWS_PER_BAND = 128, 384
"""A sampled analysis looks at bands of 128 rows, one for each 384, at least two: over 124 images of 512 rows this costs half as much, predicts an
image's bytes within 9 % instead of 3 % (standard deviation) and their sum within 1.5 % instead of 0.5 %, most of it the same for all sets, which the
closed loop takes out. (Measured with earlier weights. With those of 2026-11-26 the whole analysis predicts an image's bytes within 3.5 / 1.3 / 6.8 %
at q = 1 / 5 / 9, and the sum of 16 tiles within 1.5 %.)"""

PROBE_Q_SHARE = 6 / 11
"""Where in [0, A - 1] the one context pass of `curves` runs: the middle, where its extrapolation errs least on both sides."""


@dataclass(frozen=True)
class Curves:
    """Predicted rate and distortion at the anchor rates.

    Attributes:
        q: `[A]`.
        bytes: Size of the bitstream at each q, header and boxes included.
        mse: In 8-bit code values.
    """

    q: NDArray[np.float64]
    bytes: NDArray[np.float64]
    mse: NDArray[np.float64]


def part_of(picture: Picture, *, sampled: bool) -> Picture:
    """What an analysis looks at: the picture itself, or bands of its rows where it is high enough for them to be less than half of it."""
    height = picture.pixels.shape[0]
    bands = max(2, -(-height // ROWS_PER_BAND))
    if not sampled or 2 * bands * BAND_ROWS > height:
        return picture
    starts = [round((i + 0.5) * height / bands - BAND_ROWS / 2) for i in range(bands)]
    return Picture(pixels=np.concatenate([picture.pixels[start : start + BAND_ROWS] for start in starts]))


def probe_rates(model: LoadedModel) -> list[float]:
    """The anchors, then the rate of the context pass."""
    probe = round(PROBE_Q_SHARE * model.config.q_max * bitstream.Q_STEPS) / bitstream.Q_STEPS
    return [*np.arange(int(model.config.q_max) + 1, dtype=np.float64), probe]


def curves_of(model: LoadedModel, tally: Tally, picture: Picture) -> Curves:
    """Of what `probe_rates` give, by the constants that were measured for the model."""
    height, width = picture.pixels.shape[:2]
    calibration = model.calibration
    num_samples = 3 * padded_side(width) * padded_side(height)
    mse = (tally.squares[:-1] @ calibration.level_weights) / num_samples * 255**2 * np.exp(calibration.log_mse_bias)
    rate = tally.bits[:-1] * np.exp(calibration.log_rate_bias)
    return Curves(np.arange(int(model.config.q_max) + 1, dtype=np.float64), rate / 8 + overhead(model, picture), mse)


def stretched(model: LoadedModel, found: Curves, part: Picture, picture: Picture) -> Curves:
    """Curves of a picture, from those of a part of it."""
    if part is picture:
        return found
    scale = picture.pixels.shape[0] / part.pixels.shape[0]
    return Curves(found.q, (found.bytes - overhead(model, part)) * scale + overhead(model, picture), found.mse)


def overhead(model: LoadedModel, picture: Picture) -> int:
    """Bytes of a bitstream that no rate changes."""
    height, width = picture.pixels.shape[:2]
    empty = Bitstream(
        profile=model.profile, colour="rgb", model_id=bytes(16), width=width, height=height, q=0.0,
        streams=(b"",) * bitstream.NUM_STREAMS, boxes=boxes_of(picture),
    )  # fmt: skip
    return len(empty.to_bytes()) + 6 * bitstream.NUM_STREAMS
