from __future__ import annotations

import numpy as np
import pytest

from pipeline.archive.shard import BLOCK_BYTES, stored_bytes
from pipeline.plan.trim import Trimmer


class Images:
    """Sizes that grow with q as real ones do, with noise, in blocks of 512."""

    def __init__(self, count: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.base = rng.uniform(3_000, 40_000, count)
        self.slope = rng.uniform(0.2, 0.4, count)
        self.last = [0.0] * count
        self.calls = 0

    def encode(self, i: int, q: float) -> int:
        self.calls += 1
        self.last[i] = q
        wobble = 1 + 0.002 * np.sin(977 * q + i)
        return stored_bytes(int(self.base[i] * np.exp(self.slope[i] * q) * wobble))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("error", [-0.15, -0.01, 0.0, 0.01, 0.15])
def test_ends_within_one_block_below_the_limit(seed: int, error: float) -> None:
    count = 1 + seed % 8
    images = Images(count, seed)
    trimmer = Trimmer(images.encode, [5.0] * count, [(0.0, 11.0)] * count)
    limit = int(sum(trimmer.sizes) * (1 + error)) + 17
    assert trimmer.run(limit, set())
    assert limit - 2 * BLOCK_BYTES < sum(trimmer.sizes) <= limit
    assert trimmer.q == images.last
    assert images.calls < 8 * count + 40


def test_pinned_images_stay() -> None:
    images = Images(4, 0)
    trimmer = Trimmer(images.encode, [5.0] * 4, [(0.0, 11.0)] * 4)
    kept = trimmer.sizes[1]
    assert trimmer.run(int(sum(trimmer.sizes) * 0.8), {1})
    assert (trimmer.q[1], trimmer.sizes[1]) == (5.0, kept)


def test_impossible_limits_are_admitted() -> None:
    images = Images(3, 1)
    trimmer = Trimmer(images.encode, [5.0] * 3, [(0.0, 11.0)] * 3)
    assert not trimmer.run(1000, set())
    assert trimmer.q == [0.0] * 3


def test_a_limit_above_the_best_quality_is_left_unused() -> None:
    images = Images(3, 2)
    trimmer = Trimmer(images.encode, [5.0] * 3, [(0.0, 11.0)] * 3)
    assert trimmer.run(10**9, set())
    assert trimmer.q == [11.0] * 3
    assert Trimmer(images.encode, [], []).run(0, set())
