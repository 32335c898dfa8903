"""Float model to integer model: power-of-two scales from measured ranges, weights as large as 32-bit sums allow, tables (INTEGER.md).

16-bit activations and weights of 9 to 12 bits lose so little that no fine-tuning is needed; any float model can be packed.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from msinn_core.config import LATENT_CHANNELS
from msinn_core.entropy.tables import NUM_SCALES, SCALE_MAX, SCALE_MIN
from msinn_core.errors import CheckpointError, ConfigError
from msinn_core.float.gain import MIN_GAIN
from msinn_core.float.layers import MaskedConv2d
from msinn_core.float.model import Estimator, Msinn
from msinn_core.float.postfilter import SCALE, Block, LitePostFilter, PaperPostFilter, Refine
from msinn_core.float.transform import InvertibleUnit, ResidualBlock
from msinn_core.integer.arrays import STATE_BITS
from msinn_core.integer.ops import CORNERS, DENSE, EDGES, POINT
from msinn_core.integer.packed import MAX_LOG2_GAIN, MAX_LOG2_INV_GAIN
from msinn_core.walk import walk

MARGIN = 2.0
"""Values may grow to this many times the measured range before they are cut."""

CUSHIONED = 0.5
"""Of that, where a LeakyReLU follows and the value is negative: a hundredth of what is cut off there is all that is lost. Before the LeakyReLU such
values reach ten times as far as the positive ones, and cost the others two or three bits."""

QUIET = 0.25
"""Channels whose range is below this share of the loudest's are given this share."""

_SCALE_EXPONENT = 12
_S_EXPONENT = 12
_LRP_EXPONENT = 12
_GATE_EXPONENT = 11
_MAX_EXPONENT = 14

Array = NDArray[Any]

_SELECTED = {
    DENSE: [(r, c) for r in range(3) for c in range(3)],
    EDGES: [(0, 1), (1, 0), (1, 2), (2, 1)],
    CORNERS: [(0, 0), (0, 2), (1, 1), (2, 0), (2, 2)],
    POINT: [(0, 0)],
}


