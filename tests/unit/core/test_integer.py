"""The integer profile: every backend gives the same bits, damaged models are refused, and little is lost against float."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from msinn_core import metrics
from msinn_core.codec import Codec
from msinn_core.config import MsinnConfig, preset
from msinn_core.engine import narrowed
from msinn_core.entropy.tables import gaussian_tables
from msinn_core.errors import CheckpointError, ConfigError
from msinn_core.float.layers import MaskedConv2d
from msinn_core.float.layers import pack as packed_half
from msinn_core.float.model import Msinn
from msinn_core.integer import bands, ops, packing
from msinn_core.integer.arrays import half_of, squeeze, unsqueeze, whole_of
from msinn_core.integer.bands import PictureBands
from msinn_core.integer.engine import golden_digest
from msinn_core.integer.network import IntegerNetwork
from msinn_core.integer.ops import AMX, AVX2, AVX512, CORNERS, DENSE, EDGES, POINT, SCALAR, SSE41, Compiled, Layer
from msinn_core.integer.packing import pack
from msinn_core.integer.portable import Portable
from msinn_core.model_file import LoadedModel, integer_model_bytes, load_model, parse_model
from msinn_core.picture import Picture
from tests.unit.core.test_network import TINY, randomised

pytestmark = pytest.mark.skipif(ops.kernel is None, reason="the integer kernel is not compiled: install with a C compiler")

SMALL = [(1, 1, 2, 1), (2, 3, 6, 12), (5, 13, 10, 17), (3, 40, 4, 33), (33, 7, 12, 16), (2, 19, 32, 20)]
"""Heights, widths and channels of layers."""

EXTREME = np.array([-32768, 32767, 0, 1, -1], np.int16)


def backends() -> Iterator[Compiled]:
    for isa in (AMX, AVX512, AVX2, SSE41, SCALAR):
        yield Compiled(isa=isa)
    yield Compiled(threads=3)


def random_layer(rng: np.random.Generator, cin: int, cout: int, kind: int, leaky: bool) -> Layer:
    """Weights as large as the bound allows."""
    taps = ops.NUM_TAPS[kind]
    limit = min(32767, 65000 // (taps * cin))
    weight = rng.integers(-limit, limit, (cout, taps, cin), endpoint=True).astype(np.int16)
    bias = rng.integers(-10_000, 10_000, cout).astype(np.int32)
    return Layer(weight, bias, rng.integers(1, 20, cout).astype(np.int32), kind, leaky)


@pytest.mark.parametrize("kind", [DENSE, EDGES, CORNERS, POINT])
@pytest.mark.parametrize("shape", [*SMALL, (6, 1100, 24, 6), (5, 430, 48, 20), (4, 37, 96, 17)])
def test_layers_are_the_same_on_every_backend(kind: int, shape: tuple[int, int, int, int]) -> None:
    h, w, cin, cout = shape
    rng = np.random.default_rng((kind, h))
    x, add = rng.integers(-32768, 32767, (h, w, cin), endpoint=True).astype(np.int16), rng.integers(-32768, 32767, (h, w, cout)).astype(np.int16)
    x.reshape(-1)[: min(5, x.size)] = EXTREME[: min(5, x.size)]
    for leaky in (False, True):
        layer = random_layer(rng, cin, cout, kind, leaky)
        for parity in (0, 1):
            for addend in (None, add):
                expected = Portable().conv(x, layer, parity=parity, add=addend)
                assert len(np.unique(expected)) > min(3, expected.size - 1)
                for backend in backends():
                    assert np.array_equal(backend.conv(x, layer, parity=parity, add=addend), expected)


def test_the_ceiling_of_products_is_counted_on_every_instruction_set() -> None:
    """What `msinn bench codec` divides by the time that it took."""
    for level in range(ops.kernel.isa(), -1, -1):
        assert ops.kernel.ceiling(5, level) == 5 * ops.kernel.ceiling(1, level) > 0


@pytest.mark.parametrize("step", [1, 3, 6288, 65535, 65536])
def test_a_scale_at_the_edge_of_a_table_has_the_same_index_on_every_backend(step: int) -> None:
    edges = np.arange(129, dtype=np.int64) * step
    values = np.unique(np.concatenate((edges - 1, edges, edges + 1, [-(1 << 22), 1 << 24]))).astype(np.int32)
    log2 = np.zeros(32768, np.int32)
    log2[1 : 1 + len(values)] = values
    parameters = np.zeros((1, len(log2) // 16, 32), np.int16)
    parameters[..., :16] = np.arange(len(log2), dtype=np.int16).reshape(1, -1, 16)
    expected = np.clip(log2.astype(np.int64), 0, 128 * step - 1) // step
    for backend in (*backends(), Portable()):
        found = backend.levels(parameters, log2, np.zeros(16, np.int32), 0, step, 128)
        assert np.array_equal(found.reshape(-1)[1:], expected[1:])


def test_what_checks_a_backend_shares_no_arithmetic_with_it() -> None:
    """AMX has the units of AVX-512."""
    for isa in (AMX, AVX512, AVX2):
        backend = Compiled(isa=isa)
        others = [other.level for other in ops.other_backends(backend) if isinstance(other, Compiled)]
        assert others == list(range(min(backend.level, AVX512) - 1, -1, -1))


@pytest.mark.parametrize("kind", [EDGES, CORNERS])
def test_checkerboard_layers_are_the_masked_convolution_where_it_is_used(kind: int) -> None:
    rng = np.random.default_rng(3)
    conv = MaskedConv2d(4, 6, "edges" if kind == EDGES else "corners")
    with torch.no_grad():
        conv.weight.copy_(torch.from_numpy(rng.integers(-9, 9, (6, 4, 3, 3)).astype(np.float32)))
        conv.bias.zero_()  # type: ignore[union-attr]
    for parity in (0, 1):
        full = torch.zeros(1, 4, 6, 8)
        rows, columns = torch.meshgrid(torch.arange(6), torch.arange(8), indexing="ij")
        visible = (rows + columns) % 2 == (1 - parity if kind == EDGES else parity)
        full[..., visible] = torch.from_numpy(rng.integers(-50, 50, (1, 4, int(visible.sum()))).astype(np.float32))
        with torch.no_grad():
            expected = packed_half(conv(full), parity)[0].permute(1, 2, 0).numpy()
        taps = [(0, 1), (1, 0), (1, 2), (2, 1)] if kind == EDGES else [(0, 0), (0, 2), (1, 1), (2, 0), (2, 2)]
        weight = np.stack([conv.weight.detach().numpy()[:, :, r, c] for r, c in taps], axis=1).astype(np.int16) * 2
        layer = Layer(np.ascontiguousarray(weight), np.zeros(6, np.int32), np.ones(6, np.int32), kind, False)
        x = half_of(full[0].permute(1, 2, 0).numpy().astype(np.int16), 1 - parity if kind == EDGES else parity)
        assert np.array_equal(Compiled().conv(x, layer, parity=parity), expected.astype(np.int16))


def test_the_rest_of_the_arithmetic_is_the_same_on_every_backend(model: LoadedModel) -> None:
    rng = np.random.default_rng(8)
    tables = {name: model.integer[f"tables.{name}"] for name in ("couple", "log2", "half_tanh")}
    portable = Portable()
    for channels in (12, 24, 30, 96):
        z = rng.integers(-(1 << 27), 1 << 27, (5, 7, channels)).astype(np.int32)
        st = rng.integers(-32768, 32767, (5, 7, channels)).astype(np.int16)
        matrix, bias = rng.integers(-(1 << 19), 1 << 19, (channels, channels)).astype(float), rng.integers(-99999, 99999, channels).astype(float)
        shifts = rng.integers(0, 18, channels).astype(np.int32)
        log_gain, inv_gain = rng.integers(-900_000, 900_000, channels).astype(np.int32), rng.integers(1, 1 << 26, channels).astype(np.int32)
        parameters = rng.integers(-32768, 32767, (5, 7, 2 * channels)).astype(np.int16)
        symbols = rng.integers(-40_000, 40_000, (5, 7, channels)).astype(np.int32)
        for backend in backends():
            for affine in (True, False):
                part = st if affine else np.ascontiguousarray(st[..., : channels // 2])
                arguments: tuple[Any, ...] = (z, part, tables["couple"], 3, matrix, bias, affine)
                assert np.array_equal(backend.unit(*arguments), portable.unit(*arguments))
            assert np.array_equal(backend.narrow(z, shifts), portable.narrow(z, shifts))
            arguments = (parameters, tables["log2"], log_gain, -211838, 6288, 128)
            assert np.array_equal(backend.levels(*arguments), portable.levels(*arguments))
            arguments = (symbols, parameters, inv_gain, 5)
            assert np.array_equal(backend.dequantise(*arguments), portable.dequantise(*arguments))
            a, b = z >> 2, z >> 2
            backend.refine(a, st, tables["half_tanh"], inv_gain)
            portable.refine(b, st, tables["half_tanh"], inv_gain)
            assert np.array_equal(a, b)


def test_arrangements_invert() -> None:
    x = np.arange(8 * 12 * 3).reshape(8, 12, 3)
    assert np.array_equal(unsqueeze(squeeze(x)), x)
    for parity in (0, 1):
        assert np.array_equal(whole_of(half_of(x, parity), parity, half_of(x, 1 - parity)), x)
        rows, columns = np.nonzero((np.add.outer(np.arange(8), np.arange(12)) % 2) == parity)
        assert set(half_of(x, parity)[..., 0].reshape(-1)) == set(x[rows, columns, 0])


@pytest.mark.parametrize("q", [0.0, 4.7, 11.0])
def test_streams_and_pictures_are_the_same_on_every_backend(model: LoadedModel, photo: NDArray[np.uint8], q: float) -> None:
    picture = Picture(pixels=photo[:77, :101].copy())
    reference = Codec(model, backend=Portable())
    data = reference.encode(picture, q)
    expected = hashlib.sha256(reference.decode(data)[0].content()).hexdigest()
    for backend in backends():
        codec = Codec(model, backend=backend)
        assert hashlib.sha256(codec.decode(data)[0].content()).hexdigest() == expected
        own = codec.encode(picture, q)  # encoders may round differently; what they write must decode alike
        assert hashlib.sha256(codec.decode(own)[0].content()).digest() == hashlib.sha256(reference.decode(own)[0].content()).digest()


def test_bands_of_rows_change_nothing(codec: Codec, photo: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch) -> None:
    picture = Picture(pixels=np.concatenate([photo, photo[::-1], photo])[:, :64].copy())
    monkeypatch.setattr(bands, "BAND_BYTES", 1 << 40)
    data = codec.encode(picture, 6.0)
    expected = codec.decode(data)[0].pixels
    monkeypatch.setattr(bands, "BAND_BYTES", 1)
    assert codec.encode(picture, 6.0) == data
    assert np.array_equal(codec.decode(data)[0].pixels, expected)


@pytest.mark.parametrize("shape", [(352, 96), (96, 352), (330, 70)])
@pytest.mark.parametrize("which", ["msinn-lite", "golden"])
def test_a_picture_in_bands_is_the_same(
    which: str, shape: tuple[int, int], codec: Codec, tiny: LoadedModel, photo: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The finest level and the post-filter in bands of 32 half-size rows or columns, which meet where rows of all grids do, and where none does."""
    codec = codec if which == "msinn-lite" else Codec(tiny)
    picture = Picture(pixels=photo[: shape[0], : shape[1]].copy())
    q = codec.q_max / 2
    assert PictureBands.of(176, 48) is None
    data = codec.encode(picture, q)
    expected, symbols = codec.decode(data)
    curves = codec.analyse(picture)
    monkeypatch.setattr(bands, "_LEAST_ROWS", 32)
    monkeypatch.setattr(bands, "_MOST_ROWS", 64)
    made = PictureBands.of(176, 48), PictureBands.of(48, 176)
    assert [(cut.axis, cut.length, cut.band) for cut in made if cut is not None] == [(0, 176, 32), (1, 176, 32)]
    assert codec.encode(picture, q) == data
    decoded, read = codec.decode(data)
    assert np.array_equal(decoded.pixels, expected.pixels)
    assert all(np.array_equal(a, b) for a, b in zip(read, symbols, strict=True))
    assert np.array_equal(codec.analyse(picture).mse, curves.mse)


