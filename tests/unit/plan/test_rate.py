from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import BudgetInfeasibleError
from pipeline.plan.allocation import OBJECTIVES, Limits, Upgrades, allocate, tie_breaks
from pipeline.plan.curves import CurveSet, mse_of_psnr, q_for_psnr
from pipeline.plan.histogram import SlopeHistogram, quick_threshold, threshold_for


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
    floored = allocate(images, budget, limits=Limits(min_psnr_db=33.0))
    assert (floored.mse <= mse_of_psnr(33.0)).all()
    assert floored.total_bytes <= budget
    assert set(floored.clamped) <= {"none", "floor", "cap"}
    assert "floor" in set(floored.clamped)


def test_impossible_budgets_name_the_least_and_the_guilty() -> None:
    images = curves(20, 4)
    images.stored[7] *= 50
    with pytest.raises(BudgetInfeasibleError) as caught:
        allocate(images, 1000.0)
    assert caught.value.least_bytes == pytest.approx(images.stored[:, 0].sum())
    assert caught.value.blame[0] == 7
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


def simulated(count: int, seed: int = 0) -> CurveSet:
    """Curves with kinks: exponents that change from anchor to anchor, so that hulls matter."""
    rng = np.random.default_rng(seed)
    q = np.arange(12.0)
    pixels = rng.integers(10_000, 400_000, count).astype(np.float64)
    size = np.exp(np.log(pixels[:, None] * 0.03) + rng.normal(0, 0.6, (count, 1)) + np.cumsum(rng.uniform(0.1, 0.5, (count, 12)), axis=1))
    mse = 120 * np.exp(rng.normal(0, 0.6, (count, 1)) - np.cumsum(rng.uniform(0.15, 0.65, (count, 12)), axis=1))
    return CurveSet.from_anchors(q, size + 768, mse, pixels, size[:, 5] * rng.uniform(0.5, 40, count))


def chunks_of(images: CurveSet, objective: str, order: np.ndarray | None = None, size: int = 1000) -> list[Upgrades]:
    order = np.arange(len(images)) if order is None else order
    ties = tie_breaks(np.arange(len(images)))

    def some(part: slice) -> Upgrades:
        return Upgrades.of(images.take(order[part]), objective, ties=ties[order[part]])

    return [some(slice(start, min(start + size, len(images)))) for start in range(0, len(images), size)]


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("share", [0.05, 0.4, 0.9])
def test_histograms_find_what_the_exact_solver_finds(objective: str, share: float) -> None:
    images = simulated(30_000)
    most, least = allocate(images, 1e15).total_bytes, float(np.minimum(images.stored[:, 0], images.original).sum())
    budget = least * share + most * (1 - share)
    exact = allocate(images, budget, objective=objective).total_bytes
    parts = chunks_of(images, objective)
    threshold = threshold_for(lambda: parts, budget)
    walked = sum(part.at(threshold).total_bytes for part in parts)
    assert walked <= budget
    block = float(images.original.max())  # the exact solver stops at the first upgrade that does not fit, however large
    assert walked == pytest.approx(exact, rel=1e-4, abs=block)
    wide = SlopeHistogram()
    for part in parts:
        wide.add(part)
    quick = quick_threshold(wide, budget)
    assert sum(part.at(quick).total_bytes for part in parts) == pytest.approx(exact, rel=1e-4, abs=block)
    assert wide.cost(quick) == pytest.approx(budget, rel=1e-6)


