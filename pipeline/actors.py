"""The only user of Ray: a pool of actors that hold a model each, with back-pressure, retry and isolation of what kills them.

The driver owns all retries. An actor gets a task only when it is idle, so nothing queues up in Ray; results are small (commits, curves), and pixels
never enter the object store.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pipeline.errors import PipelineError, StorageError

_TASK_RETRIES = 3
_DEATHS_BEFORE_ISOLATION = 2
_STALL_FACTOR = 5
_START_S = 600.0
"""An actor that has not loaded its model after this long will not."""


class WorkersError(PipelineError):
    """The Ray instance cannot be reached or cannot run the work."""


@dataclass
class Job:
    """One call for some actor.

    Attributes:
        key: Names it in messages.
        method: Method of the object that the actor holds.
        args: Its arguments.
        split: `split(job, run) -> job`: called after the second death; `run(job) -> bool` tries a part in a fresh actor and says if it survived.
            Returns a job that avoids whatever kills.
        patience_s: How long it may run before the actor counts as hung; more if others took long.
        deaths: Actors lost with it.
        failures: Errors it raised.
    """

    key: str
    method: str
    args: tuple[Any, ...]
    split: Callable[[Job, Callable[[Job], bool]], Job] | None = None
    patience_s: float = 3600.0
    deaths: int = 0
    failures: int = 0
    started: float = field(default=0.0, repr=False)


def connect(address: str | None, workers: int | None, *, gpus: bool = False) -> int:
    """Join the Ray instance at `address`, or start a local one; returns how many actors of one CPU (or GPU) each fit.

    Raises:
        WorkersError: No Ray there.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    try:
        if not ray.is_initialized():
            if address is None:
                count = workers or os.cpu_count() or 1
                ray.init(
                    address="local",
                    num_cpus=count,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    object_store_memory=128 * 2**20,
                )
            else:
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        where = address or "this machine"
        raise WorkersError(f"cannot use Ray at {where}: {str(error).splitlines()[0]}") from error
    resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
    available = int(resources.get("GPU" if gpus else "CPU", 0))
    if not available:
        raise WorkersError(f"Ray at {address or 'this machine'} has no {'GPU' if gpus else 'CPU'} to offer")
    return max(1, min(workers or available, available))


def disconnect() -> None:
    """Leave the Ray instance; a local one ends."""
    import ray

    ray.shutdown()


class Pool:
    """Actors that each hold `factory(*args)`.

    Args:
        size: Number of actors.
        factory: Picklable callable; runs inside the actor.
        args: Its arguments; they travel through the object store once.
        gpus: Each actor gets a GPU instead of a CPU.
    """

    def __init__(self, size: int, factory: Callable[..., Any], *args: Any, gpus: bool = False) -> None:
        import ray

        self._ray = ray
        options = {"num_gpus": 1} if gpus else {"num_cpus": 1}
        errors = ray.exceptions
        self._deadly = (errors.RayActorError, errors.OutOfMemoryError, errors.NodeDiedError, errors.WorkerCrashedError)
        self._holder = ray.remote(_Holder).options(max_restarts=0, **options)
        self._shared = [ray.put(arg) for arg in args]
        self._factory = factory
        self._idle: deque[Any] = deque(self._new() for _ in range(size))
        self._durations: list[float] = []

    def _new(self) -> Any:
        return self._holder.remote(self._factory, *self._shared)

    def close(self) -> None:
        """End the actors."""
        for actor in self._idle:
            self._ray.kill(actor)
        self._idle.clear()

    def run(self, following: Callable[[], Job | None], done: Callable[[Job, Any], None], tick: Callable[[], None] | None = None) -> None:
        """Feed idle actors until nothing is left.

        Args:
            following: Next job, or None if there is none at the moment; asked again after each completion.
            done: Called with each job and its result.
            tick: Called about once a second.

        Raises:
            PipelineError: A job failed for good.
        """
        ray = self._ray
        waiting: deque[Job] = deque()
        running: dict[Any, tuple[Job, Any]] = {}
        while True:
            while self._idle and (job := waiting.popleft() if waiting else following()):
                actor = self._idle.popleft()
                job.started = time.monotonic()
                running[actor.call.remote(job.method, *job.args)] = (job, actor)
            if not running:
                return
            ready, _ = ray.wait(list(running), num_returns=1, timeout=1.0)
            if tick is not None:
                tick()
            for reference in ready or self._stalled(running):
                job, actor = running.pop(reference)
                retry = self._collect(reference, job, actor, done, stalled=not ready)
                if retry is not None:
                    waiting.append(retry)

    def _stalled(self, running: dict[Any, tuple[Job, Any]]) -> list[Any]:
        """Calls that run far longer than any before them: the actor is hung, and counts as dead."""
        durations = sorted(self._durations)
        p95 = durations[int(0.95 * (len(durations) - 1))] if durations else 0.0
        now = time.monotonic()
        return [reference for reference, (job, _) in running.items() if now - job.started > max(job.patience_s, _STALL_FACTOR * p95)]

    def _collect(self, reference: Any, job: Job, actor: Any, done: Callable[[Job, Any], None], *, stalled: bool) -> Job | None:
        """Hand over a result, or return the job to be run again."""
        ray = self._ray
        try:
            if stalled:
                ray.kill(actor)
                raise ray.exceptions.RayActorError()
            result = ray.get(reference)
        except self._deadly as error:
            ray.kill(actor)
            if not getattr(error, "preempted", False):
                job.deaths += 1
            again = job
            if job.deaths >= _DEATHS_BEFORE_ISOLATION:
                if job.split is None:
                    raise WorkersError(f"{job.key} killed {job.deaths} workers and cannot be divided further") from error
                # The dead actor's CPU serves the tries, so its successor is made afterwards.
                again = job.split(job, self._survives)
                again.deaths = 0
            self._idle.append(self._new())
            return again
        except PipelineError as error:
            self._idle.append(actor)
            job.failures += 1
            if isinstance(error, StorageError) and job.failures < _TASK_RETRIES:
                return job
            raise
        except ray.exceptions.RayError as error:
            self._idle.append(actor)
            raise WorkersError(f"{job.key} failed: {str(error).strip().splitlines()[-1]}") from error
        self._idle.append(actor)
        self._durations.append(time.monotonic() - job.started)
        done(job, result)
        return None

    def _survives(self, job: Job) -> bool:
        """Run a part of a deadly job in an actor of its own."""
        actor = self._new()
        try:
            self._ray.get(actor.ready.remote(), timeout=_START_S)
        except (*self._deadly, self._ray.exceptions.GetTimeoutError) as error:
            self._ray.kill(actor)
            raise WorkersError(f"workers do not start any more: {str(error).strip().splitlines()[0]}") from error
        try:
            self._ray.get(actor.call.remote(job.method, *job.args), timeout=job.patience_s)
        except (*self._deadly, self._ray.exceptions.GetTimeoutError):
            return False
        except Exception:
            return True  # an ordinary error is not what kills; the whole job will meet and report it
        finally:
            self._ray.kill(actor)
        return True


class _Holder:
    """Runs inside Ray: builds the object once, calls its methods."""

    def __init__(self, factory: Callable[..., Any], *args: Any) -> None:
        self._held = factory(*args)

    def ready(self) -> bool:
        return True

    def call(self, method: str, *args: Any) -> Any:
        return getattr(self._held, method)(*args)
