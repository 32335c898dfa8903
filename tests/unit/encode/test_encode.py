"""One image coded, checked and brought to a quality: what becomes of it when something fails, and the search by itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from msinn_core import metrics
from msinn_core.codec import Codec
from msinn_core.coding import Latents, Symbols
from msinn_core.errors import CodecError, DeviceMemoryError
from msinn_core.integer.network import IntegerNetwork
from msinn_core.model_file import LoadedModel
from msinn_core.picture import Picture
from msinn_core.prediction import Curves
from pipeline.encode.coder import ImageCoder
from pipeline.encode.item import Item
from pipeline.encode.search import PSNR_WINDOW_DB, Bracket, verify
from pipeline.encode.tasks import ImageTask, WorkConfig
from pipeline.encode.trim import split_for_trim
from pipeline.formats import images
from pipeline.formats.outcome import Kept, Reason
from pipeline.plan.curves import KEPT_Q
from pipeline.sources.record import Part, SourceRecord

RECORD = SourceRecord(0, "a.png", Part("file", "a.png", 0))


@pytest.fixture
def coder(model: LoadedModel) -> ImageCoder:
    return ImageCoder(model, WorkConfig(target_psnr_db=None, max_pixels=10**6, count_sidecars=False, ms_ssim=False))


def item_of(picture: Picture, q: float = 4.0, min_psnr_db: float | None = None) -> Item:
    loaded = images.LoadedImage(info=images.ImageInfo(), picture=picture)
    return Item(ImageTask(RECORD, q, min_psnr_db=min_psnr_db), bytes(10**6), loaded)


def started(coder: ImageCoder, item: Item) -> Item:
    coder.compress(item, item.task.q)
    coder.pack(item)
    return item


class Small(Codec):
    """A codec of a device with too little memory."""

    def transform(self, picture: Picture) -> Latents:
        raise DeviceMemoryError("cuda has too little memory for this batch")


class Wrong(Codec):
    """A codec of a device that computes wrongly: what it packs is not what it meant."""

    def pack(self, symbols: Symbols) -> bytes:
        return super().pack(replace(symbols, picture=replace(symbols.picture, icc=b"other")))


class Garbled(Codec):
    """Another, whose streams are no streams."""

    def pack(self, symbols: Symbols) -> bytes:
        return super().pack(symbols)[:-4]


class Broken(Codec):
    """A codec that fails."""

    def curves(self, latents: Latents, *, last: bool = False) -> Curves:
        raise CodecError("it does not analyse")

    def pack(self, symbols: Symbols) -> bytes:
        raise CodecError("it does not pack")


def test_what_is_coded_is_what_the_codec_alone_codes(coder: ImageCoder, codec: Codec, tile: Picture) -> None:
    item = started(coder, item_of(tile))
    assert item.data == codec.encode(tile, 4.0)
    assert coder.measure(item)
    assert item.measured is not None
    assert item.measured.mse == metrics.mse(codec.decode(item.data)[0].pixels, tile.pixels)


def test_an_image_too_large_for_the_device_is_coded_by_the_cpu_and_stays_there(coder: ImageCoder, tile: Picture, model: LoadedModel) -> None:
    alone = started(coder, item_of(tile)).data
    coder.codec = Small(model)
    item = started(coder, item_of(tile))
    assert (item.coded, item.on_checker, item.data) == (True, True, alone)
    latents = item.latents
    coder.compress(item, 5.0)
    assert item.latents is latents, "transformed again"
    assert item.symbols is not None
    assert item.symbols.q == pytest.approx(5.0, abs=0.01)


@pytest.mark.parametrize(("kind", "message"), [(Wrong, "other symbols or metadata"), (Garbled, "does not decode"), (Broken, "it does not pack")])
def test_what_fails_is_kept_and_says_why(kind: Any, message: str, coder: ImageCoder, tile: Picture, model: LoadedModel) -> None:
    coder.codec = kind(model)
    item = started(coder, item_of(tile))
    assert not (item.coded and coder.measure(item))
    assert isinstance(item.outcome, Kept)
    assert (item.reason, message in (item.outcome.message or ""), item.payload) == (Reason.CODEC_FAILED, True, item.source)
    assert not item.outcome.message or len(item.outcome.message) <= 300


def test_bytes_that_change_before_they_are_checked_are_found(coder: ImageCoder, tile: Picture) -> None:
    whole = started(coder, item_of(replace(tile, icc=b"profile"))).data
    assert whole is not None
    for position in (*range(0, len(whole), 97), len(whole) - 1):
        item = started(coder, item_of(replace(tile, icc=b"profile")))
        item.data = whole[:position] + bytes([whole[position] ^ 0x10]) + whole[position + 1 :]
        assert not coder.measure(item), position
        assert item.reason == Reason.CODEC_FAILED


def test_a_try_leaves_the_last_level_until_it_is_measured(coder: ImageCoder, codec: Codec, tile: Picture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is anything measured twice for the same symbols."""
    pictures: list[int] = []
    right = IntegerNetwork.picture
    monkeypatch.setattr(IntegerNetwork, "picture", lambda self, support: (pictures.append(1), right(self, support))[1])
    item = item_of(tile)
    for q in (3.0, 4.0, 5.0):
        coder.compress(item, q, tentative=True)
        coder.pack(item)
    assert not pictures
    assert coder.measure(item)
    assert coder.measure(item)
    assert len(pictures) == 1
    coder.compress(item, 6.0)
    assert (item.measured, len(pictures)) == (None, 2)
    coder.pack(item)
    assert coder.measure(item)
    assert (item.data, len(pictures)) == (codec.encode(tile, 6.0), 2)
    assert item.measured is not None
    assert item.measured.mse == metrics.mse(codec.decode(item.data)[0].pixels, tile.pixels)  # type: ignore[arg-type]


