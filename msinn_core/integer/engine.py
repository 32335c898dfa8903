"""The integer network as an engine: the coders that ride on its walk, and the golden vector."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msinn_core.engine import Compressed, Flat8, FlatSymbols, Tally, narrowed, stride
from msinn_core.entropy.first_stream import StreamCoder
from msinn_core.heads import Head, known
from msinn_core.integer.arrays import I16, I32
from msinn_core.integer.backend import Backend
from msinn_core.integer.network import IntegerNetwork
from msinn_core.quantiser import widened_zone
from msinn_core.walk import NUM_STEPS, Walked, anchor_parity, begun, walk

GOLDEN_Q = 5.5
GOLDEN_SHAPE = (2, 4)


@dataclass
class _Collector:
    """Encoder side of the walk: quantises, and keeps what it finds."""

    y: list[I32]
    engine: IntegerEngine
    gain: list[NDArray[np.float32]]
    last: bool = False
    symbols_out: list[FlatSymbols] = field(default_factory=list)
    indexes_out: list[Flat8] = field(default_factory=list)

    def symbols(self, k: int, parity: int, parameters: I16, indexes: Flat8) -> I32:
        symbols = self.quantised(k, self.half(k, parity), parameters, indexes)
        self.symbols_out.append(narrowed(symbols))
        self.indexes_out.append(indexes.reshape(-1))
        return symbols

    def half(self, k: int, parity: int) -> I32:
        """Latents of step k; after the second half of it nobody needs them if this is the last time."""
        y: I32 = self.engine.backend.half(self.y[k], parity)
        if self.last and parity != anchor_parity(k):
            self.y[k] = np.zeros((0, 0, 0), np.int32)
        return y

    def quantised(self, k: int, y: I32, parameters: I16, indexes: Flat8) -> I32:
        """Symbols of latents of step k."""
        net = self.engine.network
        symbols: I32 = net.backend.quantise(y, parameters, indexes, self.gain[k], self.engine.zone, net.model.mean_shifts[k])
        return symbols


@dataclass
class _Prober(_Collector):
    """Keeps the sums of `IntegerEngine.sums_of` alone."""

    rates: Sequence[float] = ()
    found: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = field(default_factory=list)

    def symbols(self, k: int, parity: int, parameters: I16, indexes: Flat8) -> I32:
        y = self.half(k, parity)
        symbols, share = self.quantised(k, y, parameters, indexes), np.array(1.0)
        if not self.found:
            share = np.array(self.engine.coder.first_share(symbols.reshape(-1), indexes.reshape(-1), indexes.shape[-2]))
        self.found.append(self.engine.sums_of_half(k, y, parameters, self.rates, share))
        return symbols


@dataclass
class _Reader:
    """Decoder side of the walk."""

    streams: Sequence[bytes]
    coder: StreamCoder
    symbols_out: list[FlatSymbols] = field(default_factory=list)

    def symbols(self, k: int, parity: int, parameters: I16, indexes: Flat8) -> I32:
        number = len(self.symbols_out)
        decoded = self.coder.decode(number, self.streams[number], indexes.reshape(-1), indexes.shape[-2])
        self.symbols_out.append(narrowed(decoded))
        return decoded.reshape(indexes.shape)


@dataclass
class _GoldenCoder:
    """Symbols of a fixed pattern; digests the table indexes, so that every integer of the decoder is covered."""

    backend: Backend
    digest: Any = field(default_factory=hashlib.sha256)

    def symbols(self, k: int, parity: int, parameters: Any, indexes: Any) -> Any:
        seen = self.backend.to_host(indexes)
        self.digest.update(seen.tobytes())
        self.digest.update(self.backend.to_host(parameters).astype("<i2", copy=False).tobytes())
        position = np.arange(seen.size, dtype=np.int64).reshape(seen.shape)
        symbols: I32 = ((position * 7919 + 31 * k + parity) % 13 - 6).astype(np.int32) // (1 + 2 * (position % 3 > 0)).astype(np.int32)
        return self.backend.to_device(symbols)


def golden_digest(network: IntegerNetwork) -> bytes:
    """SHA-256 of the indexes, parameters and pixels that a fixed pattern of symbols gives: the golden vector of a model file."""
    coder = _GoldenCoder(network.backend)
    gains = network.gains(GOLDEN_Q if network.config.q_max >= GOLDEN_Q else network.config.q_max / 2)
    pixels = walk(network, coder, gains, (*network.backend.lead, *GOLDEN_SHAPE)).picture()
    coder.digest.update(network.backend.to_host(pixels).tobytes())
    result: bytes = coder.digest.digest()
    return result


class IntegerEngine:
    """The integer network: the same symbols decode to the same bytes on every machine, thread count and backend.

    Args:
        network: With its backend.
        coder: Of the streams, with the model's tables.
    """

    def __init__(self, network: IntegerNetwork, coder: StreamCoder) -> None:
        tables = coder.tables
        self.network = network
        self.backend: Backend = network.backend
        self.name = network.backend.name
        self.device = "cpu"
        self.coder = coder
        self.zone = np.zeros((256, 16), np.float32)
        self.zone[: len(tables.offsets)] = widened_zone(tables)
        bits, base, size = tables.symbol_bits()
        self._costs = bits, base.astype(np.int32), size.astype(np.int32), tables.offsets

    def transform(self, pixels: NDArray[np.uint8]) -> list[Any]:
        return self.network.analysis(pixels)

    def _gains_per_level(self, q: float) -> tuple[Any, list[NDArray[np.float32]]]:
        gains = self.network.gains(q)
        return gains, [gains.level(k)[2] for k in range(NUM_STEPS)]

    def _walk(self, coder: Any, gains: Any, shape: tuple[int, int]) -> Walked[Any]:
        return walk(self.network, coder, gains, (*self.backend.lead, *shape))

    def compress(self, latents: list[Any], q: float, shape: tuple[int, int], *, last: bool = False) -> Compressed:
        gains, gain = self._gains_per_level(q)
        collector = _Collector(latents, self, gain, last)
        walked = self._walk(collector, gains, shape)
        return Compressed(collector.symbols_out, collector.indexes_out, walked)

    def decode(self, streams: Sequence[bytes], q: float, shape: tuple[int, int]) -> tuple[NDArray[np.uint8], list[FlatSymbols]]:
        reader = _Reader(streams, self.coder)
        pixels = self._walk(reader, self.network.gains(q), shape).picture()
        return pixels, reader.symbols_out

    def decode_reduced(self, streams: Sequence[bytes], q: float, shape: tuple[int, int], head: Head) -> NDArray[np.uint8]:
        support = self.support(streams[: head.num_streams], q, shape, head.num_steps)
        pixels: NDArray[np.uint8] = self.network.reduced(support, head)
        return pixels

    def support(self, streams: Sequence[bytes], q: float, shape: tuple[int, int], num_steps: int) -> Any:
        """The support after some steps; streams that are not given are taken as empty, with all symbols 0: latents at their predicted means."""
        reader = _Reader(known(streams), self.coder)
        return begun(self.network, reader, self.network.gains(q), (*self.backend.lead, *shape), num_steps)

    def tally(self, latents: list[Any], rates: list[float], shape: tuple[int, int], *, last: bool = False) -> Tally:
        gains, gain = self._gains_per_level(rates[-1])
        prober = _Prober(latents, self, gain, last, rates=rates)
        self._walk(prober, gains, shape)
        return self.tallied(prober.found)

    def tallied(self, found: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]]) -> Tally:
        """Of what `sums_of_half` found of each of the ten halves, in the order of the walk."""
        exact, sampled = self.sums_of(found)
        return Tally.of_samples(exact, sampled)

    @staticmethod
    def sums_of(found: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """What `Tally.of_samples` takes, `[5, 2]` and `[R, 5, 2]`, before them the N pictures of a batch: sums of the halves of each step."""
        steps = range(0, 2 * NUM_STEPS, 2)
        whole = np.stack([found[i][0] + found[i + 1][0] for i in steps], axis=-2)
        whole[..., 1] /= 2.0**32
        return whole, np.stack([found[i][1] + found[i + 1][1] for i in steps], axis=-2)

    def sums_of_half(
        self, k: int, y: Any, parameters: Any, rates: Sequence[float], share: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Bits and squared errors of a half at the last of R rates, `[2]`, and on some of its positions at all of them, `[R, 2]`; before them the N
        pictures of a batch.

        Args:
            k: Its step.
            y: Its latents.
            parameters: Of a walk at the last rate.
            rates: R of them.
            share: Of the bits by the tables that are taken at all rates; see `StreamCoder.first_share`. Of a batch `[N]`.
        """
        net = self.network
        levels = [net.gains(q).level(k) for q in rates]
        log_gain = np.stack([scale_log2 for _, scale_log2, _ in levels]) - np.int32(net.model.scale_exponents[k] << 16)
        gain = np.stack([gain for _, _, gain in levels])
        inv_gain = np.stack([(inv / 2.0**24 * 2**16).astype(np.float32) for inv, _, _ in levels])

        def sums(rates: slice, step: int) -> NDArray[np.float64]:
            at = log_gain[rates], gain[rates], inv_gain[rates]
            position = net.model.mean_shifts[k], net.model.tables["log2"], net.model.first, net.model.step
            return net.backend.tally(y, parameters, *position, *at, self.zone, self._costs, step)

        one, all_rates = sums(slice(-1, None), 1)[..., 0, :], sums(slice(None), stride(k, *y.shape[-3:-1]))
        one[..., 0] *= share
        all_rates[..., 0] *= share[..., None]
        return one, all_rates
