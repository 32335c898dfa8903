"""Pictures of less than full size: the same on every backend, from the first bytes alone, close to full pictures; damage is refused."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import google_crc32c
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from msinn_core import bitstream, errors, metrics, model_file
from msinn_core.codec import Codec
from msinn_core.errors import BitstreamError, CheckpointError, ConfigError
from msinn_core.heads import SCALES, Head, channels_of, head_tensors, read_heads, stride_after
from msinn_core.heads_fitting import PLANS, fit_heads
from msinn_core.integer import ops
from msinn_core.integer.backend import Backend
from msinn_core.integer.gpu.backend import OnDevice
from msinn_core.integer.ops import AMX, AVX2, AVX512, DENSE, SCALAR, SSE41, Compiled
from msinn_core.integer.portable import Float64Layers, Portable
from msinn_core.model_file import LoadedModel, heads_of, integer_model_bytes, parse_model
from msinn_core.picture import Picture
from msinn_core.reduction import area_reduced, reduced_picture, reduced_side


def backends() -> Iterator[Backend]:
    if ops.kernel is not None:
        for isa in (AMX, AVX512, AVX2, SSE41, SCALAR):
            yield Compiled(isa=isa)
        yield Compiled(threads=3)
    yield OnDevice(torch.device("cpu"), Float64Layers())


@pytest.fixture(scope="module")
def heads(model: LoadedModel) -> dict[int, Head]:
    return dict(heads_of(model))


@pytest.fixture(scope="module")
def odd(photo: NDArray[np.uint8]) -> Picture:
    """Sides that no scale divides, with alpha and metadata."""
    pixels = photo[100:177, 40:169].copy()
    return Picture(pixels=pixels, alpha=pixels[..., 0].copy(), icc=b"profile" * 30, exif=b"Exif\0\0rest")


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (32, 16), (33, 17, 3)])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_area_reduction_is_the_mean_of_what_there_is(scale: int, shape: tuple[int, ...], kind: type) -> None:
    plane = np.random.default_rng(scale).integers(0, np.iinfo(kind).max, shape, endpoint=True).astype(kind)
    found = area_reduced(plane, scale)
    assert (found.shape[:2], found.dtype) == ((reduced_side(shape[0], scale), reduced_side(shape[1], scale)), plane.dtype)
    for i, j in np.ndindex(found.shape[:2]):
        block = plane[i * scale : (i + 1) * scale, j * scale : (j + 1) * scale].astype(np.float64)
        np.testing.assert_array_equal(found[i, j], np.floor(block.mean(axis=(0, 1)) + 0.5))


@pytest.mark.parametrize("q", [0.0, 5.5, 11.0])
def test_smaller_pictures_are_the_same_on_every_backend(model: LoadedModel, odd: Picture, q: float) -> None:
    reference = Codec(model, backend=Portable())
    data = Codec(model).encode(replace(odd, alpha=None), q)
    expected = {scale: reference.decode_reduced(data, scale).content() for scale in SCALES}
    for backend in backends():
        codec = Codec(model, backend=backend)
        assert {scale: codec.decode_reduced(data, scale).content() for scale in SCALES} == expected


def test_the_layer_of_every_head_is_exact(model: LoadedModel, heads: dict[int, Head]) -> None:
    """State of every size, up to what 32 bits hold."""
    rng = np.random.default_rng(5)
    network = Codec(model, backend=Portable()).engine.network  # type: ignore[attr-defined]
    for head in heads.values():
        stride = stride_after(head.num_steps)
        channels = channels_of(stride, head.num_steps)
        shape = 192 // stride, 256 // stride
        state = (rng.integers(-(1 << 26), 1 << 26, (*shape, channels)) >> rng.integers(0, 16, (*shape, 1))).astype(np.int32)
        expected = network.reduced(state, head)
        assert len(np.unique(expected)) > 20
        for backend in backends():
            other = Codec(model, backend=backend).engine.network  # type: ignore[attr-defined]
            placed = backend.to_device(state if not backend.lead else state[None])
            assert np.array_equal(backend.to_host(other.reduced(placed, head)).reshape(expected.shape), expected)


@pytest.mark.parametrize(("scale", "least_db"), [(2, 38.0), (4, 34.0), (8, 34.0), (16, 34.0)])
def test_they_are_close_to_the_full_picture_area_downscaled(codec: Codec, photo: NDArray[np.uint8], scale: int, least_db: float) -> None:
    """34 dB at q = 5 is what the issue asks of 1/4. One photo, so that a tenth of a dB more or less says nothing."""
    data = codec.encode(Picture(pixels=photo), 5.0)
    full = reduced_picture(codec.decode(data)[0], scale)
    found = codec.decode_reduced(data, scale)
    assert metrics.psnr_db(metrics.mse(found.pixels, full.pixels)) > least_db


@pytest.mark.parametrize("scale", SCALES)
def test_the_first_bytes_are_enough(codec: Codec, heads: dict[int, Head], odd: Picture, scale: int) -> None:
    data = codec.encode(odd, 4.0)
    prefix = bitstream.prefix_of(data[: bitstream.MAX_HEADER_BYTES], heads[scale].num_streams)
    assert prefix.alpha is not None
    first, length = prefix.alpha
    assert prefix.size < first
    assert first + length == len(data)
    expected = codec.decode_reduced(data, scale, data[first:])
    found = codec.decode_reduced(data[: prefix.size], scale, data[first:])
    assert found.content() == expected.content()
    assert found.pixels.shape == (reduced_side(77, scale), reduced_side(129, scale), 3)
    assert (found.icc, found.exif) == (odd.icc, odd.exif)
    assert odd.alpha is not None
    assert np.array_equal(np.asarray(found.alpha), area_reduced(odd.alpha, scale))
    with pytest.raises(errors.TruncatedError):
        codec.decode_reduced(data[: prefix.size - 1], scale, data[first:])
    with pytest.raises(errors.TruncatedError):
        codec.decode_reduced(data[: prefix.size], scale)
    assert codec.decode_reduced(data, scale).content() == expected.content()
    with pytest.raises(errors.TruncatedError):
        bitstream.prefix_of(data[:30], 2)


def test_grey_stays_grey(codec: Codec, photo: NDArray[np.uint8]) -> None:
    data = codec.encode(Picture(pixels=photo[:70, :50, 1].copy()), 5.0)
    assert [codec.decode_reduced(data, scale).pixels.shape for scale in SCALES] == [(35, 25), (18, 13), (9, 7), (5, 4)]


def test_only_damage_before_the_end_of_the_prefix_matters(codec: Codec, heads: dict[int, Head], tile: Picture) -> None:
    data = codec.encode(tile, 6.0)
    sound = codec.decode_reduced(data, 4).content()
    prefix = bitstream.prefix_of(data, heads[4].num_streams)
    start = len(data) - sum(map(len, bitstream.parse(data).streams))
    rng = np.random.default_rng(1)
    for position in [*rng.integers(0, start, 20), *rng.integers(start, prefix.size, 60)]:
        hurt = bytearray(data)
        hurt[position] ^= 1 << int(rng.integers(0, 8))
        if start - 8 <= position < start - 4:
            continue  # the checksum of the whole payload
        with pytest.raises(BitstreamError):
            codec.decode_reduced(bytes(hurt), 4)
    for position in rng.integers(prefix.size, len(data), 20):
        hurt = bytearray(data)
        hurt[position] ^= 0x55
        assert codec.decode_reduced(bytes(hurt), 4).content() == sound
        with pytest.raises(errors.ChecksumError):
            codec.decode(bytes(hurt))


def test_a_stream_that_is_marked_as_deflated_is_refused(codec: Codec, tile: Picture) -> None:
    data = bytearray(codec.encode(tile, 3.0))
    count = struct.unpack_from("<H", data, 34)[0]
    data[36] |= 0x80
    data[40 + 5 * count : 44 + 5 * count] = struct.pack("<I", google_crc32c.value(bytes(data[: 40 + 5 * count])))
    with pytest.raises(BitstreamError, match="deflated"):
        codec.decode_reduced(bytes(data), 4)


def test_a_model_without_heads_says_so(tiny: LoadedModel, tile: Picture) -> None:
    codec = Codec(tiny)
    assert dict(codec.heads) == {}
    with pytest.raises(ConfigError, match="no head for scale 4"):
        codec.decode_reduced(codec.encode(tile, 3.0), 4)


def test_heads_are_fitted_and_travel_in_the_model_file(tiny: LoadedModel, photo: NDArray[np.uint8]) -> None:
    pictures = [Picture(pixels=photo[96 * i : 96 * i + 96, :256].copy()) for i in range(5)]
    fitted = fit_heads(Codec(tiny), pictures)
    data = integer_model_bytes(tiny.config, tiny.integer, tiny.golden, name="with heads", tables=tiny.tables, heads=fitted)
    model = parse_model(data)
    assert {scale: (head.num_streams, head.num_steps) for scale, head in model.heads.items()} == PLANS
    assert heads_of(model) is model.heads
    codec = Codec(model)
    coded = codec.encode(Picture(pixels=photo[:96, 256:].copy()), 8.0)
    full = reduced_picture(codec.decode(coded)[0], 2)
    # The golden model is hardly trained: it is enough that the head has most of what there is to see.
    assert metrics.mse(codec.decode_reduced(coded, 2).pixels, full.pixels) < float(full.pixels.var()) / 3
    with pytest.raises(ConfigError, match="needs pictures"):
        fit_heads(Codec(tiny), [])


def changed(name: str, change: Callable[[NDArray[Any]], NDArray[Any]]) -> Callable[[dict[str, NDArray[Any]]], None]:
    def apply(tensors: dict[str, NDArray[Any]]) -> None:
        tensors[name] = change(tensors[name])

    return apply


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda tensors: tensors.pop("heads.4.bias"), "lacks 4.bias"),
        (lambda tensors: tensors.pop("heads.4.weight"), "missing or of the wrong shape"),
        (changed("heads.4.plan", lambda plan: np.array([7, 3], np.int32)), "gives no such picture"),
        (changed("heads.4.plan", lambda plan: np.array([2, 1], np.int32)), "gives no such picture"),
        (changed("heads.4.plan", lambda plan: np.array([4, 9], np.int32)), "gives no such picture"),
        (changed("heads.4.plan", lambda plan: np.array([0, 3], np.int32)), "leaves the range"),
        (changed("heads.4.plan", lambda plan: np.array([6, 4], np.int32)), "not 24 to 3"),
        (changed("heads.4.weight", lambda weight: np.full_like(weight, 32767)), "can overflow"),
        (changed("heads.4.weight", lambda weight: weight[:2]), "of the integer model"),
        (changed("heads.4.in_shift", lambda shift: shift + 30), "leaves the range"),
    ],
)  # fmt: skip
def test_damaged_heads_are_refused(heads: dict[int, Head], damage: Callable[[dict[str, NDArray[Any]]], None], said: str) -> None:
    tensors = head_tensors(heads[4])
    assert read_heads(tensors)[4].layer.kind == DENSE
    damage(tensors)
    with pytest.raises(CheckpointError, match=said):
        read_heads(tensors)


def test_shipped_heads_are_those_that_were_recorded(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = model_file.shipped_heads()
    assert model.sha256 in recorded
    monkeypatch.setattr(model_file, "shipped_heads", lambda: {model.sha256: recorded[model.sha256] | {"sha256": "0" * 64}})
    with pytest.raises(CheckpointError, match="are damaged"):
        heads_of(model)
    monkeypatch.setattr(model_file, "shipped_heads", lambda: {model.sha256: {"file": "none.safetensors", "sha256": ""}})
    with pytest.raises(CheckpointError, match="install msinn again"):
        heads_of(model)