@pytest.mark.parametrize(("largest", "kind"), [(0, np.int8), (127, np.int8), (128, np.int16), (-128, np.int8), (-129, np.int16), (40000, np.int32)])
def test_symbols_are_held_in_the_least_numbers(largest: int, kind: type) -> None:
    symbols = np.array([[0, largest, 1]], np.int32)
    held = narrowed(symbols)
    assert held.dtype == kind
    assert held.tolist() == [0, largest, 1]


def test_latents_are_let_go_of_when_they_are_coded_for_the_last_time(codec: Codec, tile: Picture) -> None:
    kept, given = codec.transform(tile), codec.transform(tile)
    again = codec.compress(kept, 5.0)
    assert all(y.size for y in kept.y)
    last = codec.compress(given, 5.0, last=True)
    assert not any(y.size for y in given.y)
    assert codec.pack(last) == codec.pack(again) == codec.pack(codec.compress(kept, 5.0))


@pytest.mark.parametrize(("q", "most_bytes", "most_db"), [(1.0, 0.01, 0.05), (5.5, 0.003, 0.02), (11.0, 0.005, 0.06)])
def test_packing_loses_next_to_nothing(q: float, most_bytes: float, most_db: float, model: LoadedModel, photo: NDArray[np.uint8]) -> None:
    """Against the float network by the same tables, one small picture."""
    picture = Picture(pixels=photo[:256, :256].copy())
    exact = Codec(replace(load_model("msinn-lite-float"), tables=gaussian_tables()))
    packed = Codec(replace(model, tables=gaussian_tables(), weights=None))
    a, b = exact.encode(picture, q), packed.encode(picture, q)
    assert abs(len(b) / len(a) - 1) < most_bytes
    psnr = [metrics.psnr_db(metrics.mse(codec.decode(data)[0].pixels, picture.pixels)) for codec, data in ((exact, a), (packed, b))]
    assert abs(psnr[1] - psnr[0]) < most_db


