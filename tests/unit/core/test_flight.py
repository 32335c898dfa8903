"""Batches under way side by side: order, bounds, and what becomes of a batch that fails."""

from __future__ import annotations

import itertools
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from msinn_core.errors import DeviceMemoryError
from msinn_core.flight import IN_FLIGHT, MOST_PICTURES, in_batches


@pytest.fixture
def engine() -> Iterator[Any]:
    with ThreadPoolExecutor(IN_FLIGHT) as flights:
        yield SimpleNamespace(flights=flights, most_pixels=10**6)


def size_of(item: int) -> tuple[int, int] | None:
    """Three sizes; every fifth item passes."""
    return None if item % 5 == 0 else (32, 32 * (1 + item % 3))


def test_items_come_in_order_after_a_batch_of_their_size(engine: Any) -> None:
    batches: list[list[int]] = []

    def run(items: list[int]) -> None:
        time.sleep(0.002 * (items[0] % 4))
        batches.append(list(items))

    seen = []
    for item in in_batches(range(100), size_of, run, engine, most=4):
        seen.append(item)
        assert item % 5 == 0 or any(item in batch for batch in batches)
    assert seen == list(range(100))
    assert sorted(item for batch in batches for item in batch) == [item for item in range(100) if item % 5]
    assert all(len({size_of(item) for item in batch}) == 1 for batch in batches)
    assert max(map(len, batches)) == 4


@pytest.mark.parametrize(("most", "most_pixels", "held"), [(2, 10**6, 2 * (IN_FLIGHT + 1)), (32, 3 * 32 * 32, 3 * (IN_FLIGHT + 1) + 1)])
def test_no_more_are_held_than_the_bounds_say(engine: Any, most: int, most_pixels: int, held: int) -> None:
    engine.most_pixels = most_pixels
    taken = given = largest = 0
    sizes = []

    def items() -> Iterator[int]:
        nonlocal taken, largest
        for item in range(60):
            taken += 1
            largest = max(largest, taken - given)
            yield item

    for _ in in_batches(items(), lambda item: (32, 32), lambda batch: sizes.append(len(batch)), engine, most=most):
        given += 1
    assert largest <= held + 1
    assert max(sizes) == min(most, 3)


def test_an_odd_one_does_not_wait_for_others_of_its_size(engine: Any) -> None:
    """The first in line alone has its size: the others are not held up until the source ends."""
    taken = []

    def items() -> Iterator[int]:
        for item in range(1000):
            taken.append(item)
            yield item

    line = in_batches(items(), lambda item: (32, 64) if item == 0 else (32, 32), lambda batch: None, engine, most=4)
    assert next(line) == 0
    assert len(taken) < 40
    line.close()  # type: ignore[attr-defined]


def test_several_are_under_way_at_once(engine: Any) -> None:
    together = threading.Barrier(IN_FLIGHT, timeout=10)
    assert len(list(in_batches(range(2 * IN_FLIGHT), lambda item: (32, 32), lambda batch: bool(together.wait()), engine, most=2))) == 2 * IN_FLIGHT


def test_too_little_memory_halves_and_the_last_one_raises(engine: Any) -> None:
    sizes = []

    def run(items: list[int]) -> None:
        sizes.append(len(items))
        if len(items) > 2 or 6 in items:
            raise DeviceMemoryError("no room")

    line = in_batches([1, 2, 3, 4, 5, 7, 8, 6], lambda item: (32, 32), run, engine, most=4)
    assert [next(line) for _ in range(4)] == [1, 2, 3, 4]
    with pytest.raises(DeviceMemoryError, match="no room"):
        next(line)
    assert sorted(sizes) == [1, 1, 2, 2, 2, 2, 4, 4]


def test_what_fails_is_raised_at_its_turn_and_the_rest_is_waited_for(engine: Any) -> None:
    running, ended = threading.Semaphore(0), []

    def run(items: list[int]) -> None:
        if items[0] == 2:
            raise ValueError("broken")
        running.release()
        time.sleep(0.05)
        ended.append(items[0])

    line = in_batches(range(12), lambda item: (32, 32), run, engine, most=1)
    with pytest.raises(ValueError, match="broken"):
        list(line)
    assert {0, 1} <= set(ended)
    before = len(ended)
    time.sleep(0.15)
    assert len(ended) == before, "a batch went on after its reader had gone"


def test_what_was_handed_out_is_held_no_longer_whatever_the_sizes(engine: Any) -> None:
    class Item:
        pass

    seen: list[weakref.ref[Item]] = []

    def items() -> Iterator[Item]:
        for _ in range(300):
            item = Item()
            seen.append(weakref.ref(item))
            yield item

    sizes = itertools.count(1)
    line = in_batches(items(), lambda item: (32 * next(sizes), 32), lambda batch: None, engine)
    most = 0
    for item in line:
        del item
        most = max(most, sum(ref() is not None for ref in seen))
    assert len(seen) == 300
    assert most <= (IN_FLIGHT + 1) * MOST_PICTURES + 2