def test_curves_of_what_cannot_be_analysed_are_none(coder: ImageCoder, tile: Picture, model: LoadedModel) -> None:
    assert coder.curves(tile, sampled=False) is not None
    coder.codec = Broken(model)
    assert coder.curves(tile, sampled=False) is None


def test_an_image_too_large_for_the_device_is_analysed_by_the_cpu(coder: ImageCoder, tile: Picture, model: LoadedModel) -> None:
    alone = coder.curves(tile, sampled=False)
    coder.codec = Small(model)
    found = coder.curves(tile, sampled=False)
    assert alone is not None
    assert found is not None
    assert np.array_equal(found.bytes, alone.bytes)
    assert coder.lost is None


@pytest.mark.parametrize("start", [0.0, 4.0, 11.0])
def test_a_quality_is_met_from_above(start: float, coder: ImageCoder, codec: Codec, tile: Picture) -> None:
    item = started(coder, item_of(tile, start))
    verify(coder, item, 36.0)
    assert item.coded
    assert item.data is not None
    assert item.measured is not None
    assert 36.0 <= metrics.psnr_db(item.measured.mse) <= 36.0 + 3 * PSNR_WINDOW_DB
    assert metrics.mse(codec.decode(item.data)[0].pixels, tile.pixels) == item.measured.mse
    assert item.clamp == "none"


def test_a_floor_raises_what_is_below_and_leaves_what_is_above(coder: ImageCoder, tile: Picture) -> None:
    low, high = started(coder, item_of(tile, 1.0, 36.0)), started(coder, item_of(tile, 9.0, 36.0))
    before = high.data
    verify(coder, low, None)
    verify(coder, high, None)
    assert low.measured is not None
    assert metrics.psnr_db(low.measured.mse) >= 36.0
    assert (low.clamp, high.clamp, high.data) == ("floor", "none", before)


def test_a_quality_out_of_reach_is_kept(coder: ImageCoder, tile: Picture) -> None:
    item = started(coder, item_of(tile))
    verify(coder, item, 90.0)
    assert item.reason == Reason.QUALITY_UNREACHABLE


@pytest.mark.parametrize("slope", [1.2, 1.8, 2.6])
@pytest.mark.parametrize("start", [0.0, 5.0, 11.0])
def test_a_bracket_closes_in_on_its_target(slope: float, start: float) -> None:
    bracket, q = Bracket(32.0, 11.0), start
    for _ in range(12):
        psnr_db = 30 + slope * q - 0.02 * q * q
        if bracket.add(q, psnr_db):
            break
        q = bracket.following(q, psnr_db)
    assert bracket.above is not None
    assert 32.0 <= bracket.above[1] <= 32.0 + PSNR_WINDOW_DB
    assert bracket.below is None or bracket.below[0] < bracket.above[0]


def test_a_bracket_ends_at_the_ends_of_the_rates() -> None:
    assert Bracket(60.0, 11.0).add(11.0, 45.0)
    assert Bracket(20.0, 11.0).add(0.0, 28.0)
    assert not Bracket(40.0, 11.0).add(5.0, 38.0)
    assert Bracket(60.0, 11.0).following(10.0, 44.0) == 11.0
    assert Bracket(20.0, 11.0).following(1.0, 30.0) == 0.0


@pytest.mark.parametrize(("pixels", "last"), [((100, 100, 100), 3), ((9_000_000,) * 3, 1), ((10, 17_000_000, 10), 1), ((17_000_000,), 1)])
def test_a_trim_holds_the_last_images_that_fit_in_memory(pixels: tuple[int, ...], last: int) -> None:
    tasks = tuple(ImageTask(RECORD, 4.0, pixels=count) for count in pixels)
    first, held = split_for_trim(tasks)
    assert (len(held), (*first, *held)) == (last, tasks)


def test_a_trim_has_something_to_trim() -> None:
    """The last images are kept as files: nothing of them can move."""
    kept = [ImageTask(RECORD, KEPT_Q, pixels=17_000_000), ImageTask(RECORD, 4.0, skip_reason=Reason.BROKEN, pixels=10)]
    tasks = (ImageTask(RECORD, 4.0, pixels=10), ImageTask(RECORD, 4.0, pixels=17_000_000), *kept)
    assert split_for_trim(tasks) == (tasks[:1], tasks[1:])
