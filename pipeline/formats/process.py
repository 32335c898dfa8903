"""Processes of their own for what reads files that anybody may have made: none takes more time or memory than its size explains, and none a worker
with it.

Such a process is no sandbox: it has the rights of the worker. It is a bound, and a wall against decoders that crash.
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

from pipeline.formats.images import ImageInfo

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


class UnstartedError(Exception):
    """There is no other process on this machine."""


class EndedError(Exception):
    """What was asked ends the process.

    Attributes:
        code: Its exit code.
    """

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code

    @property
    def too_long(self) -> bool:
        """Whether it took more processor time than it was given."""
        return self.code == -signal.SIGXCPU

    def __str__(self) -> str:
        return f"signal {-self.code}" if self.code < 0 else f"code {self.code}"


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

    @property
    def numbers(self) -> tuple[float, float, float]:
        """What another process is told."""
        return self.seconds, self.seconds_per_mpx, self.seconds_per_mb


class Process:
    """A process of its own that answers what it is asked over a socket, one question at a time; safe to use from several threads.

    Args:
        serving: What it runs, as `module:function`: called with a socket's descriptor and `limits`, it ends with `serve_requests`.
        limits: Numbers for it.
    """

    def __init__(self, serving: str, limits: tuple[float, ...]) -> None:
        self._serving, self._limits = serving, limits
        self._lock = threading.Lock()
        self._unstarted = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None

    def asked(self, *parts: bytes) -> object:
        """The answer.

        Raises:
            EndedError: The process ended at it, twice; or once, of too much processor time.
            UnstartedError: No process can be had here: whoever asks does it himself.
        """
        ended: int | None = None
        with self._lock:
            for _ in range(_STARTS) if resource is not None and self._unstarted < _UNSTARTED else ():
                try:
                    return self._ask(*parts)
                except _NotStartedError:
                    # Whatever keeps this machine from starting processes says nothing of the file. It may pass; if it does not, it is said once.
                    self.close()
                    self._unstarted += 1
                    if self._unstarted == _UNSTARTED:
                        warnings.warn("no process can be started to decode images in: they are decoded here, without bounds", stacklevel=3)
                    raise UnstartedError from None
                except (EOFError, OSError):
                    ended = self.close()
                except BaseException:
                    # Half an answer must not be taken for the next one's.
                    self.close()
                    raise
                if ended == -signal.SIGXCPU:
                    break
        raise UnstartedError if ended is None else EndedError(ended)

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

    def _ask(self, *parts: bytes) -> object:
        connection = self._socket or self._start()
        _send(connection, *parts)
        # The lengths of what follows are numbers: nothing that a picture holds is ever taken for an instruction.
        answer, *buffers = _receive(connection)
        found: object = pickle.loads(answer, buffers=buffers)
        return found

    def _start(self) -> socket.socket:
        try:
            ours, theirs = socket.socketpair()
        except OSError as error:
            raise _NotStartedError from error
        with theirs:
            root = str(Path(__file__).parents[2])
            module, _, function = self._serving.partition(":")
            run = f"import sys; sys.path.insert(0, {root!r}); from {module} import {function} as serve; serve(*map(float, sys.argv[1:]))"
            limits = (theirs.fileno(), *self._limits)
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


def serve_requests(descriptor: int, answer: Callable[..., object], max_pixels: int, allowance: Allowance) -> None:
    """Answer what comes over a socket until it ends, within bounds on memory and time that follow from the size of each question.

    Args:
        descriptor: Of the socket.
        answer: Takes the parts of a question.
        max_pixels: Of pictures.
        allowance: Of processor time.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the driver
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    present = _virtual_bytes()

    def expect(lengths: list[int]) -> None:
        _limit_memory(present, max_pixels, sum(lengths))
        limit_time(allowance.of(sum(lengths), None))

    with socket.socket(fileno=descriptor) as connection:
        _send(connection, _READY)
        while True:
            try:
                parts = _receive(connection, expect)
            except (EOFError, OSError):
                return
            found = answer(*parts)
            del parts
            buffers: list[pickle.PickleBuffer] = []
            pickled = pickle.dumps(found, protocol=5, buffer_callback=buffers.append)
            _send(connection, pickled, *(buffer.raw() for buffer in buffers))


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


def limit_time(seconds: float) -> None:
    """From now on; the kernel ends this process when they are used up."""
    with contextlib.suppress(ValueError, OSError):
        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(time.process_time() + seconds), hard))
