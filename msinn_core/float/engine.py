"""The engine of float models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from msinn_core.engine import Compressed, Flat8, FlatSymbols, Tally, stride
from msinn_core.entropy import rans
from msinn_core.entropy.tables import Tables
from msinn_core.float.layers import pack
from msinn_core.float.model import Msinn
from msinn_core.float.rounding import rate_aware_round
from msinn_core.quantiser import widened_zone
from msinn_core.walk import NUM_STEPS, walk


def table_indexes(scales: Tensor, thresholds: Tensor) -> Tensor:
    """Nearest table per scale, uint8, contiguous: streams run in C order whatever the memory format of the convolutions."""
    return torch.bucketize(scales.contiguous(), thresholds, out_int32=True).to(torch.uint8)


def flat(values: Tensor) -> NDArray[Any]:
    """As a flat array on the CPU."""
    array: NDArray[Any] = values.cpu().numpy().reshape(-1)
    return array


def compute_on_one_thread() -> None:
    """For this process: a float model gives the same values for the same number of threads only, and archives are made with one."""
    torch.set_num_threads(1)


@dataclass
class _Collector:
    """Encoder side of the walk: rounds, remembers."""

    y: list[Tensor]
    thresholds: Tensor
    zone: Tensor
    symbols_out: list[FlatSymbols] = field(default_factory=list)
    indexes_out: list[Flat8] = field(default_factory=list)

    def symbols(self, k: int, parity: int, means: Tensor, scales: Tensor, gain: Tensor) -> Tensor:
        indexes = table_indexes(scales, self.thresholds)
        rounded = rate_aware_round(((pack(self.y[k], parity) - means) * gain).contiguous(), indexes.to(torch.int64), self.zone)
        self.symbols_out.append(flat(rounded.to(torch.int32)))
        self.indexes_out.append(flat(indexes))
        return rounded


@dataclass
class _Reader:
    """Decoder side of the walk: reads."""

    streams: Sequence[bytes]
    tables: Tables
    thresholds: Tensor
    symbols_out: list[FlatSymbols] = field(default_factory=list)

    def symbols(self, k: int, parity: int, means: Tensor, scales: Tensor, gain: Tensor) -> Tensor:
        decoded = rans.decode(self.streams[len(self.symbols_out)], flat(table_indexes(scales, self.thresholds)), self.tables)
        self.symbols_out.append(decoded)
        return torch.from_numpy(decoded).to(means.device, torch.float32).reshape(means.shape)


@dataclass
class _Prober:
    """Walks like the encoder and remembers residuals and scales, from which every other q follows."""

    y: list[Tensor]
    scale_gains: list[Tensor]
    thresholds: Tensor
    zone: Tensor
    residuals: list[tuple[int, Tensor, Tensor]] = field(default_factory=list)

    def symbols(self, k: int, parity: int, means: Tensor, scales: Tensor, gain: Tensor) -> Tensor:
        residual = pack(self.y[k], parity) - means
        self.residuals.append((k, residual, scales / self.scale_gains[k]))
        return rate_aware_round((residual * gain).contiguous(), table_indexes(scales, self.thresholds).to(torch.int64), self.zone)


class FloatEngine:
    """The network in IEEE float32. Decodes what was encoded on a like machine: for evaluation and parity, not for archives.

    Args:
        network: Folded.
        tables: CDF tables.
        device: Where it runs.
    """

    def __init__(self, network: Msinn, tables: Tables, device: str) -> None:
        self._device = torch.device(device)
        self.device = self._device.type
        self.backend = None
        self.name = f"torch {torch.__version__} ({torch.backends.cpu.get_cpu_capability() if device == 'cpu' else device})"
        self._net = network.to(self._device)
        self._tables = tables
        self._thresholds = torch.from_numpy(tables.thresholds).to(self._device)
        self._zone = torch.from_numpy(widened_zone(tables)).to(self._device)
        self._costs = tables.symbol_bits()

    @torch.inference_mode()
    def transform(self, pixels: NDArray[np.uint8]) -> list[Any]:
        # A view with channels last, the convolutions' fast layout.
        x = torch.from_numpy(pixels).to(self._device)[None].permute(0, 3, 1, 2).float() / 255
        return self._net.analysis(x)

    @torch.inference_mode()
    def compress(self, latents: list[Any], q: float, shape: tuple[int, int], *, last: bool = False) -> Compressed:
        collector = _Collector(latents, self._thresholds, self._zone)
        walk(self._net, collector, self._net.gains(q), (1, *shape))
        return Compressed(collector.symbols_out, collector.indexes_out)

    @torch.inference_mode()
    def decode(self, streams: Sequence[bytes], q: float, shape: tuple[int, int]) -> tuple[NDArray[np.uint8], list[FlatSymbols]]:
        reader = _Reader(streams, self._tables, self._thresholds)
        x_hat: Tensor = walk(self._net, reader, self._net.gains(q), (1, *shape)).picture()
        pixels = (x_hat[0].clamp(0, 1) * 255).round().to(torch.uint8)
        return pixels.permute(1, 2, 0).contiguous().cpu().numpy(), reader.symbols_out

    @torch.inference_mode()
    def tally(self, latents: list[Any], rates: list[float], shape: tuple[int, int], *, last: bool = False) -> Tally:
        gains = self._net.gains(rates[-1])
        prober = _Prober(latents, [gains.level(k)[2] for k in range(NUM_STEPS)], self._thresholds, self._zone)
        walk(self._net, prober, gains, (1, *shape))
        exact, sampled = np.zeros((NUM_STEPS, 2)), np.zeros((len(rates), NUM_STEPS, 2))
        at_rates = [self._net.gains(q) for q in rates]
        for k, residual, scale in prober.residuals:
            step = stride(k, *residual.shape[2:])
            some = residual[..., ::step, ::step].contiguous(), scale[..., ::step, ::step].contiguous()
            exact[k] += self._quantise(residual, scale, *gains.level(k))
            for i, at in enumerate(at_rates):
                sampled[i, k] += self._quantise(*some, *at.level(k))
        return Tally.of_samples(exact, sampled)

    def _quantise(self, residual: Tensor, scale: Tensor, gain: Tensor, inv_gain: Tensor, scale_gain: Tensor) -> tuple[float, float]:
        """Table bits and summed squared error of residuals at other gains."""
        bits, base, size = self._costs
        indexes = table_indexes(scale * scale_gain, self._thresholds)
        symbols = rate_aware_round((residual * gain).contiguous(), indexes.to(torch.int64), self._zone)
        error = float((residual - symbols * inv_gain).square().sum())
        table = flat(indexes)
        position = flat(symbols.to(torch.int64)) - self._tables.offsets[table]
        size_of = size[table]
        position = np.where((position >= 0) & (position < size_of), position, size_of)
        return float(bits[base[table] + position].sum(dtype=np.float64)), error
