"""What lies between the layers, in Triton: one kernel for each operation of `Backend` where torch would start five to fifteen.

All follow `backend.OnDevice`, which says the same in torch, to the same bits. A program has `block_m` positions (of all pictures of a batch, row by
row) by all channels, `block_c` of them with those that are masked. Arithmetic is int32 or int64, never narrower. Where it is in floats, a product
and a sum must not become one instruction that rounds once (FMA): what is exact either way says so, the rest is compiled without (`enable_fp_fusion`).
"""

from __future__ import annotations

import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]

LIMIT = tl.constexpr(1 << 26)
"""`ops.STATE_LIMIT`"""


@triton.jit
def _cut(value, most):  # type: ignore[no-untyped-def]
    return tl.minimum(tl.maximum(value, -most), most)


@triton.jit
def _cut16(value):  # type: ignore[no-untyped-def]
    return tl.minimum(tl.maximum(value, -32768), 32767).to(tl.int16)


@triton.jit
def _narrowed(value, by):  # type: ignore[no-untyped-def]
    """int16 of int32; a shift of 0 changes nothing."""
    return _cut16((value + ((1 << by) >> 1)) >> by)


@triton.jit(do_not_specialize=["positions"])  # type: ignore[untyped-decorator]
def narrow(  # type: ignore[no-untyped-def]
    first, second, shift, out, positions,
    first_channels: tl.constexpr, second_channels: tl.constexpr, channels: tl.constexpr, block_m: tl.constexpr, block_c: tl.constexpr,
):  # fmt: skip
    """`Backend.narrowed` of one part or two: int16 `[positions, channels]` of int32 `[positions, first_channels]` and `[.., second_channels]`."""
    m = tl.program_id(0) * block_m + tl.arange(0, block_m)
    c = tl.arange(0, block_c)
    inside = (m < positions)[:, None] & (c < channels)[None, :]
    at = m.to(tl.int64)[:, None]
    value = tl.load(first + at * first_channels + c[None, :], mask=inside & (c < first_channels)[None, :], other=0)
    if second_channels > 0:
        beyond = inside & (c >= first_channels)[None, :]
        value += tl.load(second + at * second_channels + (c - first_channels)[None, :], mask=beyond, other=0)
    by = tl.load(shift + c, mask=c < channels, other=0)[None, :]
    tl.store(out + at * channels + c[None, :], _narrowed(value, by), mask=inside)


@triton.jit(do_not_specialize=["positions", "t_shift"])  # type: ignore[untyped-decorator]
def unit_inputs(  # type: ignore[no-untyped-def]
    first, second, st, table, out, positions, t_shift,
    stride: tl.constexpr, half: tl.constexpr, affine: tl.constexpr, block_m: tl.constexpr, block_c: tl.constexpr,
):  # fmt: skip
    """What `Backend.unit` multiplies by its matrix: float64 `[positions, 2 half]`, whole numbers.

    Args:
        first: int32, first half of the state's channels, of `stride` a position.
        second: int32, second half; likewise.
        st: int16 `[positions, half]`, or `[positions, 2 half]` if `affine`.
        table: int32 `[65536]`.
        out: What is multiplied.
        positions: Of all pictures.
        t_shift: Of t.
        stride: See `first`.
        half: Of the state's channels.
        affine: Whether there are scales.
        block_m: Positions a program.
        block_c: Channels, those that are masked among them.
    """
    width: tl.constexpr = 2 * half if affine else half
    m = tl.program_id(0) * block_m + tl.arange(0, block_m)
    c = tl.arange(0, block_c)
    inside = (m < positions)[:, None]
    at = m.to(tl.int64)[:, None]
    kept = inside & (c < half)[None, :]
    moved = inside & ((c >= half) & (c < 2 * half))[None, :]
    beyond = (c - half)[None, :]
    value = tl.load(second + at * stride + beyond, mask=moved, other=0).to(tl.int64)
    if affine:
        scale = tl.load(st + at * width + beyond, mask=moved, other=0).to(tl.int32)
        value = (value * tl.load(table + (scale + 32768), mask=moved, other=0) + (1 << 19)) >> 20
    value -= tl.load(st + at * width + (width - half) + beyond, mask=moved, other=0).to(tl.int64) << t_shift
    value += tl.load(first + at * stride + c[None, :], mask=kept, other=0)
    tl.store(out + at * (2 * half) + c[None, :], _cut(value, LIMIT).to(tl.float64), mask=kept | moved)


