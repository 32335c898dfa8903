"""Where a run's work is done: in this process, or on Ray, here or on a cluster."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pipeline.execute import connection
from pipeline.execute.base import Executor, Listener, Worker, processors
from pipeline.execute.connection import Resources
from pipeline.execute.inprocess import InProcess
from pipeline.execute.ray import Ray


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Who shall do the work.

    Attributes:
        executor: `ray`; `local` for this process alone; or `auto`, which takes this process for small work that asks for nothing else.
        cluster: Ray address, or None for a Ray of this machine.
        workers: How many, or None for all that fit.
        resources: Of each worker on Ray.
    """

    executor: str = "auto"
    cluster: str | None = None
    workers: int | None = None
    resources: Resources = field(default_factory=Resources)

    def in_process(self, *, small: bool) -> bool:
        """Whether this process does the work.

        Args:
            small: The work takes less time than Ray to start.
        """
        if self.executor != "auto":
            return self.executor == "local"
        return small and self.cluster is None and self.workers is None and self.resources == Resources()

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
            WorkersError: Ray cannot be reached, or has no room.
        """
        if self.in_process(small=small):
            workers = max(1, min(at_once or processors(), jobs))
            # Each has threads for its layers too: whoever works alone at the end has all cores.
            return InProcess(factory, *args, processors(), workers=workers, listener=listener), workers
        workers = min(connection.connect(self.cluster, self.workers, self.resources), max(1, jobs))
        return Ray(workers, factory, *args, 1, resources=self.resources, listener=listener), workers
