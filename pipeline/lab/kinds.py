"""Kinds of pictures in a sample: divided by what they cost, so that each can have a model of its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from msinn_core.codec import Codec
from msinn_core.picture import Picture

_ROUNDS = 50

Array = NDArray[np.float64]


def cost_features(codec: Codec, pictures: Sequence[NDArray[np.uint8]]) -> Array:
    """`[N, 2 A]`: logarithms of predicted bits per pixel and of predicted MSE at the model's rates, each of mean 0 and variance 1.

    Args:
        codec: Of the general model.
        pictures: uint8 `[H, W, 3]`.
    """
    rows = []
    for pixels in pictures:
        found = codec.analyse(Picture(pixels=np.ascontiguousarray(pixels)))
        rows.append(np.concatenate((np.log(8 * found.bytes / (pixels.shape[0] * pixels.shape[1])), np.log(np.maximum(found.mse, 1e-3)))))
    values = np.array(rows)
    return np.asarray((values - values.mean(axis=0)) / np.maximum(values.std(axis=0), 1e-9))


def clusters(features: Array, count: int, least: int, seed: int) -> NDArray[np.int64]:
    """`[N]`, the number of each row's cluster: k-means, begun by k-means++; clusters of fewer than `least` rows are dissolved into the others.

    Args:
        features: `[N, D]`.
        count: Clusters at most.
        least: Rows of each at least.
        seed: Of the beginning.
    """
    rng = np.random.default_rng(seed)
    centres = features[[int(rng.integers(len(features)))]]
    while len(centres) < count:
        nearest = _distances(features, centres).min(axis=1)
        if nearest.sum() == 0:
            break
        centres = np.concatenate((centres, features[[int(rng.choice(len(features), p=nearest / nearest.sum()))]]))
    for _ in range(_ROUNDS):
        numbers = _distances(features, centres).argmin(axis=1)
        sizes = np.bincount(numbers, minlength=len(centres))
        if len(centres) > 1 and sizes.min() < least:
            centres = np.delete(centres, sizes.argmin(), axis=0)
            continue
        moved = np.stack([features[numbers == i].mean(axis=0) for i in range(len(centres))])
        if np.array_equal(moved, centres):
            break
        centres = moved
    return np.asarray(_distances(features, centres).argmin(axis=1), np.int64)


def _distances(features: Array, centres: Array) -> Array:
    """`[N, K]`, squared."""
    return np.asarray(((features[:, None] - centres[None]) ** 2).sum(axis=2))
