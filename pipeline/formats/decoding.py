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
import struct
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.formats import images
from pipeline.formats.images import ImageInfo, LoadedImage
from pipeline.formats.outcome import Reason

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
_READY = b"ready"


_MEMORY_PER_BYTE = 3
_UNSTARTED = 3


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
        self._unstarted = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None

    def load(self, data: bytes, *, name: str = "") -> LoadedImage:
        """Decode one file; see `images.load`. What takes too much is kept with a reason, and what ends the process twice."""
        with self._lock:
            for attempt in range(_STARTS) if resource is not None and self._unstarted < _UNSTARTED else ():
                try:
                    return self._ask(data, name)
                except _NotStartedError:
                    # Whatever keeps this machine from starting processes says nothing of the file. It may pass; if it does not, it is said once.
                    self.close()
                    self._unstarted += 1
                    if self._unstarted == _UNSTARTED:
                        warnings.warn("no process can be started to decode images in: they are decoded here, without bounds", stacklevel=2)
                    break
                except (EOFError, OSError):
                    code = self.close()
                except BaseException:
                    # Half an answer must not be taken for the next one's.
                    self.close()
                    raise
                if code == -signal.SIGXCPU:
                    message = "decoding it takes more processor time than its size explains"
                    return LoadedImage(info=ImageInfo(), reason=Reason.DECODE_LIMIT, message=message)
                if attempt == _STARTS - 1:
                    what = f"signal {-code}" if code < 0 else f"code {code}"
                    return LoadedImage(info=ImageInfo(), reason=Reason.CRASHED, message=f"decoding it ends the decoder ({what})")
        return images.load(data, max_pixels=self._max_pixels, name=name)

    def close(self) -> int:
        """End the process; the next file starts another. Returns its exit code."""
        if self._socket is not None:
            self._socket.close()
        process, self._process, self._socket = self._process, None, None
        if process is None:
            return 0
        try:
            return process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def _ask(self, data: bytes, name: str) -> LoadedImage:
        connection = self._socket or self._start()
        _send(connection, name.encode("utf-8", "surrogatepass"), data)
        # The lengths of what follows are numbers: nothing that a picture holds is ever taken for an instruction.
        answer, *buffers = _receive(connection)
        found: LoadedImage = pickle.loads(answer, buffers=buffers)
        return found

    def _start(self) -> socket.socket:
        try:
            ours, theirs = socket.socketpair()
        except OSError as error:
            raise _NotStartedError from error
        with theirs:
            root = str(Path(__file__).parents[2])
            run = f"import sys; sys.path.insert(0, {root!r}); from pipeline.formats.decoding import serve; serve(*map(float, sys.argv[1:]))"
            limits = (theirs.fileno(), self._max_pixels, self._allowance.seconds, self._allowance.seconds_per_mpx, self._allowance.seconds_per_mb)
            # Arenas of threads that decoders start would count as memory.
            environment = {**os.environ, "MALLOC_ARENA_MAX": "2", "OPENBLAS_NUM_THREADS": "1"}
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-c", run, *map(str, limits)],
                    pass_fds=(theirs.fileno(),),
                    env=environment,
                    cwd="/",
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
            except OSError as error:
                ours.close()
                raise _NotStartedError from error
        self._socket = ours
        try:
            ours.settimeout(_START_S)
            if _receive(ours) != [_READY]:
                raise EOFError
            ours.settimeout(None)
        except (EOFError, OSError) as error:
            raise _NotStartedError from error
        self._unstarted = 0
        return ours

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()


_SIZE = struct.Struct("<Q")
_MAX_PARTS = 1024


def _send(connection: socket.socket, *parts: bytes | memoryview) -> None:
    """Some byte strings: their number, their lengths, themselves."""
    lengths = [len(part) if isinstance(part, bytes) else part.nbytes for part in parts]
    connection.sendall(b"".join(map(_SIZE.pack, (len(parts), *lengths))))
    for part in parts:
        connection.sendall(part)


def _receive(connection: socket.socket, expect: Callable[[list[int]], None] | None = None) -> list[bytearray]:
    """What `_send` sent; `expect` is told the lengths first. Raises `EOFError` if the other side has gone."""

    def exactly(size: int) -> bytearray:
        buffer = bytearray(size)
        view, position = memoryview(buffer), 0
        while position < size:
            count = connection.recv_into(view[position:], min(size - position, 1 << 24))
            if not count:
                raise EOFError
            position += count
        return buffer

    (count,) = _SIZE.unpack(exactly(_SIZE.size))
    if count > _MAX_PARTS:
        raise EOFError
    lengths = [_SIZE.unpack(exactly(_SIZE.size))[0] for _ in range(count)]
    if expect is not None:
        expect(lengths)
    return [exactly(length) for length in lengths]


def serve(descriptor: float, pixels: float, *allowed: float) -> None:
    """Decode what comes over a socket until it ends: the other process.

    Args:
        descriptor: Of the socket.
        pixels: Images above are not decoded.
        allowed: The numbers of the `Allowance`.
    """
    max_pixels, allowance = int(pixels), Allowance(*allowed)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the driver
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    present = _virtual_bytes()

    def expect(lengths: list[int]) -> None:
        _limit_memory(present, max_pixels, sum(lengths))
        _limit_time(allowance.of(sum(lengths), None))

    with socket.socket(fileno=int(descriptor)) as connection:
        _send(connection, _READY)
        while True:
            try:
                name, data = _receive(connection, expect)
            except (EOFError, OSError):
                return
            loaded = _load(bytes(data), name.decode("utf-8", "surrogatepass"), max_pixels, allowance)
            del data
            buffers: list[pickle.PickleBuffer] = []
            answer = pickle.dumps(loaded, protocol=5, buffer_callback=buffers.append)
            _send(connection, answer, *(buffer.raw() for buffer in buffers))


def _load(data: bytes, name: str, max_pixels: int, allowance: Allowance) -> LoadedImage:
    return images.load(data, max_pixels=max_pixels, name=name, on_header=lambda info: _limit_time(allowance.of(len(data), info)))


def _virtual_bytes() -> int:
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except (OSError, ValueError):  # not Linux
        return 0


def _limit_memory(present: int, max_pixels: int, size: int) -> None:
    """Of a file of `size` bytes, beside what the process began with."""
    if present:
        most = present + _MEMORY_BYTES + _MEMORY_PER_PIXEL * max_pixels + _MEMORY_PER_BYTE * size + _MEMORY_PER_THREAD * (os.cpu_count() or 1)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))


def _limit_time(seconds: float) -> None:
    """From now on; the kernel ends this process when they are used up."""
    with contextlib.suppress(ValueError, OSError):
        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(time.process_time() + seconds), hard))
