"""The integer network: the steps of the walk on whole numbers (INTEGER.md), for every backend."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from msinn_core.config import MsinnConfig
from msinn_core.heads import OUT_SHIFT, Head
from msinn_core.integer.backend import Array, Backend
from msinn_core.integer.ops import POINT
from msinn_core.integer.packed import IntegerGains, PackedModel, Stack, Unit
from msinn_core.walk import NUM_STEPS, anchor_parity, finished

_POST_RADIUS = 32
"""Half-size rows that a row of the post-filter depends on, 1 + 2 + 2 * 2 + 4 * 4 + 2 * 2 + 2 + 1 = 30, rounded up to its coarsest grid."""


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

    def _run(self, stack: Stack, *parts: Array, shift: Any = None, parity: int = 0) -> Array:
        """A stack of parts, which are joined and, by `shift`, narrowed; `parity` of the output positions in checkerboard layers."""

        def run(first: int, *cut: Array) -> Array:
            if shift is not None:
                rows = self.backend.narrowed(shift, *cut)
            else:
                rows = cut[0] if len(cut) == 1 else self.backend.joined(*cut)
            for layer, table in zip(stack.layers, stack.activations, strict=True):
                rows = self.backend.conv(rows, layer, parity=parity + first)
                if table is not None:
                    rows = self.backend.looked_up(table, rows)
            return rows

        radius = sum(layer.kind != POINT for layer in stack.layers)
        return self.backend.in_bands(parts[0], radius, max(len(layer.weight) for layer in stack.layers), run, *parts[1:])

    # The transform ---------------------------------------------------------------------------------------------------------------------------------

    def _block(self, unit: Unit, z: Array) -> Array:
        """What a unit makes of the first half of the state, which is `z` or the first half of it."""
        conv1, skip, conv2, zero = unit.layers
        backend = self.backend

        def run(first: int, rows: Array) -> Array:
            return backend.residual(backend.narrowed(unit.z_shift, rows), conv1, skip, conv2, zero)

        return backend.in_bands(z, 2, len(conv1.weight), run)

    def analysis(self, pixels: Any) -> list[Array]:
        """Latents y5..y1 in Q16 of uint8 pixels `[..., H, W, 3]`, sides multiples of 32."""
        latents = [*self._finest(pixels)]
        for units in self.model.units[1:]:
            self.backend.settle(latents[-1])
            # Taken off the list: of a large picture it is not to be kept beside what becomes of it.
            latents += self._parted(self._forward(units, self.backend.squeeze(latents.pop())))
        self.backend.settle(latents[0])
        return latents[::-1]

    def _finest(self, pixels: Any) -> tuple[Array, Array]:
        backend, units = self.backend, self.model.units[0]

        def forward(rows: Any) -> Array:
            return self._forward(units, backend.squeeze(backend.state_of(rows)))

        bands = backend.pictured(pixels.shape[-3] // 2, pixels.shape[-2] // 2)
        return self._parted(forward(pixels)) if bands is None else bands.forward(pixels, _even(2 * len(units)), forward)

    def _parted(self, x: Array) -> tuple[Array, Array]:
        """Latents of a level, and what goes on to the next."""
        half = x.shape[-1] // 2
        return self.backend.channels(x, 0, half), self.backend.channels(x, half, 2 * half)

    def _forward(self, units: list[Unit], x: Array) -> Array:
        """The units of a level of the analysis."""
        for unit in units:
            x = self.backend.mix(x, unit.forward_matrix, unit.forward_bias)
            self.backend.couple(x, self._block(unit, x), self.model.reciprocal, unit.t_shift, self.model.affine)
        return x

    def _inverse_level(self, level: int, y: Array, below: Array) -> Array:
        model, backend = self.model, self.backend
        units = model.units[level]

        def run(first: int, z: Array, second: Array | None) -> Array:
            for unit in reversed(units):
                z = backend.unit(z, self._block(unit, z), model.tables["couple"], unit.t_shift, unit.matrix, unit.bias, model.affine, second)
                second = None
            return z

        return backend.unsqueeze(backend.in_bands(y, 2 * len(units), 2 * y.shape[-1], run, below))

    def synthesis(self, latents: list[Array]) -> Array:
        """`g_s`, the inverse of `analysis`: pixels in Q16 of full scale; no post-filter."""
        x = latents[0]
        for level, y in zip(range(len(self.model.units) - 1, -1, -1), latents[1:], strict=True):
            x = self._inverse_level(level, y, x)
        return x

    # The walk --------------------------------------------------------------------------------------------------------------------------------------

    def cross_scale(self, k: int, support: Array | None, shape: tuple[int, ...]) -> Array:
        stack = self.model.cc[k]
        if support is None or stack is None:
            return self.backend.constant(self.model.initial, shape)
        features = self._run(stack, support, shift=self.model.in_shifts["cc", k])
        self.backend.settle(support)
        return features

    def halve(self, x: Array, parity: int) -> Array:
        return self.backend.half(x, parity)

    def predict(self, k: int, cc: Array, sc: Array | None) -> Array:
        if sc is None:
            return self._run(self.model.first_parameters[k], cc)
        return self._run(self.model.parameters[k], cc, sc)

    def code(self, coder: Any, k: int, parity: int, parameters: Array, gains: IntegerGains) -> Array:
        model = self.model
        inv_gain, scale_log2, _ = gains.level(k)
        first = model.first + (model.scale_exponents[k] << 16)
        indexes = self.backend.levels(parameters, model.tables["log2"], scale_log2, first, model.step, 128)
        symbols = coder.symbols(k, parity, parameters, indexes)
        return self.backend.dequantise(symbols, parameters, inv_gain, model.mean_shifts[k])

    def spatial(self, k: int, anchors: Array, parity: int) -> Array:
        return self._run(self.model.sc[k], anchors, shift=self.model.in_shifts["sc", k], parity=parity)

    def join(self, anchors: Array, parity: int, rest: Array) -> Array:
        return self.backend.whole(anchors, parity, rest)

    def refine(self, k: int, y: Array, support: Array | None, gains: IntegerGains) -> Array:
        if self.model.lrp is not None:
            inputs = (y,) if support is None else (y, support)
            prediction = self._run(self.model.lrp[k], *inputs, shift=self.model.in_shifts["lrp", k])
            self.backend.refine(y, prediction, self.model.tables["half_tanh"], gains.level(k)[0])
        return y

    def rise(self, k: int, y: Array, support: Array | None) -> Array:
        if support is None:
            return y
        self.backend.settle(support)
        return self._inverse_level(4 - k, y, support)

    def finish(self, halves: tuple[Array, Array], support: Array | None, gains: IntegerGains) -> Array:
        """uint8 `[..., H, W, 3]`, in bands where it is large: what lies between latents and pixels is some 60 bytes per pixel."""
        height, width = halves[0].shape[-3:-1]
        bands = self.backend.pictured(height, 2 * width)
        # The gates of the paper's post-filter see the whole picture.
        if bands is None or support is None or self.config.post_filter == "paper":
            return finished(self, halves, support, gains)
        self.backend.settle(support)
        k = NUM_STEPS - 1
        parity = anchor_parity(k)
        radius = _even((self.config.lrp_layers if self.config.lrp else 0) + 2 * len(self.model.units[0]))

        def risen(anchors: Array, rest: Array, below: Array) -> Array:
            return self.rise(k, self.refine(k, self.join(anchors, parity, rest), below, gains), below)

        return bands.inverse(halves, support, radius, risen, _POST_RADIUS if self.model.post else 0, self.picture)

    def reduced(self, support: Array, head: Head) -> Array:
        """The picture of a head's scale, uint8 `[..., H / scale, W / scale, 3]`, of the support after its steps."""
        backend = self.backend
        for _ in range(head.num_squeezes):
            support = backend.squeeze(support)

        def run(first: int, rows: Array) -> Array:
            return backend.conv(backend.narrow(rows, head.in_shift), head.layer)

        found = backend.in_bands(support, 1, support.shape[-1], run)
        return backend.corrected(None, found, OUT_SHIFT)

    def picture(self, support: Array) -> Array:
        """uint8 `[..., H, W, 3]`."""
        if self.model.post and self.config.post_filter == "lite":
            return self.backend.filtered(support, self._correction(support), self.model.out_shift)
        return self.backend.corrected(support, self._paper_correction(support) if self.model.post else None, self.model.out_shift)

    # Post-filters ----------------------------------------------------------------------------------------------------------------------------------

    def _correction(self, x: Array) -> Array:
        backend, post = self.backend, self.model.post
        conv = backend.conv

        def block(name: str, inputs: Array) -> Array:
            return backend.residual(inputs, post[f"{name}.0"], post[f"{name}.up_dim"], post[f"{name}.2"])

        def filtered(first: int, inputs: Array) -> Array:
            a = block("c1", conv(inputs, post["conv1"]))
            b = block("c2", backend.halved(a))
            out = block("c4", block("c3", backend.halved(b)))
            out = block("u3", backend.joined(b, backend.shuffled(conv(out, post["up3"]))))
            out = block("u2", backend.joined(a, backend.shuffled(conv(out, post["up2"]))))
            return conv(out, post["conv2"])

        return backend.in_bands(backend.gathered(x, self.model.post_in_shift), _POST_RADIUS, 64, filtered)

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


def _even(rows: int) -> int:
    """The least even number from `rows` up: bands of the half-size grid begin where rows of the checkerboard have the parity of the first."""
    return rows + rows % 2
