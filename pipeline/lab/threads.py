"""How many threads a training step is quickest with, on a machine that others use too."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_WARM_STEPS = 2
"""The first steps prepare kernels, and an optimiser's bases."""

_TRIED_STEPS = 2
"""With each number of threads; the quicker counts, for every tenth step of the optimiser does more."""

_HOPELESS = 2.0
"""So many times as long as alone is not tried a second time."""

_HELD_STEPS = 50
"""Until the next trial, after the first; twice as many after each that changes nothing."""


class Threads:
    """One thread, or all: whichever was quicker when they were tried.

    Torch's threads wait for each other after every operation. Where another process takes one of two cores, two threads were seen to need 30 seconds
    for a step that one does in three, and minutes where the others have a higher priority. So one comes first, and trials of more become rare where
    they do not pay.

    Args:
        most: Threads at most.
        clock: Seconds; for tests.
    """

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._clock = clock
        self._until_trial = _WARM_STEPS
        self._held_steps = _HELD_STEPS
        self._alone: list[float] = []
        self._together: list[float] = []
        self.chosen = 1

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Around each step."""
        import torch

        if self._most == 1:
            yield
            return
        spent = None
        if self._until_trial == 0:
            spent = self._alone if len(self._alone) < _TRIED_STEPS else self._together
        torch.set_num_threads(self.chosen if spent is None else 1 if spent is self._alone else self._most)
        started = self._clock()
        yield
        if spent is None:
            self._until_trial -= 1
            return
        spent.append(self._clock() - started)
        if spent is self._together:
            self._decide()

    def _decide(self) -> None:
        """Some steps of both kinds were taken."""
        alone, together = min(self._alone), min(self._together)
        if len(self._together) < _TRIED_STEPS and together < _HOPELESS * alone:
            return
        best = self._most if together < alone else 1
        self._held_steps = 2 * self._held_steps if best == self.chosen else _HELD_STEPS
        self.chosen, self._until_trial = best, self._held_steps
        self._alone, self._together = [], []
