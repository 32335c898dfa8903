"""What was drawn is coded by AVIF where the run offers that and it takes less, and is proved from its bytes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from msinn_core import metrics
from msinn_core.codec import Codec
from msinn_core.model_file import LoadedModel, load_model, parse_model
from msinn_core.picture import Picture
from pipeline.archive.layout import sha256
from pipeline.encode.coders import Coders
from pipeline.encode.drawn import DrawnCoder
from pipeline.encode.item import Item
from pipeline.encode.search import PSNR_WINDOW_DB, verify
from pipeline.encode.tasks import ImageTask, WorkConfig
from pipeline.encode.trim import _trim
from pipeline.formats import images
from pipeline.formats.outcome import Kept, Reason
from pipeline.forms import avif, jxl
from pipeline.forms.libraries import AbsentError
from pipeline.plan.curves import DRAWN
from pipeline.sources.record import Part, SourceRecord
from tests.unit.forms.test_avif import drawn

CONFIG = WorkConfig(target_psnr_db=None, max_pixels=10**6, count_sidecars=False, ms_ssim=False, avif=True)
SCREEN = Picture(pixels=drawn(96, 128), icc=b"profile", exif=b"Exif\0\0II*\0")


@pytest.fixture(scope="module")
def lite() -> LoadedModel:
    return load_model("msinn-lite")


def item_of(picture: Picture, q: float, model: int = DRAWN) -> Item:
    record = SourceRecord(index=0, name="a.png", part=Part("/a.png", 0, 1), restore_name="a.png", keep_name="a.png")
    return Item(ImageTask(record, q, model=model), bytes(10**6), images.LoadedImage(info=images.ImageInfo(), picture=picture))


def test_the_cheaper_one_is_chosen(lite: LoadedModel, photo: NDArray[np.uint8]) -> None:
    coders = Coders([lite], CONFIG)
    found = {}
    for name, picture in {"screen": SCREEN, "photo": Picture(pixels=photo[:96, :128].copy())}.items():
        network, number = coders.curves(picture, sampled=False)
        assert network is not None
        found[name] = coders.best(picture, network, number, sampled=False)
        assert coders.best(picture, None, number, sampled=False) == (None, number)
        assert Coders([lite], replace(CONFIG, avif=False)).best(picture, network, number, sampled=False) == (network, 0)
        if name == "photo":
            assert found[name] == (network, 0)
        else:
            curves = found[name][0]
            assert curves is not None
            assert found[name][1] == DRAWN
            assert (np.diff(curves.bytes) > 0).all()
            assert (np.diff(curves.mse) <= 0).all()
            for q in (0, 11):  # measured there, and not predicted
                item = item_of(picture, float(q))
                coders.compress(item, float(q))
                assert item.data is not None
                assert len(item.data) == pytest.approx(curves.bytes[q], rel=0.02)


def test_it_is_measured_from_its_bytes(lite: LoadedModel) -> None:
    coders, item = Coders([lite], CONFIG), item_of(SCREEN, 5.0)
    coders.compress(item, 5.0)
    coders.pack(item)
    assert coders.measure(item)
    assert item.data is not None
    assert item.measured is not None
    back = avif.AVIF.decode("avif", item.data, avif_bounds())
    assert back.metadata == {"icc": b"profile", "exif": b"Exif\0\0II*\0"}
    assert item.measured.recon_sha256 == sha256(back.content())
    assert item.measured.mse == metrics.mse(back.picture().pixels, SCREEN.pixels) > 0
    assert (item.codec, item.writer, item.encoder) == ("avif", avif.writer(), None)
    assert coders.decoded(item).content() == back.content()
    again = item.data
    coders.compress(item, 5.01)
    assert item.data is again, "of the same quality"
    item.release()
    assert (item.tried, item.q, item.data) == ({}, pytest.approx(5.01, abs=1e-3), again)


def avif_bounds() -> Any:
    from pipeline.forms.base import Bounds

    return Bounds(max_pixels=10**6, max_file_bytes=0)


def test_a_quality_is_searched_from_above(lite: LoadedModel) -> None:
    coders, item = Coders([lite], CONFIG), item_of(SCREEN, 5.0)
    coders.compress(item, 5.0)
    verify(coders, item, 36.0)
    assert item.coded
    assert item.measured is not None
    assert 36.0 <= metrics.psnr_db(item.measured.mse) <= 36.0 + PSNR_WINDOW_DB + 1.5


def test_what_the_library_refuses_is_kept(lite: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    coders = Coders([lite], CONFIG)
    network, _ = coders.curves(SCREEN, sampled=False)
    for error in (AbsentError("no library"), RuntimeError("out of order")):

        def fails(*_: object, error: Exception = error, **__: object) -> bytes:
            raise error

        monkeypatch.setattr(avif, "encoded", fails)
        item = item_of(SCREEN, 5.0)
        coders.compress(item, 5.0)
        assert isinstance(item.outcome, Kept)
        assert item.outcome.reason == Reason.CODEC_FAILED
        assert network is not None
        assert coders.best(SCREEN, network, 0, sampled=False) == (network, 0)


def test_a_decoder_that_loses_metadata_is_not_believed(lite: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    coders, item = DrawnCoder(11.0, 10**6, ms_ssim=False), item_of(SCREEN, 5.0)
    monkeypatch.setattr(jxl, "pieces_of", lambda data: {})
    coders.compress(item, 5.0)
    assert not coders.measure(item)
    assert isinstance(item.outcome, Kept)


def test_a_trim_moves_others_first(lite: LoadedModel, photo: NDArray[np.uint8]) -> None:
    """Twice the bytes of both: the photo takes them, where there is one."""
    coders = Coders([lite], CONFIG)
    for others in ([item_of(Picture(pixels=photo[:96, :128].copy()), 5.0, model=0)], []):
        one = item_of(SCREEN, 5.0)
        items = [one, *others]
        for item in items:
            coders.compress(item, 5.0)
            coders.pack(item)
        limit = 2 * sum(item.payload_bytes for item in items)
        _trim(items, limit, coders, None)
        assert one.symbols is not None
        assert (one.symbols.q == 5.0) == bool(others)
        assert sum(item.payload_bytes for item in items) <= limit
        assert all(item.symbols is not None and item.symbols.q > 5.0 for item in others)


def test_alpha_is_packed_once(lite: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    coders, packed, right = Coders([lite], CONFIG), [], avif.carried_with

    def counted(picture: Picture) -> dict[str, bytes]:
        packed.append(picture)
        return right(picture)

    monkeypatch.setattr(avif, "carried_with", counted)
    item = item_of(replace(SCREEN, alpha=SCREEN.pixels[:, :, 0].copy()), 5.0)
    for q in (2.0, 5.0, 9.0):
        coders.compress(item, q)
    assert (len(item.tried), len(packed)) == (3, 1)


def test_tiny_models_leave_it_as_well(photo: NDArray[np.uint8]) -> None:
    """A model of other rates: AVIF's qualities are spread over them."""
    tiny = parse_model((Path(__file__).parents[2] / "golden" / "integer" / "model.safetensors").read_bytes())
    coders = Coders([tiny], CONFIG)
    assert Codec(tiny).q_max == coders.drawn.q_max
    item = item_of(SCREEN, coders.q_max)
    coders.compress(item, coders.q_max)
    assert set(item.tried) == {avif.LEVELS[1]}
