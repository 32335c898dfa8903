"""A packed model read and checked: layers, units, tables and gains of the integer network (INTEGER.md, sections 1, 2 and 6)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msinn_core.bitstream import Q_STEPS
from msinn_core.config import LATENT_CHANNELS, MsinnConfig
from msinn_core.errors import CheckpointError, ConfigError
from msinn_core.integer.arrays import I16, I32, STATE_BITS
from msinn_core.integer.ops import CORNERS, DENSE, EDGES, NUM_TAPS, POINT, Layer
from msinn_core.walk import NUM_STEPS

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


@dataclass(frozen=True)
class IntegerGains:
    """Gains of one q, for every latent channel in coding order: `inv_gain` Q24, `scale_log2` Q16 (both normative), `gain` per Q16 unit (encoder).

    `[C]` each; `[N, C]` for a batch whose pictures each have a rate of their own.
    """

    inv_gain: I32
    scale_log2: I32
    gain: NDArray[np.float32]

    def level(self, k: int) -> tuple[I32, I32, NDArray[np.float32]]:
        """Those of step k."""
        start = sum(LATENT_CHANNELS[:k])
        part = slice(start, start + LATENT_CHANNELS[k])
        return self.inv_gain[..., part], self.scale_log2[..., part], self.gain[..., part]


@dataclass(frozen=True)
class Unit:
    """An invertible unit: the layers of its coupling block, and its matrix and bias, inverse (normative) and forward (the encoder's)."""

    layers: tuple[Layer, Layer, Layer, Layer]  # conv1, skip, conv2, zero
    z_shift: I32
    t_shift: int
    matrix: NDArray[np.float64]
    bias: NDArray[np.float64]
    forward_matrix: NDArray[np.float64]
    forward_bias: NDArray[np.float64]


@dataclass(frozen=True)
class Stack:
    """Layers one after the other; after each its GELU table, or None."""

    layers: tuple[Layer, ...]
    activations: tuple[I16 | None, ...]


class PackedTensors:
    """Tensors of a packed model, read within the bounds that make every operation exact.

    Args:
        tensors: By name.
    """

    def __init__(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        self._tensors = tensors

    def get(self, name: str, shape: tuple[int, ...], low: int = -(1 << 31), high: int = (1 << 31) - 1, kind: type = np.int32) -> NDArray[Any]:
        """A tensor whose values lie in [low, high]: the bounds within which no operation of INTEGER.md overflows. Raises `CheckpointError`."""
        try:
            value = self._tensors[name]
        except KeyError:
            raise CheckpointError(f"the integer model lacks {name}") from None
        if value.shape != shape or value.dtype != kind:
            raise CheckpointError(f"{name} of the integer model is {value.dtype} {list(value.shape)}, not {np.dtype(kind)} {list(shape)}")
        if value.size and not low <= int(value.min()) <= int(value.max()) <= high:
            raise CheckpointError(f"{name} of the integer model leaves the range {low} to {high}")
        return value

    def shift(self, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
        """Shifts from state to layer inputs."""
        return self.get(name, shape, 0, 30)

    def layer(self, name: str, kind: int, leaky: bool) -> Layer:
        """A layer whose sums fit 32 bits whatever its inputs."""
        weight = self._tensors.get(f"{name}.weight")
        if weight is None or weight.ndim != 3 or weight.dtype != np.int16 or weight.shape[1] != NUM_TAPS[kind] or weight.shape[2] % 2:
            raise CheckpointError(f"{name}.weight of the integer model is missing or of the wrong shape")
        cout = len(weight)
        if not (1 <= cout <= MAX_CHANNELS and 2 <= weight.shape[2] <= MAX_CHANNELS):
            raise CheckpointError(f"{name} of the integer model has {weight.shape[2]} inputs and {cout} outputs; it takes up to {MAX_CHANNELS} each")
        bias, shift = self.get(f"{name}.bias", (cout,)), self.get(f"{name}.shift", (cout,), 1, 30)
        sums = np.abs(weight.astype(np.int64)).sum(axis=(1, 2)) * 32768 + np.abs(bias.astype(np.int64)) + (1 << (shift.astype(np.int64) - 1))
        if int(sums.max()) >= 1 << 31 or int(weight.min()) == -32768:
            raise CheckpointError(f"{name} of the integer model can overflow 32 bits: it was not made by our packer")
        return Layer(weight, bias, shift, kind, leaky)


class PackedModel(PackedTensors):
    """Parts of a packed model, within the bounds that make every operation exact.

    Args:
        config: Shape of the network.
        tensors: From `packing.pack`, names without the prefix `int.`.

    Raises:
        CheckpointError: A tensor is missing, of another shape or type, or breaks a bound of INTEGER.md.
    """

    def __init__(self, config: MsinnConfig, tensors: Mapping[str, NDArray[Any]]) -> None:
        super().__init__(tensors)
        self.config = config
        self.affine = config.coupling == "affine"
        self._leaky = config.context_activation != "gelu"
        self.tables = {name: self.get(f"tables.{name}", (size,), low, high, kind) for name, (size, low, high, kind) in TABLES.items()}
        self.reciprocal = (2.0**20 / self.tables["couple"]).astype(np.float32)
        shape, limit = (config.anchor_num, sum(LATENT_CHANNELS)), MAX_LOG2_GAIN << 16
        self._gain_log2, self._scale_log2 = (self.get(f"gains.{key}_log2", shape, -limit, limit) for key in ("gain", "scale"))
        self._inv_log2 = self.get("gains.inv_log2", shape, -limit, MAX_LOG2_INV_GAIN << 16)
        self.first = int(self.get("levels.first", (), -(1 << 22), 1 << 22))
        self.step = int(self.get("levels.step", (), 1, 1 << 16))
        self.initial = self.get("initial", (2 * LATENT_CHANNELS[0],), kind=np.int16)
        self.units = [[self._unit(level, i) for i in range(depth)] for level, depth in enumerate(config.depths)]
        self.cc = [self._stack(f"cc.{k}", config.cc_layers, DENSE, DENSE) if k else None for k in range(NUM_STEPS)]
        self.sc = [self._stack(f"sc.{k}", config.sc_layers, EDGES, CORNERS) for k in range(NUM_STEPS)]
        self.lrp = [self._stack(f"lrp.{k}", config.lrp_layers, DENSE, DENSE) for k in range(NUM_STEPS)] if config.lrp else None
        self.parameters = [self._stack(f"parameters.{k}", 3, POINT, POINT) for k in range(NUM_STEPS)]
        self.first_parameters = [self._without_spatial(stack) for stack in self.parameters]
        self.scale_exponents = [int(self.get(f"parameters.{k}.scale_exponent", (), -16, 16)) for k in range(NUM_STEPS)]
        self.mean_shifts = [int(self.get(f"parameters.{k}.mean_shift", (), 0, MAX_SHIFT_UP)) for k in range(NUM_STEPS)]
        self.in_shifts = {
            (kind, k): self.shift(f"{kind}.{k}.in_shift", (channels,))
            for k, c in enumerate(LATENT_CHANNELS)
            for kind, channels in (("cc", c), ("sc", c), ("lrp", c if k == 0 else 2 * c))
            if not (kind == "cc" and k == 0) and not (kind == "lrp" and not config.lrp)
        }
        self.post = self._post_layers()
        self.out_shift = int(self.get("post.out_shift", (), 0, MAX_SHIFT_UP)) if self.post else 0
        self.post_in_shift = self.shift("post.in_shift", (12 if config.post_filter == "lite" else 3,)) if self.post else np.zeros(0, np.int32)

    # Parts of the network --------------------------------------------------------------------------------------------------------------------------

    def _stack(self, name: str, num_layers: int, first: int, others: int) -> Stack:
        layers = tuple(self.layer(f"{name}.{i}", others if i else first, self._leaky and i < num_layers - 1) for i in range(num_layers))
        tables = tuple(
            None if self._leaky or i == num_layers - 1 else self.get(f"{name}.{i}.gelu", (65536,), kind=np.int16) for i in range(num_layers)
        )
        return Stack(layers, tables)

    def _without_spatial(self, stack: Stack) -> Stack:
        """For the first pass, whose spatial half of the inputs is zero."""
        first = stack.layers[0]
        weight = np.ascontiguousarray(first.weight[:, :, : first.weight.shape[2] // 2])
        return Stack((Layer(weight, first.bias, first.shift, first.kind, first.leaky), *stack.layers[1:]), stack.activations)

    def _unit(self, level: int, i: int) -> Unit:
        name, channels = f"unit.{level}.{i}", 12 << level
        matrix, bias = self.get(f"{name}.matrix", (channels, channels)), self.get(f"{name}.bias", (channels,))
        if int(np.abs(matrix.astype(np.int64)).sum(axis=0).max()) >= 1 << 26 or int(np.abs(bias.astype(np.int64)).max()) > 1 << 26:
            raise CheckpointError(f"{name} of the integer model leaves the range in which its sums are exact")
        try:
            forward = np.linalg.inv(matrix.astype(np.float64) / 2**20)
        except np.linalg.LinAlgError:
            raise CheckpointError(f"{name}.matrix of the integer model has no inverse") from None
        if not float(np.abs(forward).sum()) < 2**52:
            raise CheckpointError(f"{name}.matrix of the integer model has no inverse that can be computed with")
        layers = (
            self.layer(f"{name}.conv1", DENSE, True),
            self.layer(f"{name}.skip", POINT, False),
            self.layer(f"{name}.conv2", DENSE, True),
            self.layer(f"{name}.zero", POINT, False),
        )
        return Unit(
            layers,
            self.shift(f"{name}.z_shift", (channels // 2,)),
            int(self.get(f"{name}.t_shift", (), 0, 16)),
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
            layers[name] = self.layer(f"post.{name}", POINT if name.startswith("up") else DENSE, False)
        for name in ("c1", "c2", "c3", "c4", "u3", "u2"):
            layers[f"{name}.0"] = self.layer(f"post.{name}.0", DENSE, True)
            layers[f"{name}.2"] = self.layer(f"post.{name}.2", DENSE, False)
            layers[f"{name}.up_dim"] = self.layer(f"post.{name}.up_dim", POINT, False)
        return layers

    def _paper_layers(self) -> dict[str, Layer]:
        layers = {name: self.layer(f"post.{name}", POINT if name.startswith("up") else DENSE, False) for name in ("conv1", "up3", "up2", "conv2")}
        for name in ("conv1", "conv2", "conv3", "up_conv3", "up_conv2"):
            for part, kind in (("0", DENSE), ("2", DENSE), ("fc0", POINT), ("fc2", POINT), ("up_dim", POINT)):
                layers[f"{name}.{part}"] = self.layer(f"post.{name}.{part}", kind, part == "0")
        for i in range(4):
            for part in ("1", "2"):
                layers[f"refine{i}.{part}"] = self.layer(f"post.refine{i}.{part}", DENSE, False)
        self.gate_table = self.get("tables.gate", (4096,), 0, 32767, np.int16)
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
