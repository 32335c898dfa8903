"""Integer layers in Triton (INTEGER.md, section 1), exact on every device.

Tensor cores multiply int8 into int32. An int16 activation is `x = 256 h + l + 128` with `h = x >> 8` and `l = (x & 255) - 128`, both int8; a weight
is `w = 256 wh + wl` with `wl` in [-128, 127] and `wh` int8 for |w| up to 32,639. So

    sum w x = 2^16 sum(wh h) + 2^8 sum(wh l + wl h) + sum(wl l) + 128 sum(w)

where the last term is a constant of the layer, also at the edges: a position outside the picture is x = 0, which is h = 0, l = -128. The packer has
proved `sum |w| < 2^16`, so that `sum |wl|` is no more and `sum |wh|` below 2^9: each sum of products stays below 2^23, which matters where the
instruction saturates (`mma.sync` of NVIDIA). Put together they wrap modulo 2^32, and the whole fits. Accumulators are int32 by name: Triton's own
choice for narrow types has been wrong before (triton-lang/triton issues 3566, 10889).

Both limbs of a weight stand side by side as columns, so that two products make all four sums. What is a matter of a position alone (which taps lie in
its picture) is found once, a bit a tap; in the loop over taps and channels remains one addition a row: it was the instructions, not the products,
that took the time.
"""

from __future__ import annotations

import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]


@triton.jit  # type: ignore[untyped-decorator]
def _tap(tap, kind: tl.constexpr):  # type: ignore[no-untyped-def]
    """Rows down and columns right of a tap, and 1 where `odd` of the row is added to these: in a checkerboard half."""
    if kind == 0:  # dense
        return tap // 3 - 1, tap % 3 - 1, tap * 0
    elif kind == 1:  # edges: above, left, right, below
        return (tap == 3).to(tl.int32) - (tap == 0).to(tl.int32), -(tap == 1).to(tl.int32), ((tap == 1) | (tap == 2)).to(tl.int32)
    elif kind == 2:  # corners: two above, the centre, two below
        return (tap > 2).to(tl.int32) - (tap < 2).to(tl.int32), -((tap == 0) | (tap == 3)).to(tl.int32), (tap != 2).to(tl.int32)
    else:
        return tap * 0, tap * 0, tap * 0


# What varies from picture to picture must not compile anew. The channels that come in do: only so are they read several at a time.
@triton.jit(do_not_specialize=["positions", "height", "width", "parity", "leaky"])  # type: ignore[untyped-decorator]
def conv(  # type: ignore[no-untyped-def]
    x, limbs, bias, shift, add, out, positions, height, width, parity, cout, padded_out, leaky,
    cin: tl.constexpr, room: tl.constexpr, kind: tl.constexpr, taps: tl.constexpr, adds: tl.constexpr,
    block_m: tl.constexpr, block_n: tl.constexpr, block_k: tl.constexpr,
):  # fmt: skip
    """One layer, `block_m` positions by `block_n` output channels a program.

    Args:
        x: int16 `[positions, cin]`, positions being rows of pictures of `height x width`.
        limbs: int8 `[blocks, padded_out, 2, block_k]`, upper and lower limbs of the weights; the blocks are `block_k` each of all taps one after the
            other, `room` a tap, zero beyond `cin`, `cout` and the last tap.
        bias: int32 `[padded_out]`, with `2^(shift-1)` and `128 sum(w)` added, modulo 2^32.
        shift: int32 `[padded_out]`.
        add: int16 `[positions, cout]`, read if `adds`.
        out: int16 `[positions, cout]`.
        positions: Of all pictures.
        height: Of a picture; `width` too.
        width: In positions.
        parity: Of the output positions, for checkerboard layers.
        cout: Output channels.
        padded_out: `cout` up to a multiple of `block_n`.
        leaky: 1 where LeakyReLU follows, else 0.
        cin: Input channels.
        room: Of a tap: a multiple of `block_k`, or a power of two below.
        kind: As `ops.DENSE`, ...
        taps: Of that kind.
        adds: Whether `add` is added at the end.
        block_m: Positions a program.
        block_n: Output channels a program.
        block_k: Inputs at a time.
    """
    m = tl.program_id(0) * block_m + tl.arange(0, block_m)
    column = m % width
    row = (m // width) % height
    odd = (row + parity) & 1
    inside = m < positions
    seen = tl.zeros((block_m,), dtype=tl.int32)
    for bit in tl.static_range(taps):
        rows, columns, turns = _tap(tl.full((), bit, tl.int32), kind)
        at_row, at_column = row + rows, column + columns + odd * turns
        seen |= (inside & (at_row >= 0) & (at_row < height) & (at_column >= 0) & (at_column < width)).to(tl.int32) << bit
    source = x + (m.to(tl.int64) * cin)[:, None]
    k = tl.arange(0, block_k)
    beside = tl.program_id(1) * (2 * block_n) + tl.arange(0, 2 * block_n)
    weights = limbs + beside[None, :] * block_k + k[:, None]
    high = tl.zeros((block_m, 2 * block_n), dtype=tl.int32)
    low = tl.zeros((block_m, 2 * block_n), dtype=tl.int32)
    for number in range((taps * room + block_k - 1) // block_k):
        if room >= block_k:  # some blocks a tap
            tap = number // (room // block_k)
            c = number % (room // block_k) * block_k + k
            down, right, turning = _tap(tap, kind)
            there = ((seen >> tap) & 1)[:, None] != 0
            moved = (odd * (turning * cin))[:, None]
        else:  # some taps a block
            tap = (number * block_k + k) // room
            c = k % room
            down, right, turning = _tap(tap, kind)
            there = ((seen[:, None] >> tap[None, :]) & 1) != 0
            moved = odd[:, None] * (turning * cin)[None, :]
        place = ((down * width + right) * cin + c)[None, :]
        if (kind == 1) or (kind == 2):
            place += moved
        if room != cin:
            there = there & (c < cin)[None, :]
        value = tl.load(source + place, mask=there, other=0).to(tl.int32)
        weight = tl.load(weights)
        weights += 2 * padded_out * block_k
        high = tl.dot((value >> 8).to(tl.int8), weight, acc=high, out_dtype=tl.int32)
        low = tl.dot(((value & 255) - 128).to(tl.int8), weight, acc=low, out_dtype=tl.int32)
    upper, middle = tl.split(tl.reshape(high, (block_m, block_n, 2)))
    other, lower = tl.split(tl.reshape(low, (block_m, block_n, 2)))
    n = tl.program_id(1) * block_n + tl.arange(0, block_n)
    total = (upper << 16) + ((middle + other) << 8) + lower + tl.load(bias + n)[None, :]
    value = tl.minimum(tl.maximum(total >> tl.load(shift + n)[None, :], -32768), 32767)
    value = tl.where((value < 0) & (leaky != 0), (value * 164 + 8192) >> 14, value)
    at = m.to(tl.int64)[:, None] * cout + n[None, :]
    kept = inside[:, None] & (n < cout)[None, :]
    if adds:
        value = tl.minimum(tl.maximum(value + tl.load(add + at, mask=kept, other=0).to(tl.int32), -32768), 32767)
    tl.store(out + at, value.to(tl.int16), mask=kept)
