"""The engine of a GPU: batches of pictures of one padded size, their symbols coded by threads of the host meanwhile.

```
encode   pixels -> device -> symbols and table indexes of all ten halves -> pinned memory, one wait -> entropy coder, threads
decode   ten times: table indexes -> host, entropy decoder in threads -> symbols -> device;  then the picture -> host
```
Batches may run side by side, each from a thread of its own: while one waits for the host, the device computes another (each has its own stream).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from msinn_core.engine import Compressed, FlatSymbols, Tally
from msinn_core.entropy.first_stream import StreamCoder
from msinn_core.errors import CodecError, DeviceLostError, DeviceMemoryError
from msinn_core.flight import IN_FLIGHT
from msinn_core.heads import Head
from msinn_core.integer.backend import Backend
from msinn_core.integer.engine import IntegerEngine
from msinn_core.integer.gpu.backend import OnDevice
from msinn_core.integer.network import IntegerNetwork
from msinn_core.integer.packed import IntegerGains
from msinn_core.walk import NUM_STEPS, Walked, begun, walk

BYTES_PER_PIXEL = 160
"""Of the device, for each pixel of a batch under way: 125 were measured, three batches of 32 side by side."""

LEAST_THREADS = 4
"""Of the host: with fewer the device waits for the entropy coder, 25 Mpx/s a core. Those that have nothing to do cost nothing."""

MEMORY_SHARE = 0.25
"""Of what is free when the engine begins: others may share the device."""


def _to_host(values: Tensor) -> Tensor:
    """A copy in pinned memory, on its way: wait for the stream before it is read."""
    if values.device.type != "cuda":
        return values
    return torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)


def _joined(latents: Sequence[list[Tensor]]) -> list[Tensor]:
    """Latents y5..y1 of a batch, of those of its pictures."""
    return [torch.cat(level) for level in zip(*latents, strict=True)] if len(latents) > 1 else list(latents[0])


@dataclass
class _Collector:
    """Encoder side of the walk; with `probes` it keeps what is coded and by which parameters, and not the symbols."""

    y: list[Tensor]
    network: IntegerNetwork
    gain: list[Any]
    zone: NDArray[np.float32]
    halves: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    probes: list[tuple[int, Tensor, Tensor]] | None = None
    first: tuple[Tensor, Tensor] | None = None

    def symbols(self, k: int, parity: int, parameters: Tensor, indexes: Tensor) -> Tensor:
        backend = self.network.backend
        y = backend.half(self.y[k], parity)
        symbols: Tensor = backend.quantise(y, parameters, indexes, self.gain[k], self.zone, self.network.model.mean_shifts[k])
        if self.probes is None:
            self.halves.append((_to_host(symbols), _to_host(indexes)))
        else:
            if not self.probes:
                self.first = symbols, indexes
            self.probes.append((k, y, parameters))
        return symbols


@dataclass
class _Reader:
    """Decoder side of the walk: `streams` `[N][10]`, or fewer, the same of each: symbols of those that follow are 0."""

    streams: Sequence[Sequence[bytes]]
    coder: StreamCoder
    threads: ThreadPoolExecutor
    stream: Any
    symbols_out: list[list[FlatSymbols]]

    def symbols(self, k: int, parity: int, parameters: Tensor, indexes: Tensor) -> Tensor:
        number = len(self.symbols_out[0])
        if number == len(self.streams[0]):
            return torch.zeros_like(indexes, dtype=torch.int32)
        on_host = _to_host(indexes)
        if self.stream is not None:
            self.stream.synchronize()
        symbols = torch.empty(indexes.shape, dtype=torch.int32, pin_memory=indexes.device.type == "cuda")
        # Decoded where the copy to the device begins: no other pass over the symbols.
        places = [place.reshape(-1) for place in symbols.numpy()]
        jobs = [
            self.threads.submit(self.coder.decode, number, streams[number], flat.reshape(-1), indexes.shape[-2], place)
            for streams, flat, place in zip(self.streams, on_host.numpy(), places, strict=True)
        ]
        for mine, job in zip(self.symbols_out, jobs, strict=True):
            mine.append(job.result())
        return symbols.to(indexes.device, non_blocking=True)


class _Pictures:
    """The pictures of a batch's walk, computed together when the first is asked for; on the stream of the walk, whose memory they use."""

    def __init__(self, walked: Walked[Tensor], engine: DeviceEngine, stream: Any) -> None:
        self._walked: Walked[Tensor] | None = walked
        self._engine, self._stream = engine, stream
        self._lock = threading.Lock()
        self._pixels: NDArray[np.uint8] | None = None

    @torch.inference_mode()
    def pixels(self) -> NDArray[np.uint8]:
        """uint8 `[N, H, W, 3]`."""
        with self._lock:
            if self._pixels is None:
                if self._walked is None:
                    raise DeviceLostError("the pictures of this batch were asked for before, and could not be computed")
                walked, self._walked = self._walked, None  # what the device holds of it is let go of with the walk
                with self._engine.on_stream(self._stream):
                    pictures = _to_host(walked.picture())
                self._pixels = pictures.numpy()
            return self._pixels


