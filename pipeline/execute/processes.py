"""Workers that are processes of this machine: ready in a second, where Ray takes ten, and none takes another with it when it dies.

```
driver --- "one more", and an end of a socket ---> mother: one thread, everything imported --- fork ---> worker: jobs in, results out
```
Only the mother forks. A fork of a process with several threads may stop in a lock that one of the others held, and a driver has threads once it has
read Parquet or an object store; the mother never has. She is a fork of the driver where that still has one thread alone, which costs nothing, and
a fresh Python otherwise.
"""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from pipeline.execute.base import Listener, Worker, WorkersError, remarks_of
from pipeline.execute.pool import DiedError, Pool, sentence

_FORK_SAFE = frozenset(("jemalloc_bg_thd",))
"""Threads of libraries that take part in a fork themselves: jemalloc, which pyarrow brings, holds all its locks meanwhile and begins anew."""

_COMMAND = struct.Struct("=q")
_ONE_MORE = 0
_OOM_SCORE = "500"
"""Where memory runs out the kernel ends a worker, which is replaced, rather than the driver or a stranger."""


def available() -> bool:
    """Whether this system can do it: elsewhere libraries of the system itself do not bear a fork."""
    return sys.platform.startswith("linux")


def forks_at_once() -> bool:
    """Whether this process has one thread alone, so that workers start without importing anything anew."""
    return available() and _alone()


def _alone() -> bool:
    """Whether no other thread of this process, native ones too, can hold a lock that a fork would wait for."""
    try:
        others = [path for path in Path("/proc/self/task").iterdir() if path.name != str(os.getpid())]
        return all((path / "comm").read_text().strip() in _FORK_SAFE for path in others)
    except OSError:
        return False


class Processes(Pool[Worker]):
    """Processes that each hold `factory(*args)`.

    Args:
        size: How many.
        factory: Callable that can be pickled by name.
        args: Its arguments, picklable.
        listener: See `Pool`.
    """

    def __init__(self, size: int, factory: Callable[..., Worker], *args: Any, listener: Listener | None = None) -> None:
        super().__init__(listener)
        self._mother = _Mother(factory, args)
        try:
            for _ in range(size):
                self._start()
        except BaseException:
            self._mother.close()
            raise

    def _start(self, instead_of: Any = None) -> None:
        worker = self._mother.bear()
        self._starting[_Answer(worker)] = worker

    def _ask(self, worker: _Process, work: Callable[[Worker], Any]) -> _Answer:
        data = pickle.dumps(work)
        with contextlib.suppress(OSError):  # it is dead: `_get` finds that too
            worker.connection.send_bytes(data)
        return _Answer(worker)

    def _wait(self, asked: Sequence[_Answer], timeout: float) -> Sequence[_Answer]:
        of = {each.worker.connection: each for each in asked}
        return [of[connection] for connection in wait(list(of), timeout) if isinstance(connection, Connection)]

    def _get(self, asked: _Answer) -> Any:
        try:
            good, value = pickle.loads(asked.worker.connection.recv_bytes())
        except (EOFError, OSError) as error:
            raise DiedError(self._mother.end(asked.worker)) from error
        if not good:
            raise value
        return value

    def _end(self, worker: _Process) -> None:
        self._mother.end(worker)

    def count(self, name: str, value: float, **tags: str) -> None:
        """There is nobody here who asks for metrics."""

    def close(self) -> None:
        super().close()
        self._mother.close()


class _Process:
    """A worker as the driver sees it."""

    def __init__(self, number: int, connection: Connection) -> None:
        self.number, self.connection = number, connection
        self.end = ""  # how it ended, once it has


class _Answer:
    """That a worker owes: of its start, or of a job. A worker owes one at a time."""

    def __init__(self, worker: _Process) -> None:
        self.worker = worker


