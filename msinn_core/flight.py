"""Batches side by side: like items are gathered, several batches are under way at once, and items come out in the order in which they went in.

```
items --> gathered by size --> full, or the first in line waits for it: run(batch) in a thread --> items, in their order
```
A batch that waits for the host leaves the device to another one; that is why there are several.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from msinn_core.engine import BatchEngine
from msinn_core.errors import DeviceMemoryError

T = TypeVar("T")
R = TypeVar("R")

IN_FLIGHT = 3
"""Batches under way at once, of one engine. Measured on an H200: a second hides most of the host's time, a fourth nothing more."""

MOST_PICTURES = 32
"""Of a batch. An H200 codes 96 at once no faster (`infra/gpu/README.md`)."""


@dataclass
class _Batch(Generic[T]):
    """Items of one size; `future` once they are under way."""

    size: Hashable
    items: list[T] = field(default_factory=list)
    pixels: int = 0
    future: Future[None] | None = None


def in_batches(
    items: Iterable[T],
    size_of: Callable[[T], tuple[int, int] | None],
    run: Callable[[list[T]], None],
    engine: BatchEngine,
    *,
    most: int = MOST_PICTURES,
) -> Iterator[T]:
    """The items, in their order, each after `run` has had it in a batch of its size.

    At most `(IN_FLIGHT + 1) * most` items, and as many batches' pixels, are held at once. A batch for which the device has too little memory is run
    again in halves; one item alone raises what `run` raises.

    Args:
        items: Taken one by one, as batches are done.
        size_of: Padded height and width of an item; None for one that passes as it is.
        run: What is done with a batch, in a thread of the engine.
        engine: Of the device.
        most: Items of a batch.

    Raises:
        Exception: What `run` raises, when the first item of its batch would be next.
    """
    gathering: dict[Hashable, _Batch[T]] = {}
    line: deque[tuple[T, _Batch[T] | None]] = deque()
    held = 0

    def start(batch: _Batch[T]) -> None:
        if batch.future is None:
            gathering.pop(batch.size)  # once it is handed out nobody holds it: sizes may be as many as items
            batch.future = engine.flights.submit(_in_halves, run, batch.items)

    def first_is_done() -> bool:
        batch = line[0][1]
        return batch is None or (batch.future is not None and batch.future.done())

    def taken() -> T:
        nonlocal held
        item, batch = line.popleft()
        if batch is not None:
            start(batch)
            assert batch.future is not None
            batch.future.result()
            held -= batch.pixels // len(batch.items)
        return item

    try:
        for item in items:
            size = size_of(item)
            if size is None:
                line.append((item, None))
            else:
                batch = gathering.setdefault(size, _Batch(size))
                batch.items.append(item)
                batch.pixels += size[0] * size[1]
                held += size[0] * size[1]
                line.append((item, batch))
                if len(batch.items) >= most or batch.pixels + size[0] * size[1] > engine.most_pixels:
                    start(batch)
            while line and (first_is_done() or len(line) >= (IN_FLIGHT + 1) * most or held > (IN_FLIGHT + 1) * engine.most_pixels):
                yield taken()
        for batch in list(gathering.values()):
            start(batch)
        while line:
            yield taken()
    finally:
        _settle(batch.future for _, batch in line if batch is not None and batch.future is not None)


def _in_halves(run: Callable[[list[T]], None], items: list[T]) -> None:
    """`run`, in halves where the device's memory is too small for all."""
    try:
        run(items)
    except DeviceMemoryError:
        if len(items) == 1:
            raise
        for half in (items[: len(items) // 2], items[len(items) // 2 :]):
            _in_halves(run, half)


def _settle(futures: Iterable[Future[None]]) -> None:
    """Nothing of what is left is wanted: what has not begun does not begin, and what has is waited for."""
    for future in {id(future): future for future in futures}.values():
        if not future.cancel():
            future.exception()


def ahead(make: Callable[[T], R], tasks: Iterable[T], threads: Executor, number: int) -> Iterator[R]:
    """`make` of every task, in their order, `number` of them begun ahead in threads."""
    waiting: deque[Future[R]] = deque()
    for task in tasks:
        waiting.append(threads.submit(make, task))
        if len(waiting) > number:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
