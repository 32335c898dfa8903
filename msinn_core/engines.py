"""What turns pixels into symbols and symbols into pixels: the float network, or the integer one. One interface, used by `codec.Codec`."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from msinn_core.entropy import rans
from msinn_core.entropy.tables import Tables
from msinn_core.errors import CheckpointError
from msinn_core.integer.arrays import I16, I32
from msinn_core.integer.network import Backend, IntegerNetwork
from msinn_core.integer.ops import Compiled, best_backend
from msinn_core.model_file import LoadedModel
from msinn_core.quantiser import widened_zone
from msinn_core.walk import NUM_STEPS, walk

Flat32 = NDArray[np.int32]
Flat8 = NDArray[np.uint8]

GOLDEN_Q = 5.5
GOLDEN_SHAPE = (2, 4)


class Engine(Protocol):
    """A network with its tables. Pictures are uint8 `[H, W, 3]`, sides multiples of 32; latents are whatever `transform` makes."""

    name: str
    """What computes, for people: an instruction set, a library's version, a device."""

    device: str
    """`cpu`, `cuda`, ..."""

    def transform(self, pixels: NDArray[np.uint8]) -> list[Any]:
        """Latents of a picture, y5..y1."""

    def compress(self, latents: list[Any], q: float, shape: tuple[int, int]) -> tuple[list[Flat32], list[Flat8]]:
        """Symbols and table indexes of the ten streams; `shape` is `(h, w)` of y5."""

    def decode(self, streams: Sequence[bytes], q: float, shape: tuple[int, int]) -> tuple[NDArray[np.uint8], list[Flat32]]:
        """The picture `[16h, 16w, 3]` and the symbols of the ten streams. Raises `BitstreamError` for streams that do not fit."""

    def tally(self, latents: list[Any], rates: list[float], shape: tuple[int, int]) -> Tally:
        """What the rates would cost and lose, from one context pass at the last of them."""


@runtime_checkable
class BatchEngine(Engine, Protocol):
    """An engine that is quick with many pictures of one padded size at once: a GPU's.

    All raise `DeviceMemoryError` where the device has too little memory for so many.
    """

    threads: ThreadPoolExecutor
    """Of the host, for entropy coding."""

    def transform_many(self, pixels: NDArray[np.uint8]) -> list[Any]:
        """Latents y5..y1 of uint8 `[N, H, W, 3]`."""

    def compress_many(self, latents: list[Any], rates: Sequence[float], shape: tuple[int, int]) -> list[tuple[list[Flat32], list[Flat8]]]:
        """Per picture the symbols and table indexes of the ten streams; `rates` has a q for each."""

    def decode_many(
        self, streams: Sequence[Sequence[bytes]], rates: Sequence[float], shape: tuple[int, int]
    ) -> tuple[NDArray[np.uint8], list[list[Flat32]]]:
        """Pictures uint8 `[N, 16h, 16w, 3]`, and per picture its ten arrays of symbols. Raises `BitstreamError` if any streams do not fit."""


@dataclass(frozen=True)
class Tally:
    """Sums over a picture at R rates.

    Attributes:
        bits: `[R]`, bits of the symbols by their tables.
        squares: `[R, 5]`, squared error of y5..y1.
    """

    bits: NDArray[np.float64]
    squares: NDArray[np.float64]

    @classmethod
    def of_samples(cls, exact: NDArray[np.float64], sampled: NDArray[np.float64]) -> Tally:
        """Sums over all positions at the last rate, `exact` `[5, 2]` (bits, squares), stretched to the others by `sampled` `[R, 5, 2]`."""
        whole = exact * sampled / np.maximum(sampled[-1], 1e-9)
        return cls(whole[..., 0].sum(axis=1), whole[..., 1])


