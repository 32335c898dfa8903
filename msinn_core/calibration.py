"""Measures a model's constants of rate prediction: what the one-pass curves of `Codec.curves` miss on average, per anchor."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from msinn_core.codec import Codec
from msinn_core.config import LATENT_CHANNELS
from msinn_core.metrics import mse
from msinn_core.model_file import Calibration
from msinn_core.picture import Picture

Array = NDArray[np.float64]


def fit(codec: Codec, pictures: Iterable[Picture]) -> Calibration:
    """Fit on pictures that were not trained on; real bitstreams at every anchor are the truth.

    Args:
        codec: With a model whose calibration is ignored.
        pictures: A few dozen RGB pictures of 256 x 256 or more.
    """
    codec.model.calibration.log_mse_bias[:] = 0
    codec.model.calibration.log_rate_bias[:] = 0
    level_errors, true_mse, rate_ratio = [], [], []
    num_levels = len(LATENT_CHANNELS)
    for picture in pictures:
        latents = codec.transform(picture)
        shares = []
        for level in range(num_levels):
            codec.model.calibration.level_weights[:] = np.arange(num_levels) == level
            curves = codec.curves(latents)
            shares.append(curves.mse)
        for i, q in enumerate(curves.q):
            data = codec.pack(codec.compress(latents, float(q)))
            decoded, _ = codec.decode(data)
            true_mse.append(mse(decoded.pixels, picture.pixels))
            level_errors.append([share[i] for share in shares])
            rate_ratio.append(np.log(len(data) / curves.bytes[i]))
    num_anchors = len(curves.q)
    errors, truth = np.array(level_errors), np.array(true_mse)
    weights = _non_negative_least_squares(errors / truth[:, None], np.ones(len(truth)))
    log_mse_ratio = np.log(truth / (errors @ weights)).reshape(-1, num_anchors)
    log_rate_ratio = np.array(rate_ratio).reshape(-1, num_anchors)
    return Calibration(weights, log_mse_ratio.mean(axis=0), log_rate_ratio.mean(axis=0))


def _non_negative_least_squares(a: Array, b: Array) -> Array:
    """Exact for the five levels there are: the best non-negative solution over every subset of columns."""
    best, best_error = np.zeros(a.shape[1]), float(b @ b)
    for size in range(1, a.shape[1] + 1):
        for columns in itertools.combinations(range(a.shape[1]), size):
            x = np.linalg.lstsq(a[:, columns], b, rcond=None)[0]
            error = float(np.square(a[:, columns] @ x - b).sum())
            if (x >= 0).all() and error < best_error:
                best, best_error = np.zeros(a.shape[1]), error
                best[list(columns)] = x
    return best
