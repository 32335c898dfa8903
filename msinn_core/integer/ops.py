"""The integer operations of INTEGER.md on arrays of one picture, `[H, W, C]`, compiled: C, with SSE4.1, AVX2, AVX-512 VNNI or AMX chosen at run time,
and NEON on 64-bit ARM.

Sums of int16 products are int32, which the packer has proved cannot overflow: every order of summation gives the same bits.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msinn_core.integer.arrays import I16, I32, NumpyArrays

Costs = tuple[NDArray[np.float32], I32, I32, I32]
"""`Tables.symbol_bits()` with int32 positions, and the tables' offsets."""

DENSE, EDGES, CORNERS, POINT = 0, 1, 2, 3
"""Kinds of layer: 3x3; its 4 edge neighbours from the other checkerboard half; centre and 4 corners within a half; 1x1."""

NUM_TAPS = (9, 4, 5, 1)
STATE_LIMIT = 1 << 26
_SETTLED_BYTES = 4 << 20
LANES = 16
SCALAR, SSE41, AVX2, AVX512, AMX = 0, 1, 2, 3, 4
"""Instruction sets of x86, from the worst to the best; 64-bit ARM has `SCALAR` and, as 1, NEON. `kernel.isa_name` names those of this machine."""

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
        weight = _aligned(weight.reshape(blocks, LANES, taps, cin // 2, 2).transpose(0, 2, 3, 1, 4).reshape(-1), *self._tiles(weight))
        bias, shift = np.zeros(blocks * LANES, np.int32), np.ones(blocks * LANES, np.int32)
        bias[:cout] = self.bias + (1 << (self.shift - 1))
        shift[:cout] = self.shift
        object.__setattr__(self, "packed", (weight, bias, shift))

    def _tiles(self, weight: I16) -> list[I16]:
        """For AMX: of 64 inputs and 16 output channels the low bytes, then the high ones, in fours, as it multiplies them.

        None where it is not there, nor for 1x1 layers of so few inputs that most of a tile would be empty.
        """
        channels = weight.shape[2]
        if kernel is None or kernel.isa() < AMX or (self.kind == POINT and channels < 24):
            return []
        if self.kind == DENSE and channels <= 48 and -(-9 * channels // 64) < 3 * -(-3 * channels // 64):
            # One run, column by column; the rows of a column change places in turn from row to row of the picture.
            columns = weight.reshape(-1, 3, 3, channels).swapaxes(1, 2)
            return [_tiled([np.roll(columns, turn, axis=2)]) for turn in range(3)]
        ends = np.cumsum(_RUNS[self.kind])[:-1]
        return [_tiled(np.split(weight, ends, axis=1))]


_RUNS = ((3, 3, 3), (1, 2, 1), (2, 1, 2), (1,))
"""Taps of each kind that stand side by side."""


def _tiled(runs: list[I16]) -> I16:
    """Weights `[channels, ...]` of each run as tiles, filled with zeros."""
    parts = []
    for run in runs:
        flat = run.reshape(len(run), -1)
        steps = -(-flat.shape[1] // 64)
        flat = np.pad(flat, ((0, 0), (0, 64 * steps - flat.shape[1])))
        parts.append(flat.reshape(-1, LANES, steps, 16, 4).transpose(0, 2, 3, 1, 4))
    tiles = np.concatenate(parts, axis=1)
    limbs: I16 = np.stack((tiles & 255, tiles >> 8), axis=2).astype(np.uint8).reshape(-1).view(np.int16)
    return limbs


def _aligned(*parts: I16) -> I16:
    """One after the other, from the start of a line of the cache: what a tile takes from two lines takes it twice the time."""
    out = np.empty(sum(part.size for part in parts) + 32, np.int16)
    first = -out.ctypes.data % 64 // 2
    return np.concatenate(parts, out=out[first : first + out.size - 32])


class Compiled(NumpyArrays):
    """The C kernel.

    Args:
        threads: Rows of large layers are shared among this many.
        isa: An instruction set no better than this; the best there is if negative.
    """

    def __init__(self, threads: int = 1, isa: int = -1) -> None:
        kernel.keep_memory()
        self.isa = isa
        self.level: int = kernel.isa() if isa < 0 else min(isa, kernel.isa())
        """The instruction set in use: `SCALAR`, or the number of a better one that this machine has."""
        self.name: str = kernel.isa_name(self.level)
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None

    def _spread(self, rows: int, work: int, run: Callable[[int, int], None]) -> None:
        if self._pool is None or work < 1 << 22 or rows < 2 * self._threads:
            run(0, rows)
            return
        edges = [rows * i // self._threads for i in range(self._threads + 1)]
        for future in [self._pool.submit(run, a, b) for a, b in pairwise(edges)]:
            future.result()

    def settle(self, x: NDArray[Any]) -> None:
        """Give memory back, where `x` is large: what `keep_memory` keeps is as much again otherwise."""
        if x.nbytes > _SETTLED_BYTES:
            kernel.give_back()

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

    def unit(
        self,
        z: I32,
        st: I16,
        table: I32,
        t_shift: int,
        matrix: NDArray[np.float64],
        bias: NDArray[np.float64],
        affine: bool,
        second: I32 | None = None,
    ) -> I32:
        h, w, half = z.shape
        channels = half if second is None else 2 * half
        out, factor = np.empty((h, w, channels), np.int32), float(1 << t_shift)

        def run(r: slice) -> None:
            other = None if second is None else second[r]
            kernel.unit(z[r], st[r], table, factor, matrix, bias, out[r], channels, int(affine), self.isa, other)

        self._rows(h, out.size * channels * 4, run)
        return out

    def narrow(self, x: I32, shift: I32) -> I16:
        return self.narrowed(shift, x)

    def narrowed(self, shift: I32, *parts: I32) -> I16:
        h, w = parts[0].shape[:2]
        out = np.empty((h, w, len(shift)), np.int16)
        at = 0
        for part in parts:
            step, taken = part.shape[2], min(part.shape[2], len(shift) - at)
            by = shift[at : at + taken]

            def run(r: slice, part: I32 = part, by: I32 = by, step: int = step, at: int = at) -> None:
                kernel.narrow(part[r], by, out[r], len(by), self.isa, 0, step, at, len(shift))

            self._rows(h, h * w * taken * 4, run)
            at += taken
        return out

    def levels(self, parameters: I16, log2: I32, log_gain: I32, first: int, step: int, tables: int) -> NDArray[np.uint8]:
        h, w, both = parameters.shape
        out = np.empty((h, w, both // 2), np.uint8)
        self._rows(h, out.size * 16, lambda r: kernel.levels(parameters[r], log2, log_gain, out[r], both // 2, first, step, tables, self.isa))
        return out

    def dequantise(self, symbols: I32, parameters: I16, inv_gain: I32, mean_shift: int) -> I32:
        out = np.empty(symbols.shape, np.int32)
        self._rows(
            out.shape[0], out.size * 8, lambda r: kernel.dequantise(symbols[r], parameters[r], inv_gain, out[r], out.shape[2], mean_shift, self.isa)
        )
        return out

    def refine(self, y: I32, prediction: I16, table: I16, inv_gain: I32) -> None:
        self._rows(y.shape[0], y.size * 8, lambda r: kernel.refine(y[r], prediction[r], table, inv_gain, y.shape[2]))

    # Moving values about.

    def gathered(self, x: I32, shift: I32) -> I16:
        h, w = x.shape[0] // 2, x.shape[1] // 2
        out = np.empty((h, w, 12), np.int16)
        self._spread(h, x.size * 4, lambda a, b: kernel.gather(x[2 * a : 2 * b], shift, out[a:b], b - a, w, self.isa))
        return out

    def filtered(self, x: I32, correction: I16, shift: int) -> NDArray[np.uint8]:
        h, w = correction.shape[:2]
        out = np.empty(x.shape, np.uint8)
        self._spread(h, x.size * 8, lambda a, b: kernel.corrected(x[2 * a : 2 * b], correction[a:b], out[2 * a : 2 * b], b - a, w, shift, self.isa))
        return out

    @staticmethod
    def squeeze(x: NDArray[Any]) -> NDArray[Any]:
        h, w, c = x.shape
        out, b = np.empty((h // 2, w // 2, 4 * c), x.dtype), c * x.itemsize
        for i in (0, 1):
            kernel.place(x, i * w * b, 2 * w * b, 2 * b, out, 2 * i * b, 2 * w * b, 4 * b, h // 2, w // 2, 2 * b)
        return out

    @staticmethod
    def unsqueeze(x: NDArray[Any]) -> NDArray[Any]:
        h, w, c = x.shape
        out, b = np.empty((2 * h, 2 * w, c // 4), x.dtype), c // 4 * x.itemsize
        for i in (0, 1):
            kernel.place(x, 2 * i * b, 4 * w * b, 4 * b, out, 2 * i * w * b, 4 * w * b, 2 * b, h, w, 2 * b)
        return out

    @staticmethod
    def half(x: NDArray[Any], parity: int) -> NDArray[Any]:
        h, w, c = x.shape
        out, b = np.empty((h, w // 2, c), x.dtype), c * x.itemsize
        for i in range(min(2, h)):
            kernel.place(x, (i * w + (parity + i) % 2) * b, 2 * w * b, 2 * b, out, i * (w // 2) * b, w * b, b, (h + 1 - i) // 2, w // 2, b)
        return out

    @staticmethod
    def whole(half: NDArray[Any], parity: int, other: NDArray[Any]) -> NDArray[Any]:
        h, w, c = half.shape
        out, b = np.empty((h, 2 * w, c), half.dtype), c * half.itemsize
        for x, first in ((half, parity), (other, 1 - parity)):
            for i in range(min(2, h)):
                kernel.place(x, i * w * b, 2 * w * b, b, out, (2 * i * w + (first + i) % 2) * b, 4 * w * b, 2 * b, (h + 1 - i) // 2, w, b)
        return out

    @staticmethod
    def joined(*parts: NDArray[Any]) -> NDArray[Any]:
        h, w = parts[0].shape[:2]
        out, at = np.empty((h, w, sum(part.shape[2] for part in parts)), parts[0].dtype), 0
        step = out.shape[2] * out.itemsize
        for part in parts:
            b = part.shape[2] * part.itemsize
            kernel.place(part, 0, w * b, b, out, at, w * step, step, h, w, b)
            at += b
        return out

    @staticmethod
    def channels(x: NDArray[Any], start: int, stop: int) -> NDArray[Any]:
        h, w, c = x.shape
        out = np.empty((h, w, stop - start), x.dtype)
        step, b = c * x.itemsize, (stop - start) * x.itemsize
        kernel.place(x, start * x.itemsize, w * step, step, out, 0, w * b, b, h, w, b)
        return out

    # Of the encoder, which nothing needs to repeat bit by bit.

    def mix(self, x: I32, matrix: NDArray[np.float64], bias: NDArray[np.float64]) -> I32:
        """`M x + bias`."""
        out, channels = np.empty_like(x), x.shape[2]
        self._rows(x.shape[0], x.size * channels * 4, lambda r: kernel.mix(x[r], matrix, bias, out[r], channels, self.isa))
        return out

    def couple(self, z: I32, st: I16, reciprocal: NDArray[np.float32], t_shift: int, affine: bool) -> None:
        """Forward coupling in place."""
        factor = float(1 << t_shift)
        self._rows(z.shape[0], z.size * 16, lambda r: kernel.couple(z[r], st[r], reciprocal, factor, z.shape[2], int(affine), self.isa))

    def quantise(
        self, y: I32, parameters: I16, indexes: NDArray[np.uint8], gain: NDArray[np.float32], zone: NDArray[np.float32], mean_shift: int
    ) -> I32:
        """Rate-aware rounding of `(y - mean) * gain`; `gain` `[C]` per Q16 unit, `zone` `[256, 16]`."""
        out = np.empty(y.shape, np.int32)
        self._rows(
            y.shape[0],
            y.size * 16,
            lambda r: kernel.quantise(y[r], parameters[r], indexes[r], gain, zone, out[r], y.shape[2], mean_shift, self.isa),
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


def best_backend(threads: int = 1) -> Any:
    """The compiled kernel where it was built, else the portable form."""
    if kernel is not None:
        return Compiled(threads)
    from msinn_core.integer.portable import Portable

    return Portable()


def other_backends(backend: Any, threads: int = 1) -> Iterator[Any]:
    """Backends of this machine that compute in another way than `backend`, the quickest first.

    Below an instruction set come the lower ones; what is no instruction set of the compiled kernel has all of them below it. AMX has no code of its
    own for units, so that the next below it is AVX2. The portable form is the last. Layers and units differ between instruction sets; table indexes
    and dequantisation are one code in all of them, narrowing in those below AVX-512, another in the portable form.
    """
    if kernel is not None:
        level = backend.level if isinstance(backend, Compiled) else kernel.isa() + 1
        yield from (Compiled(threads, isa) for isa in range((AVX512 if level == AMX else level) - 1, -1, -1))
    from msinn_core.integer.portable import Portable

    if not isinstance(backend, Portable):
        yield Portable()
