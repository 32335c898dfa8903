"""What the integer network needs of whatever computes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from msinn_core.integer.bands import PictureBands
from msinn_core.integer.ops import Layer

Array = Any
"""Of the backend's kind. Activations are int16, state and symbols int32, table indexes uint8; `[..., H, W, C]`."""


class Backend(Protocol):
    """What the network needs. NumPy backends work on one picture, `[H, W, C]`; the GPU's on a batch, `[N, H, W, C]`.

    Vectors (shifts, gains, tables) come as NumPy arrays; gains may be `[N, C]` for a batch.
    """

    def conv(self, x: Array, layer: Layer, *, parity: int = 0, add: Array | None = None) -> Array:
        """One layer; `parity` of the output positions for `EDGES` and `CORNERS`; `add` is added at the end, saturating."""

    def unit(
        self, z: Array, st: Array, table: Any, t_shift: int, matrix: Any, bias: Any, affine: bool, second: Array | None = None
    ) -> Array:  # fmt: skip
        """Inverse coupling and inverse matrix; `matrix` `[in, out]` in Q20, `bias` in Q16, both whole numbers. `second` is the second half of the
        state where it is an array of its own, and `z` the first."""

    def narrow(self, x: Array, shift: Any) -> Array:
        """`clamp16((x + 2^(s-1)) >> s)` with `shift` `[C]`."""

    def narrowed(self, shift: Any, *parts: Array) -> Array:
        """`narrow` of the first `len(shift)` channels of the parts one after the other."""

    def residual(self, x: Array, first: Layer, skip: Layer, second: Layer, last: Layer | None = None) -> Array:
        """`last(second(first(x)) + skip(x))`, by `conv`; `skip` and `last` are 1x1 layers."""

    def levels(self, parameters: Array, log2: Any, log_gain: Any, first: int, step: int, tables: int) -> Array:
        """Table index `[..., C]` of the scales in `parameters` `[..., 2C]` (scales, then means)."""

    def dequantise(self, symbols: Array, parameters: Array, inv_gain: Any, mean_shift: int) -> Array:
        """Latents in Q16 of symbols and the means in `parameters`; `inv_gain` in Q24."""

    def refine(self, y: Array, prediction: Array, table: Any, inv_gain: Any) -> None:
        """Add the latent residual prediction in place."""

    def mix(self, x: Array, matrix: Any, bias: Any) -> Array:
        """`M x + bias`; of the encoder."""

    def couple(self, z: Array, st: Array, reciprocal: Any, t_shift: int, affine: bool) -> None:
        """Forward coupling in place; of the encoder."""

    def quantise(self, y: Array, parameters: Array, indexes: Array, gain: Any, zone: Any, mean_shift: int) -> Array:
        """Rate-aware symbols of `(y - mean) * gain`, `gain` per Q16 unit, `zone` `[256, 16]`; of the encoder."""

    def tally(
        self, y: Array, parameters: Array, mean_shift: int, log2: Any, first: int, step: int, log_gain: Any, gain: Any, inv_gain: Any, zone: Any,
        costs: Any, stride: int,
    ) -> NDArray[np.float64]:  # fmt: skip
        """Table bits and squared error (Q16 steps) `[R, 2]` of latents at R rates, over every `stride`-th row and column; of a batch
        `[N, R, 2]`. Of the encoder."""

    def squeeze(self, x: Array) -> Array:
        """Space to depth by 2: `[H, W, C]` -> `[H/2, W/2, 4C]`, channel `(2i + j) C + c`."""

    def unsqueeze(self, x: Array) -> Array:
        """Inverse of `squeeze`."""

    def half(self, x: Array, parity: int) -> Array:
        """Checkerboard half: column j of row r is column `2j + (r + parity) % 2`."""

    def whole(self, half: Array, parity: int, other: Array) -> Array:
        """Inverse of `half` for a half of `parity` and the other one."""

    def halved(self, x: Array) -> Array:
        """2x2 maximum."""

    def shuffled(self, x: Array) -> Array:
        """PyTorch's pixel shuffle by 2: channel `4c + 2i + j` to row phase i, column phase j."""

    def unshuffled(self, x: Array) -> Array:
        """Inverse of `shuffled`."""

    def joined(self, *parts: Array) -> Array:
        """Channels one after the other."""

    def channels(self, x: Array, start: int, stop: int) -> Array:
        """Some channels, contiguous."""

    def constant(self, values: Any, shape: tuple[int, ...]) -> Array:
        """`values` `[C]` at every position."""

    def looked_up(self, table: Any, x: Array) -> Array:
        """`table[x + 32768]`."""

    def positive(self, x: Array) -> Array:
        """`max(x, 0)`."""

    def even(self, x: Array) -> Array:
        """An odd number of channels with one of zeros after them: products come in pairs."""

    def mean(self, x: Array) -> Array:
        """Rounded mean over the positions of each picture, `[..., 1, 1, C]`."""

    def gated(self, x: Array, table: Any, index: Array, add: Array) -> Array:
        """`clamp16(rnd(x * table[(index + 32768) >> 4], 15) + add)`, `index` one per picture and channel."""

    def corrected(self, x: Array | None, correction: Array | None, shift: int) -> Array:
        """Pixels uint8 of state plus `correction * 2^shift`; one of them may be missing."""

    def gathered(self, x: Array, shift: Any) -> Array:
        """`narrow` of `unshuffled(x)`."""

    def filtered(self, x: Array, correction: Array, shift: int) -> Array:
        """Pixels uint8 of state plus `shuffled(correction) * 2^shift`."""

    def state_of(self, pixels: Any) -> Array:
        """Q16 of full scale, rounded, of uint8 pixels."""

    @property
    def name(self) -> str:
        """What computes, for people."""

    @property
    def lead(self) -> tuple[int, ...]:
        """What stands before `(H, W, C)` in the shape of one picture: nothing, or `(1,)`."""

    def to_host(self, x: Array) -> NDArray[Any]:
        """As a NumPy array."""

    def to_device(self, array: NDArray[Any]) -> Array:
        """Of the backend's kind."""

    def in_bands(self, x: Array, radius: int, width: int, run: Callable[..., Array], *beside: Array) -> Array:
        """`run(0, x, *beside)`, or the same in bands of rows or columns; see `bands.in_bands`."""

    def settle(self, x: Array) -> None:
        """Called between steps with what one has computed: where that is large, memory that is free may be given back."""

    def pictured(self, height: int, width: int) -> PictureBands | None:
        """How the last step becomes a picture of `[2 height, 2 width]`: in bands, or None for all of it at once."""