@triton.jit(do_not_specialize=["positions"])  # type: ignore[untyped-decorator]
def unit_outputs(  # type: ignore[no-untyped-def]
    sums, bias, out, positions, channels: tl.constexpr, forward: tl.constexpr, block_m: tl.constexpr, block_c: tl.constexpr,
):  # fmt: skip
    """What becomes of the products: `Backend.unit`, or `forward` `Backend.mix`. A power of two and a sum of 53 bits are exact, FMA or not."""
    m = tl.program_id(0) * block_m + tl.arange(0, block_m)
    c = tl.arange(0, block_c)
    inside = (m < positions)[:, None] & (c < channels)[None, :]
    place = m.to(tl.int64)[:, None] * channels + c[None, :]
    offset = tl.load(bias + c, mask=c < channels, other=0.0)[None, :]
    value = tl.load(sums + place, mask=inside, other=0.0)
    if forward:
        x = tl.floor(value + offset + 0.5)
    else:
        x = tl.floor(value * 9.5367431640625e-07 + 0.5) - offset
    tl.store(out + place, _cut(x, 67108864.0).to(tl.int32), mask=inside)


@triton.jit(do_not_specialize=["positions", "t_shift"])  # type: ignore[untyped-decorator]
def couple(  # type: ignore[no-untyped-def]
    z, st, reciprocal, positions, t_shift, half: tl.constexpr, affine: tl.constexpr, block_m: tl.constexpr, block_c: tl.constexpr,
):  # fmt: skip
    """`Backend.couple`: the second half of int32 `[positions, 2 half]` in place. The sum is exact in whole numbers; a product that does not fit 53
    bits must be rounded before a half is added: no FMA."""
    width: tl.constexpr = 2 * half if affine else half
    m = tl.program_id(0) * block_m + tl.arange(0, block_m)
    c = tl.arange(0, block_c)
    inside = (m < positions)[:, None] & (c < half)[None, :]
    at = m.to(tl.int64)[:, None]
    place = z + at * (2 * half) + half + c[None, :]
    t = tl.load(st + at * width + (width - half) + c[None, :], mask=inside, other=0).to(tl.int64)
    value = (tl.load(place, mask=inside, other=0).to(tl.int64) + (t << t_shift)).to(tl.float64)
    if affine:
        scale = tl.load(st + at * width + c[None, :], mask=inside, other=0).to(tl.int32)
        value = tl.floor(value * tl.load(reciprocal + (scale + 32768), mask=inside, other=0.0).to(tl.float64) + 0.5)
    tl.store(place, _cut(value, 67108864.0).to(tl.int32), mask=inside)


