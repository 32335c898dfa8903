"""The GPU's backend and engine on this machine's CPU: Triton kernels under its interpreter, and the same walk in float64."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load

from msinn_core import bitstream, engines
from msinn_core.codec import Codec
from msinn_core.entropy import rans
from msinn_core.errors import BitstreamError, CheckpointError, DeviceMemoryError
from msinn_core.float.model import Msinn
from msinn_core.heads import SCALES, read_heads
from msinn_core.integer import bands, portable
from msinn_core.integer.bands import PictureBands
from msinn_core.integer.gpu import backend as gpu_backend
from msinn_core.integer.gpu import layers as gpu_layers
from msinn_core.integer.gpu.backend import OnDevice, on_device
from msinn_core.integer.gpu.engine import DeviceEngine
from msinn_core.integer.gpu.fused import Fused
from msinn_core.integer.gpu.layers import Convolution, TritonLayers
from msinn_core.integer.network import IntegerNetwork
from msinn_core.integer.ops import CORNERS, DENSE, EDGES, NUM_TAPS, POINT, Compiled, Layer
from msinn_core.integer.portable import Float64Layers
from msinn_core.model_file import LoadedModel, parse_model
from msinn_core.picture import Picture
from pipeline.archive.archive import Archive
from pipeline.execute.placement import Placement
from pipeline.plan.config import Budget, CompressConfig
from pipeline.run.compress import Run
from pipeline.run.report import JsonReporter

CPU = torch.device("cpu")
GOLDEN = Path(__file__).parents[2] / "golden" / "integer"
FORMS = [pytest.param(Float64Layers, id="float64"), pytest.param(TritonLayers, id="triton")]


def one_block(kind: int, cin: int, cout: int) -> gpu_layers.Tile:
    """The interpreter's cost is by the operation, whatever its size: all taps and all channels at once."""
    inputs = 1 << (cin - 1).bit_length()
    return gpu_layers.Tile(256, max(16, 1 << (cout - 1).bit_length()), max(32, inputs) if kind == POINT else 16 * max(8, inputs), 4)


class FewPrograms(TritonLayers):
    """For whole networks."""

    def __init__(self) -> None:
        super().__init__()
        self.tile_for = one_block


NETWORKS = [pytest.param(Float64Layers, id="float64"), pytest.param(FewPrograms, id="triton")]


@pytest.fixture(scope="module")
def tiny() -> LoadedModel:
    return parse_model((GOLDEN / "model.safetensors").read_bytes())


def device_codec(model: LoadedModel, form: type[Float64Layers] | type[TritonLayers]) -> Codec:
    return Codec(model, backend=on_device(CPU, form()), threads=2)


@pytest.fixture(scope="module", params=NETWORKS)
def device(request: pytest.FixtureRequest, tiny: LoadedModel) -> Codec:
    """Each network, which has compared the golden vector, with heads: made once, for the interpreter takes ten seconds for it."""
    heads = read_heads(load((GOLDEN.parent / "heads" / "heads.safetensors").read_bytes()))
    return device_codec(replace(tiny, heads=heads), request.param)


def test_smaller_pictures_are_those_of_the_cpu(device: Codec) -> None:
    codec, data = Codec(device.model), (GOLDEN / "colour-5.53.msn").read_bytes()
    assert isinstance(device.engine, DeviceEngine)
    assert {scale: device.decode_reduced(data, scale).content() for scale in SCALES} == {
        scale: codec.decode_reduced(data, scale).content() for scale in SCALES
    }


def random_layer(rng: np.random.Generator, kind: int, cin: int, cout: int, *, largest: bool) -> Layer:
    """Many small weights, as large as the bound allows, or two of the largest; every shift."""
    weight = rng.integers(-32767, 32768, (cout, NUM_TAPS[kind], cin)).astype(np.int64)
    if largest:
        weight[:] = 0
        weight[:, 0, 0], weight[:, -1, -1] = gpu_layers.LARGEST_WEIGHT, -gpu_layers.LARGEST_WEIGHT
    else:
        weight = (weight * (((1 << 31) - (1 << 30)) / 32768 / np.abs(weight).sum(axis=(1, 2), keepdims=True))).astype(np.int64)
    bias = rng.integers(-(1 << 15), 1 << 15, cout).astype(np.int32)
    shift = (np.arange(cout) % (16 if largest else 30) + 1).astype(np.int32)
    return Layer(weight.astype(np.int16), bias, shift, kind, leaky=largest)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", [DENSE, EDGES, CORNERS, POINT])
