"""Fitting heads: least squares from the state of a coarse level to the decoded picture, area-downscaled."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msinn_core import bitstream
from msinn_core.codec import Codec
from msinn_core.errors import ConfigError
from msinn_core.heads import OUT_BITS, Head, channels_of, head_tensors
from msinn_core.integer.arrays import STATE_BITS, squeeze
from msinn_core.integer.engine import IntegerEngine
from msinn_core.integer.ops import DENSE, Layer
from msinn_core.integer.packing import exponent_of, whole_numbers
from msinn_core.picture import Picture
from msinn_core.reduction import area_reduced

Array = NDArray[np.float64]

PLANS = {16: (2, 2), 8: (4, 2), 4: (6, 3), 2: (8, 4)}
"""Streams that are read and steps that are walked, by scale: the shortest prefixes of which no validation tile was below 33 dB, at q = 5, against
the full picture area-downscaled (`infra/scales`)."""

_MOST_POSITIONS = 4096
"""Of a picture, at one scale; neighbouring ones say much the same."""

_SIDE = 512
"""Of what is looked at of a picture."""

_RIDGE = 1e-6
"""Of a feature's own sum of squares: only what the pictures say nothing of is held back by it."""

_GOLDEN_RATIO = 0.6180339887


@dataclass
class _Sums:
    """Normal equations of one scale, and the largest state of each channel."""

    squares: Array
    products: Array
    largest: Array
    positions: int = 0


@dataclass
class _Fitting:
    """All scales at once: a picture is coded once."""

    codec: Codec
    engine: IntegerEngine
    sums: dict[int, _Sums] = field(default_factory=dict)

    def see(self, picture: Picture, q: float) -> None:
        """Add a picture, decoded at q."""
        symbols = self.codec.compress(self.codec.transform(picture), q, keep_walk=True, last=True)
        assert symbols.walked is not None
        stream = bitstream.parse(self.codec.pack(symbols))
        decoded = symbols.walked.picture()
        shape = decoded.shape[0] // 16, decoded.shape[1] // 16
        for scale, (num_streams, num_steps) in PLANS.items():
            state = self.engine.support(stream.streams[:num_streams], stream.q, shape, num_steps)
            while state.shape[0] * scale > decoded.shape[0]:
                state = squeeze(state)
            target = area_reduced(decoded.astype(np.uint16) * 257, scale) / 65535
            self._add(scale, state / float(1 << STATE_BITS), target)

    def _add(self, scale: int, state: Array, target: Array) -> None:
        features = _neighbourhoods(state).reshape(-1, 9 * state.shape[2])
        every = -(-len(features) // _MOST_POSITIONS)
        x = np.concatenate((features[::every], np.ones((len(features[::every]), 1))), axis=1)
        y = target.reshape(-1, 3)[::every]
        sums = self.sums.setdefault(scale, _Sums(np.zeros((x.shape[1],) * 2), np.zeros((x.shape[1], 3)), np.zeros(state.shape[2])))
        sums.squares += x.T @ x
        sums.products += x.T @ y
        sums.largest = np.maximum(sums.largest, np.abs(state).max(axis=(0, 1)))
        sums.positions += len(x)


def _middle(picture: Picture) -> Picture:
    """The middle of a large picture: what is made of all of it takes gigabytes."""
    y, x = (max(0, (side - _SIDE) // 2) for side in picture.pixels.shape[:2])
    return Picture(pixels=np.ascontiguousarray(picture.pixels[y : y + _SIDE, x : x + _SIDE]))


def _neighbourhoods(state: Array) -> Array:
    """`[H, W, 9, C]`: the taps of a dense layer, in their order, zero outside the picture."""
    height, width = state.shape[:2]
    padded = np.pad(state, ((1, 1), (1, 1), (0, 0)))
    return np.stack([padded[i : i + height, j : j + width] for i in range(3) for j in range(3)], axis=2)


def fit_heads(codec: Codec, pictures: Iterable[Picture]) -> dict[str, NDArray[Any]]:
    """Tensors of heads of all scales, for a model file.

    Args:
        codec: Of an integer model, on the CPU; its own heads are ignored.
        pictures: RGB, a dozen or more. Each is seen at one rate, together they see all.

    Raises:
        ConfigError: No pictures, or no integer model on the CPU.
    """
    if not isinstance(codec.engine, IntegerEngine):
        raise ConfigError(f"heads are fitted on an integer network, not on {codec.engine.name}")
    fitting = _Fitting(codec, codec.engine)
    for i, picture in enumerate(pictures):
        fitting.see(_middle(picture), codec.q_max * (i * _GOLDEN_RATIO % 1))
    if not fitting.sums:
        raise ConfigError("fitting heads needs pictures")
    return {name: value for head in _heads(fitting.sums) for name, value in head_tensors(head).items()}


def _heads(found: dict[int, _Sums]) -> Iterator[Head]:
    for scale, sums in sorted(found.items()):
        size = np.sqrt(np.maximum(np.diag(sums.squares), 1e-12))
        scaled = sums.squares / size[:, None] / size + _RIDGE * np.eye(len(size))
        weights = np.linalg.solve(scaled, sums.products / size[:, None]) / size[:, None]
        channels = channels_of(scale, PLANS[scale][1])
        exponents = np.array([exponent_of(float(largest)) for largest in sums.largest])
        full = weights[:-1].T.reshape(3, 9, channels) * np.exp2(-exponents.astype(np.float64))
        weight, bias, shift = whole_numbers(f"the head of scale {scale}", full, weights[-1], np.full(3, OUT_BITS))
        yield Head(scale, *PLANS[scale], (STATE_BITS - exponents).astype(np.int32), Layer(weight, bias, shift, DENSE, False))
