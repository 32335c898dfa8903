"""The integer walk over the levels: the same as `model.Msinn.walk`, on whole numbers, one picture at a time (INTEGER.md)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from msinn_core.config import LATENT_CHANNELS, MsinnConfig
from msinn_core.context import NUM_STEPS, anchor_parity
from msinn_core.errors import CheckpointError, ConfigError
from msinn_core.integer.ops import CORNERS, DENSE, EDGES, I16, I32, NUM_TAPS, POINT, STATE_BITS, Backend, Compiled, Layer, Portable

Q_STEPS = 1024
"""q is a multiple of 1 / 1024, in bitstreams and in the interpolation of gains."""

BAND_BYTES = 4 << 20
"""Activations of one layer that are held at a time, about."""

_POST_RADIUS = 32
"""Half-size rows that a row of the post-filter depends on, 1 + 2 + 2 * 2 + 4 * 4 + 2 * 2 + 2 + 1 = 30, rounded up to its coarsest grid."""

MAX_LOG2_GAIN = 15
"""Gains lie between 2^-15 and 2^15."""

MAX_LOG2_INV_GAIN = 6
"""Inverse gains lie below 2^6, so that they fit Q24."""

MAX_SHIFT_UP = 14
"""Of means and of the post-filter's output, int16 both: shifted they stay below 2^29, and a sum with any state fits int32."""

MAX_CHANNELS = 8192

TABLES: dict[str, tuple[int, int, int, type]] = {
    "couple": (65536, 1, 1 << 25, np.int32),
    "log2": (32768, 0, 15 << 16, np.int32),
    "exp2": (4096, 1 << 29, (1 << 31) - 1, np.int32),
    "half_tanh": (4096, -32768, 32767, np.int16),
}
"""Length, least and largest value, and type of the tables."""


class IntegerCoder(Protocol):
    """What happens to the symbols of a checkerboard half."""

    def symbols(self, k: int, parity: int, parameters: I16, indexes: NDArray[np.uint8]) -> I32:
        """Symbols `[h, w/2, C]` of step k at positions of `parity`; `parameters` `[h, w/2, 2C]` are scales, then means."""


@dataclass(frozen=True)
class IntegerGains:
    """Gains of one q, for every latent channel in coding order: `inv_gain` Q24, `scale_log2` Q16 (both normative), `gain` per Q16 unit (encoder)."""

    inv_gain: I32
    scale_log2: I32
    gain: NDArray[np.float32]

    def level(self, k: int) -> tuple[I32, I32, NDArray[np.float32]]:
        """Those of step k."""
        start = sum(LATENT_CHANNELS[:k])
        part = slice(start, start + LATENT_CHANNELS[k])
        return self.inv_gain[part], self.scale_log2[part], self.gain[part]


@dataclass(frozen=True)
class _Unit:
    layers: tuple[Layer, Layer, Layer, Layer]  # conv1, skip, conv2, zero
    z_shift: I32
    t_shift: int
    matrix: NDArray[np.float64]
    bias: NDArray[np.float64]
    forward_matrix: NDArray[np.float64]
    forward_bias: NDArray[np.float64]


@dataclass(frozen=True)
class _Stack:
    layers: tuple[Layer, ...]
    activations: tuple[I16 | None, ...]


