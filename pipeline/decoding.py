"""Image files are decoded in a process of their own, so that none takes more time or memory than its size explains, and none a worker with it.

The process is no sandbox: it has the rights of the worker. It is a bound, and a wall against decoders that crash.
"""

from __future__ import annotations

import contextlib
import math
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from pipeline import images
from pipeline.images import ImageInfo, LoadedImage

try:
    import resource
except ImportError:  # not a Unix: images are decoded in the worker itself
    resource = None  # type: ignore[assignment]

SECONDS = 10.0
SECONDS_PER_MPX = 2.0
SECONDS_PER_MB = 0.2
"""Of processor time: what a decode may take, by its header's pixels and the file's bytes. Decoders of every format take a twentieth of it."""

_MEMORY_BYTES = 1 << 30
_MEMORY_PER_PIXEL = 48
_MEMORY_PER_THREAD = 16 << 20
_STARTS = 2
_START_S = 120.0
_READY = "ready"


class _NotStartedError(Exception):
    """The other process does not run at all."""


@dataclass(frozen=True)
class Allowance:
    """What decoding takes at most.

    Attributes:
        seconds: For any file.
        seconds_per_mpx: More for each million pixels.
        seconds_per_mb: More for each million bytes.
    """

    seconds: float = SECONDS
    seconds_per_mpx: float = SECONDS_PER_MPX
    seconds_per_mb: float = SECONDS_PER_MB

    def of(self, size: int, info: ImageInfo | None) -> float:
        """Seconds of processor time for a file of `size` bytes, of which the header is known or not."""
        pixels = (info.pixels or 0) if info is not None else 0
        return self.seconds + self.seconds_per_mpx * pixels / 1e6 + self.seconds_per_mb * size / 1e6


class Loader:
    """`images.load` in another process. Safe to use from several threads, one file at a time.

    Args:
        max_pixels: Images above are not decoded.
        allowance: What decoding takes at most.
    """

    def __init__(self, max_pixels: int, allowance: Allowance | None = None) -> None:
        self._max_pixels = max_pixels
        self._allowance = allowance or Allowance()
        self._lock = threading.Lock()
        self._unable = False
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None

    def load(self, data: bytes, *, name: str = "") -> LoadedImage:
        """Decode one file; see `images.load`. What takes too much is kept with a reason, and what ends the process twice."""
        with self._lock:
            for attempt in range(_STARTS) if resource is not None and not self._unable else ():
                try:
                    return self._ask(data, name)
                except _NotStartedError:
                    # Whatever keeps this machine from starting processes says nothing of the file.
                    self._unable = True
                    self.close()
                    break
                except (EOFError, OSError, pickle.UnpicklingError):
                    code = self.close()
                if code == -signal.SIGXCPU:
                    message = "decoding it takes more processor time than its size explains"
                    return LoadedImage(info=ImageInfo(), reason=images.DECODE_LIMIT, message=message)
                if attempt == _STARTS - 1:
                    what = f"signal {-code}" if code < 0 else f"code {code}"
                    return LoadedImage(info=ImageInfo(), reason=images.CRASHED, message=f"decoding it ends the decoder ({what})")
        return images.load(data, max_pixels=self._max_pixels, name=name)

    def close(self) -> int:
        """End the process; the next file starts another. Returns its exit code."""
        if self._connection is not None:
            self._connection.close()
        process, self._process, self._connection = self._process, None, None
        if process is None:
            return 0
        try:
            return process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def _ask(self, data: bytes, name: str) -> LoadedImage:
        connection = self._connection or self._start()
        connection.send((name, len(data)))
        connection.send_bytes(data)
        answer, sizes = connection.recv()
        buffers = []
        for size in sizes:
            # Into place: pixels are not copied twice.
            buffer = bytearray(size)
            if size:
                connection.recv_bytes_into(buffer)
            buffers.append(buffer)
        found: LoadedImage = pickle.loads(answer, buffers=buffers)
        return found

    def _start(self) -> Connection:
        ours, theirs = socket.socketpair()
        with theirs:
            root = str(Path(__file__).parents[1])
            run = f"import sys; sys.path.insert(0, {root!r}); from pipeline.decoding import serve; serve(*map(float, sys.argv[1:]))"
            limits = (theirs.fileno(), self._max_pixels, self._allowance.seconds, self._allowance.seconds_per_mpx, self._allowance.seconds_per_mb)
            # Arenas of threads that decoders start would count as memory.
            environment = {**os.environ, "MALLOC_ARENA_MAX": "2", "OPENBLAS_NUM_THREADS": "1"}
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", run, *map(str, limits)],
                pass_fds=(theirs.fileno(),),
                env=environment,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        self._connection = Connection(ours.detach())
        try:
            started = self._connection.poll(_START_S) and self._connection.recv() == _READY
        except (EOFError, OSError):
            started = False
        if not started:
            raise _NotStartedError
        return self._connection

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()


def serve(descriptor: float, pixels: float, *allowed: float) -> None:
    """Decode what comes over a socket until it ends: the other process.

    Args:
        descriptor: Of the socket.
        pixels: Images above are not decoded.
        allowed: The numbers of the `Allowance`.
    """
    max_pixels, allowance = int(pixels), Allowance(*allowed)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the driver
    _limit_memory(max_pixels)
    with Connection(int(descriptor)) as connection:
        connection.send(_READY)
        while True:
            try:
                name, size = connection.recv()
                # Nothing is sent for an empty file.
                data = connection.recv_bytes()
            except (EOFError, OSError):
                return
            _limit_time(allowance.of(size, None))
            loaded = images.load(data, max_pixels=max_pixels, name=name, on_header=lambda info, size=size: _limit_time(allowance.of(size, info)))  # type: ignore[misc]
            buffers: list[pickle.PickleBuffer] = []
            answer = pickle.dumps(loaded, protocol=5, buffer_callback=buffers.append)
            raw = [buffer.raw() for buffer in buffers]
            connection.send((answer, [view.nbytes for view in raw]))
            for view in raw:
                if view.nbytes:
                    connection.send_bytes(view)


def _limit_memory(max_pixels: int) -> None:
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(ValueError, OSError):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        present = pages * resource.getpagesize()
        most = present + _MEMORY_BYTES + _MEMORY_PER_PIXEL * max_pixels + _MEMORY_PER_THREAD * (os.cpu_count() or 1)
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))


def _limit_time(seconds: float) -> None:
    """From now on; the kernel ends this process when they are used up."""
    with contextlib.suppress(ValueError, OSError):
        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(time.process_time() + seconds), hard))
