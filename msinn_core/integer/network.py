"""The integer network: the steps of the walk on whole numbers (INTEGER.md), for every backend."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from msinn_core.config import MsinnConfig
from msinn_core.integer.ops import POINT, Layer
from msinn_core.integer.packed import IntegerGains, PackedModel, Stack, Unit

_POST_RADIUS = 32
"""Half-size rows that a row of the post-filter depends on, 1 + 2 + 2 * 2 + 4 * 4 + 2 * 2 + 2 + 1 = 30, rounded up to its coarsest grid."""

Array = Any
"""Of the backend's kind. Activations are int16, state and symbols int32, table indexes uint8; `[..., H, W, C]`."""


class Backend(Protocol):
    """What the network needs. NumPy backends work on one picture, `[H, W, C]`; the GPU's on a batch, `[N, H, W, C]`.

    Vectors (shifts, gains, tables) come as NumPy arrays; gains may be `[N, C]` for a batch.
    """

    def conv(self, x: Array, layer: Layer, *, parity: int = 0, add: Array | None = None) -> Array:
        """One layer; `parity` of the output positions for `EDGES` and `CORNERS`; `add` is added at the end, saturating."""

    def unit(self, z: Array, st: Array, table: Any, t_shift: int, matrix: Any, bias: Any, affine: bool) -> Array:
        """Inverse coupling and inverse matrix; `matrix` `[in, out]` in Q20, `bias` in Q16, both whole numbers."""

    def narrow(self, x: Array, shift: Any) -> Array:
        """`clamp16((x + 2^(s-1)) >> s)` with `shift` `[C]`."""

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
        """Table bits and squared error (Q16 steps) `[R, 2]` of latents at R rates, over every `stride`-th row and column; of the encoder."""

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

    def corrected(self, x: Array, correction: Array | None, shift: int) -> Array:
        """Pixels uint8 of state plus `correction * 2^shift`."""

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

    def in_bands(self, x: Array, radius: int, width: int, run: Callable[[Array, int], Array]) -> Array:
        """`run(x, 0)`, or the same in bands of rows or columns; see `arrays.in_bands`."""


