"""What a pool does about its workers: who gets which job, and what follows when one fails, dies, hangs or computes wrongly.

The driver owns all retries. A worker gets a job only when it is idle, so nothing queues up behind it; results are small (commits, curves). How
workers are started, asked and ended is what `ray` and `processes` add.
"""

from __future__ import annotations

import bisect
import random
import re
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Generic

from pipeline.errors import MachineError, PipelineError, StorageError
from pipeline.execute.base import MISTRUSTED_WORKERS, TASK_RETRIES, Job, Listener, Remarks, Result, Trials, Worker, WorkersError

_LONGEST_PAUSE_S = 60.0
_FAILED_STARTS = 5
_DEATHS_BEFORE_ISOLATION = 2
_STALL_FACTOR = 5
_START_S = 600.0
"""A worker that has not loaded its model after this long will not."""


class DiedError(Exception):
    """A worker is gone: it died, was killed, or never came to work.

    Args:
        reason: A sentence.
        preempted: Its machine was taken away, which says nothing about its job.
        hopeless: No other would start either.
    """

    def __init__(self, reason: str, *, preempted: bool = False, hopeless: bool = False) -> None:
        super().__init__(reason)
        self.preempted, self.hopeless = preempted, hopeless


class Pool(ABC, Generic[Worker]):
    """Workers of one kind. A worker gets work once it has loaded its model; one that waits for a machine (an autoscaler's, or a lost node's
    successor) holds nothing up.

    Args:
        listener: Told what is done again, and what a worker remarks.
    """

    def __init__(self, listener: Listener | None) -> None:
        self._idle: deque[Any] = deque()
        self._starting: dict[Any, Any] = {}
        self._busy: list[Any] = []
        self._failed_starts = 0
        self._durations: list[float] = []
        self._storms, self._resume_at = 0, 0.0
        self._listener = listener
        self._remarks = Remarks(listener)

    # How workers are started, asked and ended -----------------------------------------------------------------------------------------------------

    @abstractmethod
    def _start(self, instead_of: Any = None) -> None:
        """Begin to start a worker, in the place of one that died: an entry in `_starting`, from what `_get` gives its remarks of to the worker."""

    @abstractmethod
    def _ask(self, worker: Any, work: Callable[[Worker], Any]) -> Any:
        """Hand work to an idle worker; returns what `_get` gives its result and remarks of."""

    @abstractmethod
    def _wait(self, asked: Sequence[Any], timeout: float) -> Sequence[Any]:
        """Wait until some of what was asked for can be had, or for so many seconds; returns those."""

    @abstractmethod
    def _get(self, asked: Any) -> Any:
        """What a worker answered. Raises `DiedError` if it is gone, and whatever its work raised."""

    @abstractmethod
    def _end(self, worker: Any) -> None:
        """End a worker at once, whatever it does. One that is gone already is no error."""

    @abstractmethod
    def count(self, name: str, value: float, **tags: str) -> None:
        """Add to a metric of the run."""

    # What is done about them ---------------------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End the workers."""
        for worker in (*self._idle, *self._starting.values(), *self._busy):
            self._end(worker)
        self._idle.clear()
        self._starting.clear()
        self._busy.clear()

    def run(
        self,
        following: Callable[[], Job[Worker, Result] | None],
        done: Callable[[Result], None],
        tick: Callable[[], None] | None = None,
    ) -> None:
        """See `Executor.run`."""
        first = following()
        if first is None:
            return
        waiting: deque[Job[Worker, Result]] = deque([first])
        running: dict[Any, tuple[Job[Worker, Result], Any]] = {}
        moved = looked = time.monotonic()
        while True:
            handed, exhausted = self._hand_out(waiting, following, running)
            if exhausted and not running:
                return
            ready = self._wait([*running, *self._starting], 1.0) if running or self._starting else ()
            if not running and not self._starting:
                time.sleep(min(1.0, max(0.0, self._resume_at - time.monotonic())))
            if tick is not None:
                tick()
            stalled: list[Any] = []
            if time.monotonic() - looked > 1.0:
                looked = time.monotonic()
                stalled = [asked for asked in self._stalled(running) if asked not in ready]
            for asked in (*ready, *stalled):
                if asked in self._starting:
                    self._started(asked, 1 + len(running) + len(self._idle))
                else:
                    job, worker = running.pop(asked)
                    self._busy.remove(worker)
                    retry = self._collect(asked, job, worker, done, stalled=asked in stalled)
                    if retry is not None:
                        waiting.append(retry)
            if handed or ready or stalled:
                moved = time.monotonic()
            if not running and not self._idle and time.monotonic() - moved > _START_S:
                raise WorkersError(f"no worker has started within {_START_S / 60:.0f} minutes: the cluster has no room for one, or cannot run it")

    def _hand_out(
        self, waiting: deque[Job[Worker, Result]], following: Callable[[], Job[Worker, Result] | None], running: dict[Any, Any]
    ) -> tuple[bool, bool]:
        """A job for each idle worker; returns whether any got one, and whether there were none left."""
        handed = False
        while self._idle and time.monotonic() >= self._resume_at:
            job = waiting.popleft() if waiting else following()
            if job is None:
                return handed, True
            worker = self._idle.popleft()
            job.started = time.monotonic()
            self._busy.append(worker)
            running[self._ask(worker, job.work)] = (job, worker)
            handed = True
        return handed, False

    def _started(self, asked: Any, sound: int) -> None:
        """A worker is ready, or has died before it was; `sound` others work, and excuse some that do not."""
        worker = self._starting.pop(asked)
        try:
            self._remarks.add(self._get(asked))
        except DiedError as error:
            self._failed_starts += 1
            if error.hopeless or self._failed_starts > _FAILED_STARTS * sound:
                raise WorkersError(f"workers do not start any more: {sentence(error)}") from error
            self._again("start", "a worker", error)
            self._start(instead_of=worker)
            return
        except Exception as error:
            raise WorkersError(f"workers cannot load the model: {sentence(error)}") from error
        self._failed_starts = 0
        self._idle.append(worker)

    def _again(self, kind: str, job: str, error: Exception) -> None:
        self.count("trouble", 1, kind=kind)
        if self._listener is not None:
            self._listener.trouble(kind, job, sentence(error))

    def _slow_down(self) -> None:
        """The store refuses or fails: nobody gets new work for a while, longer each time, so that a thousand workers do not keep up the storm."""
        if time.monotonic() < self._resume_at:
            return  # another worker of the same storm
        self._storms = min(self._storms + 1, 10)
        self._resume_at = time.monotonic() + random.uniform(0.5, 1) * min(_LONGEST_PAUSE_S, 0.5 * 2**self._storms)

    def _stalled(self, running: dict[Any, tuple[Job[Worker, Any], Any]]) -> list[Any]:
        """Calls that run far longer than any before them: the worker is hung, and counts as dead."""
        p95 = self._durations[int(0.95 * (len(self._durations) - 1))] if self._durations else 0.0
        now = time.monotonic()
        return [asked for asked, (job, _) in running.items() if now - job.started > max(job.patience_s, _STALL_FACTOR * p95)]

    def _collect(
        self, asked: Any, job: Job[Worker, Result], worker: Any, done: Callable[[Result], None], *, stalled: bool
    ) -> Job[Worker, Result] | None:
        """Hand over a result, or return the job to be run again."""
        try:
            if stalled:
                raise DiedError("it has not answered for far longer than any other took")
            result, remarks = self._get(asked)
        except DiedError as error:
            self._end(worker)
            self._start(instead_of=worker)
            self._again("stall" if stalled else "death", job.key, error)
            return job if error.preempted else _after_death(job, error)
        except MachineError as error:
            self._retire(worker, job, error)
            return job if job.trials is None else _answer(job.trials, survived=True)
        except Exception as error:
            self._idle.append(worker)
            if job.trials is not None:
                return _answer(job.trials, survived=True)  # an ordinary error is not what kills; the whole job will meet and report it
            return self._failed(job, error)
        self._idle.append(worker)
        self._remarks.add(remarks)
        if job.trials is not None:
            return _answer(job.trials, survived=True)
        self._storms = 0
        bisect.insort(self._durations, time.monotonic() - job.started)
        done(result)
        return None

    def _retire(self, worker: Any, job: Job[Worker, Any], error: MachineError) -> None:
        """End a worker that computes wrongly. It gets no successor, which would stand on the same machine; the others go on with its job.

        Raises:
            MachineError: There are no others, or too many have failed with this job.
        """
        self._end(worker)
        job.mistrusted += 1
        if job.mistrusted >= MISTRUSTED_WORKERS or not (self._idle or self._busy or self._starting):
            raise error
        self._again("machine", job.key, error)

    def _failed(self, job: Job[Worker, Result], error: Exception) -> Job[Worker, Result]:
        """What a worker raised: worth another try, or the end."""
        if not isinstance(error, PipelineError):
            raise WorkersError(f"{job.key} failed: {sentence(error)}") from error
        job.failures += 1
        if not (isinstance(error, StorageError) and error.transient and job.failures < TASK_RETRIES):
            raise error
        self._again("storage", job.key, error)
        self._slow_down()
        return job


