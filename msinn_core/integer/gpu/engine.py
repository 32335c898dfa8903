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

from msinn_core.engines import Compressed, Flat32, IntegerEngine, Tally
from msinn_core.entropy import rans
from msinn_core.entropy.tables import Tables
from msinn_core.errors import DeviceMemoryError
from msinn_core.integer.gpu.backend import OnDevice
from msinn_core.integer.network import Backend, IntegerNetwork
from msinn_core.integer.packed import IntegerGains
from msinn_core.walk import NUM_STEPS, walk


def _to_host(values: Tensor) -> Tensor:
    """A copy in pinned memory, on its way: wait for the stream before it is read."""
    if values.device.type != "cuda":
        return values
    return torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)


@dataclass
class _Collector:
    """Encoder side of the walk."""

    y: list[Tensor]
    network: IntegerNetwork
    gain: list[Any]
    zone: NDArray[np.float32]
    halves: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def symbols(self, k: int, parity: int, parameters: Tensor, indexes: Tensor) -> Tensor:
        backend = self.network.backend
        symbols: Tensor = backend.quantise(
            backend.half(self.y[k], parity), parameters, indexes, self.gain[k], self.zone, self.network.model.mean_shifts[k]
        )
        self.halves.append((_to_host(symbols), _to_host(indexes)))
        return symbols


@dataclass
class _Reader:
    """Decoder side of the walk: `streams` `[N][10]`."""

    streams: Sequence[Sequence[bytes]]
    tables: Tables
    threads: ThreadPoolExecutor
    wait: Any
    symbols_out: list[list[Flat32]]

    def symbols(self, k: int, parity: int, parameters: Tensor, indexes: Tensor) -> Tensor:
        on_host = _to_host(indexes)
        self.wait()
        number = len(self.symbols_out[0])
        symbols = torch.empty(indexes.shape, dtype=torch.int32, pin_memory=indexes.device.type == "cuda")
        # Decoded where the copy to the device begins: no other pass over the symbols.
        places = [place.reshape(-1) for place in symbols.numpy()]
        jobs = [
            self.threads.submit(rans.decode, streams[number], flat.reshape(-1), self.tables, place)
            for streams, flat, place in zip(self.streams, on_host.numpy(), places, strict=True)
        ]
        for mine, job in zip(self.symbols_out, jobs, strict=True):
            mine.append(job.result())
        return symbols.to(indexes.device, non_blocking=True)


class DeviceEngine:
    """The integer network on a GPU; see `engines.Engine`. The `_many` forms take N pictures of one padded size.

    Args:
        network: On an `OnDevice` backend.
        tables: CDF tables.
        threads: Of the host, for entropy coding.
    """

    def __init__(self, network: IntegerNetwork, tables: Tables, threads: int) -> None:
        assert isinstance(network.backend, OnDevice)
        self.network = network
        self.backend: Backend = network.backend
        self.name = network.backend.name
        self.device = network.backend.device.type
        self.tables = tables
        self._device = network.backend.device
        self._local = threading.local()
        self._common = IntegerEngine(network, tables)
        self.threads = ThreadPoolExecutor(max(1, threads))
        """Of the host."""

    def _gains(self, rates: Sequence[float]) -> IntegerGains:
        """Of a batch whose pictures each have a rate of their own: `[N, C]` on the device, a row per picture."""
        gains = [self.network.gains(q) for q in rates]
        placed: list[Any] = [
            torch.from_numpy(np.stack([getattr(at, name) for at in gains])).to(self._device) for name in ("inv_gain", "scale_log2", "gain")
        ]
        return IntegerGains(*placed)

    @contextmanager
    def _stream(self) -> Iterator[Any]:
        """A stream of the caller's own, and how to wait for it."""
        try:
            if self._device.type == "cuda":
                with self._own_stream() as wait:
                    yield wait
            else:
                yield lambda: None
        except torch.OutOfMemoryError as error:
            raise DeviceMemoryError(f"{self._device} has too little memory for this batch") from error

    @contextmanager
    def _own_stream(self) -> Iterator[Any]:
        # One for each calling thread, kept: torch's allocator has a pool of memory for every stream.
        stream = getattr(self._local, "stream", None)
        if stream is None:
            stream = self._local.stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(stream):
            yield stream.synchronize
            stream.synchronize()

    @torch.inference_mode()
    def transform_many(self, pixels: NDArray[np.uint8]) -> list[Tensor]:
        """Latents y5..y1 of uint8 `[N, H, W, 3]`."""
        with self._stream():
            return self.network.analysis(torch.from_numpy(pixels).to(self._device))

    @torch.inference_mode()
    def compress_many(self, latents: list[Tensor], rates: Sequence[float], shape: tuple[int, int]) -> list[Compressed]:
        """Per picture the symbols and table indexes of the ten streams; `rates` has a q for each."""
        with self._stream():
            gains = self._gains(rates)
            collector = _Collector(latents, self.network, [gains.level(k)[2] for k in range(NUM_STEPS)], self._common.zone)
            walk(self.network, collector, gains, (len(rates), *shape))
        return [
            Compressed(
                [symbols[i].reshape(-1).numpy() for symbols, _ in collector.halves],
                [indexes[i].reshape(-1).numpy() for _, indexes in collector.halves],
            )
            for i in range(len(rates))
        ]

    @torch.inference_mode()
    def decode_many(
        self, streams: Sequence[Sequence[bytes]], rates: Sequence[float], shape: tuple[int, int]
    ) -> tuple[NDArray[np.uint8], list[list[Flat32]]]:
        """Pictures uint8 `[N, 16h, 16w, 3]`, and per picture its ten arrays of symbols.

        Raises:
            BitstreamError: Of any of the streams.
        """
        with self._stream() as wait:
            gains = self._gains(rates)
            reader = _Reader(streams, self.tables, self.threads, wait, [[] for _ in streams])
            pictures = _to_host(walk(self.network, reader, gains, (len(rates), *shape)).picture())
        return pictures.numpy(), reader.symbols_out

    # One picture: `engines.Engine` -----------------------------------------------------------------------------------------------------------------

    def transform(self, pixels: NDArray[np.uint8]) -> list[Any]:
        return self.transform_many(pixels[None])

    def compress(self, latents: list[Any], q: float, shape: tuple[int, int]) -> Compressed:
        return self.compress_many(latents, [q], shape)[0]

    def decode(self, streams: Sequence[bytes], q: float, shape: tuple[int, int]) -> tuple[NDArray[np.uint8], list[Flat32]]:
        pictures, symbols = self.decode_many([streams], [q], shape)
        return pictures[0], symbols[0]

    def tally(self, latents: list[Any], rates: list[float], shape: tuple[int, int]) -> Tally:
        with self._stream():
            return self._common.tally(latents, rates, shape)
