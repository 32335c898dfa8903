"""The first stream, told by its own past: the same on every coder, exact, and refused where it does not fit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load, save

from msinn_core.codec import Codec
from msinn_core.entropy import portable, rans
from msinn_core.entropy.first_stream import CHANNELS, NUM_NEIGHBOURS, ONE, Prediction, StreamCoder
from msinn_core.entropy.fitting import FirstStream, first_weights
from msinn_core.entropy.tables import gaussian_tables
from msinn_core.errors import BitstreamError, CheckpointError, CodecError
from msinn_core.model_file import FORMAT, PREDICTING_FORMAT, LoadedModel, parse_model, read_metadata
from msinn_core.picture import Picture

TABLES = gaussian_tables()


def some_weights(seed: int) -> NDArray[np.int16]:
    return np.random.default_rng(seed).integers(-ONE, ONE, (CHANNELS, NUM_NEIGHBOURS)).astype(np.int16)


def stream(rows: int, columns: int, seed: int, freedom: float = 2) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
    """Symbols of a scale a channel, with some far outside where the `freedom` of Student's distribution is low."""
    rng = np.random.default_rng(seed)
    tables = rng.integers(0, 128, CHANNELS)
    symbols = np.rint(rng.standard_t(freedom, (rows * columns, CHANNELS)) * 0.11 * np.exp(0.0665 * tables)).clip(-(2**29), 2**29)
    return symbols.astype(np.int32).ravel(), np.tile(tables.astype(np.uint8), rows * columns)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 1000))
def test_kernel_and_portable_agree(rows: int, columns: int, seed: int) -> None:
    first = Prediction(TABLES, some_weights(seed))
    symbols, indexes = stream(rows, columns, seed)
    residuals, chosen = first.residuals(symbols, indexes, columns)
    theirs, tables = np.empty_like(residuals), np.empty_like(chosen)
    parameters = first.weights, first.amplitudes, first.limits, columns, CHANNELS
    portable.predicted(symbols, indexes, *parameters, theirs, tables)
    assert np.array_equal(residuals, theirs)
    assert np.array_equal(chosen, tables)
    data = rans.encode(residuals, chosen, TABLES)
    assert np.array_equal(first.decode(data, indexes, columns), symbols)
    out = np.empty_like(symbols)
    portable.decode_predicted(data, indexes, TABLES.cdf, TABLES.starts, TABLES.offsets, TABLES.lookup, *parameters, out)
    assert np.array_equal(out, symbols)


def test_the_largest_symbols_there_are() -> None:
    first = Prediction(TABLES, np.full((CHANNELS, NUM_NEIGHBOURS), 32767, np.int16))
    symbols, indexes = np.full(6 * 3 * CHANNELS, 2**31 - 1, np.int32), np.zeros(6 * 3 * CHANNELS, np.uint8)
    # Predictions end at 2^20, so that these residuals fit; those of the other sign do not, and nothing is written.
    data = rans.encode(*first.residuals(symbols, indexes, 3), TABLES)
    assert np.array_equal(first.decode(data, indexes, 3), symbols)
    symbols[-1] = -(2**31)
    with pytest.raises(CodecError, match="too far from its prediction"):
        first.residuals(symbols, indexes, 3)
    with pytest.raises(ValueError, match="too far from its prediction"):
        portable.predicted(symbols, indexes, first.weights, first.amplitudes, first.limits, 3, CHANNELS, symbols.copy(), indexes.copy())


def test_damage_is_noticed() -> None:
    """But for the raw bits of symbols far outside, which the bitstream's checksum guards."""
    first = Prediction(TABLES, some_weights(1) // 8)
    symbols, indexes = stream(6, 5, 1, freedom=50)
    data = rans.encode(*first.residuals(symbols, indexes, 5), TABLES)
    for position in range(0, len(data), 41):
        hurt = bytearray(data)
        hurt[position] ^= 0x10
        with pytest.raises(BitstreamError):
            first.decode(bytes(hurt), indexes, 5)
    for cut in (3, 8, len(data) // 2 // 4 * 4, len(data) - 4):
        with pytest.raises(BitstreamError):
            first.decode(data[:cut], indexes, 5)
    with pytest.raises(BitstreamError):
        first.decode(data, np.full(len(indexes), 200, np.uint8), 5)
    with pytest.raises(BitstreamError):
        first.decode(data, indexes, 7)


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=64), st.integers(1, 3))
def test_any_bytes_decode_or_raise(data: bytes, columns: int) -> None:
    first, indexes = Prediction(TABLES, some_weights(2)), np.full(columns * CHANNELS, 3, np.uint8)
    try:
        symbols = StreamCoder(TABLES, first.weights).decode(0, data, indexes, columns)
    except BitstreamError:
        return
    assert StreamCoder(TABLES, first.weights).encode(0, symbols, indexes, columns) == data or not symbols.any()


