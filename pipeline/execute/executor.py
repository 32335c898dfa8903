"""Jobs, and who runs them: this process, or Ray (`actors`)."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any, Protocol

from pipeline.errors import PipelineError, StorageError
from pipeline.store.errors import back_off

TASK_RETRIES = 6


class WorkersError(PipelineError):
    """The workers cannot be reached or cannot run the work."""


Trials = Generator["Job", bool, "Job"]
"""See `Job.split`."""


@dataclass
class Job:
    """One call of a method of what a worker holds.

    Attributes:
        key: Names it in messages.
        method: Name of the method.
        args: Its arguments.
        split: Called with the job after the second death. Yields parts of it to try, is sent whether the worker survived each, and returns a job that
            avoids whatever kills. The tries take their turn among the other jobs.
        patience_s: How long it may run before its worker counts as hung; more if others took long.
        deaths: Workers lost with it.
        failures: Errors it raised.
        trials: What this is a try of; its end is an answer, and its result is not wanted.
    """

    key: str
    method: str
    args: tuple[Any, ...]
    split: Callable[[Job], Trials] | None = None
    patience_s: float = 3600.0
    deaths: int = 0
    failures: int = 0
    trials: Trials | None = field(default=None, repr=False)
    started: float = field(default=0.0, repr=False)


class Executor(Protocol):
    """Workers that each hold one object, and do the jobs that they are given."""

    def run(self, following: Callable[[], Job | None], done: Callable[[Job, Any], None], tick: Callable[[], None] | None = None) -> None:
        """Do jobs until nothing is left.

        Args:
            following: Next job, or None if there is none at the moment; asked again after each completion.
            done: Called with each job and its result.
            tick: Called about once a second.

        Raises:
            PipelineError: A job failed for good, or no worker starts.
        """

    def count(self, name: str, value: float, **tags: str) -> None:
        """Add to a metric of the run."""

    def close(self) -> None:
        """End the workers."""


class InProcess:
    """Workers that are threads of this process: for small runs, which take less time than Ray to start. The kernels release the GIL.

    What ends a worker ends the run; images are decoded in a process of their own all the same, and what is committed stays.

    Args:
        factory: Makes the object that does a worker's jobs; called in its thread, when the first job comes.
        args: Its arguments.
        workers: How many.
        trouble: Told what is done again: kind, job and reason. Like everything that is given to `run`, it is called in the caller's thread.
    """

    def __init__(self, factory: Callable[..., Any], *args: Any, workers: int = 1, trouble: Callable[[str, str, str], None] | None = None) -> None:
        self._trouble = trouble or (lambda kind, job, reason: None)
        self._inboxes: list[_Inbox] = [queue.SimpleQueue() for _ in range(workers)]
        for inbox in self._inboxes:
            # Daemons: an interrupted run need not wait for the image in hand, which is in no shard yet.
            threading.Thread(target=_work, args=(inbox, factory, args), daemon=True).start()

    def run(self, following: Callable[[], Job | None], done: Callable[[Job, Any], None], tick: Callable[[], None] | None = None) -> None:
        # Of this run alone: what a job of an earlier one, which failed, still has to say is not wanted.
        answers: queue.SimpleQueue[tuple[str, int, Job, Any]] = queue.SimpleQueue()
        idle = list(range(len(self._inboxes)))
        while True:
            while idle and (given := following()) is not None:
                self._inboxes[worker := idle.pop(0)].put((worker, given, answers))
            if len(idle) == len(self._inboxes):
                return
            try:
                kind, worker, job, value = answers.get(timeout=1.0)
            except queue.Empty:
                pass
            else:
                if kind == "error":
                    raise value
                if kind == "trouble":
                    self._trouble("storage", job.key, value)
                else:
                    idle.append(worker)
                    done(job, value)
            if tick is not None:
                tick()

    def count(self, name: str, value: float, **tags: str) -> None:
        pass

    def close(self) -> None:
        for inbox in self._inboxes:
            inbox.put(None)


_Inbox = queue.SimpleQueue[tuple[int, Job, "queue.SimpleQueue[tuple[str, int, Job, Any]]"] | None]


def _work(inbox: _Inbox, factory: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """A thread of `InProcess`: jobs until None comes."""
    held: Any = None
    while (asked := inbox.get()) is not None:
        worker, job, answers = asked
        try:
            held = factory(*args) if held is None else held
            for attempt in range(TASK_RETRIES):
                try:
                    answers.put(("result", worker, job, getattr(held, job.method)(*job.args)))
                    break
                except StorageError as error:
                    if not error.transient or attempt == TASK_RETRIES - 1:
                        raise
                    answers.put(("trouble", worker, job, str(error)))
                    back_off(attempt + 2)
        except BaseException as error:  # it is the caller's: raised there
            answers.put(("error", worker, job, error))


def processors() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def patience(images: int) -> float:
    """Seconds after which a shard's worker counts as hung, before any shard has shown what is usual: an image at the pixel limit takes minutes."""
    return 900.0 + 180.0 * images


def isolate(part: list[Any], attempt: Callable[[list[Any]], Job]) -> Generator[Job, bool, Any | None]:
    """For `Job.split`: the element that kills workers, by halving; None if none of them does when tried again.

    Args:
        part: What the job was about.
        attempt: A job about some of it.
    """
    while len(part) > 1:
        half = part[: len(part) // 2]
        survived = yield attempt(half)
        part = part[len(part) // 2 :] if survived else half
    # Twice, because a worker may also die of what its neighbours do to the machine.
    if not part or (yield attempt(part)) or (yield attempt(part)):
        return None
    return part[0]