def test_shards_may_come_in_any_order_and_leave_again() -> None:
    images = simulated(5000, 1)
    budget = float(images.stored[:, 40].sum())
    shuffled = np.random.default_rng(3).permutation(5000)
    one, other = chunks_of(images, "mse"), chunks_of(images, "mse", shuffled, 700)
    assert threshold_for(lambda: one, budget) == pytest.approx(threshold_for(lambda: other, budget), abs=1e-5)
    wide, rest = SlopeHistogram(), SlopeHistogram()
    for part in one:
        wide.add(part)
    for part in one[:2]:
        wide.add(part, -1)
    for part in one[2:]:
        rest.add(part)
    assert wide.images == rest.images == 3000
    for threshold in (-3.0, 0.5, 2.0, 40.0):
        assert wide.cost(threshold, 1.1) == pytest.approx(rest.cost(threshold, 1.1), rel=1e-9)


def test_equal_images_are_divided_too() -> None:
    one = simulated(1, 5)
    images = one.take(np.zeros(1000, np.intp))
    parts = chunks_of(images, "mse")
    budget = float(images.stored[:, 40].sum()) * 1.007
    total = sum(part.at(threshold_for(lambda: parts, budget)).total_bytes for part in parts)
    assert 0.9995 * budget < total <= budget


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 40), st.integers(0, 1000), st.sampled_from(OBJECTIVES))
def test_keys_fall_and_their_hull_is_that_of_a_naive_search(count: int, seed: int, objective: str) -> None:
    images = simulated(count, seed)
    made = Upgrades.of(images, objective)
    assert (made.key[:, 1:] <= made.key[:, :-1] + 1e-9).all()
    if objective != "mse":
        return
    error = made.mse * images.pixels[:, None]
    for threshold in np.random.default_rng(seed).uniform(-6, 8, 5):
        chosen = (made.key > threshold).sum(axis=1)
        cost = error + np.exp(threshold) * made.stored
        cost = np.where(np.arange(cost.shape[1]) <= made.kept[:, None], cost, np.inf)
        assert cost[np.arange(count), chosen] == pytest.approx(cost.min(axis=1), rel=1e-9)


def test_limits_in_decibels_bits_and_q_hold_for_one_and_for_all() -> None:
    images = curves(30, 11)
    budget = float(images.stored[:, 60].sum())
    bpp = 8 * images.stored / images.pixels[:, None]
    best = allocate(images, budget, limits=Limits(max_psnr_db=36.0))
    assert (best.mse[best.q > 0] >= mse_of_psnr(36.0) * 0.999).all()
    assert "cap" in set(best.clamped)
    bits = allocate(images, budget, limits=Limits(min_bpp=0.5, max_bpp=1.5))
    got = 8 * bits.stored / images.pixels
    assert (got[bpp[:, -1] >= 0.5] >= 0.5 - 1e-9).all()
    assert (got[bpp[:, 0] <= 1.5] <= 1.5 + 1e-9).all()
    rates = allocate(images, budget, limits=Limits(min_q=4.0, max_q=6.0))
    assert rates.q.min() >= 4
    assert rates.q.max() <= 6
    single = np.full(30, np.nan)
    single[3] = 46.0
    raised = allocate(images, budget, limits=Limits(min_psnr_db=single))
    free = allocate(images, budget)
    assert raised.mse[3] <= mse_of_psnr(46.0) < free.mse[3]
    both = allocate(images, budget, limits=Limits(min_psnr_db=38.0, max_psnr_db=30.0))
    assert (both.mse <= mse_of_psnr(38.0)).all()  # the floor wins


def test_a_flat_image_gets_no_more_than_the_least() -> None:
    images = curves(10, 12)
    images.mse[4] = 0.25
    assert allocate(images, float(images.stored[:, 40].sum())).q[4] == 0


def test_the_spline_goes_through_the_anchors() -> None:
    images = simulated(20, 2)
    assert np.all(np.diff(images.stored, axis=1) >= 0)
    assert np.all(np.diff(images.mse, axis=1) <= 0)
    straight = CurveSet.from_anchors(np.arange(5.0), np.exp(np.arange(5.0))[None], np.exp(-np.arange(5.0))[None], np.ones(1), np.full(1, 1e9))
    assert straight.stored[0] == pytest.approx(np.exp(straight.q))