def test_the_integer_transform_inverts_without_quantisation(model: LoadedModel, photo: NDArray[np.uint8]) -> None:
    network = IntegerNetwork(model.config, model.integer, Compiled())
    back = network.synthesis(network.analysis(np.ascontiguousarray(photo[:256, :256])))
    error = np.mean((back / 65536 - photo[:256, :256] / 255.0) ** 2)
    # Far below what the highest rate leaves, 47 dB.
    assert -10 * np.log10(error) > 72


VARIANTS = [
    TINY,
    dataclasses.replace(TINY, context_activation="gelu", post_filter="none"),
    dataclasses.replace(TINY, context_activation="gelu", post_filter="paper"),
    dataclasses.replace(TINY, anchor_num=2, lambdas=TINY.lambdas[:2]),
    dataclasses.replace(TINY, coupling="additive", permutation="reverse", actnorm=False, lrp=False, post_filter="lite"),
]


@pytest.mark.parametrize("config", VARIANTS)
def test_every_shape_of_network_packs(config: MsinnConfig, tile: Picture) -> None:
    network = randomised(config)
    x = torch.from_numpy(tile.pixels[:96, :128].copy()).permute(2, 0, 1)[None].float() / 255
    packed = pack(network, [x])
    golden = golden_digest(IntegerNetwork(config, packed, Portable()))
    loaded = parse_model(integer_model_bytes(config, packed, golden, name="variant"))
    codec = Codec(loaded)
    data = codec.encode(tile, 1.0)
    assert np.array_equal(codec.decode(data)[0].pixels, Codec(loaded, backend=Portable()).decode(data)[0].pixels)