class _Mother:
    """The process that bears the workers, as the driver sees it; another takes her place if she is killed.

    Args:
        factory: Of what workers hold; `args`: its arguments.
    """

    def __init__(self, factory: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self._factory, self._args = factory, args
        self._socket: socket.socket | None = None
        self._wait: Callable[[], object] = int

    def bear(self) -> _Process:
        """Start a worker.

        Raises:
            WorkersError: This machine starts no process.
        """
        for _ in range(2):
            try:
                # She first: a fork made later would hold the worker's end of its socket too, and nobody would see the worker die.
                control = self._socket or self._begin()
                ours, theirs = socket.socketpair()
                with theirs:
                    socket.send_fds(control, [_COMMAND.pack(_ONE_MORE)], [theirs.fileno()])
                connection = Connection(ours.detach())
                number = _receive(control)
            except (EOFError, OSError, pickle.PicklingError) as error:
                self.close()
                failure: Exception = error
                continue
            if number > 0:
                return _Process(number, connection)
            connection.close()
            failure = OSError(-number, os.strerror(-number))
            break
        raise WorkersError(f"no worker process can be started: {sentence(failure)}") from failure

    def end(self, worker: _Process) -> str:
        """Kill a worker, if it is not dead yet; returns how it ended."""
        if worker.end or self._socket is None:
            return worker.end
        try:
            self._socket.sendall(_COMMAND.pack(worker.number))
            code = _receive(self._socket)
        except (EOFError, OSError):
            worker.end = "its process has ended, and that which bore it"
        else:
            worker.end = f"its process was ended by signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"its process ended with code {code}"
        worker.connection.close()
        return worker.end

    def close(self) -> None:
        """End her, and with her all workers."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)  # a later fork of this process may hold it open
            self._socket.close()
            self._wait()
        self._socket = None

    def _begin(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        with theirs:
            if _alone():
                self._fork(ours, theirs)
            else:
                self._execute(ours, theirs)
        self._socket = ours
        return ours

    def _fork(self, ours: socket.socket, theirs: socket.socket) -> None:
        number = os.fork()
        if not number:
            with _last_words():
                ours.close()
                _quiet()
                _bear(theirs, self._factory, self._args)
        self._wait = lambda: os.waitpid(number, 0)

    def _execute(self, ours: socket.socket, theirs: socket.socket) -> None:
        # By name, so that what cannot be found there is refused here; the path is this process's, wherever the new one's would lead.
        data = pickle.dumps((self._factory, self._args))
        run = f"import sys; sys.path[:] = {sys.path!r}; from pipeline.execute.processes import serve; serve(int(sys.argv[1]))"
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", run, str(theirs.fileno())],
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._wait = process.wait
        theirs.close()
        ours.sendall(_COMMAND.pack(len(data)) + data)


# In the other processes ----------------------------------------------------------------------------------------------------------------------------


def serve(descriptor: int) -> None:
    """A mother in a fresh Python.

    Args:
        descriptor: Of her end of the driver's socket.
    """
    with _last_words():
        control = socket.socket(fileno=descriptor)
        size = _receive(control)
        data = bytearray()
        while len(data) < size:
            data += control.recv(size - len(data)) or _lost()
        _bear(control, *pickle.loads(data))


@contextlib.contextmanager
def _last_words() -> Iterator[None]:
    """What runs in here ends the process, without what the interpreter does at its end: of a fork that is the driver's business."""
    try:
        yield
    except BaseException:
        os._exit(1)
    os._exit(0)


def _quiet() -> None:
    """A fork says nothing in the driver's name."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    os.close(nothing)


def _bear(control: socket.socket, factory: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """The mother: forks and kills as she is told, until the driver has gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the driver, which ends us
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    gc.freeze()  # what is there stays shared: no collection of a worker's touches it
    children: set[int] = set()
    try:
        while True:
            data, descriptors, _, _ = socket.recv_fds(control, _COMMAND.size, 1)
            if len(data) < _COMMAND.size:
                return
            (number,) = _COMMAND.unpack(data)
            if number == _ONE_MORE:
                number = _forked(control, descriptors[0], factory, args)
                if number > 0:
                    children.add(number)
            elif number in children:
                children.discard(number)
                number = _ended(number)
            control.sendall(_COMMAND.pack(number))
    finally:
        for number in children:
            _ended(number)


def _ended(number: int) -> int:
    """Kill a worker, if it is not dead yet; its exit code. Nobody else waits for it, so that the number is still this one's."""
    os.kill(number, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


def _forked(control: socket.socket, descriptor: int, factory: Callable[..., Any], args: tuple[Any, ...]) -> int:
    """Number of a new worker's process; an error's, negative."""
    try:
        number = os.fork()
    except OSError as error:
        os.close(descriptor)
        return -(error.errno or 1)
    if not number:
        with _last_words():
            control.close()
            _work(Connection(descriptor), factory, args)
    os.close(descriptor)
    return number


def _work(connection: Connection, factory: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """A worker: jobs until the driver has gone."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE)
    try:
        held = factory(*args)
        remarks = remarks_of(held)
    except Exception as error:
        connection.send_bytes(_error(error))
        return
    connection.send_bytes(pickle.dumps((True, remarks)))
    while True:
        try:
            work = pickle.loads(connection.recv_bytes())
        except EOFError:
            return
        try:
            answer = pickle.dumps((True, (work(held), remarks_of(held))))  # what it has to say may change while it works
        except Exception as error:
            answer = _error(error)
        connection.send_bytes(answer)


def _error(error: Exception) -> bytes:
    """An error for the driver: itself, or if it does not travel a sentence."""
    try:
        data = pickle.dumps((False, error))
        pickle.loads(data)
    except Exception:  # of a library's errors some cannot be pickled, or not made anew: what they raise then is their own affair
        return pickle.dumps((False, WorkersError(f"{type(error).__name__}: {sentence(error)}")))
    return data


def _receive(control: socket.socket) -> int:
    """A number from the other side. Raises `EOFError` if it has gone."""
    data = bytearray()
    while len(data) < _COMMAND.size:
        data += control.recv(_COMMAND.size - len(data)) or _lost()
    number: int = _COMMAND.unpack(data)[0]
    return number


def _lost() -> bytes:
    raise EOFError("the other process has ended")