@triton.jit(do_not_specialize=["positions", "each", "gain_stride", "first", "last"])  # type: ignore[untyped-decorator]
def levels(  # type: ignore[no-untyped-def]
    parameters, log2, log_gain, out, positions, each, gain_stride, first, last,
    step: tl.constexpr, channels: tl.constexpr, block_m: tl.constexpr, block_c: tl.constexpr,
):  # fmt: skip
    """`Backend.levels`; `each` positions a picture, whose gains are a row of `gain_stride`, or one row for all if that is 0."""
    m = tl.program_id(0) * block_m + tl.arange(0, block_m)
    c = tl.arange(0, block_c)
    inside = (m < positions)[:, None] & (c < channels)[None, :]
    at = m.to(tl.int64)[:, None]
    scale = tl.load(parameters + at * (2 * channels) + c[None, :], mask=inside, other=0).to(tl.int32)
    gain = tl.load(log_gain + (m // each)[:, None] * gain_stride + c[None, :], mask=inside, other=0)
    value = tl.load(log2 + tl.maximum(scale, 0), mask=inside, other=0) + (gain - first)
    value = tl.minimum(tl.maximum(tl.where(scale > 0, value, 0), 0), last)
    tl.store(out + at * channels + c[None, :], (value // step).to(tl.uint8), mask=inside)


@triton.jit(do_not_specialize=["positions", "each", "gain_stride", "mean_shift"])  # type: ignore[untyped-decorator]
def dequantise(  # type: ignore[no-untyped-def]
    symbols, parameters, inv_gain, out, positions, each, gain_stride, mean_shift,
    channels: tl.constexpr, block_m: tl.constexpr, block_c: tl.constexpr,
):  # fmt: skip
    """`Backend.dequantise`; gains as in `levels`."""
    m = tl.program_id(0) * block_m + tl.arange(0, block_m)
    c = tl.arange(0, block_c)
    inside = (m < positions)[:, None] & (c < channels)[None, :]
    at = m.to(tl.int64)[:, None]
    mean = tl.load(parameters + at * (2 * channels) + channels + c[None, :], mask=inside, other=0).to(tl.int64)
    gain = tl.load(inv_gain + (m // each)[:, None] * gain_stride + c[None, :], mask=inside, other=0)
    symbol = tl.load(symbols + at * channels + c[None, :], mask=inside, other=0).to(tl.int64)
    y = (mean << mean_shift) + ((symbol * gain + 128) >> 8)
    tl.store(out + at * channels + c[None, :], _cut(y, LIMIT).to(tl.int32), mask=inside)


@triton.jit(do_not_specialize=["positions", "each", "gain_stride"])  # type: ignore[untyped-decorator]
def refine(  # type: ignore[no-untyped-def]
    y, prediction, table, inv_gain, positions, each, gain_stride, channels: tl.constexpr, block_m: tl.constexpr, block_c: tl.constexpr,
):  # fmt: skip
    """`Backend.refine`, in place; gains as in `levels`."""
    m = tl.program_id(0) * block_m + tl.arange(0, block_m)
    c = tl.arange(0, block_c)
    inside = (m < positions)[:, None] & (c < channels)[None, :]
    place = m.to(tl.int64)[:, None] * channels + c[None, :]
    index = (tl.load(prediction + place, mask=inside, other=0).to(tl.int32) + 32768) >> 4
    gain = tl.load(inv_gain + (m // each)[:, None] * gain_stride + c[None, :], mask=inside, other=0)
    entry = tl.load(table + index, mask=inside, other=0).to(tl.int64)
    value = tl.load(y + place, mask=inside, other=0) + ((entry * gain + (1 << 23)) >> 24).to(tl.int32)
    tl.store(y + place, value, mask=inside)


@triton.jit(do_not_specialize=["positions", "each", "gain_stride", "mean_shift"])  # type: ignore[untyped-decorator]
def quantise(  # type: ignore[no-untyped-def]
    y, parameters, indexes, gain, zone, out, positions, each, gain_stride, mean_shift,
    zones: tl.constexpr, channels: tl.constexpr, block_m: tl.constexpr, block_c: tl.constexpr,
):  # fmt: skip
    """`Backend.quantise`; gains as in `levels`, `zones` a table. Floats of 32 bits, every operation rounded by itself: no FMA."""
    m = tl.program_id(0) * block_m + tl.arange(0, block_m)
    c = tl.arange(0, block_c)
    inside = (m < positions)[:, None] & (c < channels)[None, :]
    at = m.to(tl.int64)[:, None]
    place = at * channels + c[None, :]
    mean = tl.load(parameters + at * (2 * channels) + channels + c[None, :], mask=inside, other=0).to(tl.int32) << mean_shift
    by = tl.load(gain + (m // each)[:, None] * gain_stride + c[None, :], mask=inside, other=0.0)
    exact = (tl.load(y + place, mask=inside, other=0) - mean).to(tl.float32) * by
    size = tl.abs(exact)
    # Half to even, as every sum is rounded: from 2^23 on a float of 32 bits has no fraction, and below it gets one of its own size.
    rounded = tl.where(size < 8388608.0, (size + 8388608.0) - 8388608.0, size)
    table = tl.load(indexes + place, mask=inside, other=0).to(tl.int32)
    wider = tl.load(zone + table * zones + tl.minimum(rounded, 15.0).to(tl.int32), mask=inside, other=0.0)
    rounded = tl.where(size - rounded < wider - 0.5, rounded - 1.0, rounded)
    tl.store(out + place, tl.where(exact < 0, -rounded, rounded).to(tl.int32), mask=inside)


@triton.jit(do_not_specialize=["positions", "height", "width", "parity"])  # type: ignore[untyped-decorator]
def half(  # type: ignore[no-untyped-def]
    x, out, positions, height, width, parity, channels: tl.constexpr, block_m: tl.constexpr, block_c: tl.constexpr,
):  # fmt: skip
    """`Backend.half`; `positions`, `height` and `width` of the half."""
    m = tl.program_id(0) * block_m + tl.arange(0, block_m)
    c = tl.arange(0, block_c)
    inside = (m < positions)[:, None] & (c < channels)[None, :]
    source = 2 * m.to(tl.int64) + (((m // width) % height + parity) & 1)
    value = tl.load(x + source[:, None] * channels + c[None, :], mask=inside, other=0)
    tl.store(out + m.to(tl.int64)[:, None] * channels + c[None, :], value, mask=inside)


@triton.jit(do_not_specialize=["positions", "height", "width", "parity"])  # type: ignore[untyped-decorator]
def whole(  # type: ignore[no-untyped-def]
    x, other, out, positions, height, width, parity, channels: tl.constexpr, block_m: tl.constexpr, block_c: tl.constexpr,
):  # fmt: skip
    """`Backend.whole`; `positions`, `height` and `width` of the whole, `parity` of the half x."""
    m = tl.program_id(0) * block_m + tl.arange(0, block_m)
    c = tl.arange(0, block_c)
    inside = (m < positions)[:, None] & (c < channels)[None, :]
    source = (m // 2).to(tl.int64)[:, None] * channels + c[None, :]
    first = (((m // width) % height + m + parity) & 1 == 0)[:, None]
    value = tl.load(x + source, mask=inside & first, other=0) + tl.load(other + source, mask=inside & (first == 0), other=0)
    tl.store(out + m.to(tl.int64)[:, None] * channels + c[None, :], value, mask=inside)


@triton.jit(do_not_specialize=["positions", "width"])  # type: ignore[untyped-decorator]
def halved(x, out, positions, width, channels: tl.constexpr, block_m: tl.constexpr, block_c: tl.constexpr):  # type: ignore[no-untyped-def]
    """`Backend.halved`; `positions` and `width` of what comes out."""
    m = tl.program_id(0) * block_m + tl.arange(0, block_m)
    c = tl.arange(0, block_c)
    inside = (m < positions)[:, None] & (c < channels)[None, :]
    row = (m // width).to(tl.int64)
    corner = (4 * row * width + 2 * (m % width))[:, None] * channels + c[None, :]
    below = corner + 2 * width * channels
    above = tl.maximum(tl.load(x + corner, mask=inside, other=0), tl.load(x + corner + channels, mask=inside, other=0))
    under = tl.maximum(tl.load(x + below, mask=inside, other=0), tl.load(x + below + channels, mask=inside, other=0))
    tl.store(out + m.to(tl.int64)[:, None] * channels + c[None, :], tl.maximum(above, under), mask=inside)


@triton.jit
def _place(m, k, width):  # type: ignore[no-untyped-def]
    """Where channel k of 12, `4c + 2i + j`, at position m of a picture unshuffled by 2, lies in it: `[.., 2 rows, 2 width, 3]`."""
    row, column = (m // width)[:, None], (m % width)[:, None]
    return ((2 * row + (k // 2 % 2)[None, :]).to(tl.int64) * (2 * width) + 2 * column + (k % 2)[None, :]) * 3 + (k // 4)[None, :]


@triton.jit(do_not_specialize=["positions", "width"])  # type: ignore[untyped-decorator]
def gather(x, shift, out, positions, width, block_m: tl.constexpr, block_c: tl.constexpr):  # type: ignore[no-untyped-def]
    """`Backend.gathered` of a picture's state: int16 `[positions, 12]`; `width` of what comes out."""
    m = tl.program_id(0) * block_m + tl.arange(0, block_m)
    k = tl.arange(0, block_c)
    inside = (m < positions)[:, None] & (k < 12)[None, :]
    value = tl.load(x + _place(m, k, width), mask=inside, other=0)
    by = tl.load(shift + k, mask=k < 12, other=0)[None, :]
    tl.store(out + m.to(tl.int64)[:, None] * 12 + k[None, :], _narrowed(value, by), mask=inside)


@triton.jit
def _pixel(state):  # type: ignore[no-untyped-def]
    return ((tl.minimum(tl.maximum(state, 0), 65536) * 255 + 32768) >> 16).to(tl.uint8)


@triton.jit(do_not_specialize=["positions", "width", "shift"])  # type: ignore[untyped-decorator]
def filtered(x, correction, out, positions, width, shift, block_m: tl.constexpr, block_c: tl.constexpr):  # type: ignore[no-untyped-def]
    """`Backend.filtered` of a picture's state; `positions` and `width` of the correction."""
    m = tl.program_id(0) * block_m + tl.arange(0, block_m)
    k = tl.arange(0, block_c)
    inside = (m < positions)[:, None] & (k < 12)[None, :]
    place = _place(m, k, width)
    by = tl.load(correction + m.to(tl.int64)[:, None] * 12 + k[None, :], mask=inside, other=0).to(tl.int32)
    tl.store(out + place, _pixel(tl.load(x + place, mask=inside, other=0) + (by << shift)), mask=inside)


@triton.jit(do_not_specialize=["count", "shift"])  # type: ignore[untyped-decorator]
def corrected(x, correction, out, count, shift, state: tl.constexpr, corrects: tl.constexpr, block: tl.constexpr):  # type: ignore[no-untyped-def]
    """`Backend.corrected`, of `state` or of nothing."""
    i = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = i < count
    value = tl.zeros((block,), dtype=tl.int32)
    if state:
        value += tl.load(x + i, mask=inside, other=0)
    if corrects:
        value += tl.load(correction + i, mask=inside, other=0).to(tl.int32) << shift
    tl.store(out + i, _pixel(value), mask=inside)


@triton.jit(do_not_specialize=["count", "first"])  # type: ignore[untyped-decorator]
def look_up(table, x, out, count, first, block: tl.constexpr):  # type: ignore[no-untyped-def]
    """`table[x - first]`."""
    i = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = i < count
    tl.store(out + i, tl.load(table + (tl.load(x + i, mask=inside, other=0).to(tl.int32) - first), mask=inside, other=0), mask=inside)


@triton.jit(do_not_specialize=["positions", "each"])  # type: ignore[untyped-decorator]
def gate(  # type: ignore[no-untyped-def]
    x, table, index, add, out, positions, each, channels: tl.constexpr, block_m: tl.constexpr, block_c: tl.constexpr,
):  # fmt: skip
    """`Backend.gated`; `each` positions a picture, `index` int16 `[pictures, channels]`."""
    m = tl.program_id(0) * block_m + tl.arange(0, block_m)
    c = tl.arange(0, block_c)
    inside = (m < positions)[:, None] & (c < channels)[None, :]
    place = m.to(tl.int64)[:, None] * channels + c[None, :]
    of = tl.load(index + (m // each)[:, None] * channels + c[None, :], mask=inside, other=0).to(tl.int32)
    by = tl.load(table + ((of + 32768) >> 4), mask=inside, other=0).to(tl.int32)
    value = (tl.load(x + place, mask=inside, other=0).to(tl.int32) * by + (1 << 14)) >> 15
    tl.store(out + place, _cut16(value + tl.load(add + place, mask=inside, other=0).to(tl.int32)), mask=inside)
