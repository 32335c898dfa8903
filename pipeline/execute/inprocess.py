"""Workers that are threads of this process."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any, Generic

from pipeline.errors import StorageError
from pipeline.execute.base import TASK_RETRIES, Job, Listener, Remarks, Result, Worker, remarks_of
from pipeline.store.errors import back_off

_Answers = queue.SimpleQueue[tuple[str, int, Job[Any, Any], Any]]
_Inbox = queue.SimpleQueue[tuple[int, Job[Any, Any], _Answers] | None]


class InProcess(Generic[Worker]):
    """For small runs, which take less time than others to start, and for workers of one GPU. The kernels release the GIL.

    What ends a worker ends the run; images are decoded in a process of their own all the same, and what is committed stays.

    Args:
        factory: Makes the object that does a worker's jobs; called in its thread, when the first job comes.
        args: Its arguments.
        workers: How many.
        listener: Told what is done again, and what a worker remarks.
    """

    def __init__(self, factory: Callable[..., Worker], *args: Any, workers: int = 1, listener: Listener | None = None) -> None:
        self._listener = listener
        self._remarks = Remarks(listener)
        self._inboxes: list[_Inbox] = [queue.SimpleQueue() for _ in range(workers)]
        for inbox in self._inboxes:
            # Daemons: an interrupted run need not wait for the image in hand, which is in no shard yet.
            threading.Thread(target=_work, args=(inbox, factory, args), daemon=True).start()

    def run(
        self,
        following: Callable[[], Job[Worker, Result] | None],
        done: Callable[[Result], None],
        tick: Callable[[], None] | None = None,
    ) -> None:
        # Of this run alone: what a job of an earlier one, which failed, still has to say is not wanted.
        answers: _Answers = queue.SimpleQueue()
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
                if kind == "remarks":
                    self._remarks.add(value)
                elif kind == "result":
                    idle.append(worker)
                    done(value)
                elif self._listener is not None:
                    self._listener.trouble("storage", job.key, value)
            if tick is not None:
                tick()

    def count(self, name: str, value: float, **tags: str) -> None:
        pass

    def close(self) -> None:
        for inbox in self._inboxes:
            inbox.put(None)


def _work(inbox: _Inbox, factory: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """A thread: jobs until None comes."""
    held: Any = None
    while (asked := inbox.get()) is not None:
        worker, job, answers = asked
        try:
            if held is None:
                held = factory(*args)
                answers.put(("remarks", worker, job, remarks_of(held)))
            for attempt in range(TASK_RETRIES):
                try:
                    result = job.work(held)
                    answers.put(("remarks", worker, job, remarks_of(held)))  # a GPU may have failed meanwhile
                    answers.put(("result", worker, job, result))
                    break
                except StorageError as error:
                    if not error.transient or attempt == TASK_RETRIES - 1:
                        raise
                    answers.put(("trouble", worker, job, str(error)))
                    back_off(attempt + 2)
        except BaseException as error:  # it is the caller's: raised there
            answers.put(("error", worker, job, error))