@dataclass(frozen=True)
class _OneOf:
    """One picture of a batch; see `walk.HasPicture`."""

    pictures: _Pictures
    number: int

    def picture(self) -> NDArray[np.uint8]:
        one: NDArray[np.uint8] = self.pictures.pixels()[self.number]
        return one


class DeviceEngine:
    """The integer network on a GPU; see `engines.Engine`. The `_many` forms take N pictures of one padded size.

    Args:
        network: On an `OnDevice` backend.
        coder: Of the streams, with the model's tables.
        threads: Of the host, for entropy coding.
    """

    def __init__(self, network: IntegerNetwork, coder: StreamCoder, threads: int) -> None:
        assert isinstance(network.backend, OnDevice)
        self.network = network
        self.backend: Backend = network.backend
        self.name = network.backend.name
        self.device = network.backend.device.type
        self.coder = coder
        self._device = network.backend.device
        self._local = threading.local()
        self._common = IntegerEngine(network, coder)
        self.threads = ThreadPoolExecutor(max(LEAST_THREADS, threads))
        """Of the host."""
        self.flights = ThreadPoolExecutor(IN_FLIGHT)
        """They stay, and with them their streams: torch's allocator has a pool of memory for every stream."""
        free = torch.cuda.mem_get_info(self._device)[0] if self.device == "cuda" else 8 << 30
        self.most_pixels = int(MEMORY_SHARE * free / IN_FLIGHT / BYTES_PER_PIXEL)

    def _gains(self, rates: Sequence[float]) -> IntegerGains:
        """Of a batch whose pictures each have a rate of their own: `[N, C]` on the device, a row per picture."""
        gains = [self.network.gains(q) for q in rates]
        placed: list[Any] = [
            torch.from_numpy(np.stack([getattr(at, name) for at in gains])).to(self._device) for name in ("inv_gain", "scale_log2", "gain")
        ]
        return IntegerGains(*placed)

    @contextmanager
    def on_stream(self, stream: Any = None) -> Iterator[Any]:
        """Compute on a stream (the calling thread's own, for None), which is drained at the end. Gives it, or None where the device has none.

        Raises:
            DeviceMemoryError: Too little memory.
            DeviceLostError: Anything else that a device, its driver or its compiler raises.
        """
        try:
            if self._device.type == "cuda":
                stream = self._own_stream() if stream is None else stream
                with torch.cuda.stream(stream):
                    yield stream
                    stream.synchronize()
            else:
                yield None
        except CodecError:
            raise
        except torch.OutOfMemoryError as error:
            raise DeviceMemoryError(f"{self._device} has too little memory for this batch") from error
        except Exception as error:
            said = " ".join(str(error).split())[:200]
            raise DeviceLostError(f"{self._device} failed: {type(error).__name__}: {said}") from error

    def _own_stream(self) -> Any:
        stream = getattr(self._local, "stream", None)
        if stream is None:
            stream = self._local.stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        return stream

    @torch.inference_mode()
    def transform_many(self, pixels: NDArray[np.uint8]) -> list[list[Tensor]]:
        """Per picture of uint8 `[N, H, W, 3]` its latents y5..y1, `[1, H, W, C]`."""
        with self.on_stream():
            latents = self.network.analysis(torch.from_numpy(pixels).to(self._device))
        return [[y[i : i + 1] for y in latents] for i in range(len(pixels))]

    @torch.inference_mode()
    def compress_many(self, latents: Sequence[list[Tensor]], rates: Sequence[float], shape: tuple[int, int]) -> list[Compressed]:
        """Per picture the symbols and table indexes of the ten streams, and the batch's walk; `rates` has a q for each."""
        with self.on_stream() as stream:
            gains = self._gains(rates)
            y = _joined(latents)
            collector = _Collector(y, self.network, [gains.level(k)[2] for k in range(NUM_STEPS)], self._common.zone)
            pictures = _Pictures(walk(self.network, collector, gains, (len(rates), *shape)), self, stream)
        return [
            Compressed(
                [symbols[i].reshape(-1).numpy() for symbols, _ in collector.halves],
                [indexes[i].reshape(-1).numpy() for _, indexes in collector.halves],
                _OneOf(pictures, i),
            )
            for i in range(len(rates))
        ]

    @torch.inference_mode()
    def tally_many(self, latents: Sequence[list[Tensor]], rates: list[float], shape: tuple[int, int]) -> list[Tally]:
        """Per picture what the rates would cost and lose, from one context pass at the last of them."""
        with self.on_stream():
            gains = self._gains([rates[-1]] * len(latents))
            y = _joined(latents)
            collector = _Collector(y, self.network, [gains.level(k)[2] for k in range(NUM_STEPS)], self._common.zone, probes=[])
            walk(self.network, collector, gains, (len(latents), *shape))
            shares = [self._first_shares(collector), *[np.ones(len(latents))] * (2 * NUM_STEPS - 1)]
            halves = zip(collector.probes or [], shares, strict=True)
            exact, sampled = self._common.sums_of([self._common.sums_of_half(*probe, rates, share) for probe, share in halves])
        return [Tally.of_samples(exact[i], sampled[i]) for i in range(len(latents))]

    def _first_shares(self, collector: _Collector) -> NDArray[np.float64]:
        """`[N]`, see `StreamCoder.first_share`."""
        assert collector.first is not None
        symbols, indexes = (x.cpu().numpy() for x in collector.first)
        pairs = zip(symbols, indexes, strict=True)
        return np.array([self.coder.first_share(one.reshape(-1), tables.reshape(-1), tables.shape[-2]) for one, tables in pairs])

    @torch.inference_mode()
    def decode_many(
        self, streams: Sequence[Sequence[bytes]], rates: Sequence[float], shape: tuple[int, int]
    ) -> tuple[NDArray[np.uint8], list[list[FlatSymbols]]]:
        """Pictures uint8 `[N, 16h, 16w, 3]`, and per picture its ten arrays of symbols.

        Raises:
            BitstreamError: Of any of the streams.
        """
        with self.on_stream() as stream:
            gains = self._gains(rates)
            reader = _Reader(streams, self.coder, self.threads, stream, [[] for _ in streams])
            pictures = _to_host(walk(self.network, reader, gains, (len(rates), *shape)).picture())
        return pictures.numpy(), reader.symbols_out

    @torch.inference_mode()
    def decode_reduced_many(
        self, streams: Sequence[Sequence[bytes]], rates: Sequence[float], shape: tuple[int, int], head: Head
    ) -> NDArray[np.uint8]:
        """Pictures of a head's scale, uint8 `[N, 16h / scale, 16w / scale, 3]`.

        Raises:
            BitstreamError: Of any of the streams that the head reads.
        """
        with self.on_stream() as stream:
            reader = _Reader([one[: head.num_streams] for one in streams], self.coder, self.threads, stream, [[] for _ in streams])
            support = begun(self.network, reader, self._gains(rates), (len(rates), *shape), head.num_steps)
            pictures = _to_host(self.network.reduced(support, head))
        return pictures.numpy()

    # One picture: `engines.Engine` -----------------------------------------------------------------------------------------------------------------

    def transform(self, pixels: NDArray[np.uint8]) -> list[Any]:
        return self.transform_many(pixels[None])[0]

    def compress(self, latents: list[Any], q: float, shape: tuple[int, int], *, last: bool = False) -> Compressed:
        return self.compress_many([latents], [q], shape)[0]

    def decode(self, streams: Sequence[bytes], q: float, shape: tuple[int, int]) -> tuple[NDArray[np.uint8], list[FlatSymbols]]:
        pictures, symbols = self.decode_many([streams], [q], shape)
        return pictures[0], symbols[0]

    def decode_reduced(self, streams: Sequence[bytes], q: float, shape: tuple[int, int], head: Head) -> NDArray[np.uint8]:
        found: NDArray[np.uint8] = self.decode_reduced_many([streams], [q], shape, head)[0]
        return found

    def tally(self, latents: list[Any], rates: list[float], shape: tuple[int, int], *, last: bool = False) -> Tally:
        return self.tally_many([latents], rates, shape)[0]