def test_a_loud_channel_takes_no_precision_from_others_and_a_quiet_one_keeps_room() -> None:
    ranges = packing._Ranges(Msinn(TINY))
    ranges.above = {"conv": np.array([7.0, 1.0, 0.001]), "skip": np.array([0.5, 2.5, 0.002])}
    ranges.below = {"conv": np.array([1.0, 1.0, 0.001]), "skip": np.array([3.0, 0.3, 0.001])}
    packer = packing._Packer(Msinn(TINY), ranges)
    # 7, 2.5 and a quarter of 7, doubled, within 32767.
    assert packer.per_channel("conv", "skip").tolist() == packer.per_channel("conv", leaky="skip").tolist() == [11, 12, 13]


def test_what_a_leaky_relu_makes_small_takes_no_precision() -> None:
    ranges = packing._Ranges(Msinn(TINY))
    ranges.above, ranges.below = {"conv": np.array([1.9, 7.9])}, {"conv": np.array([30.0, 12.0])}
    packer = packing._Packer(Msinn(TINY), ranges)
    assert packer.per_channel("conv").tolist() == [9, 10]
    # Negative values are kept as far as they were measured, without a margin.
    assert packer.per_channel(leaky="conv").tolist() == [10, 11]


def test_packing_needs_pictures() -> None:
    with pytest.raises(ConfigError, match="needs pictures"):
        pack(Msinn(preset("msinn-lite")), [])


