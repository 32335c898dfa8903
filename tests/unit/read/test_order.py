"""The order of a stream: every row once, whoever reads it, the same for the same seed, and what a loader has given of it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from pipeline.read import order

EDGES = [0, 7, 7, 40, 90, 91, 120]


def all_parts(seed: int, epoch: int, ranks: int, workers: int, buffer: int, *, even: bool = False) -> list[list[int]]:
    rows = order.of_epoch(EDGES, seed, epoch, shuffle=True)
    found = []
    for rank in range(ranks):
        ours = order.cut(rows, rank, ranks, even=even)
        found += [list(order.buffered(order.cut(ours, w, workers), buffer, (seed, epoch, rank, w))) for w in range(workers)]
    return found


@given(ranks=st.integers(1, 5), workers=st.integers(1, 4), buffer=st.integers(1, 200), epoch=st.integers(0, 3))
def test_every_row_is_there_once(ranks: int, workers: int, buffer: int, epoch: int) -> None:
    parts = all_parts(3, epoch, ranks, workers, buffer)
    assert sorted(row for part in parts for row in part) == list(range(120))
    assert parts == all_parts(3, epoch, ranks, workers, buffer)


def test_even_ranks_are_of_one_length() -> None:
    assert {len(part) for part in all_parts(0, 0, 7, 1, 10, even=True)} == {17}
    assert {len(part) for part in all_parts(0, 0, 7, 1, 10)} == {17, 18}


def test_seeds_and_epochs_change_the_order() -> None:
    orders = [all_parts(seed, epoch, 1, 1, 20)[0] for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(map(tuple, orders))) == 4
    assert order.of_epoch(EDGES, 0, 0, shuffle=False).tolist() == list(range(120))


def test_a_buffer_shuffles_no_further_than_it_reaches() -> None:
    rows = np.arange(20_000)
    found = list(order.buffered(rows, 100, (1,)))
    assert all(row < place + 100 for place, row in enumerate(found))
    assert list(order.buffered(rows, 1, (1,))) == rows.tolist()
    assert np.mean(np.abs(np.array(found) - rows)) > 30


class Numbers(IterableDataset[int]):
    """Each worker gives its own numbers: hundreds say which."""

    def __init__(self, lengths: list[int]) -> None:
        self.lengths = lengths

    def __iter__(self):  # type: ignore[no-untyped-def]
        info = get_worker_info()
        worker = 0 if info is None else info.id
        return iter(range(100 * worker, 100 * worker + self.lengths[worker]))


@pytest.mark.parametrize(("lengths", "drop_last"), [([7, 4], False), ([2, 7], True)])
def test_what_a_loader_has_given_is_known(lengths: list[int], drop_last: bool) -> None:
    loader = DataLoader(Numbers(lengths), batch_size=2, num_workers=len(lengths), drop_last=drop_last, multiprocessing_context="fork")
    taken = [0] * len(lengths)
    assert order.delivered(lengths, 0, 2)[0] == taken
    for count, batch in enumerate(loader, 1):
        for value in batch.tolist():
            taken[value // 100] += 1
        assert order.delivered(lengths, count, 2, drop_last=drop_last)[0] == taken
