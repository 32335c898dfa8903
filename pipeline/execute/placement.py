"""Where a run's work is done: in this process, in processes of this machine, or on Ray, here or on a cluster."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from pipeline.execute import connection, processes
from pipeline.execute.base import Executor, Listener, Worker, processors
from pipeline.execute.connection import Resources
from pipeline.execute.inprocess import InProcess
from pipeline.execute.processes import Processes
from pipeline.execute.ray import Ray
from pipeline.store import options

DEVICE_WORKERS = 3
"""In one process, on one GPU: while one writes its shard or waits for files, the others keep the device busy."""

_FEW_PROCESSORS = 4


def _threads(workers: int) -> int:
    """Threads of each worker of this process, for its layers. On a few cores each has as many as there are, so that whoever works alone at the end
    has all of them; on many that would be hundreds, whose hand-overs of one interpreter's lock cost more than they bring (16 workers of 16 threads:
    half as long again as 2 of 2, on two cores)."""
    return processors() if processors() <= _FEW_PROCESSORS else max(1, processors() // workers)


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Who shall do the work.

    Attributes:
        executor: `ray`; `processes` of this machine; `local` for this process alone; or `auto`: Ray for what only Ray does (a cluster, GPUs, memory,
            labels), processes for the rest, and this process for small work where processes would take longer to start than it takes.
        cluster: Ray address, or None for a Ray of this machine.
        workers: How many, or None for all that fit.
        resources: Of each worker on Ray.
        mixed: Of as many workers as fit, those on GPUs have these resources, as far as there are GPUs, and the others none.
    """

    executor: str = "auto"
    cluster: str | None = None
    workers: int | None = None
    resources: Resources = field(default_factory=Resources)
    mixed: bool = False

    def on_device(self, device: str) -> Placement:
        """For workers that compute on `cpu`, on `cuda`, a GPU each unless a part was asked for, or on `auto`, GPUs where there are some."""
        if device == "cpu":
            return self
        return replace(self, resources=self.resources if self.resources.gpus else replace(self.resources, gpus=1.0), mixed=device == "auto")

    def in_process(self, *, small: bool) -> bool:
        """Whether this process does the work.

        Args:
            small: The work takes less time than others to start.
        """
        if self.executor != "auto":
            return self.executor == "local"
        nothing_else = self.cluster is None and self.workers is None and self.resources in (Resources(), Resources(gpus=1.0))
        # Where it costs nothing small work too is done by processes: what kills one of them does not end the run.
        return small and nothing_else and not (self.in_processes() and processes.forks_at_once())

    def in_processes(self) -> bool:
        """Whether processes of this machine can do the work, if this one does not."""
        if self.executor != "auto":
            return self.executor == "processes"
        return processes.available() and self.cluster is None and self.resources == Resources()

    def open(
        self, factory: Callable[..., Worker], *args: Any, jobs: int, small: bool, at_once: int | None = None, listener: Listener | None = None
    ) -> tuple[Executor[Worker], int]:
        """Workers, and how many they are.

        Args:
            factory: Makes what a worker holds. Its last argument, after `args`, is the number of threads that the worker may use.
            args: Picklable.
            jobs: How many there will be: more workers than this would be idle.
            small: See `in_process`.
            at_once: Most workers in this process; None for one a core.
            listener: See `base.Listener`.

        Raises:
            WorkersError: Ray cannot be reached, or has no room; or no process can be started.
        """
        if found := options.known():
            # A cluster's machines have roles of their own: what is no secret goes there.
            sent = found if self.cluster is None else {address: connection.without_secrets(each) for address, each in found.items()}
            factory = partial(options.equipped, sent, factory)
        if self.in_process(small=small):
            workers = max(1, min(at_once or processors(), jobs))
            return InProcess(factory, *args, _threads(workers), workers=workers, listener=listener), workers
        if self.in_processes():
            workers = max(1, min(self.workers or processors(), jobs))
            return Processes(workers, factory, *args, _threads(workers), listener=listener), workers
        if self.mixed:
            return self._opened_mixed(factory, *args, jobs=jobs, listener=listener)
        workers = min(connection.connect(self.cluster, self.workers, self.resources), max(1, jobs))
        return Ray(workers, factory, *args, 1, resources=self.resources, listener=listener), workers

    def _opened_mixed(self, factory: Callable[..., Worker], *args: Any, jobs: int, listener: Listener | None) -> tuple[Executor[Worker], int]:
        workers = min(connection.connect(self.cluster, self.workers, replace(self.resources, gpus=0.0)), max(1, jobs))
        on_gpus = min(workers, connection.fitting(self.resources))
        return Ray(on_gpus, factory, *args, 1, resources=self.resources, beside=workers - on_gpus, listener=listener), workers


def device_workers(device: str) -> int | None:
    """How many workers of this process keep its GPU busy; None for one a core, where there is no GPU to be used."""
    if device == "auto":
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
    return None if device == "cpu" else DEVICE_WORKERS
