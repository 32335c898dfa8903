from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from msinn_core.entropy import portable, rans
from msinn_core.entropy.tables import TOTAL, Tables, gaussian_tables
from msinn_core.errors import BitstreamError, CheckpointError, CodecError

TABLES = gaussian_tables()


def draw(count: int, seed: int, spread: float = 1.0) -> tuple[NDArray[np.int32], NDArray[np.uint8], NDArray[np.float32]]:
    """Gaussian symbols with scales over the whole range; `spread` above 1 makes outliers."""
    rng = np.random.default_rng(seed)
    scales = np.exp(rng.uniform(np.log(0.11), np.log(300), count)).astype(np.float32)
    return np.round(rng.normal(0, scales * spread)).astype(np.int32), TABLES.indexes(scales), scales


def test_the_compiled_kernel_is_there() -> None:
    """CI has a compiler; without the kernel every other figure of the README is void."""
    assert rans.COMPILED


def test_tables_are_exact_and_fine_enough() -> None:
    assert len(TABLES.offsets) >= 128
    for t in range(len(TABLES.offsets)):
        table = TABLES.table(t).astype(np.int64)
        assert table[0] == 0
        assert table[-1] == TOTAL
        assert (np.diff(table) > 0).all()


def test_nearest_table_in_ratio() -> None:
    centres = np.exp(np.linspace(np.log(0.11), np.log(512), 128))
    probes = np.exp(np.random.default_rng(0).uniform(np.log(0.05), np.log(900), 5000)).astype(np.float32)
    nearest = np.abs(np.log(probes[:, None]) - np.log(centres)).argmin(axis=1)
    different = TABLES.indexes(probes) != nearest
    # Float32 thresholds may decide an exact tie either way; nothing else may differ.
    assert different.mean() < 1e-3
    assert TABLES.indexes(np.array([-1.0, 0.0, 1e9], np.float32)).tolist() == [0, 0, 127]


def test_a_million_symbols_cost_their_entropy() -> None:
    symbols, indexes, _ = draw(1_000_000, 1)
    bits, base, size = TABLES.symbol_bits()
    position = symbols - TABLES.offsets[indexes]
    inside = (position >= 0) & (position < size[indexes])
    entropy = bits[base[indexes] + np.where(inside, position, size[indexes])].sum(dtype=np.float64) / 8
    data = rans.encode(symbols, indexes, TABLES)
    assert len(data) < 1.005 * entropy
    assert np.array_equal(rans.decode(data, indexes, TABLES), symbols)


def test_tables_cost_little_more_than_the_true_gaussians() -> None:
    """Nearest of 128 scales and 16-bit counts together: under 0.3 %."""
    symbols, indexes, scales = draw(200_000, 2)
    from math import erf

    cdf = np.vectorize(lambda v: 0.5 * (1 + erf(v / 2**0.5)))
    ideal = -np.log2(np.maximum(cdf((symbols + 0.5) / scales) - cdf((symbols - 0.5) / scales), 1e-12)).sum() / 8
    assert len(rans.encode(symbols, indexes, TABLES)) < 1.003 * ideal


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(-(2**31), 2**31 - 1) | st.integers(-3, 3), st.integers(0, 127)), max_size=60),
)
def test_kernel_and_portable_agree_on_anything(pairs: list[tuple[int, int]]) -> None:
    symbols = np.array([s for s, _ in pairs], np.int32)
    indexes = np.array([i for _, i in pairs], np.uint8)
    data = rans.encode(symbols, indexes, TABLES)
    assert np.array_equal(rans.decode(data, indexes, TABLES), symbols)
    if symbols.any():
        assert portable.encode(symbols, indexes, TABLES.cdf, TABLES.starts, TABLES.offsets) == data
        out = np.empty(len(symbols), np.int32)
        portable.decode(data, indexes, TABLES.cdf, TABLES.starts, TABLES.offsets, TABLES.lookup, out)
        assert np.array_equal(out, symbols)
    else:
        assert data == b""


def test_the_same_symbols_as_compressai_in_the_same_number_of_bytes() -> None:
    """compressai's coder is the independent reference: same tables, same symbols, no more bytes than its own 4-bit escapes need."""
    from msinn_core.training.compat import import_compressai

    ans = import_compressai().ans
    symbols, indexes, _ = draw(100_000, 3)
    cdfs = [TABLES.table(t).tolist() for t in range(128)]
    arguments = (indexes.tolist(), cdfs, [len(c) for c in cdfs], TABLES.offsets.tolist())
    theirs = ans.RansEncoder().encode_with_indexes(symbols.tolist(), *arguments)
    assert ans.RansDecoder().decode_with_indexes(theirs, *arguments) == symbols.tolist()
    assert len(rans.encode(symbols, indexes, TABLES)) <= len(theirs) + 8


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=64), st.integers(0, 40))
def test_any_bytes_decode_or_raise(data: bytes, count: int) -> None:
    indexes = np.arange(count, dtype=np.uint8)
    try:
        symbols = rans.decode(data, indexes, TABLES)
    except BitstreamError:
        return
    # What decodes must be exactly what an encoder would have written.
    assert rans.encode(symbols, indexes, TABLES) == data or not symbols.any()


def test_damage_inside_a_stream_is_noticed() -> None:
    symbols, indexes, _ = draw(3000, 4)
    data = bytearray(rans.encode(symbols, indexes, TABLES))
    for position in range(0, len(data), 97):
        hurt = bytearray(data)
        hurt[position] ^= 0x10
        with pytest.raises(BitstreamError):
            rans.decode(bytes(hurt), indexes, TABLES)
    for cut in (4, 8, len(data) // 2 // 4 * 4, len(data) - 4, len(data) - 1):
        with pytest.raises(BitstreamError):
            rans.decode(bytes(data[:cut]), indexes, TABLES)
    with pytest.raises(BitstreamError):
        rans.decode(bytes(data) + bytes(4), indexes, TABLES)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(CodecError, match="symbols but"):
        rans.encode(np.zeros(3, np.int32), np.zeros(2, np.uint8), TABLES)
    with pytest.raises(CodecError, match="out of range"):
        rans.encode(np.ones(1, np.int32), np.array([200], np.uint8), TABLES)


@pytest.mark.parametrize("field", ["cdf", "starts", "offsets", "thresholds"])
def test_contradictory_tables_are_refused(field: str) -> None:
    arrays = {name: getattr(TABLES, name).copy() for name in ("cdf", "starts", "offsets", "thresholds")}
    if field == "cdf":
        arrays["cdf"][5] = 0
    else:
        arrays[field] = arrays[field][:-1]
    with pytest.raises(CheckpointError):
        Tables(**arrays)