def test_neighbours_are_those_of_the_checkerboard() -> None:
    """A weight of one on each in turn: the prediction is what lies there, in the columns of the picture."""
    rows, columns = 6, 5
    whole = np.arange(rows * 2 * columns, dtype=np.int32).reshape(rows, 2 * columns) + 1
    anchors = np.array([whole[r, (r + 1) % 2 :: 2] for r in range(rows)])  # row + column odd
    symbols = np.repeat(anchors[:, :, None], CHANNELS, axis=2)
    places = [(-1, -1), (-1, 1), (0, -2), (-2, 0), (-1, -3), (-1, 3), (0, -4)]
    for n, (up, right) in enumerate(places):
        weights = np.zeros((CHANNELS, NUM_NEIGHBOURS), np.int16)
        weights[:, n] = ONE
        residuals, _ = Prediction(TABLES, weights).residuals(symbols.ravel(), np.zeros(symbols.size, np.uint8), columns)
        for r in range(rows):
            for j in range(columns):
                row, column = r + up, 2 * j + (r + 1) % 2 + right
                there = whole[row, column] if row >= 0 and 0 <= column < 2 * columns else 0
                assert residuals.reshape(symbols.shape)[r, j, 7] == anchors[r, j] - there


def test_weights_find_what_predicts() -> None:
    """Each symbol half of the one two rows above, and a little of its own: the fit says so, channel by channel."""
    rng = np.random.default_rng(4)
    symbols = np.zeros((60, 20, CHANNELS))
    for row in range(60):
        symbols[row] = 0.5 * symbols[row - 2] + rng.normal(0, 20, (20, CHANNELS)) if row > 1 else rng.normal(0, 20, (20, CHANNELS))
    whole = np.rint(symbols).astype(np.int32).ravel()
    weights = first_weights([FirstStream(whole, np.full(whole.size, 80, np.uint8), 20)]) / ONE
    assert np.abs(weights[:, 3] - 0.5).max() < 0.15
    assert np.abs(np.delete(weights, 3, axis=1).mean(axis=0)).max() < 0.05


def test_the_shipped_model_predicts_and_decodes_the_same_pixels(model: LoadedModel, photo: NDArray[np.uint8]) -> None:
    assert model.weights is not None
    picture = Picture(pixels=photo[:300, :333].copy())
    own, without = Codec(model), Codec(replace(model, weights=None))
    symbols = own.compress(own.transform(picture), 5.0, keep_walk=True)
    short, long = own.pack(symbols), without.pack(symbols)
    assert len(short) < 0.985 * len(long)
    assert own.decode(short)[0].content() == without.decode(long)[0].content() == own.decode_known(short, symbols)[0].content()
    # What is foreseen knows of it.
    one, other = (codec.curves(codec.transform(picture)).bytes for codec in (own, without))
    assert (one < other).all()


def test_models_that_contradict_themselves_are_refused(model: LoadedModel) -> None:
    tensors, metadata = load(model.data), read_metadata(model.data)
    assert metadata["format"] == PREDICTING_FORMAT
    for weights in (np.zeros((CHANNELS, 3), np.int16), np.zeros((CHANNELS, NUM_NEIGHBOURS), np.int32)):
        with pytest.raises(CheckpointError, match="weights of the first stream"):
            parse_model(save(tensors | {"first.weights": weights}, metadata))
    with pytest.raises(CheckpointError, match="incomplete"):
        parse_model(save({name: value for name, value in tensors.items() if name != "first.weights"}, metadata))
    # A model of the older format has none, whatever else lies in its file.
    assert parse_model(save(tensors, {**metadata, "format": FORMAT})).weights is None
    with pytest.raises(CheckpointError, match="profile 'float' is of format"):
        parse_model(save(tensors, {**metadata, "profile": "float"}))
