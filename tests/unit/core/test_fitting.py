"""Tables fitted to symbols: what they promise of any counts, what they gain on symbols that are not Gaussian, and on a model's own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from msinn_core import calibration
from msinn_core.codec import Codec
from msinn_core.entropy import rans
from msinn_core.entropy.fitting import blended, fitted, histogram
from msinn_core.entropy.tables import Tables, gaussian_tables
from msinn_core.model_file import LoadedModel
from msinn_core.picture import Picture

PRIOR = gaussian_tables()
FAR = np.array([0, 1, -1, 600, -600, 2**31 - 1, -(2**31)], np.int32)


def _laplacian(count: int, seed: int) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
    """Symbols with heavier tails than their tables' Gaussians, of the same deviation."""
    rng = np.random.default_rng(seed)
    scales = np.exp(rng.uniform(np.log(0.2), np.log(50), count)).astype(np.float32)
    return np.round(rng.laplace(0, scales / np.sqrt(2))).astype(np.int32), PRIOR.indexes(scales)


def _counts(num_pictures: int) -> list[NDArray[np.int64]]:
    return [histogram(PRIOR, *_laplacian(20_000, seed)) for seed in range(num_pictures)]


def test_other_symbols_of_the_same_kind_take_fewer_bytes() -> None:
    tables = fitted(PRIOR, _counts(20))
    symbols, indexes = _laplacian(200_000, 1000)
    gaussian, better = rans.encode(symbols, indexes, PRIOR), rans.encode(symbols, indexes, tables)
    assert np.array_equal(rans.decode(better, indexes, tables), symbols)
    # The divergence of a Laplacian from the Gaussian of its deviation is 0.1 bit; rounding leaves some 3 % of the bits of these.
    assert len(better) < 0.985 * len(gaussian)


def test_a_histogram_counts_every_symbol_once_and_far_ones_as_escapes() -> None:
    counts = histogram(PRIOR, FAR, np.zeros(len(FAR), np.uint8))
    first = counts[: PRIOR.starts[1] - 1]
    assert counts.sum() == first.sum() == len(FAR)
    centre = -int(PRIOR.offsets[0])
    assert first[[centre - 1, centre, centre + 1, -1]].tolist() == [1, 1, 1, 4]


def test_without_symbols_the_tables_are_the_priors() -> None:
    same = blended(PRIOR, np.zeros(len(PRIOR.cdf) - 1, np.int64), 16.0)
    assert np.array_equal(same.cdf, PRIOR.cdf)


def test_symbols_of_one_sign_say_as_much_about_the_other() -> None:
    tables = blended(PRIOR, histogram(PRIOR, np.full(1000, 3, np.int32), np.full(1000, 60, np.uint8)), 16.0)
    widths, centre = np.diff(tables.table(60).astype(np.int64)), -int(tables.offsets[60])
    # The sum is even and the centre may be odd: one count has to go somewhere.
    assert abs(widths[centre + 3] - widths[centre - 3]) <= 1
    assert widths[centre + 3] > 20_000


@given(st.lists(st.integers(0, 2**40), min_size=8, max_size=8), st.floats(1e-3, 1e9))
@settings(max_examples=8, deadline=None)
def test_any_counts_give_tables_that_code_every_symbol(values: list[int], strength: float) -> None:
    counts = np.resize(np.array(values, np.int64), len(PRIOR.cdf) - 1)
    tables = blended(PRIOR, counts, strength)
    for table in (0, 64, 127):
        indexes = np.full(len(FAR), table, np.uint8)
        assert np.array_equal(rans.decode(rans.encode(FAR, indexes, tables), indexes, tables), FAR)


def test_pictures_that_contradict_each_other_are_not_trusted() -> None:
    one = histogram(PRIOR, np.full(200, 5, np.int32), np.full(200, 60, np.uint8))
    other = histogram(PRIOR, np.full(200, -4, np.int32), np.full(200, 60, np.uint8))

    def distance(tables: Tables) -> float:
        return float(np.abs(np.diff(tables.table(60).astype(float)) - np.diff(PRIOR.table(60).astype(float))).sum())

    assert distance(fitted(PRIOR, [one, other])) < distance(blended(PRIOR, one + other, 16.0)) / 2


def test_a_models_own_symbols_take_fewer_bytes_by_fitted_tables(model: LoadedModel, photo: NDArray[np.uint8]) -> None:
    """On the half of the photo that the fit has not seen."""
    gaussian, unseen = replace(model, tables=PRIOR), Picture(pixels=photo[:256].copy())
    seen = [Picture(pixels=photo[256 + 128 * i : 384 + 128 * i, 128 * j : 128 + 128 * j].copy()) for i in range(2) for j in range(4)]
    tables, weights = calibration.fit_tables(gaussian, seen)

    def sizes(tables: Tables, weights: NDArray[np.int16] | None) -> NDArray[np.int64]:
        codec = Codec(replace(model, tables=tables, weights=weights))
        return np.array([len(codec.encode(unseen, q)) for q in (4.0, 8.0)])

    assert sizes(tables, weights).sum() < sizes(PRIOR, weights).sum()
    assert (sizes(PRIOR, weights) < 0.99 * sizes(PRIOR, None)).all()


def test_the_shipped_tables_are_fitted(model: LoadedModel) -> None:
    def zero(tables: Tables) -> NDArray[np.int64]:
        return np.array([np.diff(tables.table(t).astype(np.int64))[-tables.offsets[t]] for t in range(10, 40)])

    # Rate-aware rounding makes zeros that no Gaussian expects.
    assert (zero(model.tables) > zero(PRIOR)).all()
