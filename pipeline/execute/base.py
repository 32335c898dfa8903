"""Jobs, and the protocol of who does them."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from pipeline.errors import PipelineError

TASK_RETRIES = 6
"""How often a job is begun in all while the store fails."""

MISTRUSTED_WORKERS = 3
"""A job of which so many workers were found to compute wrongly says nothing about machines."""

Worker = TypeVar("Worker")
"""What a worker holds, and jobs are done with."""

Result = TypeVar("Result")


class WorkersError(PipelineError):
    """The workers cannot be reached or cannot run the work."""


Trials = Generator["Job[Worker, Any]", bool, "Job[Worker, Result]"]
"""See `Job.split`."""


@dataclass
class Job(Generic[Worker, Result]):
    """One piece of work.

    Attributes:
        key: Names it in messages.
        work: Called with what the worker holds. It can be pickled, and its result says what it is of.
        split: Called after the second death. Yields parts of the job to try, is sent whether the worker survived each, and returns a job that avoids
            whatever kills. The tries take their turn among the other jobs.
        patience_s: How long it may run before its worker counts as hung; more if others took long.
        deaths: Workers lost with it.
        failures: Errors it raised.
        mistrusted: Workers that were found to compute wrongly with it.
        trials: What this is a try of; its end is an answer, and its result is not wanted.
        started: When its worker got it, on the monotonic clock.
    """

    key: str
    work: Callable[[Worker], Result]
    split: Callable[[], Trials[Worker, Result]] | None = None
    patience_s: float = 3600.0
    deaths: int = 0
    failures: int = 0
    mistrusted: int = 0
    trials: Trials[Worker, Result] | None = field(default=None, repr=False)
    started: float = field(default=0.0, repr=False)


class Listener(Protocol):
    """Told, in the caller's thread, what users should know of the workers."""

    def trouble(self, kind: str, job: str, reason: str) -> None:
        """Work is done again: `kind` is `death` (of a worker), `stall`, `storage` (the store failed), `machine` (one computes wrongly) or `start` (a
        worker did not start)."""

    def warn(self, message: str) -> None:
        """A worker's `remarks`, each sentence once."""


class Executor(Protocol[Worker]):
    """Workers that each hold one object, and do the jobs that they are given."""

    def run(
        self,
        following: Callable[[], Job[Worker, Result] | None],
        done: Callable[[Result], None],
        tick: Callable[[], None] | None = None,
    ) -> None:
        """Do jobs until nothing is left.

        Args:
            following: Next job, or None if there is none at the moment; asked again after each completion.
            done: Called with each result.
            tick: Called about once a second.

        Raises:
            PipelineError: A job failed for good, or no worker starts.
        """

    def count(self, name: str, value: float, **tags: str) -> None:
        """Add to a metric of the run."""

    def close(self) -> None:
        """End the workers."""


def remarks_of(held: object) -> tuple[str, ...]:
    """What an object that a worker holds has to say of its machine: sentences in its attribute `remarks`, if it has one."""
    return tuple(getattr(held, "remarks", ()))


class Remarks:
    """Passes on each sentence once, whichever of a thousand workers says it.

    Args:
        listener: Told; or nobody.
    """

    def __init__(self, listener: Listener | None) -> None:
        self._listener = listener
        self._said: set[str] = set()

    def add(self, remarks: tuple[str, ...]) -> None:
        """Some worker's."""
        for sentence in remarks:
            if sentence not in self._said and self._listener is not None:
                self._said.add(sentence)
                self._listener.warn(sentence)


def processors() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def patience(images: int) -> float:
    """Seconds after which a shard's worker counts as hung, before any shard has shown what is usual: an image at the pixel limit takes minutes."""
    return 900.0 + 180.0 * images
