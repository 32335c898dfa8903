"""Integer layers in Triton (INTEGER.md, section 1), exact on every device.

Tensor cores multiply int8 into int32. An int16 activation is `x = 256 h + l + 128` with `h = x >> 8` and `l = (x & 255) - 128`, both int8; a weight
is `w = 256 wh + wl` with `wl` in [-128, 127] and `wh` int8 for |w| up to 32,639. So

    sum w x = 2^16 sum(wh h) + 2^8 sum(wh l + wl h) + sum(wl l) + 128 sum(w)

where the last term is a constant of the layer, also at the edges: a position outside the picture is x = 0, which is h = 0, l = -128. Partial sums
wrap modulo 2^32; the packer has proved that the whole fits, so the result is right whatever wraps on the way. Accumulators are int32 by name:
Triton's own choice for narrow types has been wrong before (triton-lang/triton issues 3566, 10889).
"""

from __future__ import annotations

import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]


# What varies from picture to picture or layer to layer must not compile anew.
@triton.jit(do_not_specialize=["positions", "height", "width", "parity", "leaky"])  # type: ignore[untyped-decorator]
def conv(  # type: ignore[no-untyped-def]
    x, high, low, bias, shift, add, out, positions, height, width, parity, cin, cout, padded_in, padded_out, leaky,
    kind: tl.constexpr, taps: tl.constexpr, adds: tl.constexpr, block_m: tl.constexpr, block_n: tl.constexpr, block_k: tl.constexpr,
):  # fmt: skip
    """One layer, `block_m` positions by `block_n` output channels a program.

    Args:
        x: int16 `[positions, cin]`, positions being rows of pictures of `height x width`.
        high: int8 `[taps, padded_out, padded_in]`, upper limbs of the weights, zero beyond `cout` and `cin`; so `low`.
        low: Lower limbs.
        bias: int32 `[padded_out]`, with `2^(shift-1)` and `128 sum(w)` added, modulo 2^32.
        shift: int32 `[padded_out]`.
        add: int16 `[positions, cout]`, read if `adds`.
        out: int16 `[positions, cout]`.
        positions: Of all pictures.
        height: Of a picture; `width` too.
        width: In positions.
        parity: Of the output positions, for checkerboard layers.
        cin: Input channels.
        cout: Output channels.
        padded_in: `cin` up to a multiple of `block_k`.
        padded_out: `cout` up to a multiple of `block_n`.
        leaky: 1 where LeakyReLU follows, else 0.
        kind: As `ops.DENSE`, ...
        taps: Of that kind.
        adds: Whether `add` is added at the end.
        block_m: Positions a program.
        block_n: Output channels a program.
        block_k: Input channels at a time.
    """
    m = tl.program_id(0).to(tl.int64) * block_m + tl.arange(0, block_m)
    n = tl.program_id(1) * block_n + tl.arange(0, block_n)
    inside = m < positions
    column = (m % width).to(tl.int32)
    row = ((m // width) % height).to(tl.int32)
    odd = (row + parity) & 1
    upper = tl.zeros((block_m, block_n), dtype=tl.int32)
    middle = tl.zeros((block_m, block_n), dtype=tl.int32)
    lower = tl.zeros((block_m, block_n), dtype=tl.int32)
    blocks = padded_in // block_k
    # One loop over taps and channels, not unrolled: an unrolled one compiles for twenty seconds.
    for number in range(taps * blocks):
        tap = number // blocks
        k = (number - tap * blocks) * block_k + tl.arange(0, block_k)
        if kind == 0:  # dense
            down = row + (tap // 3 - 1)
            right = column + (tap % 3 - 1)
        elif kind == 1:  # edges: above, left, right, below
            down = row + (tap == 3).to(tl.int32) - (tap == 0).to(tl.int32)
            right = column + tl.where((tap == 1) | (tap == 2), odd + (tap - 2), 0)
        elif kind == 2:  # corners: two above, the centre, two below
            down = row + (tap > 2).to(tl.int32) - (tap < 2).to(tl.int32)
            right = column + tl.where(tap == 2, 0, odd + ((tap + (tap > 2).to(tl.int32)) % 2 - 1))
        else:
            down = row
            right = column
        seen = inside & (down >= 0) & (down < height) & (right >= 0) & (right < width)
        source = x + (m + (down - row) * width + (right - column)) * cin
        value = tl.load(source[:, None] + k[None, :], mask=seen[:, None] & (k < cin)[None, :], other=0).to(tl.int32)
        h = (value >> 8).to(tl.int8)
        l = ((value & 255) - 128).to(tl.int8)  # noqa: E741  (the limb's name in the formula)
        place = (tap * padded_out + n[None, :]) * padded_in + k[:, None]
        wh = tl.load(high + place)
        wl = tl.load(low + place)
        upper = tl.dot(h, wh, acc=upper, out_dtype=tl.int32)
        middle = tl.dot(h, wl, acc=middle, out_dtype=tl.int32)
        middle = tl.dot(l, wh, acc=middle, out_dtype=tl.int32)
        lower = tl.dot(l, wl, acc=lower, out_dtype=tl.int32)
    total = (upper << 16) + (middle << 8) + lower + tl.load(bias + n)[None, :]
    value = tl.minimum(tl.maximum(total >> tl.load(shift + n)[None, :], -32768), 32767)
    value = tl.where((value < 0) & (leaky != 0), (value * 164 + 8192) >> 14, value)
    place = m[:, None] * cout + n[None, :]
    kept = inside[:, None] & (n < cout)[None, :]
    if adds:
        value = tl.minimum(tl.maximum(value + tl.load(add + place, mask=kept, other=0).to(tl.int32), -32768), 32767)
    tl.store(out + place, value.to(tl.int16), mask=kept)