@pytest.mark.parametrize("shape", [(1, 2, 2, 1), (5, 6, 6, 32), (3, 4, 48, 34), (4, 2, 96, 64), (7, 4, 12, 16), (2, 3, 16, 16)])
def test_layers_are_those_of_the_scalar_kernel(form: type[Convolution], kind: int, shape: tuple[int, int, int, int]) -> None:
    h, w, cin, cout = shape
    rng = np.random.default_rng((kind, h, cin))
    convolution = form()
    for largest in (False, True):
        layer = random_layer(rng, kind, cin, cout, largest=largest)
        x = rng.integers(-32768, 32768, (2, h, w, cin)).astype(np.int16)
        x[0, 0], x[1, -1] = -32768, 32767
        add = rng.integers(-32768, 32768, (2, h, w, cout)).astype(np.int16) if largest else None
        for parity in (0, 1):
            placed = None if add is None else torch.from_numpy(add)
            ours = convolution(torch.from_numpy(x), layer, parity, placed).numpy()
            theirs = [Compiled(isa=0).conv(x[i], layer, parity=parity, add=None if add is None else add[i]) for i in range(2)]
            assert np.array_equal(ours, np.stack(theirs))


def test_a_weight_of_three_limbs_is_refused() -> None:
    layer = random_layer(np.random.default_rng(0), POINT, 2, 1, largest=True)
    layer.weight[0, 0, 0] = 32640
    with pytest.raises(CheckpointError, match="a weight of this model is 32640; the GPU kernels take 32639"):
        TritonLayers()(torch.zeros((1, 2, 2, 2), dtype=torch.int16), layer, 0, None)


def test_the_golden_vector_and_the_golden_bitstreams(tiny: LoadedModel, device: Codec, request: pytest.FixtureRequest) -> None:
    assert isinstance(device.engine, DeviceEngine)
    paths = sorted(GOLDEN.glob("*.msn"))
    assert len(paths) == len(json.loads((GOLDEN / "expected.json").read_text()))
    if "triton" in request.node.callspec.id:
        paths = paths[1:2]  # the interpreter takes ten seconds for a walk
    reference = Codec(tiny)
    for path, found in zip(paths, device.decode_many([path.read_bytes() for path in paths], batch=4), strict=True):
        assert isinstance(found, tuple)
        assert np.array_equal(found[0].pixels, reference.decode(path.read_bytes())[0].pixels)


def test_a_batch_gives_what_its_pictures_give_alone(tiny: LoadedModel, photo: NDArray[np.uint8]) -> None:
    pictures = [Picture(pixels=photo[i : i + 30, :41].copy()) for i in range(3)] + [Picture(pixels=photo[:64, 9:41, 0].copy())]
    rates = [0.0, 5.25, 11.0, 3.0]
    reference, codec = Codec(tiny), device_codec(tiny, Float64Layers)
    coded = codec.encode_many(pictures, rates)
    assert coded == [reference.encode(picture, q) for picture, q in zip(pictures, rates, strict=True)]
    damaged = bytearray(coded[1])
    damaged[-3] ^= 255
    found = codec.decode_many([coded[0], bytes(damaged), coded[2], coded[3], b"no bitstream"])
    for number, data in ((0, coded[0]), (2, coded[2]), (3, coded[3])):
        mine = found[number]
        assert isinstance(mine, tuple)
        theirs, symbols = reference.decode(data)
        assert np.array_equal(mine[0].pixels, theirs.pixels)
        assert all(np.array_equal(a, b) for a, b in zip(mine[1], symbols, strict=True))
    assert isinstance(found[1], BitstreamError)
    assert isinstance(found[4], BitstreamError)


