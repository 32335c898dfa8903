"""Workers on Ray: a pool of actors that hold a model each, with back-pressure, retry and isolation of what kills them.

The driver owns all retries. An actor gets a task only when it is idle, so nothing queues up in Ray; results are small (commits, curves), and pixels
never enter the object store.
"""

from __future__ import annotations

import bisect
import hashlib
import random
import re
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Generic

from pipeline.errors import MachineError, PipelineError, StorageError
from pipeline.execute.base import MISTRUSTED_WORKERS, TASK_RETRIES, Job, Listener, Remarks, Result, Trials, Worker, WorkersError, remarks_of
from pipeline.execute.connection import Resources

_LONGEST_PAUSE_S = 60.0
_FAILED_STARTS = 5
_DEATHS_BEFORE_ISOLATION = 2
_STALL_FACTOR = 5
_START_S = 600.0
"""An actor that has not loaded its model after this long will not."""


def _home() -> str:
    """Which code this is: a digest of the files of our packages, wherever they lie (a cluster unpacks each in a folder of its own)."""
    import msinn_core

    digest = hashlib.sha256()
    for folder in (Path(__file__).parents[1], Path(str(msinn_core.__file__)).parent):
        for path in sorted(folder.rglob("*.py")):
            digest.update(str(path.relative_to(folder)).encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


class Counters:
    """What the run did, as Ray's metrics: every node offers them to Prometheus under `ray_msinn_...`."""

    _NAMES: ClassVar[dict[str, tuple[str, tuple[str, ...]]]] = {
        "images": ("Images archived", ("status",)),
        "shards": ("Shards committed", ()),
        "source_bytes": ("Bytes of the source files archived", ()),
        "stored_bytes": ("Bytes of shards written", ()),
        "trouble": ("Work done again", ("kind",)),
    }

    def __init__(self) -> None:
        from ray.util.metrics import Counter

        self._counters = {name: Counter(f"msinn_{name}_total", text, keys) for name, (text, keys) in self._NAMES.items()}

    def add(self, name: str, value: float, **tags: str) -> None:
        """Count."""
        if value > 0:
            self._counters[name].inc(value, tags)


class Ray(Generic[Worker]):
    """Actors that each hold `factory(*args)`.

    An actor gets work once it has loaded its model. One that waits for a machine (an autoscaler's, or a lost node's successor) holds nothing up.

    Args:
        size: Number of actors.
        factory: Picklable callable; runs inside the actor.
        args: Its arguments; they travel through the object store once.
        resources: Of each actor.
        listener: Told what is done again, and what a worker remarks.
    """

    def __init__(
        self,
        size: int,
        factory: Callable[..., Worker],
        *args: Any,
        resources: Resources | None = None,
        listener: Listener | None = None,
    ) -> None:
        import ray

        self._ray = ray
        errors = ray.exceptions
        self._deadly = (errors.RayActorError, errors.OutOfMemoryError, errors.NodeDiedError, errors.WorkerCrashedError)
        self._holder = ray.remote(_Holder).options(max_restarts=0, **(resources or Resources()).options())
        self._shared = [ray.put(arg) for arg in args]
        self._home = _home()
        self._factory = factory
        self._idle: deque[Any] = deque()
        self._starting: dict[Any, Any] = {}
        self._busy: list[Any] = []
        self._failed_starts = 0
        self._durations: list[float] = []
        self._storms, self._resume_at = 0, 0.0
        self._listener = listener
        self._remarks = Remarks(listener)
        self._counters = Counters()
        for _ in range(size):
            self._start()

    def _new(self) -> Any:
        return self._holder.remote(self._home, self._factory, *self._shared)

    def _start(self) -> None:
        actor = self._new()
        self._starting[actor.ready.remote()] = actor

    def count(self, name: str, value: float, **tags: str) -> None:
        """Add to a metric of the run, which Prometheus finds at every node."""
        self._counters.add(name, value, **tags)

    def close(self) -> None:
        """End the actors."""
        for actor in (*self._idle, *self._starting.values()):
            self._ray.kill(actor)
        for actor in self._busy:
            self._ray.kill(actor)
        self._idle.clear()
        self._starting.clear()
        self._busy.clear()

    def run(
        self,
        following: Callable[[], Job[Worker, Result] | None],
        done: Callable[[Result], None],
        tick: Callable[[], None] | None = None,
    ) -> None:
        ray = self._ray
        first = following()
        if first is None:
            return
        waiting: deque[Job[Worker, Result]] = deque([first])
        running: dict[Any, tuple[Job[Worker, Result], Any]] = {}
        moved = looked = time.monotonic()
        while True:
            exhausted = False
            while self._idle and time.monotonic() >= self._resume_at:
                job = waiting.popleft() if waiting else following()
                if job is None:
                    exhausted = True
                    break
                actor = self._idle.popleft()
                job.started = moved = time.monotonic()
                self._busy.append(actor)
                running[actor.call.remote(job.work)] = (job, actor)
            if exhausted and not running:
                return
            ready, _ = ray.wait([*running, *self._starting], num_returns=1, timeout=1.0) if running or self._starting else ([], None)
            if not running and not self._starting:
                time.sleep(min(1.0, max(0.0, self._resume_at - time.monotonic())))
            if tick is not None:
                tick()
            stalled = []
            if time.monotonic() - looked > 1.0:
                looked = time.monotonic()
                stalled = [reference for reference in self._stalled(running) if reference not in ready]
            for reference in (*ready, *stalled):
                if reference in self._starting:
                    self._started(reference, 1 + len(running) + len(self._idle))
                else:
                    job, actor = running.pop(reference)
                    self._busy.remove(actor)
                    retry = self._collect(reference, job, actor, done, stalled=reference in stalled)
                    if retry is not None:
                        waiting.append(retry)
                moved = time.monotonic()
            if not running and not self._idle and time.monotonic() - moved > _START_S:
                raise WorkersError(f"no worker has started within {_START_S / 60:.0f} minutes: the cluster has no room for one, or cannot run it")

    def _started(self, reference: Any, sound: int) -> None:
        """An actor is ready, or has died before it was; `sound` others work, and excuse some that do not."""
        actor = self._starting.pop(reference)
        try:
            self._remarks.add(self._ray.get(reference))
        except self._ray.exceptions.RayTaskError as error:
            raise WorkersError(f"workers cannot load the model: {_sentence(error)}") from error
        except self._ray.exceptions.RayError as error:
            self._failed_starts += 1
            if getattr(error, "actor_init_failed", False) or self._failed_starts > _FAILED_STARTS * sound:
                raise WorkersError(f"workers do not start any more: {_sentence(error)}") from error
            self._again("start", "a worker", error)
            self._start()
            return
        self._failed_starts = 0
        self._idle.append(actor)

    def _again(self, kind: str, job: str, error: Exception) -> None:
        self._counters.add("trouble", 1, kind=kind)
        if self._listener is not None:
            self._listener.trouble(kind, job, _sentence(error))

    def _slow_down(self) -> None:
        """The store refuses or fails: nobody gets new work for a while, longer each time, so that a thousand workers do not keep up the storm."""
        if time.monotonic() < self._resume_at:
            return  # another worker of the same storm
        self._storms = min(self._storms + 1, 10)
        self._resume_at = time.monotonic() + random.uniform(0.5, 1) * min(_LONGEST_PAUSE_S, 0.5 * 2**self._storms)

    def _stalled(self, running: dict[Any, tuple[Job[Worker, Any], Any]]) -> list[Any]:
        """Calls that run far longer than any before them: the actor is hung, and counts as dead."""
        p95 = self._durations[int(0.95 * (len(self._durations) - 1))] if self._durations else 0.0
        now = time.monotonic()
        return [reference for reference, (job, _) in running.items() if now - job.started > max(job.patience_s, _STALL_FACTOR * p95)]

    def _collect(
        self, reference: Any, job: Job[Worker, Result], actor: Any, done: Callable[[Result], None], *, stalled: bool
    ) -> Job[Worker, Result] | None:
        """Hand over a result, or return the job to be run again."""
        ray = self._ray
        try:
            if stalled:
                ray.kill(actor)
                raise ray.exceptions.RayActorError()
            result = ray.get(reference)
        except self._deadly as error:
            ray.kill(actor)
            self._start()
            self._again("stall" if stalled else "death", job.key, error)
            if getattr(error, "preempted", False):
                return job
            if job.trials is not None:
                return _answer(job.trials, survived=False)
            job.deaths += 1
            if job.deaths < _DEATHS_BEFORE_ISOLATION:
                return job
            if job.split is None:
                raise WorkersError(f"{job.key} killed {job.deaths} workers and cannot be divided further") from error
            return _answer(job.split(), survived=None)
        except MachineError as error:
            self._retire(actor, job, error)
            return job if job.trials is None else _answer(job.trials, survived=True)
        except Exception as error:
            self._idle.append(actor)
            if job.trials is not None:
                return _answer(job.trials, survived=True)  # an ordinary error is not what kills; the whole job will meet and report it
            return self._failed(job, error)
        self._idle.append(actor)
        if job.trials is not None:
            return _answer(job.trials, survived=True)
        self._storms = 0
        bisect.insort(self._durations, time.monotonic() - job.started)
        done(result)
        return None

    def _retire(self, actor: Any, job: Job[Worker, Any], error: MachineError) -> None:
        """End a worker that computes wrongly. It gets no successor, which would stand on the same machine; the others go on with its job.

        Raises:
            MachineError: There are no others, or too many have failed with this job.
        """
        self._ray.kill(actor)
        job.mistrusted += 1
        if job.mistrusted >= MISTRUSTED_WORKERS or not (self._idle or self._busy or self._starting):
            cause = getattr(error, "cause", None)
            raise (cause if isinstance(cause, MachineError) else error) from error
        self._again("machine", job.key, error)

    def _failed(self, job: Job[Worker, Result], error: Exception) -> Job[Worker, Result]:
        """What an actor raised: worth another try, or the end."""
        if isinstance(error, PipelineError):
            job.failures += 1
            # Ray raises a class of its own that has the cause's type, not its attributes.
            if isinstance(error, StorageError) and getattr(error, "cause", error).transient and job.failures < TASK_RETRIES:
                self._again("storage", job.key, error)
                self._slow_down()
                return job
        elif isinstance(error, self._ray.exceptions.RayError):
            raise WorkersError(f"{job.key} failed: {_sentence(error)}") from error
        # What the worker raised, not Ray's wrapping of it with a page of its calls.
        cause = getattr(error, "cause", None)
        raise (cause if isinstance(cause, Exception) else error) from error


def _sentence(error: BaseException) -> str:
    """What an error says, without the page of calls and colours that Ray puts around it."""
    cause = getattr(error, "cause", None)
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(cause if isinstance(cause, Exception) else error)).strip()
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [type(error).__name__]
    # Of a traceback the last line is the error itself.
    line = lines[-1 if any("Traceback" in line or ", in " in line or "::" in line for line in lines) else 0]
    return re.sub(r"^(?:[A-Za-z_]+\.)+([A-Z]\w+): ", r"\1: ", line)[:400]


def _answer(trials: Trials[Worker, Result], *, survived: bool | None) -> Job[Worker, Result]:
    """The next try, or the job that all of them lead to; `survived` is None at the start."""
    try:
        following = next(trials) if survived is None else trials.send(survived)
    except StopIteration as end:
        found: Job[Worker, Result] = end.value
        return found
    following.trials = trials
    return following


class _Holder:
    """Runs inside Ray: builds the object once, does jobs with it."""

    def __init__(self, home: str, factory: Callable[..., Any], *args: Any) -> None:
        if (found := _home()) != home:
            raise WorkersError(f"a worker runs the code at {found}, the driver that at {home}: something comes before it on the workers' path")
        self._held = factory(*args)

    def ready(self) -> tuple[str, ...]:
        return remarks_of(self._held)

    def call(self, work: Callable[[Any], Any]) -> Any:
        return work(self._held)