class IntegerNetwork:
    """A packed model on a backend; the protocol of `walk.Network`.

    Args:
        config: Shape of the network.
        tensors: From `packing.pack`, names without the prefix `int.`.
        backend: Where layers run.

    Raises:
        CheckpointError: A tensor is missing, of another shape or type, or breaks a bound of INTEGER.md.
    """

    def __init__(self, config: MsinnConfig, tensors: Mapping[str, NDArray[Any]], backend: Backend) -> None:
        self.config = config
        self.model = PackedModel(config, tensors)
        self.backend = backend

    def gains(self, q: float) -> IntegerGains:
        """Gains at q, a multiple of 1 / 1024. Raises `ConfigError` outside [0, A - 1]."""
        return self.model.gains(q)

    def _run(self, stack: Stack, x: Array, parity: int = 0) -> Array:
        def run(rows: Array, first: int) -> Array:
            for layer, table in zip(stack.layers, stack.activations, strict=True):
                rows = self.backend.conv(rows, layer, parity=parity + first)
                if table is not None:
                    rows = self.backend.looked_up(table, rows)
            return rows

        radius = sum(layer.kind != POINT for layer in stack.layers)
        return self.backend.in_bands(x, radius, max(len(layer.weight) for layer in stack.layers), run)

    # The transform ---------------------------------------------------------------------------------------------------------------------------------

    def _block(self, unit: Unit, z: Array) -> Array:
        conv1, skip, conv2, zero = unit.layers
        backend = self.backend

        def run(rows: Array, first: int) -> Array:
            z1 = backend.narrow(backend.channels(rows, 0, rows.shape[-1] // 2), unit.z_shift)
            hidden = backend.conv(backend.conv(z1, conv1), conv2, add=backend.conv(z1, skip))
            return backend.conv(hidden, zero)

        return backend.in_bands(z, 2, len(conv1.weight), run)

    def analysis(self, pixels: Any) -> list[Array]:
        """Latents y5..y1 in Q16 of uint8 pixels `[..., H, W, 3]`, sides multiples of 32."""
        model, backend = self.model, self.backend
        x = backend.state_of(pixels)
        latents = []
        for units in model.units:
            x = backend.squeeze(x)
            for unit in units:
                x = backend.mix(x, unit.forward_matrix, unit.forward_bias)
                backend.couple(x, self._block(unit, x), model.reciprocal, unit.t_shift, model.affine)
            half = x.shape[-1] // 2
            latents.append(backend.channels(x, 0, half))
            x = backend.channels(x, half, 2 * half)
        latents.append(x)
        return latents[::-1]

    def _inverse_level(self, level: int, z: Array) -> Array:
        model = self.model
        for unit in reversed(model.units[level]):
            z = self.backend.unit(z, self._block(unit, z), model.tables["couple"], unit.t_shift, unit.matrix, unit.bias, model.affine)
        return self.backend.unsqueeze(z)

    def synthesis(self, latents: list[Array]) -> Array:
        """`g_s`, the inverse of `analysis`: pixels in Q16 of full scale; no post-filter."""
        x = latents[0]
        for level, y in zip(range(len(self.model.units) - 1, -1, -1), latents[1:], strict=True):
            x = self._inverse_level(level, self.backend.joined(y, x))
        return x

    # The walk --------------------------------------------------------------------------------------------------------------------------------------

    def cross_scale(self, k: int, support: Array | None, shape: tuple[int, ...]) -> Array:
        stack = self.model.cc[k]
        if support is None or stack is None:
            return self.backend.constant(self.model.initial, shape)
        return self._run(stack, self.backend.narrow(support, self.model.in_shifts["cc", k]))

    def halve(self, x: Array, parity: int) -> Array:
        return self.backend.half(x, parity)

    def predict(self, k: int, cc: Array, sc: Array | None) -> Array:
        if sc is None:
            return self._run(self.model.first_parameters[k], cc)
        return self._run(self.model.parameters[k], self.backend.joined(cc, sc))

    def code(self, coder: Any, k: int, parity: int, parameters: Array, gains: IntegerGains) -> Array:
        model = self.model
        inv_gain, scale_log2, _ = gains.level(k)
        log_gain = scale_log2 - (model.scale_exponents[k] << 16)
        indexes = self.backend.levels(parameters, model.tables["log2"], log_gain, model.first, model.step, 128)
        symbols = coder.symbols(k, parity, parameters, indexes)
        return self.backend.dequantise(symbols, parameters, inv_gain, model.mean_shifts[k])

    def spatial(self, k: int, anchors: Array, parity: int) -> Array:
        return self._run(self.model.sc[k], self.backend.narrow(anchors, self.model.in_shifts["sc", k]), parity)

    def join(self, anchors: Array, parity: int, rest: Array) -> Array:
        return self.backend.whole(anchors, parity, rest)

    def refine(self, k: int, y: Array, support: Array | None, gains: IntegerGains) -> Array:
        if self.model.lrp is not None:
            inputs = y if support is None else self.backend.joined(y, support)
            prediction = self._run(self.model.lrp[k], self.backend.narrow(inputs, self.model.in_shifts["lrp", k]))
            self.backend.refine(y, prediction, self.model.tables["half_tanh"], gains.level(k)[0])
        return y

    def rise(self, k: int, y: Array, support: Array | None) -> Array:
        return y if support is None else self._inverse_level(4 - k, self.backend.joined(y, support))

    def picture(self, support: Array) -> Array:
        """uint8 `[..., H, W, 3]`."""
        correction = None
        if self.model.post:
            correction = self._paper_correction(support) if self.config.post_filter == "paper" else self._correction(support)
        return self.backend.corrected(support, correction, self.model.out_shift)

    # Post-filters ----------------------------------------------------------------------------------------------------------------------------------

    def _correction(self, x: Array) -> Array:
        backend, post = self.backend, self.model.post
        conv = backend.conv

        def block(name: str, inputs: Array) -> Array:
            return conv(conv(inputs, post[f"{name}.0"]), post[f"{name}.2"], add=conv(inputs, post[f"{name}.up_dim"]))

        def filtered(inputs: Array, first: int) -> Array:
            a = block("c1", conv(inputs, post["conv1"]))
            b = block("c2", backend.halved(a))
            out = block("c4", block("c3", backend.halved(b)))
            out = block("u3", backend.joined(b, backend.shuffled(conv(out, post["up3"]))))
            out = block("u2", backend.joined(a, backend.shuffled(conv(out, post["up2"]))))
            return conv(out, post["conv2"])

        inputs = backend.narrow(backend.unshuffled(x), self.model.post_in_shift)
        return backend.shuffled(backend.in_bands(inputs, _POST_RADIUS, 64, filtered))

    def _paper_correction(self, x: Array) -> Array:
        """The paper's U-Net; its gates see the whole padded picture, so that nothing here can be done in bands."""
        backend, post = self.backend, self.model.post
        conv = backend.conv

        def block(name: str, inputs: Array) -> Array:
            u = conv(conv(inputs, post[f"{name}.0"]), post[f"{name}.2"])
            squeezed = backend.positive(conv(backend.even(backend.mean(u)), post[f"{name}.fc0"]))
            index = conv(backend.even(squeezed), post[f"{name}.fc2"])
            return backend.gated(u, self.model.gate_table, index, conv(inputs, post[f"{name}.up_dim"]))

        inputs = backend.narrow(x, self.model.post_in_shift)
        down1 = block("conv1", conv(backend.even(inputs), post["conv1"]))
        down2 = block("conv2", backend.halved(down1))
        out = block("conv3", backend.halved(down2))
        for i in range(4):
            hidden = conv(backend.positive(out), post[f"refine{i}.1"])
            out = conv(backend.positive(hidden), post[f"refine{i}.2"], add=out)
        out = block("up_conv3", backend.joined(down2, backend.shuffled(conv(out, post["up3"]))))
        out = block("up_conv2", backend.joined(down1, backend.shuffled(conv(out, post["up2"]))))
        return conv(out, post["conv2"])