class _Ranges:
    """Largest magnitudes seen at the output of modules, per channel at their input, and per channel and sign at their output."""

    def __init__(self, model: Msinn) -> None:
        self.out: dict[str, float] = defaultdict(float)
        self.out_halves: dict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
        self.inputs: dict[str, Array] = {}
        self.above: dict[str, Array] = {}
        self.below: dict[str, Array] = {}
        self._handles = [
            module.register_forward_hook(self._hook(name))
            for name, module in model.named_modules()
            if isinstance(module, nn.Conv2d | nn.Linear | ResidualBlock | Block | Refine)
        ]

    def _hook(self, name: str) -> Any:
        def record(module: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
            first, second = (float(part.abs().max()) for part in (out, out.chunk(2, dim=1)[-1]))
            self.out[name] = max(self.out[name], first, second)
            halves = self.out_halves[name]
            self.out_halves[name] = max(halves[0], first), max(halves[1], second)
            if inputs[0].ndim != 4:
                return
            for largest, values in ((self.inputs, inputs[0].abs()), (self.above, out), (self.below, -out)):
                seen = values.amax(dim=(0, 2, 3)).clamp(min=0).numpy()
                largest[name] = np.maximum(largest[name], seen) if name in largest else seen

        return record

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()


def exponent_of(largest: float) -> int:
    """Fractional bits with which `MARGIN * largest` still fits 16 bits."""
    return min(_MAX_EXPONENT, math.floor(math.log2(32767 / (MARGIN * max(largest, 1e-4)))))


def whole_numbers(name: str, weight: Array, bias: Array, exponents: Array) -> tuple[Array, Array, Array]:
    """Weight int16, bias and shift int32 of a layer, as large as the bound of INTEGER.md lets them be.

    Args:
        name: Of the layer.
        weight: `[cout, taps, cin]`, for whole numbers as inputs.
        bias: `[cout]`.
        exponents: `[cout]`, fractional bits of the outputs.

    Raises:
        CheckpointError: Weights that do not fit.
    """
    weights, biases, shifts = np.zeros(weight.shape, np.int16), np.zeros(len(weight), np.int32), np.zeros(len(weight), np.int32)
    for o, row in enumerate(weight):
        for k in range(int(exponents[o]) + 30, int(exponents[o]), -1):
            w, b, shift = np.rint(row * 2.0**k), round(bias[o] * 2.0**k), k - int(exponents[o])
            if np.abs(w).max() <= 32767 and 32768 * np.abs(w).sum() + abs(b) + (1 << (shift - 1)) < 1 << 31:
                weights[o], biases[o], shifts[o] = w, b, shift
                break
        else:
            raise CheckpointError(f"{name}: output channel {o} has weights too large for 16 bits")
    return weights, biases, shifts


class _Packer:
    def __init__(self, model: Msinn, ranges: _Ranges) -> None:
        self.modules = dict(model.named_modules())
        self.ranges = ranges
        self.tensors: dict[str, Array] = {}

    def put(self, name: str, value: Any, dtype: type = np.int32) -> None:
        self.tensors[name] = np.asarray(value).astype(dtype)

    def conv(self, name: str, module: str, kind: int, in_exponent: Array, out_exponent: int | Array, factor: float = 1.0) -> Array:
        """Pack one convolution; returns its exponents per output channel."""
        conv = self.modules[module]
        assert isinstance(conv, nn.Conv2d | nn.Linear)
        full = (conv.weight * conv.mask if isinstance(conv, MaskedConv2d) else conv.weight).detach().double().numpy() * factor
        if kind == POINT:
            full = full.reshape(len(full), 1, -1)
        else:
            full = np.stack([full[:, :, r, c] for r, c in _SELECTED[kind]], axis=1)
        bias = np.zeros(len(full)) if conv.bias is None else conv.bias.detach().double().numpy() * factor
        scaled = full * np.exp2(-in_exponent.astype(np.float64))[None, None, :]
        if scaled.shape[2] % 2:  # products come in pairs: the walk appends a channel of zeros
            scaled = np.concatenate((scaled, np.zeros((*scaled.shape[:2], 1))), axis=2)
        out = np.broadcast_to(np.asarray(out_exponent), (len(full),)).astype(np.int64).copy()
        weights, biases, shifts = whole_numbers(module, scaled, bias, out)
        self.put(f"{name}.weight", weights, np.int16)
        self.put(f"{name}.bias", biases)
        self.put(f"{name}.shift", shifts)
        return out

    def stack(self, name: str, module: str, num_layers: int, kinds: tuple[int, int], in_exponent: Array, last: int | Array, gelu: bool) -> Array:
        """Pack a context stack; convolutions sit at even indices."""
        for i in range(num_layers):
            source = f"{module}.{2 * i}"
            # A table of GELU belongs to one scale.
            out = last if i == num_layers - 1 else exponent_of(self.ranges.out[source]) if gelu else self.per_channel(leaky=source)
            in_exponent = self.conv(f"{name}.{i}", source, kinds[min(i, 1)], in_exponent, out)
            if gelu and i < num_layers - 1:
                x = np.arange(-32768, 32768) / 2.0 ** int(np.asarray(out))
                values = x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
                self.put(f"{name}.{i}.gelu", np.rint(values * 2.0 ** int(np.asarray(out))).clip(-32768, 32767), np.int16)
        return in_exponent

    def per_channel(self, *modules: str, leaky: str = "") -> Array:
        """Exponents of channels that these modules share, each by its own range: a loud channel takes no precision from the others. A LeakyReLU
        follows `leaky`, which is one more of them."""
        above, below = self.ranges.above, self.ranges.below
        ranges = [np.maximum(above[module], below[module]) for module in modules]
        if leaky:
            ranges.append(np.maximum(above[leaky], below[leaky] * CUSHIONED))
        largest = np.max(ranges, axis=0)
        # Not without end: a channel that is quiet on photographs may be loud on what is none.
        return np.array([exponent_of(float(value)) for value in np.maximum(largest, largest.max() * QUIET)])

    def state_inputs(self, name: str, module: str) -> Array:
        """Exponents, and the shifts they mean, of a layer that reads latents."""
        exponents = np.array([exponent_of(float(value)) for value in self.ranges.inputs[module]])
        self.put(name, STATE_BITS - exponents)
        return exponents


def pack(model: Msinn, pictures: Iterable[Tensor]) -> dict[str, Array]:
    """Integer tensors of a float model.

    Args:
        model: Any MSINN.
        pictures: `[N, 3, H, W]` float32 in [0, 1], sides multiples of 32; a dozen varied photographs, whose ranges set the scales.

    Returns:
        Name to array, as `IntegerNetwork` takes them.

    Raises:
        ConfigError: No pictures.
        CheckpointError: Weights that no power-of-two scale fits.
    """
    config = model.config
    ranges = _Ranges(model)
    try:
        with torch.no_grad():
            model.eval()
            for x in pictures:
                for q in (0.0, config.q_max / 2, config.q_max):
                    latents = model.analysis(x)
                    n, _, h, w = latents[0].shape
                    walk(model, Estimator(latents, training=False), model.gains(q), (n, h, w)).picture()
    finally:
        ranges.close()
    if not ranges.out:
        raise ConfigError("packing needs pictures to measure ranges on")
    packer = _Packer(model, ranges)
    _units(packer, model)
    _context(packer, model)
    _post(packer, model)
    _tables(packer, model)
    return packer.tensors


def _units(packer: _Packer, model: Msinn) -> None:
    ranges = packer.ranges
    for level, units in enumerate(model.levels):
        for i, unit in enumerate(units):
            assert isinstance(unit, InvertibleUnit)
            name, module = f"unit.{level}.{i}", f"g_a{level}.{i}.block"
            z = packer.state_inputs(f"{name}.z_shift", f"{module}.0.conv1")
            # skip, conv2 and their sum share their scales.
            inner = packer.per_channel(f"{module}.0", f"{module}.0.skip", leaky=f"{module}.0.conv2")
            hidden = packer.conv(f"{name}.conv1", f"{module}.0.conv1", DENSE, z, packer.per_channel(leaky=f"{module}.0.conv1"))
            packer.conv(f"{name}.skip", f"{module}.0.skip", POINT, z, inner)
            hidden = packer.conv(f"{name}.conv2", f"{module}.0.conv2", DENSE, hidden, inner)
            half = len(z)
            t = exponent_of(ranges.out_halves[f"{module}.1.conv"][1] if unit.affine else ranges.out[f"{module}.1.conv"])
            out = np.concatenate((np.full(half, _S_EXPONENT), np.full(half, t))) if unit.affine else np.full(half, t)
            packer.conv(f"{name}.zero", f"{module}.1.conv", POINT, hidden, out)
            packer.put(f"{name}.t_shift", STATE_BITS - t)
            with torch.no_grad():
                weight, bias = unit._linear(True, torch.float64)
            packer.put(f"{name}.matrix", np.rint(weight.numpy().T * 2**20))
            packer.put(f"{name}.bias", np.rint(-bias.numpy() * 2**STATE_BITS))


def _context(packer: _Packer, model: Msinn) -> None:
    config, ranges = model.config, packer.ranges
    gelu = config.context_activation == "gelu"
    for k, channels in enumerate(LATENT_CHANNELS):
        sc_module = f"sc_transforms.{k}"
        sc_last = f"{sc_module}.{2 * config.sc_layers - 2}"
        if k == 0:
            scale = model.initial_scale.detach().double().numpy().reshape(-1)
            cc_exponent = exponent_of(float(np.abs(scale).max()))
            packer.put("initial", np.concatenate((np.rint(scale * 2.0**cc_exponent), np.zeros(channels))), np.int16)
            cc = np.full(2 * channels, cc_exponent)
        else:
            cc_module = f"cc_transforms.{k - 1}"
            inputs = packer.state_inputs(f"cc.{k}.in_shift", f"{cc_module}.0")
            last = packer.per_channel(f"{cc_module}.{2 * config.cc_layers - 2}")
            cc = packer.stack(f"cc.{k}", cc_module, config.cc_layers, (DENSE, DENSE), inputs, last, gelu)
        inputs = packer.state_inputs(f"sc.{k}.in_shift", f"{sc_module}.0")
        sc = packer.stack(f"sc.{k}", sc_module, config.sc_layers, (EDGES, CORNERS), inputs, packer.per_channel(sc_last), gelu)
        head = f"entropy_parameters.{k}"
        scales, means = ranges.out_halves[f"{head}.4"]
        exponents = (min(_SCALE_EXPONENT, exponent_of(scales)), exponent_of(means))
        out = np.repeat(exponents, channels)
        packer.stack(f"parameters.{k}", head, 3, (POINT, POINT), np.concatenate((cc, sc)), out, gelu)
        packer.put(f"parameters.{k}.scale_exponent", exponents[0])
        packer.put(f"parameters.{k}.mean_shift", STATE_BITS - exponents[1])
        if config.lrp:
            inputs = packer.state_inputs(f"lrp.{k}.in_shift", f"lrp_transforms.{k}.0")
            packer.stack(f"lrp.{k}", f"lrp_transforms.{k}", config.lrp_layers, (DENSE, DENSE), inputs, _LRP_EXPONENT, gelu)


def _paper_post(packer: _Packer) -> None:
    ranges, unet = packer.ranges, "post_net.unet"

    def block(name: str, inputs: Array, last: int | None = None) -> Array:
        module = f"{unet}.{name}"
        if last is None:
            last = exponent_of(max(ranges.out[part] for part in (module, f"{module}.conv.2", f"{module}.up_dim")))
        hidden = packer.conv(f"post.{name}.0", f"{module}.conv.0", DENSE, inputs, exponent_of(ranges.out[f"{module}.conv.0"]))
        packer.conv(f"post.{name}.up_dim", f"{module}.up_dim", POINT, inputs, last)
        out = packer.conv(f"post.{name}.2", f"{module}.conv.2", DENSE, hidden, last)
        squeezed = packer.conv(f"post.{name}.fc0", f"{module}.conv.3.fc.0", POINT, out, exponent_of(ranges.out[f"{module}.conv.3.fc.0"]))
        packer.conv(f"post.{name}.fc2", f"{module}.conv.3.fc.2", POINT, squeezed, _GATE_EXPONENT)
        return out

    inputs = np.full(3, _MAX_EXPONENT)
    packer.put("post.in_shift", STATE_BITS - inputs)
    out = packer.conv("post.conv1", "post_net.conv1", DENSE, inputs, exponent_of(ranges.out["post_net.conv1"]))
    down1 = block("conv1", out)
    down2 = block("conv2", down1)
    # The refinements add to what they are given: one scale for all of them.
    names = [f"{unet}.context_refine.{i}" for i in range(4)]
    parts = [f"{name}.conv2" for name in names] + [f"{unet}.conv3", f"{unet}.conv3.conv.2", f"{unet}.conv3.up_dim"]
    common = exponent_of(max(ranges.out[part] for part in [*names, *parts]))
    out = block("conv3", down2, common)
    for i, name in enumerate(names):
        hidden = packer.conv(f"post.refine{i}.1", f"{name}.conv1", DENSE, out, exponent_of(ranges.out[f"{name}.conv1"]))
        packer.conv(f"post.refine{i}.2", f"{name}.conv2", DENSE, hidden, common)
    up = packer.conv("post.up3", f"{unet}.up3.0", POINT, out, exponent_of(ranges.out[f"{unet}.up3.0"]))
    out = block("up_conv3", np.concatenate((down2, up[: len(up) // 4])))
    up = packer.conv("post.up2", f"{unet}.up2.0", POINT, out, exponent_of(ranges.out[f"{unet}.up2.0"]))
    out = block("up_conv2", np.concatenate((down1, up[: len(up) // 4])))
    last = exponent_of(SCALE * ranges.out["post_net.conv2"])
    packer.conv("post.conv2", "post_net.conv2", DENSE, out, last, factor=SCALE)
    packer.put("post.out_shift", STATE_BITS - last)
    values = 1 / (1 + np.exp(-(np.arange(4096) * 16 + 7.5 - 32768) / 2.0**_GATE_EXPONENT))
    packer.put("tables.gate", np.rint(values * 32768).clip(0, 32767), np.int16)


def _post(packer: _Packer, model: Msinn) -> None:
    if isinstance(model.post_net, PaperPostFilter):
        _paper_post(packer)
    if not isinstance(model.post_net, LitePostFilter):
        return
    ranges = packer.ranges

    def simple(name: str, kind: int, inputs: Array) -> Array:
        return packer.conv(f"post.{name}", f"post_net.{name}", kind, inputs, exponent_of(ranges.out[f"post_net.{name}"]))

    def block(name: str, inputs: Array) -> Array:
        parts = (f"post_net.{name}", f"post_net.{name}.conv.2", f"post_net.{name}.up_dim")
        out = packer.per_channel(*parts)
        hidden = packer.conv(f"post.{name}.0", f"post_net.{name}.conv.0", DENSE, inputs, packer.per_channel(leaky=f"post_net.{name}.conv.0"))
        packer.conv(f"post.{name}.up_dim", f"post_net.{name}.up_dim", POINT, inputs, out)
        return packer.conv(f"post.{name}.2", f"post_net.{name}.conv.2", DENSE, hidden, out)

    inputs = np.full(12, _MAX_EXPONENT)
    packer.put("post.in_shift", STATE_BITS - inputs)
    a = block("c1", simple("conv1", DENSE, inputs))
    b = block("c2", a)
    out = block("c4", block("c3", b))
    up = simple("up3", POINT, out)
    out = block("u3", np.concatenate((b, up[: len(up) // 4])))
    up = simple("up2", POINT, out)
    out = block("u2", np.concatenate((a, up[: len(up) // 4])))
    last = exponent_of(SCALE * ranges.out["post_net.conv2"])
    packer.conv("post.conv2", "post_net.conv2", DENSE, out, last, factor=SCALE)
    packer.put("post.out_shift", STATE_BITS - last)


def _tables(packer: _Packer, model: Msinn) -> None:
    s = np.arange(-32768, 32768) / 2.0**_S_EXPONENT
    packer.put("tables.couple", np.rint(np.exp(-(2 / (1 + np.exp(-s)) - 1)) * 2**20))
    packer.put("tables.log2", np.rint(np.log2(np.maximum(1, np.arange(32768))) * 65536))
    packer.put("tables.exp2", np.rint(np.exp2(np.arange(4096) / 4096) * 2**30))
    packer.put(
        "tables.half_tanh", np.rint(0.5 * np.tanh((np.arange(4096) * 16 + 7.5 - 32768) / 2.0**_LRP_EXPONENT) * 65536).clip(-32767, 32767), np.int16
    )
    for key, table in (("gain", model.gain), ("inv", model.inv_gain), ("scale", model.scale_gain)):
        values = table.detach().double().numpy().reshape(len(table), -1)
        if key == "inv" and values.max() > 2.0**MAX_LOG2_INV_GAIN:
            raise CheckpointError(f"an inverse gain is {values.max():.3g}; the integer profile takes {2**MAX_LOG2_INV_GAIN} at most")
        packer.put(f"gains.{key}_log2", np.rint(np.log2(np.clip(values, MIN_GAIN, 2.0**MAX_LOG2_GAIN)) * 65536))
    step = math.log2(SCALE_MAX / SCALE_MIN) / (NUM_SCALES - 1)
    packer.put("levels.first", round((math.log2(SCALE_MIN) - step / 2) * 65536))
    packer.put("levels.step", round(step * 65536))
