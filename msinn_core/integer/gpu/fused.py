"""`OnDevice` with one kernel of ours for each operation between the layers, where Triton is: a batch waits for launches more than for their work."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from msinn_core.integer.gpu import layers
from msinn_core.integer.gpu.backend import STATES, OnDevice

ELEMENTS = 2048
"""Of a program of four warps: sixteen a thread."""

INTERPRETED_ELEMENTS = 1 << 17
"""The interpreter's cost is by the program."""


class Fused(OnDevice):
    """See `OnDevice`, whose results these are.

    Raises:
        ImportError: Triton is not installed.
    """

    def __init__(self, device: torch.device, convolution: layers.Convolution) -> None:
        from msinn_core.integer.gpu import elementwise

        super().__init__(device, convolution)
        self._kernels: Any = elementwise
        self._interpreted = layers.interpreted(elementwise.narrow)
        self._elements = INTERPRETED_ELEMENTS if self._interpreted else ELEMENTS

    def _by_position(self, kernel: Any, positions: int, channels: int, /, *arguments: Tensor | int, fusion: bool = True, **constants: Any) -> None:
        """Start a kernel whose programs have some positions and all channels."""
        block_c = _power_of_two(channels)
        block_m = max(1, self._elements // block_c)
        if self._interpreted:
            block_m = min(block_m, _power_of_two(positions))
        grid = (-(-positions // block_m),)
        layers.launch(kernel, grid, *arguments, **constants, block_m=block_m, block_c=block_c, enable_fp_fusion=fusion)

    def _flat(self, kernel: Any, count: int, /, *arguments: Tensor | int, **constants: Any) -> None:
        block = min(self._elements, _power_of_two(count)) if self._interpreted else self._elements
        layers.launch(kernel, (-(-count // block),), *arguments, **constants, block=block)

    def _summed(self, products: Tensor, bias: NDArray[np.float64], *, forward: bool) -> Tensor:
        n, h, w, channels = products.shape
        out = self._out((n, h, w, channels), torch.int32)
        kernel = self._kernels.unit_outputs
        self._by_position(kernel, n * h * w, channels, products, self._constant(bias), out, n * h * w, channels=channels, forward=forward)
        return out

    def _gains(self, vector: NDArray[Any] | Tensor) -> tuple[Tensor, int]:
        """Of `[C]` or `[N, C]`, and how far its rows lie apart."""
        placed = vector if isinstance(vector, Tensor) else self.to_device(vector)
        return placed, placed.stride(0) if placed.ndim == 2 else 0

    # Arithmetic ------------------------------------------------------------------------------------------------------------------------------------

    def narrow(self, x: Tensor, shift: NDArray[np.int32]) -> Tensor:
        return self.narrowed(shift, x)

    def narrowed(self, shift: NDArray[np.int32], *parts: Tensor) -> Tensor:
        first, second = parts if len(parts) == 2 else (*parts, parts[0])
        n, h, w, c = first.shape
        out = self._out((n, h, w, len(shift)), torch.int16)
        self._by_position(
            self._kernels.narrow, n * h * w, len(shift), first, second, self._constant(shift), out, n * h * w,
            first_channels=c, second_channels=second.shape[-1] if len(parts) == 2 else 0, channels=len(shift),
        )  # fmt: skip
        return out

    def _out(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.device)

    def unit(
        self,
        z: Tensor,
        st: Tensor,
        table: NDArray[np.int32],
        t_shift: int,
        matrix: NDArray[np.float64],
        bias: NDArray[np.float64],
        affine: bool,
        second: Tensor | None = None,
    ) -> Tensor:
        n, h, w, stride = z.shape
        half = stride // 2 if second is None else stride
        other = z[..., half:] if second is None else second
        inputs = self._out((n, h, w, 2 * half), torch.float64)
        self._by_position(
            self._kernels.unit_inputs, n * h * w, 2 * half, z, other, st, self._constant(table), inputs, n * h * w, t_shift,
            stride=stride, half=half, affine=affine,
        )  # fmt: skip
        # The library's product: Triton 3.6 does not compile one of float64 whose inputs were narrower.
        return self._summed(inputs @ self._constant(matrix), bias, forward=False)

    def levels(self, parameters: Tensor, log2: NDArray[np.int32], log_gain: NDArray[np.int32] | Tensor, first: int, step: int, tables: int) -> Tensor:
        n, h, w, both = parameters.shape
        channels = both // 2
        out = self._out((n, h, w, channels), torch.uint8)
        gain, stride = self._gains(log_gain)
        self._by_position(
            self._kernels.levels, n * h * w, channels, parameters, self._constant(log2), gain, out, n * h * w, h * w, stride, first,
            tables * step - 1, step=step, channels=channels,
        )  # fmt: skip
        return out

    def dequantise(self, symbols: Tensor, parameters: Tensor, inv_gain: NDArray[np.int32] | Tensor, mean_shift: int) -> Tensor:
        n, h, w, channels = symbols.shape
        out = self._out((n, h, w, channels), torch.int32)
        gain, stride = self._gains(inv_gain)
        self._by_position(
            self._kernels.dequantise, n * h * w, channels, symbols, parameters, gain, out, n * h * w, h * w, stride, mean_shift, channels=channels
        )
        return out

    def refine(self, y: Tensor, prediction: Tensor, table: NDArray[np.int16], inv_gain: NDArray[np.int32] | Tensor) -> None:
        n, h, w, channels = y.shape
        gain, stride = self._gains(inv_gain)
        self._by_position(
            self._kernels.refine, n * h * w, channels, y, prediction, self._constant(table), gain, n * h * w, h * w, stride, channels=channels
        )

    def mix(self, x: Tensor, matrix: NDArray[np.float64], bias: NDArray[np.float64]) -> Tensor:
        return self._summed(x.double() @ self._constant(matrix), bias, forward=True)

    def couple(self, z: Tensor, st: Tensor, reciprocal: NDArray[np.float32], t_shift: int, affine: bool) -> None:
        n, h, w, channels = z.shape
        self._by_position(
            self._kernels.couple, n * h * w, channels // 2, z, st, self._constant(reciprocal), n * h * w, t_shift,
            fusion=False, half=channels // 2, affine=affine,
        )  # fmt: skip

    def quantise(
        self, y: Tensor, parameters: Tensor, indexes: Tensor, gain: NDArray[np.float32] | Tensor, zone: NDArray[np.float32], mean_shift: int
    ) -> Tensor:
        n, h, w, channels = y.shape
        out = torch.empty_like(y)
        by, stride = self._gains(gain)
        self._by_position(
            self._kernels.quantise, n * h * w, channels, y, parameters, indexes, by, self._constant(zone), out, n * h * w, h * w, stride, mean_shift,
            fusion=False, zones=zone.shape[1], channels=channels,
        )  # fmt: skip
        return out

    # Moving values about ---------------------------------------------------------------------------------------------------------------------------

    def half(self, x: Tensor, parity: int) -> Tensor:
        n, h, w, c = x.shape
        out = self._out((n, h, w // 2, c), x.dtype)
        self._by_position(self._kernels.half, n * h * (w // 2), c, x, out, n * h * (w // 2), h, w // 2, parity & 1, channels=c)
        return out

    def whole(self, half: Tensor, parity: int, other: Tensor) -> Tensor:
        n, h, w, c = half.shape
        out = self._out((n, h, 2 * w, c), half.dtype)
        self._by_position(self._kernels.whole, 2 * n * h * w, c, half, other, out, 2 * n * h * w, h, 2 * w, parity & 1, channels=c)
        return out

    def halved(self, x: Tensor) -> Tensor:
        n, h, w, c = x.shape
        out = self._out((n, h // 2, w // 2, c), x.dtype)
        positions = n * (h // 2) * (w // 2)
        self._by_position(self._kernels.halved, positions, c, x, out, positions, w // 2, channels=c)
        return out

    def gathered(self, x: Tensor, shift: NDArray[np.int32]) -> Tensor:
        n, h, w, _ = x.shape
        out = self._out((n, h // 2, w // 2, 12), torch.int16)
        positions = n * (h // 2) * (w // 2)
        self._by_position(self._kernels.gather, positions, 12, x, self._constant(shift), out, positions, w // 2)
        return out

    def filtered(self, x: Tensor, correction: Tensor, shift: int) -> Tensor:
        n, h, w, _ = correction.shape
        out = self._out(tuple(x.shape), torch.uint8)
        self._by_position(self._kernels.filtered, n * h * w, 12, x, correction, out, n * h * w, w, shift)
        return out

    def corrected(self, x: Tensor | None, correction: Tensor | None, shift: int) -> Tensor:
        given = x if x is not None else correction
        assert given is not None
        out = self._out(tuple(given.shape), torch.uint8)
        state, by = given if x is None else x, given if correction is None else correction
        self._flat(self._kernels.corrected, out.numel(), state, by, out, out.numel(), shift, state=x is not None, corrects=correction is not None)
        return out

    def looked_up(self, table: NDArray[np.int16], x: Tensor) -> Tensor:
        return self._looked_up(table, x, -32768)

    def _looked_up(self, table: NDArray[Any], x: Tensor, first: int) -> Tensor:
        placed = self._constant(table)
        out = self._out(tuple(x.shape), placed.dtype)
        self._flat(self._kernels.look_up, x.numel(), placed, x, out, x.numel(), first)
        return out

    def gated(self, x: Tensor, table: NDArray[np.int16], index: Tensor, add: Tensor) -> Tensor:
        n, h, w, c = x.shape
        out = torch.empty_like(x)
        self._by_position(self._kernels.gate, n * h * w, c, x, self._constant(table), index, add, out, n * h * w, h * w, channels=c)
        return out

    def state_of(self, pixels: Tensor) -> Tensor:
        return self._looked_up(STATES, pixels, 0)


def _power_of_two(number: int) -> int:
    """The least that is no less."""
    return 1 << (number - 1).bit_length()