def changed(model: LoadedModel, name: str, change: Any) -> LoadedModel:
    tensors = dict(model.integer)
    value = tensors[name].copy()
    tensors[name] = change(value)
    return dataclasses.replace(model, integer=tensors)


def _one_more(value: NDArray[Any]) -> NDArray[Any]:
    value.reshape(-1)[value.size // 2] += 1
    return value


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("unit.0.0.conv1.weight", _one_more, "golden vector"),
        ("tables.half_tanh", _one_more, "golden vector|golden"),
        ("post.conv2.bias", lambda v: v + (1 << 14), "golden vector"),
        ("tables.couple", lambda v: v[:-1], "tables.couple"),
        ("unit.1.0.conv1.weight", lambda v: np.full_like(v, 32000), "overflow 32 bits"),
        ("unit.1.0.conv1.weight", lambda v: v[:, :, :-2], "contradict"),
        ("unit.1.0.conv1.shift", lambda v: v * 0, "range 1 to 30"),
        ("unit.0.0.matrix", lambda v: v * 100, "exact"),
        ("unit.0.0.matrix", lambda v: v * 0, "no inverse"),
        ("unit.0.1.z_shift", lambda v: v * 0 - 1, "range 0 to 30"),
        ("gains.inv_log2", lambda v: v * 0 + (1 << 24), "gain"),
        ("levels.step", lambda v: np.array(24_000_000, np.int32), "range 1 to 65536"),
        ("tables.log2", lambda v: np.full_like(v, 2**31 - 1), "tables.log2"),
        ("tables.couple", lambda v: v * 0, "range 1 to"),
        ("gains.scale_log2", lambda v: np.full_like(v, -(2**31)), "gains.scale_log2"),
        ("unit.0.0.conv1.shift", lambda v: v.astype(np.int16), "int16"),
        ("lrp.0.0.weight", lambda v: v.astype(np.int32), "wrong shape"),
        ("parameters.0.mean_shift", lambda v: np.array(v + 20, np.int32), "range 0 to 14"),
    ],
)
def test_a_changed_model_is_refused(model: LoadedModel, name: str, change: Any, says: str) -> None:
    if "half_tanh" in name:
        change = lambda v: (v + 1).astype(np.int16)  # noqa: E731  (one entry alone may never be looked up)
    with pytest.raises(CheckpointError, match=says), pytest.warns(UserWarning, match="self-test") if "golden" in says else _no_warning():
        Codec(changed(model, name, change))


