"""Workers on Ray: actors that hold a model each, on this machine or a cluster's. Pixels never enter the object store."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from pipeline.execute.base import Listener, Worker, WorkersError, remarks_of
from pipeline.execute.connection import Resources
from pipeline.execute.pool import DiedError, Pool, sentence


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


class Ray(Pool[Worker]):
    """Actors that each hold `factory(*args)`.

    Args:
        size: Number of actors.
        factory: Picklable callable; runs inside the actor.
        args: Its arguments; they travel through the object store once.
        resources: Of each actor.
        beside: Further actors, which have the same but no GPU, and see none.
        listener: See `Pool`.
    """

    def __init__(
        self,
        size: int,
        factory: Callable[..., Worker],
        *args: Any,
        resources: Resources | None = None,
        beside: int = 0,
        listener: Listener | None = None,
    ) -> None:
        super().__init__(listener)
        import ray

        self._ray = ray
        errors = ray.exceptions
        self._deadly = (errors.RayActorError, errors.OutOfMemoryError, errors.NodeDiedError, errors.WorkerCrashedError)
        self._resources = resources or Resources()
        self._on_cpu: set[Any] = set()
        self._shared = [ray.put(arg) for arg in args]
        self._home = _home()
        self._factory = factory
        self._counters = Counters()
        for _ in range(size):
            self._start_one(on_cpu=False)
        for _ in range(beside):
            self._start_one(on_cpu=True)

    def _start_one(self, *, on_cpu: bool) -> None:
        resources = replace(self._resources, gpus=0.0) if on_cpu else self._resources
        holder: Any = self._ray.remote(_Holder).options(max_restarts=0, **resources.options())
        actor = holder.remote(self._home, on_cpu, self._factory, *self._shared)
        if on_cpu:
            self._on_cpu.add(actor)
        self._starting[actor.ready.remote()] = actor

    def _start(self, instead_of: Any = None) -> None:
        self._start_one(on_cpu=instead_of in self._on_cpu)
        self._on_cpu.discard(instead_of)

    def _ask(self, worker: Any, work: Callable[[Worker], Any]) -> Any:
        return worker.call.remote(work)

    def _wait(self, asked: Sequence[Any], timeout: float) -> Sequence[Any]:
        ready, _ = self._ray.wait([*asked], num_returns=1, timeout=timeout)
        return ready

    def _get(self, asked: Any) -> Any:
        try:
            return self._ray.get(asked)
        except self._deadly as error:
            raise DiedError(
                sentence(error), preempted=bool(getattr(error, "preempted", False)), hopeless=bool(getattr(error, "actor_init_failed", False))
            ) from error
        except self._ray.exceptions.RayTaskError as error:
            # What the worker raised, not Ray's wrapping of it with a page of its calls, which has the cause's type and not its attributes.
            if isinstance(error.cause, Exception):
                raise error.cause from error
            raise

    def _end(self, worker: Any) -> None:
        self._ray.kill(worker)

    def count(self, name: str, value: float, **tags: str) -> None:
        """Add to a metric of the run, which Prometheus finds at every node."""
        self._counters.add(name, value, **tags)


class _Holder:
    """Runs inside Ray: builds the object once, does jobs with it."""

    def __init__(self, home: str, without_gpus: bool, factory: Callable[..., Any], *args: Any) -> None:
        if without_gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # of a machine that has some: they are other actors'
        if (found := _home()) != home:
            raise WorkersError(f"a worker runs the code at {found}, the driver that at {home}: something comes before it on the workers' path")
        self._held = factory(*args)

    def ready(self) -> tuple[str, ...]:
        return remarks_of(self._held)

    def call(self, work: Callable[[Any], Any]) -> tuple[Any, tuple[str, ...]]:
        # What it has to say may change while it works: a GPU may fail.
        return work(self._held), remarks_of(self._held)