def stride(k: int, h: int, w: int) -> int:
    """A sixteenth of the positions of the two finest latents says as much: they are nine tenths of all symbols."""
    return min(4 if k >= 3 else 2 if k == 2 else 1, max(1, min(h, w) // 16))


# Integer -------------------------------------------------------------------------------------------------------------------------------------------


@dataclass
class _IntegerCollector:
    y: list[I32]
    engine: IntegerEngine
    gain: list[NDArray[np.float32]]
    symbols_out: list[Flat32] = field(default_factory=list)
    indexes_out: list[Flat8] = field(default_factory=list)
    probes: list[tuple[int, I32, I16]] | None = None

    def symbols(self, k: int, parity: int, parameters: I16, indexes: Flat8) -> I32:
        net = self.engine.network
        y = net.backend.half(self.y[k], parity)
        symbols: I32 = net.backend.quantise(y, parameters, indexes, self.gain[k], self.engine.zone, net.model.mean_shifts[k])
        if self.probes is None:
            self.symbols_out.append(symbols.reshape(-1))
            self.indexes_out.append(indexes.reshape(-1))
        else:
            self.probes.append((k, y, parameters))
        return symbols


@dataclass
class _IntegerReader:
    streams: Sequence[bytes]
    tables: Tables
    symbols_out: list[Flat32] = field(default_factory=list)

    def symbols(self, k: int, parity: int, parameters: I16, indexes: Flat8) -> I32:
        decoded = rans.decode(self.streams[len(self.symbols_out)], indexes.reshape(-1), self.tables)
        self.symbols_out.append(decoded)
        return decoded.reshape(indexes.shape)


@dataclass
class _GoldenCoder:
    """Symbols of a fixed pattern; digests the table indexes, so that every integer of the decoder is covered."""

    backend: Backend
    digest: Any = field(default_factory=hashlib.sha256)

    def symbols(self, k: int, parity: int, parameters: Any, indexes: Any) -> Any:
        seen = self.backend.to_host(indexes)
        self.digest.update(seen.tobytes())
        self.digest.update(self.backend.to_host(parameters).tobytes())
        position = np.arange(seen.size, dtype=np.int64).reshape(seen.shape)
        symbols: I32 = ((position * 7919 + 31 * k + parity) % 13 - 6).astype(np.int32) // (1 + 2 * (position % 3 > 0)).astype(np.int32)
        return self.backend.to_device(symbols)


def golden_digest(network: IntegerNetwork) -> bytes:
    """SHA-256 of the indexes, parameters and pixels that a fixed pattern of symbols gives: the golden vector of a model file."""
    coder = _GoldenCoder(network.backend)
    gains = network.gains(GOLDEN_Q if network.config.q_max >= GOLDEN_Q else network.config.q_max / 2)
    pixels = walk(network, coder, gains, (*network.backend.lead, *GOLDEN_SHAPE))
    coder.digest.update(network.backend.to_host(pixels).tobytes())
    result: bytes = coder.digest.digest()
    return result


class IntegerEngine:
    """The integer network: the same symbols decode to the same bytes on every machine, thread count and backend.

    Args:
        network: With its backend.
        tables: CDF tables.
    """

    def __init__(self, network: IntegerNetwork, tables: Tables) -> None:
        self.network = network
        self.name = network.backend.name
        self.device = "cpu"
        self.tables = tables
        self.zone = np.zeros((256, 16), np.float32)
        self.zone[: len(tables.offsets)] = widened_zone(tables)
        bits, base, size = tables.symbol_bits()
        self._costs = bits, base.astype(np.int32), size.astype(np.int32), tables.offsets

    def transform(self, pixels: NDArray[np.uint8]) -> list[Any]:
        return self.network.analysis(pixels)

    def _walk(self, latents: list[Any], q: float, shape: tuple[int, int], probes: list[tuple[int, I32, I16]] | None) -> _IntegerCollector:
        gains = self.network.gains(q)
        collector = _IntegerCollector(latents, self, [gains.level(k)[2] for k in range(NUM_STEPS)], probes=probes)
        walk(self.network, collector, gains, (*self.network.backend.lead, *shape), finest=False)
        return collector

    def compress(self, latents: list[Any], q: float, shape: tuple[int, int]) -> tuple[list[Flat32], list[Flat8]]:
        collector = self._walk(latents, q, shape, None)
        return collector.symbols_out, collector.indexes_out

    def decode(self, streams: Sequence[bytes], q: float, shape: tuple[int, int]) -> tuple[NDArray[np.uint8], list[Flat32]]:
        reader = _IntegerReader(streams, self.tables)
        pixels = walk(self.network, reader, self.network.gains(q), shape)
        return pixels, reader.symbols_out

    def tally(self, latents: list[Any], rates: list[float], shape: tuple[int, int]) -> Tally:
        net = self.network
        probes = self._walk(latents, rates[-1], shape, []).probes or []
        at_rates = [net.gains(q) for q in rates]
        exact, sampled = np.zeros((NUM_STEPS, 2)), np.zeros((len(rates), NUM_STEPS, 2))
        for k, y, parameters in probes:
            levels = [at.level(k) for at in at_rates]
            log_gain = np.stack([scale_log2 for _, scale_log2, _ in levels]) - np.int32(net.model.scale_exponents[k] << 16)
            gain = np.stack([gain for _, _, gain in levels])
            inv_gain = np.stack([(inv / 2.0**24 * 2**16).astype(np.float32) for inv, _, _ in levels])

            def sums(
                rates: slice,
                step: int,
                k: int = k,
                y: I32 = y,
                parameters: I16 = parameters,
                log_gain: I32 = log_gain,
                gain: NDArray[np.float32] = gain,
                inv_gain: NDArray[np.float32] = inv_gain,
            ) -> NDArray[np.float64]:
                at = log_gain[rates], gain[rates], inv_gain[rates]
                position = net.model.mean_shifts[k], net.model.tables["log2"], net.model.first, net.model.step
                return net.backend.tally(y, parameters, *position, *at, self.zone, self._costs, step)

            exact[k] += sums(slice(-1, None), 1)[0]
            sampled[:, k] += sums(slice(None), stride(k, *y.shape[-3:-1]))
        exact[:, 1] /= 2.0**32
        return Tally.of_samples(exact, sampled)


def engine_for(model: LoadedModel, *, device: str = "cpu", threads: int = 1, backend: Backend | None = None) -> Engine:
    """The engine of a model.

    An integer backend must reproduce the model file's golden vector before it may decode anything. What fails gives way, with one warning, to the
    next that does not: a GPU to the compiled kernel, the compiled kernel to the portable form.

    Args:
        model: From `model_file.load_model`.
        device: `cpu`, or a GPU.
        threads: CPU threads: of the compiled backend, or of the entropy coder beside a GPU.
        backend: A backend of the caller's choice instead, for tests and benchmarks.

    Raises:
        CheckpointError: No backend of this machine, or not the one that was asked for, gives the golden vector.
    """
    if model.network is not None:
        from msinn_core.float.engine import FloatEngine

        return FloatEngine(model.network, model.tables, device)
    if backend is None and device.split(":")[0] != "cpu":
        if (engine := _on_gpu(model, device, threads)) is not None:
            return engine
        return engine_for(model, threads=threads)
    chosen = backend or best_backend(threads)
    network = _checked(model, chosen)
    if network is not None:
        if network.backend.lead:
            from msinn_core.integer.gpu.engine import DeviceEngine

            return DeviceEngine(network, model.tables, threads)
        return IntegerEngine(network, model.tables)
    if backend is not None or not isinstance(chosen, Compiled):
        raise CheckpointError(
            f"model {model.name} does not give its golden vector here ({chosen.name}), so nothing can be decoded without risk: "
            "the model file was changed, or this machine computes wrongly"
        )
    warnings.warn("the compiled integer kernel fails its self-test on this machine: using the portable form, which is slower", stacklevel=2)
    from msinn_core.integer.portable import Portable

    return engine_for(model, backend=Portable())


def _checked(model: LoadedModel, backend: Backend) -> IntegerNetwork | None:
    """The network, or None where it does not give the golden vector."""
    try:
        network = IntegerNetwork(model.config, model.integer, backend)
        return network if golden_digest(network) == model.golden else None
    except (ValueError, IndexError, OverflowError, RuntimeError) as error:
        raise CheckpointError(f"the parts of integer model {model.name} contradict each other: {error}") from error


def _on_gpu(model: LoadedModel, device: str, threads: int) -> Engine | None:
    """The engine of a GPU, by Triton or else in float64; None, with a warning, where neither can be trusted or run."""
    import torch

    from msinn_core.integer.gpu.backend import OnDevice
    from msinn_core.integer.gpu.engine import DeviceEngine
    from msinn_core.integer.gpu.layers import triton_layers
    from msinn_core.integer.portable import Float64Layers

    where = torch.device(device)
    reasons = []
    for name, make in (("Triton", lambda: triton_layers(where)), ("float64", Float64Layers)):
        try:
            layers = make()
            network = None if layers is None else _checked(model, OnDevice(where, layers))
        except Exception as error:  # a driver, a compiler, a lack of memory: all of them mean the next
            reasons.append(f"{name}: {' '.join(str(error).split())[:200]}")
            continue
        if network is not None:
            if any("not installed" not in reason for reason in reasons):
                warnings.warn(f"{device} computes in {name} ({'; '.join(reasons)})", stacklevel=3)
            return DeviceEngine(network, model.tables, threads)
        reasons.append(f"{name}: " + ("not installed" if layers is None else "its results differ from the model's golden vector"))
    warnings.warn(f"{device} is not used, the CPU is ({'; '.join(reasons)})", stacklevel=3)
    return None
