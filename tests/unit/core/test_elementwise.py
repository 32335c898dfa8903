"""What lies between the layers on a GPU, in torch and in Triton's kernels under its interpreter, against the CPU's backend: at every bound."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from msinn_core.integer.gpu.backend import OnDevice
from msinn_core.integer.gpu.fused import Fused
from msinn_core.integer.ops import STATE_LIMIT, Compiled
from msinn_core.integer.portable import Float64Layers

CPU = torch.device("cpu")
FORMS = [pytest.param(OnDevice, id="torch"), pytest.param(Fused, id="triton")]
CHANNELS = (1, 6, 12, 48, 96)
PICTURES = 3


@pytest.fixture(params=FORMS)
def device(request: pytest.FixtureRequest) -> OnDevice:
    """Both forms."""
    made: OnDevice = request.param(CPU, Float64Layers())
    return made


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def placed(*arrays: NDArray[Any] | None) -> list[Any]:
    return [None if array is None else torch.from_numpy(array.copy()) for array in arrays]


def int16(rng: np.random.Generator, *shape: int) -> NDArray[np.int16]:
    """All values, the bounds among them."""
    x = rng.integers(-32768, 32768, shape).astype(np.int16)
    x[0, 0, 0], x[-1, -1, -1] = -32768, 32767
    return x


def state(rng: np.random.Generator, *shape: int, most: int = STATE_LIMIT + (1 << 22)) -> NDArray[np.int32]:
    """Small and large values, the bounds among them; at most what a refinement leaves."""
    x = (rng.integers(-most, most + 1, shape) >> rng.integers(0, 27, shape)).astype(np.int32)
    x[0, 0, 0], x[-1, -1, -1] = -most, most
    return x


def of_each(run: Callable[..., Any], *batches: Any) -> NDArray[Any]:
    """What the CPU gives of one picture after another."""
    return np.stack([run(*(batch[i] for batch in batches)) for i in range(PICTURES)])


def equal(found: torch.Tensor, expected: NDArray[Any]) -> None:
    assert found.is_contiguous()
    assert found.numpy().dtype == expected.dtype
    assert np.array_equal(found.numpy(), expected)


@pytest.mark.parametrize("channels", CHANNELS)
def test_narrowing(device: OnDevice, rng: np.random.Generator, channels: int) -> None:
    x, other = state(rng, PICTURES, 3, 5, channels, most=(1 << 29) - 1), state(rng, PICTURES, 3, 5, channels)
    for taken in {1, -(-channels // 2), channels, channels + 1, 2 * channels}:
        shift = rng.integers(0, 31, taken).astype(np.int32)
        parts = (x,) if taken <= channels else (x, other)
        equal(device.narrowed(shift, *placed(*parts)), of_each(lambda *of, by=shift: Compiled(isa=0).narrowed(by, *of), *parts))
    shift = np.arange(channels, dtype=np.int32) % 31
    equal(device.narrow(*placed(x), shift), of_each(lambda x, by=shift: Compiled(isa=0).narrow(x, by), x))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("half", [1, 6, 24, 48])
def test_units_both_ways(device: OnDevice, rng: np.random.Generator, half: int, affine: bool) -> None:
    channels = 2 * half
    z, st = state(rng, PICTURES, 3, 5, channels), int16(rng, PICTURES, 3, 5, channels if affine else half)
    table = rng.integers(1, (1 << 25) + 1, 65536).astype(np.int32)
    table[[0, -1]] = 1 << 25
    matrix = rng.integers(-(1 << 26), 1 << 26, (channels, channels)).astype(np.float64)
    matrix = np.trunc(matrix * ((1 << 26) - channels) / np.abs(matrix).sum(axis=0))
    bias = rng.integers(-(1 << 26), (1 << 26) + 1, channels).astype(np.float64)
    for t_shift in (0, 3, 16):
        expected = of_each(lambda z, st, by=t_shift: Compiled(isa=0).unit(z, st, table, by, matrix, bias, affine), z, st)
        equal(device.unit(*placed(z, st), table, t_shift, matrix, bias, affine), expected)
        first, second = placed(z[..., :half].copy(), z[..., half:].copy())
        equal(device.unit(first, *placed(st), table, t_shift, matrix, bias, affine, second), expected)
    # The encoder's.
    forward, offset = rng.normal(0, 0.3, (channels, channels)), rng.normal(0, 1e5, channels)
    equal(device.mix(*placed(z), forward, offset), of_each(lambda z: Compiled(isa=0).mix(z, forward, offset), z))
    reciprocal = np.exp(rng.normal(0, 2, 65536)).astype(np.float32)
    reciprocal[[0, -1]] = 64.0, 2.0**-5
    for t_shift in (0, 3, 16):
        moved, ours = z.copy(), placed(z)[0]
        for one, of in zip(moved, st, strict=True):
            Compiled(isa=0).couple(one, of, reciprocal, t_shift, affine)
        device.couple(ours, *placed(st), reciprocal, t_shift, affine)
        equal(ours, moved)


@pytest.mark.parametrize("channels", CHANNELS)
def test_symbols(device: OnDevice, rng: np.random.Generator, channels: int) -> None:
    """Each picture with gains of its own, as rows of a wider array; and one row for all."""
    parameters = int16(rng, PICTURES, 3, 5, 2 * channels)
    log2 = rng.integers(0, (15 << 16) + 1, 32768).astype(np.int32)
    zone = rng.uniform(0, 0.7, (256, 16)).astype(np.float32)
    zone[::2] = 0.0  # what lies half way stays where it was rounded to
    half_tanh = int16(rng, 4, 32, 32).reshape(-1)
    wide = channels + 7

    def rows(array: NDArray[Any]) -> tuple[Any, NDArray[Any]]:
        """`[N, C]` of `[N, wide]`, on the device as it is, and for the CPU."""
        return torch.from_numpy(array)[:, 3 : 3 + channels], np.ascontiguousarray(array[:, 3 : 3 + channels])

    log_gain = rows(rng.integers(-(15 << 16), (15 << 16) + 1, (PICTURES, wide)).astype(np.int32))
    inv_gain = rows(rng.integers(1 << 9, (1 << 30) + 1, (PICTURES, wide)).astype(np.int32))
    gain = rows((2.0 ** rng.uniform(-22, -1, (PICTURES, wide))).astype(np.float32))
    for first in (-(1 << 22) - (1 << 20), 0, 70000):
        expected = of_each(lambda p, g, first=first: Compiled(isa=0).levels(p, log2, g, first, 9000, 128), parameters, log_gain[1])
        indexes = device.levels(*placed(parameters), log2, log_gain[0], first, 9000, 128)
        equal(indexes, expected)
        one = log_gain[1][0]
        equal(
            device.levels(*placed(parameters), log2, one, first, 9000, 128),
            of_each(lambda p, one=one, first=first: Compiled(isa=0).levels(p, log2, one, first, 9000, 128), parameters),
        )
    y, tables = state(rng, PICTURES, 3, 5, channels), indexes.numpy()
    # Exactly half way: to even.
    y.reshape(-1)[1::3] = (
        (parameters[..., channels:].astype(np.int32).reshape(-1)[1::3] << 4) + (np.arange(y.size // 3 + 1)[: len(y.reshape(-1)[1::3])] << 1) + 1
    )
    gain[1][:, ::2] = 0.5
    gain[0].copy_(torch.from_numpy(gain[1]))
    for mean_shift in (0, 4, 14):
        expected = of_each(lambda *of, by=mean_shift: Compiled(isa=0).quantise(*of, zone, by), y, parameters, tables, gain[1])
        symbols = device.quantise(*placed(y, parameters), indexes, gain[0], zone, mean_shift)
        equal(symbols, expected)
        coded = symbols.numpy() >> 4
        expected = of_each(lambda *of, by=mean_shift: Compiled(isa=0).dequantise(*of, by), coded, parameters, inv_gain[1])
        found = device.dequantise(*placed(coded, parameters), inv_gain[0], mean_shift)
        equal(found, expected)
        prediction = int16(rng, PICTURES, 3, 5, channels)
        for picture, of, by in zip(expected, prediction, inv_gain[1], strict=True):
            Compiled(isa=0).refine(picture, of, half_tanh, by)
        device.refine(found, *placed(prediction), half_tanh, inv_gain[0])
        equal(found, expected)


@pytest.mark.parametrize("shape", [(1, 2), (2, 2), (3, 6), (6, 10), (4, 8)])
def test_moving_values_about(device: OnDevice, rng: np.random.Generator, shape: tuple[int, int]) -> None:
    h, w = shape
    for channels in (1, 6, 48):
        for x in (int16(rng, PICTURES, h, w, channels), state(rng, PICTURES, h, w, channels)):
            for parity in (0, 1):
                halves = [device.half(*placed(x), p) for p in (parity, 1 - parity)]
                equal(halves[0], of_each(lambda x, p=parity: Compiled.half(x, p), x))
                equal(device.whole(halves[0], parity, halves[1]), x)
    pairs = int16(rng, PICTURES, 2 * h, 2 * w, 16)
    equal(device.halved(*placed(pairs)), of_each(Compiled.halved, pairs))
    picture, shift = state(rng, PICTURES, 2 * h, 2 * w, 3), rng.integers(0, 31, 12).astype(np.int32)
    equal(device.gathered(*placed(picture), shift), of_each(lambda x: Compiled(isa=0).gathered(x, shift), picture))
    correction = int16(rng, PICTURES, h, w, 12)
    for by in (0, 2, 14):
        equal(device.filtered(*placed(picture, correction), by), of_each(lambda x, c, by=by: Compiled(isa=0).filtered(x, c, by), picture, correction))
        whole = int16(rng, PICTURES, 2 * h, 2 * w, 3)
        for x, of in ((picture, whole), (picture, None), (None, whole)):
            expected = [Compiled.corrected(*(None if part is None else part[i] for part in (x, of)), by) for i in range(PICTURES)]
            equal(device.corrected(*placed(x, of), by), np.stack(expected))
    pixels = rng.integers(0, 256, (PICTURES, h, w, 3)).astype(np.uint8)
    equal(device.state_of(torch.from_numpy(pixels)), of_each(Compiled.state_of, pixels))


def test_tables_and_gates(device: OnDevice, rng: np.random.Generator) -> None:
    x, add, index = int16(rng, PICTURES, 3, 5, 20), int16(rng, PICTURES, 3, 5, 20), int16(rng, PICTURES, 1, 1, 20)
    gelu, table = int16(rng, 4, 128, 128).reshape(-1), rng.integers(0, 32768, 4096).astype(np.int16)
    equal(device.looked_up(gelu, *placed(x)), of_each(lambda x: Compiled.looked_up(gelu, x), x))
    equal(device.gated(*placed(x), table, *placed(index, add)), of_each(lambda x, i, a: Compiled.gated(x, table, i, a), x, index, add))
