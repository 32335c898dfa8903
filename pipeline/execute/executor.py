"""Jobs, and who runs them: this process, or Ray (`actors`)."""

from __future__ import annotations

import os
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
    """One worker, which is this process with all its cores: for small runs, for which Ray takes longer to start than they take.

    What ends the worker ends the run; images are decoded in a process of their own all the same, and what is committed stays.

    Args:
        factory: Makes the object that does the jobs.
        args: Its arguments.
        trouble: Told what is done again: kind, job and reason.
    """

    def __init__(self, factory: Callable[..., Any], *args: Any, trouble: Callable[[str, str, str], None] | None = None) -> None:
        self._held = factory(*args)
        self._trouble = trouble or (lambda kind, job, reason: None)

    def run(self, following: Callable[[], Job | None], done: Callable[[Job, Any], None], tick: Callable[[], None] | None = None) -> None:
        while (job := following()) is not None:
            done(job, self._call(job))
            if tick is not None:
                tick()

    def _call(self, job: Job) -> Any:
        for attempt in range(TASK_RETRIES):
            try:
                return getattr(self._held, job.method)(*job.args)
            except StorageError as error:
                if not error.transient or attempt == TASK_RETRIES - 1:
                    raise
                self._trouble("storage", job.key, str(error))
                back_off(attempt + 2)
        raise AssertionError("unreachable")

    def count(self, name: str, value: float, **tags: str) -> None:
        pass

    def close(self) -> None:
        self._held = None


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
