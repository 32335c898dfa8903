from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import BudgetInfeasibleError
from pipeline.rate import OBJECTIVES, CurveSet, allocate, mse_of_psnr, q_for_psnr


def curves(count: int, seed: int = 0, anchors: int = 12) -> CurveSet:
    rng = np.random.default_rng(seed)
    q = np.arange(anchors, dtype=np.float64)
    pixels = rng.integers(10_000, 400_000, count).astype(np.float64)
    size = pixels[:, None] * 0.03 * rng.lognormal(0, 0.6, count)[:, None] * np.exp(0.3 * q * rng.uniform(0.8, 1.2, count)[:, None]) + 768
    mse = 90 * rng.lognormal(0, 0.6, count)[:, None] * np.exp(-0.4 * q * rng.uniform(0.8, 1.2, count)[:, None])
    return CurveSet.from_anchors(q, size, mse, pixels, np.full(count, 1e9))


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 30), st.integers(0, 1000), st.floats(1.01, 20), st.sampled_from(OBJECTIVES))
def test_never_over_and_monotone_in_the_budget(count: int, seed: int, slack: float, objective: str) -> None:
    images = curves(count, seed)
    least = images.stored[:, 0].sum()
    small = allocate(images, least * slack, objective=objective)
    large = allocate(images, least * slack * 1.1, objective=objective)
    assert small.total_bytes <= least * slack
    assert large.total_bytes <= least * slack * 1.1
    measure = {
        "mse": lambda a: -(a.mse * images.pixels).sum(),
        "psnr": lambda a: -np.log(a.mse + 1e-9).sum(),
        "minimum": lambda a: -a.mse.max(),
    }[objective]
    assert measure(large) >= measure(small) - 1e-9 * abs(measure(small))


@pytest.mark.parametrize("seed", range(5))
def test_equal_slope_is_as_good_as_brute_force(seed: int) -> None:
    """On hull vertices exhaustive search can only win what lies between two vertices of one image: compare totals at the bytes we used."""
    rng = np.random.default_rng(seed)
    q = np.arange(4, dtype=np.float64)
    stored = np.cumsum(rng.uniform(100, 1000, (4, 4)), axis=1)
    mse = np.cumsum(rng.uniform(1, 10, (4, 4)), axis=1)[:, ::-1].copy()
    images = CurveSet(q, stored, mse, np.ones(4), np.full(4, 1e12))
    for budget in np.linspace(stored[:, 0].sum(), stored[:, -1].sum(), 7):
        ours = allocate(images, float(budget))
        best = min(
            sum(mse[i, j] for i, j in enumerate(choice))
            for choice in itertools.product(range(4), repeat=4)
            if sum(stored[i, j] for i, j in enumerate(choice)) <= ours.total_bytes + 1e-6
        )
        assert ours.mse.sum() <= best + 1e-9


def test_floors_are_kept_and_reported() -> None:
    images = curves(40, 3)
    budget = images.stored[:, 40].sum()
    floored = allocate(images, budget, min_psnr_db=33.0)
    assert (floored.mse <= mse_of_psnr(33.0)).all()
    assert floored.total_bytes <= budget
    assert set(floored.clamped) <= {"none", "floor", "cap"}
    assert "floor" in set(floored.clamped)


def test_impossible_budgets_name_the_least_and_the_guilty() -> None:
    images = curves(20, 4)
    images.stored[7] *= 50
    with pytest.raises(BudgetInfeasibleError) as caught:
        allocate(images, 1000.0)
    assert caught.value.least_bytes == pytest.approx(images.stored[:, 0].sum())  # type: ignore[attr-defined]
    assert caught.value.blame[0] == 7  # type: ignore[attr-defined]
    assert caught.value.exit_code == 4


def test_an_original_that_is_smaller_is_kept() -> None:
    images = curves(10, 5)
    images.original[4] = images.stored[4, 0] * 0.5
    chosen = allocate(images, images.stored[:, 50].sum())
    assert np.isinf(chosen.q[4])
    assert chosen.mse[4] == 0


def test_plenty_of_budget_means_best_quality() -> None:
    images = curves(10, 6)
    chosen = allocate(images, 1e12)
    assert chosen.total_bytes <= 1e12
    assert (np.isinf(chosen.q) | (chosen.q == 11)).all()


def test_weights_shift_quality() -> None:
    images = curves(10, 7)
    weights = np.ones(10)
    weights[2] = 50
    budget = float(images.stored[:, 40].sum())
    assert allocate(images, budget, weights=weights).q[2] > allocate(images, budget).q[2]


def test_the_order_of_images_does_not_matter() -> None:
    images = curves(50, 8)
    order = np.random.default_rng(0).permutation(50)
    budget = float(images.stored[:, 30].sum())
    assert np.array_equal(allocate(images, budget).q[order], allocate(images.take(order), budget).q)


def test_q_for_psnr_is_the_least_that_reaches_it() -> None:
    images = curves(30, 9)
    for target in (30.0, 36.0, 90.0):
        q = q_for_psnr(images, target)
        for i in range(30):
            reached = np.exp(np.interp(q[i], images.q, np.log(images.mse[i]))) <= mse_of_psnr(target) * 1.0001
            assert reached or q[i] == 11
            assert q[i] == 0 or q[i] == 11 or np.exp(np.interp(q[i] - 0.01, images.q, np.log(images.mse[i]))) > mse_of_psnr(target)


def test_no_images_need_no_bytes() -> None:
    empty = CurveSet.from_anchors(np.arange(3.0), np.empty((0, 3)), np.empty((0, 3)), np.empty(0), np.empty(0))
    assert allocate(empty, 10.0).total_bytes == 0
