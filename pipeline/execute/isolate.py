"""Finding what kills workers, by halving."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

from pipeline.execute.base import Job, Worker

Element = TypeVar("Element")


def isolate(part: Sequence[Element], attempt: Callable[[Sequence[Element]], Job[Worker, Any]]) -> Generator[Job[Worker, Any], bool, Element | None]:
    """For `Job.split`: the element that kills workers; None if none of them does when tried again.

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