@pytest.mark.parametrize("shape", [(352, 64), (64, 352)])
def test_large_pictures_in_bands_are_the_same(
    shape: tuple[int, int], tiny: LoadedModel, photo: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two at once, in bands of 32 half-size rows or columns, or as few as the layers allow."""
    pictures = [Picture(pixels=photo[i : i + shape[0], : shape[1]].copy()) for i in (0, 9)]
    coded = [Codec(tiny).encode(picture, q) for picture, q in zip(pictures, (3.0, 9.0), strict=True)]
    monkeypatch.setattr(gpu_backend, "BAND_BYTES", 1)
    monkeypatch.setattr(gpu_backend, "BAND_POSITIONS", 1)
    monkeypatch.setattr(bands, "_LEAST_ROWS", 32)
    codec = device_codec(tiny, Float64Layers)
    cut = PictureBands.of(shape[0] // 2, shape[1] // 2, 1)
    assert cut is not None
    assert (cut.axis, cut.length, cut.band) == (shape.index(352), 176, 32)
    assert codec.encode_many(pictures, [3.0, 9.0]) == coded
    for found, data in zip(codec.decode_many(coded), coded, strict=True):
        assert isinstance(found, tuple)
        assert np.array_equal(found[0].pixels, Codec(tiny).decode(data)[0].pixels)


def test_a_damaged_alpha_plane_costs_its_picture_alone(tiny: LoadedModel, photo: NDArray[np.uint8]) -> None:
    """Found when the batch is done: the others are there."""
    heads = read_heads(load((GOLDEN.parent / "heads" / "heads.safetensors").read_bytes()))
    model = replace(tiny, heads=heads)
    reference, codec = Codec(model), device_codec(model, Float64Layers)
    good = reference.encode(Picture(pixels=photo[:32, :32].copy()), 3.0)
    parts = bitstream.parse(good)
    bad = replace(parts, boxes={bitstream.ALPHA: b"no deflate"}).to_bytes()
    found = codec.decode_many([good, bad, good])
    assert [type(one) for one in found] == [tuple, BitstreamError, tuple]
    smaller = codec.decode_reduced_batch([(good, None), (bad, None), (good, None)], 4)
    assert [type(one) for one in smaller] == [Picture, BitstreamError, Picture]
    assert isinstance(smaller[2], Picture)
    assert np.array_equal(smaller[2].pixels, reference.decode_reduced(good, 4).pixels)
    assert codec.reduced_size_of(good, 4) == (8, 32)
    assert codec.reduced_size_of(b"no bitstream", 4) is None


def test_one_by_one_through_the_same_interface(tiny: LoadedModel, photo: NDArray[np.uint8]) -> None:
    picture = Picture(pixels=photo[:64, :96].copy())
    reference, codec = Codec(tiny), device_codec(tiny, Float64Layers)
    data = codec.encode(picture, 4.5)
    assert data == reference.encode(picture, 4.5)
    assert np.array_equal(codec.decode(data)[0].pixels, reference.decode(data)[0].pixels)
    ours, theirs = codec.analyse(picture), reference.analyse(picture)
    assert np.allclose(ours.bytes, theirs.bytes, rtol=1e-3)
    assert np.allclose(ours.mse, theirs.mse, rtol=1e-3)


def test_too_little_memory_halves_the_batch(tiny: LoadedModel, photo: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch) -> None:
    codec = device_codec(tiny, Float64Layers)
    engine = codec.engine
    assert isinstance(engine, DeviceEngine)
    sizes: list[int] = []
    right = engine.transform_many

    def small(pixels: NDArray[np.uint8]) -> list[torch.Tensor]:
        sizes.append(len(pixels))
        if len(pixels) > 2:
            raise DeviceMemoryError("cuda has too little memory for this batch")
        return right(pixels)

    monkeypatch.setattr(engine, "transform_many", small)
    pictures = [Picture(pixels=photo[i : i + 32, :32].copy()) for i in range(5)]
    coded = codec.encode_many(pictures, [6.0] * 5)
    assert sizes == [5, 2, 3, 1, 2]
    assert coded == [Codec(tiny).encode(picture, 6.0) for picture in pictures]


class Wrong(Float64Layers):
    def __call__(self, x: torch.Tensor, layer: Layer, parity: int, add: torch.Tensor | None) -> torch.Tensor:
        return super().__call__(x, layer, parity, add) + 1


def refuses(*_: object) -> Convolution:
    raise RuntimeError("no driver")


@pytest.mark.parametrize(
    ("triton", "float64", "chosen", "said"),
    [
        (lambda where: None, Float64Layers, "DeviceEngine", None),
        (refuses, Float64Layers, "DeviceEngine", r"cuda computes in float64 \(Triton: no driver\)"),
        (
            lambda where: Wrong(),
            Float64Layers,
            "DeviceEngine",
            r"cuda computes in float64 \(Triton: its results differ from the model's golden vector\)",
        ),
        (lambda where: None, Wrong, "IntegerEngine", r"cuda is not used, the CPU is \(Triton: not installed; float64: its results differ"),
        (refuses, refuses, "IntegerEngine", r"cuda is not used, the CPU is \(Triton: no driver; float64: no driver\)"),
    ],
)
def test_a_gpu_that_computes_wrongly_or_not_at_all_gives_way(
    tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch, triton: object, float64: object, chosen: str, said: str | None
) -> None:
    monkeypatch.setattr(gpu_layers, "triton_layers", triton)
    monkeypatch.setattr(portable, "Float64Layers", float64)
    # This machine's CPU stands in for the GPU.
    monkeypatch.setattr(gpu_backend, "on_device", lambda where, layers, **how: on_device(CPU, layers, **how))
    with pytest.warns(UserWarning, match=said) if said else contextlib.nullcontext():
        engine = engines.engine_for(tiny, device="cuda")
    assert type(engine).__name__ == chosen


class LayersInPlace(TritonLayers):
    """Layers that are right, and quick here."""

    def __call__(self, x: torch.Tensor, layer: Layer, parity: int, add: torch.Tensor | None) -> torch.Tensor:
        return Float64Layers()(x, layer, parity, add)


def test_kernels_between_the_layers_that_compute_wrongly_give_way_alone(tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_layers, "triton_layers", lambda where: LayersInPlace())
    monkeypatch.setattr(gpu_backend, "on_device", lambda where, layers, **how: on_device(CPU, layers, **how))
    right = Fused.narrowed
    monkeypatch.setattr(Fused, "narrowed", lambda self, shift, *parts: right(self, shift, *parts) + 1)
    with pytest.warns(UserWarning, match="cuda computes in Triton for the layers alone \\(Triton: its results differ from the model's golden vector"):
        engine = engines.engine_for(tiny, device="cuda")
    assert isinstance(engine, DeviceEngine)
    assert type(engine.backend) is OnDevice


def test_a_backend_of_ones_own_that_computes_wrongly_is_refused(tiny: LoadedModel) -> None:
    with pytest.raises(CheckpointError, match="golden vector"):
        engines.engine_for(tiny, backend=on_device(CPU, Wrong()))


def test_a_worker_on_a_gpu_writes_what_one_on_the_cpu_writes(
    tiny: LoadedModel, photo: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the CPU in the GPU's place: the same shards, the sample decoded by the CPU; what is too large for the device is coded beside it, and
    checked by another instruction set."""
    monkeypatch.setattr(gpu_layers, "triton_layers", lambda where: None)
    monkeypatch.setattr(gpu_backend, "on_device", lambda where, layers, **how: on_device(CPU, layers, **how))
    (tmp_path / "in").mkdir()
    for i in range(3):
        Image.fromarray(photo[i : i + 48, : 64 + 32 * i]).save(tmp_path / "in" / f"{i}.bmp")
    model = tmp_path / "tiny.safetensors"
    model.write_bytes(tiny.data)
    right = DeviceEngine.transform_many

    def small(self: DeviceEngine, pixels: NDArray[np.uint8]) -> list[torch.Tensor]:
        if pixels.shape[2] > 100:
            raise DeviceMemoryError("cuda has too little memory for this batch")
        return right(self, pixels)

    monkeypatch.setattr(DeviceEngine, "transform_many", small)
    made, decoders = {}, []
    decode = Codec.decode
    monkeypatch.setattr(Codec, "decode", lambda self, data: (decoders.append(self.engine.name), decode(self, data))[1])
    for device in ("cpu", "cuda"):
        decoders.clear()
        config = CompressConfig(budget=Budget(kind="q", value=0.0), model=str(model), device=device, verify_sample=1.0)
        Run(str(tmp_path / "in"), str(tmp_path / device), config, JsonReporter(io.StringIO()), placement=Placement(executor="local")).execute()
        made[device] = sorted(path.name for path in (tmp_path / device / "shards").iterdir())
        rows = Archive(str(tmp_path / device)).manifest(["encoder", "decode_verified", "status", "error"]).to_pylist()
        assert [(row["status"], row["error"]) for row in rows] == [("coded", None)] * 3, device
        assert all(row["decode_verified"] for row in rows)
    assert made["cpu"] == made["cuda"]
    best = Codec(tiny)
    assert sorted(decoders) == sorted([best.engine.name, best.engine.name, best.counterpart().engine.name])


def test_symbols_are_decoded_in_place(tiny: LoadedModel) -> None:
    symbols, indexes = np.array([1, -2, 0, 700], np.int32), np.array([5, 60, 3, 9], np.uint8)
    out = np.full(6, 9, np.int32)
    data = rans.encode(symbols, indexes, tiny.tables)
    assert rans.decode(data, indexes, tiny.tables, out[1:5]) is not None
    assert out.tolist() == [9, 1, -2, 0, 700, 9]
    rans.decode(b"", indexes, tiny.tables, out[1:5])
    assert out.tolist() == [9, 0, 0, 0, 0, 9]


def test_every_network_offers_what_the_walk_needs(tiny: LoadedModel) -> None:
    from msinn_core.walk import Network

    steps = [name for name in vars(Network) if not name.startswith("_")]
    assert len(steps) == 10
    for network in (IntegerNetwork(tiny.config, tiny.integer, Compiled()), Msinn(tiny.config)):
        assert all(callable(getattr(network, name)) for name in steps)