def squeeze(x: NDArray[Any]) -> NDArray[Any]:
    """Space to depth by 2: `[H, W, C]` -> `[H/2, W/2, 4C]`, channel `(2i + j) C + c`."""
    h, w, c = x.shape
    return np.ascontiguousarray(x.reshape(h // 2, 2, w // 2, 2, c).transpose(0, 2, 1, 3, 4)).reshape(h // 2, w // 2, 4 * c)


def unsqueeze(x: NDArray[Any]) -> NDArray[Any]:
    """Inverse of `squeeze`."""
    h, w, c = x.shape
    return np.ascontiguousarray(x.reshape(h, w, 2, 2, c // 4).transpose(0, 2, 1, 3, 4)).reshape(2 * h, 2 * w, c // 4)


def half_of(x: NDArray[Any], parity: int) -> NDArray[Any]:
    """Checkerboard half `[h, w/2, C]`: column j of row r is column `2j + (r + parity) % 2`."""
    out = np.empty((x.shape[0], x.shape[1] // 2, x.shape[2]), x.dtype)
    out[0::2], out[1::2] = x[0::2, parity::2], x[1::2, 1 - parity :: 2]
    return out


def whole_of(half: NDArray[Any], parity: int, other: NDArray[Any]) -> NDArray[Any]:
    """Inverse of `half_of` for a half of `parity` and the other one."""
    h, w, c = half.shape
    out = np.empty((h, 2 * w, c), half.dtype)
    out[0::2, parity::2], out[1::2, 1 - parity :: 2] = half[0::2], half[1::2]
    out[0::2, 1 - parity :: 2], out[1::2, parity::2] = other[0::2], other[1::2]
    return out


def _halved(x: I16) -> I16:
    """2x2 maximum."""
    rows = np.maximum(x[0::2], x[1::2])
    return np.maximum(rows[:, 0::2], rows[:, 1::2])


def _shuffled(x: NDArray[Any]) -> NDArray[Any]:
    """PyTorch's pixel shuffle by 2: channel `4c + 2i + j` to row phase i, column phase j."""
    h, w, c = x.shape
    return np.ascontiguousarray(x.reshape(h, w, c // 4, 2, 2).transpose(0, 3, 1, 4, 2)).reshape(2 * h, 2 * w, c // 4)


def _unshuffled(x: NDArray[Any]) -> NDArray[Any]:
    h, w, c = x.shape
    return np.ascontiguousarray(x.reshape(h // 2, 2, w // 2, 2, c).transpose(0, 2, 4, 1, 3)).reshape(h // 2, w // 2, 4 * c)


def _in_bands(x: NDArray[Any], radius: int, width: int, run: Callable[[Any, int], I16]) -> I16:
    """`run(x, 0)`, a band of rows at a time where `x` is large, so that what lies between the layers stays small; of columns where `x` is wide.

    Each band is computed with `radius` more rows on both sides, as far as its layers see; what the cut spoils is dropped, so that the result is the
    same to the bit.

    Args:
        x: `[H, W, C]`.
        radius: Rows (or columns) that an output row depends on, each way.
        width: Most channels between the layers.
        run: Called with some rows and the number of the first; with some columns and 0.
    """
    axis = 0 if x.shape[1] <= 2 * x.shape[0] else 1
    length, across = x.shape[axis], x.shape[1 - axis]
    # A multiple of 16: every band begins where the coarsest grid of the post-filter does.
    band = max(8 * radius, 16, BAND_BYTES // (2 * width * across)) // 16 * 16
    if length < 2 * band:
        return run(x, 0)
    parts = []
    for start in range(0, length, band):
        end = min(length, start + band)
        first, last = max(0, start - radius), min(length, end + radius)
        if axis == 0:
            parts.append(run(x[first:last], first)[start - first : end - first])
        else:
            parts.append(run(np.ascontiguousarray(x[:, first:last]), 0)[:, start - first : end - first])
    return np.concatenate(parts, axis=axis)


class IntegerNetwork:
    """A packed model, ready to run.

    Args:
        config: Shape of the network.
        tensors: From `packing.pack`, names without the prefix `int.`.
        backend: Where layers run.

    Raises:
        CheckpointError: A tensor is missing, of another shape or type, or breaks a bound of INTEGER.md.
    """

    def __init__(self, config: MsinnConfig, tensors: Mapping[str, NDArray[Any]], backend: Compiled | Portable) -> None:
        self.config = config
        self.backend: Compiled | Portable = backend
        self._tensors = tensors
        self._affine = config.coupling == "affine"
        self._leaky = config.context_activation != "gelu"
        self.tables = {name: self._get(f"tables.{name}", (size,), low, high, kind) for name, (size, low, high, kind) in TABLES.items()}
        self._reciprocal = (2.0**20 / self.tables["couple"]).astype(np.float32)
        shape, limit = (config.anchor_num, sum(LATENT_CHANNELS)), MAX_LOG2_GAIN << 16
        self._gain_log2, self._scale_log2 = (self._get(f"gains.{key}_log2", shape, -limit, limit) for key in ("gain", "scale"))
        self._inv_log2 = self._get("gains.inv_log2", shape, -limit, MAX_LOG2_INV_GAIN << 16)
        self.first = int(self._get("levels.first", (), -(1 << 22), 1 << 22))
        self.step = int(self._get("levels.step", (), 1, 1 << 16))
        self._initial = self._get("initial", (2 * LATENT_CHANNELS[0],), kind=np.int16)
        self._units = [[self._unit(level, i) for i in range(depth)] for level, depth in enumerate(config.depths)]
        self._cc = [self._stack(f"cc.{k}", config.cc_layers, DENSE, DENSE) if k else None for k in range(NUM_STEPS)]
        self._sc = [self._stack(f"sc.{k}", config.sc_layers, EDGES, CORNERS) for k in range(NUM_STEPS)]
        self._lrp = [self._stack(f"lrp.{k}", config.lrp_layers, DENSE, DENSE) for k in range(NUM_STEPS)] if config.lrp else None
        self._parameters = [self._stack(f"parameters.{k}", 3, POINT, POINT) for k in range(NUM_STEPS)]
        self._first_parameters = [self._without_spatial(stack) for stack in self._parameters]
        self.scale_exponents = [int(self._get(f"parameters.{k}.scale_exponent", (), -16, 16)) for k in range(NUM_STEPS)]
        self.mean_shifts = [int(self._get(f"parameters.{k}.mean_shift", (), 0, MAX_SHIFT_UP)) for k in range(NUM_STEPS)]
        self._in_shifts = {
            (kind, k): self._shift(f"{kind}.{k}.in_shift", (channels,))
            for k, c in enumerate(LATENT_CHANNELS)
            for kind, channels in (("cc", c), ("sc", c), ("lrp", c if k == 0 else 2 * c))
            if not (kind == "cc" and k == 0) and not (kind == "lrp" and not config.lrp)
        }
        self._post = self._post_layers()
        self._out_shift = int(self._get("post.out_shift", (), 0, MAX_SHIFT_UP)) if self._post else 0

    # Reading the packed tensors ----------------------------------------------------------------------------------------------------------------

    def _get(self, name: str, shape: tuple[int, ...], low: int = -(1 << 31), high: int = (1 << 31) - 1, kind: type = np.int32) -> NDArray[Any]:
        """A tensor whose values lie in [low, high]: the bounds within which no operation of INTEGER.md overflows."""
        try:
            value = self._tensors[name]
        except KeyError:
            raise CheckpointError(f"the integer model lacks {name}") from None
        if value.shape != shape or value.dtype != kind:
            raise CheckpointError(f"{name} of the integer model is {value.dtype} {list(value.shape)}, not {np.dtype(kind)} {list(shape)}")
        if value.size and not low <= int(value.min()) <= int(value.max()) <= high:
            raise CheckpointError(f"{name} of the integer model leaves the range {low} to {high}")
        return value

    def _shift(self, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
        return self._get(name, shape, 0, 30)

    def _layer(self, name: str, kind: int, leaky: bool) -> Layer:
        weight = self._tensors.get(f"{name}.weight")
        if weight is None or weight.ndim != 3 or weight.dtype != np.int16 or weight.shape[1] != NUM_TAPS[kind] or weight.shape[2] % 2:
            raise CheckpointError(f"{name}.weight of the integer model is missing or of the wrong shape")
        cout = len(weight)
        if not (1 <= cout <= MAX_CHANNELS and 2 <= weight.shape[2] <= MAX_CHANNELS):
            raise CheckpointError(f"{name} of the integer model has {weight.shape[2]} inputs and {cout} outputs; it takes up to {MAX_CHANNELS} each")
        bias, shift = self._get(f"{name}.bias", (cout,)), self._get(f"{name}.shift", (cout,), 1, 30)
        sums = np.abs(weight.astype(np.int64)).sum(axis=(1, 2)) * 32768 + np.abs(bias.astype(np.int64)) + (1 << (shift.astype(np.int64) - 1))
        if int(sums.max()) >= 1 << 31 or int(weight.min()) == -32768:
            raise CheckpointError(f"{name} of the integer model can overflow 32 bits: it was not made by our packer")
        return Layer(weight, bias, shift, kind, leaky)

    def _stack(self, name: str, num_layers: int, first: int, others: int) -> _Stack:
        layers = tuple(self._layer(f"{name}.{i}", others if i else first, self._leaky and i < num_layers - 1) for i in range(num_layers))
        tables = tuple(
            None if self._leaky or i == num_layers - 1 else self._get(f"{name}.{i}.gelu", (65536,), kind=np.int16) for i in range(num_layers)
        )
        return _Stack(layers, tables)

    def _without_spatial(self, stack: _Stack) -> _Stack:
        """For the first pass, whose spatial half of the inputs is zero."""
        first = stack.layers[0]
        weight = np.ascontiguousarray(first.weight[:, :, : first.weight.shape[2] // 2])
        return _Stack((Layer(weight, first.bias, first.shift, first.kind, first.leaky), *stack.layers[1:]), stack.activations)

    def _unit(self, level: int, i: int) -> _Unit:
        name, channels = f"unit.{level}.{i}", 12 << level
        matrix, bias = self._get(f"{name}.matrix", (channels, channels)), self._get(f"{name}.bias", (channels,))
        if int(np.abs(matrix.astype(np.int64)).sum(axis=0).max()) >= 1 << 26 or int(np.abs(bias.astype(np.int64)).max()) > 1 << 26:
            raise CheckpointError(f"{name} of the integer model leaves the range in which its sums are exact")
        try:
            forward = np.linalg.inv(matrix.astype(np.float64) / 2**20)
        except np.linalg.LinAlgError:
            raise CheckpointError(f"{name}.matrix of the integer model has no inverse") from None
        if not float(np.abs(forward).sum()) < 2**52:
            raise CheckpointError(f"{name}.matrix of the integer model has no inverse that can be computed with")
        layers = (
            self._layer(f"{name}.conv1", DENSE, True),
            self._layer(f"{name}.skip", POINT, False),
            self._layer(f"{name}.conv2", DENSE, True),
            self._layer(f"{name}.zero", POINT, False),
        )
        return _Unit(
            layers,
            self._shift(f"{name}.z_shift", (channels // 2,)),
            int(self._get(f"{name}.t_shift", (), 0, 16)),
            matrix.astype(np.float64),
            bias.astype(np.float64),
            np.ascontiguousarray(forward),
            bias.astype(np.float64) @ forward,
        )

    def _post_layers(self) -> dict[str, Layer]:
        if self.config.post_filter == "none":
            return {}
        if self.config.post_filter == "paper":
            return self._paper_layers()
        layers = {}
        for name in ("conv1", "up3", "up2", "conv2"):
            layers[name] = self._layer(f"post.{name}", POINT if name.startswith("up") else DENSE, False)
        for name in ("c1", "c2", "c3", "c4", "u3", "u2"):
            layers[f"{name}.0"] = self._layer(f"post.{name}.0", DENSE, True)
            layers[f"{name}.2"] = self._layer(f"post.{name}.2", DENSE, False)
            layers[f"{name}.up_dim"] = self._layer(f"post.{name}.up_dim", POINT, False)
        return layers

    def _paper_layers(self) -> dict[str, Layer]:
        layers = {name: self._layer(f"post.{name}", POINT if name.startswith("up") else DENSE, False) for name in ("conv1", "up3", "up2", "conv2")}
        for name in ("conv1", "conv2", "conv3", "up_conv3", "up_conv2"):
            for part, kind in (("0", DENSE), ("2", DENSE), ("fc0", POINT), ("fc2", POINT), ("up_dim", POINT)):
                layers[f"{name}.{part}"] = self._layer(f"post.{name}.{part}", kind, part == "0")
        for i in range(4):
            for part in ("1", "2"):
                layers[f"refine{i}.{part}"] = self._layer(f"post.refine{i}.{part}", DENSE, False)
        self._gate_table = self._get("tables.gate", (4096,), 0, 32767, np.int16)
        return layers

    # Gains -----------------------------------------------------------------------------------------------------------------------------------------

    def gains(self, q: float) -> IntegerGains:
        """Gains at q, a multiple of 1 / 1024 (INTEGER.md, "Gains").

        Raises:
            ConfigError: q outside [0, A - 1].
        """
        if not 0 <= q <= self.config.q_max:
            raise ConfigError(f"q is {q}; this model takes 0 to {self.config.q_max:g}")
        steps = round(q * Q_STEPS)
        f = min(steps // Q_STEPS, self.config.anchor_num - 2)
        t = steps - f * Q_STEPS

        def at(table: I32) -> NDArray[np.int64]:
            result: NDArray[np.int64] = (table[f].astype(np.int64) * (Q_STEPS - t) + table[f + 1].astype(np.int64) * t + Q_STEPS // 2) >> 10
            return result

        log = at(self._inv_log2)
        # Q30 to Q24, times 2^exponent.
        mantissa, exponent = self.tables["exp2"][(log & 65535) >> 4].astype(np.int64), log >> 16
        shift = 6 - exponent
        inv_gain = (mantissa + (np.int64(1) << shift >> 1)) >> shift
        gain = np.exp2(at(self._gain_log2) / 65536.0) / (1 << STATE_BITS)
        return IntegerGains(inv_gain.astype(np.int32), at(self._scale_log2).astype(np.int32), gain.astype(np.float32))

    # Running ---------------------------------------------------------------------------------------------------------------------------------------

    def _run(self, stack: _Stack, x: I16, parity: int = 0) -> I16:
        def run(rows: I16, first: int) -> I16:
            for layer, table in zip(stack.layers, stack.activations, strict=True):
                rows = self.backend.conv(rows, layer, parity=parity + first)
                if table is not None:
                    rows = table[rows.astype(np.int32) + 32768]
            return rows

        radius = sum(layer.kind != POINT for layer in stack.layers)
        return _in_bands(x, radius, max(len(layer.weight) for layer in stack.layers), run)

    def _block(self, unit: _Unit, z: I32) -> I16:
        conv1, skip, conv2, zero = unit.layers
        backend: Backend = self.backend

        def run(rows: I32, first: int) -> I16:
            z1 = backend.narrow(np.ascontiguousarray(rows[..., : rows.shape[2] // 2]), unit.z_shift)
            hidden = backend.conv(backend.conv(z1, conv1), conv2, add=backend.conv(z1, skip))
            return backend.conv(hidden, zero)

        return _in_bands(z, 2, len(conv1.weight), run)

    def analysis(self, pixels: NDArray[np.uint8]) -> list[I32]:
        """Latents y5..y1, `[h, w, C]` in Q16, of uint8 `[H, W, 3]` pixels, sides multiples of 32."""
        x = _levels_of_pixels(pixels)
        latents = []
        for units in self._units:
            x = squeeze(x)
            for unit in units:
                x = self.backend.mix(x, unit.forward_matrix, unit.forward_bias)
                self.backend.couple(x, self._block(unit, x), self._reciprocal, unit.t_shift, self._affine)
            half = x.shape[2] // 2
            latents.append(np.ascontiguousarray(x[..., :half]))
            x = np.ascontiguousarray(x[..., half:])
        latents.append(x)
        return latents[::-1]

    def _inverse_level(self, level: int, z: I32) -> I32:
        for unit in reversed(self._units[level]):
            z = self.backend.unit(z, self._block(unit, z), self.tables["couple"], unit.t_shift, unit.matrix, unit.bias, self._affine)
        return z

    def synthesis(self, latents: list[I32]) -> I32:
        """`g_s`, the inverse of `analysis`: pixels in Q16 of full scale `[H, W, 3]`; no post-filter."""
        x = latents[0]
        for level, y in zip(range(len(self._units) - 1, -1, -1), latents[1:], strict=True):
            x = unsqueeze(self._inverse_level(level, np.concatenate((y, x), axis=2)))
        return x

    def walk(self, coder: IntegerCoder, gains: IntegerGains, shape: tuple[int, int], *, finest: bool = True) -> NDArray[np.uint8] | None:
        """Code all latents, coarse to fine, through `coder`.

        Args:
            coder: Supplies the symbols.
            gains: Gains at the q in force.
            shape: `(h, w)` of y5.
            finest: Also compute the picture.

        Returns:
            uint8 `[16h, 16w, 3]`, or None without `finest`.
        """
        support: I32 | None = None
        for k in range(NUM_STEPS):
            inv_gain = gains.level(k)[0]
            y = self._code_level(coder, k, gains, support, shape)
            if k == NUM_STEPS - 1 and not finest:
                return None
            if self._lrp is not None:
                inputs = y if support is None else np.concatenate((y, support), axis=2)
                prediction = self._run(self._lrp[k], self.backend.narrow(inputs, self._in_shifts["lrp", k]))
                self.backend.refine(y, prediction, self.tables["half_tanh"], inv_gain)
            support = y if support is None else unsqueeze(self._inverse_level(4 - k, np.concatenate((y, support), axis=2)))
        assert support is not None
        return self._picture(support)

    def _code_level(self, coder: IntegerCoder, k: int, gains: IntegerGains, support: I32 | None, shape: tuple[int, int]) -> I32:
        stack = self._cc[k]
        if support is None or stack is None:
            cc: I16 = np.ascontiguousarray(np.broadcast_to(self._initial, (*shape, len(self._initial))))
        else:
            cc = self._run(stack, self.backend.narrow(support, self._in_shifts["cc", k]))
        parity = anchor_parity(k)
        anchors = self._code_half(coder, k, parity, self._run(self._first_parameters[k], half_of(cc, parity)), gains)
        sc = self._run(self._sc[k], self.backend.narrow(anchors, self._in_shifts["sc", k]), 1 - parity)
        inputs = np.concatenate((half_of(cc, 1 - parity), sc), axis=2)
        rest = self._code_half(coder, k, 1 - parity, self._run(self._parameters[k], inputs), gains)
        y: I32 = whole_of(anchors, parity, rest)
        return y

    def _code_half(self, coder: IntegerCoder, k: int, parity: int, parameters: I16, gains: IntegerGains) -> I32:
        inv_gain, scale_log2, _ = gains.level(k)
        log_gain = scale_log2 - np.int32(self.scale_exponents[k] << 16)
        indexes = self.backend.levels(parameters, self.tables["log2"], log_gain, self.first, self.step, 128)
        symbols = coder.symbols(k, parity, parameters, indexes)
        return self.backend.dequantise(symbols, parameters, inv_gain, self.mean_shifts[k])

    def _picture(self, x: I32) -> NDArray[np.uint8]:
        if self._post:
            x += self._paper_correction(x) if self.config.post_filter == "paper" else self._correction(x)
        return ((np.clip(x, 0, 1 << STATE_BITS) * np.int32(255) + (1 << (STATE_BITS - 1))) >> STATE_BITS).astype(np.uint8)

    def _correction(self, x: I32) -> I32:
        conv, post = self.backend.conv, self._post

        def block(name: str, inputs: I16) -> I16:
            return conv(conv(inputs, post[f"{name}.0"]), post[f"{name}.2"], add=conv(inputs, post[f"{name}.up_dim"]))

        def filtered(inputs: I16, first: int) -> I16:
            a = block("c1", conv(inputs, post["conv1"]))
            b = block("c2", _halved(a))
            out = block("c4", block("c3", _halved(b)))
            out = block("u3", np.concatenate((b, _shuffled(conv(out, post["up3"]))), axis=2))
            out = block("u2", np.concatenate((a, _shuffled(conv(out, post["up2"]))), axis=2))
            return conv(out, post["conv2"])

        inputs = self.backend.narrow(_unshuffled(x), self._shift("post.in_shift", (12,)))
        correction: I32 = _shuffled(_in_bands(inputs, _POST_RADIUS, 64, filtered)).astype(np.int32)
        correction *= np.int32(1 << self._out_shift)
        return correction

    def _paper_correction(self, x: I32) -> I32:
        """The paper's U-Net; its gates see the whole padded picture, so that nothing here can be done in bands."""
        conv, post = self.backend.conv, self._post

        def block(name: str, inputs: I16) -> I16:
            u = conv(conv(inputs, post[f"{name}.0"]), post[f"{name}.2"])
            count = u.shape[0] * u.shape[1]
            mean = (2 * u.sum(axis=(0, 1), dtype=np.int64, keepdims=True) + count) // (2 * count)
            squeezed = np.maximum(conv(_even(mean.astype(np.int16)), post[f"{name}.fc0"]), 0)
            gate = self._gate_table[(conv(_even(squeezed), post[f"{name}.fc2"]).astype(np.int32) + 32768) >> 4].astype(np.int32)
            gated = (u * gate + (1 << 14)) >> 15
            out: I16 = np.clip(gated + conv(inputs, post[f"{name}.up_dim"]), -32768, 32767).astype(np.int16)
            return out

        inputs = self.backend.narrow(x, self._shift("post.in_shift", (3,)))
        down1 = block("conv1", conv(_even(inputs), post["conv1"]))
        down2 = block("conv2", _halved(down1))
        out = block("conv3", _halved(down2))
        for i in range(4):
            hidden = conv(np.maximum(out, 0), post[f"refine{i}.1"])
            out = conv(np.maximum(hidden, 0), post[f"refine{i}.2"], add=out)
        out = block("up_conv3", np.concatenate((down2, _shuffled(conv(out, post["up3"]))), axis=2))
        out = block("up_conv2", np.concatenate((down1, _shuffled(conv(out, post["up2"]))), axis=2))
        correction: I32 = conv(out, post["conv2"]).astype(np.int32)
        return correction * np.int32(1 << self._out_shift)


def _even(x: I16) -> I16:
    """An odd number of channels with one of zeros after them: products come in pairs."""
    return x if x.shape[2] % 2 == 0 else np.concatenate((x, np.zeros((*x.shape[:2], 1), np.int16)), axis=2)


def _levels_of_pixels(pixels: NDArray[np.uint8]) -> I32:
    """Q16 of full scale, rounded; any rounding will do, since only the encoder needs it."""
    table = np.round(np.arange(256) * (1 << STATE_BITS) / 255).astype(np.int32)
    levels: I32 = table[pixels]
    return levels
