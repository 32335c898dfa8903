"""The integer operations of INTEGER.md on arrays of one picture, `[H, W, C]`: a compiled backend, and a portable one that any torch runs.

Both give the same bits. The compiled one (C, SSE4.1 / AVX2 / AVX-512 VNNI chosen at run time) sums int16 products in int32, which the packer has
proved cannot overflow. The portable one is float64 convolutions over whole numbers: every partial sum is below 2^53, so every order of
summation is exact, on CPUs and on GPUs.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from msinn_core.integer.arrays import I16, I32, NumpyArrays

Costs = tuple[NDArray[np.float32], I32, I32, I32]
"""`Tables.symbol_bits()` with int32 positions, and the tables' offsets."""

DENSE, EDGES, CORNERS, POINT = 0, 1, 2, 3
"""Kinds of layer: 3x3; its 4 edge neighbours from the other checkerboard half; centre and 4 corners within a half; 1x1."""

NUM_TAPS = (9, 4, 5, 1)
STATE_LIMIT = 1 << 26
LANES = 16
SCALAR, SSE41, AVX2, AVX512 = 0, 1, 2, 3

kernel: Any
try:
    kernel = importlib.import_module("msinn_core.integer._int16")
except ImportError:  # installed without a C compiler
    kernel = None

COMPILED = kernel is not None
"""Whether the fast kernel is there; the portable form gives the same bits at about 1/100 of the speed."""


