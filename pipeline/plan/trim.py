"""The trim: choose the last images' rates by what their encodings measure, so that the total ends just below its limit and never above."""

from __future__ import annotations

import math
from collections.abc import Callable

from pipeline.archive.shard import BLOCK_BYTES

_SIZE_PER_Q = 0.3
"""Natural log of size per unit of q before anything is measured: about what every image shows."""

_ROUNDS = 24
_COMMON_SHIFT_SHARE = 0.04
_Q_STEP = 1 / 1024


class Trimmer:
    """Adjusts the q of several images; sizes come from `encode`, never from an estimate.

    Args:
        encode: `encode(i, q)` codes image i at q and returns its stored bytes; the last call's result is what will be written.
        q: Planned rates.
        ranges: Least and largest q of each.
        most: Stored bytes that each cannot exceed, since its original would be kept.
    """

    def __init__(
        self, encode: Callable[[int, float], int], q: list[float], ranges: list[tuple[float, float]], most: list[float] | None = None
    ) -> None:
        self._encode = encode
        self._ranges = list(ranges)
        self._most = most or [math.inf] * len(q)
        self.q = list(q)
        self.sizes = [encode(i, value) for i, value in enumerate(q)]
        self._slopes = [_SIZE_PER_Q] * len(q)

    def _set(self, i: int, q: float) -> None:
        low, high = self._ranges[i]
        q = min(high, max(low, q))
        size = self._encode(i, q)
        if q > self.q[i] and size >= self._most[i]:
            self._ranges[i] = (low, q)
        if abs(q - self.q[i]) > 0.02 and size != self.sizes[i]:
            slope = math.log(size / self.sizes[i]) / (q - self.q[i])
            self._slopes[i] = min(1.0, max(0.05, slope))
        self.q[i], self.sizes[i] = q, size

    def run(self, limit_bytes: int, pinned: set[int]) -> bool:
        """Bring `sum(sizes)` into (limit - 512, limit] as nearly as the images allow.

        Args:
            limit_bytes: For all images together.
            pinned: Images that must stay as they are.

        Returns:
            Whether the total is within the limit.
        """
        free = [i for i in range(len(self.q)) if i not in pinned]
        for turn in range(_ROUNDS):
            gap = limit_bytes - sum(self.sizes)
            if 0 <= gap < BLOCK_BYTES:
                return True
            movable = [i for i in free if (self.q[i] < self._ranges[i][1] if gap > 0 else self.q[i] > self._ranges[i][0])]
            if not movable:
                return gap >= 0
            total = sum(self.sizes[i] for i in movable)
            if abs(gap) > _COMMON_SHIFT_SHARE * total and len(movable) > 1:
                shift = gap / sum(self.sizes[i] * self._slopes[i] for i in movable)
                for i in movable:
                    self._set(i, self.q[i] + max(-2.0, min(2.0, shift)))
                continue
            # One image takes up the rest, the large ones in turn; aim at the middle of the last block.
            movable.sort(key=lambda i: -self.sizes[i])
            i = movable[turn % min(len(movable), 4)]
            wanted = max(BLOCK_BYTES * 1.5, self.sizes[i] + gap - BLOCK_BYTES / 2)
            step = math.log(wanted / self.sizes[i]) / self._slopes[i]
            if abs(step) < _Q_STEP:
                step = math.copysign(_Q_STEP, gap)
            self._set(i, self.q[i] + max(-2.0, min(2.0, step)))
        while sum(self.sizes) > limit_bytes and (movable := [i for i in free if self.q[i] > self._ranges[i][0]]):
            i = max(movable, key=lambda j: self.sizes[j])
            over = sum(self.sizes) - limit_bytes
            self._set(i, self.q[i] - max(_Q_STEP, 1.5 * over / (self.sizes[i] * self._slopes[i])))
        return sum(self.sizes) <= limit_bytes