def sentence(error: BaseException) -> str:
    """What an error says, without the page of calls and colours that Ray puts around it."""
    cause = getattr(error, "cause", None)
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(cause if isinstance(cause, Exception) else error)).strip()
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [type(error).__name__]
    # Of a traceback the last line is the error itself.
    line = lines[-1 if any("Traceback" in line or ", in " in line or "::" in line for line in lines) else 0]
    return re.sub(r"^(?:[A-Za-z_]+\.)+([A-Z]\w+): ", r"\1: ", line)[:400]


def _after_death(job: Job[Worker, Result], error: DiedError) -> Job[Worker, Result]:
    """What follows when a worker has died with a job: it again, or tries that find out what kills."""
    if job.trials is not None:
        return _answer(job.trials, survived=False)
    job.deaths += 1
    if job.deaths < _DEATHS_BEFORE_ISOLATION:
        return job
    if job.split is None:
        raise WorkersError(f"{job.key} killed {job.deaths} workers and cannot be divided further") from error
    return _answer(job.split(), survived=None)


def _answer(trials: Trials[Worker, Result], *, survived: bool | None) -> Job[Worker, Result]:
    """The next try, or the job that all of them lead to; `survived` is None at the start."""
    try:
        following = next(trials) if survived is None else trials.send(survived)
    except StopIteration as end:
        found: Job[Worker, Result] = end.value
        return found
    following.trials = trials
    return following