@dataclass(frozen=True)
class Layer:
    """One convolution: `out = clamp16((bias + sum w x + 2^(shift-1)) >> shift)`, then LeakyReLU 0.01 if `leaky`.

    Attributes:
        weight: int16 `[cout, taps, cin]`, taps in the order of INTEGER.md.
        bias: int32 `[cout]`.
        shift: int32 `[cout]`, 1 to 30.
        kind: `DENSE`, `EDGES`, `CORNERS` or `POINT`.
        leaky: Whether negative values are multiplied by 164 / 2^14.
    """

    weight: I16
    bias: I32
    shift: I32
    kind: int
    leaky: bool
    packed: tuple[I16, I32, I32] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        cout, taps, cin = self.weight.shape
        blocks = -(-cout // LANES)
        weight = np.zeros((blocks * LANES, taps, cin), np.int16)
        weight[:cout] = self.weight
        weight = np.ascontiguousarray(weight.reshape(blocks, LANES, taps, cin // 2, 2).transpose(0, 2, 3, 1, 4))
        bias, shift = np.zeros(blocks * LANES, np.int32), np.ones(blocks * LANES, np.int32)
        bias[:cout] = self.bias + (1 << (self.shift - 1))
        shift[:cout] = self.shift
        object.__setattr__(self, "packed", (weight, bias, shift))


class Compiled(NumpyArrays):
    """The C kernel.

    Args:
        threads: Rows of large layers are shared among this many.
        isa: An instruction set no better than this; the best there is if negative.
    """

    def __init__(self, threads: int = 1, isa: int = -1) -> None:
        self.isa = isa
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None

    def _spread(self, rows: int, work: int, run: Callable[[int, int], None]) -> None:
        if self._pool is None or work < 1 << 22 or rows < 2 * self._threads:
            run(0, rows)
            return
        edges = [rows * i // self._threads for i in range(self._threads + 1)]
        for future in [self._pool.submit(run, a, b) for a, b in pairwise(edges)]:
            future.result()

    def conv(self, x: I16, layer: Layer, *, parity: int = 0, add: I16 | None = None) -> I16:
        h, w, cin = x.shape
        cout, taps, _ = layer.weight.shape
        out = np.empty((h, w, cout), np.int16)
        weight, bias, shift = layer.packed

        def run(row0: int, row1: int) -> None:
            kernel.conv(x, weight, bias, shift, add, out, h, w, cin, cout, layer.kind, parity, int(layer.leaky), row0, row1, self.isa)

        self._spread(h, h * w * cin * cout * taps, run)
        return out

    def _rows(self, h: int, work: int, run: Callable[[slice], None]) -> None:
        self._spread(h, work, lambda a, b: run(slice(a, b)))

    def unit(self, z: I32, st: I16, table: I32, t_shift: int, matrix: NDArray[np.float64], bias: NDArray[np.float64], affine: bool) -> I32:
        out, factor, channels = np.empty_like(z), float(1 << t_shift), z.shape[2]
        self._rows(
            z.shape[0],
            z.size * channels * 4,
            lambda r: kernel.unit(z[r], st[r], table, factor, matrix, bias, out[r], channels, int(affine), self.isa),
        )
        return out

    def narrow(self, x: I32, shift: I32) -> I16:
        out = np.empty(x.shape, np.int16)
        self._rows(x.shape[0], x.size * 4, lambda r: kernel.narrow(x[r], shift, out[r], x.shape[2]))
        return out

    def levels(self, parameters: I16, log2: I32, log_gain: I32, first: int, step: int, tables: int) -> NDArray[np.uint8]:
        h, w, both = parameters.shape
        out = np.empty((h, w, both // 2), np.uint8)
        self._rows(h, out.size * 16, lambda r: kernel.levels(parameters[r], log2, log_gain, out[r], both // 2, first, step, tables))
        return out

    def dequantise(self, symbols: I32, parameters: I16, inv_gain: I32, mean_shift: int) -> I32:
        out = np.empty(symbols.shape, np.int32)
        self._rows(out.shape[0], out.size * 8, lambda r: kernel.dequantise(symbols[r], parameters[r], inv_gain, out[r], out.shape[2], mean_shift))
        return out

    def refine(self, y: I32, prediction: I16, table: I16, inv_gain: I32) -> None:
        self._rows(y.shape[0], y.size * 8, lambda r: kernel.refine(y[r], prediction[r], table, inv_gain, y.shape[2]))

    # Of the encoder, which nothing needs to repeat bit by bit.

    def mix(self, x: I32, matrix: NDArray[np.float64], bias: NDArray[np.float64]) -> I32:
        """`M x + bias`."""
        out, channels = np.empty_like(x), x.shape[2]
        self._rows(x.shape[0], x.size * channels * 4, lambda r: kernel.mix(x[r], matrix, bias, out[r], channels, self.isa))
        return out

    def couple(self, z: I32, st: I16, reciprocal: NDArray[np.float32], t_shift: int, affine: bool) -> None:
        """Forward coupling in place."""
        factor = float(1 << t_shift)
        self._rows(z.shape[0], z.size * 16, lambda r: kernel.couple(z[r], st[r], reciprocal, factor, z.shape[2], int(affine)))

    def quantise(
        self, y: I32, parameters: I16, indexes: NDArray[np.uint8], gain: NDArray[np.float32], zone: NDArray[np.float32], mean_shift: int
    ) -> I32:
        """Rate-aware rounding of `(y - mean) * gain`; `gain` `[C]` per Q16 unit, `zone` `[256, 16]`."""
        out = np.empty(y.shape, np.int32)
        self._rows(
            y.shape[0],
            y.size * 16,
            lambda r: kernel.quantise(y[r], parameters[r], indexes[r], gain, zone, out[r], y.shape[2], mean_shift),
        )
        return out

    def tally(
        self,
        y: I32,
        parameters: I16,
        mean_shift: int,
        log2: I32,
        first: int,
        step: int,
        log_gain: I32,
        gain: NDArray[np.float32],
        inv_gain: NDArray[np.float32],
        zone: NDArray[np.float32],
        costs: Costs,
        stride: int,
    ) -> NDArray[np.float64]:
        """Table bits and squared error (Q16 steps) `[R, 2]` of latents at R rates, over every `stride`-th row and column.

        Args:
            y: `[h, w, C]` Q16.
            parameters: `[h, w, 2C]` scales and means.
            mean_shift: From means to Q16.
            log2: Table of logarithms.
            first: Of the table index.
            step: Of the table index.
            log_gain: `[R, C]`, as in `levels`.
            gain: `[R, C]` per Q16 unit.
            inv_gain: `[R, C]` in Q16 units.
            zone: `[256, 16]`, as in `quantise`.
            costs: Bits of every symbol of every table, and where they lie.
            stride: 1 for all positions.
        """
        h, w, channels = y.shape
        bits, base, size, offsets = costs
        out = np.zeros((len(gain), 2))
        kernel.tally(
            y, parameters, log2, log_gain, gain, inv_gain, zone, bits, base, size, offsets, out, h, w, channels, mean_shift, first, step,
            len(base), stride, len(gain),
        )  # fmt: skip
        return out


class Portable(NumpyArrays):
    """Float64 over whole numbers, in torch.

    Args:
        device: Where convolutions run.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.device = torch.device(device)

    def _to(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self.device, torch.float64)

    @staticmethod
    def _shifted(value: Tensor, shift: Tensor) -> Tensor:
        """`(value + 2^(shift-1)) >> shift`; `shift` of 0 changes nothing."""
        return torch.floor(torch.ldexp(value, -shift) + torch.where(shift > 0, 0.5, 0.0))

    @torch.inference_mode()
    def conv(self, x: I16, layer: Layer, *, parity: int = 0, add: I16 | None = None) -> I16:
        inputs, weight = self._to(x), self._to(layer.weight)
        sums = self._to(layer.bias)
        for t, tap in enumerate(_taps(inputs, layer.kind, parity)):
            sums = sums + tap @ weight[:, t].T
        out = self._shifted(sums, self._to(layer.shift)).clamp(-32768, 32767)
        if layer.leaky:
            out = torch.where(out < 0, torch.floor((out * 164 + 8192) / 16384), out)
        if add is not None:
            out = (out + self._to(add)).clamp(-32768, 32767)
        return out.to(torch.int16).cpu().numpy()

    @torch.inference_mode()
    def unit(self, z: I32, st: I16, table: I32, t_shift: int, matrix: NDArray[np.float64], bias: NDArray[np.float64], affine: bool) -> I32:
        half = z.shape[2] // 2
        state, t = self._to(z), self._to(st[..., half:] if affine else st)
        z2 = state[..., half:]
        if affine:
            z2 = torch.floor(z2 * self._to(table[st[..., :half].astype(np.int64) + 32768]) / 2**20 + 0.5)
        v = torch.cat((state[..., :half], z2 - t * 2**t_shift), dim=2).clamp(-STATE_LIMIT, STATE_LIMIT)
        x = torch.floor(v @ self._to(matrix) / 2**20 + 0.5) - self._to(bias)
        return x.clamp(-STATE_LIMIT, STATE_LIMIT).to(torch.int32).cpu().numpy()

    def narrow(self, x: I32, shift: I32) -> I16:
        return ((x.astype(np.int64) + ((1 << shift) >> 1)) >> shift).clip(-32768, 32767).astype(np.int16)

    def levels(self, parameters: I16, log2: I32, log_gain: I32, first: int, step: int, tables: int) -> NDArray[np.uint8]:
        scales = parameters[..., : parameters.shape[2] // 2].astype(np.int64)
        value = np.where(scales > 0, log2[scales.clip(0)].astype(np.int64) + log_gain - first, 0)
        return (value.clip(0, tables * step - 1) // step).astype(np.uint8)

    def dequantise(self, symbols: I32, parameters: I16, inv_gain: I32, mean_shift: int) -> I32:
        means = parameters[..., parameters.shape[2] // 2 :].astype(np.int64) << mean_shift
        y: I32 = np.clip(means + ((symbols.astype(np.int64) * inv_gain + 128) >> 8), -STATE_LIMIT, STATE_LIMIT).astype(np.int32)
        return y

    def refine(self, y: I32, prediction: I16, table: I16, inv_gain: I32) -> None:
        entry = table[(prediction.astype(np.int64) + 32768) >> 4].astype(np.int64)
        y += ((entry * inv_gain + (1 << 23)) >> 24).astype(np.int32)

    def mix(self, x: I32, matrix: NDArray[np.float64], bias: NDArray[np.float64]) -> I32:
        """`M x + bias`."""
        z: I32 = np.clip(np.floor(x @ matrix + bias + 0.5), -STATE_LIMIT, STATE_LIMIT).astype(np.int32)
        return z

    def couple(self, z: I32, st: I16, reciprocal: NDArray[np.float32], t_shift: int, affine: bool) -> None:
        """Forward coupling in place."""
        half = z.shape[2] // 2
        value = z[..., half:] + (st[..., half:] if affine else st).astype(np.float64) * 2**t_shift
        if affine:
            value = np.floor(value * reciprocal[st[..., :half].astype(np.int64) + 32768] + 0.5)
        z[..., half:] = value.clip(-STATE_LIMIT, STATE_LIMIT)

    def quantise(
        self, y: I32, parameters: I16, indexes: NDArray[np.uint8], gain: NDArray[np.float32], zone: NDArray[np.float32], mean_shift: int
    ) -> I32:
        """Rate-aware rounding of `(y - mean) * gain`; `gain` `[C]` per Q16 unit, `zone` `[256, 16]`."""
        means = parameters[..., parameters.shape[2] // 2 :].astype(np.int32) << mean_shift
        exact = (y - means).astype(np.float32) * gain
        size = np.abs(exact)
        rounded = np.rint(size)
        rounded -= size - rounded < zone[indexes, np.minimum(rounded, 15).astype(np.int64)] - np.float32(0.5)
        symbols: I32 = np.where(exact < 0, -rounded, rounded).astype(np.int32)
        return symbols

    def tally(
        self,
        y: I32,
        parameters: I16,
        mean_shift: int,
        log2: I32,
        first: int,
        step: int,
        log_gain: I32,
        gain: NDArray[np.float32],
        inv_gain: NDArray[np.float32],
        zone: NDArray[np.float32],
        costs: Costs,
        stride: int,
    ) -> NDArray[np.float64]:
        """As `Compiled.tally`."""
        bits, base, size, offsets = costs
        y, parameters = np.ascontiguousarray(y[::stride, ::stride]), np.ascontiguousarray(parameters[::stride, ::stride])
        means = parameters[..., y.shape[2] :].astype(np.int32) << mean_shift
        out = []
        for log_gain_at, gain_at, inv_at in zip(log_gain, gain, inv_gain, strict=True):
            indexes = self.levels(parameters, log2, log_gain_at, first, step, len(base))
            symbols = self.quantise(y, parameters, indexes, gain_at, zone, mean_shift)
            error = (y - means).astype(np.float64) - symbols * inv_at
            position, size_of = symbols.astype(np.int64) - offsets[indexes], size[indexes]
            position = np.where((position >= 0) & (position < size_of), position, size_of)
            out.append((float(bits[base[indexes] + position].sum(dtype=np.float64)), float(np.square(error).sum())))
        return np.array(out)


def _taps(x: Tensor, kind: int, parity: int) -> list[Tensor]:
    """The inputs of every tap, `[H, W, C]` each, zero outside the picture."""
    if kind == POINT:
        return [x]
    h, w, _ = x.shape
    padded = F.pad(x, (0, 0, 1, 1, 1, 1))

    def at(row: int, column: int) -> Tensor:
        return padded[1 + row : 1 + row + h, 1 + column : 1 + column + w]

    if kind == DENSE:
        return [at(row, column) for row in (-1, 0, 1) for column in (-1, 0, 1)]
    # In a checkerboard half, column j of a row is column 2j + offset of the picture, and the offset changes from row to row.
    offset = (torch.arange(h, device=x.device) + parity)[:, None, None] % 2 == 1

    def beside(row: int, step: int) -> Tensor:
        return torch.where(offset, at(row, step), at(row, step - 1))

    if kind == EDGES:
        return [at(-1, 0), beside(0, 0), beside(0, 1), at(1, 0)]
    return [beside(-1, 0), beside(-1, 1), at(0, 0), beside(1, 0), beside(1, 1)]


def best_backend(threads: int = 1) -> Compiled | Portable:
    """The compiled kernel where it was built, else the portable form."""
    return Compiled(threads) if kernel is not None else Portable()