def _no_warning() -> Any:
    import contextlib

    return contextlib.nullcontext()


def test_a_model_that_lacks_a_part_is_refused(model: LoadedModel) -> None:
    tensors = {name: value for name, value in model.integer.items() if name != "lrp.4.2.weight"}
    with pytest.raises(CheckpointError, match=r"lrp\.4\.2\.weight"):
        Codec(dataclasses.replace(model, integer=tensors))


def test_a_kernel_that_fails_its_self_test_is_replaced(model: LoadedModel, tile: Picture, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = Codec(model).encode(tile, 3.0)
    right = Compiled.narrowed
    monkeypatch.setattr(Compiled, "narrowed", lambda self, shift, *parts: right(self, shift, *parts) + np.int16(1))
    with pytest.warns(UserWarning, match="self-test"):
        codec = Codec(model)
    assert codec.decode(expected)[0].pixels.shape == tile.pixels.shape
    monkeypatch.setattr(Portable, "narrow", lambda self, x, shift: x.astype(np.int16))
    with pytest.warns(UserWarning, match="self-test"), pytest.raises(CheckpointError, match="golden vector"):
        Codec(model)


def test_without_a_compiler_the_portable_form_serves(model: LoadedModel, tile: Picture, monkeypatch: pytest.MonkeyPatch) -> None:
    data = Codec(model).encode(tile, 3.0)
    expected = Codec(model).decode(data)[0].pixels
    monkeypatch.setattr(ops, "kernel", None)
    assert isinstance(ops.best_backend(), Portable)
    assert np.array_equal(Codec(model).decode(data)[0].pixels, expected)


def test_encoder_arithmetic_agrees_between_backends(model: LoadedModel) -> None:
    """Nothing normative, but budgets rest on it: equal but for the last bit of a rounding."""
    rng = np.random.default_rng(4)
    y, parameters = rng.normal(0, 30_000, (6, 9, 12)).astype(np.int32), rng.integers(0, 6000, (6, 9, 24)).astype(np.int16)
    st, matrix, bias = rng.integers(-9000, 9000, (6, 9, 12)).astype(np.int16), rng.normal(0, 1, (12, 12)), rng.normal(0, 9, 12)
    zone = np.zeros((256, 16), np.float32)
    zone[:, 1:] = 0.1
    gain = rng.uniform(1e-4, 1e-3, 12).astype(np.float32)
    portable, compiled = Portable(), Compiled()
    assert np.abs(compiled.mix(y, matrix, bias).astype(np.int64) - portable.mix(y, matrix, bias)).max() <= 1
    reciprocal = (2.0**20 / model.integer["tables.couple"]).astype(np.float32)
    a, b = y.copy(), y.copy()
    compiled.couple(a, st, reciprocal, 2, True)
    portable.couple(b, st, reciprocal, 2, True)
    assert np.abs(a.astype(np.int64) - b).max() <= 1
    indexes = rng.integers(0, 128, y.shape).astype(np.uint8)
    symbols = compiled.quantise(y, parameters, indexes, gain, zone, 2)
    assert np.array_equal(symbols, portable.quantise(y, parameters, indexes, gain, zone, 2))
    assert len(np.unique(symbols)) > 5
    bits, base, size = model.tables.symbol_bits()
    costs = bits, base.astype(np.int32), size.astype(np.int32), model.tables.offsets
    rates = rng.integers(-400_000, 400_000, (3, 12)).astype(np.int32), np.stack([gain] * 3), np.stack([1 / gain] * 3)
    for stride in (1, 2):
        sums = [
            part.tally(y, parameters, 2, model.integer["tables.log2"], -211838, 6288, *rates, zone, costs, stride) for part in (compiled, portable)
        ]
        assert np.allclose(*sums, rtol=2e-3)
