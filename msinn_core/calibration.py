"""What a network is given when its model file is made, measured on pictures: CDF tables of its real symbols, then the constants of rate prediction
(what the one-pass curves of `Codec.curves` miss on average, per anchor)."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from msinn_core.codec import Codec
from msinn_core.config import LATENT_CHANNELS, SIZE_MULTIPLE
from msinn_core.entropy import fitting
from msinn_core.entropy.first_stream import StreamCoder
from msinn_core.entropy.tables import Tables, gaussian_tables
from msinn_core.metrics import mse
from msinn_core.model_file import Calibration, LoadedModel
from msinn_core.picture import Picture

Array = NDArray[np.float64]

_TABLE_RATES = 6
"""Rates at which the tables see a picture, each picture at others, so that together they see every rate: neighbouring rates of one picture say much
the same, another picture says something new."""

_GOLDEN_RATIO = 0.6180339887
"""Multiples of it, modulo 1, are spread evenly however many there are."""


@dataclass(frozen=True)
class _Seen:
    """Of one picture at some rates: how often each interval of the tables is used by all streams but the first, and the symbols of that one."""

    counts: fitting.Counts
    first: list[fitting.FirstStream]


def fit_tables(model: LoadedModel, pictures: Iterable[Picture], *, threads: int = 1) -> tuple[Tables, NDArray[np.int16] | None]:
    """CDF tables of the symbols that the model makes of these pictures, the Gaussian ones where there are few symbols; and the weights of its first
    stream's prediction, which models of the integer profile have.

    Args:
        model: Whose tables, weights and calibration are ignored.
        pictures: A few dozen, trained on or not: 1,000 parameters see ten million symbols.
        threads: Of the codec.
    """
    prior = gaussian_tables()
    codec = Codec(replace(model, tables=prior, weights=None), threads=threads)
    # The encoder rounds by what the tables say that symbols cost, so it makes others with these. Fitted again they gain 0.02 % more: too little.
    seen = [_seen(codec, picture, i * _GOLDEN_RATIO % 1) for i, picture in enumerate(pictures)]
    weights = fitting.first_weights([first for one in seen for first in one.first]) if model.profile == "int" else None
    coder = StreamCoder(prior, weights)
    counts = []
    for one in seen:
        pairs = [coder.coded(0, symbols, indexes, columns) for symbols, indexes, columns in one.first]
        counts.append(one.counts + np.sum([fitting.histogram(prior, *pair) for pair in pairs], axis=0))
    return fitting.fitted(prior, counts), weights


def _seen(codec: Codec, picture: Picture, share: float) -> _Seen:
    """At evenly spaced rates; `share` of a step, from 0 to 1, is where they begin."""
    latents, tables = codec.transform(picture), codec.model.tables
    counts, first = np.zeros(len(tables.cdf) - 1, np.int64), []
    for i in range(_TABLE_RATES):
        coded = codec.compress(latents, codec.q_max * (i + share) / _TABLE_RATES)
        first.append(fitting.FirstStream(coded.symbols[0], coded.indexes[0], -(-picture.pixels.shape[1] // SIZE_MULTIPLE)))
        for symbols, indexes in zip(coded.symbols[1:], coded.indexes[1:], strict=True):
            counts += fitting.histogram(tables, symbols, indexes)
    return _Seen(counts, first)


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
